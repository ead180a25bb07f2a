// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "guestmem/cli/backend_commands.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/qemu_ram_blocks.hpp"
#include "guestmem/cli/qmp.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/backends/usage.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/process_memory.hpp"

namespace guestmem::cli {
namespace {

/// The stacks of threads have 8 MiB by default: this leaves them out.
constexpr const char* default_min_size = "16M";

struct UsageOptions {
    std::string target;
    std::string min_size = default_min_size;
    bool all = false;
    bool json = false;
};

/// A line of the table.
struct Row {
    std::string name;
    std::string backend;  ///< id of the memory backend, of RAM blocks
    std::string permissions;
    std::uint64_t address = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t page_bytes = 0;
    bool is_placed_by_size = false;  ///< a RAM block whose address nobody tells
    MemoryUsage usage;
};

struct Shown {
    std::int32_t pid = 0;
    const char* rule = "guest memory";  ///< "all mappings", "guest memory", "RAM blocks"
    std::vector<Row> rows;
    std::vector<RamBlock> unplaced;  ///< blocks whose address nobody tells
};

using File = std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>;

File file_of(const ProcessMapping& mapping) {
    return {mapping.device_major, mapping.device_minor, mapping.inode};
}

std::string permissions_of(const ProcessMapping& mapping) {
    return fmt::format("{}{}{}{}", mapping.is_readable ? 'r' : '-', mapping.is_writable ? 'w' : '-',
                       mapping.is_executable ? 'x' : '-', mapping.sharing == MapSharing::shared ? 's' : 'p');
}

/// "memfd:ram0", "/path", "/path (deleted)", "anonymous", "shared anonymous", "[heap]".
std::string name_of(const ProcessMapping& mapping) {
    constexpr std::string_view memfd = "/memfd:";
    if (mapping.name.empty()) return "anonymous";
    if (!mapping.has_file()) return mapping.name;
    if (mapping.name.starts_with(memfd)) return mapping.name.substr(1);
    if (mapping.name == "/dev/zero") return "shared anonymous";
    return mapping.name + (mapping.is_deleted ? " (deleted)" : "");
}

/// Whether `next` goes on in the file where `mapping` stops: advice on a part of guest memory cuts it in the kernel's
/// list. Anonymous memory does not say what belongs together.
bool is_continued(const ProcessMapping& mapping, const ProcessMapping& next) {
    return mapping.has_file() && mapping.last() + 1 == next.base && file_of(mapping) == file_of(next) &&
           permissions_of(mapping) == permissions_of(next) && mapping.name == next.name &&
           mapping.offset_bytes + mapping.size_bytes == next.offset_bytes;
}

std::vector<Row> joined_rows(const std::vector<ProcessMapping>& mappings) {
    std::vector<Row> rows;
    const ProcessMapping* before = nullptr;
    for (const ProcessMapping& mapping : mappings) {
        if (before == nullptr || !is_continued(*before, mapping))
            rows.push_back({.name = name_of(mapping),
                            .backend = {},
                            .permissions = permissions_of(mapping),
                            .address = mapping.base,
                            .offset_bytes = mapping.offset_bytes,
                            .page_bytes = mapping.page_bytes,
                            .usage = {}});
        rows.back().usage.add(usage_of(mapping));
        before = &mapping;
    }
    return rows;
}

/// The rule: what a process may have made for a guest. What is shared and writable, of any size; what is private or
/// read-only from a size on, which show_process() looks at. Not what has a name of the kernel's ([heap]), what cannot
/// be read, and files of which some part is executable: programs, libraries and generated code.
std::vector<ProcessMapping> guest_like(const std::vector<ProcessMapping>& mappings) {
    std::set<File> programs;
    for (const ProcessMapping& mapping : mappings)
        if (mapping.has_file() && mapping.is_executable) programs.insert(file_of(mapping));
    std::vector<ProcessMapping> kept;
    for (const ProcessMapping& mapping : mappings) {
        const bool has_kernel_name = mapping.name.starts_with('[') && !mapping.name.starts_with("[anon");
        if (!mapping.is_readable || mapping.is_executable || has_kernel_name) continue;
        if (mapping.has_file() && (programs.contains(file_of(mapping)) || !mapping.name.starts_with('/')))
            continue;
        kept.push_back(mapping);
    }
    return kept;
}

Result<Shown> show_process(std::int32_t pid, const UsageOptions& options) {
    Shown shown{
        .pid = pid, .rule = options.all ? "all mappings" : "guest memory", .rows = {}, .unplaced = {}};
    const auto mappings = GM_TRY(process_mappings(pid));
    const std::uint64_t least = GM_TRY_CONTEXT(parse_qemu_size(options.min_size), "--min");
    shown.rows = joined_rows(options.all ? mappings : guest_like(mappings));
    if (options.all) return shown;
    std::erase_if(shown.rows, [&](const Row& row) {
        return !row.permissions.ends_with("w-s") && row.usage.mapped_bytes < least;
    });
    return shown;
}

/// The only mapping of that size that no block has yet; null when there is none, or more. QEMU keeps the memory of its
/// blocks out of children ("dc"), and nothing else.
const ProcessMapping* find_by_size(const std::vector<ProcessMapping>& mappings, std::uint64_t size_bytes,
                                   const std::vector<Row>& taken) {
    const ProcessMapping* found = nullptr;
    for (const ProcessMapping& mapping : mappings) {
        if (mapping.size_bytes != size_bytes || !mapping.has_flag("dc") ||
            std::ranges::count(taken, mapping.base, &Row::address) != 0)
            continue;
        if (found != nullptr) return nullptr;
        found = &mapping;
    }
    return found;
}

/// The mapping that has the address, for what it is called and how it is mapped.
const ProcessMapping* mapping_at(const std::vector<ProcessMapping>& mappings, std::uint64_t address) {
    const auto at = std::ranges::find_if(
        mappings, [&](const auto& mapping) { return mapping.base <= address && address <= mapping.last(); });
    return at == mappings.end() ? nullptr : &*at;
}

Row row_of(const RamBlock& block, std::uint64_t base, const std::vector<ProcessMapping>& mappings) {
    const HostRange range{.base = base, .size_bytes = block.size_bytes};
    Row row{.name = block.name.empty() ? block.backend : block.name,
            .backend = block.backend,
            .permissions = {},
            .address = base,
            .offset_bytes = 0,
            .page_bytes = 0,
            .usage = usage_of(std::span{&range, 1}, mappings)};
    if (const ProcessMapping* const mapping = mapping_at(mappings, base)) {
        row.permissions = permissions_of(*mapping);
        row.offset_bytes = mapping->offset_bytes + (base - mapping->base);
        row.page_bytes = mapping->page_bytes;
    }
    return row;
}

Result<Shown> show_blocks(std::int32_t pid, const std::vector<RamBlock>& blocks) {
    const auto mappings = GM_TRY(process_mappings(pid));
    Shown shown{.pid = pid, .rule = "RAM blocks", .rows = {}, .unplaced = {}};
    std::vector<const RamBlock*> without_address;
    for (const RamBlock& block : blocks) {
        if (!block.host_base) {
            without_address.push_back(&block);
            continue;
        }
        Row row = row_of(block, *block.host_base, mappings);
        if (row.usage.mapped_bytes < block.size_bytes)
            return Error{Errc::unavailable,
                         fmt::format("RAM block '{}': process {} does not have it at {:#x}; if somebody else "
                                     "opened the socket for QEMU, give the number of QEMU's process",
                                     to_printable(block.name), pid, *block.host_base)};
        shown.rows.push_back(std::move(row));
    }
    const auto candidates = guest_like(mappings);
    for (const RamBlock* const block : without_address) {
        const auto is_alike = [&](const RamBlock* other) { return other->size_bytes == block->size_bytes; };
        const ProcessMapping* const found = std::ranges::count_if(without_address, is_alike) == 1
                                                ? find_by_size(candidates, block->size_bytes, shown.rows)
                                                : nullptr;
        if (found != nullptr) {
            shown.rows.push_back(row_of(*block, found->base, mappings));
            shown.rows.back().is_placed_by_size = true;
        } else {
            shown.unplaced.push_back(*block);
        }
    }
    return shown;
}

Result<Shown> show_socket(const UsageOptions& options) {
    const PathFacts facts = GM_TRY(path_facts(options.target));
    if (!facts.exists)
        return Error{Errc::not_found,
                     fmt::format("{}: there is no such socket", to_printable(options.target))};
    if (facts.kind != FileKind::other)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: is no socket; give the number of a process or a Unix socket",
                                 to_printable(options.target))};
    auto connected = connect_soon(options.target);
    if (!connected && connected.error().code() == Errc::timed_out)
        return Error{Errc::timed_out,
                     fmt::format("{}; give the number of the process", connected.error().message())};
    const UnixStream stream = GM_TRY(std::move(connected));
    const PeerCredentials peer = GM_TRY(stream.peer());
    if (peer.pid <= 0)
        return Error{Errc::unavailable, fmt::format("{}: the kernel does not say which process listens there "
                                                    "(it is in another container)",
                                                    to_printable(options.target))};
    if (options.all) return show_process(peer.pid, options);
    const auto blocks = GM_TRY_CONTEXT(ask_ram_blocks(stream), to_printable(options.target));
    return blocks ? show_blocks(peer.pid, *blocks) : show_process(peer.pid, options);
}

/// A word of digits alone is a process; a socket of such a name is "./123".
Result<Shown> show(const UsageOptions& options) {
    const std::string& target = options.target;
    if (target.empty() || target.find_first_not_of("0123456789") != std::string::npos)
        return show_socket(options);
    std::int32_t pid = 0;
    const auto [rest, status] = std::from_chars(target.data(), target.data() + target.size(), pid);
    if (status != std::errc{} || pid == 0)
        return Error{Errc::not_found, fmt::format("process {}: there is no such process", target)};
    return show_process(pid, options);
}

struct Column {
    const char* title;
    const char* key;
    std::uint64_t (*value)(const MemoryUsage&);
};
constexpr std::array<Column, 10> columns{{
    {"MAPPED", "mapped_bytes", [](const MemoryUsage& usage) { return usage.mapped_bytes; }},
    {"RESIDENT", "resident_bytes", [](const MemoryUsage& usage) { return usage.resident_bytes; }},
    {"SHARED", "shared_bytes", [](const MemoryUsage& usage) { return usage.shared_bytes; }},
    {"PRIVATE", "private_bytes", [](const MemoryUsage& usage) { return usage.private_bytes; }},
    {"PSS", "proportional_bytes", [](const MemoryUsage& usage) { return usage.proportional_bytes; }},
    {"SWAPPED", "swapped_bytes", [](const MemoryUsage& usage) { return usage.swapped_bytes; }},
    {"HUGE", "huge_bytes", [](const MemoryUsage& usage) { return usage.huge_bytes; }},
    {"FILE", "file_bytes", [](const MemoryUsage& usage) { return usage.file_bytes; }},
    {"ANON", "anonymous_bytes", [](const MemoryUsage& usage) { return usage.anonymous_bytes; }},
    {"UNTOUCHED", "untouched_bytes", [](const MemoryUsage& usage) { return usage.untouched_bytes(); }},
}};

MemoryUsage total_of(const Shown& shown) {
    MemoryUsage total;
    for (const Row& row : shown.rows) total.add(row.usage);
    return total;
}

std::string line_of(std::string_view permissions, const MemoryUsage& usage, std::string_view name) {
    std::string line = fmt::format("{:<5}", permissions);
    for (const Column& column : columns) line += fmt::format("{:>10}", format_qemu_size(column.value(usage)));
    return fmt::format("{}{} {}\n", line, usage.is_exact ? " " : "~", name);
}

void print_table(const Shown& shown) {
    print(fmt::format("process {}: {}\n", shown.pid, shown.rule));
    std::string head = fmt::format("{:<5}", "MAP");
    for (const Column& column : columns) head += fmt::format("{:>10}", column.title);
    print(head + "  NAME\n");
    for (const Row& row : shown.rows) {
        const bool has_other_name = !row.backend.empty() && row.backend != row.name;
        const std::string name = to_printable(has_other_name ? row.name + " " + row.backend : row.name);
        print(line_of(row.permissions, row.usage, name + (row.is_placed_by_size ? " (found by size)" : "")));
    }
    print(line_of("", total_of(shown), "total"));
}

nlohmann::json json_of(const MemoryUsage& usage) {
    nlohmann::json object{{"is_exact", usage.is_exact}};
    for (const Column& column : columns) object[column.key] = column.value(usage);
    return object;
}

void print_json(const Shown& shown) {
    nlohmann::json rows = nlohmann::json::array();
    for (const Row& row : shown.rows) {
        nlohmann::json object = json_of(row.usage);
        object["name"] = row.name;
        object["backend"] = row.backend;
        object["permissions"] = row.permissions;
        object["address"] = row.address;
        object["offset_bytes"] = row.offset_bytes;
        object["page_bytes"] = row.page_bytes;
        object["is_placed_by_size"] = row.is_placed_by_size;
        rows.push_back(std::move(object));
    }
    nlohmann::json unplaced = nlohmann::json::array();
    for (const RamBlock& block : shown.unplaced)
        unplaced.push_back(
            {{"name", block.name}, {"backend", block.backend}, {"size_bytes", block.size_bytes}});
    const nlohmann::json all{{"pid", shown.pid},
                             {"rule", shown.rule},
                             {"rows", std::move(rows)},
                             {"total", json_of(total_of(shown))},
                             {"unplaced", std::move(unplaced)}};
    // A path may have bytes that are no UTF-8.
    print(all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void tell_unplaced(const std::vector<RamBlock>& blocks) {
    if (blocks.empty()) return;
    std::string names;
    for (const RamBlock& block : blocks)
        names += fmt::format("{}'{}' of {}", names.empty() ? "" : ", ", to_printable(block.name),
                             format_qemu_size(block.size_bytes));
    fmt::print(stderr,
               "guestmem: not counted, since QEMU does not tell the address of what no guest sees: {}\n",
               names);
}

int usage(const UsageOptions& options) {
    if (const auto least = parse_qemu_size(options.min_size); !least) {
        fmt::print(stderr, "guestmem: --min: {}\n", least.error().message());
        return exit_usage;
    }
    const auto shown = show(options);
    if (!shown) return report(shown.error());
    tell_unplaced(shown->unplaced);
    if (options.json) {
        print_json(*shown);
    } else {
        print_table(*shown);
    }
    return exit_ok;
}

}  // namespace

Action describe_backend_usage(CLI::App& app) {
    auto options = std::make_shared<UsageOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem backend usage 4711\n"
        "  guestmem backend usage /run/vm1.qmp --json\n"
        "Of a process: what is mapped shared and writable (memfd, shm, files), and private or read-only mappings of\n"
        "at least --min; not programs, libraries, heap and stacks. A QMP socket of QEMU names the RAM blocks; of any\n"
        "other socket the process that listens is shown. SHARED and PRIVATE tell whether somebody else maps the\n"
        "pages too; FILE are pages of a file or memory object, ANON all others; ~ marks figures that are at most so\n"
        "large. Seeing another user's process takes root.\n"
        "Exit codes: 0 done, 1 not there or not allowed, 2 wrong words, 3 nobody answers in time.");
    app.add_option("PID|SOCKET", options->target, "A process, or a Unix socket that it listens on")
        ->required();
    app.add_option("--min", options->min_size,
                   "The least size of a private or read-only mapping that is shown")
        ->capture_default_str();
    app.add_flag("--all", options->all, "Show every mapping of the process");
    app.add_flag("--json", options->json, "Print JSON for programs");
    return [options] { return usage(*options); };
}

}  // namespace guestmem::cli

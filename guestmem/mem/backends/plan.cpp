// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstddef>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/checks.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

/// Where the kernel's shared memory objects are.
constexpr const char* shm_folder = "/dev/shm";
/// Of a file of more pieces the first are looked at.
constexpr int max_extents_asked = 4096;

/// Data of a file in a part of it.
Result<std::uint64_t> data_in(FdView file, std::uint64_t begin, std::uint64_t end) {
    std::uint64_t sum = 0;
    for (int i = 0; i < max_extents_asked && begin < end; ++i) {
        const auto data = GM_TRY(next_data(file, {.offset_bytes = begin, .size_bytes = end - begin}));
        if (!data) break;
        sum += data->size_bytes;
        begin = data->offset_bytes + data->size_bytes;
    }
    return sum;
}

/// Data before and behind the part that is mapped. Blocks that were allocated and never written are told by nobody.
Result<std::uint64_t> data_outside(const BackendOptions& options, std::uint64_t file_bytes) {
    const Fd file = GM_TRY(open_file(options.mem_path, OpenMode::read));
    const std::uint64_t begin = std::min(options.offset_bytes, file_bytes);
    const std::uint64_t end = begin + std::min(options.size_bytes, file_bytes - begin);
    return GM_TRY(data_in(file, 0, begin)) + GM_TRY(data_in(file, end, file_bytes));
}

std::uint64_t page_of(const BackendOptions& options, const MachineFacts& machine,
                      const FileFactsBefore& file) {
    if (options.kind == BackendKind::memfd && options.is_huge)
        return options.huge_page_bytes != 0 ? options.huge_page_bytes : machine.default_huge_page_bytes;
    if (options.kind == BackendKind::file && file.file_system && file.file_system->is_huge)
        return file.file_system->page_bytes;
    return page_size_bytes;
}

FileEffect effect_of(const BackendOptions& options, const FileFactsBefore& file, std::uint64_t needed) {
    if (options.kind != BackendKind::file || options.is_readonly) return FileEffect::none;
    if (!file.path.exists) return FileEffect::created;
    if (file.path.kind == FileKind::folder) return FileEffect::temporary;
    const bool is_empty = file.path.kind == FileKind::regular && file.path.size_bytes == 0;
    return is_empty && needed != 0 ? FileEffect::grown : FileEffect::none;
}

/// Bytes that become memory of the machine when they are written, and not of a disk's cache or a device.
std::uint64_t memory_of(const BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    if (options.kind == BackendKind::physical) return 0;
    if (options.kind == BackendKind::ram) return plan.mapped_bytes;
    const bool is_private = plan.mode.sharing == MapSharing::private_copy;
    const bool is_object = options.kind != BackendKind::file;
    // What file system a device's name is in says nothing of the device.
    const bool is_device = plan.file.path.exists && plan.file.path.kind != FileKind::regular &&
                           plan.effect != FileEffect::temporary;
    const bool is_memory =
        is_object || (!is_device && plan.file.file_system && plan.file.file_system->is_memory);
    const std::uint64_t of_file = is_memory ? detail::missing_blocks_of(plan) : 0;
    // The kernel promises huge pages to read-only mappings, too. Of a file in memory reading takes pages.
    const bool is_promised = plan.is_huge && options.is_reserved;
    if (plan.mode.access == MapAccess::read_only && !is_promised) return plan.is_huge ? 0 : of_file;
    // Before a page is copied the file gets it: memory objects and tmpfs have it twice then. Huge pages have not.
    if (is_private) return plan.mapped_bytes + (plan.is_huge ? 0 : of_file);
    return of_file;
}

std::size_t count_refusals(const BackendPlan& plan) {
    return static_cast<std::size_t>(
        std::ranges::count(plan.problems.all(), Severity::refusal, &Problem::severity));
}

}  // namespace

Result<MachineFacts> ask_machine() {
    MachineFacts facts;
    facts.limits = GM_TRY(memory_limits());
    facts.huge_pages = GM_TRY(huge_page_pools());
    facts.default_huge_page_bytes = default_huge_page_bytes().value_or(0);
    facts.nodes = GM_TRY(numa_nodes());
    for (const std::uint16_t node : facts.nodes.online)
        if (const auto bytes = GM_TRY(node_available_bytes(node))) facts.node_available_bytes[node] = *bytes;
    return facts;
}

Result<FileFactsBefore> ask_file(const BackendOptions& options) {
    FileFactsBefore facts;
    if (options.kind == BackendKind::shm) {
        facts.folder = GM_TRY(path_facts(shm_folder));
        if (facts.folder.exists) facts.file_system = GM_TRY(file_system_facts(shm_folder));
        return facts;
    }
    const bool has_path = options.kind == BackendKind::file || options.kind == BackendKind::physical;
    if (!has_path || options.mem_path.empty()) return facts;
    facts.path = GM_TRY(path_facts(options.mem_path));
    const std::string folder = parent_folder(options.mem_path);
    facts.folder = GM_TRY(path_facts(folder));
    if (facts.path.exists) {
        facts.file_system = GM_TRY(file_system_facts(options.mem_path));
        if (facts.path.kind == FileKind::regular && facts.path.is_readable && facts.path.allocated_bytes != 0)
            facts.outside_data_bytes = GM_TRY(data_outside(options, facts.path.size_bytes));
    } else if (facts.folder.exists) {
        facts.file_system = GM_TRY(file_system_facts(folder));
        facts.is_broken_link = GM_TRY(is_link(options.mem_path));
    }
    return facts;
}

BackendPlan plan_backend(const BackendOptions& options, const MachineFacts& machine,
                         const FileFactsBefore& file) {
    BackendPlan plan{.options = options, .file = file};
    if (const auto mode = mode_of(options)) plan.mode = *mode;
    const std::uint64_t page = page_of(options, machine, file);
    plan.is_huge = (options.kind == BackendKind::memfd && options.is_huge) || page != page_size_bytes;
    plan.page_bytes = page;
    if (!std::has_single_bit(page)) {
        detail::check_options(plan);
        // A size that was named has been refused by its own rule.
        if (page == 0 || page != options.huge_page_bytes)
            plan.problems.refuse("no-huge-pages", "this kernel has no huge pages");
        return plan;
    }
    plan.mapped_bytes = round_up(options.size_bytes, page).value_or(0);
    plan.effect = effect_of(options, file, plan.mapped_bytes);
    detail::check_options(plan);
    const std::size_t count_before = count_refusals(plan);
    detail::check_sizes(plan);
    if (count_refusals(plan) != count_before) {
        // The rules that follow add sizes up. Of sizes that cannot be, no file is made.
        plan.effect = FileEffect::none;
        return plan;
    }
    plan.memory_worst_bytes = memory_of(plan);
    if (options.is_prealloc || (plan.is_huge && options.is_reserved))
        plan.memory_now_bytes = plan.memory_worst_bytes;
    detail::check_file(plan, machine);
    detail::check_memory(plan, machine);
    return plan;
}

std::string opening_of(const BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const std::string_view how = options.is_readonly ? "for reading" : "for reading and writing";
    switch (options.kind) {
        case BackendKind::ram:
            return is_shared(options) ? "an anonymous file is made, and its size is sealed"
                                      : "nothing is opened";
        case BackendKind::shm: return "a shared memory object without a name is made";
        case BackendKind::memfd:
            return fmt::format("an anonymous file is made{}",
                               options.is_sealed ? ", and its size is sealed" : "");
        case BackendKind::physical: return fmt::format("{} is opened {}", options.mem_path, how);
        case BackendKind::file: break;
    }
    switch (plan.effect) {
        case FileEffect::created:
            return fmt::format("{} is made, with {} bytes and mode 0644", options.mem_path,
                               options.offset_bytes + plan.mapped_bytes);
        case FileEffect::grown:
            return fmt::format("{}, which is empty, grows to {} bytes", options.mem_path,
                               options.offset_bytes + plan.mapped_bytes);
        case FileEffect::temporary:
            return fmt::format("a file without a name is made in {}", options.mem_path);
        case FileEffect::none: break;
    }
    return fmt::format("{} is opened {}", options.mem_path, how);
}

std::string mapping_of(const BackendPlan& plan) {
    const bool is_shared = plan.mode.sharing == MapSharing::shared;
    std::string text = fmt::format("{} bytes in pages of {}, {}, {}", plan.mapped_bytes,
                                   format_qemu_size(plan.page_bytes), is_shared ? "shared" : "private",
                                   plan.mode.access == MapAccess::read_only ? "read-only" : "writable");
    text += plan.mode.kind == RegionKind::rom ? ": the guest sees ROM" : ": the guest sees RAM";
    const bool is_clone = plan.options.is_readonly && plan.mode.kind == RegionKind::ram;
    if (is_clone) text += ", and what it writes stays in this VM";
    if (!plan.options.host_nodes.empty())
        text += fmt::format("; of nodes {}", fmt::join(plan.options.host_nodes, ", "));
    return text;
}

std::string ending_of(const BackendPlan& plan) {
    switch (plan.options.kind) {
        case BackendKind::ram:
        case BackendKind::memfd:
        case BackendKind::shm: return "the memory goes with its last user";
        case BackendKind::physical: return "the memory stays as it is";
        case BackendKind::file: break;
    }
    if (plan.effect == FileEffect::temporary) return "the file goes with its last user";
    const bool writes = plan.mode.sharing == MapSharing::shared && plan.mode.access == MapAccess::read_write;
    if (plan.options.is_discarded && writes) return "the file stays, and this part of it is zeroed";
    if (writes) return "the file stays, with what was written";
    return plan.effect == FileEffect::none ? "the file stays as it is" : "the file stays, and is zeros";
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/grants.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <tuple>
#include <utility>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/base/table_reader.hpp"
#include "guestmem/base/toml_tree.hpp"

namespace guestmem::dma {
namespace {

using Word = std::string_view;

constexpr Word one_file = "write the rest into a second file and plan it apart";
constexpr std::uint64_t largest_page_bytes = std::uint64_t{1} << 30;

std::optional<Permission> parse_permission(Word text) {
    Permission permission{false, false};
    for (const char letter : text) {
        bool& is_granted = letter == 'r' ? permission.can_read : permission.can_write;
        if ((letter != 'r' && letter != 'w') || is_granted) return std::nullopt;
        is_granted = true;
    }
    return text.empty() ? std::nullopt : std::optional{permission};
}

class GrantsReader {
public:
    GrantsReader(const VmMemoryLoader& load_config, Diagnostics& diagnostics)
        : load_config_(load_config), diagnostics_(diagnostics) {}

    std::vector<GrantedVm> read(const TomlNode& root) {
        static constexpr std::array<Word, 1> known{"vm"};
        TableReader table{root, "the file", known, diagnostics_};
        table.for_each_table("vm", max_granted_vms, one_file, [&](const TomlNode& node) { read_vm(node); });
        if (vms_.empty() && diagnostics_.is_empty())
            diagnostics_.add({1, 1}, "no VM",
                             "write [[vm]], name = \"cluster\" and device = [{ name = \"0000:01:00.0\" }]");
        return std::move(vms_);
    }

private:
    void read_vm(const TomlNode& node) {
        static constexpr std::array<Word, 5> known{"name", "config", "memory", "device", "memory_lock"};
        TableReader table{node, "[[vm]]", known, diagnostics_};
        GrantedVm vm;
        vm.line = table.start().line;
        vm.name = table.required_text("name", "\"cluster\"");
        if (table.has("name") && vm.name.empty()) table.complain("name", "a VM without a name");
        if (!vm.name.empty()) {
            const auto [at, is_first] = lines_.emplace(vm.name, vm.line);
            if (!is_first)
                table.complain("name", fmt::format("VM '{}' is in line {} already", vm.name, at->second),
                               "gather what it has in one [[vm]]");
        }
        read_memory_lock(table, vm);
        read_config(table, vm);
        table.for_each_table("memory", max_memories_of_vm, one_file,
                             [&](const TomlNode& memory) { read_memory(memory, vm); });
        check_memory(table, vm);
        table.for_each_table("device", max_granted_devices, one_file,
                             [&](const TomlNode& device) { read_device(device, vm); });
        vms_.push_back(std::move(vm));
    }

    void read_memory_lock(TableReader& table, GrantedVm& vm) {
        const TomlNode* node = table.find("memory_lock");
        if (node != nullptr && node->kind == TomlKind::text && node->text == "unlimited") {
            vm.is_memory_lock_unlimited = true;
            return;
        }
        vm.memory_lock_bytes = table.size("memory_lock", "\"unlimited\"");
    }

    void read_config(TableReader& table, GrantedVm& vm) {
        const auto path = table.text("config", "\"cluster.qvmconf\"");
        if (!path) return;
        auto memory = load_config_(*path);
        if (!memory) {
            // The others would stand in one line: who reads the file by itself sees all of them.
            const Word said = memory.error().message();
            table.complain("config", std::string{said.substr(0, said.find('\n'))},
                           fmt::format("all about it says: guestmem run --explain {}", *path));
            return;
        }
        vm.memory = *std::move(memory);
    }

    void read_memory(const TomlNode& node, GrantedVm& vm) {
        static constexpr std::array<Word, 6> known{"name", "at", "size", "page", "share", "writable"};
        TableReader table{node, "memory", known, diagnostics_};
        VmMemory memory;
        memory.line = table.start().line;
        memory.name = table.required_text("name", "\"ram\"");
        memory.at = table.required_size("at", "0x4000_0000").value_or(0);
        const auto size = table.required_size("size", "\"1G\"");
        memory.size_bytes = size.value_or(page_size_bytes);
        memory.page_bytes = table.size("page", "\"2M\"").value_or(page_size_bytes);
        memory.share = table.text("share", "\"mailbox\"").value_or("");
        memory.is_writable = table.boolean("writable", "true").value_or(true);
        if (!std::has_single_bit(memory.page_bytes) || memory.page_bytes < page_size_bytes ||
            memory.page_bytes > largest_page_bytes) {
            table.complain("page", fmt::format("{} is no page size", memory.page_bytes),
                           "write 4K, 64K, 2M or 1G");
            memory.page_bytes = page_size_bytes;
        }
        if (memory.size_bytes == 0 || memory.size_bytes % page_size_bytes != 0)
            table.complain("size", fmt::format("{} bytes are no whole pages", memory.size_bytes));
        if (memory.at % page_size_bytes != 0)
            table.complain("at", fmt::format("{:#x} is not at a page", memory.at));
        if (memory.size_bytes != 0 && memory.at > UINT64_MAX - (memory.size_bytes - 1)) {
            table.complain("size", "the memory reaches beyond the last address");
            memory.at = 0;
        }
        vm.memory.push_back(std::move(memory));
    }

    /// Sorts, and complains of what lies over each other and of names that are there twice.
    void check_memory(TableReader& table, GrantedVm& vm) {
        std::ranges::sort(vm.memory, [](const VmMemory& one, const VmMemory& other) {
            return std::tie(one.at, one.line) < std::tie(other.at, other.line);
        });
        names_.clear();
        for (std::size_t i = 0; i < vm.memory.size(); ++i) {
            const VmMemory& memory = vm.memory[i];
            if (!names_.emplace(memory.name, i).second)
                diagnostics_.add({memory.line, 1}, fmt::format("memory '{}' is there twice", memory.name));
            if (i == 0) continue;
            const VmMemory& before = vm.memory[i - 1];
            if (memory.at - before.at < before.size_bytes)
                diagnostics_.add(
                    {std::max(memory.line, before.line), 1},
                    fmt::format("memory '{}' at {:#x} overlaps '{}'", memory.name, memory.at, before.name));
        }
        if (vm.memory.empty() && diagnostics_.is_empty())
            table.complain(
                "memory", fmt::format("VM '{}' has no memory", vm.name),
                "write config = \"FILE.qvmconf\", or memory = [{ name = \"ram\", at = 0, size = \"1G\" }]");
    }

    void read_device(const TomlNode& node, GrantedVm& vm) {
        static constexpr std::array<Word, 2> known{"name", "reach"};
        TableReader table{node, "device", known, diagnostics_};
        if (++count_devices_ > max_granted_devices) {
            if (count_devices_ == max_granted_devices + 1)
                diagnostics_.add(table.start(), fmt::format("more than {} devices", max_granted_devices),
                                 std::string{one_file});
            return;
        }
        GrantedDevice device;
        device.line = table.start().line;
        device.name = table.required_text("name", "\"0000:01:00.0\"");
        const TomlNode* reach = table.find("reach");
        if (reach != nullptr && !(reach->kind == TomlKind::text && reach->text == "all")) {
            device.reaches_all = false;
            if (reach->kind == TomlKind::text)
                table.complain(
                    "reach", fmt::format("'{}' is no reach", reach->text),
                    "write reach = \"all\", or reach = [{ memory = \"ram\", permissions = \"r\" }]");
            else if (reach->children.empty())
                table.complain("reach", "the device reaches nothing",
                               "leave the device out, or give it memory");
            else
                table.for_each_table("reach", max_ranges_of_device, one_file,
                                     [&](const TomlNode& range) { read_range(range, vm, device); });
        }
        vm.devices.push_back(std::move(device));
    }

    void read_range(const TomlNode& node, const GrantedVm& vm, GrantedDevice& device) {
        static constexpr std::array<Word, 4> known{"memory", "offset", "size", "permissions"};
        TableReader table{node, "reach", known, diagnostics_};
        const std::string name = table.required_text("memory", "\"ram\"");
        const auto found = names_.find(name);
        if (found == names_.end()) {
            if (table.has("memory")) table.complain("memory", unknown_memory(vm, name));
            return;
        }
        const VmMemory& memory = vm.memory[found->second];
        GrantedRange range;
        range.memory = found->second;
        range.line = table.start().line;
        range.offset_bytes = table.size("offset", "\"1M\"").value_or(0);
        if (range.offset_bytes >= memory.size_bytes) {
            table.complain("offset", fmt::format("offset {:#x} is behind the {} of '{}'", range.offset_bytes,
                                                 format_size(memory.size_bytes), name));
            return;
        }
        const std::uint64_t rest = memory.size_bytes - range.offset_bytes;
        range.size_bytes = table.size("size", "\"64K\"").value_or(rest);
        if (range.size_bytes == 0 || range.size_bytes > rest)
            table.complain("size", fmt::format("{:#x} bytes do not fit: '{}' has {:#x} from there",
                                               range.size_bytes, name, rest));
        const auto permissions = table.text("permissions", "\"rw\"");
        const auto permission = parse_permission(permissions.value_or("rw"));
        if (!permission)
            table.complain("permissions", fmt::format("'{}' are no permissions", *permissions),
                           "write \"r\", \"w\" or \"rw\"");
        range.permission = permission.value_or(Permission{});
        device.ranges.push_back(range);
    }

    static std::string unknown_memory(const GrantedVm& vm, const std::string& name) {
        std::vector<Word> known;
        for (const VmMemory& memory : vm.memory) known.emplace_back(memory.name);
        const Word meant = closest_word(name, known);
        return fmt::format("VM '{}' has no memory '{}'{}", vm.name, name,
                           meant.empty() ? "" : fmt::format("; did you mean '{}'?", meant));
    }

    const VmMemoryLoader& load_config_;
    Diagnostics& diagnostics_;
    std::vector<GrantedVm> vms_;
    std::map<std::string, std::size_t> lines_;
    std::map<std::string, std::size_t> names_;  ///< of the memory of the VM at hand
    std::size_t count_devices_ = 0;
};

}  // namespace

std::string to_string(Permission permission) {
    if (!permission.can_read && !permission.can_write) return "-";
    return std::string{permission.can_read ? "r" : ""} + (permission.can_write ? "w" : "");
}

Result<Grants> read_grants(const std::string& file, std::string_view text,
                           const VmMemoryLoader& load_config) {
    Diagnostics diagnostics{file, std::string{text}};
    Grants grants;
    grants.file = file;
    if (const auto root = parse_toml(text, diagnostics))
        grants.vms = GrantsReader{load_config, diagnostics}.read(*root);
    if (!diagnostics.is_empty()) return diagnostics.to_error();
    return grants;
}

}  // namespace guestmem::dma

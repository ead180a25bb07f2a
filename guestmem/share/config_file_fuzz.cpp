// SPDX-License-Identifier: Apache-2.0
/// Fuzzes config_file.hpp: any bytes as a configuration file.
///
/// Asserts: an accepted configuration keeps every limit of config.hpp, its names, sockets and slots are given
/// once, its doors lead to shares that exist, its VMs have rules that can be read and a way to come, and its rights
/// can be looked at as a whole. An error names file:line:column in its first line, begins every
/// finding that way, and brings no control character to the terminal.
#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/share/config_file.hpp"
#include "guestmem/share/rights_lint.hpp"

namespace guestmem::share {
namespace {

constexpr std::string_view file_name = "fuzz.toml";

void check_shares(const ServiceConfig& config) {
    GM_CHECK(!config.shares.empty() && config.shares.size() <= max_shares);
    std::set<std::string> names;
    for (const ShareConfig& share : config.shares) {
        GM_CHECK(!find_name_problem(share.name));
        GM_CHECK(!find_size_problem(share.size_bytes));
        GM_CHECK(!find_vectors_problem(share.vectors));
        GM_CHECK(!find_slots_problem(share.slots, share.vectors));
        GM_CHECK(extent_of(share.size_bytes) >= share.size_bytes);
        GM_CHECK(!find_huge_pages_problem(share.huge_page_bytes, share.size_bytes));
        GM_CHECK(share.huge_page_bytes == 0 || share.backing == BackingKind::memfd);
        GM_CHECK(!find_path_problem(share.backing, share.path));
        GM_CHECK(!share.is_dynamic);
        GM_CHECK(names.insert(share.name).second);
    }
}

void check_socket(const ListenOptions& socket, std::set<std::string>& paths) {
    GM_CHECK(!socket.path.empty() && socket.path.size() <= max_socket_path_bytes);
    GM_CHECK(socket.path.find('\0') == std::string::npos);
    GM_CHECK(socket.mode <= 0777);
    GM_CHECK(paths.insert(socket.path).second);
}

void check_doors(const ServiceConfig& config) {
    std::set<std::string> paths;
    std::set<std::pair<std::string, std::uint32_t>> slots;
    check_socket(config.control.socket, paths);
    for (const VmConfig& vm : config.vms)
        if (vm.socket) check_socket(*vm.socket, paths);
    for (const DoorConfig& door : config.doors) {
        check_socket(door.socket, paths);
        const auto share = std::ranges::find(config.shares, door.share, &ShareConfig::name);
        GM_CHECK(share != config.shares.end());
        GM_CHECK(door.vm.empty() || !find_name_problem(door.vm));
        const bool has_slots = !door.vm.empty() && share->ids == IdPolicy::stable;
        GM_CHECK(door.slots.empty() == !has_slots);
        for (const std::uint32_t slot : door.slots) {
            GM_CHECK(slot < share->slots);
            GM_CHECK(slots.emplace(door.share, slot).second);
        }
    }
}

void check_limits(const UsageLimits& limits) {
    GM_CHECK(limits.shares <= max_shares && limits.bytes <= max_total_bytes);
    GM_CHECK(limits.peers >= 1 && limits.peers <= max_peers);
    GM_CHECK(limits.vectors <= max_total_vectors && limits.queued_messages <= max_queued_messages);
}

void check_vms(const ServiceConfig& config) {
    GM_CHECK(config.file == file_name && config.vms.size() <= max_vms);
    std::set<std::string> names;
    check_limits(config.totals);
    for (const VmConfig& vm : config.vms) {
        GM_CHECK(!find_name_problem(vm.name) && names.insert(vm.name).second);
        check_limits(vm.limits);
        GM_CHECK(vm.match.cgroup.empty() || !find_cgroup_problem(vm.match.cgroup));
        const bool has_door = std::ranges::find(config.doors, vm.name, &DoorConfig::vm) != config.doors.end();
        GM_CHECK(vm.rules.size() <= max_rules && vm.line >= 1);
        GM_CHECK(has_door || vm.socket || !vm.match.is_empty());
        for (const Rule& rule : vm.rules) GM_CHECK(!find_rule_problem(rule) && rule.line >= 1);
        for (const VmConfig& other : config.vms)
            GM_CHECK(&vm == &other || vm.socket || other.socket || vm.match.is_empty() ||
                     !(vm.match == other.match));
    }
    for (const LintFinding& finding : lint_rights(config, 0))
        GM_CHECK(!finding.what.empty() && !finding.advice.empty());
}

/// Whether the line begins with "fuzz.toml:LINE:COLUMN: error: ".
bool is_finding(std::string_view line) {
    if (!line.starts_with(file_name)) return false;
    line.remove_prefix(file_name.size());
    for (int number = 0; number < 2; ++number) {
        if (!line.starts_with(':')) return false;
        line.remove_prefix(1);
        const std::size_t digits = line.find_first_not_of("0123456789");
        if (digits == 0 || digits == std::string_view::npos || line.front() == '0') return false;
        line.remove_prefix(digits);
    }
    return line.starts_with(": error: ");
}

void check_error(const Error& error) {
    std::string_view text = error.message();
    bool is_first = true;
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find('\n'));
        const bool is_rest = line.starts_with("fuzz.toml: and ") && line.ends_with(" more");
        GM_CHECK(is_finding(line) || (!is_first && (line.starts_with(' ') || is_rest)));
        for (const char c : line) GM_CHECK(std::iscntrl(static_cast<unsigned char>(c)) == 0);
        is_first = false;
        text.remove_prefix(std::min(text.size(), line.size() + 1));
    }
    GM_CHECK(!is_first);
}

void attack(std::string_view text) {
    const auto config = parse_config(text, std::string{file_name});
    if (!config) return check_error(config.error());
    check_shares(*config);
    check_doors(*config);
    check_vms(*config);
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::share::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

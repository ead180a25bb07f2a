// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/base/sizes.hpp"
#include "guestmem/share/wildcard.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {

std::optional<Problem> find_name_problem(std::string_view name) {
    if (name.empty() || name.size() > max_name_bytes)
        return Problem{fmt::format("a name has 1 to {} bytes, this one has {}", max_name_bytes, name.size()),
                       "write a shorter name, as in \"mailbox\""};
    for (const char c : name)
        if (c < ' ' || c > '~' || c == '/')
            return Problem{"a name is printable ASCII without '/'",
                           "use letters, digits, '-', '_' and '.', as in \"mailbox\""};
    return std::nullopt;
}

std::optional<Problem> find_size_problem(std::uint64_t size_bytes) {
    if (size_bytes > max_size_bytes)
        return Problem{
            fmt::format("size {} is beyond the limit of {}", size_bytes, format_size(max_size_bytes)),
            fmt::format("write at most \"{}\"", format_size(max_size_bytes))};
    const std::uint64_t next = *round_up(std::max<std::uint64_t>(size_bytes, 1), page_size_bytes);
    if (size_bytes == 0)
        return Problem{"size 0: a share needs memory", fmt::format("write at least {}", next)};
    if (size_bytes != next)
        return Problem{fmt::format("size {} is not whole pages of {} bytes", size_bytes, page_size_bytes),
                       fmt::format("the next size is {}", next)};
    return std::nullopt;
}

std::optional<Problem> find_vectors_problem(std::uint64_t vectors) {
    if (vectors >= 1 && vectors <= max_vectors) return std::nullopt;
    return Problem{fmt::format("{} vectors: a share has 1 to {}", vectors, max_vectors),
                   fmt::format("write a number from 1 to {}", max_vectors)};
}

std::optional<Problem> find_slots_problem(std::uint64_t slots, std::uint64_t vectors) {
    if (slots < 1 || slots > max_slots)
        return Problem{fmt::format("{} slots: a share has 1 to {}", slots, max_slots),
                       fmt::format("write a number from 1 to {}", max_slots)};
    if (slots * vectors > max_slots_times_vectors)
        return Problem{
            fmt::format("{} slots x {} vectors are {} doorbells; the limit is {}, because every client "
                        "holds a descriptor for each",
                        slots, vectors, slots * vectors, max_slots_times_vectors),
            fmt::format("with {} vectors write at most {} slots", vectors,
                        max_slots_times_vectors / vectors)};
    return std::nullopt;
}

std::optional<Problem> find_huge_pages_problem(std::uint64_t huge_page_bytes, std::uint64_t size_bytes) {
    if (huge_page_bytes == 0) return std::nullopt;
    const bool is_power_of_two = (huge_page_bytes & (huge_page_bytes - 1)) == 0;
    if (!is_power_of_two || huge_page_bytes < least_huge_page_bytes || huge_page_bytes > max_huge_page_bytes)
        return Problem{fmt::format("no machine has huge pages of {}", format_size(huge_page_bytes)),
                       "write \"2M\" or \"1G\", or what stands in /sys/kernel/mm/hugepages"};
    if (size_bytes % huge_page_bytes != 0)
        return Problem{
            fmt::format("size {} is not whole huge pages of {}", size_bytes, format_size(huge_page_bytes)),
            fmt::format("the next size is \"{}\"", format_size(*round_up(size_bytes, huge_page_bytes)))};
    return std::nullopt;
}

std::optional<Problem> find_path_problem(BackingKind kind, std::string_view path) {
    if (kind == BackingKind::memfd) {
        if (path.empty()) return std::nullopt;
        return Problem{"a memfd has no path", "write backing = \"file\" or backing = \"shm\", or no path"};
    }
    if (kind == BackingKind::shm) {
        const std::string_view name = path.substr(std::min<std::size_t>(1, path.size()));
        const bool is_name = path.starts_with('/') && !name.empty() && name != "." && name != ".." &&
                             name.find_first_of(std::string_view{"/\0", 2}) == std::string_view::npos;
        if (is_name && name.size() <= max_shm_name_bytes) return std::nullopt;
        return Problem{
            fmt::format("a shm name is '/' and 1 to {} bytes without another '/'", max_shm_name_bytes),
            "write path = \"/mailbox\""};
    }
    if (!path.starts_with('/') || path.ends_with('/') || path.find('\0') != std::string_view::npos)
        return Problem{"the path of a file begins with '/' and does not end with it",
                       "write path = \"/var/lib/guestmem/mailbox\""};
    if (path.size() > max_path_bytes)
        return Problem{
            fmt::format("a path has at most {} bytes, this one has {}", max_path_bytes, path.size()),
            "choose a shorter path"};
    return std::nullopt;
}

std::optional<Problem> find_cgroup_problem(std::string_view pattern) {
    constexpr const char* advice = "write cgroup = \"/machine.slice/linux*\"";
    if (!pattern.starts_with('/') && !pattern.starts_with('*'))
        return Problem{"the path of a cgroup begins with '/'", advice};
    if (pattern.size() > max_cgroup_pattern_bytes)
        return Problem{fmt::format("a pattern of cgroups has at most {} bytes, this one has {}",
                                   max_cgroup_pattern_bytes, pattern.size()),
                       "let '*' stand for some of them"};
    if (const auto wildcard = Wildcard::parse(pattern); !wildcard) return Problem{wildcard.error(), advice};
    return std::nullopt;
}

std::optional<Problem> find_rule_problem(const Rule& rule) {
    if (auto problem = find_pattern_problem(rule.pattern))
        return Problem{*std::move(problem), "write a name or a shell wildcard, as in \"mail*\""};
    const Permissions& may = rule.permissions;
    if (rule.verdict == Verdict::allow && !may.may_attach && !may.may_create && !may.may_notify)
        return Problem{"an allow of nothing", "write deny, or may = [\"attach\"] with what else it may"};
    return std::nullopt;
}

std::uint64_t extent_of(std::uint64_t size_bytes) {
    // Sizes are at most 2^40: there is always a next power of two.
    return *round_up_to_power_of_two(std::max(size_bytes, page_size_bytes));
}

std::vector<std::uint32_t> owned_slots(const ServiceConfig& config, std::string_view share) {
    std::vector<std::uint32_t> owned;
    for (const DoorConfig& door : config.doors)
        if (door.share == share && !door.vm.empty())
            owned.insert(owned.end(), door.slots.begin(), door.slots.end());
    return owned;
}

Result<ServiceConfig> quick_config(const QuickOptions& options) {
    const ShareConfig& share = options.share;
    for (const auto& problem :
         {find_name_problem(share.name), find_size_problem(share.size_bytes),
          find_vectors_problem(share.vectors), find_slots_problem(share.slots, share.vectors)})
        if (problem)
            return Error{Errc::invalid_argument,
                         fmt::format("share '{}': {}; {}", share.name, problem->what, problem->advice)};

    if (const std::string folder = parent_folder(options.socket); !is_folder(folder))
        return Error{Errc::invalid_argument,
                     fmt::format("socket {}: folder {} does not exist; make it first: mkdir -p {}",
                                 options.socket, folder, folder)};

    ServiceConfig config;
    config.shares = {share};
    config.control.socket.path = options.control.empty() ? options.socket + ".control" : options.control;
    const auto add_door = [&](const std::string& path, std::vector<std::uint32_t> slots) {
        config.doors.push_back(
            {.share = share.name,
             .vm = {},
             .slots = std::move(slots),
             .socket = {.path = path, .owner = {}, .group = {}, .mode = options.socket_mode}});
    };
    add_door(options.socket, {});
    // Classic ids follow the order of arrival: a socket cannot promise one.
    if (share.ids == IdPolicy::stable)
        for (std::uint32_t slot = 0; slot < share.slots; ++slot)
            add_door(fmt::format("{}.{}", options.socket, slot), {slot});
    return config;
}

std::string default_control_path() {
    if (auto path = environment("GUESTMEM_SHARE_CONTROL")) return *path;
    return runtime_folder() + "/share.control";
}

}  // namespace guestmem::share

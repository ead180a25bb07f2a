// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_limits.hpp"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/kernel_text.hpp"

namespace guestmem {
namespace {

constexpr std::size_t meminfo_limit_bytes = 64 * 1024;
constexpr std::size_t cgroup_limit_bytes = 64 * 1024;
constexpr std::size_t mountinfo_limit_bytes = 16 * 1024 * 1024;

/// PATH_MAX: what the kernel opens is no longer.
constexpr std::size_t max_path_bytes = 4096;

/// What the first version shows for "no limit": 2^63 - 1 cut to pages, of 64 KiB at most.
constexpr std::uint64_t first_endless = 0x7fff'ffff'ffff'0000;

/// How a version of cgroups names things.
struct Version {
    std::string_view file_system;
    std::string_view controllers;  ///< what stands in /proc/self/cgroup and among the mount's options
    std::string_view limit;
    std::string_view usage;
    std::string_view inactive_cache;
    std::string_view active_cache;
};
constexpr std::array<Version, 2> versions{{{.file_system = "cgroup",
                                            .controllers = "memory",
                                            .limit = "memory.limit_in_bytes",
                                            .usage = "memory.usage_in_bytes",
                                            .inactive_cache = "total_inactive_file",
                                            .active_cache = "total_active_file"},
                                           {.file_system = "cgroup2",
                                            .controllers = "",
                                            .limit = "memory.max",
                                            .usage = "memory.current",
                                            .inactive_cache = "inactive_file",
                                            .active_cache = "active_file"}}};

struct Headroom {
    std::uint64_t size_bytes = 0;
    std::string folder;
};

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    for (;;) {
        const std::size_t at = text.find(separator);
        parts.push_back(text.substr(0, at));
        if (at == std::string_view::npos) return parts;
        text.remove_prefix(at + 1);
    }
}

/// Whether "cpu,memory" has "memory"; the second version has no controllers to look for.
bool has_controllers(std::string_view list, const Version& version) {
    if (version.controllers.empty()) return true;
    const auto all = split(list, ',');
    return std::ranges::find(all, version.controllers) != all.end();
}

/// The process's cgroup: of "4:cpu,memory:/a/b" or "0::/a/b" the last part; empty when it is in none.
std::string_view own_cgroup(std::string_view text, const Version& version) {
    for (const std::string_view line : split(text, '\n')) {
        const std::size_t first = line.find(':');
        if (first == std::string_view::npos) continue;
        const std::size_t second = line.find(':', first + 1);
        if (second == std::string_view::npos) continue;
        const std::string_view controllers = line.substr(first + 1, second - first - 1);
        const bool is_it = version.controllers.empty() ? controllers.empty() && line.substr(0, first) == "0"
                                                       : has_controllers(controllers, version);
        if (is_it) return line.substr(second + 1);
    }
    return {};
}

/// mountinfo writes blanks, tabs, line ends and backslashes as \040, \011, \012 and \134.
std::string unescaped(std::string_view text) {
    std::string plain;
    const auto is_octal = [](char letter) { return letter >= '0' && letter <= '7'; };
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && text.size() - i > 3 && std::ranges::all_of(text.substr(i + 1, 3), is_octal)) {
            plain +=
                static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
            i += 3;
        } else {
            plain += text[i];
        }
    }
    return plain;
}

struct Mount {
    std::string root;   ///< which cgroup is seen at the mount point
    std::string point;  ///< where
};

/// See proc_pid_mountinfo(5): "36 35 98:0 ROOT POINT OPTIONS [FIELDS...] - TYPE SOURCE OPTIONS".
std::optional<Mount> mount_of(std::string_view line, const Version& version) {
    const auto fields = split(line, ' ');
    const auto dash = std::ranges::find(fields, "-");
    if (dash - fields.begin() < 6 || fields.end() - dash < 4) return std::nullopt;
    if (dash[1] != version.file_system || !has_controllers(dash[3], version)) return std::nullopt;
    return Mount{.root = unescaped(fields[3]), .point = unescaped(fields[4])};
}

/// The way from the cgroup `root` down to `cgroup`: "/b" from "/a" to "/a/b"; nothing when it is not below.
std::optional<std::string_view> way_down(std::string_view root, std::string_view cgroup) {
    if (root == "/") root = {};
    if (!cgroup.starts_with(root)) return std::nullopt;
    cgroup.remove_prefix(root.size());
    if (!cgroup.empty() && !cgroup.starts_with('/')) return std::nullopt;
    // A namespace shows what is above it as "/..": nothing here leads there.
    const auto steps = split(cgroup, '/');
    if (std::ranges::find(steps, "..") != steps.end()) return std::nullopt;
    return cgroup == "/" ? std::string_view{} : cgroup;
}

/// The folders of a cgroup and of all above it that can be seen; none when it is not mounted.
std::vector<std::string> folders_of(std::string_view mountinfo, std::string_view cgroup,
                                    const Version& version) {
    std::optional<Mount> best;
    for (const std::string_view line : split(mountinfo, '\n')) {
        const auto mount = mount_of(line, version);
        if (!mount || !way_down(mount->root, cgroup)) continue;
        // The shortest root shows the most above it; a later mount hides an earlier one at its place.
        if (!best || mount->root.size() <= best->root.size()) best = mount;
    }
    std::vector<std::string> folders;
    if (!best) return folders;
    std::string way{*way_down(best->root, cgroup)};
    for (;;) {
        folders.push_back(best->point + way);
        if (way.empty()) return folders;
        way.resize(way.rfind('/'));
    }
}

/// The file cache among a cgroup's memory; 0 where it does not say.
Result<std::uint64_t> cache_bytes(const std::string& folder, const Version& version) {
    constexpr std::size_t limit_bytes = 64 * 1024;
    const std::string path = folder + "/memory.stat";
    const auto text = GM_TRY(read_if_there(path, limit_bytes));
    std::uint64_t sum = 0;
    for (const std::string_view key : {version.inactive_cache, version.active_cache}) {
        const auto value = text ? value_of_line(*text, key) : std::nullopt;
        if (!value) continue;
        const auto bytes = parse_kernel_number(*value);
        if (!bytes) return unexpected_text(path, *value, fmt::format("a number ({})", key));
        sum = *bytes > no_memory_limit - sum ? no_memory_limit : sum + *bytes;
    }
    return sum;
}

/// What one cgroup leaves; nothing without a limit.
Result<std::optional<std::uint64_t>> headroom_of(const std::string& folder, const Version& version) {
    const std::string limit_path = fmt::format("{}/{}", folder, version.limit);
    const auto text = GM_TRY(read_if_there(limit_path, max_kernel_number_bytes));
    if (!text || *text == "max\n" || *text == "max") return std::optional<std::uint64_t>{};
    const auto limit = parse_kernel_number(*text);
    if (!limit) return unexpected_text(limit_path, *text, "a limit");
    if (*limit >= first_endless) return std::optional<std::uint64_t>{};
    const std::uint64_t usage = GM_TRY(read_kernel_number(fmt::format("{}/{}", folder, version.usage)));
    const std::uint64_t cache = GM_TRY(cache_bytes(folder, version));
    const std::uint64_t kept = usage - std::min(usage, cache);
    return std::optional{*limit - std::min(*limit, kept)};
}

/// The least headroom of all cgroups that hold this process; nothing without a limit.
Result<std::optional<Headroom>> least_headroom(const std::string& root) {
    std::optional<Headroom> least;
    const auto cgroups = GM_TRY(read_if_there(root + "/proc/self/cgroup", cgroup_limit_bytes));
    const auto mounts = GM_TRY(read_if_there(root + "/proc/self/mountinfo", mountinfo_limit_bytes));
    if (!cgroups || !mounts) return least;
    for (const Version& version : versions) {
        const std::string_view own = own_cgroup(*cgroups, version);
        if (own.empty()) continue;
        if (own.size() > max_path_bytes) return unexpected_text(root + "/proc/self/cgroup", own, "a path");
        for (std::string& folder : folders_of(*mounts, own, version)) {
            const auto headroom = GM_TRY(headroom_of(root + folder, version));
            if (headroom && (!least || *headroom < least->size_bytes))
                least = Headroom{.size_bytes = *headroom, .folder = std::move(folder)};
        }
    }
    return least;
}

Result<Overcommit> overcommit_mode(const std::string& root) {
    const std::string path = root + "/proc/sys/vm/overcommit_memory";
    const std::uint64_t mode = GM_TRY(read_kernel_number(path));
    switch (mode) {
        case 0: return Overcommit::heuristic;
        case 1: return Overcommit::always;
        case 2: return Overcommit::never;
        default: return unexpected_text(path, std::to_string(mode), "0, 1 or 2");
    }
}

/// The soft limit; RLIM_INFINITY is no_memory_limit.
template <typename Resource>
Result<std::uint64_t> process_limit(Resource resource, std::string_view name) {
    static_assert(RLIM_INFINITY == no_memory_limit);
    rlimit limit{};
    if (checked_call(SysCall::getrlimit, [&] { return ::getrlimit(resource, &limit); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for {}", name));
    return std::uint64_t{limit.rlim_cur};
}

/// Whether this thread has CAP_IPC_LOCK, to which RLIMIT_MEMLOCK does not apply.
Result<bool> may_lock_all() {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    if (checked_call(SysCall::capget, [&] { return ::syscall(SYS_capget, &header, sets.data()); }) < 0)
        return Error::from_errno(errno, "ask for this thread's capabilities");
    return (sets[0].effective >> CAP_IPC_LOCK & 1U) != 0;
}

}  // namespace

Result<MemoryLimits> memory_limits(const std::string& root) {
    // "/" in front of "/proc" is one slash too many; so is the last one of "/tree/".
    std::string before = root;
    while (before.ends_with('/')) before.pop_back();

    const std::string path = before + "/proc/meminfo";
    const std::string meminfo = GM_TRY(read_text_file(path, meminfo_limit_bytes));
    const auto line = [&](std::string_view key) -> Result<std::uint64_t> {
        if (const auto bytes = meminfo_bytes(meminfo, key)) return *bytes;
        return Error{Errc::unsupported, fmt::format("{}: no line '{} NUMBER kB'", path, key)};
    };
    MemoryLimits limits;
    limits.total_bytes = GM_TRY(line("MemTotal:")) + meminfo_bytes(meminfo, "SwapTotal:").value_or(0);
    limits.available_bytes = GM_TRY(line("MemAvailable:"));
    const std::uint64_t commit_limit = GM_TRY(line("CommitLimit:"));
    limits.commit_left_bytes = commit_limit - std::min(commit_limit, GM_TRY(line("Committed_AS:")));
    limits.overcommit = GM_TRY(overcommit_mode(before));
    if (auto least = GM_TRY(least_headroom(before))) {
        limits.cgroup_headroom_bytes = least->size_bytes;
        limits.cgroup_path = std::move(least->folder);
    }
    limits.address_space_bytes = GM_TRY(process_limit(RLIMIT_AS, "RLIMIT_AS"));
    limits.file_size_bytes = GM_TRY(process_limit(RLIMIT_FSIZE, "RLIMIT_FSIZE"));
    limits.locked_bytes = GM_TRY(process_limit(RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"));
    if (GM_TRY(may_lock_all())) limits.locked_bytes = no_memory_limit;
    return limits;
}

}  // namespace guestmem

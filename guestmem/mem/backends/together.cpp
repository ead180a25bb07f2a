// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "guestmem/mem/backends/checks.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/backends/prealloc.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem {

namespace {

/// Of that many overlaps at one place each is told; more is a crowd that has been told enough. Those that reach
/// furthest are kept: where there is an overlap, at least one is told.
constexpr std::size_t max_open_extents = 64;

/// Bytes of one file.
struct Extent {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::string path = {};  ///< of a file that is not there yet; in its folder, where that is there
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    const BackendPlan* plan = nullptr;

    [[nodiscard]] auto order() const { return std::tie(device, inode, path, first); }
    [[nodiscard]] bool is_same_file(const Extent& other) const {
        return std::tie(device, inode, path) == std::tie(other.device, other.inode, other.path);
    }
};

bool writes_file(const BackendPlan& plan) {
    return plan.mode.sharing == MapSharing::shared && plan.mode.access == MapAccess::read_write;
}

std::vector<Extent> extents_of(std::span<const BackendPlan> plans) {
    std::vector<Extent> extents;
    for (const BackendPlan& plan : plans) {
        const bool has_file =
            plan.options.kind == BackendKind::file || plan.options.kind == BackendKind::physical;
        if (!has_file || plan.mapped_bytes == 0 || plan.effect == FileEffect::temporary) continue;
        Extent extent{.first = plan.options.offset_bytes,
                      .last = plan.options.offset_bytes + (plan.mapped_bytes - 1),
                      .plan = &plan};
        if (plan.file.path.exists) {
            extent.device = plan.file.path.device;
            extent.inode = plan.file.path.inode;
        } else if (plan.file.folder.exists) {
            const std::string& path = plan.options.mem_path;
            extent.device = plan.file.folder.device;
            extent.inode = plan.file.folder.inode;
            extent.path = path.substr(path.rfind('/') + 1);
        } else {
            extent.path = plan.options.mem_path;
        }
        if (extent.last >= extent.first) extents.push_back(std::move(extent));
    }
    std::ranges::sort(extents, {}, [](const Extent& extent) { return extent.order(); });
    return extents;
}

/// What it is to others that have the same bytes.
enum class Role : std::uint8_t { writer, private_ram, rom };
Role role_of(const Extent& extent) {
    if (writes_file(*extent.plan)) return Role::writer;
    return extent.plan->mode.kind == RegionKind::ram ? Role::private_ram : Role::rom;
}

void complain_about_overlap(const Extent& one, const Extent& other, Problems& problems) {
    const bool one_writes = role_of(one) == Role::writer;
    const bool other_writes = role_of(other) == Role::writer;
    const std::string both =
        fmt::format("backends '{}' and '{}' have bytes {} to {} of {} in common", one.plan->options.id,
                    other.plan->options.id, std::max(one.first, other.first), std::min(one.last, other.last),
                    one.plan->options.mem_path);
    const Extent& reader = one_writes ? other : one;
    const std::string& quiet = reader.plan->options.id;
    if (one_writes && other_writes) {
        problems.refuse("overlap", both + ": each overwrites what the other wrote",
                        "give each an offset of its own");
    } else if (role_of(reader) == Role::private_ram) {
        problems.refuse(
            "overlap-with-private",
            both + fmt::format(": what the one writes shows in pages that '{}' has not written", quiet),
            "give each an offset of its own, or make a copy");
    } else {
        problems.warn("overlap-with-rom",
                      both + fmt::format(": the ROM '{}' changes with the other one's writes", quiet));
    }
}

/// Each plan was made as if it were alone: where two make a file, the second finds one that it did not expect.
void check_made_twice(std::span<const Extent> extents, Problems& problems) {
    const Extent* maker = nullptr;
    for (const Extent& extent : extents) {
        if (extent.plan->effect == FileEffect::none) continue;
        if (maker != nullptr && maker->is_same_file(extent)) {
            const std::string& path = extent.plan->options.mem_path;
            problems.refuse(
                "file-made-twice",
                fmt::format("backends '{}' and '{}' would both make or grow {}: to {} and to {} bytes",
                            maker->plan->options.id, extent.plan->options.id, path, maker->last + 1,
                            extent.last + 1),
                fmt::format("make it first: truncate -s {} {}", std::max(maker->last, extent.last) + 1,
                            path));
        }
        if (maker == nullptr || !maker->is_same_file(extent) || maker->last < extent.last) maker = &extent;
    }
}

void check_extents(std::span<const Extent> extents, Problems& problems) {
    // Sorted by their first bytes: those that are still open when another begins overlap with it.
    std::array<std::vector<const Extent*>, 3> open;
    for (const Extent& extent : extents) {
        const Role role = role_of(extent);
        for (std::size_t other = 0; other < open.size(); ++other) {
            std::erase_if(open[other], [&](const Extent* before) {
                return !before->is_same_file(extent) || before->last < extent.first;
            });
            if (role != Role::writer && Role{static_cast<std::uint8_t>(other)} != Role::writer) continue;
            for (const Extent* before : open[other]) complain_about_overlap(*before, extent, problems);
        }
        std::vector<const Extent*>& alike = open[static_cast<std::size_t>(role)];
        alike.push_back(&extent);
        if (alike.size() > max_open_extents)
            alike.erase(std::ranges::min_element(alike, {}, [](const Extent* one) { return one->last; }));
    }
}

void check_sums(std::span<const BackendPlan> plans, const MachineFacts& machine, Problems& problems) {
    std::uint64_t memory_bytes = 0;
    std::uint64_t worst_bytes = 0;
    std::map<std::uint64_t, std::uint64_t> huge_pages;
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> huge_files;
    for (const BackendPlan& plan : plans) {
        // Sizes are below 2^56, and there are fewer than 2^8 that large in any call that has not failed before.
        const std::uint64_t count_huge = plan.is_huge && plan.memory_now_bytes != 0
                                             ? (plan.memory_now_bytes - 1) / plan.page_bytes + 1
                                             : 0;
        const bool has_shared_file = plan.options.kind == BackendKind::file && plan.file.path.exists &&
                                     plan.mode.sharing == MapSharing::shared;
        if (count_huge != 0 && has_shared_file) {
            // Those that share a file share its pages, too.
            std::uint64_t& most_of_file = huge_files[{plan.file.path.device, plan.file.path.inode}];
            huge_pages[plan.page_bytes] += count_huge - std::min(count_huge, most_of_file);
            most_of_file = std::max(most_of_file, count_huge);
        } else if (count_huge != 0) {
            huge_pages[plan.page_bytes] += count_huge;
        }
        if (plan.is_huge) continue;
        memory_bytes = std::min(memory_bytes + plan.memory_now_bytes, std::uint64_t{1} << 62);
        worst_bytes = std::min(worst_bytes + plan.memory_worst_bytes, std::uint64_t{1} << 62);
    }
    std::uint64_t most = machine.limits.available_bytes;
    if (machine.limits.cgroup_headroom_bytes) most = std::min(most, *machine.limits.cgroup_headroom_bytes);
    if (with_kernel_share(memory_bytes) > most)
        problems.refuse("too-little-memory-together",
                        fmt::format("together the backends take {} at once, and {} are left",
                                    format_qemu_size(memory_bytes), most));
    else if (worst_bytes > most)
        problems.warn("little-memory-together",
                      fmt::format("together the backends may take {} in time, and {} are left",
                                  format_qemu_size(worst_bytes), most),
                      "the kernel ends processes when there is no more");
    for (const auto& [page_bytes, count] : huge_pages) {
        const auto pool = std::ranges::find(machine.huge_pages, page_bytes, &HugePagePool::page_bytes);
        if (pool != machine.huge_pages.end() && count > pool->available_pages())
            problems.refuse("too-few-huge-pages-together",
                            fmt::format("together the backends need {} huge pages of {}, and {} are free",
                                        count, format_qemu_size(page_bytes), pool->available_pages()));
    }
}

/// Blocks of one file system, and addresses of this process.
void check_shared_limits(std::span<const BackendPlan> plans, const MachineFacts& machine,
                         Problems& problems) {
    struct Disk {
        std::uint64_t now_bytes = 0;
        std::uint64_t worst_bytes = 0;
        const FileSystemFacts* facts = nullptr;
    };
    std::map<std::uint64_t, Disk> disks;
    std::uint64_t mapped_bytes = 0;
    for (const BackendPlan& plan : plans) {
        mapped_bytes = std::min(mapped_bytes + plan.mapped_bytes, std::uint64_t{1} << 62);
        const std::uint64_t needed = detail::needed_blocks_of(plan);
        if (needed == 0) continue;
        Disk& disk = disks[plan.file.path.exists ? plan.file.path.device : plan.file.folder.device];
        disk.facts = &*plan.file.file_system;
        disk.worst_bytes = std::min(disk.worst_bytes + needed, std::uint64_t{1} << 62);
        if (plan.options.is_prealloc)
            disk.now_bytes = std::min(disk.now_bytes + needed, std::uint64_t{1} << 62);
    }
    for (const auto& [device, disk] : disks) {
        const auto message = [&disk](std::uint64_t bytes) {
            return fmt::format("together the backends need {} more bytes of a file system ({}) that has {}",
                               bytes, disk.facts->type, *disk.facts->free_bytes);
        };
        if (disk.now_bytes > *disk.facts->free_bytes)
            problems.refuse("disk-full-together", message(disk.now_bytes));
        else if (disk.worst_bytes > *disk.facts->free_bytes)
            problems.warn("disk-too-small-together",
                          message(disk.worst_bytes) + "; an access that finds no space raises SIGBUS");
    }
    if (mapped_bytes > machine.limits.address_space_bytes)
        problems.refuse("address-space-limit-together",
                        fmt::format("together {} are mapped, and this process may map {} in all (RLIMIT_AS)",
                                    mapped_bytes, machine.limits.address_space_bytes),
                        "raise it: ulimit -v unlimited");
}

}  // namespace

Problems check_together(std::span<const BackendPlan> plans, const MachineFacts& machine) {
    Problems problems;
    std::set<std::string_view> ids;
    for (const BackendPlan& plan : plans)
        if (!plan.options.id.empty() && !ids.insert(plan.options.id).second)
            problems.refuse("id-twice", fmt::format("two backends have the id '{}'", plan.options.id));
    const std::vector<Extent> extents = extents_of(plans);
    check_made_twice(extents, problems);
    check_extents(extents, problems);
    if (plans.size() > 1) {
        check_sums(plans, machine, problems);
        check_shared_limits(plans, machine, problems);
    }
    return problems;
}

Problems check_locked(std::span<const BackendPlan> plans, const MachineFacts& machine) {
    Problems problems;
    std::uint64_t locked_bytes = 0;
    for (const BackendPlan& plan : plans)
        if (plan.options.kind != BackendKind::physical)
            locked_bytes = std::min(locked_bytes + plan.mapped_bytes, std::uint64_t{1} << 62);
    if (locked_bytes > machine.limits.locked_bytes)
        problems.refuse("memlock-limit",
                        fmt::format("{} are locked, and this process may lock {} bytes (RLIMIT_MEMLOCK)",
                                    format_qemu_size(locked_bytes), machine.limits.locked_bytes),
                        fmt::format("raise it: ulimit -l {}", (locked_bytes - 1) / 1024 + 1));
    return problems;
}

}  // namespace guestmem

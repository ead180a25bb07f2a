// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "guestmem/mem/backends/checks.hpp"
#include "guestmem/mem/backends/prealloc.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem::detail {

namespace {

void check_huge_pages(BackendPlan& plan, const MachineFacts& machine) {
    std::vector<std::string> sizes;
    for (const HugePagePool& pool : machine.huge_pages) sizes.push_back(format_qemu_size(pool.page_bytes));
    const auto pool = std::ranges::find(machine.huge_pages, plan.page_bytes, &HugePagePool::page_bytes);
    if (pool == machine.huge_pages.end()) {
        plan.problems.refuse(
            "no-such-huge-pages",
            fmt::format("this kernel has no huge pages of {}", format_qemu_size(plan.page_bytes)),
            sizes.empty() ? "" : fmt::format("it has {}", fmt::join(sizes, ", ")));
        return;
    }
    // A shared mapping takes the pages that the file has.
    const bool has_pages = plan.options.kind == BackendKind::file && plan.effect == FileEffect::none &&
                           plan.mode.sharing == MapSharing::shared;
    const std::uint64_t old_pages = has_pages ? plan.file.path.allocated_bytes / plan.page_bytes : 0;
    const std::uint64_t all_pages = plan.mapped_bytes / plan.page_bytes;
    const std::uint64_t needed = all_pages - std::min(all_pages, old_pages);
    const std::uint64_t there = pool->available_pages();
    if (needed <= there) return;
    const std::string message = fmt::format("{} huge pages of {} are needed, and {} are free", needed,
                                            format_qemu_size(plan.page_bytes), there);
    const std::string advice = fmt::format("echo {} > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                                           pool->count_total + (needed - there), plan.page_bytes / 1024);
    if (has_pages && (plan.options.is_reserved || plan.options.is_prealloc))
        plan.problems.warn("huge-pages-of-file",
                           message + "; it can be mapped if the file has reserved them before", advice);
    else if (plan.options.is_reserved || plan.options.is_prealloc)
        plan.problems.refuse("too-few-huge-pages", message, advice);
    else
        plan.problems.warn("too-few-huge-pages",
                           message + "; with reserve=off the write that finds none raises SIGBUS", advice);
}

/// Memory of ordinary pages: what is taken now has to be there; what may be taken later, is said.
void check_available(BackendPlan& plan, const MachineFacts& machine) {
    struct Limit {
        bool is_machine;
        std::uint64_t bytes;
        std::string name;
    };
    std::vector<Limit> limits{{true, machine.limits.available_bytes, "this machine has (MemAvailable)"}};
    if (machine.limits.cgroup_headroom_bytes)
        limits.push_back({false, *machine.limits.cgroup_headroom_bytes,
                          fmt::format("the control group {} has left", machine.limits.cgroup_path)});
    for (const Limit& limit : limits) {
        if (with_kernel_share(plan.memory_now_bytes) > limit.bytes)
            plan.problems.refuse(
                limit.is_machine ? "too-little-memory" : "cgroup-limit",
                fmt::format("{} are taken at once, {} bytes with page tables, and {} {}",
                            format_qemu_size(plan.memory_now_bytes), with_kernel_share(plan.memory_now_bytes),
                            limit.name, limit.bytes));
        else if (plan.memory_worst_bytes > limit.bytes)
            plan.problems.warn(
                limit.is_machine ? "little-memory" : "cgroup-small",
                fmt::format("{} may be taken in time, and {} {}", format_qemu_size(plan.memory_worst_bytes),
                            limit.name, limit.bytes),
                "the kernel ends processes when there is no more");
    }
}

/// A kernel that promises no more than it has counts private memory when it is mapped, and the pages of memory objects
/// and of tmpfs one by one when they come.
void check_commit(BackendPlan& plan, const MachineFacts& machine) {
    const bool is_private =
        plan.mode.sharing == MapSharing::private_copy && plan.mode.access == MapAccess::read_write;
    const bool is_counted =
        is_private && plan.memory_worst_bytes != 0 && !plan.is_huge && plan.options.is_reserved;
    if (machine.limits.overcommit == Overcommit::heuristic && is_counted &&
        plan.mapped_bytes > machine.limits.total_bytes)
        plan.problems.refuse(
            "beyond-machine",
            fmt::format(
                "{} are mapped, and the kernel maps no more at once than this machine has, {} with swap "
                "(vm.overcommit_memory=0)",
                format_qemu_size(plan.mapped_bytes), machine.limits.total_bytes),
            "reserve=off maps more");
    if (machine.limits.overcommit != Overcommit::never || plan.is_huge) return;
    if (is_private && plan.memory_worst_bytes != 0 && !plan.options.is_reserved)
        plan.problems.refuse("reserve-off-is-strict",
                             "reserve=off: with vm.overcommit_memory=2 the kernel counts all memory",
                             "leave reserve out");
    if (plan.memory_worst_bytes <= machine.limits.commit_left_bytes) return;
    const std::string message =
        fmt::format("{} are counted, and the kernel may promise {} more (vm.overcommit_memory=2)",
                    format_qemu_size(plan.memory_worst_bytes), machine.limits.commit_left_bytes);
    if (is_private || plan.options.is_prealloc)
        plan.problems.refuse("commit-limit", message);
    else
        plan.problems.warn("commit-small", message + "; a write that finds none raises SIGBUS",
                           "prealloc=on would tell at the beginning");
}

void check_nodes(BackendPlan& plan, const MachineFacts& machine) {
    for (const std::uint16_t node : plan.options.host_nodes)
        if (!std::ranges::binary_search(machine.nodes.online, node))
            plan.problems.refuse("node-missing", fmt::format("there is no node {} that is online", node),
                                 fmt::format("online: {}", fmt::join(machine.nodes.online, ", ")));
    // Other policies take from other nodes when these are full. All nodes together are the machine.
    if (plan.options.policy != HostPolicy::bind || plan.is_huge || plan.options.host_nodes.empty() ||
        plan.options.host_nodes.size() >= machine.nodes.online.size())
        return;
    std::uint64_t there = 0;
    for (const std::uint16_t node : plan.options.host_nodes) {
        const auto known = machine.node_available_bytes.find(node);
        if (known == machine.node_available_bytes.end()) return;
        there += known->second;
    }
    const std::string nodes = fmt::format("{}", fmt::join(plan.options.host_nodes, ", "));
    if (with_kernel_share(plan.memory_now_bytes) > there)
        plan.problems.refuse("node-too-small",
                             fmt::format("{} are taken at once, and nodes {} have {} left",
                                         format_qemu_size(plan.memory_now_bytes), nodes, there));
    else if (plan.memory_worst_bytes > there)
        plan.problems.warn("node-small",
                           fmt::format("{} may be taken in time, and nodes {} have {} left",
                                       format_qemu_size(plan.memory_worst_bytes), nodes, there),
                           "the kernel ends processes when these nodes have no more");
}

}  // namespace

void check_memory(BackendPlan& plan, const MachineFacts& machine) {
    if (plan.mapped_bytes > machine.limits.address_space_bytes)
        plan.problems.refuse("address-space-limit",
                             fmt::format("{} are mapped, and this process may map {} in all (RLIMIT_AS)",
                                         plan.mapped_bytes, machine.limits.address_space_bytes),
                             "raise it: ulimit -v unlimited");
    // A memory object is a file, too.
    const bool is_shared_ram =
        plan.options.kind == BackendKind::ram && plan.mode.sharing == MapSharing::shared;
    const bool is_object =
        is_shared_ram || plan.options.kind == BackendKind::memfd || plan.options.kind == BackendKind::shm;
    if (is_object && plan.mapped_bytes > machine.limits.file_size_bytes)
        plan.problems.refuse(
            "file-size-limit",
            fmt::format("it has {} bytes, and this process may make files of {} (RLIMIT_FSIZE)",
                        plan.mapped_bytes, machine.limits.file_size_bytes),
            "raise it: ulimit -f unlimited");
    if (plan.is_huge) {
        check_huge_pages(plan, machine);
    } else {
        check_available(plan, machine);
    }
    check_commit(plan, machine);
    check_nodes(plan, machine);
}

}  // namespace guestmem::detail

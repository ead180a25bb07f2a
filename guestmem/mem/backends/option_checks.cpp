// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <bit>
#include <limits>
#include <optional>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/checks.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem::detail {

namespace {

/// Of a process's address space, less what it needs itself.
#if defined(__x86_64__)
constexpr std::uint64_t user_space_bits = 47;
#else
constexpr std::uint64_t user_space_bits = 48;
#endif
constexpr std::uint64_t most_mapped_bytes = (std::uint64_t{1} << user_space_bits) - (std::uint64_t{1} << 40);
constexpr std::uint64_t max_value = std::numeric_limits<std::uint64_t>::max();

bool is_file(const BackendPlan& plan) { return plan.options.kind == BackendKind::file; }

void check_prealloc(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    if (!options.is_prealloc) {
        if (options.prealloc_threads != 0)
            plan.problems.warn("prealloc-threads-without-prealloc",
                               "prealloc-threads has no effect without prealloc=on");
        return;
    }
    if (!options.is_reserved)
        plan.problems.refuse(
            "prealloc-without-reserve",
            "prealloc=on with reserve=off: the one takes all pages now, the other does not even count them",
            "leave one of them out");
    if (plan.mode.kind == RegionKind::rom) {
        plan.problems.refuse(
            "prealloc-of-rom",
            "prealloc=on of ROM: pages are allocated by writing them, and these may not be written",
            "leave prealloc out: ROM is read from the file");
        return;
    }
    const bool has_content = plan.effect == FileEffect::none;
    if (is_file(plan) && plan.mode.sharing == MapSharing::private_copy && has_content)
        plan.problems.warn(
            "prealloc-copies-file",
            fmt::format(
                "prealloc=on copies all {} of the file into memory of this VM alone: nothing is shared "
                "with other VMs any more",
                format_qemu_size(plan.mapped_bytes)),
            "leave prealloc out, and pages are copied when they are written");
}

void check_ends(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    if (options.is_discarded) {
        if (options.is_readonly)
            plan.problems.warn("discard-of-readonly",
                               "discard-data=on has no effect on a file that is read-only");
        else if (plan.mode.sharing == MapSharing::private_copy)
            plan.problems.warn("discard-of-private",
                               "discard-data=on has no effect with share=off: the file was never written");
        else if (plan.effect != FileEffect::temporary)
            plan.problems.warn(
                "discard-zeroes-file",
                fmt::format("discard-data=on zeroes {} bytes of the file from byte {} on at the end",
                            plan.mapped_bytes, options.offset_bytes));
    }
    if (options.is_persistent)
        plan.problems.warn(
            "pmem-is-ordinary",
            "pmem=on: writes are not flushed to persistent memory; the file is mapped as any other");
}

void check_nodes_and_pages(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const bool has_policy = options.policy != HostPolicy::standard;
    if (has_policy && options.host_nodes.empty())
        plan.problems.refuse("policy-without-nodes",
                             "policy needs host-nodes: nobody says among which nodes it chooses",
                             "add host-nodes=0, or leave policy out");
    if (!has_policy && !options.host_nodes.empty())
        plan.problems.refuse("nodes-without-policy",
                             "host-nodes needs a policy: the default one takes any node",
                             "add policy=bind, preferred or interleave");
    if (!options.is_huge && options.huge_page_bytes != 0)
        plan.problems.warn("hugetlbsize-without-hugetlb", "hugetlbsize has no effect without hugetlb=on");
    if (options.huge_page_bytes != 0 && !std::has_single_bit(options.huge_page_bytes))
        plan.problems.refuse("hugetlbsize-not-a-power",
                             fmt::format("hugetlbsize {} is not a power of two", options.huge_page_bytes));
}

}  // namespace

void check_options(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    if (const auto mode = mode_of(options); !mode) plan.problems.refuse("mode", mode.error().message());
    if (options.kind == BackendKind::shm && !is_shared(options))
        plan.problems.refuse("shm-is-shared",
                             "memory-backend-shm with share=off: a shared memory object is shared",
                             "use memory-backend-ram for memory of this VM alone");
    if (options.kind == BackendKind::physical && !is_shared(options))
        plan.problems.refuse(
            "physical-is-shared",
            "memory-backend-physical with share=off: a copy of physical memory is not that memory",
            "leave share out");
    const bool has_path = options.kind == BackendKind::file || options.kind == BackendKind::physical;
    if (has_path && options.mem_path.empty())
        plan.problems.refuse("no-path", fmt::format("{} needs mem-path", row_of(options.kind).name),
                             "add mem-path=FILE");
    check_prealloc(plan);
    check_ends(plan);
    check_nodes_and_pages(plan);
}

void check_sizes(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const std::uint64_t page = plan.page_bytes;
    if (options.size_bytes == 0) {
        plan.problems.refuse("size-zero", "size is 0; a backend has at least one byte");
        return;
    }
    const std::optional<std::uint64_t> whole = round_up(options.size_bytes, page);
    if (!whole || *whole > most_mapped_bytes) {
        plan.problems.refuse(
            "size-beyond-space",
            fmt::format("size {} in pages of {} is beyond what a process can map ({})", options.size_bytes,
                        format_qemu_size(page), format_qemu_size(most_mapped_bytes)));
        return;
    }
    if (*whole != options.size_bytes) {
        std::string message = fmt::format("size {} is not whole pages of {} bytes", options.size_bytes, page);
        if (options.kind == BackendKind::ram)
            plan.problems.warn("size-rounded-up",
                               std::move(message) + fmt::format("; {} are mapped", *whole));
        else
            plan.problems.refuse("size-not-whole-pages", std::move(message),
                                 fmt::format("the next size is {}", *whole));
    }
    if (options.offset_bytes % page != 0)
        plan.problems.refuse(
            "offset-not-whole-pages",
            fmt::format("offset {} is not whole pages of {} bytes", options.offset_bytes, page),
            fmt::format("the one below is {}", options.offset_bytes / page * page));
    if (options.offset_bytes > max_value / 2 - *whole)
        plan.problems.refuse("offset-beyond-file",
                             fmt::format("offset {} and size {} reach past the end of any file",
                                         options.offset_bytes, *whole));
    if (options.align_bytes == 0) return;
    if (!std::has_single_bit(options.align_bytes))
        plan.problems.refuse("align-not-a-power",
                             fmt::format("align {} is not a power of two", options.align_bytes));
    else if (options.align_bytes < page)
        plan.problems.refuse("align-below-page",
                             fmt::format("align {} is below the page size {}", options.align_bytes, page));
    else if (options.align_bytes > most_mapped_bytes - *whole)
        plan.problems.refuse("align-beyond-space",
                             fmt::format("align {} is beyond what a process can map", options.align_bytes));
}

}  // namespace guestmem::detail

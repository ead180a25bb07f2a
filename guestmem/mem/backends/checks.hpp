// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/mem/backends/plan.hpp"

/// The rules that a plan is held against, by what they ask. For plan.cpp.
///
/// Contract: each adds what it finds to plan.problems, under a code of its own; the plan's mode, page size and effect
/// are filled in before.
/// Threads: any.

namespace guestmem::detail {

/// Bytes of the range without blocks, which a file system has to give for them.
[[nodiscard]] std::uint64_t missing_blocks_of(const BackendPlan& plan);
/// Those that this backend takes sooner or later; 0 where it takes none, or nobody counts them.
[[nodiscard]] std::uint64_t needed_blocks_of(const BackendPlan& plan);

/// The options alone: what contradicts itself, or does less than it says.
void check_options(BackendPlan& plan);
/// Size, offset and alignment against pages.
void check_sizes(BackendPlan& plan);
/// The file: whether it is there, long enough, allowed; what the disk has left.
void check_file(BackendPlan& plan, const MachineFacts& machine);
/// Memory, huge pages, limits of this process, nodes.
void check_memory(BackendPlan& plan, const MachineFacts& machine);

}  // namespace guestmem::detail

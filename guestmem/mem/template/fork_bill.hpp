// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/usage.hpp"
#include "guestmem/sys/process_memory.hpp"

/// What the forks of a template take, as the kernel counts it.
///
/// Contract: a process with a lease, and each one that was noted in a lease, has a line. Its figures are those of its
/// private mappings of the template's images, all forks of one process together. A process that may not be looked at
/// has a line without them; forks that are copies have no mapping of the image, and 0 bytes.
/// Threads: any.
/// Cost: as process_mappings() of each process.
/// Known holes: what a lazy fork has fetched is known to its pager alone. The number of a child that is gone may be
/// that of another process by this time, which has no mapping of the image.

namespace guestmem {

class Template;

struct ForkBill {
    std::int32_t pid = 0;
    std::string generation = {};    ///< empty: nobody noted it
    std::uint64_t count_forks = 0;  ///< mappings of the first region
    std::optional<MemoryUsage> usage = std::nullopt;
    ProcessFaults faults = {};               ///< of the whole process
    std::uint64_t first_instruction_ns = 0;  ///< 0: nobody told
};

[[nodiscard]] Result<std::vector<ForkBill>> fork_bills(const Template& of);

}  // namespace guestmem

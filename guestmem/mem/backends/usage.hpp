// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/sys/process_memory.hpp"

/// How much of a guest's memory is there, and as what: resident, shared, private, swapped, huge, of a file.
///
/// Concepts: all figures are bytes of one process' mappings, in whole pages. A page is resident here when this
/// process has it in its page tables: a page of a file that only others touched is not.
///
///     mapped     = resident + swapped + untouched   (but for swapped pages of memory objects, see below)
///     resident   = shared + private = file + anonymous
///
/// shared and private tell whether somebody else maps the page too, not how it was mapped: a shared memfd that
/// nobody else maps is private. file are pages of a file or a memory object (memfd, shm, shared anonymous memory),
/// anonymous are all others: ordinary memory, and the pages that a private file mapping copied when they were written.
/// Pages of hugetlbfs, which the kernel keeps out of Rss, are counted in: as file where the mapping is shared, as
/// anonymous where it is private, in `proportional` undivided, in `huge` always. huge are pages mapped by one entry of
/// the upper table: 2 MiB on x86-64.
/// Contract: of a map, the whole memory of its regions counts, also where a region shows a part of it, and memory
/// that several regions show counts once; devices count nothing. Guard pages keep the mappings of this library apart
/// from their neighbors, and a mapping that advice has split is added up. Where a mapping reaches beyond the range
/// that is asked for (borrowed memory), is_exact is false: `mapped` is still that of the range, and each other figure
/// is at most what is true for the whole mapping, and at most the part inside the range. Sums stop at 2^64 - 1.
/// Threads: any; what others do to the memory meanwhile is in or not.
/// Cost: that of own_mappings(): the kernel walks the page tables of the whole process, once per call.
/// Known holes: of a memory object, swapped has what is out of the whole part that is mapped, also pages that this
/// process never touched, so untouched is too small by these. Zero pages that were only read are not resident. Memory
/// of devices (/dev/mem) is mapped, and else nothing. Kernels that count the mappings of a large page as a whole call
/// parts of it shared that are private.
/// Example:
///     const MemoryUsage usage = GM_TRY(usage_of(*backend));
///     fmt::print("{} of {} bytes are there\n", usage.resident_bytes, usage.mapped_bytes);

namespace guestmem {

struct MemoryUsage {
    std::uint64_t mapped_bytes = 0;
    std::uint64_t resident_bytes = 0;
    std::uint64_t shared_bytes = 0;        ///< resident, and mapped by somebody else too
    std::uint64_t private_bytes = 0;       ///< resident, and mapped here alone
    std::uint64_t proportional_bytes = 0;  ///< resident, each page divided by how often it is mapped (Pss)
    std::uint64_t swapped_bytes = 0;
    std::uint64_t huge_bytes = 0;       ///< resident in huge pages: transparent ones and those of hugetlbfs
    std::uint64_t file_bytes = 0;       ///< resident pages of a file or a memory object
    std::uint64_t anonymous_bytes = 0;  ///< resident pages of no file
    bool is_exact = true;               ///< no mapping reached beyond what was asked for

    /// Mapped, and neither in memory nor in swap.
    [[nodiscard]] std::uint64_t untouched_bytes() const;
    void add(const MemoryUsage& other);

    friend bool operator==(const MemoryUsage&, const MemoryUsage&) = default;
};

/// Addresses of a process, without a wrap.
struct HostRange {
    std::uint64_t base = 0;
    std::uint64_t size_bytes = 0;
};

/// Of a whole mapping.
[[nodiscard]] MemoryUsage usage_of(const ProcessMapping& mapping);

/// Of the ranges, which may overlap, each byte once. `mappings` in the order of process_mappings(). What is not
/// mapped counts nothing; a range that wraps counts up to the last address.
[[nodiscard]] MemoryUsage usage_of(std::span<const HostRange> ranges,
                                   std::span<const ProcessMapping> mappings);

/// Of memory of this process.
[[nodiscard]] Result<MemoryUsage> usage_of(const HostMemory& memory);
[[nodiscard]] Result<MemoryUsage> usage_of(const Backend& backend);
[[nodiscard]] Result<MemoryUsage> usage_of(const MemoryMap& map);

}  // namespace guestmem

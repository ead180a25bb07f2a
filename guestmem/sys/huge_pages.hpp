// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"

/// The host's pools of huge pages: which sizes there are, and how many pages a mapping could have.
///
/// Concepts: a pool holds pages of one size. Free pages may be promised already (reserved); surplus pages are those
/// that the kernel makes on demand beyond the pool's size, up to the overcommit limit.
/// Contract: asked of the kernel at each call. A kernel without huge pages has no pools, and that is no error; an
/// entry that is not named like a pool is passed over; a pool whose numbers cannot be read is an error.
/// Threads: any.
/// Known holes: the numbers are of the whole host: neither a NUMA node's share nor the process's hugetlb cgroup.
/// Surplus pages are made of ordinary memory when it is in one piece: they are a hope. Files are read one after the
/// other, while others take pages.
/// Example:
///     for (const HugePagePool& pool : GM_TRY(huge_page_pools()))
///         if (pool.page_bytes == wanted) return pool.available_pages();

namespace guestmem {

struct HugePagePool {
    std::uint64_t page_bytes = 0;   ///< a power of two
    std::uint64_t count_total = 0;  ///< surplus pages are among them
    std::uint64_t count_free = 0;
    std::uint64_t count_reserved = 0;  ///< free, and promised
    std::uint64_t count_surplus = 0;
    std::uint64_t count_overcommit = 0;  ///< how many surplus pages there may be

    /// What is free and not promised, and what surplus may still be made.
    [[nodiscard]] std::uint64_t available_pages() const;
};

/// By size, the smallest first.
[[nodiscard]] Result<std::vector<HugePagePool>> huge_page_pools(
    const std::string& root = "/sys/kernel/mm/hugepages");

/// The size that is taken where none is named (Hugepagesize); nothing when the kernel has none, or does not say.
[[nodiscard]] std::optional<std::uint64_t> default_huge_page_bytes(
    const std::string& meminfo = "/proc/meminfo");

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Memory that cannot be pulled away: a memfd sealed against shrinking, growing and further sealing.
///
/// Contract: zeroed, mode 0600, all its pages allocated at birth (a later touch cannot fail for want of memory
/// outside of a cgroup's limit). Its size never changes again: ftruncate by anybody is EPERM.
/// Threads: any once made.
/// Limits: where the kernel has no memory for it, creation fails; the OOM killer is not provoked, since the
/// size is compared with MemAvailable first.
/// Cost: allocation zeroes every page, about 0.3 ms per MiB.

namespace guestmem {

struct SealedMemoryOptions {
    std::string name;                   ///< shown in /proc/PID/maps as memfd:NAME
    std::uint64_t size_bytes = 0;       ///< whole pages
    std::uint64_t huge_page_bytes = 0;  ///< 0: ordinary pages; else 2M or 1G from hugetlb
};

[[nodiscard]] Result<Fd> create_sealed_memory(const SealedMemoryOptions& options);

/// The same without pages, which come when they are touched; sealed or not.
enum class Sealing : std::uint8_t { none, size };
[[nodiscard]] Result<Fd> create_sparse_memory(const SealedMemoryOptions& options, Sealing sealing);

/// The seals of a memfd by name ("shrink", "grow", "seal", "write", "future_write"); empty for a file that
/// cannot be sealed.
[[nodiscard]] Result<std::vector<std::string>> seals_of(FdView fd);

/// Nobody can change a byte of it any more, nor its size. An error (busy) while somebody has it mapped shared and
/// writable.
[[nodiscard]] Result<void> seal_content(FdView fd);

/// Whether nobody can change this file's size any more.
[[nodiscard]] Result<bool> is_size_sealed(FdView fd);

}  // namespace guestmem

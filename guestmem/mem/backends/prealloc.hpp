// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"

/// Gives every page of a backend its memory before the guest touches it.
///
/// Contract: no byte changes. Ordinary memory is taken prealloc_chunk_bytes at a time, and before each of them the
/// memory that is left is asked for, since the kernel ends processes where it has promised too much: then this is an
/// error (exhausted), and the caller lets the mapping go. A page that cannot be had (a full file system, no huge page)
/// is an error (exhausted), and no SIGBUS. On kernels before 5.14, which cannot populate, pages are touched where the
/// fault guard is installed; elsewhere that is an error (unsupported).
/// `progress`, where there is one, hears every few milliseconds how many bytes are done, in the caller's thread, and
/// all of them last. It may throw: then the other threads end, and what was taken stays.
/// Threads: makes some of its own: as many as asked for, or as there are processors, at most max_prealloc_threads, and
/// one for each 64 MiB at most; fewer where the system gives fewer.
/// Known holes: what was taken of a file that was there before stays in the file.

namespace guestmem {

inline constexpr std::uint64_t max_prealloc_threads = 16;
inline constexpr std::uint64_t prealloc_chunk_bytes = std::uint64_t{256} << 20;

/// What the kernel takes besides for ordinary pages: page tables, the trees of files, what stands on its lists. Without
/// it the last pages of what is left end a process.
[[nodiscard]] constexpr std::uint64_t with_kernel_share(std::uint64_t bytes) {
    constexpr std::uint64_t lists = std::uint64_t{4} << 20;
    return bytes == 0 ? 0 : bytes + bytes / 128 + lists;
}

struct PreallocOptions {
    std::uint64_t page_bytes = page_size_bytes;
    std::uint64_t count_threads = 0;  ///< 0: as many as there are processors
    /// Memory that all of it takes, at most twice its size; nothing said: its size. Pages that are there cost nothing,
    /// a private copy of a page that its file gets first costs two.
    std::optional<std::uint64_t> cost_bytes = std::nullopt;
    std::span<const std::uint16_t> bound_nodes =
        {};  ///< the only ones that give pages (policy=bind); none: all
    std::function<void(std::uint64_t done_bytes)> progress = {};
};

[[nodiscard]] Result<void> preallocate(std::span<std::byte> bytes, const PreallocOptions& options);

}  // namespace guestmem

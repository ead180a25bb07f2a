// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Files with holes: which bytes are data, and reading, writing, copying and cloning exactly so many of them.
///
/// Concepts: a hole is a piece of a file that reads as zeros and has no blocks. Guest memory that was never touched
/// is one; who copies only the data copies what was used.
/// Contract: all or an error: a call that the kernel cuts short is gone on with; after an error any part may be done.
/// A file that ends before the bytes that were asked for is Errc::corrupt, and the error says where it ends. Bytes
/// past the process's limit on file sizes (RLIMIT_FSIZE) are an error (EFBIG), never SIGXFSZ; a full disk is
/// Errc::exhausted (ENOSPC). Where the file system knows no holes, all of the file is data. Only next_data() moves the
/// descriptor's position; nothing here uses it.
/// Threads: any; who writes the same bytes meanwhile leaves a mixture.
/// Limits: offsets end at 2^63 - 1, like off_t.
/// Cost: next_data() is two calls. copy_range() is one call for 1 GiB where the kernel copies, which a file system
/// that shares blocks does by reference; through memory it takes two calls for each copy_buffer_bytes.
/// Example:
///     for (std::uint64_t at = 0; at < size;) {
///         const auto data = GM_TRY(next_data(from, {.offset_bytes = at, .size_bytes = size - at}));
///         if (!data) break;
///         GM_TRY(copy_range(from, data->offset_bytes, to, data->offset_bytes, data->size_bytes));
///         at = data->offset_bytes + data->size_bytes;
///     }
/// Known holes: data may be zeros; blocks that were allocated and never written are holes to most file systems. A
/// copy fills the holes of its range with zeros, or keeps them, as the file system likes. A file that was opened to
/// append is written at its end, whatever the offset (pwrite(2)). Another program can lower RLIMIT_FSIZE between the
/// question and the call.

namespace guestmem {

/// A piece of a file.
struct FileExtent {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;

    friend bool operator==(const FileExtent&, const FileExtent&) = default;
};

/// The first data in `within`, cut to it; nothing when there is none, or the file ends before.
[[nodiscard]] Result<std::optional<FileExtent>> next_data(FdView fd, FileExtent within);

/// Reads exactly so many bytes.
[[nodiscard]] Result<void> read_at(FdView fd, std::uint64_t offset_bytes, std::span<std::byte> bytes);
/// Writes all bytes; the file grows where they reach past its end.
[[nodiscard]] Result<void> write_at(FdView fd, std::uint64_t offset_bytes, std::span<const std::byte> bytes);

enum class CopyHow : std::uint8_t {
    in_kernel,       ///< copy_file_range(2) did all
    through_memory,  ///< at least a part was read and written
};

/// What is read and written at once where the kernel does not copy: as much as cp(1) of coreutils takes.
inline constexpr std::size_t copy_buffer_bytes = 256 * 1024;

/// Copies exactly so many bytes; two pieces of one file that overlap are an error.
[[nodiscard]] Result<CopyHow> copy_range(FdView from, std::uint64_t from_offset_bytes, FdView to,
                                         std::uint64_t to_offset_bytes, std::uint64_t size_bytes);

/// Makes `to` a copy of `from` that shares its blocks until either is written (FICLONE); false where the file
/// systems cannot, or the process's limit on file sizes is below its size, and `to` is as it was.
[[nodiscard]] Result<bool> clone_file(FdView from, FdView to);

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Reading and writing many pieces of memory by one system call.
///
/// Contract: one call; it may be short, as read(2) and write(2) are. With an offset the descriptor's position is
/// neither used nor moved. Pieces in memory that is gone are an error (os_error() EFAULT), or a short count when
/// others before them were done: the kernel finds out, no signal is raised. Writing to a socket or a pipe whose
/// other side is gone is an error (Errc::unavailable, EPIPE), not a SIGPIPE; writing a file where it would grow past
/// the process's limit (RLIMIT_FSIZE) is an error (Errc::out_of_range, EFBIG), not a SIGXFSZ. Nothing is asked of the
/// program's handlers or masks, and a signal of either kind that somebody sends meanwhile arrives afterwards. A
/// descriptor that does not block and has nothing to give, or no room, is Errc::unavailable with os_error() EAGAIN.
/// Threads: any.
/// Limits: the first max_io_slices pieces are done, more make the call short; so do 2 GiB in all.
/// Cost: the call itself; a write without an offset asks for the kind of the descriptor first (0.2 us), and one to
/// a file or with an offset for the limit (0.1 to 0.4 us). One to a pipe, or to a file where there is a limit, holds
/// back the signal in this thread (three calls more, one more when it was raised).
/// Example:
///     const std::array slices{IoSlice{head, 12}, IoSlice{body, 4096}};
///     const std::size_t count = GM_TRY(read_scattered(file, slices, 8192));

namespace guestmem {

/// One piece: the layout of the kernel's struct iovec.
struct IoSlice {
    std::byte* data = nullptr;
    std::size_t size_bytes = 0;
};

/// What the kernel takes at once (its UIO_MAXIOV).
inline constexpr std::size_t max_io_slices = 1024;

/// Bytes read into the pieces, in order; 0 is the end of the file or stream.
[[nodiscard]] Result<std::size_t> read_scattered(FdView fd, std::span<const IoSlice> slices,
                                                 std::optional<std::uint64_t> offset_bytes = {});
/// Bytes written out of the pieces, in order.
[[nodiscard]] Result<std::size_t> write_scattered(FdView fd, std::span<const IoSlice> slices,
                                                  std::optional<std::uint64_t> offset_bytes = {});

}  // namespace guestmem

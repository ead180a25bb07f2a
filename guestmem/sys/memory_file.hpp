// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Files that hold shared memory: made or taken only when nobody else can write them, and given out for reading.
///
/// Concepts: a POSIX shared memory object is a file of /dev/shm: who opens it by shm_open("/NAME") opens that file.
/// Contract: open_memory_file() follows no link in the last part of the path. A file that is there is taken when it
/// is a regular file of this user with one name, that nobody else may write, of exactly this size; its bytes
/// stay. One of 0 bytes is what a kill between making and sizing leaves: it is sized as one that was not there.
/// Any other file is an error and is not touched. A file that was not there is made with mode 0600 and gone again
/// when an error follows. reopen_read_only() makes another open file without the right to write: who gets only that
/// one cannot map it writable, open it again for writing or give such a right away, unless it is of the file's owner
/// or has CAP_DAC_OVERRIDE. It needs /proc, and this process may read the file.
/// Threads: any.
/// Limits: sizes are whole pages, at most 2^62.
/// Example:
///     const MemoryFile file = GM_TRY(open_memory_file(GM_TRY(shm_path("/mailbox")), 65536));
///     const Fd for_readers = GM_TRY(reopen_read_only(file.fd));
/// Known holes: two services that are given one path both take it. Whoever may write the folder can rename the file.

namespace guestmem {

struct MemoryFile {
    Fd fd;
    bool was_there = false;  ///< with bytes
};

[[nodiscard]] Result<MemoryFile> open_memory_file(const std::string& path, std::uint64_t size_bytes);

/// "/mailbox" -> "/dev/shm/mailbox"; a name begins with its only '/', as shm_open(3) wants it.
[[nodiscard]] Result<std::string> shm_path(std::string_view name);

[[nodiscard]] Result<Fd> reopen_read_only(FdView file);

/// Removes the name when it still is this file's.
void remove_name_of(const std::string& path, FdView file) noexcept;

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"

/// What the kernel should do with a piece of our address space: madvise(2) as verbs.
///
/// Contract: bytes begin at a page. Advice and populating take the last page whole, also where the bytes end within
/// it; what destroys bytes takes whole pages only. Errc::unsupported means one thing: this kernel does not know the
/// call (an old one, or one built without KSM or transparent huge pages), so that a caller may do it by hand. A refusal
/// that has to do with the bytes (a mapping that may not be written, a special one) is Errc::invalid_argument: touching
/// those pages by hand would fault. Other failures keep their errno: ENOMEM for a hole or a shortage, EFAULT for a page
/// that its file does not have, EHWPOISON for broken memory. No bytes are no work and no error.
/// Threads: any. Populating with several threads at once is several calls on pieces.
/// Cost: one system call, two when it refuses; populating zeroes or reads every page that is not there.
/// Limits: interrupted calls are repeated: what was populated stays and is fast to pass.
/// Example:
///     const auto populated = populate_write(bytes);
///     if (!populated && populated.error().code() == Errc::unsupported) touch_by_hand(bytes);
/// Known holes: after an error part of the range may have been advised or populated.

namespace guestmem {

enum class Advice : std::uint8_t {
    mergeable,  ///< equal pages of private memory may become one (KSM)
    unmergeable,
    dont_dump,  ///< core dumps leave it out
    do_dump,
    dont_fork,   ///< a child has a hole there
    huge_pages,  ///< transparent huge pages wherever the host's mode is not "never"
    no_huge_pages,
};

[[nodiscard]] Result<void> advise(std::span<std::byte> bytes, Advice advice);

/// Gives each page to us, writable, as a write of each would, without changing a byte: a private copy is made where
/// a write would make one.
[[nodiscard]] Result<void> populate_write(std::span<std::byte> bytes);
/// The same for reading: pages of files are read, private memory may get the page of zeros.
[[nodiscard]] Result<void> populate_read(std::span<std::byte> bytes);

/// MADV_DONTNEED: private memory is zeros (or the file's bytes) at the next touch; shared memory only leaves our page
/// tables. Whole pages, huge ones where the mapping has them.
[[nodiscard]] Result<void> discard_pages(std::span<std::byte> bytes);
/// munlock(2): locked pages may go, which mlockall(2) has locked in the first place. Where it fails discard_pages() is
/// refused; it is not failed by faults.hpp, as all that releases.
void unlock_pages(std::span<std::byte> bytes) noexcept;
/// MADV_REMOVE: a hole in the file behind shared, writable memory: zeros for all who have it. Whole pages.
[[nodiscard]] Result<void> remove_pages(std::span<std::byte> bytes);

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Where the pages of a memory come from, when they come one after the other: a template's image, a server, a stream.
///
/// Concepts: an image is the memory of a VM as one line of bytes, from 0 to size_bytes(), in whole pages. Who wants
/// pages has a sink; a source gives them to it, those that were asked for and others that came along. A source that
/// pushes gives pages that nobody asked for, as they arrive.
/// Contract: fetch() has given all wanted pages when it returns, or is an error, in a bounded time: a source that waits
/// for somebody has a limit for it and names it. Only one that pushes may return before: what is missing then arrives
/// by itself. Its pages may be there already when nothing is readable yet: take_arrivals(), which does not block, is
/// called once before arrivals() is waited for. One that cannot be asked gives pages in its own order: fetch() of it
/// lasts until the wanted ones have passed, and who must not stand still meanwhile waits for arrivals() instead. What
/// it gives is what the image has: checked against the sums that the source knows; a page that does not fit is an error
/// (corrupt) and is not given. After an error of a peer or a stream, each later call is that error. An error of the
/// sink ends the call with it.
/// Threads: one at a time.
/// Example:
///     GM_TRY(source.fetch({.offset_bytes = 0, .size_bytes = 65536}, sink));

namespace guestmem {

/// Whole pages of an image.
struct ImagePart {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;

    friend bool operator==(const ImagePart&, const ImagePart&) = default;
};

/// What source and sink have in common: how large a piece goes over at once at most.
inline constexpr std::uint64_t max_part_bytes = std::uint64_t{1} << 20;

class PageSink {
public:
    PageSink() = default;
    PageSink(const PageSink&) = delete;
    PageSink& operator=(const PageSink&) = delete;
    virtual ~PageSink() = default;

    /// Whole pages, at most max_part_bytes. The bytes are the source's again when this returns.
    [[nodiscard]] virtual Result<void> take_pages(std::uint64_t offset_bytes,
                                                  std::span<const std::byte> pages) = 0;
    /// Pages of zeros, of any size within the image.
    [[nodiscard]] virtual Result<void> take_zeros(ImagePart part) = 0;
};

class PageSource {
public:
    PageSource() = default;
    PageSource(const PageSource&) = delete;
    PageSource& operator=(const PageSource&) = delete;
    virtual ~PageSource() = default;

    [[nodiscard]] virtual std::uint64_t size_bytes() const = 0;
    /// Gives the wanted pages, and maybe others.
    [[nodiscard]] virtual Result<void> fetch(ImagePart wanted, PageSink& sink) = 0;

    /// Of a source that pushes: readable when pages have come. Not open: it gives what is asked for, nothing else.
    [[nodiscard]] virtual FdView arrivals() const { return {}; }
    /// Whether fetch() makes pages come sooner than they would by themselves.
    [[nodiscard]] virtual bool can_be_asked() const { return true; }
    /// Gives what has come so far, some of it at a time; false when nothing more will come by itself.
    [[nodiscard]] virtual Result<bool> take_arrivals(PageSink& sink) {
        static_cast<void>(sink);
        return false;
    }
};

}  // namespace guestmem

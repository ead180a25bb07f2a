// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/page_runs.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/mapping.hpp"

/// A region of lazy memory: which piece of the image it shows where, and which of its pages are settled.
///
/// Concepts: a run is pages in a row, by their numbers in the region. What settled means is told in pager.hpp.
/// Contract: runs lie within their region; an empty one has count 0.
/// Threads: one at a time.
/// Cost: 1 bit a page; adding and searching take 64 pages at a time.

namespace guestmem {

/// What two pieces of an image have in common; size 0 when that is nothing.
[[nodiscard]] ImagePart common_part(ImagePart one, ImagePart other);
[[nodiscard]] bool is_whole_pages(ImagePart part);
[[nodiscard]] bool is_within(ImagePart part, std::uint64_t size_bytes);

/// A set of pages, as bits.
class SettledPages {
public:
    explicit SettledPages(std::uint64_t count_pages);
    [[nodiscard]] bool contains(std::uint64_t page) const {
        return (words_[page / 64] >> page % 64 & 1) != 0;
    }
    [[nodiscard]] bool is_full() const { return count_ == count_pages_; }
    /// How many of them were not in it.
    std::uint64_t add(PageRun run);
    /// The first pages of `within` that are not in it, in a row; empty when all are.
    [[nodiscard]] PageRun next_missing(PageRun within) const;
    /// The pages of `within` that are not in it, in a row with `page`, which is none of those in it.
    [[nodiscard]] PageRun missing_around(std::uint64_t page, PageRun within) const;

private:
    std::vector<std::uint64_t> words_;
    std::uint64_t count_pages_;
    std::uint64_t count_ = 0;
};

struct LazyArea {
    ImagePart part;
    Mapping mapping;
    SettledPages settled;
    bool is_watched = true;

    [[nodiscard]] std::uint64_t count_pages() const { return part.size_bytes / page_size_bytes; }
    [[nodiscard]] PageRun all() const { return {.first = 0, .count = count_pages()}; }
    [[nodiscard]] std::span<std::byte> bytes(PageRun run) const {
        return mapping.bytes().subspan(run.first * page_size_bytes, run.count * page_size_bytes);
    }
    [[nodiscard]] std::uint64_t image_offset(std::uint64_t page) const {
        return part.offset_bytes + page * page_size_bytes;
    }
    /// The pages that show something of this piece of the image.
    [[nodiscard]] PageRun overlap(ImagePart other) const;
    /// The pages that are at these addresses.
    [[nodiscard]] PageRun overlap(std::span<const std::byte> addresses) const;
};

}  // namespace guestmem

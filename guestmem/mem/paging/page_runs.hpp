// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/result.hpp"

/// Which pages of an image a difference has.
///
/// Concepts: a run is pages one after the other. Runs are in ascending order, none is empty, and between two there is
/// at least one page that is in neither: so a set of pages has one form. As bytes a run is 16: the number of its first
/// page and how many pages it has, both u64, little endian. A chain of differences asks its newest member for pieces:
/// those that are in it come from there, the others from the member before.
/// Contract: parse_page_runs() takes any bytes; what is not that one form, or reaches behind the image, is an error
/// (corrupt) that names the run. add() is the caller's own order, checked (GM_CHECK).
/// Threads: one at a time; reading alone: any.
/// Limits: parse_page_runs() takes max_page_runs (256 MiB of bytes). add() takes more: who stores what it made compares
/// runs().size() first.
/// Cost: 16 bytes a run. add() is constant; contains(), next() and the start of split() look for the run in O(log n).
/// Example:
///     PageRuns changed;
///     changed.add(3, 2);
///     changed.split(0, image_pages, [&](std::uint64_t first, std::uint64_t behind, bool is_in) { ... });

namespace guestmem {

/// Every other page of 128 GiB.
inline constexpr std::size_t max_page_runs = std::size_t{1} << 24;
inline constexpr std::size_t page_run_bytes = 16;

struct PageRun {
    std::uint64_t first = 0;
    std::uint64_t count = 0;

    [[nodiscard]] std::uint64_t behind() const { return first + count; }
    friend bool operator==(const PageRun&, const PageRun&) = default;
};

/// Pages up to `behind` that all are in a set, or all are not.
struct PagePiece {
    std::uint64_t behind = 0;
    bool is_in = false;

    friend bool operator==(const PagePiece&, const PagePiece&) = default;
};

class PageRuns {
public:
    /// Pages that come behind all that are in; those that touch the last run make it longer. No pages add nothing.
    void add(std::uint64_t first, std::uint64_t count);

    [[nodiscard]] std::span<const PageRun> runs() const { return runs_; }
    [[nodiscard]] std::uint64_t count_pages() const { return count_pages_; }
    [[nodiscard]] bool contains(std::uint64_t page) const;

    /// The longest piece that begins with `page`, cut at `behind`, which is larger.
    [[nodiscard]] PagePiece next(std::uint64_t page, std::uint64_t behind) const;

    /// Calls back with (first, behind, is_in) for each piece of the pages from `first` to before `behind`, in ascending
    /// order, in and out by turns. A callback that returns Result<void> ends it with its first error.
    template <typename Callback>
    auto split(std::uint64_t first, std::uint64_t behind, Callback&& callback) const
        -> std::invoke_result_t<Callback&, std::uint64_t, std::uint64_t, bool>;

    [[nodiscard]] std::vector<std::byte> to_bytes() const;

    friend bool operator==(const PageRuns&, const PageRuns&) = default;

private:
    /// The number of the first run that ends behind `page`; as many as there are when none does.
    [[nodiscard]] std::size_t find(std::uint64_t page) const;
    /// The piece at `page`; `run` is what find(page) says.
    [[nodiscard]] PagePiece piece_at(std::size_t run, std::uint64_t page, std::uint64_t behind) const;

    std::vector<PageRun> runs_;
    std::uint64_t count_pages_ = 0;
};

/// What to_bytes() gave, of an image of so many pages.
[[nodiscard]] Result<PageRuns> parse_page_runs(std::span<const std::byte> bytes, std::uint64_t image_pages);

template <typename Callback>
auto PageRuns::split(std::uint64_t first, std::uint64_t behind, Callback&& callback) const
    -> std::invoke_result_t<Callback&, std::uint64_t, std::uint64_t, bool> {
    GM_CHECK(first <= behind);
    std::size_t run = find(first);
    while (first < behind) {
        const PagePiece piece = piece_at(run, first, behind);
        if constexpr (std::is_void_v<std::invoke_result_t<Callback&, std::uint64_t, std::uint64_t, bool>>) {
            callback(first, piece.behind, piece.is_in);
        } else {
            GM_TRY(callback(first, piece.behind, piece.is_in));
        }
        if (piece.is_in) ++run;
        first = piece.behind;
    }
    if constexpr (!std::is_void_v<std::invoke_result_t<Callback&, std::uint64_t, std::uint64_t, bool>>)
        return {};
}

}  // namespace guestmem

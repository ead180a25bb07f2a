// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/range.hpp"

/// Dirty pages: which pages of a region were written, as a value that somebody holds and nobody else changes.
///
/// Concepts: a DirtyLog (dirty_log.hpp) collects marks while writers write; what is harvested from it is a
/// DirtyPages. A page is what one bit stands for; it does not have to be the host's page. Offsets count from the
/// beginning of the region; to_ranges() turns them into addresses.
/// Contract: a page that is partly written is dirty. The last page may be cut by the end of the region; runs and
/// ranges are clipped there. Merging rounds outward: of two page sizes, a fine page is dirty when the coarse one
/// around it is, and a coarse page is when any fine one in it is. Whatever lies past the end is left out.
/// Threads: one at a time.
/// Limits: page_bytes is a power of two from min_dirty_page_bytes to max_dirty_page_bytes, and a region has at
/// most max_dirty_pages of them: one bit each, 8 GiB of bits for 256 TiB of 4 KiB pages. More is an error.
/// Cost: memory that was never dirty costs address space only. for_each_run() skips 64 pages at a time and
/// allocates nothing; runs() has up to one entry for every two pages.
/// Example:
///     DirtyPages pages = GM_TRY(region.dirty().harvest());
///     pages.for_each_run([&](DirtyRun run) { send(run.offset, run.size_bytes); });

namespace guestmem {

inline constexpr std::uint64_t min_dirty_page_bytes = 64;
inline constexpr std::uint64_t max_dirty_page_bytes = std::uint64_t{1} << 30;
inline constexpr std::uint64_t max_dirty_pages = std::uint64_t{1} << 36;

struct DirtyPagesOptions {
    std::uint64_t size_bytes = 0;
    std::uint64_t page_bytes = page_size_bytes;
};

/// Pages that lie side by side; the last run of a region may end in the middle of a page.
struct DirtyRun {
    std::uint64_t offset = 0;
    std::uint64_t size_bytes = 0;
    friend constexpr bool operator==(const DirtyRun&, const DirtyRun&) = default;
};

/// Pages by number, and the words of 64 that their bits are in.
struct PageSpan {
    std::uint64_t first = 0;
    std::uint64_t last = 0;  ///< inclusive
    [[nodiscard]] std::uint64_t first_word() const { return first / 64; }
    [[nodiscard]] std::uint64_t last_word() const { return last / 64; }
    /// The bits in the first word, as if the span went on to its end; and in the last, as if it began before.
    [[nodiscard]] std::uint64_t first_bits() const { return ~std::uint64_t{0} << (first % 64); }
    [[nodiscard]] std::uint64_t last_bits() const { return ~std::uint64_t{0} >> (63 - last % 64); }
    friend constexpr bool operator==(const PageSpan&, const PageSpan&) = default;
};

/// How a region of so many bytes is cut into pages, and these into words of 64.
class PageGrid {
public:
    /// No page at all.
    PageGrid() = default;
    [[nodiscard]] static Result<PageGrid> create(const DirtyPagesOptions& options);

    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }
    [[nodiscard]] std::uint64_t page_bytes() const { return std::uint64_t{1} << page_shift_; }
    [[nodiscard]] unsigned page_shift() const { return page_shift_; }
    [[nodiscard]] std::uint64_t count_pages() const { return count_pages_; }
    [[nodiscard]] std::uint64_t count_words() const {
        return count_pages_ / 64 + (count_pages_ % 64 != 0 ? 1 : 0);
    }
    /// The bits of the last word that stand for pages.
    [[nodiscard]] std::uint64_t last_word_mask() const {
        return count_pages_ % 64 == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << (count_pages_ % 64)) - 1;
    }

    /// The pages that `count` bytes at `offset` touch. What is outside of the region is left out: nothing when all is.
    /// `offset + count` may be more than 2^64.
    [[nodiscard]] std::optional<PageSpan> pages_of(std::uint64_t offset, std::uint64_t count) const {
        if (count == 0 || offset >= size_bytes_) return std::nullopt;
        const std::uint64_t room_bytes = size_bytes_ - offset;
        const std::uint64_t last_offset = offset + ((count < room_bytes ? count : room_bytes) - 1);
        return PageSpan{offset >> page_shift_, last_offset >> page_shift_};
    }

    friend constexpr bool operator==(const PageGrid&, const PageGrid&) = default;

private:
    std::uint64_t size_bytes_ = 0;
    std::uint64_t count_pages_ = 0;
    unsigned page_shift_ = 12;
};

namespace detail {

/// So many words are looked at per branch.
inline constexpr std::uint64_t group_words = 8;

/// The first word from `index` on, in steps of a group, whose group is not all zeros, or lacks words.
[[nodiscard]] inline std::uint64_t skip_clean_groups(std::span<const std::uint64_t> words,
                                                     std::uint64_t index) {
    for (; index + group_words <= words.size(); index += group_words) {
        const std::uint64_t* const w = &words[index];
        if ((w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) != 0) break;
    }
    return index;
}

}  // namespace detail

/// Calls function(first bit, count) for each run of set bits among the first `count_bits` of `words`, in order.
template <typename Function>
void for_each_bit_run(std::span<const std::uint64_t> words, std::uint64_t count_bits, Function&& function) {
    std::uint64_t first = 0;
    bool is_inside = false;
    for (std::uint64_t base = 0; base < count_bits; base += 64) {
        if (!is_inside) {
            base = detail::skip_clean_groups(words, base / 64) * 64;
            if (base >= count_bits) return;
        }
        std::uint64_t word = words[base / 64];
        if (count_bits - base < 64) word &= (std::uint64_t{1} << (count_bits - base)) - 1;
        if (word == (is_inside ? ~std::uint64_t{0} : 0)) continue;
        for (unsigned bit = 0; bit < 64;) {
            const std::uint64_t rest = word >> bit;
            if (is_inside) {
                bit += static_cast<unsigned>(std::countr_one(rest));
                if (bit < 64) function(first, base + bit - first);
                is_inside = bit >= 64;
            } else {
                if (rest == 0) break;
                bit += static_cast<unsigned>(std::countr_zero(rest));
                first = base + bit;
                is_inside = true;
            }
        }
    }
    if (is_inside) function(first, count_bits - first);
}

namespace detail {

struct FreeWords {
    void operator()(std::uint64_t* words) const { std::free(words); }  // NOLINT(cppcoreguidelines-no-malloc)
};
using WordArray = std::unique_ptr<std::uint64_t[], FreeWords>;

/// Words of zero; the kernel gives memory for large arrays only where they are written.
[[nodiscard]] Result<WordArray> create_zeroed_words(std::uint64_t count);

}  // namespace detail

class DirtyPages {
public:
    /// A region of no bytes, nothing dirty.
    DirtyPages() = default;
    /// Nothing dirty.
    [[nodiscard]] static Result<DirtyPages> create(const DirtyPagesOptions& options);
    [[nodiscard]] static Result<DirtyPages> create(const PageGrid& grid);
    DirtyPages(DirtyPages&& other) noexcept
        : grid_(std::exchange(other.grid_, {})),
          words_(std::move(other.words_)),
          is_touched_(std::exchange(other.is_touched_, false)) {}
    DirtyPages& operator=(DirtyPages&& other) noexcept {
        grid_ = std::exchange(other.grid_, {});
        words_ = std::move(other.words_);
        is_touched_ = std::exchange(other.is_touched_, false);
        return *this;
    }
    DirtyPages(const DirtyPages&) = delete;
    DirtyPages& operator=(const DirtyPages&) = delete;
    ~DirtyPages() = default;

    [[nodiscard]] const PageGrid& grid() const { return grid_; }
    [[nodiscard]] std::uint64_t size_bytes() const { return grid_.size_bytes(); }
    [[nodiscard]] std::uint64_t page_bytes() const { return grid_.page_bytes(); }
    /// All pages of the region.
    [[nodiscard]] std::uint64_t count_pages() const { return grid_.count_pages(); }
    /// Bit n % 64 of word n / 64 is page n. Bits past the last page are 0.
    [[nodiscard]] std::span<const std::uint64_t> words() const { return {words_.get(), grid_.count_words()}; }

    [[nodiscard]] std::uint64_t count_dirty() const;
    [[nodiscard]] bool is_any_dirty() const;
    /// Whether the page around `offset` is; false past the end.
    [[nodiscard]] bool is_dirty(std::uint64_t offset) const;

    void mark(std::uint64_t offset, std::uint64_t count);
    void merge(const DirtyPages& other);
    void clear();

    /// Calls function(DirtyRun) for each run, in order. Two runs never touch.
    template <typename Function>
    void for_each_run(Function&& function) const {
        if (!is_touched_) return;
        for_each_bit_run(words(), grid_.count_pages(), [&](std::uint64_t page, std::uint64_t count) {
            const std::uint64_t offset = page << grid_.page_shift();
            const std::uint64_t room_bytes = grid_.size_bytes() - offset;
            // The last page may be cut; its full size could be past 2^64.
            const bool is_cut = page + count == grid_.count_pages();
            function(DirtyRun{offset, is_cut ? room_bytes : count << grid_.page_shift()});
        });
    }
    [[nodiscard]] std::vector<DirtyRun> runs() const;
    /// The runs as addresses of a region that begins at `base`; an error when it would reach past 2^64.
    template <typename Space>
    [[nodiscard]] Result<std::vector<AddressRange<Space>>> to_ranges(Address<Space> base) const {
        std::vector<AddressRange<Space>> ranges;
        if (size_bytes() == 0) return ranges;
        if (!base.checked_add(size_bytes() - 1)) return past_the_end(base.value());
        for_each_run([&](DirtyRun run) {
            ranges.push_back(*AddressRange<Space>::create(*base.checked_add(run.offset), run.size_bytes));
        });
        return ranges;
    }

    friend bool operator==(const DirtyPages& left, const DirtyPages& right);

private:
    friend class DirtyLog;
    DirtyPages(const PageGrid& grid, detail::WordArray words) : grid_(grid), words_(std::move(words)) {}
    [[nodiscard]] Error past_the_end(std::uint64_t base) const;

    PageGrid grid_;
    detail::WordArray words_;
    bool is_touched_ = false;  ///< false: all words are 0, nobody has to look
};

}  // namespace guestmem

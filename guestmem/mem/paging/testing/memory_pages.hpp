// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/page_frame.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// Images in memory, for tests of sources and sinks of pages.
///
/// Contract: random_image() has runs of zeros, of pages that compress, and of pages that do not. A MemorySource gives
/// an image, zeros as zeros; a MemorySink is one that is filled, and counts each page. Both can be told to fail.
/// Threads: one at a time; a sink's `fails_at` any.
/// Example:
///     MemorySource source{random_image(64, 1)};
///     MemorySink sink{source.image.size()};
///     ASSERT_TRUE(source.fetch({0, source.image.size()}, sink));
///     EXPECT_EQ(sink.image, source.image);

namespace guestmem::testing {

using PageBytes = std::vector<std::byte>;

inline PageBytes random_image(std::size_t count_pages, std::uint64_t seed) {
    std::mt19937_64 random{seed};
    PageBytes image(count_pages * page_size_bytes);
    for (std::size_t page = 0; page < count_pages;) {
        const std::size_t run = std::min<std::size_t>(count_pages - page, 1 + random() % 40);
        const std::uint64_t kind = random() % 3;
        for (std::size_t at = page * page_size_bytes; at < (page + run) * page_size_bytes; at += 8) {
            const std::uint64_t value = kind == 0 ? 0 : kind == 1 ? at / 512 + 1 : random();
            std::memcpy(image.data() + at, &value, sizeof value);
        }
        page += run;
    }
    return image;
}

class MemorySource : public PageSource {
public:
    explicit MemorySource(PageBytes bytes) : image(std::move(bytes)) {}

    [[nodiscard]] std::uint64_t size_bytes() const override { return image.size(); }
    [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
        ++count_fetches;
        if (!is_image_part(wanted, image.size()))
            return Error{Errc::invalid_argument, "no part of this image"};
        if (fails_at && wanted.offset_bytes + wanted.size_bytes > *fails_at)
            return Error{Errc::io, "the disk is gone"};
        const std::uint64_t behind = wanted.offset_bytes + wanted.size_bytes;
        for (std::uint64_t at = wanted.offset_bytes; at < behind;) {
            const bool has_zeros = has_zeros_at(at);
            std::uint64_t next = at + page_size_bytes;
            while (next < behind && has_zeros_at(next) == has_zeros &&
                   (has_zeros || next - at < max_part_bytes))
                next += page_size_bytes;
            GM_TRY(has_zeros ? sink.take_zeros({at, next - at})
                             : sink.take_pages(at, std::span{image}.subspan(at, next - at)));
            at = next;
        }
        return {};
    }

    PageBytes image;
    std::optional<std::uint64_t> fails_at;  ///< pages behind it cannot be read
    std::atomic<std::uint64_t> count_fetches{0};

private:
    [[nodiscard]] bool has_zeros_at(std::uint64_t offset_bytes) const {
        return std::ranges::all_of(std::span{image}.subspan(offset_bytes, page_size_bytes),
                                   [](std::byte byte) { return byte == std::byte{}; });
    }
};

class MemorySink : public PageSink {
public:
    explicit MemorySink(std::size_t size_bytes)
        : image(size_bytes, std::byte{0xee}), counts(size_bytes / page_size_bytes) {}

    [[nodiscard]] Result<void> take_pages(std::uint64_t offset_bytes,
                                          std::span<const std::byte> pages) override {
        EXPECT_LE(pages.size(), max_part_bytes);
        GM_TRY(take({offset_bytes, pages.size()}));
        std::ranges::copy(pages, image.begin() + static_cast<std::ptrdiff_t>(offset_bytes));
        return {};
    }
    [[nodiscard]] Result<void> take_zeros(ImagePart part) override {
        GM_TRY(take(part));
        std::fill_n(image.begin() + static_cast<std::ptrdiff_t>(part.offset_bytes), part.size_bytes,
                    std::byte{});
        return {};
    }

    [[nodiscard]] bool has_each_once() const {
        return std::ranges::all_of(counts, [](int count) { return count == 1; });
    }
    [[nodiscard]] std::uint64_t count_given() const {
        return static_cast<std::uint64_t>(std::ranges::count_if(counts, [](int count) { return count > 0; }));
    }

    PageBytes image;
    std::vector<int> counts;
    bool fails = false;

private:
    [[nodiscard]] Result<void> take(ImagePart part) {
        EXPECT_TRUE(is_image_part(part, image.size())) << part.offset_bytes << "+" << part.size_bytes;
        if (!is_image_part(part, image.size())) return Error{Errc::invalid_argument, "outside of the sink"};
        if (fails) return Error{Errc::exhausted, "the sink is full"};
        for (std::uint64_t page = 0; page < part.size_bytes / page_size_bytes; ++page)
            ++counts[part.offset_bytes / page_size_bytes + page];
        return {};
    }
};

}  // namespace guestmem::testing

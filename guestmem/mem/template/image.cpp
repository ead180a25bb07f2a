// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/image.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t word_bytes = sizeof(std::uint64_t);
constexpr std::uint64_t buffer_bytes = std::uint64_t{1} << 20;
constexpr std::uint64_t buffer_pages = buffer_bytes / page_size_bytes;

std::span<std::byte, word_bytes> word_at(std::span<std::byte> words, std::uint64_t number) {
    return words.subspan(number * word_bytes).first<word_bytes>();
}

/// The next piece of either file that is no hole, in pages of the image; nothing at the end.
struct Pages {
    std::uint64_t first = 0;
    std::uint64_t behind = 0;
};
Result<std::optional<Pages>> next_pages(FdView file, std::uint64_t unit_bytes, std::uint64_t first,
                                        std::uint64_t behind) {
    const auto data = GM_TRY(next_data(file, {first * unit_bytes, (behind - first) * unit_bytes}));
    if (!data) return std::optional<Pages>{};
    const std::uint64_t end = data->offset_bytes + data->size_bytes;
    return std::optional{Pages{data->offset_bytes / unit_bytes, (end - 1) / unit_bytes + 1}};
}

}  // namespace

Result<void> ImageWriter::add_bytes(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes) {
    buffer_.resize(buffer_bytes);
    for (std::uint64_t done = 0; done < bytes.size(); done += buffer_bytes) {
        const std::span part =
            bytes.subspan(done, std::min<std::uint64_t>(buffer_bytes, bytes.size() - done));
        const std::span copy = std::span{buffer_}.first(part.size());
        if (copy_from_guest(copy.data(), part.data(), part.size()) != part.size())
            return Error{Errc::corrupt,
                         fmt::format("image: the memory for {} bytes at {} of the image cannot be read: its "
                                     "file was cut short, or a page is broken",
                                     part.size(), image_offset_bytes + done)};
        GM_TRY(add_buffered(image_offset_bytes + done, copy));
    }
    return {};
}

Result<void> ImageWriter::add_file(std::uint64_t image_offset_bytes, FdView file,
                                   std::uint64_t file_offset_bytes, std::uint64_t size_bytes) {
    buffer_.resize(buffer_bytes);
    const FileFacts facts = GM_TRY(file_facts(file));
    // A part that is not there must not pass for zeros.
    if (file_offset_bytes > facts.size_bytes || size_bytes > facts.size_bytes - file_offset_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("image: {} bytes at {} are wanted of a file that has {}", size_bytes,
                                 file_offset_bytes, facts.size_bytes)};
    const std::uint64_t end = file_offset_bytes + size_bytes;
    for (std::uint64_t at = file_offset_bytes; at < end;) {
        const auto data = GM_TRY(next_data(file, {at, end - at}));
        if (!data) break;
        // Blocks of a file system need not be pages.
        at = std::max(at, data->offset_bytes / page_size_bytes * page_size_bytes);
        const std::uint64_t behind =
            std::min(end, round_up(data->offset_bytes + data->size_bytes, page_size_bytes).value_or(end));
        while (at < behind) {
            const std::span part = std::span{buffer_}.first(std::min(buffer_bytes, behind - at));
            GM_TRY(read_at(file, at, part));
            GM_TRY(add_buffered(image_offset_bytes + (at - file_offset_bytes), part));
            at += part.size();
        }
    }
    return {};
}

Result<void> ImageWriter::add_buffered(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes) {
    GM_CHECK(image_offset_bytes >= written_to_ && image_offset_bytes % page_size_bytes == 0);
    GM_CHECK(bytes.size() % page_size_bytes == 0);
    written_to_ = image_offset_bytes + bytes.size();
    sum_bytes_.assign(bytes.size() / page_size_bytes * word_bytes, std::byte{0});
    bool has_sums = false;
    const std::uint64_t first_page = image_offset_bytes / page_size_bytes;
    const std::uint64_t count_pages = bytes.size() / page_size_bytes;
    const auto page_at = [&](std::uint64_t number) {
        return bytes.subspan(number * page_size_bytes, page_size_bytes);
    };
    for (std::uint64_t page = 0; page < count_pages;) {
        if (is_zero_page(page_at(page))) {
            ++page;
            continue;
        }
        const std::uint64_t run = page;
        for (; page < count_pages && !is_zero_page(page_at(page)); ++page) {
            const std::uint64_t sum = page_sum(page_at(page));
            store_little<std::uint64_t>(word_at(sum_bytes_, page), sum);
            has_sums = true;
            sum_of_sums_.add(first_page + page, sum);
            ++data_pages_;
        }
        GM_TRY(write_at(image_, (first_page + run) * page_size_bytes,
                        bytes.subspan(run * page_size_bytes, (page - run) * page_size_bytes)));
    }
    if (has_sums) GM_TRY(write_at(sums_, first_page * word_bytes, sum_bytes_));
    return {};
}

Result<ImageSummary> ImageWriter::finish(std::uint64_t image_bytes) {
    GM_CHECK(image_bytes >= written_to_);
    GM_TRY(resize_file(image_, image_bytes));
    GM_TRY(resize_file(sums_, image_bytes / page_size_bytes * word_bytes));
    GM_TRY(sync_file(image_));
    GM_TRY(sync_file(sums_));
    return ImageSummary{.data_pages = data_pages_, .sum_of_sums = sum_of_sums_.value()};
}

Result<ImageCheck> check_image(FdView image, FdView sums, std::uint64_t image_bytes,
                               const ImageProgress& progress) {
    ImageCheck check;
    SumOfSums sum_of_sums;
    std::vector<std::byte> pages(buffer_bytes);
    std::vector<std::byte> words(buffer_pages * word_bytes);
    const std::uint64_t count_pages = image_bytes / page_size_bytes;
    for (std::uint64_t first = 0; first < count_pages;) {
        // Where both files have holes, all is zeros on both sides.
        const auto data = GM_TRY(next_pages(image, page_size_bytes, first, count_pages));
        const auto summed = GM_TRY(next_pages(sums, word_bytes, first, count_pages));
        if (!data && !summed) break;
        first = std::min(data ? data->first : count_pages, summed ? summed->first : count_pages);
        const std::uint64_t count = std::min(buffer_pages, count_pages - first);
        GM_TRY(read_at(image, first * page_size_bytes, std::span{pages}.first(count * page_size_bytes)));
        GM_TRY(read_at(sums, first * word_bytes, std::span{words}.first(count * word_bytes)));
        for (std::uint64_t i = 0; i < count; ++i) {
            const auto expected = load_little<std::uint64_t>(word_at(words, i));
            const std::span<const std::byte> page =
                std::span{pages}.subspan(i * page_size_bytes, page_size_bytes);
            const std::uint64_t sum = is_zero_page(page) ? 0 : page_sum(page);
            if (expected != 0) {
                sum_of_sums.add(first + i, expected);
                ++check.found.data_pages;
            }
            if (sum == expected) continue;
            if (check.count_bad++ < ImageCheck::max_told)
                check.bad.push_back({(first + i) * page_size_bytes, sum, expected});
        }
        first += count;
        if (progress) progress(first * page_size_bytes);
    }
    check.found.sum_of_sums = sum_of_sums.value();
    return check;
}

}  // namespace guestmem

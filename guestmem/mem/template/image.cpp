// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/image.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t word_bytes = sizeof(std::uint64_t);
constexpr std::uint64_t buffer_bytes = max_part_bytes;

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
    if (file_offset_bytes % page_size_bytes != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("image: the memory begins at {} of its file, which is no multiple of {}",
                                 file_offset_bytes, page_size_bytes)};
    const FileFacts facts = GM_TRY(file_facts(file));
    // A part that is not there must not pass for zeros.
    if (file_offset_bytes > facts.size_bytes || size_bytes > facts.size_bytes - file_offset_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("image: {} bytes at {} are wanted of a file that has {}", size_bytes,
                                 file_offset_bytes, facts.size_bytes)};
    const std::uint64_t end = file_offset_bytes + size_bytes;
    const auto in_image = [&](std::uint64_t at) { return image_offset_bytes + (at - file_offset_bytes); };
    for (std::uint64_t at = file_offset_bytes; at < end;) {
        const auto data = GM_TRY(next_data(file, {at, end - at}));
        // Blocks of a file system need not be pages.
        const std::uint64_t begin =
            data ? std::max(at, data->offset_bytes / page_size_bytes * page_size_bytes) : end;
        if (begin > at) GM_TRY(add_zeros({in_image(at), begin - at}));
        if (!data) break;
        at = begin;
        const std::uint64_t behind =
            std::min(end, round_up(data->offset_bytes + data->size_bytes, page_size_bytes).value_or(end));
        while (at < behind) {
            const std::span part = std::span{buffer_}.first(std::min(buffer_bytes, behind - at));
            GM_TRY(read_at(file, at, part));
            GM_TRY(add_buffered(in_image(at), part));
            at += part.size();
        }
    }
    return {};
}

/// What a source gives goes into the image.
class ImageWriter::FromSource final : public PageSink {
public:
    FromSource(ImageWriter& writer, std::uint64_t end) : writer_(writer), end_(end) {}
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_TRY(check({offset_bytes, pages.size()}));
        if (pages.size() > max_part_bytes)
            return Error{Errc::corrupt,
                         fmt::format("image: its source gives {} bytes at once, and {} are agreed",
                                     pages.size(), max_part_bytes)};
        return writer_.add_buffered(offset_bytes, pages);
    }
    Result<void> take_zeros(ImagePart part) override {
        GM_TRY(check(part));
        return writer_.add_zeros(part);
    }

private:
    /// A source is somebody else's: what it gives is not believed.
    [[nodiscard]] Result<void> check(ImagePart part) const {
        const bool is_whole =
            part.offset_bytes % page_size_bytes == 0 && part.size_bytes % page_size_bytes == 0;
        const std::uint64_t next = writer_.written_to();
        if (is_whole && part.offset_bytes == next && part.size_bytes <= end_ - next) return {};
        const bool is_later = is_whole && part.offset_bytes > next && part.offset_bytes < end_;
        return Error{
            is_later ? Errc::unsupported : Errc::corrupt,
            fmt::format("image: its source gives {} bytes at {}, and those from {} on are next, up to {}: an "
                        "image is made in ascending order",
                        part.size_bytes, part.offset_bytes, next, end_)};
    }

    ImageWriter& writer_;
    std::uint64_t end_;
};

Result<void> ImageWriter::add_source(ImagePart part, PageSource& source, const ImageProgress& progress) {
    GM_CHECK(part.offset_bytes >= written_to_);
    written_to_ = part.offset_bytes;
    const std::uint64_t end = part.offset_bytes + part.size_bytes;
    FromSource sink{*this, end};
    constexpr std::uint64_t step_bytes = std::uint64_t{64} << 20;
    // A stream may bring more than it was asked for, and does not bring it again.
    while (written_to_ < end) {
        const ImagePart wanted{written_to_, std::min(step_bytes, end - written_to_)};
        GM_TRY(source.fetch(wanted, sink));
        if (written_to_ < wanted.offset_bytes + wanted.size_bytes)
            return Error{Errc::corrupt, fmt::format("image: its source gives nothing at {}", written_to_)};
        if (progress) progress(written_to_);
    }
    return {};
}

namespace {

/// Pages that are data, for who only wants to know which.
class DataPages final : public PageSink {
public:
    explicit DataPages(PageRuns& found) : found_(found) {}
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        for (std::uint64_t at = 0; at < pages.size(); at += page_size_bytes)
            if (!is_zero_page(pages.subspan(at, page_size_bytes)))
                found_.add((offset_bytes + at) / page_size_bytes, 1);
        return {};
    }
    Result<void> take_zeros(ImagePart) override { return {}; }

private:
    PageRuns& found_;
};

/// Bytes of a part of an image in memory.
class IntoBuffer final : public PageSink {
public:
    IntoBuffer(std::uint64_t offset_bytes, std::span<std::byte> bytes)
        : offset_(offset_bytes), bytes_(bytes) {}
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        std::ranges::copy(pages, bytes_.subspan(offset_bytes - offset_, pages.size()).begin());
        return {};
    }
    Result<void> take_zeros(ImagePart part) override {
        std::ranges::fill(bytes_.subspan(part.offset_bytes - offset_, part.size_bytes), std::byte{0});
        return {};
    }

private:
    std::uint64_t offset_;
    std::span<std::byte> bytes_;
};

}  // namespace

Result<void> ImageWriter::add_zeros(ImagePart part) {
    GM_CHECK(part.offset_bytes >= written_to_);
    written_to_ = part.offset_bytes + part.size_bytes;
    if (options_.base == nullptr || part.size_bytes == 0) return {};
    DataPages sink{own_pages_};
    return options_.base->fetch(part, sink);
}

Result<void> ImageWriter::find_own_pages(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes) {
    is_own_.assign(bytes.size() / page_size_bytes, true);
    if (options_.base == nullptr) return {};
    base_bytes_.resize(buffer_bytes);
    const std::span before = std::span{base_bytes_}.first(bytes.size());
    IntoBuffer sink{image_offset_bytes, before};
    GM_TRY(options_.base->fetch({image_offset_bytes, bytes.size()}, sink));
    for (std::uint64_t page = 0; page < is_own_.size(); ++page) {
        const std::uint64_t at = page * page_size_bytes;
        is_own_[page] = std::memcmp(before.data() + at, bytes.data() + at, page_size_bytes) != 0;
        if (is_own_[page]) own_pages_.add(image_offset_bytes / page_size_bytes + page, 1);
    }
    return {};
}

Result<void> ImageWriter::store(std::uint64_t image_offset_bytes, std::span<const std::byte> pages) {
    if (options_.compressed != nullptr) return options_.compressed->add(image_offset_bytes, pages);
    return write_at(image_, image_offset_bytes, pages);
}

Result<void> ImageWriter::add_buffered(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes) {
    GM_CHECK(image_offset_bytes >= written_to_ && image_offset_bytes % page_size_bytes == 0);
    GM_CHECK(bytes.size() % page_size_bytes == 0 && bytes.size() <= buffer_bytes);
    written_to_ = image_offset_bytes + bytes.size();
    GM_TRY(find_own_pages(image_offset_bytes, bytes));
    sum_bytes_.assign(bytes.size() / page_size_bytes * word_bytes, std::byte{0});
    bool has_sums = false;
    const std::uint64_t first_page = image_offset_bytes / page_size_bytes;
    const std::uint64_t count_pages = bytes.size() / page_size_bytes;
    const auto page_at = [&](std::uint64_t number) {
        return bytes.subspan(number * page_size_bytes, page_size_bytes);
    };
    const auto is_data = [&](std::uint64_t page) { return is_own_[page] && !is_zero_page(page_at(page)); };
    for (std::uint64_t page = 0; page < count_pages;) {
        if (!is_data(page)) {
            ++page;
            continue;
        }
        const std::uint64_t run = page;
        for (; page < count_pages && is_data(page); ++page) {
            const std::uint64_t sum = page_sum(page_at(page));
            store_little<std::uint64_t>(word_at(sum_bytes_, page), sum);
            has_sums = true;
            sum_of_sums_.add(first_page + page, sum);
            ++data_pages_;
        }
        GM_TRY(store((first_page + run) * page_size_bytes,
                     bytes.subspan(run * page_size_bytes, (page - run) * page_size_bytes)));
    }
    if (has_sums) GM_TRY(write_at(sums_, first_page * word_bytes, sum_bytes_));
    return {};
}

Result<ImageSummary> ImageWriter::finish(std::uint64_t image_bytes) {
    GM_CHECK(image_bytes >= written_to_);
    GM_TRY(resize_file(sums_, image_bytes / page_size_bytes * word_bytes));
    GM_TRY(sync_file(sums_));
    if (options_.compressed == nullptr) {
        GM_TRY(resize_file(image_, image_bytes));
        GM_TRY(sync_file(image_));
    }
    return ImageSummary{.data_pages = data_pages_, .sum_of_sums = sum_of_sums_.value()};
}

Result<void> read_raw_image(FdView image, ImagePart part, PageSink& sink) {
    std::vector<std::byte> buffer;
    const std::uint64_t end = part.offset_bytes + part.size_bytes;
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(image), "image");
    // What ends before its end must not pass for zeros.
    if (facts.size_bytes < end)
        return Error{Errc::corrupt, fmt::format("image: it ends at {} bytes, and those up to {} are wanted",
                                                facts.size_bytes, end)};
    for (std::uint64_t at = part.offset_bytes; at < end;) {
        const auto pages =
            GM_TRY(next_pages(image, page_size_bytes, at / page_size_bytes, end / page_size_bytes));
        const std::uint64_t begin = pages ? pages->first * page_size_bytes : end;
        if (begin > at) GM_TRY(sink.take_zeros({at, begin - at}));
        if (!pages) break;
        at = begin;
        const std::uint64_t behind = pages->behind * page_size_bytes;
        buffer.resize(std::min(buffer_bytes, behind - at));
        while (at < behind) {
            const std::span bytes =
                std::span{buffer}.first(std::min<std::uint64_t>(buffer.size(), behind - at));
            GM_TRY(read_at(image, at, bytes));
            GM_TRY(sink.take_pages(at, bytes));
            at += bytes.size();
        }
    }
    return {};
}

}  // namespace guestmem

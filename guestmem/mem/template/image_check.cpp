// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/image_check.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t word_bytes = sizeof(std::uint64_t);
/// Of the file of sums at once: those of 128 MiB.
constexpr std::uint64_t max_words = 32 * 1024;

/// Keeps what does not fit, of all pages in ascending order.
class Checker final : public PageSink {
public:
    Checker(FdView sums, const ImageProgress& progress) : sums_(sums), progress_(progress) {}

    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_TRY(sums_.compare_pages(offset_bytes, pages, note_));
        tell(offset_bytes + pages.size());
        return {};
    }
    Result<void> take_zeros(ImagePart part) override {
        GM_TRY(sums_.compare_zeros(part, note_));
        tell(part.offset_bytes + part.size_bytes);
        return {};
    }
    /// All before this was compared.
    [[nodiscard]] std::uint64_t come_to() const { return come_to_; }
    [[nodiscard]] std::uint64_t count_bad() const { return check_.count_bad; }
    void note_bad(std::uint64_t image_offset_bytes) {
        if (check_.count_bad++ < ImageCheck::max_told) check_.bad.push_back({image_offset_bytes, 0, 0});
    }
    [[nodiscard]] ImageCheck result() && {
        check_.found.sum_of_sums = sum_of_sums_.value();
        return std::move(check_);
    }

private:
    void tell(std::uint64_t done_bytes) {
        come_to_ = done_bytes;
        if (progress_) progress_(done_bytes);
    }
    void note(std::uint64_t page, std::uint64_t expected, std::uint64_t found) {
        if (expected != 0) {
            sum_of_sums_.add(page, expected);
            ++check_.found.data_pages;
        }
        if (expected == found) return;
        if (check_.count_bad++ < ImageCheck::max_told)
            check_.bad.push_back({page * page_size_bytes, found, expected});
    }

    SumComparer sums_;
    const ImageProgress& progress_;
    std::uint64_t come_to_ = 0;
    SumComparer::Each note_ = [this](std::uint64_t page, std::uint64_t expected, std::uint64_t found) {
        note(page, expected, found);
    };
    ImageCheck check_;
    SumOfSums sum_of_sums_;
};

/// What ends before its end must not pass for zeros.
Result<void> check_size(FdView sums, std::uint64_t image_bytes) {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(sums), "sums");
    const std::uint64_t expected = image_bytes / page_size_bytes * word_bytes;
    if (facts.size_bytes >= expected) return {};
    return Error{Errc::corrupt,
                 fmt::format("sums: they end at {} bytes, and {} are expected", facts.size_bytes, expected)};
}

}  // namespace

Result<void> SumComparer::read_words(std::uint64_t first_page, std::uint64_t count_pages) {
    words_.resize(count_pages * word_bytes);
    return read_at(sums_, first_page * word_bytes, words_);
}

Result<void> SumComparer::compare_pages(std::uint64_t image_offset_bytes, std::span<const std::byte> pages,
                                        const Each& each) {
    const std::uint64_t first = image_offset_bytes / page_size_bytes;
    const std::uint64_t count = pages.size() / page_size_bytes;
    GM_TRY(read_words(first, count));
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto expected = load_little<std::uint64_t>(
            std::span<const std::byte>{words_}.subspan(i * word_bytes).first<word_bytes>());
        const auto page = pages.subspan(i * page_size_bytes, page_size_bytes);
        const std::uint64_t found = is_zero_page(page) ? 0 : page_sum(page);
        if (expected != 0 || found != 0) each(first + i, expected, found);
    }
    return {};
}

Result<void> SumComparer::compare_zeros(ImagePart part, const Each& each) {
    const std::uint64_t behind = (part.offset_bytes + part.size_bytes) / page_size_bytes;
    for (std::uint64_t page = part.offset_bytes / page_size_bytes; page < behind;) {
        const auto data = GM_TRY(next_data(sums_, {page * word_bytes, (behind - page) * word_bytes}));
        if (!data) break;
        page = data->offset_bytes / word_bytes;
        const std::uint64_t end = (data->offset_bytes + data->size_bytes - 1) / word_bytes + 1;
        while (page < end) {
            const std::uint64_t count = std::min(end - page, max_words);
            GM_TRY(read_words(page, count));
            for (std::uint64_t i = 0; i < count; ++i) {
                const auto expected = load_little<std::uint64_t>(
                    std::span<const std::byte>{words_}.subspan(i * word_bytes).first<word_bytes>());
                if (expected != 0) each(page + i, expected, 0);
            }
            page += count;
        }
    }
    return {};
}

Result<ImageCheck> check_image(FdView image, FdView sums, std::uint64_t image_bytes,
                               const ImageProgress& progress) {
    GM_TRY(check_size(sums, image_bytes));
    Checker checker{sums, progress};
    GM_TRY(read_raw_image(image, {0, image_bytes}, checker));
    return std::move(checker).result();
}

Result<ImageCheck> check_image(CompressedImageReader& image, FdView sums, std::uint64_t image_bytes,
                               const ImageProgress& progress) {
    GM_TRY(check_size(sums, image_bytes));
    Checker checker{sums, progress};
    constexpr std::uint64_t step_bytes = std::uint64_t{64} << 20;
    for (std::uint64_t at = 0; at < image_bytes; at = checker.come_to()) {
        auto read = image.read({at, std::min(step_bytes, image_bytes - at)}, checker);
        if (read) continue;
        if (read.error().code() != Errc::corrupt) return std::move(read).error();
        // The pages of the first chunk that was not given are not there, whatever their sums say.
        const std::uint64_t begin = checker.come_to();
        const std::uint64_t behind = std::min((begin / chunk_bytes + 1) * chunk_bytes, image_bytes);
        const std::uint64_t count_before = checker.count_bad();
        GM_TRY(checker.take_zeros({begin, behind - begin}));
        if (checker.count_bad() == count_before) checker.note_bad(begin);
    }
    return std::move(checker).result();
}

}  // namespace guestmem

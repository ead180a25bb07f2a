// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/image_check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t page = page_size_bytes;
constexpr std::uint64_t count_pages = 200;
constexpr std::uint64_t image_bytes = count_pages * page;

/// 200 pages, of which those from 40 to 79 are zeros, as an image with its sums; raw or compressed.
class ImageCheckTest : public ::testing::TestWithParam<ImageEncoding> {
protected:
    ImageCheckTest() {
        bytes_ = counted_bytes(image_bytes);
        std::memset(bytes_.data() + 40 * page, 0, 40 * page);
        CompressedImageWriter compressed{image_, chunks_, default_compression_level};
        ImageWriter writer{image_, sums_, {.compressed = is_raw() ? nullptr : &compressed}};
        EXPECT_TRUE(writer.add_bytes(0, bytes_));
        summary_ = writer.finish(image_bytes).value();
        if (!is_raw()) stored_ = compressed.finish(image_bytes).value();
    }
    static bool is_raw() { return GetParam() == ImageEncoding::raw; }
    [[nodiscard]] Result<ImageCheck> check(const ImageProgress& progress = {}) const {
        if (is_raw()) return check_image(image_, sums_, image_bytes, progress);
        auto reader = GM_TRY(CompressedImageReader::open(image_, chunks_, image_bytes, stored_.stored_bytes,
                                                         stored_.chunks_sum));
        return check_image(reader, sums_, image_bytes, progress);
    }
    static void flip(FdView file, std::uint64_t at) {
        std::byte byte{};
        ASSERT_TRUE(read_at(file, at, {&byte, 1}));
        byte ^= std::byte{1};
        ASSERT_TRUE(write_at(file, at, {&byte, 1}));
    }

    TempFolder folder_;
    Fd image_ = create_file(folder_.path_of("image"), 0600).value();
    Fd sums_ = create_file(folder_.path_of("sums"), 0600).value();
    Fd chunks_ = create_file(folder_.path_of("chunks"), 0600).value();
    std::vector<std::byte> bytes_;
    ImageSummary summary_;
    CompressedSummary stored_;
};
INSTANTIATE_TEST_SUITE_P(Encodings, ImageCheckTest,
                         ::testing::Values(ImageEncoding::raw, ImageEncoding::zstd),
                         [](const auto& encoding) { return std::string{to_string(encoding.param)}; });

TEST_P(ImageCheckTest, FindsNothingInWhatWasWritten) {
    std::vector<std::uint64_t> told;
    const ImageCheck found = check([&](std::uint64_t done) { told.push_back(done); }).value();
    EXPECT_EQ(found.count_bad, 0U);
    EXPECT_THAT(found.bad, IsEmpty());
    EXPECT_EQ(found.found.data_pages, count_pages - 40);
    EXPECT_EQ(found.found.data_pages, summary_.data_pages);
    EXPECT_EQ(found.found.sum_of_sums, summary_.sum_of_sums);
    EXPECT_TRUE(std::ranges::is_sorted(told));
    EXPECT_EQ(told.back(), image_bytes);
}

TEST_P(ImageCheckTest, NamesThePageOfAFlippedSum) {
    for (const std::uint64_t number : {0U, 39U, 40U, 79U, 80U, 199U}) {
        flip(sums_, number * 8 + 3);
        const ImageCheck found = check().value();
        ASSERT_EQ(found.bad.size(), 1U) << number;
        EXPECT_EQ(found.bad[0].image_offset_bytes, number * page);
        EXPECT_EQ(found.bad[0].expected ^ found.bad[0].sum, std::uint64_t{1} << 24U);
        EXPECT_NE(found.found.sum_of_sums, summary_.sum_of_sums);
        flip(sums_, number * 8 + 3);
    }
    EXPECT_EQ(check()->count_bad, 0U);
}

TEST_P(ImageCheckTest, TellsTheFirstOfManyAndCountsAll) {
    ASSERT_TRUE(write_at(sums_, 0, std::vector<std::byte>(count_pages * 8, std::byte{1})));
    const ImageCheck found = check().value();
    EXPECT_EQ(found.count_bad, count_pages);
    ASSERT_EQ(found.bad.size(), ImageCheck::max_told);
    for (std::uint64_t i = 0; i < found.bad.size(); ++i) EXPECT_EQ(found.bad[i].image_offset_bytes, i * page);
}

TEST_P(ImageCheckTest, OfFilesThatEndTooEarlyIsAnError) {
    for (const std::uint64_t size : {std::uint64_t{0}, count_pages * 8 - 1}) {
        ASSERT_TRUE(resize_file(sums_, size));
        const auto found = check();
        ASSERT_FALSE(found);
        EXPECT_EQ(found.error().code(), Errc::corrupt);
        EXPECT_THAT(found.error().message(), HasSubstr("sums: they end at"));
    }
    ASSERT_TRUE(resize_file(sums_, count_pages * 8));
    ASSERT_TRUE(resize_file(image_, page));
    const auto found = check();
    ASSERT_FALSE(found) << "an image that was cut must not pass for zeros";
    EXPECT_EQ(found.error().code(), Errc::corrupt);
}

TEST_P(ImageCheckTest, EachFailingCallIsAnError) {
    EXPECT_GT(for_each_fault([&] { return check(); }), 5U);
}

TEST_P(ImageCheckTest, FindsTheBitsThatFlippedInTheImage) {
    const std::uint64_t size = file_facts(image_)->size_bytes;
    for (std::uint64_t at = 17; at < size; at += size / 23) {
        flip(image_, at);
        const ImageCheck found = check().value();
        ASSERT_GE(found.bad.size(), 1U) << at;
        EXPECT_NE(found.bad[0].sum, found.bad[0].expected);
        if (is_raw()) {
            EXPECT_EQ(found.count_bad, 1U);
            EXPECT_EQ(found.bad[0].image_offset_bytes, at / page * page);
        } else {
            EXPECT_LE(found.count_bad, chunk_pages) << "one chunk is bad, or less of it";
        }
        EXPECT_EQ(found.found.sum_of_sums, summary_.sum_of_sums) << "the sums are good";
        flip(image_, at);
    }
    EXPECT_EQ(check()->count_bad, 0U);
}

TEST_P(ImageCheckTest, FindsDataWhereZerosWereAndZerosWhereDataWas) {
    if (!is_raw()) return;  // where the pages stand is the raw image's
    flip(image_, 50 * page + 1);
    ASSERT_TRUE(write_at(image_, 100 * page, std::vector<std::byte>(page)));
    const ImageCheck found = check().value();
    ASSERT_EQ(found.bad.size(), 2U);
    EXPECT_EQ(found.bad[0].image_offset_bytes, 50 * page);
    EXPECT_EQ(found.bad[0].expected, 0U);
    EXPECT_EQ(found.bad[1].image_offset_bytes, 100 * page);
    EXPECT_EQ(found.bad[1].sum, 0U);
}

TEST_P(ImageCheckTest, ComparesAnyPartWithItsSums) {
    using Told = std::pair<std::uint64_t, bool>;
    std::vector<Told> told;
    SumComparer comparer{sums_};
    const SumComparer::Each each = [&](std::uint64_t number, std::uint64_t expected, std::uint64_t found) {
        told.emplace_back(number, expected == found);
    };
    ASSERT_TRUE(comparer.compare_pages(38 * page, std::span{bytes_}.subspan(38 * page, 4 * page), each));
    EXPECT_THAT(told, ElementsAre(Told{38, true}, Told{39, true}))
        << "of zeros that are zeros it tells nothing";
    told.clear();
    ASSERT_TRUE(comparer.compare_pages(38 * page, std::span{bytes_}.subspan(page, 3 * page), each));
    EXPECT_THAT(told, ElementsAre(Told{38, false}, Told{39, false}, Told{40, false}));
    told.clear();
    ASSERT_TRUE(comparer.compare_zeros({38 * page, 43 * page}, each));
    EXPECT_THAT(told, ElementsAre(Told{38, false}, Told{39, false}, Told{80, false}));
    told.clear();
    ASSERT_TRUE(comparer.compare_zeros({40 * page, 40 * page}, each));
    EXPECT_THAT(told, IsEmpty());
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/image.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/image_check.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

/// An image and its sums, new.
struct Files {
    TempFolder folder;
    Fd image = create_file(folder.path_of("image"), 0600).value();
    Fd sums = create_file(folder.path_of("sums"), 0600).value();

    [[nodiscard]] std::vector<std::byte> content() const {
        std::vector<std::byte> bytes(file_facts(image)->size_bytes);
        EXPECT_TRUE(read_at(image, 0, bytes));
        return bytes;
    }
    [[nodiscard]] ImageCheck check() const {
        return check_image(image, sums, file_facts(image)->size_bytes).value();
    }
};

/// 3 MiB in which some pages are zeros, alone and in rows, and across the borders of what is read at once.
std::vector<std::byte> sparse_bytes() {
    std::vector<std::byte> bytes = counted_bytes(3 * mib);
    const auto zero = [&](std::uint64_t first_page, std::uint64_t count) {
        std::memset(bytes.data() + first_page * page_size_bytes, 0, count * page_size_bytes);
    };
    zero(0, 1);
    zero(3, 1);
    zero(10, 40);
    zero(250, 20);
    zero(700, 68);
    return bytes;
}
constexpr std::uint64_t count_zero_pages = 1 + 1 + 40 + 20 + 68;
constexpr std::uint64_t count_all_pages = 3 * mib / page_size_bytes;

TEST(ImageWriter, StoresMemoryAndNoPageOfZeros) {
    const Files files;
    const std::vector<std::byte> bytes = sparse_bytes();
    ImageWriter writer{files.image, files.sums};
    ASSERT_TRUE(writer.add_bytes(0, bytes));
    const ImageSummary summary = writer.finish(4 * mib).value();
    EXPECT_EQ(summary.data_pages, count_all_pages - count_zero_pages);

    std::vector<std::byte> expected = bytes;
    expected.resize(4 * mib);
    EXPECT_EQ(files.content(), expected);
    EXPECT_LE(file_facts(files.image)->allocated_bytes,
              (count_all_pages - count_zero_pages + 8) * page_size_bytes);
    EXPECT_EQ(file_facts(files.sums)->size_bytes, 4 * mib / page_size_bytes * 8);
    const ImageCheck check = files.check();
    EXPECT_EQ(check.count_bad, 0U);
    EXPECT_THAT(check.bad, IsEmpty());
    EXPECT_EQ(check.found.data_pages, summary.data_pages);
    EXPECT_EQ(check.found.sum_of_sums, summary.sum_of_sums);
}

TEST(ImageWriter, StoresAFileAsItStoresItsBytes) {
    const Files of_bytes;
    const std::vector<std::byte> bytes = sparse_bytes();
    ImageWriter bytes_writer{of_bytes.image, of_bytes.sums};
    ASSERT_TRUE(bytes_writer.add_bytes(mib, bytes));
    const ImageSummary expected = bytes_writer.finish(4 * mib).value();

    const Files files;
    const Fd source = create_file(files.folder.path_of("ram"), 0600).value();
    ASSERT_TRUE(resize_file(source, 5 * mib));
    for (std::uint64_t at = 0; at < bytes.size(); at += page_size_bytes) {
        const std::span<const std::byte> page = std::span{bytes}.subspan(at, page_size_bytes);
        if (!is_zero_page(page)) {
            ASSERT_TRUE(write_at(source, 8192 + at, page));
        }
    }
    ImageWriter writer{files.image, files.sums};
    ASSERT_TRUE(writer.add_file(mib, source, 8192, 3 * mib));
    const ImageSummary summary = writer.finish(4 * mib).value();
    EXPECT_EQ(files.content(), of_bytes.content());
    EXPECT_EQ(summary.sum_of_sums, expected.sum_of_sums);
    EXPECT_EQ(summary.data_pages, expected.data_pages);
    EXPECT_EQ(files.check().count_bad, 0U);
}

TEST(ImageWriter, OfAFileTakesItsRangeAlone) {
    const Files files;
    const Fd source = create_file(files.folder.path_of("ram"), 0600).value();
    ASSERT_TRUE(write_at(source, 0, counted_bytes(mib)));
    ImageWriter writer{files.image, files.sums};
    ASSERT_TRUE(writer.add_file(0, source, 4096, 8192));
    ASSERT_TRUE(writer.add_file(16384, source, 0, 4096));
    ASSERT_TRUE(writer.finish(20480));
    std::vector<std::byte> expected = counted_bytes(8192, 4096);
    expected.resize(16384);
    const auto last = counted_bytes(4096);
    expected.insert(expected.end(), last.begin(), last.end());
    EXPECT_EQ(files.content(), expected);
}

TEST(ImageWriter, OfAFileThatIsTooShortIsAnError) {
    const Files files;
    const Fd source = create_file(files.folder.path_of("ram"), 0600).value();
    ASSERT_TRUE(write_at(source, 0, counted_bytes(4095)));
    ImageWriter writer{files.image, files.sums};
    for (const auto& [offset, size] : {std::pair<std::uint64_t, std::uint64_t>{0, 4096},
                                       {0, mib},
                                       {mib, 4096},
                                       {~std::uint64_t{0} - 4095, 8192}}) {
        const auto added = writer.add_file(0, source, offset, size);
        ASSERT_FALSE(added) << offset;
        EXPECT_THAT(added.error().message(), HasSubstr("of a file that has 4095"));
    }
}

TEST(ImageWriter, OfNothingIsAHole) {
    const Files files;
    ImageWriter writer{files.image, files.sums};
    const ImageSummary summary = writer.finish(std::uint64_t{64} << 30).value();
    EXPECT_EQ(summary.data_pages, 0U);
    EXPECT_EQ(file_facts(files.image)->allocated_bytes, 0U);
    const ImageCheck check = files.check();
    EXPECT_EQ(check.count_bad, 0U);
    EXPECT_EQ(check.found.sum_of_sums, summary.sum_of_sums);
}

TEST(ImageWriter, EachFailingCallIsAnError) {
    const std::vector<std::byte> bytes = sparse_bytes();
    const TempFolder sources;
    const Fd source = create_file(sources.path_of("ram"), 0600).value();
    ASSERT_TRUE(write_at(source, 0, std::span{bytes}.first(mib)));
    const auto count = for_each_fault([&]() -> Result<ImageSummary> {
        const TempFolder folder;
        const Fd image = GM_TRY(create_file(folder.path_of("image"), 0600));
        const Fd sums = GM_TRY(create_file(folder.path_of("sums"), 0600));
        ImageWriter writer{image, sums};
        GM_TRY(writer.add_bytes(0, std::span{bytes}.first(mib)));
        GM_TRY(writer.add_file(mib, source, 0, mib));
        return writer.finish(2 * mib);
    });
    EXPECT_GT(count, 10U);
}

class ChangedImage : public ::testing::Test {
protected:
    void SetUp() override {
        ImageWriter writer{files_.image, files_.sums};
        ASSERT_TRUE(writer.add_bytes(0, sparse_bytes()));
        ASSERT_TRUE(writer.finish(4 * mib));
    }
    void flip(FdView file, std::uint64_t at, int bit) const {
        std::byte byte{};
        ASSERT_TRUE(read_at(file, at, {&byte, 1}));
        byte ^= std::byte{1} << bit;
        ASSERT_TRUE(write_at(file, at, {&byte, 1}));
    }
    Files files_;
};

TEST_F(ChangedImage, OneFlippedBitIsFoundWhereverItIs) {
    std::mt19937 random{3};
    for (int round = 0; round < 60; ++round) {
        const std::uint64_t at = random() % (4 * mib);
        const int bit = static_cast<int>(random() % 8);
        flip(files_.image, at, bit);
        const ImageCheck check = files_.check();
        ASSERT_EQ(check.count_bad, 1U) << at;
        EXPECT_EQ(check.bad.front().image_offset_bytes, at / page_size_bytes * page_size_bytes);
        flip(files_.image, at, bit);
    }
    EXPECT_EQ(files_.check().count_bad, 0U) << "all bits are back";
}

TEST_F(ChangedImage, OneFlippedBitOfTheSumsIsABadPage) {
    for (const std::uint64_t page : {0U, 1U, 300U, 767U, 768U, 1023U}) {
        flip(files_.sums, page * 8 + 3, 6);
        const ImageCheck check = files_.check();
        ASSERT_EQ(check.count_bad, 1U) << page;
        EXPECT_EQ(check.bad.front().image_offset_bytes, page * page_size_bytes);
        flip(files_.sums, page * 8 + 3, 6);
    }
}

TEST_F(ChangedImage, PagesThatTradedPlacesAreBothBad) {
    std::vector<std::byte> one(page_size_bytes);
    std::vector<std::byte> other(page_size_bytes);
    ASSERT_TRUE(read_at(files_.image, page_size_bytes, one));
    ASSERT_TRUE(read_at(files_.image, 2 * page_size_bytes, other));
    ASSERT_TRUE(write_at(files_.image, page_size_bytes, other));
    ASSERT_TRUE(write_at(files_.image, 2 * page_size_bytes, one));
    EXPECT_EQ(files_.check().count_bad, 2U);
}

TEST_F(ChangedImage, PageAndSumTogetherShowInTheSumOfSums) {
    const std::uint64_t before = files_.check().found.sum_of_sums;
    flip(files_.image, page_size_bytes, 0);
    std::vector<std::byte> page(page_size_bytes);
    ASSERT_TRUE(read_at(files_.image, page_size_bytes, page));
    const std::uint64_t sum = page_sum(page);
    ASSERT_TRUE(write_at(files_.sums, 8, std::as_bytes(std::span{&sum, 1})));
    EXPECT_EQ(files_.check().count_bad, 0U);
    EXPECT_NE(files_.check().found.sum_of_sums, before);
}

TEST_F(ChangedImage, ManyBadPagesAreCountedAndTheFirstAreTold) {
    ASSERT_TRUE(write_at(files_.image, 0, std::vector<std::byte>(4 * mib, std::byte{0xff})));
    const ImageCheck check = files_.check();
    EXPECT_EQ(check.count_bad, 1024U);
    EXPECT_EQ(check.bad.size(), ImageCheck::max_told);
}

TEST_F(ChangedImage, ThatIsTooShortIsAnError) {
    ASSERT_TRUE(resize_file(files_.image, 4 * mib - 1));
    EXPECT_FALSE(check_image(files_.image, files_.sums, 4 * mib) && files_.check().count_bad == 0);
    ASSERT_TRUE(resize_file(files_.image, mib));
    EXPECT_FALSE(check_image(files_.image, files_.sums, 4 * mib));
}

TEST_F(ChangedImage, EachFailingCallIsAnError) {
    EXPECT_GT(for_each_fault([&] { return check_image(files_.image, files_.sums, 4 * mib); }), 4U);
}

}  // namespace
}  // namespace guestmem

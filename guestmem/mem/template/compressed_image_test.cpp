// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/compressed_image.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
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

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t last_number = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t page = page_size_bytes;
constexpr std::uint64_t chunk = chunk_bytes;

/// Bytes that cannot be compressed.
Bytes random_bytes(std::size_t size, std::uint64_t seed = 33) {
    std::mt19937_64 random{seed};
    Bytes bytes(size);
    std::ranges::generate(bytes, [&] { return static_cast<std::byte>(random()); });
    return bytes;
}

/// What a reader gave for a part, and whether it gave it as the header says. A large part is counted alone.
struct ModelSink : PageSink {
    explicit ModelSink(ImagePart wanted, int fails_at_call = -1) : part(wanted), fails_at(fails_at_call) {
        if (wanted.size_bytes >> 30 == 0) bytes.resize(wanted.size_bytes);
    }
    Result<void> take_pages(std::uint64_t offset, std::span<const std::byte> pages) override {
        EXPECT_EQ(offset / chunk, (offset + pages.size() - 1) / chunk);
        for (std::size_t at = 0; at < pages.size(); at += page)
            EXPECT_FALSE(is_zero_page(pages.subspan(at, page))) << offset + at;
        return take({offset, pages.size()}, pages);
    }
    Result<void> take_zeros(ImagePart zeros) override {
        EXPECT_FALSE(were_zeros) << "zeros that touch at " << zeros.offset_bytes;
        return take(zeros, {});
    }
    Result<void> take(ImagePart piece, std::span<const std::byte> pages) {
        EXPECT_EQ(piece.offset_bytes, part.offset_bytes + done);
        EXPECT_EQ(piece.size_bytes % page, 0U);
        GM_CHECK(piece.size_bytes != 0 && piece.size_bytes <= part.size_bytes - done);
        if (!bytes.empty()) std::ranges::copy(pages, bytes.begin() + static_cast<std::ptrdiff_t>(done));
        done += piece.size_bytes;
        pieces.push_back(piece);
        were_zeros = pages.empty();
        if (std::cmp_equal(pieces.size(), fails_at + 1)) return Error{Errc::io, "the sink is full"};
        return {};
    }

    ImagePart part;
    Bytes bytes;
    int fails_at;
    std::uint64_t done = 0;
    std::vector<ImagePart> pieces;
    bool were_zeros = false;
};

/// Two files in memory, without names.
struct Files {
    Fd image = create_shm("image").value();
    Fd chunks = create_shm("chunks").value();

    [[nodiscard]] Result<CompressedImageReader> open(std::uint64_t size, CompressedSummary summary) const {
        return CompressedImageReader::open(image, chunks, size, summary.stored_bytes, summary.chunks_sum);
    }
};

Bytes content_of(FdView file) {
    Bytes bytes(file_facts(file)->size_bytes);
    EXPECT_TRUE(read_at(file, 0, bytes));
    return bytes;
}

/// A part by itself, or the sentence why not.
Result<Bytes> read_part(CompressedImageReader& reader, ImagePart part) {
    ModelSink sink{part};
    GM_TRY(reader.read(part, sink));
    EXPECT_EQ(sink.done, part.size_bytes);
    return std::move(sink.bytes);
}

CompressedSummary write_all(const Files& files, std::span<const std::byte> bytes, int level = 1) {
    CompressedImageWriter writer{files.image, files.chunks, level};
    EXPECT_TRUE(writer.add(0, bytes));
    return writer.finish(bytes.size()).value();
}

void append_entry(Bytes& index, std::uint64_t offset, std::uint32_t size, std::uint32_t reserved = 0) {
    const std::array<std::uint64_t, 2> words{swap_unless_little(offset),
                                             swap_unless_little(size | std::uint64_t{reserved} << 32)};
    const auto bytes = std::as_bytes(std::span{words});
    index.insert(index.end(), bytes.begin(), bytes.end());
}

/// As the header says: of the chunks that are stored, their numbers and the sums of their entries.
std::uint64_t sum_of_index(std::span<const std::byte> index) {
    SumOfSums sum;
    for (std::size_t at = 0; at + 16 <= index.size(); at += 16)
        if (!is_zero_page(index.subspan(at, 16))) sum.add(at / 16, bytes_sum(index.subspan(at, 16)));
    return sum.value();
}

/// Both files with any bytes, and an open with the sum that fits them.
Result<CompressedImageReader> open_made(const Files& files, const Bytes& index, const Bytes& frames,
                                        std::uint64_t image_bytes) {
    GM_TRY(resize_file(files.image, frames.size()));
    GM_TRY(resize_file(files.chunks, index.size()));
    GM_TRY(write_at(files.image, 0, frames));
    GM_TRY(write_at(files.chunks, 0, index));
    return files.open(image_bytes, {.stored_bytes = frames.size(), .chunks_sum = sum_of_index(index)});
}

/// An image of random pages, of pages that compress well, and of pages and chunks of zeros.
Bytes random_image(std::mt19937_64& random, std::uint64_t pages) {
    Bytes bytes;
    while (bytes.size() < pages * page) {
        const std::uint64_t size = (1 + random() % 20) * page;
        const std::array runs{Bytes(size), counted_bytes(size, random() % 251), random_bytes(size, random())};
        const Bytes& run = runs.at(random() % runs.size());
        bytes.insert(bytes.end(), run.begin(), run.end());
    }
    bytes.resize(pages * page);
    return bytes;
}

TEST(CompressedImage, GivesBackWhatWasAddedInAnySplit) {
    std::mt19937_64 random{31};
    for (int round = 0; round < 40; ++round) {
        SCOPED_TRACE(round);
        // The first is more than is held back at once, in frames that are larger than their chunks.
        const Bytes model = round == 0 ? random_bytes(48 * chunk) : random_image(random, 1 + random() % 200);
        const std::uint64_t pages = model.size() / page;
        const Files files;
        CompressedImageWriter writer{files.image, files.chunks, 1 + round % 3};
        for (std::uint64_t at = 0, count = 0; at < pages; at += count) {
            count = std::min<std::uint64_t>(1 + random() % 40, pages - at);
            const std::span part = std::span{model}.subspan(at * page, count * page);
            const bool is_left_out = is_zero_page(part) && random() % 2 == 0;
            EXPECT_TRUE(is_left_out || writer.add(at * page, part));
        }
        const CompressedSummary summary = writer.finish(model.size()).value();
        EXPECT_TRUE(round != 0 || summary.stored_bytes > model.size());
        const Files at_once;
        EXPECT_EQ(write_all(at_once, model, 1 + round % 3), summary);
        EXPECT_EQ(content_of(at_once.image), content_of(files.image));
        auto reader = files.open(model.size(), summary).value();
        EXPECT_EQ(reader.size_bytes(), model.size());
        EXPECT_EQ(read_part(reader, {0, model.size()}).value(), model);
        for (int i = 0; i < 20; ++i) {
            const std::uint64_t first = random() % pages;
            const std::uint64_t count = random() % (pages - first + 1);
            const Bytes found = read_part(reader, {first * page, count * page}).value();
            EXPECT_TRUE(std::ranges::equal(found, std::span{model}.subspan(first * page, count * page)));
        }
    }
}

TEST(CompressedImage, HasTheFormatOfItsHeader) {
    Bytes bytes(3 * chunk + 2 * page);
    std::ranges::copy(counted_bytes(chunk), bytes.begin());
    bytes[2 * chunk + 5] = bytes.back() = std::byte{7};
    const Files files;
    const CompressedSummary summary = write_all(files, bytes);
    const Bytes frames = content_of(files.image);
    // The sizes of the frames are zstd's choice, where they stand is not.
    const std::size_t first = ZSTD_findFrameCompressedSize(frames.data(), frames.size());
    const std::size_t second = ZSTD_findFrameCompressedSize(frames.data() + first, frames.size() - first);
    const std::size_t both = first + second;
    Bytes index;
    append_entry(index, 0, static_cast<std::uint32_t>(first));
    append_entry(index, 0, 0);
    append_entry(index, first, static_cast<std::uint32_t>(second));
    append_entry(index, both, static_cast<std::uint32_t>(frames.size() - both));
    EXPECT_EQ(content_of(files.chunks), index);
    EXPECT_EQ(ZSTD_getFrameContentSize(frames.data(), first), chunk);
    EXPECT_EQ(ZSTD_getFrameContentSize(frames.data() + both, frames.size() - both), 2 * page);
    EXPECT_EQ(summary, (CompressedSummary{frames.size(), sum_of_index(index)}));
}

TEST(CompressedImage, OfZerosHasNoFrameAndNoBlocks) {
    for (const std::uint64_t size : {std::uint64_t{0}, 2 * chunk, std::uint64_t{1} << 40}) {
        const Files files;
        CompressedImageWriter writer{files.image, files.chunks, 1};
        ASSERT_TRUE(writer.add(0, Bytes(std::min(size, chunk + page))));
        const CompressedSummary summary = writer.finish(size).value();
        EXPECT_EQ(summary.stored_bytes, 0U);
        EXPECT_EQ(file_facts(files.chunks)->size_bytes, size / chunk * chunk_entry_bytes);
        EXPECT_EQ(file_facts(files.chunks)->allocated_bytes, 0U);
        auto reader = files.open(size, summary).value();
        EXPECT_TRUE(read_part(reader, {0, size}));
    }
}

TEST(CompressedImage, OfTheLargestSizeIsReadByItsData) {
    constexpr std::uint64_t size = std::uint64_t{1} << 46;
    constexpr std::uint64_t middle = (std::uint64_t{1} << 45) + 3 * page;
    const Bytes bytes = counted_bytes(page);
    const Files files;
    CompressedImageWriter writer{files.image, files.chunks, 1};
    for (const std::uint64_t at : {std::uint64_t{0}, middle, size - page}) ASSERT_TRUE(writer.add(at, bytes));
    const CompressedSummary summary = writer.finish(size).value();
    EXPECT_LE(file_facts(files.chunks)->allocated_bytes, 3 * page);
    auto reader = files.open(size, summary).value();
    ModelSink sink{{0, size}};
    ASSERT_TRUE(reader.read({0, size}, sink));
    const ImagePart zeros{page, middle - page};
    const ImagePart more_zeros{middle + page, size - middle - 2 * page};
    EXPECT_THAT(sink.pieces, ElementsAre(ImagePart{0, page}, zeros, ImagePart{middle, page}, more_zeros,
                                         ImagePart{size - page, page}));
    EXPECT_FALSE(files.open(size + page, summary)) << "beyond the limit";
}

TEST(CompressedImage, EachFailingCallIsAnError) {
    const Bytes bytes = random_bytes(20 * chunk);
    const auto count = for_each_fault([&]() -> Result<Bytes> {
        const Fd image = GM_TRY(create_shm("image"));
        const Fd chunks = GM_TRY(create_shm("chunks"));
        CompressedImageWriter writer{image, chunks, 1};
        GM_TRY(writer.add(0, bytes));
        GM_TRY(writer.add(100000 * chunk, std::span{bytes}.first(page)));
        const auto [stored_bytes, sum] = GM_TRY(writer.finish(200000 * chunk));
        auto reader = GM_TRY(CompressedImageReader::open(image, chunks, 200000 * chunk, stored_bytes, sum));
        return read_part(reader, {0, 200000 * chunk});
    });
    EXPECT_GT(count, 40U);
}

TEST(CompressedImageWriter, TakesAscendingWholePagesAlone) {
    const Files files;
    CompressedImageWriter writer{files.image, files.chunks, 1};
    const Bytes bytes = counted_bytes(page);
    ASSERT_TRUE(writer.add(page, bytes));
    EXPECT_DEATH(static_cast<void>(writer.add(page, bytes)), "check failed");
    EXPECT_DEATH(static_cast<void>(writer.add(3 * page + 1, bytes)), "check failed");
    EXPECT_DEATH(static_cast<void>(writer.add(3 * page, std::span{bytes}.first(100))), "check failed");
    EXPECT_DEATH(static_cast<void>(writer.finish(page)), "check failed");
    EXPECT_DEATH(static_cast<void>(writer.finish(2 * page + 1)), "check failed");
}

TEST(CompressedImageWriter, TakesTheNearestLevel) {
    const Bytes bytes = counted_bytes(3 * chunk);
    const auto sum_of = [&](int level) { return write_all(Files{}, bytes, level); };
    EXPECT_EQ(sum_of(std::numeric_limits<int>::min()), sum_of(min_compression_level));
    EXPECT_EQ(sum_of(std::numeric_limits<int>::max()), sum_of(max_compression_level));
}

TEST(CompressedImageWriter, OfMemoryWhoseFileWasCutIsAnError) {
    ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
    const Files files;
    const Fd ram = create_shm("ram").value();
    ASSERT_TRUE(resize_file(ram, 4 * page));
    void* at = ::mmap(nullptr, 4 * page, PROT_READ, MAP_SHARED, ram.view().number(), 0);
    ASSERT_NE(at, MAP_FAILED);
    ASSERT_TRUE(resize_file(ram, 2 * page));
    CompressedImageWriter writer{files.image, files.chunks, 1};
    const auto added = writer.add(0, {static_cast<const std::byte*>(at), 4 * page});
    ::munmap(at, 4 * page);
    ASSERT_FALSE(added);
    EXPECT_THAT(added.error().message(), HasSubstr("cannot be read"));
}

TEST(CompressedImageWriter, OnAFullFileSystemIsAnError) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root may mount a tmpfs";
    const testing::TempFolder folder;
    testing::in_child([&] {
        ASSERT_TRUE(testing::mount_small_tmpfs(folder.path(), 2 * chunk))
            << "root without the right to mount";
        const Bytes bytes = random_bytes(chunk);
        const auto write = [&](std::size_t count, std::size_t step,
                               std::size_t size) -> Result<CompressedSummary> {
            const Files files{create_file(folder.path_of("image"), 0600).value(),
                              create_file(folder.path_of("chunks"), 0600).value()};
            std::filesystem::remove(folder.path_of("image"));
            std::filesystem::remove(folder.path_of("chunks"));
            CompressedImageWriter writer{files.image, files.chunks, 1};
            for (std::size_t i = 0; i < count; ++i)
                GM_TRY(writer.add(i * step, std::span{bytes}.first(size)));
            return writer.finish(count * step);
        };
        // The first by its frames; the second by its index, which takes a block for 16 MiB.
        EXPECT_EQ(write(4, chunk, chunk).error().code(), Errc::exhausted);
        EXPECT_EQ(write(64, 512 * chunk, page).error().code(), Errc::exhausted);
        EXPECT_TRUE(write(1, chunk, chunk));
    });
}

/// A small image with its files, one of which is changed.
class CompressedImageReaderTest : public ::testing::Test {
protected:
    void SetUp() override {
        std::ranges::copy(counted_bytes(chunk), bytes_.begin());
        const Bytes some = random_bytes(600);
        std::ranges::transform(some, bytes_.begin() + 2 * chunk + page,
                               [](std::byte b) { return b & std::byte{7}; });
        bytes_.back() = std::byte{9};
        summary_ = write_all(files_, bytes_);
        frames_ = content_of(files_.image);
        index_ = content_of(files_.chunks);
        std::memcpy(&offset_, index_.data() + 32, sizeof offset_);
        std::memcpy(&size_, index_.data() + 40, sizeof size_);
    }
    /// Why an open with that index, and the sum that fits it, fails.
    void expect_refused(const Bytes& index, const std::string& why) const {
        const auto reader = open_made(files_, index, frames_, bytes_.size());
        EXPECT_THAT(reader ? "taken" : reader.error().message(), HasSubstr(why));
    }
    /// With another entry for the chunk at 2.
    void expect_refused(std::uint64_t offset, std::uint64_t size, std::uint32_t reserved,
                        const std::string& why) const {
        Bytes index(index_.begin(), index_.begin() + 32);
        append_entry(index, offset, static_cast<std::uint32_t>(size), reserved);
        index.insert(index.end(), index_.begin() + 48, index_.end());
        expect_refused(index, why);
    }
    Bytes bytes_ = Bytes(3 * chunk + 2 * page);
    Files files_;
    CompressedSummary summary_;
    Bytes frames_;
    Bytes index_;
    std::uint64_t offset_ = 0;  ///< of the frame of the chunk at 2
    std::uint32_t size_ = 0;
};

TEST_F(CompressedImageReaderTest, RefusesAnIndexOrASumWithAnyBitChanged) {
    for (std::size_t bit = 0; bit < index_.size() * 8; ++bit) {
        Bytes index = index_;
        index[bit / 8] ^= std::byte{1} << bit % 8;
        ASSERT_TRUE(write_at(files_.chunks, 0, index));
        const auto reader = files_.open(bytes_.size(), summary_);
        ASSERT_FALSE(reader) << bit;
        EXPECT_EQ(reader.error().code(), Errc::corrupt);
    }
    ASSERT_TRUE(write_at(files_.chunks, 0, index_));
    EXPECT_TRUE(files_.open(bytes_.size(), summary_));
    for (unsigned bit = 0; bit < 64; ++bit)
        EXPECT_FALSE(
            files_.open(bytes_.size(), {frames_.size(), summary_.chunks_sum ^ std::uint64_t{1} << bit}));
}

TEST_F(CompressedImageReaderTest, WithAnyBitOfAFrameChangedFailsOrGivesOtherPages) {
    std::size_t same = 0;
    for (std::size_t bit = 0; bit < frames_.size() * 8; ++bit) {
        Bytes frames = frames_;
        frames[bit / 8] ^= std::byte{1} << bit % 8;
        ASSERT_TRUE(write_at(files_.image, 0, frames));
        auto reader = files_.open(bytes_.size(), summary_).value();
        const auto found = read_part(reader, {0, bytes_.size()});
        ASSERT_TRUE(found || found.error().code() == Errc::corrupt) << found.error().message();
        if (found && *found == bytes_) ++same;
    }
    // zstd has a bit in each frame's header, and some in its tables, that mean nothing.
    EXPECT_LT(same, frames_.size() * 8 / 20);
}

TEST_F(CompressedImageReaderTest, RefusesFilesOfAnotherSize) {
    const auto expect_message = [&](std::uint64_t image_bytes, const std::string& why) {
        const auto reader = files_.open(image_bytes, summary_);
        EXPECT_THAT(reader ? "taken" : reader.error().message(), HasSubstr(why));
    };
    expect_message(bytes_.size(), "taken");
    expect_message(bytes_.size() + chunk, "270336 bytes has 64 bytes and should have 80");
    expect_message(2 * chunk, "should have 32");
    for (const std::uint64_t size : {bytes_.size() + 1, last_number, last_number - page + 1})
        expect_message(size, "an image is whole pages");
    ASSERT_TRUE(resize_file(files_.chunks, index_.size() - 1));
    expect_message(bytes_.size(), "has 63 bytes and should have 64");
    for (const std::size_t size : {frames_.size() + 1, frames_.size() - 1, std::size_t{0}}) {
        ASSERT_TRUE(resize_file(files_.image, size));
        expect_message(bytes_.size(), "the image file has");
    }
}

TEST_F(CompressedImageReaderTest, RefusesEntriesThatAreNotInAscendingOrderWithoutGaps) {
    const std::string why = "the frame before it ends at";
    expect_refused(offset_, size_, 0, "taken");
    for (const std::uint64_t other :
         {std::uint64_t{0}, offset_ - 1, offset_ + 1, offset_ + size_, frames_.size(),
          frames_.size() - size_ + 1, last_number, last_number - size_ + 1})
        expect_refused(other, size_, 0, why);
    // The frame is in no entry.
    expect_refused(0, 0, 0, why);
    Bytes swapped = index_;
    std::swap_ranges(swapped.begin() + 32, swapped.begin() + 48, swapped.begin() + 48);
    expect_refused(swapped, why);
    Bytes twice = index_;
    std::copy(twice.begin(), twice.begin() + 16, twice.begin() + 16);
    expect_refused(twice, why);
}

TEST_F(CompressedImageReaderTest, RefusesEntriesOfBadSizes) {
    for (const std::uint64_t size : {0U, 65825U, 0xffffffffU})
        expect_refused(offset_, size, 0, "a frame has 1 to 65824 bytes");
    expect_refused(offset_, 65824, 0, "the image file has");
    expect_refused(offset_, frames_.size() - offset_ + 1, 0, "the image file has");
    expect_refused(offset_, size_, 1, "1 stands where 0 has to be");
    expect_refused(0, 0, 1, "1 stands where 0 has to be");
    Bytes without_last = index_;
    std::fill(without_last.end() - 16, without_last.end(), std::byte{0});
    expect_refused(without_last, "the frames in the index end at");
}

TEST_F(CompressedImageReaderTest, RefusesPartsThatAreNotInTheImage) {
    auto reader = files_.open(bytes_.size(), summary_).value();
    const std::uint64_t size = bytes_.size();
    const std::uint64_t minus_page = last_number - page + 1;
    using Part = ImagePart;
    for (const ImagePart& part :
         {Part{0, size + page}, Part{size, page}, Part{size + page, 0}, Part{page, minus_page},
          Part{minus_page, 2 * page}, Part{1, page}, Part{0, 1}}) {
        const auto found = read_part(reader, part);
        ASSERT_FALSE(found) << part.offset_bytes;
        EXPECT_EQ(found.error().code(), Errc::invalid_argument);
    }
    EXPECT_TRUE(read_part(reader, {bytes_.size(), 0}));
    EXPECT_TRUE(read_part(reader, {bytes_.size() - page, page}));
}

TEST_F(CompressedImageReaderTest, EndsAtTheFirstErrorOfTheSink) {
    auto reader = files_.open(bytes_.size(), summary_).value();
    for (int fails_at = 0; fails_at < 5; ++fails_at) {
        ModelSink sink{{0, bytes_.size()}, fails_at};
        const auto read = reader.read({0, bytes_.size()}, sink);
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error().message(), "the sink is full");
        EXPECT_TRUE(std::cmp_equal(sink.pieces.size(), fails_at + 1));
    }
}

TEST_F(CompressedImageReaderTest, DecompressesAChunkOnceForItsPages) {
    auto reader = files_.open(bytes_.size(), summary_).value();
    ASSERT_TRUE(read_part(reader, {5 * page, page}));
    // Who reads the file again meets its end.
    ASSERT_TRUE(resize_file(files_.image, 0));
    EXPECT_EQ(read_part(reader, {3 * page, 13 * page}).value(), counted_bytes(13 * page, 3 * page));
    const auto other = read_part(reader, {2 * chunk, chunk});
    ASSERT_FALSE(other);
    EXPECT_THAT(other.error().message(), HasSubstr("the chunk at 131072 of the image"));
    EXPECT_FALSE(read_part(reader, {0, page})) << "what was kept before the error is no chunk";
}

/// Frames that somebody made by hand, as chunk 0 of an image of two chunks.
class HostileFrame : public ::testing::Test {
protected:
    [[nodiscard]] Result<Bytes> read(const Bytes& frame) const {
        Bytes index;
        append_entry(index, 0, static_cast<std::uint32_t>(frame.size()));
        append_entry(index, 0, 0);
        CompressedImageReader reader = GM_TRY(open_made(files_, index, frame, 2 * chunk));
        return read_part(reader, {0, chunk});
    }
    void expect_refused(const Bytes& frame, const std::string& why) const {
        const auto found = read(frame);
        ASSERT_FALSE(found) << why;
        EXPECT_EQ(found.error().code(), Errc::corrupt);
        EXPECT_THAT(found.error().message(), HasSubstr("the chunk at 0 of the image"));
        EXPECT_THAT(found.error().message(), HasSubstr(why));
    }
    Files files_;
};

/// By zstd itself, whose frame is small or its content is.
Bytes compressed(std::span<const std::byte> content, bool has_size = true) {
    ZSTD_CCtx* context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, has_size ? 1 : 0);
    Bytes frame(std::size_t{1} << 17);
    const auto size = ZSTD_compress2(context, frame.data(), frame.size(), content.data(), content.size());
    ZSTD_freeCCtx(context);
    GM_CHECK(ZSTD_isError(size) == 0);
    frame.resize(size);
    return frame;
}

/// A frame that announces 64 KiB, of blocks that each repeat one byte (RFC 8878, 3.1.1).
Bytes repeating_frame(std::initializer_list<std::uint32_t> sizes, std::size_t repeated = 1) {
    Bytes frame(7);
    std::memcpy(frame.data(), "\x28\xb5\x2f\xfd\x60\x00\xff", 7);
    for (std::size_t round = 0; round < repeated; ++round)
        for (const std::uint32_t& size : sizes) {
            const bool is_last = round + 1 == repeated && &size == sizes.end() - 1;
            const std::uint32_t header = (is_last ? 1U : 0U) | 1U << 1 | size << 3;
            for (unsigned shift = 0; shift < 24; shift += 8)
                frame.push_back(static_cast<std::byte>(header >> shift));
            frame.push_back(std::byte{0x5a});
        }
    return frame;
}

TEST_F(HostileFrame, ThatGivesItsChunkIsTaken) {
    // What the others here are measured by.
    EXPECT_EQ(read(repeating_frame({65536})).value(), Bytes(chunk, std::byte{0x5a}));
    EXPECT_EQ(read(repeating_frame({65000, 536})).value(), Bytes(chunk, std::byte{0x5a}));
    EXPECT_EQ(read(compressed(counted_bytes(chunk))).value(), counted_bytes(chunk));
}

TEST_F(HostileFrame, ThatYieldsMoreOrLessThanItAnnouncesIsAnError) {
    expect_refused(repeating_frame({65536, 1}), "its zstd frame");
    expect_refused(repeating_frame({65535}), "its zstd frame");
    expect_refused(repeating_frame({0}), "its zstd frame");
    // 1 GiB in blocks of 64 KiB.
    expect_refused(repeating_frame({65536}, 16384), "its zstd frame is broken");
}

TEST_F(HostileFrame, OfAnotherSizeIsAnError) {
    expect_refused(compressed(counted_bytes(chunk - 1)), "holds 65535 bytes and should hold 65536");
    expect_refused(compressed(counted_bytes(chunk + 1)), "holds 65537 bytes and should hold 65536");
    expect_refused(compressed({}), "holds 0 bytes and should hold 65536");
    expect_refused(compressed(counted_bytes(chunk), false), "does not say how much it holds");
    // Nobody touches these pages but to read them.
    constexpr std::size_t size = std::size_t{1} << 30;
    void* zeros = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(zeros, MAP_FAILED);
    const Bytes frame = compressed({static_cast<const std::byte*>(zeros), size});
    ::munmap(zeros, size);
    ASSERT_LE(frame.size(), max_chunk_frame_bytes);
    expect_refused(frame, "its zstd frame holds 1073741824 bytes and should hold 65536");
}

TEST_F(HostileFrame, WithSomethingBehindItIsAnError) {
    const Bytes frame = compressed(counted_bytes(chunk));
    for (Bytes behind : {Bytes(1), compressed({})}) {
        behind.insert(behind.begin(), frame.begin(), frame.end());
        expect_refused(behind, "its zstd frame ends after");
    }
    for (std::size_t size = 1; size < frame.size(); ++size) {
        const auto found = read(Bytes(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size)));
        ASSERT_FALSE(found) << size;
        EXPECT_EQ(found.error().code(), Errc::corrupt) << size;
    }
}

TEST_F(HostileFrame, OfAnotherKindIsAnError) {
    Bytes frame = compressed(counted_bytes(chunk));
    // The magic numbers of zstd 0.1 to 0.7 are below that of 0.8, skippable frames have 0x184d2a50 to 0x184d2a5f.
    for (const unsigned low : {0x1eU, 0x22U, 0x23U, 0x24U, 0x25U, 0x26U, 0x27U}) {
        frame[0] = std::byte(low);
        expect_refused(frame, "it is no zstd frame");
    }
    Bytes skippable(12);
    std::memcpy(skippable.data(), "\x50\x2a\x4d\x18\x04", 5);
    expect_refused(skippable, "it is no zstd frame");
    expect_refused(Bytes(1), "it is no zstd frame");
    expect_refused(Bytes(max_chunk_frame_bytes), "it is no zstd frame");
    // One that wants a dictionary: the flag for one byte of its number, and the number.
    Bytes with_dictionary = repeating_frame({65536});
    with_dictionary[4] |= std::byte{1};
    with_dictionary.insert(with_dictionary.begin() + 5, std::byte{77});
    expect_refused(with_dictionary, "its zstd frame is broken");
}

TEST(CompressedImageLimits, ManyChunksAreTakenAndOneMoreIsNot) {
    constexpr std::uint64_t many = max_compressed_chunks;
    const Files files;
    SumOfSums sum;
    std::uint64_t sum_at_limit = 0;
    Bytes entries;
    for (std::uint64_t number = 0; number <= many; ++number) {
        if (number == many) sum_at_limit = sum.value();
        append_entry(entries, number, 1);
        sum.add(number, bytes_sum(std::span{entries}.last(16)));
        const bool is_due = number % 4096 == 4095 || number == many;
        ASSERT_TRUE(!is_due || write_at(files.chunks, number / 4096 * 65536, std::exchange(entries, {})));
    }
    ASSERT_TRUE(resize_file(files.image, many + 1));
    EXPECT_EQ(files.open((many + 1) * chunk, {many + 1, sum.value()}).error().code(), Errc::out_of_range);
    ASSERT_TRUE(resize_file(files.image, many) && resize_file(files.chunks, many * 16));
    EXPECT_EQ(files.open(many * chunk, {many, sum_at_limit}).value().count_chunks(), many);
}

}  // namespace
}  // namespace guestmem

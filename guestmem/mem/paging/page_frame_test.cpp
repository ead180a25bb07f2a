// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_frame.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>

#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/testing/memory_pages.hpp"

namespace guestmem {
namespace {

using ::testing::HasSubstr;
using testing::PageBytes;
using testing::random_image;

constexpr std::uint64_t small_image_bytes = 64 * page_size_bytes;

FrameBytes greeting(std::uint64_t image_bytes = small_image_bytes) {
    FrameBytes bytes;
    append_frame(bytes, HelloFrame{.has_zstd = true, .image_bytes = image_bytes});
    return bytes;
}

/// All frames of the bytes, which come in pieces of that size; the error behind them, when there is one.
struct Reading {
    std::vector<PageFrame> frames;
    std::map<std::uint64_t, PageBytes> pages;
    std::string blobs;
    std::optional<Error> error;
    bool has_part = false;
};

Reading read_all(FrameFlow flow, std::span<const std::byte> bytes, std::size_t piece_bytes = 100'000) {
    FrameParser parser{flow};
    Reading reading;
    for (;;) {
        auto frame = parser.next();
        if (!frame) {
            reading.error = frame.error();
            return reading;
        }
        if (*frame) {
            if (const auto* const pages = std::get_if<PagesFrame>(&**frame))
                reading.pages[pages->offset_bytes] = {pages->pages.begin(), pages->pages.end()};
            if (const auto* const text = std::get_if<DescriptionFrame>(&**frame))
                reading.blobs.append(reinterpret_cast<const char*>(text->bytes.data()), text->bytes.size());
            reading.frames.push_back(std::move(**frame));
            continue;
        }
        const auto room = parser.room();
        EXPECT_FALSE(room.empty());
        reading.has_part = parser.has_part();
        if (bytes.empty()) return reading;
        const std::size_t count = std::min({piece_bytes, room.size(), bytes.size()});
        std::ranges::copy(bytes.first(count), room.begin());
        parser.take(count);
        bytes = bytes.subspan(count);
    }
}

/// The pages frame of one piece; the caller spoils it.
FrameBytes one_piece(std::span<const std::byte> pages, int zstd_level, std::uint64_t offset_bytes = 0) {
    FrameBytes bytes;
    PageEncoder encoder;
    encoder.append_pages(bytes, offset_bytes, pages, zstd_level);
    return bytes;
}

FrameBytes joined(FrameBytes left, std::span<const std::byte> right) {
    left.insert(left.end(), right.begin(), right.end());
    return left;
}

template <typename T>
void put(FrameBytes& bytes, std::size_t at, T value) {
    value = swap_unless_little(value);
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

/// The bytes of a line of vectors: "01ff {00*4096} HELLO".
FrameBytes bytes_of(const std::string& text, const FrameBytes& hello) {
    FrameBytes bytes;
    std::istringstream words{text};
    for (std::string word; words >> word;) {
        if (word == "HELLO") {
            bytes = joined(std::move(bytes), hello);
            continue;
        }
        const bool is_repeated = word[0] == '{';
        const std::string digits = is_repeated ? word.substr(1, 2) : word;
        FrameBytes piece;
        for (std::size_t at = 0; at < digits.size(); at += 2) {
            unsigned value = 0;
            std::from_chars(digits.data() + at, digits.data() + at + 2, value, 16);
            piece.push_back(static_cast<std::byte>(value));
        }
        const std::size_t times = is_repeated ? std::stoul(word.substr(4)) : 1;
        for (std::size_t i = 0; i < times; ++i) bytes = joined(std::move(bytes), piece);
    }
    return bytes;
}

std::string outcome_of(const Reading& reading) {
    if (reading.error) return std::string{to_string(reading.error->code())};
    if (reading.has_part) return "part";
    if (!reading.frames.empty())
        if (const auto* const said = std::get_if<ErrorFrame>(&reading.frames.back()))
            return std::string{to_string(said->code)};
    return "ok";
}

TEST(PageFrame, BecomesOfEachVectorWhatTheDocumentSays) {
    std::ifstream file{GUESTMEM_SOURCE "/docs/protocols/pages.md"};
    std::string line;
    while (std::getline(file, line) && line != "```vectors") {
    }
    FrameBytes hello;
    int count = 0;
    for (; std::getline(file, line) && line != "```"; ++count) {
        SCOPED_TRACE(line.substr(0, 100));
        std::vector<std::string> columns;
        std::istringstream cells{line};
        for (std::string cell; std::getline(cells, cell, '|');) {
            const std::size_t begin = cell.find_first_not_of(' ');
            columns.push_back(cell.substr(begin, cell.find_last_not_of(' ') + 1 - begin));
        }
        ASSERT_EQ(columns.size(), 4U);
        const FrameFlow flow = columns[1] == "client"   ? FrameFlow::from_client
                               : columns[1] == "server" ? FrameFlow::from_server
                                                        : FrameFlow::stream;
        const FrameBytes bytes = bytes_of(columns[2], hello);
        if (columns[0] == "hello") hello = bytes;
        EXPECT_EQ(outcome_of(read_all(flow, bytes)), columns[3]);
        EXPECT_EQ(outcome_of(read_all(flow, bytes, 7)), columns[3]);
    }
    EXPECT_GT(count, 50);
}

TEST(PageFrame, WhatAClientSaysComesBack) {
    const JoinFrame join{.has_zstd = true, .wants_description = false, .wants_state = true};
    const RequestFrame request{.number = 77, .part = {8192, 65536}};
    FrameBytes bytes;
    append_frame(bytes, join);
    append_frame(bytes, request);
    for (const std::size_t piece : {1U, 5U, 1000U}) {
        const Reading reading = read_all(FrameFlow::from_client, bytes, piece);
        ASSERT_EQ(reading.frames.size(), 2U);
        EXPECT_EQ(std::get<JoinFrame>(reading.frames[0]), join);
        EXPECT_EQ(std::get<RequestFrame>(reading.frames[1]), request);
    }
}

TEST(PageFrame, AGreetingComesBackWithItsDescription) {
    HelloFrame hello{.has_zstd = true, .image_bytes = max_paged_image_bytes, .description_bytes = 70'000};
    hello.id.fill(std::byte{0xa5});
    const std::string text(70'000, 't');
    const auto description = std::as_bytes(std::span{text});
    FrameBytes bytes;
    append_frame(bytes, hello);
    append_frame(bytes, DescriptionFrame{description.first(max_piece_bytes)});
    append_frame(bytes, DescriptionFrame{description.subspan(max_piece_bytes)});

    const Reading reading = read_all(FrameFlow::stream, bytes);

    ASSERT_EQ(reading.frames.size(), 3U);
    EXPECT_EQ(std::get<HelloFrame>(reading.frames[0]), hello);
    EXPECT_EQ(reading.blobs, text);
}

TEST(PageFrame, PagesComeBackRawAndCompressed) {
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
        const PageBytes image = random_image(small_image_bytes / page_size_bytes, seed);
        for (const int level : {0, 1, 3, max_zstd_level}) {
            SCOPED_TRACE(::testing::Message() << "seed " << seed << ", level " << level);
            FrameBytes bytes = greeting();
            PageEncoder encoder;
            encoder.append_pages(bytes, 0, image, level);
            append_frame(bytes, encoder.end_frame());

            const Reading reading = read_all(FrameFlow::stream, bytes, 4096);

            ASSERT_FALSE(reading.error) << reading.error->message();
            ASSERT_TRUE(std::holds_alternative<EndFrame>(reading.frames.back()));
            PageBytes found(image.size());
            for (const auto& [offset, pages] : reading.pages)
                std::ranges::copy(pages, found.begin() + static_cast<std::ptrdiff_t>(offset));
            EXPECT_EQ(found, image);
        }
    }
}

TEST(PageFrame, PagesThatDoNotBecomeSmallerGoRaw) {
    std::mt19937_64 random{9};
    PageBytes page(page_size_bytes);
    for (std::byte& byte : page) byte = static_cast<std::byte>(random());
    EXPECT_EQ(one_piece(page, 3), one_piece(page, 0));
    EXPECT_LT(one_piece(PageBytes(page_size_bytes, std::byte{7}), 3).size(), 200U);
}

TEST(PageFrame, APieceHasTheLimitAndNotOnePageMore) {
    const PageBytes pages(max_piece_bytes + page_size_bytes, std::byte{1});
    const Reading reading = read_all(FrameFlow::stream, joined(greeting(), one_piece(pages, 0)));
    ASSERT_EQ(reading.pages.size(), 2U);
    EXPECT_EQ(reading.pages.at(0).size(), max_piece_bytes);
    EXPECT_EQ(reading.pages.at(max_piece_bytes).size(), page_size_bytes);
}

TEST(PageFrame, CompressedPagesOfAnotherSizeAreCorrupt) {
    const PageBytes pages(4 * page_size_bytes, std::byte{3});
    const FrameBytes good = one_piece(pages, 3);
    ASSERT_FALSE(read_all(FrameFlow::stream, joined(greeting(), good)).error);
    for (const std::uint32_t count : {1U, 2U, 3U, 5U, 16U}) {
        FrameBytes bytes = good;
        put(bytes, frame_head_bytes + 8, count);
        const Reading reading = read_all(FrameFlow::stream, joined(greeting(), bytes));
        ASSERT_TRUE(reading.error) << count;
        EXPECT_EQ(reading.error->code(), Errc::corrupt);
    }
}

TEST(PageFrame, ABombIsRefusedAtTheAnnouncedSize) {
    // 64 KiB that say that they are one page.
    FrameBytes bytes = one_piece(PageBytes(max_piece_bytes, std::byte{9}), max_zstd_level);
    ASSERT_LT(bytes.size(), 200U);
    put(bytes, frame_head_bytes + 8, std::uint32_t{1});
    const Reading reading = read_all(FrameFlow::stream, joined(greeting(), bytes));
    ASSERT_TRUE(reading.error);
    EXPECT_THAT(reading.error->message(), HasSubstr("cannot be decompressed to 4096 bytes"));
}

TEST(PageFrame, CompressedPagesAreOneFrameOfZstd) {
    const FrameBytes good = one_piece(PageBytes(page_size_bytes, std::byte{3}), 3);
    const std::size_t payload = frame_head_bytes + pages_head_bytes;
    FrameBytes cut = good;
    cut.pop_back();
    put(cut, 4, static_cast<std::uint32_t>(cut.size() - frame_head_bytes));
    FrameBytes longer = joined(good, std::span{good}.subspan(payload));
    put(longer, 4, static_cast<std::uint32_t>(longer.size() - frame_head_bytes));
    FrameBytes skippable = good;
    put(skippable, payload, std::uint32_t{0x184D2A50});
    FrameBytes of_before = good;
    put(of_before, payload, std::uint32_t{0xFD2FB527});
    for (const FrameBytes& bytes : {cut, longer, skippable, of_before}) {
        const Reading reading = read_all(FrameFlow::stream, joined(greeting(), bytes));
        ASSERT_TRUE(reading.error);
        EXPECT_EQ(reading.error->code(), Errc::corrupt);
        EXPECT_THAT(reading.error->message(), HasSubstr("one frame of zstd"));
    }
}

TEST(PageFrame, EachBitOfAPagesFrameMatters) {
    const PageBytes pages(page_size_bytes, std::byte{3});
    PageEncoder encoder;
    FrameBytes frames;
    encoder.append_pages(frames, page_size_bytes, pages, 0);
    append_frame(frames, encoder.end_frame());
    for (std::size_t bit = 0; bit < 8 * (frame_head_bytes + pages_head_bytes + 16); ++bit) {
        FrameBytes bytes = frames;
        bytes[bit / 8] ^= std::byte{1} << bit % 8;
        const Reading reading = read_all(FrameFlow::stream, joined(greeting(), bytes));
        const bool is_whole =
            !reading.frames.empty() && std::holds_alternative<EndFrame>(reading.frames.back());
        EXPECT_FALSE(is_whole) << "bit " << bit;
    }
}

TEST(PageFrame, AnErrorStays) {
    FrameParser parser{FrameFlow::stream};
    std::ranges::fill(parser.room().first(8), std::byte{0xff});
    parser.take(8);
    const auto first = parser.next();
    ASSERT_FALSE(first);
    std::ranges::copy(greeting(), parser.room().begin());
    parser.take(greeting().size());
    const auto second = parser.next();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().message(), first.error().message());
}

TEST(PageFrame, ATextIsCutAtTheLimitAndShownPrintable) {
    FrameBytes bytes;
    append_frame(bytes, ErrorFrame{.code = Errc::busy, .text = "a\nb" + std::string(600, 'x')});
    const Reading reading = read_all(FrameFlow::from_server, bytes);
    ASSERT_EQ(reading.frames.size(), 1U);
    const auto& said = std::get<ErrorFrame>(reading.frames[0]);
    EXPECT_EQ(said.code, Errc::busy);
    EXPECT_EQ(said.text.size(), max_error_text_bytes);
    EXPECT_EQ(said.text.substr(0, 4), "a?bx");
}

TEST(PageFrame, APartIsWholePagesWithinTheImage) {
    constexpr std::uint64_t image = 16 * page_size_bytes;
    EXPECT_TRUE(is_image_part({0, image}, image));
    EXPECT_TRUE(is_image_part({image - 4096, 4096}, image));
    EXPECT_FALSE(is_image_part({image, 4096}, image));
    EXPECT_FALSE(is_image_part({4096, image}, image));
    EXPECT_FALSE(is_image_part({0, 0}, image));
    EXPECT_FALSE(is_image_part({1, 4096}, image));
    EXPECT_FALSE(is_image_part({0, 4095}, image));
    EXPECT_FALSE(is_image_part({0 - std::uint64_t{4096}, 8192}, image));
    EXPECT_FALSE(is_image_part({4096, 0 - std::uint64_t{4096}}, image));
}

TEST(PageFrame, AnIdIsThirtyTwoDigits) {
    const ImageId id = to_image_id("000102030405060708090a0b0c0d0eff").value();
    EXPECT_EQ(id[15], std::byte{0xff});
    EXPECT_EQ(to_string(id), "000102030405060708090a0b0c0d0eff");
    for (const char* const text :
         {"", "00", "000102030405060708090a0b0c0d0ef", "000102030405060708090a0b0c0d0efff",
          "000102030405060708090a0b0c0d0efg", "-0102030405060708090a0b0c0d0eff0"})
        EXPECT_FALSE(to_image_id(text)) << text;
}

TEST(PageFrame, LevelsHaveLimits) {
    EXPECT_TRUE(check_zstd_level(0) && check_zstd_level(max_zstd_level));
    EXPECT_FALSE(check_zstd_level(-1));
    EXPECT_FALSE(check_zstd_level(max_zstd_level + 1));
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/elf.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/testing/images.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::TestMap;
using testing::elf_code_offset;
using testing::elf_notes_offset;
using testing::elf_program_32;
using testing::elf_program_64;
using testing::ElfOptions;
using ::testing::HasSubstr;
using testing::ImageBytes;
using testing::make_elf;

constexpr std::uint64_t ram_bytes = 0x200000;

/// An image that is loaded into 2 MiB, which held ones.
class Loaded {
public:
    explicit Loaded(const ImageBytes& image) {
        map_.ram(0, ram_bytes);
        std::ranges::fill(map_.bytes(0), std::byte{0xff});
        const BootFile file{"payload", image.bytes()};
        const std::vector ram{GuestRange::create(GuestAddress{0}, ram_bytes).value()};
        BootSpace space{ram};
        MapView view{*map_.map()};
        const auto elf = read_elf(file);
        result = elf ? load_elf(*elf, file, space, view) : Result<GuestAddress>{elf.error()};
    }
    [[nodiscard]] std::string message() const { return result ? "" : result.error().message(); }
    [[nodiscard]] std::byte at(std::uint64_t address) const { return map_.bytes(0)[address]; }

    Result<GuestAddress> result{Error{Errc::io, "not loaded"}};

private:
    TestMap map_;
};

TEST(Elf, BothWidthsAreLoadedWithZerosBehindTheirBytes) {
    for (const bool is_64_bit : {false, true}) {
        const Loaded loaded{make_elf({.is_64_bit = is_64_bit})};
        ASSERT_EQ(loaded.message(), "");
        EXPECT_EQ(*loaded.result, GuestAddress{0x100020}) << "the PVH entry";
        EXPECT_EQ(loaded.at(0x0fffff), std::byte{0xff});
        EXPECT_EQ(loaded.at(0x100000), std::byte{1});
        EXPECT_EQ(loaded.at(0x1000fe), std::byte{0xff});
        EXPECT_EQ(loaded.at(0x100100), std::byte{0});
        EXPECT_EQ(loaded.at(0x1002ff), std::byte{0});
        EXPECT_EQ(loaded.at(0x100300), std::byte{0xff});
    }
}

TEST(Elf, WithoutThePvhNoteTheEntryIsTheFilesOwn) {
    const Loaded physical{make_elf({.has_pvh_note = false})};
    ASSERT_EQ(physical.message(), "");
    EXPECT_EQ(*physical.result, GuestAddress{0x100010});
    const Loaded is_virtual{make_elf(
        {.has_pvh_note = false, .virtual_address = 0xffffffff81000000, .entry = 0xffffffff81000044})};
    ASSERT_EQ(is_virtual.message(), "");
    EXPECT_EQ(*is_virtual.result, GuestAddress{0x100044});
    EXPECT_THAT(Loaded{make_elf({.has_pvh_note = false, .entry = 0x100300})}.message(),
                HasSubstr("entry 0x100300 is in no segment"));
}

TEST(Elf, ANoteOfAnotherOwnerIsNotThePvhEntry) {
    const ImageBytes image = make_elf({.has_pvh_note = false});
    EXPECT_FALSE(read_elf(BootFile{"payload", image.bytes()}).value().pvh_entry);
}

TEST(Elf, ASegmentOfHeadersAndNotesIsLeftOutWhereThereIsNoRam) {
    const ElfOptions options{.is_64_bit = false, .note_segment_address = 0x08048000};
    const Loaded loaded{make_elf(options)};
    ASSERT_EQ(loaded.message(), "");
    EXPECT_EQ(*loaded.result, GuestAddress{0x100020});
    // One byte that is neither, and it is a segment like every other.
    ImageBytes image = make_elf(options);
    image.put<std::uint8_t>(elf_program_32(3) + 1, 1);
    EXPECT_THAT(Loaded{image}.message(), HasSubstr("payload: segment 2: 0x8048000 to"));
}

TEST(Elf, ASegmentOfNotesInRamIsLoaded) {
    const Loaded loaded{make_elf({.note_segment_address = 0x180000})};
    ASSERT_EQ(loaded.message(), "");
    EXPECT_EQ(loaded.at(0x180001), std::byte{'E'});
}

TEST(Elf, SegmentsOutsideOfRamAreRefusedByTheirNumber) {
    EXPECT_THAT(Loaded{make_elf({.address = 0x1fffff})}.message(),
                HasSubstr("payload: segment 0: 0x1fffff to 0x2002fe is not in RAM"));
    EXPECT_THAT(Loaded{make_elf({.address = 0xf0000000})}.message(), HasSubstr("segment 0"));
}

TEST(Elf, SegmentsThatOverlapAreRefusedByTheirNumbers) {
    ImageBytes image = make_elf({.note_segment_address = 0x1002ff});
    image.put<std::uint8_t>(elf_program_64(3), 1);  // neither a header nor a note
    EXPECT_THAT(Loaded{image}.message(), HasSubstr("payload: segment 2: 0x1002ff to"));
    image.put<std::uint8_t>(elf_program_64(3), 0);
    const Loaded loaded{image};
    EXPECT_EQ(loaded.message(), "") << "headers and notes give way";
    EXPECT_EQ(loaded.at(0x1002ff), std::byte{0});
}

TEST(Elf, ASegmentOfZerosAloneIsNotLeftOut) {
    ImageBytes image = make_elf({});
    for (std::size_t i = 0; i < 0x100; ++i) image.put<std::uint8_t>(elf_code_offset + i, 0);
    image.put<std::uint64_t>(elf_program_64(0) + 40, 0x100)
        .put<std::uint64_t>(elf_program_64(0) + 24, 0xf0000000);
    EXPECT_THAT(Loaded{image}.message(), HasSubstr("segment 0: 0xf0000000"));
}

struct Hostile {
    const char* what;
    std::function<void(ImageBytes&)> spoil;
    const char* message;
};

TEST(Elf, EachHostileFieldIsNamed) {
    const std::vector<Hostile> table{
        {"magic", [](ImageBytes& e) { e.put<std::uint8_t>(0, 0); }, "no ELF file"},
        {"class", [](ImageBytes& e) { e.put<std::uint8_t>(4, 3); }, "ELF class 3"},
        {"order", [](ImageBytes& e) { e.put<std::uint8_t>(5, 2); }, "big-endian"},
        {"type", [](ImageBytes& e) { e.put<std::uint16_t>(16, 1); }, "ELF type 1"},
        {"relocatable", [](ImageBytes& e) { e.put<std::uint16_t>(16, 3); }, "-no-pie"},
        {"machine", [](ImageBytes& e) { e.put<std::uint16_t>(18, 183); }, "machine 183"},
        {"no headers", [](ImageBytes& e) { e.put<std::uint16_t>(56, 0); }, "0 program headers"},
        {"many headers", [](ImageBytes& e) { e.put<std::uint16_t>(56, 129); }, "129 program headers"},
        {"header size", [](ImageBytes& e) { e.put<std::uint16_t>(54, 32); }, "program headers of 32 bytes"},
        {"header offset", [](ImageBytes& e) { e.put<std::uint64_t>(32, ~0ull - 8); }, "program headers: "},
        {"header end", [](ImageBytes& e) { e.put<std::uint64_t>(32, 0x300 - 111); }, "program headers: "},
        {"offset", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 8, 0x301); },
         "segment 0: 256 bytes at offset 0x301"},
        {"offset wraps", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 8, ~0ull); },
         "leave the file"},
        {"file size", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 32, ~0ull); },
         "leave the file"},
        {"memory size", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 40, 0xff); },
         "256 bytes in the file for 255"},
        {"memory wraps", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 24, ~0ull - 8); },
         "wrap around"},
        {"all of memory", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(0) + 40, ~0ull >> 1); },
         "not in RAM"},
        {"nothing",
         [](ImageBytes& e) {
             e.put<std::uint64_t>(elf_program_64(0) + 32, 0).put<std::uint64_t>(elf_program_64(0) + 40, 0);
         },
         "without anything to load"},
        {"notes", [](ImageBytes& e) { e.put<std::uint64_t>(elf_program_64(1) + 32, 0x400); },
         "segment 1: 1024 bytes"},
        {"note name", [](ImageBytes& e) { e.put<std::uint32_t>(elf_notes_offset, ~0u); }, "a note says"},
        {"note value", [](ImageBytes& e) { e.put<std::uint32_t>(elf_notes_offset + 4, 0x100); },
         "a note says"},
        {"entry size", [](ImageBytes& e) { e.put<std::uint32_t>(elf_notes_offset + 24, 3); },
         "PVH entry of 3 bytes"},
        {"entry", [](ImageBytes& e) { e.put<std::uint32_t>(elf_notes_offset + 36, 0x100300); },
         "PVH entry 0x100300 is in no segment"},
        {"cut short", [](ImageBytes& e) { e.resize(elf_code_offset + 0xff); }, "leave the file"},
    };
    for (const Hostile& hostile : table) {
        ImageBytes image = make_elf({});
        hostile.spoil(image);
        EXPECT_THAT(Loaded{image}.message(), HasSubstr(hostile.message)) << hostile.what;
    }
}

TEST(Elf, AnyPrefixIsAnError) {
    const ImageBytes whole = make_elf({});
    for (std::size_t size = 0; size < whole.size(); ++size)
        EXPECT_FALSE(read_elf(BootFile{"payload", whole.bytes().first(size)})) << size;
}

TEST(Elf, WrongBytesNeverWriteOutsideOfTheClaims) {
    std::mt19937_64 random{11};
    for (int round = 0; round < 400; ++round) {
        ImageBytes image = make_elf({.is_64_bit = round % 2 == 0, .note_segment_address = 0x180000});
        for (int i = 0; i < 3; ++i) image.put(random() % 0x180, static_cast<std::uint8_t>(random()));
        const Loaded loaded{image};
        EXPECT_LT(loaded.result ? loaded.result->value() : 0, ram_bytes);
    }
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/presence.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::for_each_fault;
using ::testing::HasSubstr;

PresenceWriter writer_of(std::uint32_t slots, std::uint32_t vectors = 1) {
    return std::move(PresenceWriter::create(slots, vectors).value());
}

PresenceReader reader_of(const PresenceWriter& writer) {
    const Fd pages = std::move(writer.read_only().value());
    return std::move(PresenceReader::map(pages).value());
}

Fd duplicate(const Fd& fd) { return std::move(fd.duplicate().value()); }

/// Pages of a header and nothing else, as docs/protocols/presence.md has them, changed by `change`.
Fd forged_pages(const std::function<void(std::vector<std::uint8_t>&)>& change,
                std::uint64_t size_bytes = presence_bytes, Sealing sealing = Sealing::size) {
    std::vector<std::uint8_t> bytes(8192);
    const std::vector<std::uint8_t> header{'G', 'M', 'P', 'R', 1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0};
    std::ranges::copy(header, bytes.begin());
    change(bytes);
    Fd pages = std::move(create_sparse_memory({.name = "forged", .size_bytes = size_bytes}, sealing).value());
    bytes.resize(size_bytes);
    EXPECT_EQ(::pwrite(pages.view().number(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    return pages;
}

TEST(Presence, BytesAreWhereTheDocumentSaysTheyAre) {
    PresenceWriter writer = writer_of(3, 5);
    writer.set(0, true);
    writer.set(2, true);
    writer.set(2, false);
    std::vector<std::uint8_t> bytes(presence_bytes);
    ASSERT_EQ(::pread(writer.pages().view().number(), bytes.data(), bytes.size(), 0), 8192);
    std::vector<std::uint8_t> wanted(presence_bytes);
    const std::vector<std::uint8_t> header{'G', 'M', 'P', 'R', 1, 0, 0, 0, 3, 0, 0, 0,
                                           5,   0,   0,   0,   3, 0, 0, 0, 0, 0, 0, 0};
    std::ranges::copy(header, wanted.begin());
    wanted[0x40] = 1;
    wanted[0x48] = 2;
    EXPECT_EQ(bytes, wanted);
}

TEST(Presence, OfASlotIsSeenByAReaderAndCounted) {
    PresenceWriter writer = writer_of(2);
    const PresenceReader reader = reader_of(writer);
    EXPECT_FALSE(reader.is_present(1));
    writer.set(1, true);
    EXPECT_TRUE(reader.is_present(1));
    EXPECT_TRUE(writer.is_present(1));
    EXPECT_FALSE(reader.is_present(0));
    EXPECT_EQ(reader.tenancy(1), 1U);
    EXPECT_EQ(reader.changes(), 1U);
    writer.set(1, true);
    EXPECT_EQ(reader.changes(), 1U);
    writer.set(1, false);
    writer.set(1, true);
    EXPECT_EQ(reader.tenancy(1), 3U);
    EXPECT_EQ(reader.changes(), 3U);
}

TEST(Presence, HasMaxSlotsAndNotOneMore) {
    PresenceWriter writer = writer_of(max_presence_slots, 8);
    const PresenceReader reader = reader_of(writer);
    writer.set(max_presence_slots - 1, true);
    EXPECT_EQ(reader.slots(), max_presence_slots);
    EXPECT_EQ(reader.vectors(), 8U);
    EXPECT_TRUE(reader.is_present(max_presence_slots - 1));
    EXPECT_FALSE(PresenceWriter::create(max_presence_slots + 1, 1));
    EXPECT_FALSE(PresenceWriter::create(0, 1));
    EXPECT_TRUE(PresenceWriter::create(1, 2048));
    EXPECT_FALSE(PresenceWriter::create(1, 2049));
}

TEST(Presence, OfASlotThatIsNotThereIsAbsence) {
    const Fd pages = forged_pages([](auto& bytes) { bytes[0x40 + 4 * 4] = 1; });
    const auto reader = PresenceReader::map(pages);
    ASSERT_TRUE(reader) << reader.error().message();
    for (const std::uint32_t slot : {4U, 1024U, 0xffffffffU}) {
        EXPECT_FALSE(reader->is_present(slot)) << slot;
        EXPECT_EQ(reader->tenancy(slot), 0U) << slot;
    }
}

TEST(Presence, PagesOfAReaderCannotBeWritten) {
    const PresenceWriter writer = writer_of(2);
    const Fd pages = std::move(writer.read_only().value());
    EXPECT_EQ(::mmap(nullptr, presence_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pages.view().number(), 0),
              MAP_FAILED);
    EXPECT_EQ(errno, EACCES);
    EXPECT_EQ(::ftruncate(writer.pages().view().number(), 4096), -1);
}

TEST(Presence, GoesOnWithThePagesOfAnEarlierWriterAndCountsTheChange) {
    PresenceWriter first = writer_of(4, 2);
    first.set(3, true);
    const PresenceReader reader = reader_of(first);
    Fd pages = duplicate(first.pages());
    {
        const PresenceWriter gone = std::move(first);
    }
    auto second = PresenceWriter::adopt(std::move(pages), 4, 2);
    ASSERT_TRUE(second) << second.error().message();
    EXPECT_TRUE(second->is_present(3));
    EXPECT_EQ(reader.changes(), 2U);
    second->set(3, false);
    EXPECT_FALSE(reader.is_present(3));
    EXPECT_EQ(reader.tenancy(3), 2U);
}

TEST(Presence, OfOtherSlotsOrVectorsIsNotAdopted) {
    const PresenceWriter writer = writer_of(4, 2);
    EXPECT_FALSE(PresenceWriter::adopt(duplicate(writer.pages()), 5, 2));
    EXPECT_FALSE(PresenceWriter::adopt(duplicate(writer.pages()), 4, 1));
    EXPECT_FALSE(PresenceWriter::adopt(std::move(writer.read_only().value()), 4, 2));
    EXPECT_TRUE(PresenceWriter::adopt(duplicate(writer.pages()), 4, 2));
}

struct Forgery {
    const char* what;
    std::function<void(std::vector<std::uint8_t>&)> change;
};

TEST(Presence, ForgedPagesAreRefused) {
    const std::vector<Forgery> forgeries{
        {"magic", [](auto& bytes) { bytes[0] = 'X'; }},
        {"version 0", [](auto& bytes) { bytes[4] = 0; }},
        {"version 2", [](auto& bytes) { bytes[4] = 2; }},
        {"no slots", [](auto& bytes) { bytes[8] = 0; }},
        {"1025 slots", [](auto& bytes) { bytes[8] = 1, bytes[9] = 4; }},
        {"2^32 - 1 slots", [](auto& bytes) { std::memset(bytes.data() + 8, 0xff, 4); }},
        {"2049 vectors", [](auto& bytes) { bytes[12] = 1, bytes[13] = 8; }},
        {"reserved", [](auto& bytes) { bytes[0x1f] = 1; }}};
    for (const Forgery& forgery : forgeries) {
        EXPECT_FALSE(PresenceReader::map(forged_pages(forgery.change))) << forgery.what;
        EXPECT_FALSE(PresenceWriter::adopt(forged_pages(forgery.change), 4, 2)) << forgery.what;
    }
    const auto unchanged = [](auto&) {};
    EXPECT_TRUE(PresenceReader::map(forged_pages(unchanged)));
    EXPECT_FALSE(PresenceReader::map(forged_pages(unchanged, 4096)));
    EXPECT_FALSE(PresenceReader::map(forged_pages(unchanged, 3 * 4096)));
    const auto unsealed = PresenceReader::map(forged_pages(unchanged, presence_bytes, Sealing::none));
    ASSERT_FALSE(unsealed);
    EXPECT_THAT(unsealed.error().message(), HasSubstr("not sealed"));
}

TEST(Presence, OfWhatIsNoFileIsRefused) {
    int ends[2]{};
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const Fd read_end{ends[0]};
    const Fd write_end{ends[1]};
    EXPECT_FALSE(PresenceReader::map(read_end));
    EXPECT_FALSE(PresenceReader::map(FdView{}));
}

TEST(Presence, CountsNeverFallAndSlotsAreAtLeastAsNewAsTheCount) {
    constexpr std::uint32_t slots = 8;
    constexpr std::uint64_t rounds = 20'000;
    PresenceWriter writer = writer_of(slots);
    const PresenceReader reader = reader_of(writer);
    std::thread writing{[&] {
        for (std::uint64_t round = 0; round < rounds; ++round) {
            const auto slot = static_cast<std::uint32_t>(round % slots);
            writer.set(slot, !writer.is_present(slot));
        }
    }};
    std::uint64_t last = 0;
    while (last < rounds) {
        const std::uint64_t seen = reader.changes();
        std::uint64_t sum = 0;
        for (std::uint32_t slot = 0; slot < slots; ++slot) sum += reader.tenancy(slot);
        ASSERT_GE(seen, last);
        ASSERT_GE(sum, seen);
        last = seen;
    }
    writing.join();
    EXPECT_EQ(last, rounds);
}

TEST(Presence, WhateverFailsNothingIsLeft) {
    EXPECT_GE(for_each_fault([] { return PresenceWriter::create(4, 1); }), 8U);
    const PresenceWriter writer = writer_of(4);
    EXPECT_GE(for_each_fault([&]() -> Result<PresenceWriter> {
                  Fd pages = GM_TRY(writer.pages().duplicate());
                  return PresenceWriter::adopt(std::move(pages), 4, 1);
              }),
              4U);
    EXPECT_EQ(for_each_fault([&] { return writer.read_only(); }), 1U);
    EXPECT_GE(for_each_fault([&] { return PresenceReader::map(writer.pages()); }), 4U);
}

}  // namespace
}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/acpi_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "guestmem/dma/discover/testing/acpi_builder.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"

namespace guestmem::dma {
namespace {

using testing::AcpiBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto* const first = reinterpret_cast<const std::byte*>(text.data());
    return {first, first + text.size()};
}

std::vector<std::string> texts_of(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const Complaint& complaint : facts.complaints)
        texts.push_back(to_string(complaint.origin) + ": " + complaint.text);
    return texts;
}

/// What open_acpi_table() says of a table of signature VIOT with a fixed part of 48 bytes.
struct Opened {
    explicit Opened(std::span<const std::byte> bytes) : table(open_acpi_table(bytes, "VIOT", 48, facts)) {
        complaints = texts_of(facts.so_far());
    }
    TableFacts facts{Source::viot, 4096};
    Result<TableBytes> table;
    std::vector<std::string> complaints;
};

TEST(AcpiTable, FieldsAreLittleEndianAndReadsPastTheEndAreZero) {
    const std::vector<std::byte> bytes = bytes_of("\x01\x02\x03\x04\x05\x06\x07\x08\x09");
    const TableBytes table{bytes};
    EXPECT_EQ(table.get<std::uint8_t>(8), 9);
    EXPECT_EQ(table.get<std::uint16_t>(1), 0x0302);
    EXPECT_EQ(table.get<std::uint32_t>(5), 0x09080706u);
    EXPECT_EQ(table.get<std::uint64_t>(1), 0x0908070605040302u);
    EXPECT_EQ(table.get<std::uint64_t>(2), 0u);
    EXPECT_EQ(table.get<std::uint16_t>(8), 0u);
    EXPECT_EQ(table.get<std::uint8_t>(9), 0u);
    EXPECT_EQ(table.get<std::uint64_t>(std::numeric_limits<std::size_t>::max()), 0u);
}

TEST(AcpiTable, APieceKnowsItsPlaceAndEndsWithItsWhole) {
    const std::vector<std::byte> bytes(20);
    const TableBytes piece = TableBytes{bytes}.part(4, 10);
    EXPECT_EQ(piece.offset(), 4u);
    EXPECT_EQ(piece.size_bytes(), 10u);
    EXPECT_EQ(piece.part(3).offset(), 7u);
    EXPECT_EQ(piece.part(3).size_bytes(), 7u);
    EXPECT_EQ(piece.part(3, 100).size_bytes(), 7u);
    EXPECT_EQ(piece.part(11).size_bytes(), 0u);
    EXPECT_EQ(piece.part(11).offset(), 14u);
    EXPECT_TRUE(piece.has(10, 0));
    EXPECT_FALSE(piece.has(10, 1));
    EXPECT_FALSE(piece.has(1, std::numeric_limits<std::size_t>::max()));
}

TEST(AcpiTable, AGoodTableHasNoComplaints) {
    AcpiBuilder builder{"VIOT"};
    builder.zeros(12);
    const Opened opened{builder.done()};
    ASSERT_TRUE(opened.table);
    EXPECT_EQ(opened.table->size_bytes(), 48u);
    EXPECT_THAT(opened.complaints, ElementsAre());
}

TEST(AcpiTable, AWrongChecksumIsAComplaint) {
    AcpiBuilder builder{"VIOT"};
    builder.zeros(12).done();
    builder.set(40, std::uint8_t{1});
    const Opened opened{builder.bytes()};
    ASSERT_TRUE(opened.table);
    EXPECT_THAT(opened.complaints, ElementsAre(HasSubstr("VIOT offset 0x9: wrong checksum")));
}

TEST(AcpiTable, ALengthThatIsNotTheFilesIsAComplaint) {
    AcpiBuilder builder{"VIOT"};
    builder.zeros(16).done();
    builder.set(4, std::uint32_t{48}).mend();
    const Opened longer{builder.bytes()};
    ASSERT_TRUE(longer.table);
    EXPECT_EQ(longer.table->size_bytes(), 48u);
    EXPECT_THAT(longer.complaints, ElementsAre(HasSubstr("48 bytes, 52 are there")));

    builder.set(4, std::uint32_t{0xffffffff}).mend();
    const Opened shorter{builder.bytes()};
    ASSERT_TRUE(shorter.table);
    EXPECT_EQ(shorter.table->size_bytes(), 52u);
    EXPECT_THAT(shorter.complaints, ElementsAre(HasSubstr("4294967295 bytes, 52 are there")));
}

TEST(AcpiTable, WhatIsNoSuchTableIsAnError) {
    AcpiBuilder builder{"VIOT"};
    builder.zeros(12).done();
    const std::span<const std::byte> bytes{builder.bytes()};
    const Opened cut{bytes.first(47)};
    ASSERT_FALSE(cut.table);
    EXPECT_THAT(cut.table.error().message(), HasSubstr("47 bytes, its fixed part has 48"));
    EXPECT_FALSE(Opened{bytes.first(0)}.table);

    AcpiBuilder other{"IO\x1bT"};
    other.zeros(12).done();
    const Opened another{other.bytes()};
    ASSERT_FALSE(another.table);
    EXPECT_THAT(another.table.error().message(), HasSubstr("its signature is 'IO?T'"));

    builder.set(4, std::uint32_t{47}).mend();
    const Opened short_length{builder.bytes()};
    ASSERT_FALSE(short_length.table);
    EXPECT_THAT(short_length.table.error().message(), HasSubstr("its length field says 47"));
}

TEST(AcpiTable, APathHasNamesOfFourCharacters) {
    using namespace std::string_view_literals;
    const auto path = [](std::string_view text) { return acpi_path(TableBytes{bytes_of(text)}); };
    // What is behind the NUL is not looked at.
    EXPECT_EQ(path("\\_SB.PCI0.I2C\0\x01"sv), "\\_SB_.PCI0.I2C_");
    EXPECT_EQ(path("\\_SB_.GPIO\0"sv), "\\_SB_.GPIO");
    EXPECT_EQ(path("A\0"sv), "A___");
    EXPECT_EQ(path("\\_SB_.GPIO"sv), std::nullopt);
    EXPECT_EQ(path("\0"sv), std::nullopt);
    EXPECT_EQ(path(""sv), std::nullopt);
    EXPECT_EQ(path("\\_SB_.GPIOS\0"sv), std::nullopt);
    EXPECT_EQ(path("\\_SB_..GPIO\0"sv), std::nullopt);
    EXPECT_EQ(path("\\_SB_.\0"sv), std::nullopt);
    EXPECT_EQ(path("\\_SB_.G\x1bO\0"sv), std::nullopt);
    EXPECT_EQ(path("\\\0"sv), std::nullopt);
}

TEST(AcpiTable, APathHasItsLimit) {
    std::string longest = "ABCD";
    while (longest.size() + 5 <= max_acpi_path_bytes) longest += ".ABCD";
    ASSERT_EQ(longest.size(), max_acpi_path_bytes - 1);
    const std::vector<std::byte> fits = bytes_of("\\" + longest + std::string(1, '\0'));
    EXPECT_EQ(acpi_path(TableBytes{fits}), "\\" + longest);
    const std::vector<std::byte> exceeds = bytes_of("\\\\" + longest + std::string(1, '\0'));
    EXPECT_EQ(acpi_path(TableBytes{exceeds}), std::nullopt);
}

TEST(AcpiTable, ComplaintsBehindTheLimitAreCountedOnly) {
    TableFacts facts{Source::dmar, 100};
    std::size_t made = 0;
    for (std::size_t i = 0; i < max_table_complaints + 2; ++i) {
        facts.complain(i, [&] {
            ++made;
            return std::string{"wrong"};
        });
    }
    EXPECT_EQ(made, max_table_complaints);
    const auto found = std::move(facts).finish();
    ASSERT_TRUE(found);
    ASSERT_EQ(found->complaints.size(), max_table_complaints + 1);
    EXPECT_EQ(found->complaints.back().text, "2 more errors are not listed");
}

TEST(AcpiTable, FactsAreAtMostMaxFacts) {
    const CoverFact cover{"u", PciRange{}, {}, {}};
    TableFacts facts{Source::dmar, 4 << 20};
    for (std::size_t i = 0; i < max_facts; ++i) ASSERT_TRUE(facts.add(cover)) << i;
    EXPECT_FALSE(facts.is_full());
    EXPECT_EQ(TableFacts{facts}.finish().value().covers.size(), max_facts);
    EXPECT_FALSE(facts.add(UnitFact{}));
    EXPECT_TRUE(facts.is_full());
    const auto found = std::move(facts).finish();
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code(), Errc::out_of_range);
    EXPECT_THAT(found.error().message(), HasSubstr("65536 entries"));
}

TEST(AcpiTable, SelectorsOfARangeAreFactsToo) {
    ReservedFact range;
    range.who.assign(max_facts - 1, PciRange{});
    TableFacts facts{Source::dmar, 4 << 20};
    EXPECT_TRUE(facts.add(range));
    EXPECT_FALSE(facts.add(UnitFact{}));
    range.who.emplace_back(PciRange{});
    TableFacts others{Source::dmar, 4 << 20};
    EXPECT_FALSE(others.add(range));
}

TEST(AcpiTable, FactsTakeNoMoreMemoryThanTheTableAllows) {
    const std::string name(100, 'n');
    for (const std::size_t table_bytes : {std::size_t{0}, std::size_t{4096}, std::size_t{1} << 18}) {
        TableFacts facts{Source::dmar, table_bytes};
        bool has_room = true;
        for (std::size_t i = 0; has_room; ++i) {
            has_room = facts.add(UnitFact{name, {}, {}, 0, {}, 0, facts.origin(i)}) &&
                       facts.add(CoverFact{name, NamedDevice{name}, {}, facts.origin(i)}) &&
                       facts.add(ReservedFact{{PciRange{}, NamedDevice{name}}, 0, 0, {}, true, true, {}});
        }
        const std::size_t used = testing::bytes_of(facts.so_far());
        const std::size_t limit = table_bytes * memory_per_table_byte + memory_beside_table_bytes;
        EXPECT_LE(used, limit);
        EXPECT_GT(used, limit / 3);
        EXPECT_FALSE(facts.add(UnitFact{}));
    }
}

TEST(AcpiTable, CoversThatCannotFitAreRefusedBeforeTheyAreMade) {
    TableFacts facts{Source::ivrs, 0};
    facts.expect_covers(4096);
    EXPECT_FALSE(facts.is_full());
    EXPECT_GE(facts.so_far().covers.capacity(), 4096u);
    facts.expect_covers(max_facts);
    EXPECT_TRUE(facts.is_full());
    EXPECT_EQ(facts.so_far().covers.capacity(), 4096u);
    TableFacts others{Source::ivrs, 1 << 20};
    others.expect_covers(max_facts + 1);
    EXPECT_TRUE(others.is_full());
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/ivrs.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/testing/acpi_builder.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"
#include "guestmem/dma/discover/testing/iasl.hpp"
#include "guestmem/dma/discover/testing/table_file.hpp"

namespace guestmem::dma {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IaslField;

/// An IVRS table under construction.
class Ivrs : public testing::AcpiBuilder {
public:
    using Entries = std::function<void(Ivrs&)>;

    explicit Ivrs(unsigned info = 0x203000) : AcpiBuilder("IVRS", 2) { u32(info).zeros(8); }

    Ivrs& ivhd(unsigned type, unsigned device, std::uint64_t base, const Entries& entries,
               unsigned segment = 0) {
        const std::size_t start = begin();
        u8(type).u8(0).u16(0).u16(device).u16(0x40).u64(base).u16(segment).u16(0).u32(0);
        if (type != 0x10) zeros(16);
        if (entries) entries(*this);
        end_u16(start, 2);
        return *this;
    }
    Ivrs& ivmd(unsigned type, unsigned flags, unsigned device, unsigned last, std::uint64_t start,
               std::uint64_t bytes, unsigned segment = 0) {
        u8(type).u8(flags).u16(32).u16(device).u16(last).u16(segment).zeros(6);
        return static_cast<Ivrs&>(u64(start).u64(bytes));
    }
    Ivrs& entry(unsigned type, unsigned device) { return static_cast<Ivrs&>(u8(type).u16(device).u8(0)); }
    Ivrs& entry_8(unsigned type, unsigned device, unsigned handle, unsigned source, unsigned variety = 0) {
        return static_cast<Ivrs&>(u8(type).u16(device).u8(0).u8(handle).u16(source).u8(variety));
    }
    Ivrs& acpi_device(unsigned device, std::string_view hid, unsigned format, std::string_view uid) {
        u8(0xf0).u16(device).u8(0).text(hid).zeros(8 - hid.size()).zeros(8);
        return static_cast<Ivrs&>(u8(format).u8(uid.size()).text(uid));
    }
};

SourceFacts read(Ivrs& table) {
    auto facts = read_ivrs(table.done());
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *std::move(facts) : SourceFacts{};
}

std::vector<std::string> texts_of(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const Complaint& complaint : facts.complaints)
        texts.push_back(to_string(complaint.origin) + ": " + complaint.text);
    return texts;
}

/// "0000:00:02.0", "0000:00:02.0 as 0x00a0".
std::vector<std::string> covers_of(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const CoverFact& cover : facts.covers) {
        texts.push_back(to_string(cover.which));
        if (cover.identity.first_id) texts.back() += " as " + std::to_string(*cover.identity.first_id);
        EXPECT_EQ(cover.identity.first_id.has_value(), cover.identity.is_shared);
    }
    return texts;
}

TEST(Ivrs, AUnitHasItsFunctionAndRegisters) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, {}, 3);
    const SourceFacts facts = read(table);
    ASSERT_EQ(facts.units.size(), 1u);
    EXPECT_EQ(facts.units[0].name, "amdvi@0003:00:00.2");
    EXPECT_EQ(facts.units[0].kind, UnitKind::amd_vi);
    EXPECT_EQ(facts.units[0].registers, 0xfeb80000u);
    EXPECT_EQ(facts.units[0].function, pci_address(3, 0, 0, 2));
    EXPECT_EQ(facts.units[0].segment, 3);
    EXPECT_EQ(to_string(facts.units[0].origin), "IVRS offset 0x30");
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Ivrs, EntriesBecomeCovers) {
    Ivrs table;
    table.ivhd(
        0x11, 2, 0xfeb80000,
        [](Ivrs& entries) {
            entries.entry(1, 0x99).entry(2, 0x10).entry(3, 0x100).entry(4, 0x1ff).entry(0, 0xffff);
            entries.entry_8(0x46, 0x18, 0, 0).entry_8(0x47, 0x200, 0, 0).entry_8(0x40, 0xffff, 1, 1);
            entries.entry(4, 0x200);
        },
        1);
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre("0001:00:00.0-0001:ff:1f.7", "0001:00:02.0",
                                              "0001:01:00.0-0001:01:1f.7", "0001:00:03.0", "0001:02:00.0"));
    for (const CoverFact& cover : facts.covers) EXPECT_EQ(cover.unit, "amdvi@0001:00:00.2");
    ASSERT_EQ(facts.covers.size(), 5u);
    EXPECT_EQ(to_string(facts.covers[0].origin), "IVRS offset 0x58");
    EXPECT_EQ(to_string(facts.covers[2].origin), "IVRS offset 0x60");
    EXPECT_EQ(to_string(facts.covers[4].origin), "IVRS offset 0x74");
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Ivrs, AnAliasArrivesWithItsSource) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) {
        entries.entry_8(0x42, 0x300, 0, 0x00a4).entry_8(0x43, 0x400, 0, 0x0500).entry(4, 0x4ff);
    });
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre("0000:03:00.0 as 164", "0000:00:14.4",
                                              "0000:04:00.0-0000:04:1f.7 as 1280", "0000:05:00.0"));
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Ivrs, SpecialEntriesAreInterruptSenders) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) {
        entries.entry_8(0x48, 0, 32, 0xa0, 1).entry_8(0x48, 0, 3, 0xa1, 2);
        entries.entry_8(0x48, 0, 4, 0xa2, 0).entry_8(0x48, 0, 4, 0xa2, 3);
    });
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre("I/O APIC 32", "0000:00:14.0", "HPET 3", "0000:00:14.1"));
    ASSERT_EQ(facts.covers.size(), 4u);
    EXPECT_EQ(std::get<InterruptSender>(facts.covers[0].which).function, pci_address(0, 0, 20, 0));
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("IVRS offset 0x58: special entry of unknown variety 0"),
                            HasSubstr("IVRS offset 0x60: special entry of unknown variety 3")));
}

TEST(Ivrs, DevicesWithoutPciHaveHidAndUid) {
    using namespace std::string_view_literals;
    const auto devices = [](Ivrs& entries) {
        entries.acpi_device(0xa5, "AMDI0020", 2, "ID00").acpi_device(0xa5, "AMDI0040", 0, "");
        entries.acpi_device(0xa6, "AMDI", 1, "\x04\x03\0\0\0\0\0\0"sv).acpi_device(0xa6, "", 0, "");
        entries.acpi_device(0xa7, "AM\x1b", 2, "\x07z").acpi_device(0xa8, "BAD", 1, "123456789");
        entries.entry(2, 0x10);
    };
    Ivrs table;
    table.ivhd(0x40, 2, 0xfeb80000, devices);
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts),
                ElementsAre("AMDI0020:ID00 as 165", "0000:00:14.5", "AMDI0040 as 165", "0000:00:14.5",
                            "AMDI:772 as 166", "0000:00:14.6", "AM?:?z as 167", "0000:00:14.7", "BAD as 168",
                            "0000:00:15.0", "0000:00:02.0"));
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("without a hardware id"), HasSubstr("format 1 and 9 bytes")));

    Ivrs older;
    older.ivhd(0x11, 2, 0xfeb80000, devices);
    EXPECT_THAT(covers_of(read(older)), ElementsAre("0000:00:02.0"));
    EXPECT_THAT(texts_of(read(older)), ::testing::Contains(HasSubstr("only 0x40 has them")).Times(6));
}

TEST(Ivrs, OneFlavorIsReadAndItIsTheLastOfTheFirstUnit) {
    const auto device = [](unsigned id) { return [id](Ivrs& entries) { entries.entry(2, id); }; };
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, device(0x10)).ivhd(0x10, 0x4002, 0xfeb90000, device(0x18));
    table.ivhd(0x11, 2, 0xfeb80000, device(0x20)).ivhd(0x11, 0x4002, 0xfeb90000, device(0x28));
    const SourceFacts eleven = read(table);
    EXPECT_EQ(eleven.units.size(), 2u);
    EXPECT_THAT(covers_of(eleven), ElementsAre("0000:00:04.0", "0000:00:05.0"));
    EXPECT_THAT(texts_of(eleven), ElementsAre());
    // A last type that the first unit does not have is another unit's only.
    table.ivhd(0x40, 0x4002, 0xfeb90000, device(0x30));
    EXPECT_THAT(covers_of(read(table)), ElementsAre("0000:00:04.0", "0000:00:05.0"));
    table.ivhd(0x40, 2, 0xfeb80000, device(0x38));
    EXPECT_THAT(covers_of(read(table)), ElementsAre("0000:00:06.0", "0000:00:07.0"));
    // The order in the table decides, not the number.
    table.ivhd(0x10, 2, 0xfeb80000, device(0x40));
    EXPECT_THAT(covers_of(read(table)), ElementsAre("0000:00:02.0", "0000:00:03.0", "0000:00:08.0"));
}

TEST(Ivrs, AUnitWithoutTheFlavorIsLeftOutAndSaid) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, {}).ivhd(0x10, 0x4002, 0xfeb90000, {}).ivhd(0x11, 2, 0xfeb80000, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("IVRS offset 0x48: the unit at 0000:40:00.2 has a block of "
                                      "type 0x10 and none of type 0x11")));
}

TEST(Ivrs, ARepeatedBlockAddsToItsUnit) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) { entries.entry(2, 0x10); });
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) { entries.entry(2, 0x18); });
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_THAT(covers_of(facts), ElementsAre("0000:00:02.0", "0000:00:03.0"));
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("IVRS offset 0x4c: a second block of type 0x10 for the unit "
                                      "at 0000:00:00.2")));
}

TEST(Ivrs, AUnitAtAnOddAddressIsSaid) {
    Ivrs table;
    table.ivhd(0x10, 2, 0, {}).ivhd(0x10, 3, 0xfeb81000, {});
    const SourceFacts facts = read(table);
    ASSERT_EQ(facts.units.size(), 2u);
    EXPECT_FALSE(facts.units[0].registers);
    EXPECT_EQ(facts.units[1].registers, 0xfeb81000u);
    EXPECT_THAT(texts_of(facts), ElementsAre(HasSubstr("registers at address 0"), HasSubstr("16 KiB")));
}

TEST(Ivrs, RangesThatAreNotClosedOrReversedAreLeftOut) {
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) {
        entries.entry(4, 0x10);                                // was not begun
        entries.entry(3, 0x20).entry(3, 0x30).entry(4, 0x38);  // the first is not closed
        entries.entry(3, 0x48).entry(4, 0x40);                 // reversed
        entries.entry_8(0x43, 0x50, 0, 0x60).entry(2, 0x70);   // not closed in its block
    });
    table.ivhd(0x10, 3, 0xfeb90000, [](Ivrs& entries) { entries.entry(4, 0x58); });
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre("0000:00:06.0-0000:00:07.0", "0000:00:0e.0"));
    EXPECT_THAT(texts_of(facts), ElementsAre(HasSubstr("ends with device id 0x0010 and was not begun"),
                                             HasSubstr("begins with device id 0x0020 and is not closed"),
                                             HasSubstr("from device id 0x0048 down to 0x0040"),
                                             HasSubstr("begins with device id 0x0050 and is not closed"),
                                             HasSubstr("ends with device id 0x0058 and was not begun")));
}

TEST(Ivrs, MemoryIsADirectRange) {
    Ivrs table;
    table.ivmd(0x20, 7, 0, 0, 0x1000, 0x1000);
    table.ivmd(0x21, 3, 0x10, 0xffff, 0x2000, 0x2000, 1);
    table.ivmd(0x22, 5, 0x10, 0x1f, 0x4000, 0x1000);
    table.ivmd(0x21, 8, 0x18, 0, 0x5000, 0x1000);
    table.ivmd(0x21, 1, 0x20, 0, 0xfffffffffffff000, 0x1000);
    const SourceFacts facts = read(table);
    ASSERT_EQ(facts.reserved.size(), 5u);
    const auto is = [&](std::size_t i, std::uint64_t first, std::uint64_t last, bool can_read,
                        bool can_write) {
        const ReservedFact& range = facts.reserved[i];
        EXPECT_EQ(range.kind, ReservedKind::direct);
        EXPECT_EQ(range.first, first) << i;
        EXPECT_EQ(range.last, last) << i;
        EXPECT_EQ(range.can_read, can_read) << i;
        EXPECT_EQ(range.can_write, can_write) << i;
    };
    is(0, 0x1000, 0x1fff, true, true);
    is(1, 0x2000, 0x3fff, true, false);
    is(2, 0x4000, 0x4fff, false, true);
    is(3, 0x5000, 0x5fff, true, true);  // exclusion, whatever its flags
    is(4, 0xfffffffffffff000, 0xffffffffffffffff, false, false);
    EXPECT_TRUE(facts.reserved[0].who.empty());
    ASSERT_EQ(facts.reserved[1].who.size(), 1u);
    EXPECT_EQ(to_string(facts.reserved[1].who[0]), "0001:00:02.0");
    EXPECT_EQ(to_string(facts.reserved[2].who[0]), "0000:00:02.0-0000:00:03.7");
    EXPECT_EQ(to_string(facts.reserved[2].origin), "IVRS offset 0x70");
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Ivrs, MemoryThatCannotBeIsLeftOut) {
    Ivrs table;
    table.ivmd(0x20, 7, 0, 0, 0x1000, 0);
    table.ivmd(0x20, 7, 0, 0, 0xfffffffffffff000, 0x1001);
    table.ivmd(0x22, 7, 0x10, 0x0f, 0x1000, 0x1000);
    table.ivmd(0x21, 6, 0x10, 0, 0x1000, 0x1000);
    EXPECT_TRUE(read(table).reserved.empty());
    EXPECT_THAT(texts_of(read(table)),
                ElementsAre(HasSubstr("it has no memory"), HasSubstr("behind the last address"),
                            HasSubstr("ids 0x0010 to 0x000f: its ids are reversed"),
                            HasSubstr("neither unity nor exclusion")));
    Ivrs odd;
    odd.ivmd(0x20, 7, 0, 0, 0x1001, 0x1000).ivmd(0x20, 7, 0, 0, 0x1000, 0x1001);
    EXPECT_EQ(read(odd).reserved.size(), 2u);
    EXPECT_THAT(texts_of(read(odd)), ElementsAre(HasSubstr("not whole pages"), HasSubstr("not whole pages")));
}

TEST(Ivrs, APlatformHasWidthAndPrebootProtection) {
    Ivrs plain{0x28 << 8};
    EXPECT_EQ(read(plain).platform.address_bits, 40);
    EXPECT_EQ(read(plain).platform.is_protected_from_start, false);
    EXPECT_FALSE(read(plain).platform.has_interrupt_remapping);
    Ivrs guarded{2};
    EXPECT_FALSE(read(guarded).platform.address_bits);
    EXPECT_EQ(read(guarded).platform.is_protected_from_start, true);
    Ivrs wide{64 << 8};
    EXPECT_EQ(read(wide).platform.address_bits, 64);
    Ivrs wrong{65 << 8};
    EXPECT_FALSE(read(wrong).platform.address_bits);
    EXPECT_THAT(texts_of(read(wrong)), ElementsAre("IVRS offset 0x24: a physical address width of 65 bits"));
}

TEST(Ivrs, EntriesOfUnknownLengthEndTheirBlockOnly) {
    for (const unsigned type : {0x80u, 0xc0u, 0xefu, 0xf1u, 0xffu}) {
        Ivrs table;
        table.ivhd(0x10, 2, 0xfeb80000,
                   [&](Ivrs& entries) { entries.entry(2, 0x10).entry(type, 0).entry(2, 1); });
        table.ivhd(0x10, 3, 0xfeb90000, [](Ivrs& entries) { entries.entry(2, 0x18); });
        EXPECT_THAT(covers_of(read(table)), ElementsAre("0000:00:02.0", "0000:00:03.0"));
        EXPECT_THAT(texts_of(read(table)), ElementsAre(HasSubstr("and unknown length with 8 bytes left")));
    }
}

TEST(Ivrs, EntriesThatLeaveTheirBlockAreNotRead) {
    const auto texts = [](const Ivrs::Entries& entries) {
        Ivrs table;
        table.ivhd(0x40, 2, 0xfeb80000, entries).ivhd(0x40, 3, 0xfeb90000, {});
        EXPECT_TRUE(read(table).covers.empty());
        EXPECT_EQ(read(table).units.size(), 2u);
        return texts_of(read(table));
    };
    EXPECT_THAT(texts([](Ivrs& entries) { entries.u8(2).u16(0); }),
                ElementsAre(HasSubstr("type 0x02 and 4 bytes with 3 bytes left")));
    EXPECT_THAT(texts([](Ivrs& entries) { entries.entry(0x46, 0); }),
                ElementsAre(HasSubstr("type 0x46 and 8 bytes with 4 bytes left")));
    EXPECT_THAT(texts([](Ivrs& entries) {
                    entries.acpi_device(1, "HID", 2, "ABC").set(entries.begin() - 4, std::uint8_t{4});
                }),
                ElementsAre(HasSubstr("type 0xf0 and 26 bytes with 25 bytes left")));
    EXPECT_THAT(texts([](Ivrs& entries) { entries.u8(0xf0).zeros(20); }),
                ElementsAre(HasSubstr("type 0xf0 and unknown length with 21 bytes left")));
    EXPECT_THAT(
        texts([](Ivrs& entries) { entries.entry(5, 0).entry_8(0x49, 0, 0, 0); }),
        ElementsAre(HasSubstr("entry of unknown type 0x05"), HasSubstr("entry of unknown type 0x49")));
}

TEST(Ivrs, BlocksThatCannotBeReadAreSteppedOver) {
    Ivrs table;
    table.u8(0x30).u8(0).u16(4).u8(0x50).u8(0).u16(5).u8(0);
    for (const unsigned type : {0x10u, 0x11u, 0x20u, 0x21u, 0x22u, 0x40u})
        table.u8(type).u8(0).u16(23).zeros(19);
    table.ivhd(0x11, 2, 0xfeb80000, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_THAT(
        texts_of(facts),
        ElementsAre(HasSubstr("unknown type 0x30 (4 bytes)"), HasSubstr("unknown type 0x50 (5 bytes)"),
                    HasSubstr("IVHD block of type 0x10 with 23 bytes, it has at least 24"),
                    HasSubstr("IVHD block of type 0x11 with 23 bytes, it has at least 40"),
                    HasSubstr("IVMD block of type 0x20 with 23 bytes, it has at least 32"), HasSubstr("0x21"),
                    HasSubstr("0x22"), HasSubstr("0x40")));
}

TEST(Ivrs, ABlockWithoutAnEndEndsTheReading) {
    for (const unsigned length : {0u, 1u, 3u, 25u, 0xffffu}) {
        Ivrs table;
        table.ivhd(0x10, 2, 0xfeb80000, {});
        table.u8(0x10).u8(0).u16(length).u16(3).zeros(18);
        const SourceFacts facts = read(table);
        EXPECT_EQ(facts.units.size(), 1u) << length;
        EXPECT_THAT(texts_of(facts),
                    ElementsAre(HasSubstr("IVRS offset 0x48: a block of type 0x10 with a length of " +
                                          std::to_string(length) + " bytes")));
    }
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, {}).zeros(3);
    EXPECT_THAT(texts_of(read(table)), ElementsAre(HasSubstr("3 bytes at the end are too few")));
}

TEST(Ivrs, BlocksOfUnitsHaveALimit) {
    Ivrs table;
    for (unsigned i = 0; i < max_ivrs_units; ++i) table.ivhd(0x10, i, 0xfeb80000, {});
    EXPECT_EQ(read(table).units.size(), max_ivrs_units);
    table.ivhd(0x10, 0xffff, 0xfeb80000, {});
    const auto refused = read_ivrs(table.done());
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("more than 256 units"));
}

TEST(Ivrs, AnotherTableIsAnErrorAndOneWithoutUnitsIsNot) {
    testing::AcpiBuilder other{"DMAR"};
    other.zeros(12);
    EXPECT_FALSE(read_ivrs(other.done()));
    EXPECT_FALSE(read_ivrs({}));
    Ivrs empty;
    EXPECT_TRUE(read(empty).units.empty());
    EXPECT_THAT(texts_of(read(empty)), ElementsAre());
}

TEST(Ivrs, AMachineOfFourThousandFunctionsFits) {
    Ivrs table;
    table.ivhd(0x11, 2, 0xfeb80000, [](Ivrs& entries) {
        for (unsigned i = 0; i < 4096; ++i) entries.entry(2, i * 8);
    });
    EXPECT_EQ(read(table).covers.size(), 4096u);
}

TEST(Ivrs, WorstTablesOfAMebibyteStayInTheirMemory) {
    const auto fill = [](const Ivrs::Entries& entry) {
        Ivrs table;
        while (table.begin() < std::size_t{1} << 20) {
            table.ivhd(0x40, 2, 0xfeb80000, [&](Ivrs& entries) {
                const std::size_t start = entries.begin();
                while (entries.begin() - start < 65000) entry(entries);
            });
        }
        return table;
    };
    std::vector<Ivrs> worst;
    worst.push_back(fill([](Ivrs& entries) {  // about as many facts as may be
        entries.acpi_device(1, "HID", 2, std::string(44, 'U'));
    }));
    worst.push_back(fill([](Ivrs& entries) { entries.entry(2, 0x10); }));
    worst.push_back(fill([](Ivrs& entries) { entries.entry_8(0x42, 0x10, 0, 0x20); }));
    worst.push_back(fill([](Ivrs& entries) { entries.entry(3, 0x10); }));
    worst.push_back(fill([](Ivrs& entries) { entries.entry(4, 0x10); }));
    worst.push_back(fill([](Ivrs& entries) { entries.entry(5, 0x10); }));
    worst.push_back(fill([](Ivrs& entries) { entries.acpi_device(1, "HID", 2, std::string(255, 'U')); }));
    worst.emplace_back();
    while (worst.back().begin() < std::size_t{1} << 20) worst.back().ivmd(0x21, 7, 0x10, 0, 0x1000, 0x1000);
    worst.emplace_back();
    worst.back().zeros(1 << 20);
    EXPECT_GT(testing::count_of(read(worst[0])), max_facts / 2);
    for (std::size_t i = 0; i < worst.size(); ++i) {
        const auto facts = read_ivrs(worst[i].done());
        if (!facts) {
            EXPECT_EQ(facts.error().code(), Errc::out_of_range) << facts.error().message();
            continue;
        }
        EXPECT_LE(testing::count_of(*facts), max_facts) << i;
        EXPECT_LE(facts->complaints.size(), max_table_complaints + 1) << i;
        EXPECT_LE(testing::bytes_of(*facts),
                  worst[i].begin() * memory_per_table_byte + memory_beside_table_bytes)
            << i;
    }
}

/// Every unit, cover and range of the facts, compared with what iasl sees at their offsets.
class SecondOpinion {
public:
    SecondOpinion(const std::vector<std::byte>& table, const SourceFacts& facts)
        : fields_(testing::iasl_fields(table)), facts_(facts) {
        EXPECT_FALSE(fields_.empty());
        const std::uint64_t bits = number_at(36, "Virtualization Info") >> 8 & 0x7f;
        EXPECT_EQ(facts.platform.address_bits.value_or(0), bits);
        std::uint64_t block = 0;
        const std::vector<IaslField> fields = fields_;
        for (const IaslField& field : fields) {
            if (field.name == "Subtable Type") block = field.number();
            if (field.name == "Subtable Type" && block < 0x20) compare_unit(field.offset);
            if (field.name == "Subtable Type" && block >= 0x20) compare_range(field.offset, block);
            if (field.name == "Entry Type") compare_entry(field.offset, field.number());
        }
        EXPECT_EQ(units_, facts.units.size());
        EXPECT_EQ(covers_, facts.covers.size());
        EXPECT_EQ(ranges_, facts.reserved.size());
    }

private:
    std::uint64_t number_at(std::size_t offset, std::string_view name) {
        for (const IaslField& field : fields_)
            if (field.offset == offset && field.name == name) return field.number();
        ADD_FAILURE() << "iasl has no " << name << " at " << offset;
        return 0;
    }
    static Origin origin(std::size_t offset) { return TableFacts(Source::ivrs, 0).origin(offset); }

    void compare_unit(std::size_t offset) {
        ASSERT_LT(units_, facts_.units.size());
        const UnitFact& unit = facts_.units[units_++];
        EXPECT_EQ(unit.origin, origin(offset));
        EXPECT_EQ(unit.function->rid, number_at(offset + 4, "DeviceId"));
        EXPECT_EQ(unit.registers.value_or(0), number_at(offset + 8, "Base Address"));
        EXPECT_EQ(unit.segment, number_at(offset + 16, "PCI Segment Group"));
    }
    void compare_range(std::size_t offset, std::uint64_t block) {
        ASSERT_LT(ranges_, facts_.reserved.size());
        const ReservedFact& range = facts_.reserved[ranges_++];
        EXPECT_EQ(range.origin, origin(offset));
        EXPECT_EQ(range.first, number_at(offset + 16, "Start Address"));
        EXPECT_EQ(range.last - range.first + 1, number_at(offset + 24, "Memory Length"));
        EXPECT_EQ(range.who.empty(), block == 0x20);
        if (block == 0x20) return;
        const auto& who = std::get<PciRange>(range.who.at(0));
        EXPECT_EQ(who.first_rid, number_at(offset + 4, "DeviceId"));
        EXPECT_EQ(who.last_rid, block == 0x22 ? number_at(offset + 6, "Auxiliary Data") : who.first_rid);
    }
    void compare_entry(std::size_t offset, std::uint64_t type) {
        const std::uint64_t device = number_at(offset + 1, "Device ID");
        if (type == 3 || type == 0x43 || type == 0x47) range_offset_ = offset;
        if (type == 3 || type == 0x43 || type == 0x47) range_first_ = device;
        if (type == 0x43) source_ = number_at(offset + 5, "Source Used Device ID");
        if (type == 4) compare_cover(range_offset_, range_first_, device, source_);
        if (type == 4) source_ = no_source;
        if (type == 1) compare_cover(offset, 0, 0xffff, no_source);
        if (type == 2 || type == 0x46) compare_cover(offset, device, device, no_source);
        if (type == 0x42)
            compare_cover(offset, device, device, number_at(offset + 5, "Source Used Device ID"));
        if (type != 0x48) return;
        ASSERT_LT(covers_, facts_.covers.size());
        const auto& sender = std::get<InterruptSender>(facts_.covers[covers_++].which);
        const std::uint64_t used = number_at(offset + 5, "Source Used Device ID");
        EXPECT_EQ(sender.id, number_at(offset + 4, "Handle"));
        EXPECT_EQ(sender.function.rid, used);
        EXPECT_EQ(sender.kind == InterruptSender::Kind::hpet, number_at(offset + 7, "Variety") == 2);
        compare_cover(offset, used, used, no_source);
    }
    void compare_cover(std::size_t offset, std::uint64_t first, std::uint64_t last, std::uint64_t source) {
        ASSERT_LT(covers_, facts_.covers.size());
        const CoverFact& cover = facts_.covers[covers_++];
        EXPECT_EQ(cover.origin, origin(offset));
        EXPECT_EQ(std::get<PciRange>(cover.which).first_rid, first);
        EXPECT_EQ(std::get<PciRange>(cover.which).last_rid, last);
        EXPECT_EQ(cover.identity.first_id.value_or(no_source), source);
        if (source != no_source) compare_cover(offset, source, source, no_source);
    }

    static constexpr std::uint32_t no_source = 0xffffffff;
    std::vector<IaslField> fields_;
    const SourceFacts& facts_;
    std::size_t units_ = 0;
    std::size_t covers_ = 0;
    std::size_t ranges_ = 0;
    std::size_t range_offset_ = 0;
    std::uint64_t range_first_ = 0;
    std::uint64_t source_ = no_source;
};

TEST(Ivrs, ALabMachinesTableSaysWhatIaslSees) {
    const std::vector<std::byte> table = testing::table_file("ivrs.aml");
    const auto facts = read_ivrs(table);
    ASSERT_TRUE(facts) << facts.error().message();
    EXPECT_THAT(texts_of(*facts), ElementsAre());
    EXPECT_EQ(facts->platform.address_bits, 40);
    ASSERT_EQ(facts->units.size(), 1u);
    EXPECT_EQ(facts->units[0].name, "amdvi@0000:00:02.0");
    EXPECT_THAT(covers_of(*facts),
                ElementsAre("0000:00:00.0", "0000:00:01.0", "0000:00:02.0", "0000:00:03.0", "0000:00:1f.0",
                            "0000:00:1f.2", "0000:00:1f.3", "I/O APIC 0", "0000:00:14.0"));
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    const SecondOpinion compared{table, *facts};
}

TEST(Ivrs, IaslReadsABuiltTableTheSame) {
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    Ivrs table;
    table.ivhd(0x10, 2, 0xfeb80000, [](Ivrs& entries) {
        entries.entry(3, 0x8).entry(4, 0xfffe).entry_8(0x42, 0x300, 0, 0xa4).entry_8(0x43, 0x400, 0, 0x500);
        entries.entry(4, 0x4ff).entry_8(0x46, 0x600, 0, 0).entry_8(0x47, 0x700, 0, 0).entry(4, 0x7ff);
        entries.entry_8(0x48, 0, 7, 0xa0, 1).entry_8(0x48, 0, 9, 0xa1, 2).entry(2, 0x42);
    });
    table.ivhd(0x10, 0x4002, 0xd0000000, [](Ivrs& entries) { entries.entry(1, 0); }, 5);
    table.ivmd(0x20, 7, 0, 0, 0x1000, 0x1000).ivmd(0x21, 7, 0x10, 0, 0x1000, 0x1000);
    table.ivmd(0x22, 7, 0x10, 0x1f, 0x1000, 0x1000);
    const SourceFacts facts = read(table);
    EXPECT_THAT(texts_of(facts), ElementsAre());
    EXPECT_EQ(facts.covers.size(), 13u);
    const SecondOpinion compared{table.bytes(), facts};
}

TEST(Ivrs, TablesThatIaslCompilesAreReadAsItWroteThem) {
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    std::string text = testing::iasl_template("IVRS");
    // The template's special entry has no variety, its memory no bytes and no unity, its units no address.
    const std::vector<std::byte> plain = testing::iasl_compile(text);
    const auto without = read_ivrs(plain);
    ASSERT_TRUE(without) << without.error().message();
    EXPECT_THAT(texts_of(*without),
                ElementsAre(HasSubstr("at address 0"), HasSubstr("variety 0"), HasSubstr("it has no memory"),
                            HasSubstr("it has no memory"), HasSubstr("a second block of type 0x10")));
    const auto replace = [&](const std::string& from, const std::string& to) {
        ASSERT_NE(text.find(from), std::string::npos) << from;
        for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
            text.replace(at, from.size(), to);
    };
    replace("Variety : 00", "Variety : 02");
    replace("Memory Length : 0000000000000000", "Memory Length : 0000000000010000");
    replace("Flags : 04", "Flags : 05");
    const std::size_t second = text.rfind("DeviceId : 0000");
    ASSERT_NE(second, std::string::npos);
    text.replace(second, 15, "DeviceId : 4002");
    const std::vector<std::byte> table = testing::iasl_compile(text);
    const auto facts = read_ivrs(table);
    ASSERT_TRUE(facts) << facts.error().message();
    EXPECT_EQ(facts->units.size(), 2u);
    EXPECT_EQ(facts->reserved.size(), 2u);
    EXPECT_EQ(facts->covers.size(), 4u);
    const SecondOpinion compared{table, *facts};
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/dmar.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/testing/acpi_builder.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"
#include "guestmem/dma/discover/testing/iasl.hpp"
#include "guestmem/dma/discover/testing/table_file.hpp"

namespace guestmem::dma {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IaslField;

/// A DMAR table under construction; each function adds a structure.
class Dmar : public testing::AcpiBuilder {
public:
    using Scopes = std::function<void(Dmar&)>;

    explicit Dmar(unsigned width = 38, unsigned flags = 1) : AcpiBuilder("DMAR") {
        u8(width).u8(flags).zeros(10);
    }

    Dmar& scope(unsigned type, unsigned id, unsigned bus, std::initializer_list<PciHop> hops) {
        const std::size_t start = begin();
        u8(type).u8(0).u16(0).u8(id).u8(bus);
        for (const PciHop& hop : hops) u8(hop.device).u8(hop.function);
        end_u8(start, 1);
        return *this;
    }
    Dmar& drhd(std::uint64_t base, unsigned flags, const Scopes& scopes, unsigned segment = 0) {
        return structure(0, [&] { u8(flags).u8(0).u16(segment).u64(base); }, scopes);
    }
    Dmar& rmrr(std::uint64_t base, std::uint64_t limit, const Scopes& scopes, unsigned segment = 0) {
        return structure(1, [&] { u16(0).u16(segment).u64(base).u64(limit); }, scopes);
    }
    Dmar& andd(unsigned id, std::string_view name) {
        return structure(4, [&] { zeros(3).u8(id).text(name).u8(0); }, {});
    }
    Dmar& structure(unsigned type, const std::function<void()>& fields, const Scopes& scopes) {
        const std::size_t start = begin();
        u16(type).u16(0);
        fields();
        if (scopes) scopes(*this);
        end_u16(start, 2);
        return *this;
    }
};

SourceFacts read(Dmar& table) {
    auto facts = read_dmar(table.done());
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *std::move(facts) : SourceFacts{};
}

std::vector<std::string> texts_of(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const Complaint& complaint : facts.complaints)
        texts.push_back(to_string(complaint.origin) + ": " + complaint.text);
    return texts;
}

/// "vtd@fed90000 0000:00:02.0 (DMAR offset 0x40)".
std::vector<std::string> covers_of(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const CoverFact& cover : facts.covers)
        texts.push_back(cover.unit + " " + to_string(cover.which) + " (" + to_string(cover.origin) + ")");
    return texts;
}

TEST(Dmar, AUnitHasItsAddressSizeAndSegment) {
    Dmar table;
    table.structure(0, [&] { table.u8(0).u8(0xf3).u16(2).u64(0xfed91000); }, {});
    const SourceFacts facts = read(table);
    ASSERT_EQ(facts.units.size(), 1u);
    EXPECT_EQ(facts.units[0].name, "vtd@fed91000");
    EXPECT_EQ(facts.units[0].kind, UnitKind::vt_d);
    EXPECT_EQ(facts.units[0].registers, 0xfed91000u);
    EXPECT_EQ(facts.units[0].registers_bytes, 8u * 4096);
    EXPECT_EQ(facts.units[0].segment, 2);
    EXPECT_EQ(to_string(facts.units[0].origin), "DMAR offset 0x30");
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Dmar, ScopesBecomeCovers) {
    Dmar table;
    table.drhd(0xfed90000, 0, [](Dmar& scopes) {
        scopes.scope(1, 0, 0, {{2, 0}});
        scopes.scope(2, 0, 0x80, {{28, 4}, {0, 1}});
        scopes.scope(3, 8, 0xf0, {{31, 0}});
        scopes.scope(4, 1, 0xf0, {{15, 7}});
        scopes.scope(5, 3, 0, {{21, 2}});
    });
    table.andd(3, "\\_SB.PCI0.I2C2");
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre("vtd@fed90000 0000:00:02.0 (DMAR offset 0x40)",
                                              "vtd@fed90000 0000:80:1c.4/00.1 and below (DMAR offset 0x48)",
                                              "vtd@fed90000 I/O APIC 8 (DMAR offset 0x52)",
                                              "vtd@fed90000 HPET 1 (DMAR offset 0x5a)",
                                              "vtd@fed90000 \\_SB_.PCI0.I2C2 (DMAR offset 0x62)"));
    ASSERT_EQ(facts.covers.size(), 5u);
    const auto& path = std::get<PciPath>(facts.covers[1].which);
    EXPECT_TRUE(path.is_bridge);
    EXPECT_EQ(path.start_bus, 0x80);
    EXPECT_FALSE(std::get<PciPath>(facts.covers[0].which).is_bridge);
    EXPECT_FALSE(facts.covers[0].identity.first_id);
    EXPECT_EQ(std::get<InterruptSender>(facts.covers[2].which).function, pci_address(0, 0xf0, 31, 0));
    EXPECT_EQ(facts.covers[4].identity.first_id, 21u << 3 | 2);
    EXPECT_TRUE(facts.covers[4].identity.is_shared);
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Dmar, TheRestOfASegmentIsThatOfTheFirstWhoWantsIt) {
    Dmar table;
    table.drhd(0xfed90000, 1, {}).drhd(0xfed91000, 1, {}, 1).drhd(0xfed92000, 1, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 3u);
    EXPECT_THAT(covers_of(facts), ElementsAre("vtd@fed90000 the rest of segment 0000 (DMAR offset 0x30)",
                                              "vtd@fed91000 the rest of segment 0001 (DMAR offset 0x40)"));
    EXPECT_THAT(
        texts_of(facts),
        ElementsAre("DMAR offset 0x50: a second INCLUDE_PCI_ALL in segment 0000: the first one has the "
                    "rest"));
}

TEST(Dmar, APlatformHasWidthRemappingAndOptIn) {
    Dmar good{38, 5};
    EXPECT_EQ(read(good).platform.address_bits, 39);
    EXPECT_EQ(read(good).platform.has_interrupt_remapping, true);
    EXPECT_EQ(read(good).platform.is_protected_from_start, true);
    Dmar plain{63, 2};
    EXPECT_EQ(read(plain).platform.address_bits, 64);
    EXPECT_EQ(read(plain).platform.has_interrupt_remapping, false);
    EXPECT_EQ(read(plain).platform.is_protected_from_start, false);
    for (const unsigned width : {0u, 10u, 64u, 255u}) {
        Dmar wrong{width};
        EXPECT_FALSE(read(wrong).platform.address_bits);
        EXPECT_THAT(texts_of(read(wrong)),
                    ElementsAre(HasSubstr("DMAR offset 0x24: a host address width of")));
    }
    Dmar least{11};
    EXPECT_EQ(read(least).platform.address_bits, 12);
}

TEST(Dmar, AnRmrrIsADirectRangeOfItsDevices) {
    Dmar table;
    table.rmrr(
        0x8b800000, 0x8fffffff,
        [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}).scope(2, 0, 0, {{1, 0}}); }, 1);
    const SourceFacts facts = read(table);
    ASSERT_EQ(facts.reserved.size(), 1u);
    const ReservedFact& range = facts.reserved[0];
    EXPECT_EQ(range.first, 0x8b800000u);
    EXPECT_EQ(range.last, 0x8fffffffu);
    EXPECT_EQ(range.kind, ReservedKind::direct);
    EXPECT_TRUE(range.can_read && range.can_write);
    EXPECT_EQ(to_string(range.origin), "DMAR offset 0x30");
    ASSERT_EQ(range.who.size(), 2u);
    EXPECT_EQ(to_string(range.who[0]), "0001:00:02.0");
    EXPECT_EQ(to_string(range.who[1]), "0001:00:01.0 and below");
    EXPECT_THAT(texts_of(facts), ElementsAre());
}

TEST(Dmar, AUnitAtZeroIsNoneAndKeepsItsDevicesFromTheRest) {
    Dmar table;
    table.drhd(0, 1, [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); });
    table.drhd(0xfed90000, 1, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_THAT(covers_of(facts), ElementsAre(" 0000:00:02.0 (DMAR offset 0x40)",
                                              "vtd@fed90000 the rest of segment 0000 (DMAR offset 0x48)"));
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("DMAR offset 0x30: DRHD with its registers at address 0")));
}

TEST(Dmar, ASecondUnitAtAnAddressIsTheFirst) {
    Dmar table;
    table.drhd(0xfed90000, 0, [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); });
    table.drhd(0xfed90000, 1, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_EQ(facts.covers.size(), 2u);
    EXPECT_THAT(texts_of(facts), ElementsAre(HasSubstr("a second DRHD with its registers at 0xfed90000")));
}

TEST(Dmar, RangesThatCannotBeAreLeftOut) {
    const auto device = [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); };
    Dmar table;
    table.rmrr(0x2000, 0x1fff, device);
    table.rmrr(0x10000, 0x1ffff, {});
    table.rmrr(0x30000, 0x3ffff, [](Dmar& scopes) { scopes.scope(3, 0, 0, {{2, 0}}); });
    const SourceFacts facts = read(table);
    EXPECT_TRUE(facts.reserved.empty());
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("RMRR 0x2000 to 0x1fff: its limit is below its base"),
                            HasSubstr("RMRR 0x10000 to 0x1ffff: is for no device"),
                            HasSubstr("RMRR for a device of scope type 3"), HasSubstr("is for no device")));
}

TEST(Dmar, RangesThatAreOddAreKept) {
    const auto device = [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); };
    Dmar table;
    table.rmrr(0x9000, 0xafff, device);
    table.rmrr(0x1000, 0x8fff, device);
    table.rmrr(0x2000, 0x2fff, device);
    table.rmrr(0x8000, 0x8fff, device);
    table.rmrr(0x10001, 0x10fff, device);
    table.rmrr(0x20000, 0x20ffe, device);
    table.rmrr(0xfffffffffffff000, 0xffffffffffffffff, device);
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.reserved.size(), 7u);
    EXPECT_THAT(
        texts_of(facts),
        ElementsAre(HasSubstr("RMRR 0x10001 to 0x10fff: is not whole pages"),
                    HasSubstr("RMRR 0x20000 to 0x20ffe: is not whole pages"),
                    "DMAR offset 0x70: RMRR 0x2000 to 0x2fff overlaps the one at offset 0x50, 0x1000 to "
                    "0x8fff",
                    "DMAR offset 0x90: RMRR 0x8000 to 0x8fff overlaps the one at offset 0x50, 0x1000 to "
                    "0x8fff"));
}

TEST(Dmar, StructuresThatSayNoFactAreCheckedOnly) {
    const auto port = [](Dmar& scopes) { scopes.scope(2, 0, 0, {{1, 0}}); };
    Dmar table;
    table.drhd(0xfed90000, 1, {});
    table.structure(2, [&] { table.u8(0).u8(0).u16(0); }, port);
    table.structure(3, [&] { table.u32(0).u64(0xfed90000).u32(1); }, {});
    table.structure(5, [&] { table.u8(1).u8(0).u16(0); }, port);
    table.structure(6, [&] { table.u16(0).u16(0); }, port);
    const SourceFacts good = read(table);
    EXPECT_EQ(good.covers.size(), 1u);
    EXPECT_THAT(texts_of(good), ElementsAre());
    table.structure(3, [&] { table.u32(0).u64(0xfed91000).u32(1); }, {});
    table.structure(5, [&] { table.u8(1).u8(0).u16(0).u8(1).u8(9).u32(0); }, {});
    EXPECT_THAT(texts_of(read(table)),
                ElementsAre(HasSubstr("RHSA for registers at 0xfed91000"),
                            HasSubstr("device scope of 9 bytes with 6 left in its SATC")));
}

TEST(Dmar, ScopesThatCannotBeReadAreLeftOut) {
    Dmar table;
    table.drhd(0xfed90000, 0, [](Dmar& scopes) {
        scopes.scope(0, 0, 0, {{2, 0}}).scope(6, 0, 0, {{2, 0}}).scope(1, 0, 0, {});
        scopes.scope(1, 0, 0, {{32, 0}}).scope(1, 0, 0, {{31, 0}, {0, 8}}).scope(3, 0, 0, {{1, 0}, {2, 0}});
        scopes.scope(5, 9, 0, {{2, 0}});
        scopes.u8(1).u8(9).u16(0).u8(0).u8(0).u8(3).u8(0).u8(0xff);
        scopes.scope(1, 0, 0, {{4, 0}});
    });
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre(HasSubstr(" 0000:00:03.0"), HasSubstr(" 0000:00:04.0")));
    EXPECT_THAT(
        texts_of(facts),
        ElementsAre(HasSubstr("unknown type 0"), HasSubstr("unknown type 6"), HasSubstr("without a path"),
                    HasSubstr("through device 32, function 0"), HasSubstr("through device 0, function 8"),
                    HasSubstr("of type 3 behind a bridge"),
                    HasSubstr("of namespace device 9, whose name no ANDD"), HasSubstr("half a step")));
}

TEST(Dmar, AScopeBeyondItsStructureEndsItsScopesOnly) {
    for (const unsigned length : {0u, 5u, 16u, 255u}) {
        Dmar table;
        table.drhd(0xfed90000, 0, [&](Dmar& scopes) {
            scopes.scope(1, 0, 0, {{2, 0}});
            scopes.u8(1).u8(length).u16(0).u8(0).u8(0).u16(3);
        });
        table.drhd(0xfed91000, 1, {});
        const SourceFacts facts = read(table);
        EXPECT_EQ(facts.units.size(), 2u);
        EXPECT_EQ(facts.covers.size(), 2u);
        EXPECT_THAT(texts_of(facts),
                    ElementsAre(HasSubstr("DMAR offset 0x48: device scope of " + std::to_string(length) +
                                          " bytes with 8 left in its DRHD")));
    }
}

TEST(Dmar, NamesOfNamespaceDevicesAreCheckedAndTheFirstCounts) {
    Dmar table;
    table.drhd(0xfed90000, 0, [](Dmar& scopes) { scopes.scope(5, 1, 0, {{2, 0}}).scope(5, 2, 0, {{3, 0}}); });
    table.andd(1, "\\_SB_.GPI0").andd(1, "\\_SB_.GPI1").andd(2, "no path");
    const SourceFacts facts = read(table);
    EXPECT_THAT(covers_of(facts), ElementsAre(HasSubstr("\\_SB_.GPI0")));
    EXPECT_THAT(texts_of(facts), ElementsAre(HasSubstr("of namespace device 2, whose name no ANDD"),
                                             HasSubstr("a second ANDD for namespace device 1"),
                                             HasSubstr("namespace device 2 with a name that is no path")));
}

TEST(Dmar, StructuresThatCannotBeReadAreSteppedOver) {
    Dmar table;
    table.structure(7, [] {}, {}).structure(0xffff, [&] { table.u32(0); }, {});
    for (const unsigned type : {0u, 1u, 2u, 3u, 4u, 5u, 6u}) table.structure(type, [] {}, {});
    table.drhd(0xfed90000, 0, {});
    const SourceFacts facts = read(table);
    EXPECT_EQ(facts.units.size(), 1u);
    EXPECT_THAT(texts_of(facts),
                ElementsAre(HasSubstr("unknown type 7 (4 bytes)"), HasSubstr("unknown type 65535 (8 bytes)"),
                            HasSubstr("DRHD structure of 4 bytes, it has at least 16"), HasSubstr("RMRR"),
                            HasSubstr("ATSR"), HasSubstr("RHSA"), HasSubstr("ANDD"), HasSubstr("SATC"),
                            HasSubstr("SIDP")));
}

TEST(Dmar, AStructureWithoutAnEndEndsTheReading) {
    for (const unsigned length : {0u, 1u, 3u, 17u, 0xffffu}) {
        Dmar table;
        table.drhd(0xfed90000, 0, {});
        table.u16(0).u16(length).u8(0).u8(0).u16(0).u64(0xfed91000);
        const SourceFacts facts = read(table);
        EXPECT_EQ(facts.units.size(), 1u) << length;
        EXPECT_THAT(texts_of(facts),
                    ElementsAre(HasSubstr("DMAR offset 0x40: a structure of type 0 with a length of " +
                                          std::to_string(length) + " bytes")));
    }
    Dmar table;
    table.drhd(0xfed90000, 0, {}).zeros(3);
    EXPECT_THAT(texts_of(read(table)), ElementsAre(HasSubstr("3 bytes at the end are too few")));
}

TEST(Dmar, UnitsHaveALimit) {
    Dmar table;
    for (std::size_t i = 1; i <= max_dmar_units; ++i) table.drhd(i << 12, 0, {});
    EXPECT_EQ(read(table).units.size(), max_dmar_units);
    table.drhd(0xfed90000, 0, {});
    const auto refused = read_dmar(table.done());
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("more than 1024 units"));
}

TEST(Dmar, AnotherTableIsAnError) {
    testing::AcpiBuilder other{"IVRS"};
    other.zeros(12);
    EXPECT_FALSE(read_dmar(other.done()));
    EXPECT_FALSE(read_dmar({}));
}

TEST(Dmar, WorstTablesOfAMebibyteStayInTheirMemory) {
    constexpr std::size_t table_bytes = std::size_t{1} << 20;
    const auto fill = [](const std::function<void(Dmar&)>& add) {
        Dmar table;
        while (table.begin() < table_bytes) add(table);
        return table;
    };
    const auto device = [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); };
    std::vector<Dmar> worst;
    worst.push_back(fill([](Dmar& table) {  // about as many facts as may be
        table.drhd(0xfed90000, 0, [](Dmar& scopes) {
            for (int i = 0; i < 2000; ++i) scopes.u8(1).u8(30).zeros(4).u64(0).u64(0).u64(0);
        });
    }));
    worst.push_back(fill([](Dmar& table) {  // the least scopes, none of which says anything
        table.drhd(0xfed90000, 0, [](Dmar& scopes) {
            for (int i = 0; i < 8000; ++i) scopes.scope(1, 0, 0, {});
        });
    }));
    worst.push_back(fill([](Dmar& table) { table.structure(7, [] {}, {}); }));
    worst.push_back(fill([](Dmar& table) { table.structure(3, [&] { table.zeros(16); }, {}); }));
    worst.push_back(fill([&](Dmar& table) { table.rmrr(0x1000, 0x1fff, device); }));
    worst.push_back(fill([](Dmar& table) {  // one short name, and many who have it
        if (table.begin() < 100) table.andd(0, std::string(max_acpi_path_bytes - 1, '\\') + "A");
        table.drhd(0xfed90000, 0, [](Dmar& scopes) {
            for (int i = 0; i < 1000; ++i) scopes.scope(5, 0, 0, {{2, 0}});
        });
    }));
    worst.push_back(fill([](Dmar& table) { table.zeros(1 << 16); }));
    EXPECT_GT(testing::count_of(read(worst[0])), max_facts / 2);
    for (std::size_t i = 0; i < worst.size(); ++i) {
        const auto facts = read_dmar(worst[i].done());
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
        EXPECT_EQ(facts.platform.address_bits, number_at(36, "Host Address Width") + 1);
        EXPECT_EQ(facts.platform.has_interrupt_remapping, (number_at(37, "Flags") & 1) != 0);
        compare_structures();
        EXPECT_EQ(units_, facts.units.size());
        EXPECT_EQ(covers_, facts.covers.size());
        EXPECT_EQ(ranges_, facts.reserved.size());
    }

private:
    const IaslField& field_at(std::size_t offset, std::string_view name) {
        static const IaslField none;
        for (const IaslField& field : fields_)
            if (field.offset == offset && field.name == name) return field;
        ADD_FAILURE() << "iasl has no " << name << " at " << offset;
        return none;
    }
    std::uint64_t number_at(std::size_t offset, std::string_view name) {
        return field_at(offset, name).number();
    }

    void compare_structures() {
        const std::vector<IaslField> fields = fields_;
        std::uint64_t structure = 0;
        std::uint64_t segment = 0;
        for (const IaslField& field : fields) {
            if (field.name == "Subtable Type") structure = field.number();
            if (field.name == "PCI Segment Number") segment = field.number();
            if (field.name == "Subtable Type" && structure == 0) compare_unit(field.offset);
            if (field.name == "Subtable Type" && structure == 1) compare_range(field.offset);
            if (field.name != "Device Scope Type") continue;
            if (structure == 0) compare_cover(field.offset, segment);
            if (structure == 1) ++scopes_of_ranges_;
        }
        std::size_t who = 0;
        for (const ReservedFact& range : facts_.reserved) who += range.who.size();
        EXPECT_EQ(scopes_of_ranges_, who);
    }
    void compare_unit(std::size_t offset) {
        ASSERT_LT(units_, facts_.units.size());
        const UnitFact& unit = facts_.units[units_++];
        EXPECT_EQ(unit.origin, TableFacts(Source::dmar, 0).origin(offset));
        EXPECT_EQ(unit.segment, number_at(offset + 6, "PCI Segment Number"));
        EXPECT_EQ(unit.registers, number_at(offset + 8, "Register Base Address"));
        if ((number_at(offset + 4, "Flags") & 1) == 0) return;
        EXPECT_THAT(covers_of(facts_), Contains(HasSubstr(unit.name + " the rest of")));
        ++covers_;
    }
    void compare_range(std::size_t offset) {
        ASSERT_LT(ranges_, facts_.reserved.size());
        const ReservedFact& range = facts_.reserved[ranges_++];
        EXPECT_EQ(range.origin, TableFacts(Source::dmar, 0).origin(offset));
        EXPECT_EQ(range.first, number_at(offset + 8, "Base Address"));
        EXPECT_EQ(range.last, number_at(offset + 16, "End Address (limit)"));
    }
    void compare_cover(std::size_t offset, std::uint64_t segment) {
        const Origin origin = TableFacts(Source::dmar, 0).origin(offset);
        const auto found =
            std::ranges::find(facts_.covers, origin, [](const CoverFact& cover) { return cover.origin; });
        ASSERT_NE(found, facts_.covers.end()) << offset;
        ++covers_;
        const std::uint64_t type = number_at(offset, "Device Scope Type");
        const std::uint64_t bus = number_at(offset + 5, "PCI Bus Number");
        const std::string path = field_at(offset + 6, "PCI Path").value;
        const std::uint64_t device = std::stoul(path.substr(0, 2), nullptr, 16);
        const std::uint64_t function = std::stoul(path.substr(3, 2), nullptr, 16);
        if (type == 3 || type == 4) {
            const auto& sender = std::get<InterruptSender>(found->which);
            EXPECT_EQ(sender.kind == InterruptSender::Kind::hpet, type == 4);
            EXPECT_EQ(sender.id, number_at(offset + 4, "Enumeration ID"));
            EXPECT_EQ(sender.function.rid, bus << 8 | device << 3 | function);
        } else {
            const auto& hops = std::get<PciPath>(found->which);
            EXPECT_EQ(hops.is_bridge, type == 2);
            EXPECT_EQ(hops.start_bus, bus);
            EXPECT_EQ(hops.segment, segment);
            ASSERT_EQ(hops.hops.size(), 1u);
            EXPECT_EQ(hops.hops[0].device, device);
            EXPECT_EQ(hops.hops[0].function, function);
        }
    }

    std::vector<IaslField> fields_;
    const SourceFacts& facts_;
    std::size_t units_ = 0;
    std::size_t covers_ = 0;
    std::size_t ranges_ = 0;
    std::size_t scopes_of_ranges_ = 0;
};

TEST(Dmar, ALabMachinesTableSaysWhatIaslSees) {
    const std::vector<std::byte> table = testing::table_file("dmar.aml");
    const auto facts = read_dmar(table);
    ASSERT_TRUE(facts) << facts.error().message();
    EXPECT_THAT(texts_of(*facts), ElementsAre());
    EXPECT_EQ(facts->platform.address_bits, 39);
    EXPECT_EQ(facts->units.size(), 1u);
    EXPECT_EQ(facts->covers.size(), 10u);
    EXPECT_EQ(covers_of(*facts)[9], "vtd@fed90000 0000:08:00.0 and below (DMAR offset 0x88)");
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    const SecondOpinion compared{table, *facts};
}

TEST(Dmar, IaslReadsABuiltTableTheSame) {
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    Dmar table{45, 1};
    table.drhd(0xfed90000, 0, [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}); });
    table.drhd(
        0xd00fed91000, 1,
        [](Dmar& scopes) {
            scopes.scope(3, 2, 0xf0, {{31, 0}}).scope(4, 7, 0xf1, {{30, 6}}).scope(2, 0, 0x40, {{3, 1}});
        },
        0x12);
    table.rmrr(0x8b800000, 0x8fffffff,
               [](Dmar& scopes) { scopes.scope(1, 0, 0, {{2, 0}}).scope(1, 0, 0, {{20, 0}}); });
    table.structure(2, [&] { table.u8(1).u8(0).u16(0); }, {});
    table.structure(3, [&] { table.u32(0).u64(0xfed90000).u32(1); }, {});
    const SourceFacts facts = read(table);
    EXPECT_THAT(texts_of(facts), ElementsAre());
    EXPECT_EQ(facts.covers.size(), 5u);
    const SecondOpinion compared{table.bytes(), facts};
}

TEST(Dmar, TablesThatIaslCompilesAreReadAsItWroteThem) {
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    std::string text = testing::iasl_template("DMAR");
    const auto replace = [&](std::string_view from, std::string_view to) {
        const std::size_t at = text.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        text.replace(at, from.size(), to);
    };
    // The template's unit is at address 0.
    const std::vector<std::byte> plain = testing::iasl_compile(text);
    const auto without = read_dmar(plain);
    ASSERT_TRUE(without) << without.error().message();
    EXPECT_TRUE(without->units.empty());
    EXPECT_THAT(texts_of(*without), ElementsAre(HasSubstr("DRHD with its registers at address 0")));
    replace("Register Base Address : 0000000000000000", "Register Base Address : 00000000FED93000");
    replace("Base Address : 0000000000000000\n", "Base Address : 00000000000E0000\n");
    replace("End Address (limit) : 0000000000000FFF", "End Address (limit) : 00000000000EFFFF");
    const std::vector<std::byte> table = testing::iasl_compile(text);
    const auto facts = read_dmar(table);
    ASSERT_TRUE(facts) << facts.error().message();
    EXPECT_EQ(facts->units.size(), 1u);
    EXPECT_EQ(facts->reserved.size(), 1u);
    const SecondOpinion compared{table, *facts};
}

}  // namespace
}  // namespace guestmem::dma

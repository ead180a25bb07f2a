// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/iort.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/testing/fact_texts.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"
#include "guestmem/dma/discover/testing/iasl.hpp"
#include "guestmem/dma/discover/testing/iort_builder.hpp"

namespace guestmem::dma {
namespace {

using testing::complaint_texts;
using testing::cover_texts;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IortBuilder;
using ::testing::IsEmpty;
using testing::reserved_texts;
using testing::unit_texts;

constexpr std::uint64_t is_single = 1;

std::vector<std::byte> sample() {
    std::ifstream file{GUESTMEM_SOURCE "/guestmem/dma/discover/testing/tables/iort.aml", std::ios::binary};
    const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

SourceFacts read(std::span<const std::byte> table) {
    auto facts = read_iort(table);
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *facts : SourceFacts{};
}

TEST(IortTest, QemusTableWithItsCountErrorIsReadAsTheKernelReadsIt) {
    const SourceFacts facts = read(sample());
    ASSERT_EQ(facts.units.size(), 1U);
    EXPECT_EQ(facts.units[0].name, "smmuv3@9050000");
    EXPECT_EQ(facts.units[0].kind, UnitKind::smmu_v3);
    EXPECT_EQ(facts.units[0].registers, 0x9050000U);
    EXPECT_EQ(to_string(facts.units[0].origin), "IORT offset 0x48");
    EXPECT_THAT(cover_texts(facts), ElementsAre("0000:00:00.0-0000:00:1f.7 -> smmuv3@9050000 0x0",
                                                "0000:01:00.0-0000:ff:1f.7 -> none"));
    EXPECT_EQ(to_string(facts.covers[0].origin), "IORT offset 0xc4");
    EXPECT_EQ(to_string(facts.covers[1].origin), "IORT offset 0xd8");
    EXPECT_THAT(complaint_texts(facts),
                ElementsAre(HasSubstr("the id 0x100, with which another one begins")));
}

TEST(IortTest, EachSmmuHasItsKindAndItsRegisters) {
    IortBuilder iort;
    for (std::uint32_t model = 0; model <= 5; ++model) iort.smmu_v2(0x10000ULL * (model + 1), model);
    iort.smmu_v3(0x123450000000);
    iort.counters(0x700000, 48);
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(unit_texts(facts), ElementsAre("smmuv2@10000", "smmuv2@20000", "smmuv2@30000", "smmuv2@40000",
                                               "smmuv2@50000", "smmuv2@60000", "smmuv3@123450000000"));
    EXPECT_EQ(facts.units[0].kind, UnitKind::smmu_v2);
    EXPECT_EQ(facts.units[0].registers_bytes, 0x10000U);
    EXPECT_EQ(facts.units[6].registers_bytes, 0U);
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST(IortTest, NamedComponentsAreWhereTheirMappingsLead) {
    IortBuilder iort;
    const auto its = iort.its();
    const auto v3 = iort.smmu_v3(0x1000000, {{0, 0xffff, 0, its}});
    const auto v2 = iort.smmu_v2(0x2000000);
    iort.component("\\_SB.DMA0", {{0, 0, 0x77, v3, is_single}});
    iort.component("\\_SB_.NET0", {{0, 2, 0x40, v2}, {9, 0, 0x99, v2}});
    iort.component("\\_SB_.SERI", {{0, 0, 5, its, is_single}});
    iort.component("\\_SB_.BOTH", {{0, 0, 5, its, is_single}, {0, 0, 6, v3, is_single}});
    iort.component("\\_SB_.NONE", {});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(
        cover_texts(facts),
        ElementsAre("\\_SB_.DMA0 -> smmuv3@1000000 0x77 shared",
                    "\\_SB_.NET0 -> smmuv2@2000000 0x40 shared ~0x1",
                    "\\_SB_.NET0 -> smmuv2@2000000 0x42 shared", "\\_SB_.NET0 -> smmuv2@2000000 0x99 shared",
                    "\\_SB_.SERI -> none", "\\_SB_.BOTH -> smmuv3@1000000 0x6 shared"));
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST(IortTest, IdsGoThroughSeveralNodesAndAreCutByEach) {
    IortBuilder iort;
    const auto its = iort.its();
    const auto smmu = iort.smmu_v3(0x1000000);
    const auto inner =
        iort.root_complex(7, {{0x100, 0x7f, 0x1000, smmu}, {0x180, 0x7f, 0, its}, {0x200, 0, 9, smmu, 0}});
    iort.root_complex(
        0, {{0, 0xff, 0x100, inner}, {0x100, 0xff, 0x110, inner, 0}, {0x800, 0xff, 0x4000, inner}});
    iort.root_complex(1, {{0, 0, 0x155, inner, is_single}});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(
        cover_texts(facts),
        ElementsAre("0007:01:00.0-0007:01:0f.7 -> smmuv3@1000000 0x1000", "0007:01:10.0-0007:01:1f.7 -> none",
                    "0007:02:00.0 -> smmuv3@1000000 0x9",
                    "0000:00:00.0-0000:00:0f.7 -> smmuv3@1000000 0x1000", "0000:00:10.0-0000:00:1f.7 -> none",
                    "0000:01:00.0-0000:01:0d.7 -> smmuv3@1000000 0x1010", "0000:01:0e.0-0000:01:1d.7 -> none",
                    "0000:01:1e.0 -> smmuv3@1000000 0x9",
                    "0001:00:00.0-0001:ff:1f.7 -> smmuv3@1000000 0x1055 shared"));
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST(IortTest, LoopsEndWithAComplaint) {
    IortBuilder iort;
    const auto first = iort.root_complex(0, {{0, 0xffff, 0, 48}});
    EXPECT_EQ(first, 48U);
    iort.component("\\_SB_.DMA0", {{0, 0, 1, first, is_single}});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(facts.covers, IsEmpty());
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("loop"), HasSubstr("loop")));
}

TEST(IortTest, ForksOfForksAreBounded) {
    IortBuilder iort;
    const auto its = iort.its();
    std::size_t next = its;
    // Each layer cuts what comes into 500 pieces and gives all of them to the next layer's first id.
    for (std::uint32_t layer = 0; layer < 7; ++layer) {
        IortBuilder::Maps maps;
        for (std::uint32_t i = 0; i < 500; ++i) maps.push_back({i * 4, 3, 0, next});
        next = iort.component("\\_SB_.LAYR", maps);
    }
    iort.root_complex(0, {{0, 0xffff, 0, next}});
    const auto facts = read_iort(iort.done());
    if (facts) {
        EXPECT_THAT(complaint_texts(*facts), ::testing::Contains(HasSubstr("too often")));
        EXPECT_LT(facts->covers.size(), 20'000U);
    }
}

TEST(IortTest, ReservedMemoryIsOfTheDevicesWhoseStreamIdsItNames) {
    IortBuilder iort;
    const auto smmu = iort.smmu_v3(0x1000000);
    const auto other = iort.smmu_v3(0x2000000);
    iort.root_complex(0, {{0, 0xff, 0x1000, smmu}, {0x100, 0xff, 0x1000, other}});
    iort.root_complex(1, {{0, 0, 0x1008, smmu, is_single}});
    iort.component("\\_SB_.DMA0", {{0, 0, 0x77, smmu, is_single}});
    iort.reserved(0, {{0x80000000, 0x10000}, {0x90000000, 0x20000}},
                  {{0, 3, 0x1008, smmu}, {0, 0, 0x77, smmu}});
    iort.reserved(1, {{0xa0000000, 0x10000}}, {{0, 0, 0x10ff, other}});
    iort.reserved(0, {{0xb0000000, 0x10000}}, {{0, 1, 0x5000, smmu}});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(
        reserved_texts(facts),
        ElementsAre("0x80000000-0x8000ffff direct: 0000:00:01.0-0000:00:01.3 0001:00:00.0-0001:ff:1f.7 "
                    "\\_SB_.DMA0",
                    "0x90000000-0x9001ffff direct: 0000:00:01.0-0000:00:01.3 0001:00:00.0-0001:ff:1f.7 "
                    "\\_SB_.DMA0",
                    "0xa0000000-0xa000ffff direct-relaxable: 0000:01:1f.7",
                    "0xb0000000-0xb000ffff direct: stream ids 0x5000-0x5001 of smmuv3@1000000"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("no device has the stream ids 0x5000-0x5001")));
}

TEST(IortTest, ReservedMemoryThatIsNoneIsAComplaint) {
    IortBuilder iort;
    const auto its = iort.its();
    const auto smmu = iort.smmu_v3(0x1000000);
    iort.component("\\_SB_.DMA0", {{0, 0, 0x77, smmu, is_single}});
    const IortBuilder::Maps good{{0, 0, 0x77, smmu}};
    iort.reserved(0, {{0x1000, 0}, {0xfffffffffffff000, 0x2000}, {0xfffffffffffff000, 0x1000}}, good);
    iort.reserved(0, {{0x1000, 0x1000}}, {});
    iort.reserved(0, {{0x1000, 0x1000}}, {{0, 0, 0x77, its}});
    const auto cut = iort.reserved(0, {{0x2000, 0x1000}}, good);
    iort.table().set(cut + 20, std::uint32_t{1000});
    const SourceFacts facts = read(iort.done());
    // A count that is too large reads the mapping as a second range, as far as the node goes.
    ASSERT_GE(facts.reserved.size(), 2U);
    EXPECT_EQ(reserved_texts(facts)[0], "0xfffffffffffff000-0xffffffffffffffff direct: \\_SB_.DMA0");
    EXPECT_EQ(reserved_texts(facts)[1], "0x2000-0x2fff direct: \\_SB_.DMA0");
    EXPECT_GE(facts.complaints.size(), 5U);
}

TEST(IortTest, ManyDevicesOfOneRangeAreTakenAsAll) {
    for (const std::size_t count : {max_rmr_devices, max_rmr_devices + 1}) {
        IortBuilder iort;
        const auto smmu = iort.smmu_v3(0x1000000);
        std::size_t left = count;
        for (std::uint32_t segment = 0; left > 0; ++segment) {
            IortBuilder::Maps maps;
            for (std::uint32_t i = 0; i < 2000 && left > 0; ++i, --left) maps.push_back({i, 0, 5, smmu});
            iort.root_complex(segment, maps);
        }
        iort.reserved(0, {{0x1000, 0x1000}}, {{0, 0, 5, smmu}});
        const SourceFacts facts = read(iort.done());
        ASSERT_EQ(facts.reserved.size(), 1U);
        EXPECT_EQ(facts.reserved[0].who.size(), count <= max_rmr_devices ? count : 0);
    }
}

TEST(IortTest, WrongNodesAreComplaintsAndTheOthersAreRead) {
    IortBuilder iort;
    const auto its = iort.its();
    const auto smmu = iort.smmu_v3(0x1000000);
    iort.smmu_v3(0);
    iort.smmu_v2(0x1000000);
    iort.smmu_v3(0x3000000, {{0, 0, 0, its}}, 16);  // its own mapping 0 is there
    const auto odd = iort.smmu_v3(0x4000000, {}, 16);
    iort.node(9, 24, {});
    iort.node(2, 4, {});
    const auto outside = iort.root_complex(3, {{0, 0, 0, smmu}});
    iort.table().set(outside + 12, std::uint32_t{0x10000});
    const auto long_list = iort.root_complex(4, {{0, 0, 0x10, smmu}});
    iort.table().set(long_list + 8, std::uint32_t{0xffffffff});
    iort.root_complex(4, {{0, 0xffff, 0, smmu}});
    iort.root_complex(0x10000, {{0, 0xffff, 0, smmu}});
    iort.root_complex(5, {{0, 7, 0, smmu + 4}, {8, 7, 0, odd}, {0x20000, 1, 0, smmu}});
    iort.component("no path\x1b", {{0, 0, 3, smmu, is_single}});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(unit_texts(facts), ElementsAre("smmuv3@1000000", "smmuv3@3000000", "smmuv3@4000000"));
    EXPECT_THAT(cover_texts(facts), ElementsAre("0004:00:00.0 -> smmuv3@1000000 0x10",
                                                "0005:00:01.0-0005:00:01.7 -> smmuv3@4000000 0x0",
                                                "no path? -> smmuv3@1000000 0x3 shared"));
    EXPECT_EQ(facts.complaints.size(), 12U) << ::testing::PrintToString(complaint_texts(facts));
}

TEST(IortTest, ATableThatIsCutOffIsReadAsFarAsItGoes) {
    const std::vector<std::byte> whole = sample();
    for (std::size_t size = 0; size < whole.size(); ++size) {
        const std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
        const auto facts = read_iort(part);
        ASSERT_EQ(facts.has_value(), size >= 48) << size;
        if (facts) {
            EXPECT_THAT(facts->complaints, ::testing::Not(IsEmpty()));
        }
    }
    std::vector<std::byte> other = whole;
    other[0] = std::byte{'X'};
    EXPECT_FALSE(read_iort(other));
}

TEST(IortTest, TwoNodesOfOneSmmuAreOneUnit) {
    IortBuilder iort;
    iort.smmu_v3(0x1000000);
    const auto again = iort.smmu_v3(0x1000000);
    iort.component(std::string_view{"\0", 1}, {{0, 0, 3, again, is_single}});
    const SourceFacts facts = read(iort.done());
    EXPECT_THAT(unit_texts(facts), ElementsAre("smmuv3@1000000"));
    EXPECT_THAT(cover_texts(facts), ElementsAre("component at 0xb8 -> smmuv3@1000000 0x3 shared"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("taken as one"), HasSubstr("no path")));
}

// What a pass over all of it would make quadratic, and what takes the most memory for its bytes.
TEST(IortTest, WorstTablesOfAMebibyteStayInTheirMemory) {
    const std::function<void(IortBuilder&, std::uint32_t)> works[] = {
        [](IortBuilder& iort, std::uint32_t i) { iort.smmu_v3(0x123400000000 + i); },
        [](IortBuilder& iort, std::uint32_t i) {
            IortBuilder::Maps maps;
            for (std::uint32_t at = 0; at < 3000; ++at) maps.push_back({at, 0, at, 48});
            iort.root_complex(i, maps);
        },
        [](IortBuilder& iort, std::uint32_t i) {
            iort.component("\\_SB_.DMA0.DMA1.DMA2.DMA3.DMA4", {{0, 0, i, 48, is_single}});
        },
        [](IortBuilder& iort, std::uint32_t) {
            IortBuilder::Maps maps(3000, {1, 0xfffffffc, 1, 48});
            iort.component("\\_SB_.DMA0", maps);
        },
        [](IortBuilder& iort, std::uint32_t) {
            iort.reserved(0, std::vector<IortBuilder::Range>(1500, {0x1000, 0x1000}),
                          IortBuilder::Maps(1500, {0, 0, 0, 48}));
        },
    };
    bool is_any_taken = false;
    for (const auto& work : works) {
        IortBuilder iort;
        iort.smmu_v3(0x999900000000);
        for (std::uint32_t i = 0; iort.size_bytes() < (1 << 20); ++i) work(iort, i);
        const auto facts = read_iort(iort.done());
        if (!facts) continue;
        is_any_taken = true;
        EXPECT_LE(testing::bytes_of(*facts),
                  iort.size_bytes() * memory_per_table_byte + memory_beside_table_bytes);
        EXPECT_LE(testing::count_of(*facts), max_facts);
    }
    EXPECT_TRUE(is_any_taken);
}

TEST(IortTest, NodesThatDoNotAddUpEndTheReading) {
    for (const unsigned length : {0U, 15U, 0x4000U}) {
        IortBuilder iort;
        iort.smmu_v3(0x1000000);
        const auto bad = iort.its();
        iort.smmu_v3(0x2000000);
        iort.table().set(bad + 1, static_cast<std::uint16_t>(length));
        const SourceFacts facts = read(iort.done());
        EXPECT_THAT(unit_texts(facts), ElementsAre("smmuv3@1000000"));
        EXPECT_EQ(facts.complaints.size(), 1U);
    }
    IortBuilder iort;
    iort.smmu_v3(0x1000000);
    iort.done();
    const SourceFacts facts = read(iort.table().set(36, 7U).set(40, 48U).done());
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("7 nodes, 1 are there")));
    EXPECT_THAT(complaint_texts(read(iort.table().set(40, 47U).done())),
                ElementsAre(HasSubstr("in the header")));
}

TEST(IortTest, IaslFindsTheSameFields) {
    if (!testing::has_iasl()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    IortBuilder iort;
    const auto its = iort.its();
    const auto smmu = iort.smmu_v3(0x123450000, {{0, 0xffff, 0, its}});
    const auto old = iort.smmu_v2(0x22220000);
    iort.root_complex(3, {{0x10, 0x2f, 0x1110, smmu}});
    iort.component("\\_SB_.DMA0", {{0, 0, 0x77, old, is_single}});
    for (const std::vector<std::byte>& table : {sample(), iort.done()}) {
        const SourceFacts facts = read(table);
        const auto fields = testing::iasl_fields(table);
        ASSERT_FALSE(fields.empty());
        std::vector<std::string> bases;
        std::vector<std::string> outputs;
        for (const testing::IaslField& field : fields) {
            const bool is_unit = std::ranges::any_of(facts.units, [&](const UnitFact& unit) {
                return to_string(unit.origin) == fmt::format("IORT offset {:#x}", field.offset - 16);
            });
            if (field.name == "Base Address" && is_unit)
                bases.push_back(fmt::format("{:#x}", field.number()));
            for (const CoverFact& cover : facts.covers)
                if (field.name == "Output Base" && !cover.unit.empty() &&
                    to_string(cover.origin) == fmt::format("IORT offset {:#x}", field.offset - 8))
                    outputs.push_back(fmt::format("{:#x}", field.number()));
        }
        std::vector<std::string> ours;
        for (const UnitFact& unit : facts.units) ours.push_back(fmt::format("{:#x}", *unit.registers));
        EXPECT_EQ(ours, bases);
        ours.clear();
        for (const CoverFact& cover : facts.covers)
            if (!cover.unit.empty()) ours.push_back(fmt::format("{:#x}", *cover.identity.first_id));
        EXPECT_EQ(ours, outputs);
        EXPECT_FALSE(ours.empty());
    }
}

}  // namespace
}  // namespace guestmem::dma

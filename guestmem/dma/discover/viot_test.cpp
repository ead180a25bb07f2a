// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/viot.hpp"

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
#include "guestmem/dma/discover/testing/viot_builder.hpp"

namespace guestmem::dma {
namespace {

using testing::complaint_texts;
using testing::cover_texts;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::unit_texts;
using testing::ViotBuilder;

std::vector<std::byte> sample() {
    std::ifstream file{GUESTMEM_SOURCE "/guestmem/dma/discover/testing/tables/viot.aml", std::ios::binary};
    const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

SourceFacts read(std::span<const std::byte> table) {
    auto facts = read_viot(table);
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *facts : SourceFacts{};
}

TEST(ViotTest, QemusIommuIsInItsOwnRangeAndNotBehindItself) {
    const SourceFacts facts = read(sample());
    EXPECT_THAT(unit_texts(facts), ElementsAre("virtio-iommu@0000:00:02.0"));
    EXPECT_EQ(facts.units[0].function, pci_address(0, 0, 2, 0));
    EXPECT_EQ(to_string(facts.units[0].origin), "VIOT offset 0x30");
    EXPECT_THAT(cover_texts(facts),
                ElementsAre("0000:00:00.0-0000:00:01.7 -> virtio-iommu@0000:00:02.0 0x0",
                            "0000:00:02.1-0000:00:1f.7 -> virtio-iommu@0000:00:02.0 0x11"));
    EXPECT_EQ(to_string(facts.covers[0].origin), "VIOT offset 0x40");
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST(ViotTest, RangesEndpointsAndBothKindsOfIommusAreRead) {
    ViotBuilder viot;
    viot.range(0x1000, {3, 5}, {0x100, 0x1ff}, 120);
    viot.endpoint(0x77, 0xfe000000, 136);
    viot.endpoint(0x78, 0xfe001000, 120);
    ASSERT_EQ(viot.pci_unit(9, 0x10), 120U);
    ASSERT_EQ(viot.mmio_unit(0xa000000), 136U);
    const SourceFacts facts = read(viot.done());
    EXPECT_THAT(unit_texts(facts), ElementsAre("virtio-iommu@0009:00:02.0", "virtio-iommu@a000000"));
    EXPECT_EQ(facts.units[0].segment, 9);
    EXPECT_EQ(facts.units[1].registers, 0xa000000U);
    EXPECT_THAT(cover_texts(facts),
                ElementsAre("0003:01:00.0-0003:01:1f.7 -> virtio-iommu@0009:00:02.0 0x1000",
                            "0004:01:00.0-0004:01:1f.7 -> virtio-iommu@0009:00:02.0 0x11000",
                            "0005:01:00.0-0005:01:1f.7 -> virtio-iommu@0009:00:02.0 0x21000",
                            "mem:0xfe000000 -> virtio-iommu@a000000 0x77 shared",
                            "mem:0xfe001000 -> virtio-iommu@0009:00:02.0 0x78 shared"));
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST(ViotTest, TheFirstOfOverlappingRangesCounts) {
    ViotBuilder viot;
    const auto one = viot.pci_unit(0, 8);
    const auto other = viot.mmio_unit(0x1000);
    viot.range(0, {0, 0}, {0, 0x1f}, one);
    viot.range(0x100, {0, 1}, {0, 0xff}, other);
    const SourceFacts facts = read(viot.done());
    EXPECT_THAT(cover_texts(facts), ElementsAre("0000:00:00.0-0000:00:00.7 -> virtio-iommu@0000:00:01.0 0x0",
                                                "0000:00:01.1-0000:00:03.7 -> virtio-iommu@0000:00:01.0 0x9",
                                                "0000:00:04.0-0000:00:1f.7 -> virtio-iommu@1000 0x120",
                                                "0001:00:00.0-0001:00:1f.7 -> virtio-iommu@1000 0x10100"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("0000:00:00.0-0000:00:1f.7 overlaps")));
}

TEST(ViotTest, RangesOfAllSegmentsAreReadUpToTheLimit) {
    for (const std::size_t count : {max_viot_segments, max_viot_segments + 1}) {
        ViotBuilder viot;
        const auto unit = viot.mmio_unit(0x1000);
        viot.range(0, {0, static_cast<std::uint32_t>(count - 1)}, {0, 0xffff}, unit);
        const SourceFacts facts = read(viot.done());
        EXPECT_EQ(facts.covers.size(), max_viot_segments);
        EXPECT_EQ(facts.complaints.size(), count > max_viot_segments ? 1U : 0U);
    }
}

TEST(ViotTest, SegmentsOfAllRangesTogetherAreReadUpToTheLimit) {
    constexpr std::uint32_t count = max_viot_more_segments / 128;
    ViotBuilder viot;
    const auto unit = viot.mmio_unit(0x1000);
    for (std::uint32_t i = 0; i <= count; ++i) viot.range(0, {0, 128}, {i, i}, unit);
    const SourceFacts facts = read(viot.done());
    EXPECT_EQ(facts.covers.size(), count * 129 + 1);
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("its first is read")));
}

TEST(ViotTest, WrongNodesAreComplaintsAndTheOthersAreRead) {
    ViotBuilder viot;
    const auto zero = viot.mmio_unit(0);
    const auto unit = viot.pci_unit(0, 0x10);
    viot.range(0, {0, 0}, {9, 8}, unit);
    viot.range(0, {2, 1}, {8, 9}, unit);
    viot.range(0, {0, 0}, {0, 0xff}, unit + 4);
    viot.range(0, {0, 0}, {0, 0xff}, zero);
    viot.node(5, 16);
    viot.node(0, 16);
    viot.node(1, 16);
    viot.endpoint(4, 0x5000, unit);
    const SourceFacts facts = read(viot.done());
    EXPECT_THAT(cover_texts(facts), ElementsAre("mem:0x5000 -> virtio-iommu@0000:00:02.0 0x4 shared"));
    EXPECT_EQ(facts.complaints.size(), 8U) << ::testing::PrintToString(complaint_texts(facts));
}

TEST(ViotTest, TwoNodesOfOneIommuAreOneUnit) {
    ViotBuilder viot;
    viot.pci_unit(0, 0x10);
    const auto again = viot.pci_unit(0, 0x10);
    viot.mmio_unit(0x10);
    viot.endpoint(4, 0x5000, again);
    const SourceFacts facts = read(viot.done());
    EXPECT_THAT(unit_texts(facts), ElementsAre("virtio-iommu@0000:00:02.0", "virtio-iommu@10"));
    EXPECT_THAT(cover_texts(facts), ElementsAre("mem:0x5000 -> virtio-iommu@0000:00:02.0 0x4 shared"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("taken as one")));
}

TEST(ViotTest, MoreUnitsThanTheLimitAreRefused) {
    for (const std::size_t count : {max_viot_units, max_viot_units + 1}) {
        ViotBuilder viot;
        for (std::size_t i = 1; i <= count; ++i) viot.mmio_unit(i << 12);
        const auto facts = read_viot(viot.done());
        ASSERT_EQ(facts.has_value(), count == max_viot_units);
        if (facts) {
            EXPECT_EQ(facts->units.size(), count);
        } else {
            EXPECT_EQ(facts.error().code(), Errc::out_of_range);
        }
    }
}

TEST(ViotTest, RangesThatOverlapAreReadUpToTheLimitAndOthersBehindThemToo) {
    ViotBuilder viot;
    const auto unit = viot.mmio_unit(0x1000);
    for (std::size_t i = 0; i <= max_viot_contested; ++i) {
        const auto segment = static_cast<std::uint32_t>(i % 2);
        viot.range(0, {segment, segment}, {0x100, 0x1ff}, unit);
    }
    viot.range(0, {0, 0}, {0, 0xff}, unit);
    const SourceFacts facts = read(viot.done());
    EXPECT_THAT(cover_texts(facts), ElementsAre("0000:01:00.0-0000:01:1f.7 -> virtio-iommu@1000 0x0",
                                                "0001:01:00.0-0001:01:1f.7 -> virtio-iommu@1000 0x0",
                                                "0000:00:00.0-0000:00:1f.7 -> virtio-iommu@1000 0x0"));
    // All but the first two: max_viot_contested - 2 that overlap, and the one that is not used.
    EXPECT_EQ(facts.complaints.size(), max_table_complaints + 1);
    EXPECT_THAT(facts.complaints.back().text,
                HasSubstr(fmt::format("{} more", max_viot_contested - 1 - max_table_complaints)));
}

TEST(ViotTest, WorstTablesOfAMebibyteStayInTheirMemory) {
    const std::function<void(ViotBuilder&, std::uint32_t)> works[] = {
        [](ViotBuilder& viot, std::uint32_t i) { viot.mmio_unit(0x999900000000 + i); },
        [](ViotBuilder& viot, std::uint32_t i) { viot.range(i, {i, i}, {i & 0xff, 0xffff}, 48); },
        [](ViotBuilder& viot, std::uint32_t i) { viot.endpoint(i, 0x999900000000 + i, 48); },
        [](ViotBuilder& viot, std::uint32_t) { viot.range(0, {0, 255}, {0, 0xffff}, 48); },
    };
    bool is_any_taken = false;
    for (const auto& work : works) {
        ViotBuilder viot;
        viot.mmio_unit(0x888800000000);
        for (std::uint32_t i = 0; viot.size_bytes() < (1 << 20) - 64; ++i) work(viot, i);
        const auto facts = read_viot(viot.done());
        if (!facts) {
            EXPECT_EQ(facts.error().code(), Errc::out_of_range) << facts.error().message();
            continue;
        }
        is_any_taken = true;
        EXPECT_LE(testing::bytes_of(*facts),
                  viot.size_bytes() * memory_per_table_byte + memory_beside_table_bytes);
        EXPECT_LE(testing::count_of(*facts), max_facts);
    }
    EXPECT_TRUE(is_any_taken);
}

TEST(ViotTest, NodesThatDoNotAddUpEndTheReading) {
    for (const unsigned length : {0U, 3U, 0x4000U}) {
        ViotBuilder viot;
        const auto unit = viot.mmio_unit(0x1000);
        viot.endpoint(1, 0x5000, unit);
        const auto bad = viot.endpoint(2, 0x6000, unit);
        viot.endpoint(3, 0x7000, unit);
        viot.table().set(bad + 2, static_cast<std::uint16_t>(length));
        const SourceFacts facts = read(viot.done());
        EXPECT_EQ(facts.covers.size(), 1U);
        EXPECT_EQ(facts.complaints.size(), 1U);
    }
    ViotBuilder viot;
    viot.mmio_unit(0x1000);
    viot.done();
    EXPECT_THAT(complaint_texts(read(viot.table().set(36, std::uint16_t{7}).done())),
                ElementsAre(HasSubstr("7 nodes, 1 are there")));
    EXPECT_THAT(complaint_texts(read(viot.table().set(38, std::uint16_t{47}).done())),
                ElementsAre(HasSubstr("in the header")));
}

TEST(ViotTest, ATableThatIsCutOffIsReadAsFarAsItGoes) {
    const std::vector<std::byte> whole = sample();
    for (std::size_t size = 0; size < whole.size(); ++size) {
        const std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
        const auto facts = read_viot(part);
        ASSERT_EQ(facts.has_value(), size >= 48) << size;
        if (facts) {
            EXPECT_THAT(facts->complaints, ::testing::Not(IsEmpty()));
        }
    }
    std::vector<std::byte> other = whole;
    other[0] = std::byte{'X'};
    EXPECT_FALSE(read_viot(other));
}

}  // namespace
}  // namespace guestmem::dma

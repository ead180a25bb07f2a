// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/memory_map_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace guestmem::vmm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}
MemoryMapEntry entry(std::uint64_t base, std::uint64_t size_bytes, MapEntryKind kind) {
    return {range(base, size_bytes), kind};
}

TEST(MemoryMapTable, ReservedPiecesCutRam) {
    const auto map =
        make_memory_map({.ram = {range(0, 0x8000000)}, .reserved = legacy_reservations()}).value();
    EXPECT_THAT(map, ElementsAre(entry(0, 0xa0000, MapEntryKind::ram),
                                 entry(0xa0000, 0x41000, MapEntryKind::reserved),
                                 entry(0xe1000, 0x1f000, MapEntryKind::acpi_tables),
                                 entry(0x100000, 0x7f00000, MapEntryKind::ram)));
}

TEST(MemoryMapTable, JoinsNeighborsOfOneKindAndKeepsHoles) {
    const auto map = make_memory_map({.ram = {range(0x3000, 0x1000), range(0x1000, 0x1000),
                                              range(0x2000, 0x1000), range(0x9000, 0x1000)},
                                      .reserved = {}})
                         .value();
    EXPECT_THAT(
        map, ElementsAre(entry(0x1000, 0x3000, MapEntryKind::ram), entry(0x9000, 0x1000, MapEntryKind::ram)));
}

TEST(MemoryMapTable, TakesTheLastAddressThereIs) {
    const std::uint64_t last_page = ~std::uint64_t{0} - 0xfff;
    const auto map = make_memory_map({.ram = {range(last_page - 0x1000, 0x2000)},
                                      .reserved = {{range(last_page, 0x1000), MapEntryKind::reserved}}})
                         .value();
    EXPECT_THAT(map, ElementsAre(entry(last_page - 0x1000, 0x1000, MapEntryKind::ram),
                                 entry(last_page, 0x1000, MapEntryKind::reserved)));
}

TEST(MemoryMapTable, RefusesWhatContradictsItself) {
    const auto overlap = make_memory_map({.ram = {range(0, 0x2000), range(0x1000, 0x1000)}, .reserved = {}});
    ASSERT_FALSE(overlap);
    EXPECT_THAT(overlap.error().message(), HasSubstr("0x1000 to 0x1fff overlaps RAM at 0x0 to 0x1fff"));
    EXPECT_FALSE(make_memory_map({.ram = {},
                                  .reserved = {{range(0, 0x2000), MapEntryKind::reserved},
                                               {range(0x1000, 1), MapEntryKind::acpi_nvs}}}));
    EXPECT_FALSE(make_memory_map({.ram = {}, .reserved = {{range(0, 0x2000), MapEntryKind::ram}}}));
}

TEST(MemoryMapTable, HasRoomFor128EntriesAndNoMore) {
    MemoryMapPlan plan;
    for (std::uint64_t i = 0; i < max_memory_map_entries; ++i) plan.ram.push_back(range(i * 0x2000, 0x1000));
    EXPECT_EQ(make_memory_map(plan).value().size(), max_memory_map_entries);
    plan.ram.push_back(range(max_memory_map_entries * 0x2000, 0x1000));
    EXPECT_FALSE(make_memory_map(plan));
}

TEST(MemoryMapTable, WritesTheFieldsWhereGuestsReadThem) {
    const std::vector map{entry(0x1122334455667000, 0x2000, MapEntryKind::acpi_tables)};
    const auto e820 = to_e820(map);
    const auto pvh = to_pvh(map);
    const unsigned char wanted[24] = {0, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0x20, 0, 0,
                                      0, 0,    0,    0,    3,    0,    0,    0,    0, 0,    0, 0};
    EXPECT_EQ(std::memcmp(e820.data(), wanted, 20), 0);
    EXPECT_EQ(std::memcmp(pvh.data(), wanted, 24), 0);
}

}  // namespace
}  // namespace guestmem::vmm

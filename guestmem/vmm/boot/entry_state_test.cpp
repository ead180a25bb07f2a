// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/entry_state.hpp"

#include <gtest/gtest.h>

#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::TestMap;

std::uint64_t word(MapView& view, std::uint64_t address) {
    return view.read_le<std::uint64_t>(GuestAddress{address}).value();
}

/// What a processor's table walk makes of an address: Intel SDM 3A, 4.5.
std::uint64_t walk(MapView& view, std::uint64_t cr3, std::uint64_t address) {
    std::uint64_t table = cr3;
    for (unsigned shift = 39; shift >= 21; shift -= 9) {
        const std::uint64_t entry = word(view, table + (address >> shift & 511) * 8);
        EXPECT_EQ(entry & 3, 3U) << "not present or not writable at " << address;
        if ((entry & 0x80) != 0) return (entry & ~std::uint64_t{0xfff}) | (address & 0x1fffff);
        table = entry & ~std::uint64_t{0xfff};
    }
    ADD_FAILURE() << "no large page for " << address;
    return 0;
}

TEST(EntryState, TheLow4GiBAreMappedAtTheirOwnAddresses) {
    TestMap map;
    map.ram(0, 0x100000);
    MapView view{*map.map()};
    ASSERT_TRUE(write_entry_tables(EntryMode::long_64, view));
    const EntryState state = make_entry_state(EntryMode::long_64, GuestAddress{0x1000});
    for (const std::uint64_t address :
         {0x0ull, 0x1fffffull, 0x200000ull, 0x3fffffffull, 0x40000000ull, 0xfee00000ull, 0xffffffffull})
        EXPECT_EQ(walk(view, state.cr3, address), address);
    EXPECT_EQ(word(view, state.cr3 + 8), 0U) << "above 512 GiB";
    EXPECT_EQ(word(view, state.cr3 + low_memory::page_bytes + 4 * 8), 0U) << "above 4 GiB";
}

TEST(EntryState, DescriptorsAreThoseOfTheSegments) {
    TestMap map;
    map.ram(0, 0x100000);
    MapView view{*map.map()};
    for (const EntryMode mode : {EntryMode::protected_32, EntryMode::long_64}) {
        ASSERT_TRUE(write_entry_tables(mode, view));
        const EntryState state = make_entry_state(mode, GuestAddress{0x1000});
        EXPECT_EQ(word(view, state.gdt_base), 0U);
        EXPECT_EQ(word(view, state.gdt_base + state.code.selector),
                  mode == EntryMode::long_64 ? 0x00af9b000000ffffU : 0x00cf9b000000ffffU);
        EXPECT_EQ(word(view, state.gdt_base + state.data.selector), 0x00cf93000000ffffU);
        EXPECT_EQ(word(view, state.gdt_base + state.task.selector), 0x00008b0000000067U);
        EXPECT_GE(state.gdt_limit, state.task.selector + 15) << "a task segment of 64 bits has 16 bytes";
    }
}

TEST(EntryState, ModesHaveTheBitsThatTheirProtocolsName) {
    const EntryState pvh = make_entry_state(EntryMode::protected_32, GuestAddress{0x100000});
    EXPECT_EQ(pvh.cr0 & 0x80000001, 1U) << "protection without paging";
    EXPECT_EQ(pvh.cr4, 0U);
    EXPECT_EQ(pvh.efer, 0U);
    EXPECT_FALSE(pvh.code.is_64_bit);
    EXPECT_TRUE(pvh.code.is_32_bit);
    EXPECT_EQ(pvh.rip, 0x100000U);
    EXPECT_EQ(pvh.rflags, 2U);
    const EntryState linux_state = make_entry_state(EntryMode::long_64, GuestAddress{0x100000});
    EXPECT_EQ(linux_state.cr0 & 0x80000001, 0x80000001U);
    EXPECT_EQ(linux_state.efer, 0x500U);
    EXPECT_EQ(linux_state.cr4, 0x20U);
    EXPECT_TRUE(linux_state.code.is_64_bit);
    EXPECT_FALSE(linux_state.code.is_32_bit);
}

TEST(EntryState, TablesNeedTheirMemory) {
    TestMap map;
    map.ram(0x100000, 0x1000);
    MapView view{*map.map()};
    EXPECT_FALSE(write_entry_tables(EntryMode::protected_32, view));
}

}  // namespace
}  // namespace guestmem::vmm

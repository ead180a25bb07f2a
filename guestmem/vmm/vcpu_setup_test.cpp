// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vcpu_setup.hpp"

#include <gtest/gtest.h>

#include <array>

namespace guestmem::vmm {
namespace {

KvmCpuidEntry entry_of(std::uint32_t function, std::uint32_t index = 0) {
    KvmCpuidEntry entry;
    entry.function = function;
    entry.index = index;
    return entry;
}

TEST(MakeCpuid, EachProcessorHasItsApicIdAndKnowsHowManyThereAre) {
    std::array<KvmCpuidEntry, 3> supported{entry_of(1), entry_of(0xb, 0), entry_of(0xb, 1)};
    supported[0].ebx = 0xaabb'ccdd;
    for (std::uint32_t number = 0; number < 3; ++number) {
        const auto list = make_cpuid(supported, number, 3, true);
        ASSERT_EQ(list.size(), 3U);
        EXPECT_EQ(list[0].ebx >> 24, number);
        EXPECT_EQ((list[0].ebx >> 16) & 0xff, 4U) << "room for three in a power of two";
        EXPECT_EQ(list[0].ebx & 0xffff, 0xccddU);
        EXPECT_NE(list[0].ecx & (1U << 31), 0U);
        EXPECT_NE(list[0].ecx & (1U << 24), 0U);
        EXPECT_NE(list[0].edx & (1U << 28), 0U);
        EXPECT_EQ(list[1].edx, number);
        EXPECT_EQ(list[1].ecx >> 8, 1U);
        EXPECT_EQ(list[2].eax, 2U) << "two bits tell three apart";
        EXPECT_EQ(list[2].ebx, 3U);
        EXPECT_EQ(list[2].ecx >> 8, 2U);
    }
}

TEST(MakeMsrs, MemoryTypesAreOnAndMemoryIsCached) {
    const auto msrs = make_msrs();
    ASSERT_EQ(msrs.size(), 1U);
    EXPECT_EQ(msrs[0].index, 0x2ffU);
    EXPECT_EQ(msrs[0].value, 0x806U);
}

TEST(MakeCpuid, OneProcessorSharesItsPackageWithNobody) {
    std::array<KvmCpuidEntry, 1> supported{entry_of(1)};
    supported[0].edx = 1U << 28;
    const auto list = make_cpuid(supported, 0, 1, false);
    EXPECT_EQ(list[0].edx & (1U << 28), 0U);
    EXPECT_EQ(list[0].ecx & (1U << 24), 0U);
    EXPECT_EQ((list[0].ebx >> 16) & 0xff, 1U);
}

TEST(MakeCpuid, TheThirdCacheIsEverybodysAndOthersAreOnes) {
    std::array<KvmCpuidEntry, 3> supported{entry_of(4, 0), entry_of(4, 3), entry_of(4, 4)};
    supported[0].eax = 1 | (1U << 5) | (7U << 14);
    supported[1].eax = 3 | (3U << 5) | (7U << 14);
    const auto list = make_cpuid(supported, 1, 4, false);
    EXPECT_EQ((list[0].eax >> 14) & 0xfff, 0U);
    EXPECT_EQ((list[1].eax >> 14) & 0xfff, 3U);
    EXPECT_EQ(list[1].eax >> 26, 3U);
    EXPECT_EQ(list[2].eax, 0U) << "the entry that ends the list stays as it is";
}

TEST(AddressBits, AreWhatTheListSaysOr36) {
    std::array<KvmCpuidEntry, 1> supported{entry_of(0x8000'0008)};
    supported[0].eax = 0x3028;
    EXPECT_EQ(address_bits(supported), 40U);
    EXPECT_EQ(address_bits({}), 36U);
}

TEST(MakeSystemRegisters, KeepWhatTheEntryDoesNotSay) {
    const EntryState entry = make_entry_state(EntryMode::long_64, GuestAddress{0x100000});
    KvmSystemRegisters before;
    before.apic_base = 0xfee00900;
    const KvmSystemRegisters after = make_system_registers(entry, before);
    EXPECT_EQ(after.apic_base, 0xfee00900U);
    EXPECT_EQ(after.cs.l, 1U);
    EXPECT_EQ(after.cr3, entry.cr3);
    EXPECT_EQ(after.efer, entry.efer);
    EXPECT_EQ(after.idt.limit, 0U);
    EXPECT_EQ(make_registers(entry).rip, 0x100000U);
    EXPECT_EQ(make_registers(entry).rflags, 2U);
}

}  // namespace
}  // namespace guestmem::vmm

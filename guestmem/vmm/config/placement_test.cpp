// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/placement.hpp"

#include <gmock/gmock.h>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::plan_of;

constexpr std::uint64_t mib = 1024 * 1024;
constexpr std::uint64_t gib = 1024 * mib;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return *GuestRange::create(GuestAddress{base}, size_bytes);
}

std::string with_memory(std::string_view memory) {
    return fmt::format("system vm\n{}\nload kernel\n", memory);
}

/// The ranges of all lines of memory, one after another.
std::vector<GuestRange> ranges_of(std::string_view memory) {
    std::vector<GuestRange> ranges;
    const VmConfig config = plan_of(with_memory(memory));
    for (const MemoryLine& line : config.memory)
        ranges.insert(ranges.end(), line.ranges.begin(), line.ranges.end());
    return ranges;
}

TEST(Placement, RamWithoutAStartGoesBehindTheHighestRamOrRom) {
    EXPECT_THAT(ranges_of("ram 192M"), ElementsAre(range(0, 192 * mib)));
    EXPECT_THAT(ranges_of("ram 1M,1M ram 1M"), ElementsAre(range(mib, mib), range(2 * mib, mib)));
    EXPECT_THAT(
        ranges_of("ram 4M rom 16M,1M ram 8M,1M ram 1M"),
        ElementsAre(range(0, 4 * mib), range(16 * mib, mib), range(8 * mib, mib), range(17 * mib, mib)));
    EXPECT_THAT(ranges_of("ram 1M reserve loc 2M,1M ram 1M"),
                ElementsAre(range(0, mib), range(2 * mib, mib), range(mib, mib)));
}

TEST(Placement, RamGoesAroundTheDeviceHole) {
    EXPECT_THAT(ranges_of("ram 3G"), ElementsAre(range(0, 3 * gib)));
    EXPECT_THAT(ranges_of("ram 4G"), ElementsAre(range(0, 3 * gib), range(4 * gib, gib)));
    EXPECT_THAT(ranges_of("ram 3145732K"), ElementsAre(range(0, 3 * gib), range(4 * gib, 4096)));
    EXPECT_THAT(ranges_of("ram 1G,4G"), ElementsAre(range(gib, 2 * gib), range(4 * gib, 2 * gib)));
    EXPECT_THAT(ranges_of("ram 3G ram 1G ram 1G"),
                ElementsAre(range(0, 3 * gib), range(4 * gib, gib), range(5 * gib, gib)));
    EXPECT_THAT(ranges_of("rom 0xfff00000,64K ram 1G"),
                ElementsAre(range(0xfff00000, 65536), range(4 * gib, gib)));
    EXPECT_THAT(ranges_of("ram 0x100000000,1G"), ElementsAre(range(4 * gib, gib)));
}

TEST(Placement, RamDoesNotBeginInTheDeviceHole) {
    EXPECT_EQ(
        complaint_of(with_memory("ram 0xc0000000,1G")),
        "vm.qvmconf:2:5: error: ram 0xc0000000,1G begins in the device hole 0xc0000000-0xffffffff of x86\n"
        "   2 | ram 0xc0000000,1G\n"
        "     |     ^\n"
        "     = begin below it, or at 0x100000000; without a start it goes around the hole");
    EXPECT_THAT(complaint_of(with_memory("ram 0xfffff000,4K")), HasSubstr("begins in the device hole"));
    EXPECT_EQ(complaint_of(with_memory("ram 0xbffff000,4K")), "no complaint");
}

TEST(Placement, MemoryEndsWithTheAddressesOfX86) {
    EXPECT_EQ(complaint_of(with_memory("ram 0xffffffffff000,4K")), "no complaint");
    EXPECT_THAT(complaint_of(with_memory("ram 0xffffffffff000,8K")),
                HasSubstr("2:21: error: ram 0xffffffffff000,8K reaches beyond the last address of x86-64, "
                          "0xfffffffffffff"));
    EXPECT_THAT(complaint_of(with_memory("ram 4096T")), HasSubstr("ram 4096T reaches beyond"));
    EXPECT_THAT(complaint_of(with_memory("ram 1M rom 0xffffffffff000,8K")), HasSubstr("reaches beyond"));
    EXPECT_THAT(complaint_of(with_memory("ram 1M vdev pci loc 0xffffffffff000")),
                HasSubstr("vdev pci loc 0xffffffffff000 reaches beyond the last address 0xfffffffffffff"));
}

TEST(Placement, MemoryThatOverlapsNamesBothLines) {
    EXPECT_EQ(complaint_of(with_memory("ram 1024M\nram 512M,1G")),
              "vm.qvmconf:3:1: error: ram 0x20000000,1G overlaps ram 1G (line 2)\n"
              "   3 | ram 512M,1G\n"
              "     | ^\n"
              "     = ram 0x20000000,1G takes 0x20000000-0x5fffffff, ram 1G 0x0-0x3fffffff");
    EXPECT_THAT(complaint_of(with_memory("ram 2M\nrom 1M,4K")),
                HasSubstr("3:1: error: rom 0x100000,4K lies inside ram 2M (line 2)"));
    EXPECT_THAT(complaint_of(with_memory("ram 2M\nreserve\n loc 1M,4K")),
                HasSubstr("3:1: error: reserve loc 0x100000,4K lies inside ram 2M (line 2)"));
    EXPECT_THAT(complaint_of(with_memory("reserve loc 2M,4K\nram 4M")),
                HasSubstr("3:1: error: ram 4M overlaps reserve loc 0x200000,4K (line 2)"));
    EXPECT_EQ(complaint_of(with_memory("ram 2M rom 2M,4K reserve loc 0x201000,4K ram 0x202000,4K")),
              "no complaint");
}

TEST(Placement, ALocInsideRamNamesBothLines) {
    EXPECT_EQ(
        complaint_of("system vm\nram 1024M\nload k\nvdev ioapic name pic\nvdev shmem\n    loc 0x10000000\n"
                     "    intr pic:10\n"),
        "vm.qvmconf:6:9: error: vdev shmem loc 0x10000000 lies inside ram 1G (line 2)\n"
        "   6 |     loc 0x10000000\n"
        "     |         ^\n"
        "     = vdev shmem loc 0x10000000 takes 0x10000000-0x10000fff, ram 1G 0x0-0x3fffffff");
    EXPECT_EQ(complaint_of("vdev ioapic\n  loc 0x10000000\nsystem vm\nram 1024M\nload k\n"),
              "vm.qvmconf:4:1: error: ram 1G overlaps vdev ioapic loc 0x10000000 (line 2)\n"
              "   4 | ram 1024M\n"
              "     | ^\n"
              "     = ram 1G takes 0x0-0x3fffffff, vdev ioapic loc 0x10000000 0x10000000-0x10000fff");
    EXPECT_EQ(complaint_of(with_memory("ram 192M vdev ioapic loc 192M")), "no complaint");
}

TEST(Placement, DevicesAreApart) {
    EXPECT_THAT(
        complaint_of(with_memory("ram 1M vdev ioapic name pic\nvdev shmem loc 0xfec00000 intr pic:9")),
        HasSubstr(
            "3:16: error: vdev shmem loc 0xfec00000 lies inside vdev ioapic without loc, at 0xfec00000, "
            "(line 2)"));
    EXPECT_THAT(
        complaint_of(with_memory("ram 1M\nvdev pci loc 0xd0000000\nvdev ioapic loc 0xd0001000")),
        HasSubstr("4:17: error: vdev ioapic loc 0xd0001000 lies inside vdev pci loc 0xd0000000 (line 3)"));
}

TEST(Placement, TheLocalApicsAreThereWithoutALine) {
    EXPECT_EQ(
        complaint_of(with_memory("ram 1M\nvdev ioapic loc 0xfee00000")),
        "vm.qvmconf:3:17: error: vdev ioapic loc 0xfee00000 lies inside the local APICs\n"
        "   3 | vdev ioapic loc 0xfee00000\n"
        "     |                 ^\n"
        "     = vdev ioapic loc 0xfee00000 takes 0xfee00000-0xfee00fff, the local APICs 0xfee00000-0xfee00fff");
    EXPECT_THAT(complaint_of(with_memory("ram 1M\nrom 0xfe000000,32M")),
                HasSubstr("3:1: error: rom 0xfe000000,32M "
                          "overlaps the local APICs"));
}

TEST(Placement, AnIoapicWithoutLocIsWhereGuestsLook) {
    const VmConfig config = plan_of(with_memory("ram 1M vdev ioapic"));
    EXPECT_EQ(config.vdevs.at(0).loc->value, 0xfec00000U);
    EXPECT_FALSE(config.vdevs[0].loc->place.is_somewhere());
}

TEST(Placement, ALoadWithAnAddressIsInMemoryThatStandsBeforeIt) {
    EXPECT_EQ(complaint_of(with_memory("ram 1M\ndata load 1M,file")),
              "vm.qvmconf:3:11: error: address 0x100000 is in no ram and no rom that stands before it\n"
              "   3 | data load 1M,file\n"
              "     |           ^\n"
              "     = load into memory: the ram line comes first");
    EXPECT_THAT(complaint_of(with_memory("ram 1M data load 2M,file ram 2M,1M")),
                HasSubstr("is in no ram and no rom"));
    EXPECT_EQ(complaint_of(
                  with_memory("ram 4G data load 0x100000000,f rom 0xfffc0000,256K data load 0xffffff00,g")),
              "no complaint");
    EXPECT_THAT(complaint_of(with_memory("ram 4G data load 0xc0000000,f")),
                HasSubstr("is in no ram and no rom"));
}

TEST(Placement, WithADroppedLineOfMemoryNothingIsGuessed) {
    const std::string said = complaint_of("system vm ram 5 load k data load 64K,f vdev shmem");
    EXPECT_EQ(said.find("is in no ram"), std::string::npos) << said;
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/vdev_words.hpp"

#include <gmock/gmock.h>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using ::testing::HasSubstr;
using testing::in_a_vm;
using testing::plan_of;
using ::testing::SizeIs;

std::string of_shmem(std::string_view words) {
    return complaint_of(in_a_vm(fmt::format("vdev shmem {}", words)));
}
std::string of_ioapic(std::string_view words) {
    return complaint_of(in_a_vm(fmt::format("vdev ioapic {}", words)));
}
std::string of_serial(std::string_view words) {
    return complaint_of(in_a_vm(fmt::format("vdev ser8250 {}", words)));
}
std::string of_ivshmem(std::string_view words) {
    return complaint_of(in_a_vm(fmt::format("vdev ivshmem share mail {}", words)));
}

TEST(VdevWords, ARegionHasANameAndWholePages) {
    const VmConfig config = plan_of(in_a_vm("vdev shmem create TEST1,0xf0000 create \"a, b,4K\""));
    ASSERT_THAT(config.vdevs.at(0).shmem.creates, SizeIs(2));
    EXPECT_EQ(config.vdevs[0].shmem.creates[0].name.value, "TEST1");
    EXPECT_EQ(config.vdevs[0].shmem.creates[0].size_bytes.value, 0xf0000U);
    EXPECT_EQ(config.vdevs[0].shmem.creates[1].name.value, "a, b");
    EXPECT_THAT(of_shmem("create TEST1"), HasSubstr("4:19: error: 'TEST1' is not NAME,SIZE"));
    EXPECT_THAT(of_shmem("create a,5000"), HasSubstr("4:21: error: size 5000 is not whole pages"));
    EXPECT_THAT(of_shmem("create a,0"), HasSubstr("size 0: a share needs memory"));
    EXPECT_THAT(of_shmem("create a,big"), HasSubstr("4:21: error: size: 'big' is no number"));
    EXPECT_THAT(of_shmem("create a,16777215T"), HasSubstr("is beyond the limit of"));
}

TEST(VdevWords, ARegionsNameFollowsTheRules) {
    const std::string longest(31, 'n');
    EXPECT_EQ(of_shmem(fmt::format("create {},4K", longest)), "no complaint");
    EXPECT_THAT(of_shmem(fmt::format("create {}n,4K", longest)),
                HasSubstr("a name has 1 to 31 bytes, this one has 32"));
    EXPECT_THAT(of_shmem("create ,4K"), HasSubstr("this one has 0"));
    EXPECT_THAT(of_shmem("create a/b,4K"), HasSubstr("a name is printable ASCII without '/'"));
    EXPECT_THAT(of_shmem("create \xc3\xa4,4K"), HasSubstr("a name is printable ASCII without '/'"));
}

TEST(VdevWords, AllowAndDenyKeepTheirOrder) {
    const VmConfig config = plan_of(in_a_vm("vdev shmem deny pluto allow \"pluto*\" allow [a-c]?"));
    const auto& rules = config.vdevs.at(0).shmem.rules;
    ASSERT_THAT(rules, SizeIs(3));
    EXPECT_FALSE(rules[0].is_allowed);
    EXPECT_EQ(rules[0].pattern.value, "pluto");
    EXPECT_TRUE(rules[1].is_allowed);
    EXPECT_EQ(rules[2].pattern.value, "[a-c]?");
    EXPECT_THAT(of_shmem("allow [a-"), HasSubstr("4:18: error: pattern '[a-': "));
    EXPECT_THAT(of_shmem("deny \"\""), HasSubstr("pattern ''"));
}

TEST(VdevWords, AnIoapicIsBelowTheLocalApicsAndHasAName) {
    EXPECT_EQ(of_ioapic("loc 0xf8000000 intr apic name myioapic"), "no complaint");
    EXPECT_THAT(of_ioapic("intr other:3"), HasSubstr("an ioapic at 'other:3': only 'apic' is above it"));
    EXPECT_THAT(of_ioapic("name my:pic"), HasSubstr("'my:pic' as the name of an ioapic"));
    EXPECT_THAT(of_ioapic("name apic"), HasSubstr("'apic' as the name of an ioapic"));
    EXPECT_THAT(of_ioapic("name cpu"), HasSubstr("'cpu' as the name of an ioapic"));
    EXPECT_THAT(of_ioapic("loc 0xf8000010"),
                HasSubstr("loc 0xf8000010 is not a multiple of the page size 4096"));
    EXPECT_THAT(of_ioapic("loc 0xffffffffffffffff"),
                HasSubstr("is beyond the last address of x86-64, 0xfffffffffffff"));
}

TEST(VdevWords, AnInterruptIsAControllerAndAPin) {
    EXPECT_THAT(of_serial("intr 4"), HasSubstr("4:19: error: '4' is no interrupt"));
    EXPECT_THAT(of_serial("intr :4"), HasSubstr("':4' is no interrupt"));
    EXPECT_THAT(of_serial("intr pic:"), HasSubstr("4:23: error: pin: '' is no number"));
    EXPECT_THAT(of_serial("intr pic:24"), HasSubstr("4:23: error: pin 24: an ioapic has the pins 0 to 23"));
    EXPECT_THAT(of_serial("intr cpu:1"),
                HasSubstr("not supported here: an interrupt that a CPU takes directly"));
    EXPECT_THAT(of_serial("intr apic"), HasSubstr("only an ioapic has the interrupt 'apic'"));
    EXPECT_THAT(of_serial("intr a/b:1"), HasSubstr("'a/b' is no name for a vdev"));
}

TEST(VdevWords, NamesAreVisibleAscii) {
    const std::string longest(max_name_bytes, 'n');
    EXPECT_EQ(of_serial("name " + longest), "no complaint");
    EXPECT_EQ(of_serial("name net:0"), "no complaint");
    EXPECT_THAT(of_serial("name n" + longest),
                HasSubstr("write 1 to 64 visible ASCII characters without '/'"));
    EXPECT_THAT(of_serial("name \"\""), HasSubstr("'' is no name for a vdev"));
    EXPECT_THAT(of_serial("name \"a b\""), HasSubstr("'a b' is no name for a vdev"));
    EXPECT_THAT(of_serial("name a/b"), HasSubstr("'a/b' is no name for a vdev"));
}

TEST(VdevWords, ASerialPortHasPortsAndADeviceBehindIt) {
    const VmConfig config = plan_of(in_a_vm("vdev ser8250 loc 0x220 hostdev /dev/ttyUSB0"));
    EXPECT_EQ(config.vdevs.at(0).loc->value, 0x220U);
    EXPECT_EQ(config.vdevs[0].hostdev->value, "/dev/ttyUSB0");
    EXPECT_EQ(of_serial("loc 0xfff8"), "no complaint");
    EXPECT_THAT(of_serial("loc 0xfff9"), HasSubstr("port 65529 is not within 0 to 65528"));
    EXPECT_THAT(of_serial("loc 0x1c090000"), HasSubstr("port 470351872 is not within 0 to 65528"));
    EXPECT_THAT(of_serial("hostdev \"\""), HasSubstr("an empty path"));
    EXPECT_THAT(of_serial("hostdev >"), HasSubstr("an empty path"));
}

TEST(VdevWords, AnIvshmemHasAShareASizeVectorsAndAMode) {
    const VmConfig config =
        plan_of(in_a_vm("vdev ivshmem share mail size 1M vectors 2048 mode doorbell name a"));
    const IvshmemOptions& options = config.vdevs.at(0).ivshmem;
    EXPECT_EQ(options.share.value, "mail");
    EXPECT_EQ(options.size_bytes->value, 1024U * 1024);
    EXPECT_EQ(options.vectors.value, 2048U);
    EXPECT_EQ(options.mode.value, IvshmemMode::doorbell);
    EXPECT_EQ(plan_of(in_a_vm("vdev ivshmem share m")).vdevs.at(0).ivshmem.vectors.value, 1U);
    EXPECT_THAT(of_ivshmem("vectors 0"), HasSubstr("vectors 0 is not within 1 to 2048"));
    EXPECT_THAT(of_ivshmem("vectors 2049"), HasSubstr("vectors 2049 is not within 1 to 2048"));
    EXPECT_THAT(of_ivshmem("size 1"), HasSubstr("size 1 is not whole pages"));
    EXPECT_THAT(of_ivshmem("mode plane"), HasSubstr("'plane' is neither doorbell nor plain"));
    EXPECT_THAT(complaint_of(in_a_vm("vdev ivshmem share a/b")),
                HasSubstr("4:20: error: a name is printable ASCII"));
}

TEST(VdevWords, APriorityHasAPolicy) {
    EXPECT_EQ(plan_of(in_a_vm("vdev shmem sched 10r")).vdevs.at(0).sched->value,
              (Sched{10, SchedPolicy::round_robin}));
    for (const char* bad : {"0", "100", "10x", "r", "\"\"", "-1"})
        EXPECT_THAT(of_shmem(fmt::format("sched {}", bad)), HasSubstr("4:1")) << bad;
    EXPECT_THAT(of_shmem("sched 100"), HasSubstr("priority 100 is not within 1 to 99"));
    EXPECT_THAT(of_shmem("sched r"), HasSubstr("priority: '' is no number"));
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/check.hpp"

#include <gmock/gmock.h>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using ::testing::HasSubstr;
using testing::in_a_vm;
using ::testing::Not;
using testing::plan_of;
using ::testing::SizeIs;

constexpr std::string_view ioapic = "vdev ioapic intr apic name pic\n";

std::string with_ioapic(std::string_view text) {
    return complaint_of(in_a_vm(fmt::format("{}{}", ioapic, text)));
}

TEST(ConfigCheck, AVmHasANameMemoryAndAKernel) {
    EXPECT_EQ(complaint_of(""),
              "vm.qvmconf: error: the VM has no name\n"
              "  = write system NAME\n"
              "vm.qvmconf: error: the VM has no memory\n"
              "  = write ram 192M\n"
              "vm.qvmconf: error: nothing runs in the VM: there is no load\n"
              "  = write load FILE");
    EXPECT_THAT(complaint_of("system vm ram 1M initrd load x"), HasSubstr("there is no load"));
    EXPECT_THAT(complaint_of("system vm rom 0xfffc0000,256K load x"), HasSubstr("has no memory"));
    EXPECT_THAT(complaint_of("sistem vm"), Not(HasSubstr("has no name")));
}

TEST(ConfigCheck, WithoutACpuThereIsOne) {
    const VmConfig config = plan_of(in_a_vm(""));
    ASSERT_THAT(config.cpus, SizeIs(1));
    EXPECT_FALSE(config.cpus[0].place.is_somewhere());
    EXPECT_EQ(config, plan_of(in_a_vm("cpu")));
}

TEST(ConfigCheck, RamStandsBeforeWhatIsLoadedIntoIt) {
    EXPECT_EQ(complaint_of("system vm\nload kernel\nram 1M\n"),
              "vm.qvmconf:2:1: error: load before the ram on line 3\n"
              "   2 | load kernel\n"
              "     | ^\n"
              "     = write ram first: what goes into guest memory follows it");
    const std::string said = complaint_of("system vm data load 0x1000,x ram 1M load k");
    EXPECT_THAT(said, HasSubstr("1:11: error: load before the ram on line 1"));
    EXPECT_THAT(said, Not(HasSubstr("is in no ram")));
}

TEST(ConfigCheck, OneKernelAndOneInitrdAreLoaded) {
    EXPECT_EQ(complaint_of(in_a_vm("load board.dtb\n")),
              "vm.qvmconf:4:1: error: a second kernel: the first is on line 3\n"
              "   4 | load board.dtb\n"
              "     | ^\n"
              "     = say what it is: initrd load, data load or acpi load");
    EXPECT_THAT(complaint_of(in_a_vm("initrd load a initrd load b")),
                HasSubstr("4:15: error: a second initrd: the first is on line 4"));
    EXPECT_EQ(complaint_of(in_a_vm("acpi load a acpi load b data load 0,c data load 0,d")), "no complaint");
    EXPECT_THAT(complaint_of(in_a_vm("data load blob")),
                HasSubstr("4:1: error: data load without an address"));
    EXPECT_THAT(complaint_of(in_a_vm("acpi load 0x1000,t")),
                HasSubstr("4:11: error: acpi load with an address"));
}

TEST(ConfigCheck, NamesOfVdevsAreGivenOnce) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem name a\nvdev mc146818\n  name a\n")),
              "vm.qvmconf:6:8: error: the name 'a' is given already on line 4\n"
              "   6 |   name a\n"
              "     |        ^\n"
              "     = give each vdev a name of its own");
}

TEST(ConfigCheck, SomeDevicesAreThereOnce) {
    for (const char* type : {"timer8254", "mc146818", "pckeyboard", "pci", "ioapic"})
        EXPECT_THAT(complaint_of(in_a_vm(fmt::format("vdev {0}\nvdev {0}\n", type))),
                    HasSubstr(fmt::format("5:1: error: a second vdev {}: the first is on line 4\n", type)));
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem vdev shmem vdev ser8250 vdev ser8250 vdev ivshmem share a "
                                   "vdev ivshmem share a")),
              "no complaint");
}

TEST(ConfigCheck, ABusHasAtMost31Devices) {
    std::string text{ioapic};
    for (std::size_t i = 0; i < max_pci_vdevs; ++i) text += "vdev ivshmem share a\n";
    EXPECT_EQ(complaint_of(in_a_vm(text + "vdev shmem loc 0xd0000000 intr pic:9")), "no complaint");
    EXPECT_THAT(complaint_of(in_a_vm(text + "vdev shmem\nvdev shmem")),
                HasSubstr("36:1: error: more than 31 PCI devices"));
}

TEST(ConfigCheck, AnInterruptLeadsToAnIoapicThatStandsBeforeIt) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250\n    intr myioapic:4\n")),
              "vm.qvmconf:5:10: error: no ioapic has the name 'myioapic'\n"
              "   5 |     intr myioapic:4\n"
              "     |          ^\n"
              "     = write vdev ioapic, intr apic and name myioapic before it");
    EXPECT_THAT(with_ioapic("vdev ser8250 intr pick:4"), HasSubstr("= there is: pic"));
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250 intr pic:4\nvdev ioapic name pic\n")),
              "vm.qvmconf:4:19: error: the ioapic 'pic' gets its name only on line 5\n"
              "   4 | vdev ser8250 intr pic:4\n"
              "     |                   ^\n"
              "     = write the ioapic before the devices that use it");
    EXPECT_THAT(complaint_of(in_a_vm("vdev shmem name pic vdev ser8250 intr pic:4")),
                HasSubstr("4:39: error: 'pic' on line 4 is a shmem, no interrupt controller"));
}

TEST(ConfigCheck, AnEdgeTriggeredDeviceHasNoPinOfTheMachinesOwn) {
    EXPECT_EQ(with_ioapic("vdev ser8250\n  intr pic:9\n"),
              "vm.qvmconf:6:8: error: pin pic:9 of vdev ser8250 belongs to the power events of ACPI (SCI)\n"
              "   6 |   intr pic:9\n"
              "     |        ^\n"
              "     = take another pin: an edge-triggered one has one device");
    for (const unsigned pin : {16U, 17U, 18U, 19U})
        EXPECT_THAT(
            with_ioapic(fmt::format("vdev mc146818 intr pic:{}\nvdev ivshmem share a", pin)),
            HasSubstr(fmt::format("5:20: error: pin pic:{} of vdev mc146818 belongs to the PCI bus, with "
                                  "vdev ivshmem on line 6",
                                  pin)));
    EXPECT_EQ(with_ioapic("vdev ser8250 intr pic:16"), "no complaint") << "there is no PCI device";
    EXPECT_EQ(with_ioapic("vdev ser8250 intr pic:20 vdev shmem"), "no complaint");
    EXPECT_EQ(
        with_ioapic("vdev shmem loc 0xd0000000 intr pic:9 vdev shmem loc 0xd0001000 intr pic:16 vdev shmem"),
        "no complaint")
        << "levels share";
}

TEST(ConfigCheck, AnEdgeTriggeredPinHasOneDevice) {
    EXPECT_EQ(with_ioapic("vdev ser8250 intr pic:4\nvdev mc146818\n  intr pic:4\n"),
              "vm.qvmconf:7:8: error: pin pic:4 belongs to vdev ser8250 on line 5\n"
              "   7 |   intr pic:4\n"
              "     |        ^\n"
              "     = take another pin: an edge-triggered one has one device");
    EXPECT_THAT(with_ioapic("vdev shmem loc 0xd0000000 intr pic:4\nvdev ser8250 intr pic:4"),
                HasSubstr("6:19: error: pin pic:4 belongs to vdev shmem on line 5"));
    EXPECT_EQ(with_ioapic("vdev shmem loc 0xd0000000 intr pic:4 vdev shmem loc 0xd0001000 intr pic:4"),
              "no complaint");
    EXPECT_EQ(with_ioapic("vdev ser8250 intr pic:4 vdev ser8250 intr pic:3 vdev timer8254 intr pic:0"),
              "no complaint");
}

TEST(ConfigCheck, SerialPortsGetTheFirstFreeStandardPlace) {
    const VmConfig config =
        plan_of(in_a_vm("vdev ser8250 vdev ser8250 loc 0x3f8 vdev ser8250 vdev ser8250 vdev ser8250 "
                        "loc 0x220"));
    ASSERT_THAT(config.vdevs, SizeIs(5));
    EXPECT_EQ(config.vdevs[0].loc->value, 0x2f8U);
    EXPECT_FALSE(config.vdevs[0].loc->place.is_somewhere());
    EXPECT_EQ(config.vdevs[1].loc->value, 0x3f8U);
    EXPECT_EQ(config.vdevs[2].loc->value, 0x3e8U);
    EXPECT_EQ(config.vdevs[3].loc->value, 0x2e8U);
    EXPECT_EQ(config.vdevs[4].loc->value, 0x220U);
    EXPECT_THAT(complaint_of(in_a_vm("vdev ser8250 vdev ser8250 vdev ser8250 vdev ser8250 vdev ser8250")),
                HasSubstr("4:53: error: no standard port is left for this ser8250"));
}

TEST(ConfigCheck, SerialPortsAreApart) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250 loc 0x3f8\nvdev ser8250 loc 0x3ff\n")),
              "vm.qvmconf:5:18: error: vdev ser8250 loc 0x3ff overlaps the one on line 4\n"
              "   5 | vdev ser8250 loc 0x3ff\n"
              "     |                  ^\n"
              "     = each has 8 ports");
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250 loc 0x3f8 vdev ser8250 loc 0x400 vdev ser8250 loc 0x3f0")),
              "no complaint");
    EXPECT_EQ(complaint_of(in_a_vm("vdev ser8250 loc 0x72 vdev ser8250 loc 0x38 vdev ser8250 loc 0x44")),
              "no complaint");
}

TEST(ConfigCheck, SerialPortsLeaveTheOtherDevicesTheirPorts) {
    for (const auto& [port, owner] :
         {std::pair{"0x20", "the PIC"}, std::pair{"0x39", "timer8254"}, std::pair{"0x43", "timer8254"},
          std::pair{"0x64", "pckeyboard"}, std::pair{"0x69", "mc146818"},
          std::pair{"0xcf1", "the PCI host bridge"}})
        EXPECT_THAT(complaint_of(in_a_vm(fmt::format("vdev ser8250 loc {}", port))), HasSubstr(owner))
            << port;
}

TEST(ConfigCheck, AShmemHasBothLocAndIntrOrNeither) {
    EXPECT_EQ(with_ioapic("vdev shmem loc 0x10000000\n"),
              "vm.qvmconf:5:16: error: a vdev shmem with loc and without intr\n"
              "   5 | vdev shmem loc 0x10000000\n"
              "     |                ^\n"
              "     = add an intr, or leave loc out for a PCI device");
    EXPECT_THAT(with_ioapic("vdev shmem intr pic:10"),
                HasSubstr("5:17: error: a vdev shmem with intr and without loc"));
    EXPECT_EQ(with_ioapic("vdev shmem"), "no complaint");
    EXPECT_EQ(with_ioapic("vdev shmem loc 0x10000000 intr pic:10"), "no complaint");
}

TEST(ConfigCheck, AListOfRulesHasALimit) {
    std::string text = "vdev shmem\n";
    for (std::size_t i = 0; i < max_name_rules; ++i) text += "allow a\n";
    EXPECT_EQ(complaint_of(in_a_vm(text)), "no complaint");
    EXPECT_THAT(complaint_of(in_a_vm(text + "deny b\ndeny c")),
                HasSubstr("261:6: error: more than 256 entries of allow and deny"));
}

TEST(ConfigCheck, AnIvshmemHasAShare) {
    EXPECT_THAT(complaint_of(in_a_vm("vdev ivshmem")),
                HasSubstr("4:1: error: a vdev ivshmem without a share"));
    EXPECT_EQ(complaint_of(in_a_vm("vdev ivshmem share m mode plain\n  vectors 2\n")),
              "vm.qvmconf:5:11: error: vectors for a plain ivshmem, which line 4 says it is\n"
              "   5 |   vectors 2\n"
              "     |           ^\n"
              "     = a plain one has no interrupts: remove one of the two");
}

TEST(ConfigCheck, ARegionIsCreatedOnceWithOneSize) {
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem create a,4K\nvdev shmem create a,4K\n")),
              "vm.qvmconf:5:19: error: region 'a' is created already on line 4\n"
              "   5 | vdev shmem create a,4K\n"
              "     |                   ^\n"
              "     = remove one of them");
    EXPECT_EQ(complaint_of(in_a_vm("vdev shmem create a,4K\nvdev ivshmem share a size 8K\n")),
              "vm.qvmconf:5:27: error: share 'a' has 8K here and 4K on line 4\n"
              "   5 | vdev ivshmem share a size 8K\n"
              "     |                           ^\n"
              "     = a share has one size");
    EXPECT_EQ(
        complaint_of(in_a_vm("vdev shmem create a,4K vdev ivshmem share a size 4K vdev ivshmem share a")),
        "no complaint");
    std::string text = "vdev shmem\n";
    for (std::size_t i = 0; i < max_creates; ++i) text += fmt::format("create n{},4K\n", i);
    EXPECT_EQ(complaint_of(in_a_vm(text)), "no complaint");
    EXPECT_THAT(complaint_of(in_a_vm(text + "create a,4K create b,4K")),
                HasSubstr("69:8: error: more than 64 regions to create"));
}

TEST(ConfigCheck, AMistakeIsReportedOnce) {
    EXPECT_THAT(complaint_of("system vm ram 5 load k vdev shmem loc 0 intr a:0"),
                Not(HasSubstr("has no memory")));
    EXPECT_THAT(complaint_of(in_a_vm("vdev ser8250 loc 70000 vdev shmem intr pic:99 loc 0xd0000000")),
                Not(HasSubstr("without intr")));
    EXPECT_THAT(with_ioapic("vdev shmem intr pic:9 loc 1"), Not(HasSubstr("without loc")));
}

}  // namespace
}  // namespace guestmem::vmm

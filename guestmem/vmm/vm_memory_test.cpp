// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_memory.hpp"

#include <gtest/gtest.h>

#include "guestmem/sys/faults.hpp"
#include "guestmem/vmm/testing/real_mode_machine.hpp"

namespace guestmem::vmm {
namespace {

class VmMemoryTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        auto made = VmMemory::create(*machine_.system, machine_.machine, machine_.map);
        ASSERT_TRUE(made) << made.error().message();
        memory_ = *std::move(made);
    }

    static std::shared_ptr<const Region> make_region(std::uint64_t base, RegionKind kind = RegionKind::ram) {
        return Region::create({.name = "share",
                               .base = GuestAddress{base},
                               .kind = kind,
                               .memory = HostMemory::create_anonymous({.size_bytes = 8192}).value()})
            .value();
    }

    testing::RealModeMachine machine_;
    std::unique_ptr<VmMemory> memory_;
};

TEST_F(VmMemoryTest, WhatIsInsertedIsSeenByTheGuestAndByDevices) {
    // mov ax,0x2000; mov ds,ax; mov byte [0x34],0x77; hlt
    machine_.load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xc6, 0x06, 0x34, 0x00, 0x77, 0xf4});
    ASSERT_TRUE(memory_->insert(make_region(0x20000)));
    EXPECT_EQ(memory_->count_slots(), 2U);
    KvmVcpu vcpu = machine_.make_vcpu(0);
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::halt);
    auto reader = memory_->make_reader("test");
    ASSERT_TRUE(reader);
    EXPECT_EQ(*reader->memory().load<std::uint8_t>(GuestAddress{0x20034}), 0x77);
}

TEST_F(VmMemoryTest, WhatIsRemovedIsMmioForTheGuest) {
    machine_.load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xc6, 0x06, 0x34, 0x00, 0x77, 0xf4});
    const auto region = make_region(0x20000);
    ASSERT_TRUE(memory_->insert(region));
    ASSERT_TRUE(memory_->remove(region->range()));
    EXPECT_EQ(memory_->count_slots(), 1U);
    KvmVcpu vcpu = machine_.make_vcpu(0);
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::mmio);
    EXPECT_EQ(exit->address, 0x20034U);
}

TEST_F(VmMemoryTest, AGuestsWriteToRomIsAnExitAndItsReadIsNot) {
    // mov ax,0x2000; mov ds,ax; mov al,[0x34]; mov [0x34],al; hlt
    machine_.load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0x34, 0x00, 0xa2, 0x34, 0x00, 0xf4});
    ASSERT_TRUE(memory_->insert(make_region(0x20000, RegionKind::rom)));
    KvmVcpu vcpu = machine_.make_vcpu(0);
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::mmio);
    EXPECT_TRUE(exit->is_write);
    EXPECT_EQ(exit->address, 0x20034U);
}

TEST_F(VmMemoryTest, WhatOverlapsIsRefusedAndChangesNothing) {
    EXPECT_FALSE(memory_->insert(make_region(0x8000)));
    EXPECT_EQ(memory_->count_slots(), 1U);
    EXPECT_EQ(memory_->map()->regions().size(), 1U);
}

TEST_F(VmMemoryTest, ARangeThatIsNoRegionIsNamed) {
    const auto removed = memory_->remove(*GuestRange::create(GuestAddress{0x20000}, 4096));
    ASSERT_FALSE(removed);
    EXPECT_NE(removed.error().message().find("0x20000"), std::string::npos) << removed.error().message();
}

TEST_F(VmMemoryTest, AChangeThatTheKernelRefusesIsUndone) {
    const auto region = make_region(0x20000);
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(memory_->insert(region));
    }
    EXPECT_EQ(memory_->count_slots(), 1U);
    EXPECT_EQ(memory_->map()->regions().size(), 1U);
    ASSERT_TRUE(memory_->insert(region));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(memory_->remove(region->range()));
    }
    EXPECT_EQ(memory_->count_slots(), 2U);
    EXPECT_EQ(memory_->map()->regions().size(), 2U);
}

TEST_F(VmMemoryTest, TheDirtyLogHasWhatTheGuestAndDevicesWrote) {
    // mov ax,0x0000; mov ds,ax; mov byte [0x5034],0x77; hlt
    machine_.load({0xb8, 0x00, 0x00, 0x8e, 0xd8, 0xc6, 0x06, 0x34, 0x50, 0x77, 0xf4});
    ASSERT_TRUE(memory_->start_dirty_log());
    EXPECT_TRUE(memory_->is_logging());
    KvmVcpu vcpu = machine_.make_vcpu(0);
    ASSERT_TRUE(vcpu.run());
    auto reader = memory_->make_reader("test");
    ASSERT_TRUE(reader->memory().store<std::uint8_t>(GuestAddress{0x9000}, 1));
    const auto taken = memory_->harvest_dirty();
    ASSERT_TRUE(taken) << taken.error().message();
    ASSERT_EQ(taken->size(), 1U);
    EXPECT_EQ(taken->front().pages.runs(), (std::vector<DirtyRun>{{0x5000, 4096}, {0x9000, 4096}}));
    EXPECT_FALSE(memory_->harvest_dirty()->front().pages.is_any_dirty());
}

TEST_F(VmMemoryTest, WhatIsPluggedWhileTheLogIsOnIsLogged) {
    ASSERT_TRUE(memory_->start_dirty_log());
    const auto region = make_region(0x20000);
    ASSERT_TRUE(memory_->insert(region));
    ASSERT_TRUE(memory_->insert(make_region(0x30000, RegionKind::rom)));
    for (const KvmSlotEntry& entry : memory_->slots()) {
        EXPECT_EQ((entry.slot.flags & kvm_mem_log_dirty_pages) != 0, entry.region->is_writable());
    }
    EXPECT_EQ(memory_->harvest_dirty()->size(), 2U);
    ASSERT_TRUE(memory_->remove(region->range()));
    EXPECT_FALSE(region->dirty().is_on());
    EXPECT_EQ(memory_->harvest_dirty()->size(), 1U);
}

TEST_F(VmMemoryTest, ALogThatIsSwitchedOffIsOffEverywhere) {
    EXPECT_FALSE(memory_->stop_dirty_log());
    EXPECT_FALSE(memory_->harvest_dirty());
    ASSERT_TRUE(memory_->start_dirty_log());
    EXPECT_FALSE(memory_->start_dirty_log());
    ASSERT_TRUE(memory_->stop_dirty_log());
    EXPECT_FALSE(memory_->is_logging());
    EXPECT_FALSE(machine_.ram->dirty().is_on());
    EXPECT_EQ(memory_->slots().front().slot.flags, 0U);
}

TEST_F(VmMemoryTest, ALogThatTheKernelRefusesIsOff) {
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(memory_->start_dirty_log());
    }
    EXPECT_FALSE(memory_->is_logging());
    EXPECT_FALSE(machine_.ram->dirty().is_on());
    EXPECT_EQ(memory_->slots().front().slot.flags, 0U);
    ASSERT_TRUE(memory_->start_dirty_log());
    const auto region = make_region(0x20000);
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(memory_->insert(region));
    }
    EXPECT_FALSE(region->dirty().is_on());
}

TEST_F(VmMemoryTest, AHarvestThatFailsLosesNothing) {
    ASSERT_TRUE(memory_->start_dirty_log());
    auto reader = memory_->make_reader("test");
    ASSERT_TRUE(reader->memory().store<std::uint8_t>(GuestAddress{0x9000}, 1));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(memory_->harvest_dirty());
    }
    EXPECT_EQ(memory_->harvest_dirty()->front().pages.count_dirty(), 1U);
}

}  // namespace
}  // namespace guestmem::vmm

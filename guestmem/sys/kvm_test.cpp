// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/kvm.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <thread>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t ram_bytes = 64 * 1024;
constexpr std::uint16_t code_at = 0x1000;

/// A machine with one processor in real mode and 64 KiB, where /dev/kvm opens.
class KvmTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto opened = KvmSystem::open();
        if (!opened) GTEST_SKIP() << "SKIPPED: " << opened.error().message();
        system_ = *std::move(opened);
        auto made = system_->create_machine();
        ASSERT_TRUE(made) << made.error().message();
        machine_ = *std::move(made);
        auto ram = Mapping::create_anonymous({.size_bytes = ram_bytes});
        ASSERT_TRUE(ram);
        ram_ = *std::move(ram);
        ASSERT_TRUE(
            machine_->set_slot({.slot = 0,
                                .size_bytes = ram_bytes,
                                .host_address = reinterpret_cast<std::uintptr_t>(ram_.bytes().data())}));
    }

    void load(std::initializer_list<unsigned> code) {
        std::size_t at = code_at;
        for (const unsigned byte : code) ram_.bytes()[at++] = static_cast<std::byte>(byte);
    }

    KvmVcpu begin() {
        auto made = machine_->create_vcpu(0);
        EXPECT_TRUE(made) << made.error().message();
        KvmVcpu vcpu = *std::move(made);
        auto system = vcpu.system_registers();
        EXPECT_TRUE(system);
        system->cs.base = 0;
        system->cs.selector = 0;
        EXPECT_TRUE(vcpu.set_system_registers(*system));
        EXPECT_TRUE(vcpu.set_registers({.rip = code_at}));
        return vcpu;
    }

    std::optional<KvmSystem> system_;
    Mapping ram_;
    std::optional<KvmMachine> machine_;
};

TEST_F(KvmTest, AnOutIsAnExitWithItsPortAndByte) {
    load({0xb0, 0x41, 0xe6, 0x10, 0xf4});  // mov al,'A'; out 0x10,al; hlt
    KvmVcpu vcpu = begin();
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(exit->kind, KvmExit::Kind::io);
    EXPECT_TRUE(exit->is_write);
    EXPECT_EQ(exit->address, 0x10U);
    ASSERT_EQ(exit->data.size(), 1U);
    EXPECT_EQ(exit->data[0], std::byte{0x41});
    const auto halt = vcpu.run();
    ASSERT_TRUE(halt);
    EXPECT_EQ(halt->kind, KvmExit::Kind::halt);
}

TEST_F(KvmTest, WhatIsWrittenIntoAReadIsWhatTheGuestGets) {
    load({0xe4, 0x10, 0xe6, 0x11, 0xf4});  // in al,0x10; out 0x11,al; hlt
    KvmVcpu vcpu = begin();
    const auto asked = vcpu.run();
    ASSERT_TRUE(asked);
    EXPECT_FALSE(asked->is_write);
    ASSERT_EQ(asked->data.size(), 1U);
    asked->data[0] = std::byte{0x5a};
    const auto answer = vcpu.run();
    ASSERT_TRUE(answer);
    ASSERT_EQ(answer->data.size(), 1U);
    EXPECT_EQ(answer->data[0], std::byte{0x5a});
}

TEST_F(KvmTest, MemoryThatIsNoSlotIsAnMmioExit) {
    // mov ax,0x2000; mov ds,ax; mov byte [0x34],0x77; hlt
    load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xc6, 0x06, 0x34, 0x00, 0x77, 0xf4});
    KvmVcpu vcpu = begin();
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::mmio);
    EXPECT_TRUE(exit->is_write);
    EXPECT_EQ(exit->address, 0x20034U);
    ASSERT_GE(exit->data.size(), 1U);
    EXPECT_EQ(exit->data[0], std::byte{0x77});
}

TEST_F(KvmTest, AnInterruptBeforeARunEndsItAtOnceUntilItIsForgotten) {
    load({0xe6, 0x10, 0xf4});
    KvmVcpu vcpu = begin();
    vcpu.interrupt();
    for (int round = 0; round < 2; ++round) {
        const auto exit = vcpu.run();
        ASSERT_TRUE(exit);
        EXPECT_EQ(exit->kind, KvmExit::Kind::interrupted);
    }
    vcpu.forget_interrupt();
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::io);
}

TEST_F(KvmTest, AnInterruptEndsAGuestThatNeverExits) {
    load({0xeb, 0xfe});  // jmp to itself
    KvmVcpu vcpu = begin();
    std::thread other{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
        vcpu.interrupt();
    }};
    const auto exit = vcpu.run();
    other.join();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->kind, KvmExit::Kind::interrupted);
}

TEST_F(KvmTest, ADoorbellKicksItsEventfdAndIsNoExit) {
    load({0xb0, 0x01, 0xe6, 0x10, 0xe6, 0x10, 0xe6, 0x11, 0xf4});
    auto bell = EventFd::create();
    ASSERT_TRUE(bell);
    const KvmMachine::Doorbell doorbell{.address = 0x10, .size_bytes = 1, .is_port = true};
    ASSERT_TRUE(machine_->connect_doorbell(doorbell, bell->view()));
    KvmVcpu vcpu = begin();
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit);
    EXPECT_EQ(exit->address, 0x11U);
    EXPECT_EQ(*bell->drain(), 2U);
    ASSERT_TRUE(machine_->disconnect_doorbell(doorbell, bell->view()));
    EXPECT_FALSE(machine_->disconnect_doorbell(doorbell, bell->view()));
}

TEST_F(KvmTest, RoutesAndIrqfdsNeedASplitIrqchip) {
    auto bell = EventFd::create();
    ASSERT_TRUE(bell);
    EXPECT_FALSE(machine_->connect_irqfd(bell->view(), 5));
    ASSERT_TRUE(machine_->enable_split_irqchip(24));
    const KvmRoute route{.gsi = 5, .address = 0xfee00000, .data = 0x30};
    EXPECT_TRUE(machine_->set_routes({&route, 1}));
    EXPECT_TRUE(machine_->connect_irqfd(bell->view(), 5));
    EXPECT_TRUE(machine_->disconnect_irqfd(bell->view(), 5));
    EXPECT_TRUE(machine_->set_routes({}));
}

TEST_F(KvmTest, TheLogHasThePagesThatTheGuestWrote) {
    // mov byte [0x3456],1; hlt
    load({0xc6, 0x06, 0x56, 0x34, 0x01, 0xf4});
    ASSERT_TRUE(machine_->set_slot({.slot = 0,
                                    .flags = 1,
                                    .size_bytes = ram_bytes,
                                    .host_address = reinterpret_cast<std::uintptr_t>(ram_.bytes().data())}));
    KvmVcpu vcpu = begin();
    ASSERT_TRUE(vcpu.run());
    std::uint64_t pages = 0;
    ASSERT_TRUE(machine_->get_dirty_log(0, {&pages, 1}));
    EXPECT_NE(pages & (1U << 3), 0U);
}

TEST_F(KvmTest, EachProcessorHasItsCpuid) {
    const auto entries = system_->supported_cpuid();
    ASSERT_TRUE(entries) << entries.error().message();
    EXPECT_GT(entries->size(), 4U);
    const KvmVcpu vcpu = begin();
    EXPECT_TRUE(vcpu.set_cpuid(*entries));
    EXPECT_GE(system_->max_vcpus(), 1U);
    EXPECT_GE(system_->max_slots(), 32U);
}

TEST_F(KvmTest, AnMsrThatTheKernelDoesNotKnowIsNamed) {
    const KvmVcpu vcpu = begin();
    const KvmMsr unknown{.index = 0x12345678, .value = 1};
    const auto set = vcpu.set_msrs({&unknown, 1});
    ASSERT_FALSE(set);
    EXPECT_NE(set.error().message().find("0x12345678"), std::string::npos) << set.error().message();
}

TEST_F(KvmTest, EveryCallThatFailsIsAnErrorOfItsOwn) {
    auto bell = EventFd::create();
    ASSERT_TRUE(bell);
    const auto all = [&]() -> Result<void> {
        const KvmSystem system = GM_TRY(KvmSystem::open());
        const KvmMachine machine = GM_TRY(system.create_machine());
        GM_TRY(machine.set_slot({.slot = 0,
                                 .size_bytes = ram_bytes,
                                 .host_address = reinterpret_cast<std::uintptr_t>(ram_.bytes().data())}));
        GM_TRY(machine.enable_split_irqchip(24));
        GM_TRY(machine.set_routes({}));
        GM_TRY(machine.connect_irqfd(bell->view(), 24));
        KvmVcpu vcpu = GM_TRY(machine.create_vcpu(0));
        GM_TRY(vcpu.set_cpuid(GM_TRY(system.supported_cpuid())));
        GM_TRY(vcpu.set_registers(GM_TRY(vcpu.registers())));
        GM_TRY(vcpu.set_system_registers(GM_TRY(vcpu.system_registers())));
        GM_TRY(machine.send_message(0xfee00000, 0x30));
        vcpu.interrupt();
        GM_TRY(vcpu.run());
        return {};
    };
    std::uint64_t count = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        FaultInjector injector{nth};
        const auto done = all();
        if (!injector.has_fired()) {
            EXPECT_TRUE(done) << done.error().message();
            break;
        }
        EXPECT_FALSE(done) << "call " << nth << " failed and nobody noticed";
        ++count;
    }
    EXPECT_GE(count, 15U);
}

TEST(KvmSystem, ADoorThatIsNotThereIsNamed) {
    const auto opened = KvmSystem::open("/nonexistent/kvm");
    ASSERT_FALSE(opened);
    EXPECT_NE(opened.error().message().find("/nonexistent/kvm"), std::string::npos);
}

TEST(KvmSystem, AFileThatIsNoDoorIsRefused) {
    const auto opened = KvmSystem::open("/dev/null");
    ASSERT_FALSE(opened);
    EXPECT_NE(opened.error().message().find("/dev/null"), std::string::npos);
}

}  // namespace
}  // namespace guestmem

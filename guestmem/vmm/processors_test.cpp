// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/processors.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>

#include "guestmem/sys/faults.hpp"
#include "guestmem/vmm/testing/real_mode_machine.hpp"
#include "guestmem/vmm/vm_memory.hpp"

namespace guestmem::vmm {
namespace {

constexpr auto patience = std::chrono::seconds{30};

/// Keeps what the guest writes and answers reads with a number.
class Recorder final : public IoDevice {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) override {
        for (std::byte& byte : data) byte = static_cast<std::byte>(0x50 + offset++);
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        last_offset = offset;
        for (const std::byte byte : data) last = std::to_integer<unsigned>(byte);
        ++count;
    }
    std::atomic<std::uint64_t> last_offset{0};
    std::atomic<unsigned> last{0};
    std::atomic<std::uint64_t> count{0};
};

class ProcessorsTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        memory_ = VmMemory::create(*machine_.system, machine_.machine, machine_.map).value();
        ASSERT_TRUE(ports_.add({.name = "recorder", .first = 0x10, .count = 8, .device = recorder_}));
        ASSERT_TRUE(window_.add({.name = "recorder", .first = 0x20000, .count = 4096, .device = recorder_}));
    }

    void begin(std::uint32_t count) {
        std::vector<KvmVcpu> vcpus;
        for (std::uint32_t number = 0; number < count; ++number) vcpus.push_back(machine_.make_vcpu(number));
        processors_ = std::make_unique<Processors>(std::move(vcpus), hooks());
        processors_->start();
    }
    [[nodiscard]] ProcessorHooks hooks() {
        const auto stop = [this](MachineEnd end) {
            if (!has_ended_.exchange(true)) ended_.set_value(std::move(end));
        };
        return {.ports = ports_,
                .memory = window_,
                .end_of_interrupt = {},
                .has_interrupt = {},
                .take_interrupt = {},
                .stop = stop,
                .begin_thread = {}};
    }
    static std::vector<KvmVcpu> one(KvmVcpu vcpu) {
        std::vector<KvmVcpu> vcpus;
        vcpus.push_back(std::move(vcpu));
        return vcpus;
    }
    [[nodiscard]] bool eventually(const std::function<bool()>& is_so) const {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        while (!is_so()) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            std::this_thread::yield();
        }
        return true;
    }

    testing::RealModeMachine machine_;
    std::unique_ptr<VmMemory> memory_;
    std::shared_ptr<Recorder> recorder_ = std::make_shared<Recorder>();
    Bus ports_{"port", 0xffff};
    Bus window_{"memory", ~std::uint64_t{0}};
    std::atomic<bool> has_ended_{false};
    std::promise<MachineEnd> ended_;
    std::unique_ptr<Processors> processors_;
};

TEST_F(ProcessorsTest, AGuestReadsAndWritesPorts) {
    // in al,0x13; out 0x11,al; jmp $
    machine_.load({0xe4, 0x13, 0xe6, 0x11, 0xeb, 0xfe});
    begin(1);
    ASSERT_TRUE(eventually([&] { return recorder_->count != 0; }));
    EXPECT_EQ(recorder_->last_offset, 1U);
    EXPECT_EQ(recorder_->last, 0x53U);
}

TEST_F(ProcessorsTest, APortThatNobodyHasReadsAsOnes) {
    // in al,0x80; out 0x10,al; jmp $
    machine_.load({0xe4, 0x80, 0xe6, 0x10, 0xeb, 0xfe});
    begin(1);
    ASSERT_TRUE(eventually([&] { return recorder_->count != 0; }));
    EXPECT_EQ(recorder_->last, 0xffU);
}

TEST_F(ProcessorsTest, AGuestReachesAWindowOfAddresses) {
    // mov ax,0x2000; mov ds,ax; mov al,[5]; mov [7],al; jmp $
    machine_.load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0x05, 0x00, 0xa2, 0x07, 0x00, 0xeb, 0xfe});
    begin(1);
    ASSERT_TRUE(eventually([&] { return recorder_->count != 0; }));
    EXPECT_EQ(recorder_->last_offset, 7U);
    EXPECT_EQ(recorder_->last, 0x55U);
}

TEST_F(ProcessorsTest, NothingRunsWhileTheyArePausedAndAllGoOnAfter) {
    // mov al,bl; out 0x10,al; jmp to the out
    machine_.load({0x88, 0xd8, 0xe6, 0x10, 0xeb, 0xfc});
    begin(2);
    ASSERT_TRUE(eventually([&] { return recorder_->count > 10; }));
    processors_->pause();
    processors_->pause();
    EXPECT_TRUE(processors_->is_paused());
    const std::uint64_t seen = recorder_->count;
    EXPECT_TRUE(processors_->registers(0));
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
    EXPECT_EQ(recorder_->count, seen);
    processors_->resume();
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
    EXPECT_EQ(recorder_->count, seen);
    processors_->resume();
    EXPECT_TRUE(eventually([&] { return recorder_->count > seen; }));
    EXPECT_TRUE(eventually([&] { return !processors_->registers(0); }))
        << "a processor that runs shows nothing";
}

TEST_F(ProcessorsTest, ExitsAreCountedByTheirKindAndForEachProcessor) {
    // test bl,bl; jz to the jmp; out 0x10,al three times; mov ax,0x2000; mov ds,ax; mov [0],al; jmp $
    machine_.load({0x84, 0xdb, 0x74, 0x0e, 0xe6, 0x10, 0xe6, 0x10, 0xe6, 0x10,
                   0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfe});
    begin(2);
    ASSERT_TRUE(eventually([&] { return recorder_->count == 4; }));
    processors_->pause();
    const auto exits = processors_->exits();
    processors_->resume();
    ASSERT_EQ(exits.size(), 2U);
    const auto count = [&](std::size_t processor, KvmExit::Kind kind) {
        return exits[processor][static_cast<std::size_t>(kind)];
    };
    EXPECT_EQ(count(0, KvmExit::Kind::io), 0U);
    EXPECT_EQ(count(0, KvmExit::Kind::mmio), 0U);
    EXPECT_EQ(count(1, KvmExit::Kind::io), 3U);
    EXPECT_EQ(count(1, KvmExit::Kind::mmio), 1U);
    EXPECT_EQ(count(1, KvmExit::Kind::shutdown), 0U);
}

TEST_F(ProcessorsTest, AnEndlessGuestIsEndedByTheDestructor) {
    machine_.load({0xeb, 0xfe});
    begin(2);
    processors_.reset();
}

TEST_F(ProcessorsTest, APausedGuestIsEndedByTheDestructor) {
    machine_.load({0xeb, 0xfe});
    begin(2);
    processors_->pause();
    processors_.reset();
}

/// A device that keeps whoever writes to it.
class Holder final : public IoDevice {
public:
    void read(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) override {}
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {
        is_held = true;
        let_go.get_future().wait();
    }
    std::atomic<bool> is_held{false};
    std::promise<void> let_go;
};

TEST_F(ProcessorsTest, OneThatDoesNotComeBackFromADeviceIsToldWhenItIsToStandOrToEnd) {
    for (const bool is_paused : {true, false}) {
        const auto holder = std::make_shared<Holder>();
        ASSERT_TRUE(ports_.add({.name = "holder", .first = 0x20, .count = 1, .device = holder}));
        // test bl,bl; jnz to the out; jmp $; out 0x20,al; jmp $
        machine_.load({0x84, 0xdb, 0x75, 0x02, 0xeb, 0xfe, 0xe6, 0x20, 0xeb, 0xfe});
        std::vector<std::uint32_t> told;
        ProcessorHooks some = hooks();
        some.patience = std::chrono::milliseconds{200};
        some.stuck = [&](std::uint32_t number) {
            told.push_back(number);
            holder->let_go.set_value();
        };
        std::vector<KvmVcpu> vcpus;
        const std::uint32_t first = is_paused ? 0 : 2;
        for (const std::uint32_t number : {first, first + 1}) {
            vcpus.push_back(machine_.make_vcpu(number));
            EXPECT_TRUE(vcpus.back().set_registers({.rbx = number - first, .rip = machine_.code_at}));
        }
        processors_ = std::make_unique<Processors>(std::move(vcpus), std::move(some));
        processors_->start();
        ASSERT_TRUE(eventually([&] { return holder->is_held.load(); }));
        if (is_paused) {
            processors_->pause();
            EXPECT_TRUE(processors_->registers(1));
        } else {
            processors_.reset();
        }
        EXPECT_EQ(told, std::vector<std::uint32_t>{1});
        processors_.reset();
        ports_.remove(0x20);
    }
}

TEST_F(ProcessorsTest, WhatTheKernelCannotRunIsTold) {
    machine_.load({0xeb, 0xfe});
    auto end = ended_.get_future();
    auto vcpu = machine_.make_vcpu(0);
    const FaultInjector injector{0, {.only = SysCall::ioctl}};
    processors_ = std::make_unique<Processors>(one(std::move(vcpu)), hooks());
    processors_->start();
    ASSERT_EQ(end.wait_for(patience), std::future_status::ready);
    const MachineEnd told = end.get();
    EXPECT_EQ(told.kind, MachineEnd::Kind::failed);
    EXPECT_NE(told.message.find("KVM_RUN"), std::string::npos) << told.message;
    processors_.reset();
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/machine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <initializer_list>
#include <mutex>
#include <string>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/kvm.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;

constexpr auto patience = std::chrono::seconds{30};

/// A machine whose guest is a few instructions in 64-bit mode.
class MachineTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (const auto kvm = KvmSystem::open(); !kvm) GTEST_SKIP() << "SKIPPED: " << kvm.error().message();
    }

    Result<std::unique_ptr<Machine>> make(std::initializer_list<unsigned> code,
                                          const std::string& more = {}) {
        std::string bytes;
        for (const unsigned byte : code) bytes.push_back(static_cast<char>(byte));
        const std::string kernel = folder_.path_of("kernel");
        GM_TRY(write_text_file(kernel, bytes));
        const std::string text =
            "system test\nram 4M\nload " + kernel +
            "\nvdev ioapic loc 0xf8000000 intr apic name pic\nvdev ser8250 intr pic:4\n" + more;
        const auto plan = GM_TRY(plan_board(GM_TRY(read_text(text, "test.qvmconf", &read_text_file))));
        return Machine::create(plan, world());
    }
    MachineWorld world() {
        ended_ = {};
        return {.send =
                    [this](std::size_t /*port*/, std::byte byte) {
                        const std::lock_guard lock{mutex_};
                        sent_.push_back(static_cast<char>(byte));
                    },
                .has_room = [](std::size_t) {},
                .debug = [](std::byte) {},
                .warn =
                    [this](const std::string& text) {
                        const std::lock_guard lock{mutex_};
                        warnings_ += text + "\n";
                    },
                .ended = [this](MachineEnd end) { ended_.set_value(std::move(end)); },
                .share_control = {}};
    }
    MachineEnd wait() {
        auto future = ended_.get_future();
        EXPECT_EQ(future.wait_for(patience), std::future_status::ready);
        return future.get();
    }
    std::string sent() {
        const std::lock_guard lock{mutex_};
        return sent_;
    }

    guestmem::testing::TempFolder folder_;
    std::mutex mutex_;
    std::string sent_;
    std::string warnings_;
    std::promise<MachineEnd> ended_;
};

// mov dx,0x3f8; mov al,'A'; out dx,al; mov dx,0xf4; mov al,7; out dx,al; hlt
constexpr std::initializer_list<unsigned> say_a_and_exit{0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0x66,
                                                         0xba, 0xf4, 0x00, 0xb0, 0x07, 0xee, 0xf4};
constexpr std::initializer_list<unsigned> spin{0xeb, 0xfe};

TEST_F(MachineTest, AGuestSaysSomethingAndExits) {
    auto machine = make(say_a_and_exit);
    ASSERT_TRUE(machine) << machine.error().message();
    (*machine)->start();
    const MachineEnd end = wait();
    EXPECT_EQ(end.kind, MachineEnd::Kind::exit_port);
    EXPECT_EQ(end.code, 7);
    EXPECT_EQ(sent(), "A");
    EXPECT_EQ(warnings_, "");
}

TEST_F(MachineTest, AnEndlessGuestIsEndedByTheDestructor) {
    auto machine = make(spin, "cpu\ncpu\n");
    ASSERT_TRUE(machine) << machine.error().message();
    EXPECT_EQ((*machine)->count_processors(), 2U);
    (*machine)->start();
    (*machine)->pause();
    EXPECT_TRUE((*machine)->is_paused());
    (*machine)->resume();
    machine->reset();
}

TEST_F(MachineTest, AMachineThatWasNeverStartedGoes) {
    const auto machine = make(spin, "vdev shmem\n");
    ASSERT_TRUE(machine) << machine.error().message();
}

TEST_F(MachineTest, ResetAndPowerOffAreEnds) {
    // mov dx,0x64; mov al,0xfe; out dx,al; jmp $
    auto machine = make({0x66, 0xba, 0x64, 0x00, 0xb0, 0xfe, 0xee, 0xeb, 0xfe}, "vdev pckeyboard\n");
    ASSERT_TRUE(machine) << machine.error().message();
    (*machine)->start();
    EXPECT_EQ(wait().kind, MachineEnd::Kind::reset);
    machine->reset();
    // mov dx,0x604; mov ax,0x3400 (S5: type 5, enable); out dx,ax; jmp $
    machine = make({0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xeb, 0xfe});
    ASSERT_TRUE(machine) << machine.error().message();
    (*machine)->start();
    EXPECT_EQ(wait().kind, MachineEnd::Kind::power_off);
}

TEST_F(MachineTest, WhatIsTypedReachesTheGuest) {
    // 1: mov dx,0x3fd; in al,dx; test al,1; jz 1; mov dx,0x3f8; in al,dx; out dx,al; jmp 1
    auto machine = make({0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec,
                         0xee, 0xeb, 0xef});
    ASSERT_TRUE(machine) << machine.error().message();
    (*machine)->start();
    const std::array<std::byte, 2> keys{std::byte{'x'}, std::byte{'y'}};
    std::size_t taken = 0;
    EXPECT_TRUE(eventually([&] {
        taken += (*machine)->receive(0, std::span<const std::byte>{keys}.subspan(taken));
        return taken == keys.size() && sent() == "xy";
    })) << sent();
    EXPECT_EQ((*machine)->receive(9, keys), keys.size()) << "a port that nobody has takes all";
}

TEST_F(MachineTest, ARegionThatCannotBeMadeFailsTheStart) {
    const auto machine = make(spin, "vdev shmem\n    create big,512G\n");
    ASSERT_FALSE(machine);
    EXPECT_NE(machine.error().message().find("big"), std::string::npos) << machine.error().message();
    EXPECT_NE(machine.error().message().find("test.qvmconf:7:12: error: create big"), std::string::npos)
        << machine.error().message();
}

TEST_F(MachineTest, AGuestsRefusalsAreSaidAFewTimesASecondAndCounted) {
    // mov ecx,2000; 1: mov dword [0x10000018],1; dec ecx; jnz 1; mov dx,0xf4; mov al,0; out dx,al; hlt
    auto machine = make({0xb9, 0xd0, 0x07, 0x00, 0x00, 0xc7, 0x04, 0x25, 0x18, 0x00, 0x00, 0x10, 0x01, 0x00,
                         0x00, 0x00, 0xff, 0xc9, 0x75, 0xf1, 0x66, 0xba, 0xf4, 0x00, 0xb0, 0x00, 0xee, 0xf4},
                        "vdev shmem loc 0x10000000 intr pic:10\n");
    ASSERT_TRUE(machine) << machine.error().message();
    const auto began = std::chrono::steady_clock::now();
    (*machine)->start();
    EXPECT_EQ(wait().kind, MachineEnd::Kind::exit_port);
    const auto passed = std::chrono::steady_clock::now() - began;
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(passed).count() + 2;
    const std::lock_guard lock{mutex_};
    EXPECT_NE(warnings_.find("it is empty"), std::string::npos) << warnings_;
    // Twenty a second, and one that counts the others.
    EXPECT_LE(std::ranges::count(warnings_, '\n'), 21 * seconds);
}

TEST_F(MachineTest, AProcessorThatCannotRunWhereItsLineSaysEndsTheMachine) {
    auto machine = make(spin, "cpu runmask 1000\n");
    ASSERT_TRUE(machine) << machine.error().message();
    (*machine)->start();
    const MachineEnd end = wait();
    EXPECT_EQ(end.kind, MachineEnd::Kind::failed);
    EXPECT_NE(end.message.find("1000"), std::string::npos) << end.message;
}

TEST_F(MachineTest, EveryCallThatFailsIsAnErrorAndLeavesNothing) {
    ASSERT_TRUE(make(spin, "vdev timer8254 intr pic:0\nvdev pci\n"));
    const auto before = guestmem::testing::Resources::look();
    std::uint64_t count_failed = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        ASSERT_LT(nth, 2000U);
        bool has_fired = false;
        {
            FaultInjector injector{nth};
            const auto machine = make(spin, "vdev timer8254 intr pic:0\nvdev pci\n");
            has_fired = injector.has_fired();
            if (!machine) ++count_failed;
        }
        if (!has_fired) break;
    }
    EXPECT_GT(count_failed, 60U);
    EXPECT_EQ(guestmem::testing::Resources::look(), before);
}

}  // namespace
}  // namespace guestmem::vmm

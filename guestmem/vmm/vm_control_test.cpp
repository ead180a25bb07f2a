// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_control.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <fstream>
#include <initializer_list>
#include <thread>
#include <utility>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/config/qvmconf.hpp"
#include "guestmem/vmm/own_service.hpp"
#include "guestmem/vmm/sandbox.hpp"
#include "guestmem/vmm/testing/share_world.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;
using ::testing::HasSubstr;

/// In 64-bit mode at 1 MiB: says '>' on the debug port, then for each byte c of the serial port: 'S' writes to 1 GiB,
/// '?' says what is there, 'p' says the high byte of the power events, any other writes to 2 MiB + c * 4096. It says
/// the byte that it got, or what was asked for.
constexpr std::array<unsigned char, 73> guest_code{
    0xb0, 0x3e, 0xe6, 0xe9, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba,
    0xf8, 0x03, 0xec, 0x3c, 0x53, 0x74, 0x16, 0x3c, 0x3f, 0x74, 0x1b, 0x3c, 0x70, 0x74, 0x20,
    0x0f, 0xb6, 0xc8, 0xc1, 0xe1, 0x0c, 0xfe, 0x81, 0x00, 0x00, 0x20, 0x00, 0xeb, 0x1a, 0xfe,
    0x04, 0x25, 0x00, 0x00, 0x00, 0x40, 0xeb, 0x11, 0x8a, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40,
    0xeb, 0x08, 0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0x88, 0xe0, 0xe6, 0xe9, 0xeb};
constexpr unsigned char guest_code_last = 0xba;

class VmControlTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (const auto opened = KvmSystem::open(); !opened)
            GTEST_SKIP() << "SKIPPED: " << opened.error().message();
        std::ofstream file{folder_.path_of("guest"), std::ios::binary};
        for (const unsigned char byte : guest_code) file.put(static_cast<char>(byte));
        file.put(static_cast<char>(guest_code_last));
    }
    ~VmControlTest() override {
        if (machine_) machine_->pause();
        control_.reset();
    }

    void start(const std::string& share_control = {}) {
        const std::string text =
            "system ctl\nram 16M\ncpu\nload " + folder_.path_of("guest") +
            "\nvdev ioapic\n loc 0xf8000000\n intr apic\n name io\nvdev ser8250\n intr io:4\n";
        auto read = read_text(text, "test.qvmconf", {});
        ASSERT_TRUE(read) << read.error().message();
        plan_.emplace(plan_board(*std::move(read)).value());
        auto machine = Machine::create(
            *plan_, {.send = [](std::size_t, std::byte) {},
                     .has_room = [](std::size_t) {},
                     .debug = [this](std::byte byte) { said_ = std::to_integer<unsigned>(byte); },
                     .warn = [](const std::string&) {},
                     .ended = [](MachineEnd) {},
                     .share_control = share_control});
        ASSERT_TRUE(machine) << machine.error().message();
        machine_ = *std::move(machine);
        control_ = std::make_unique<VmControl>(*machine_, *plan_, [this] { ++count_stops_; });
        machine_->start();
        ASSERT_TRUE(hears('>'));
    }
    [[nodiscard]] bool hears(unsigned byte) {
        return eventually([&] { return said_ == byte; }, std::chrono::seconds{30});
    }
    /// Types a key and waits until the guest has done what it means.
    void type(char key) {
        said_ = 0x1000;
        EXPECT_EQ(machine_->receive(0, std::as_bytes(std::span{&key, 1})), 1U);
        EXPECT_TRUE(eventually([&] { return said_ != 0x1000; }, std::chrono::seconds{30}));
    }
    [[nodiscard]] Result<std::string> ask(const std::string& call, const std::string& arguments = "{}") {
        const PeerCredentials who{.uid = own_user()};
        auto outcome = control_->answer(who, {.id = 1, .call = call, .arguments = arguments});
        if (!outcome) return outcome.error();
        return outcome->result;
    }
    using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
    /// What typed keys have written: the processor itself writes into its page tables, far below.
    static Ranges typed(const DirtyHarvestReply& reply) {
        Ranges ranges = reply.ranges;
        std::erase_if(ranges, [](const auto& range) { return range.first < 0x200000; });
        return ranges;
    }
    [[nodiscard]] VmStatus stat() { return parse_vm_status(ask("vm.stat").value()).value(); }

    guestmem::testing::TempFolder folder_;
    std::atomic<unsigned> said_{0};
    int count_stops_ = 0;
    std::optional<BoardPlan> plan_;
    std::unique_ptr<Machine> machine_;
    std::unique_ptr<VmControl> control_;
};

TEST_F(VmControlTest, AnswersAreThoseOfTheSpecification) {
    start();
    std::ifstream file{GUESTMEM_SOURCE "/docs/protocols/vm-control.md"};
    std::string line;
    while (std::getline(file, line) && line != "```vectors") {
    }
    int count = 0;
    while (std::getline(file, line) && line != "```") {
        const std::size_t first = line.find(" | ");
        const std::size_t second = line.rfind(" | ");
        ASSERT_LT(first, second) << line;
        const auto answer = ask(line.substr(0, first), line.substr(first + 3, second - first - 3));
        EXPECT_EQ(answer ? "ok" : std::string{to_string(answer.error().code())}, line.substr(second + 3))
            << line;
        ++count;
    }
    EXPECT_GT(count, 30);
}

TEST_F(VmControlTest, OnlyRootAndTheOwnUserAreHeard) {
    start();
    const control::Request request{.id = 1, .call = "vm.stop"};
    EXPECT_EQ(control_->answer({.uid = own_user() + 1}, request).error().code(), Errc::permission_denied);
    EXPECT_EQ(count_stops_, 0);
    EXPECT_TRUE(control_->answer({.uid = own_user()}, request));
    EXPECT_TRUE(control_->answer({.uid = 0}, request));
    EXPECT_EQ(count_stops_, 2);
}

TEST_F(VmControlTest, AStatusSaysWhatTheMachineIs) {
    start();
    const VmStatus status = stat();
    EXPECT_EQ(status.name, "ctl");
    EXPECT_EQ(status.pid, own_process());
    EXPECT_EQ(status.state, "running");
    EXPECT_EQ(status.memory_bytes, 16UL << 20);
    EXPECT_EQ(status.count_slots, 1U);
    EXPECT_FALSE(status.has_dirty_log);
    ASSERT_EQ(status.processors.size(), 1U);
    const auto serial = std::ranges::find(status.devices, "ser8250", &DeviceWindow::name);
    ASSERT_NE(serial, status.devices.end());
    EXPECT_TRUE(serial->is_port);
    EXPECT_EQ(serial->first, 0x3f8U);
    const auto io_exits = [&] { return stat().processors.at(0).at(0); };
    const std::uint64_t before = io_exits();
    EXPECT_TRUE(eventually([&] { return io_exits() > before; }));
}

TEST_F(VmControlTest, APausedMachineLeavesTheGuestNoMoreUntilItIsResumed) {
    start();
    EXPECT_TRUE(parse_state_reply(ask("vm.pause").value())->has_changed);
    EXPECT_FALSE(parse_state_reply(ask("vm.pause").value())->has_changed);
    EXPECT_EQ(stat().state, "paused");
    const ExitCounts before = stat().processors.at(0);
    said_ = 0;
    const char key = 'a';
    EXPECT_EQ(machine_->receive(0, std::as_bytes(std::span{&key, 1})), 1U);
    EXPECT_EQ(stat().processors.at(0), before);
    // One is enough for both.
    EXPECT_TRUE(parse_state_reply(ask("vm.resume").value())->has_changed);
    EXPECT_TRUE(hears('a'));
    EXPECT_FALSE(parse_state_reply(ask("vm.resume").value())->has_changed);
}

TEST_F(VmControlTest, TheGuestSeesThePowerButton) {
    start();
    type('p');
    EXPECT_EQ(said_, 0U);
    ASSERT_TRUE(ask("vm.power_button"));
    type('p');
    EXPECT_EQ(said_, 1U);
}

TEST_F(VmControlTest, TheMapSaysBackendSlotAndAddresses) {
    start();
    const auto map = parse_memory_map_reply(ask("vm.memory_map").value()).value();
    ASSERT_EQ(map.regions.size(), 1U);
    EXPECT_EQ(map.regions[0].name, "ram0");
    EXPECT_EQ(map.regions[0].kind, "ram");
    EXPECT_EQ(map.regions[0].backend, "memory-backend-memfd");
    EXPECT_EQ(map.regions[0].size_bytes, 16UL << 20);
    EXPECT_EQ(map.regions[0].slot, 0U);
    EXPECT_FALSE(map.next);
    EXPECT_TRUE(parse_memory_map_reply(ask("vm.memory_map", R"({"from":1})").value())->regions.empty());
}

TEST_F(VmControlTest, TheDirtyLogHasThePagesThatTheGuestWrote) {
    start();
    type('a');
    ASSERT_TRUE(ask("vm.dirty_log", R"({"on":true})"));
    EXPECT_TRUE(parse_memory_map_reply(ask("vm.memory_map").value())->regions.at(0).is_logged);
    type('c');
    type('z');
    const auto part = [&](const DirtyHarvestCall& call) {
        return parse_dirty_harvest_reply(ask("vm.dirty_harvest", to_json(call)).value()).value();
    };
    const auto told = part({});
    EXPECT_EQ(typed(told), (Ranges{{0x200000 + 'c' * 4096, 4096}, {0x200000 + 'z' * 4096, 4096}}));
    EXPECT_FALSE(told.has_more);
    // KVM has protected the page again.
    type('z');
    EXPECT_EQ(typed(part({.limit = {}, .confirm = told.ticket})), (Ranges{{0x200000 + 'z' * 4096, 4096}}));
    ASSERT_TRUE(ask("vm.dirty_log", R"({"on":false})"));
    EXPECT_FALSE(parse_memory_map_reply(ask("vm.memory_map").value())->regions.at(0).is_logged);
}

TEST_F(VmControlTest, AShareIsPluggedIntoTheRunningGuestAndTakenAway) {
    testing::TextLog log;
    const auto service = OwnService::create(folder_.path_of("share"), log).value();
    share::SessionOptions wanted{.control = service->control(), .share = "mailbox"};
    wanted.may_create = true;
    wanted.size_bytes = 8192;
    const share::Session other = share::Session::attach(wanted).value();
    const Mapping bytes = other.map().value();
    start(service->control());
    ASSERT_TRUE(ask("vm.dirty_log", R"({"on":true})"));
    const auto reply = ask("vm.attach", R"({"share":"mailbox","address":1073741824})");
    ASSERT_TRUE(reply) << reply.error().message();
    EXPECT_EQ(parse_plugged_share_reply(*reply)->size_bytes, 8192U);
    EXPECT_EQ(stat().plugged.size(), 1U);
    type('S');
    EXPECT_EQ(bytes.bytes()[0], std::byte{1});
    // What is plugged while the log is on is logged.
    EXPECT_THAT(ask("vm.dirty_harvest").value(), HasSubstr("[1073741824,4096]"));
    type('?');
    EXPECT_EQ(said_, 1U);
    ASSERT_TRUE(ask("vm.detach", R"({"share":"mailbox"})"));
    type('?');
    EXPECT_EQ(said_, 0xffU);
    EXPECT_TRUE(eventually([&] { return other.peers().empty(); }));
}

TEST_F(VmControlTest, AllIsAnsweredWithWhatTheSandboxLeavesToTheMainThread) {
    testing::TextLog log;
    const auto service = OwnService::create(folder_.path_of("share"), log).value();
    share::SessionOptions wanted{.control = service->control(), .share = "mailbox"};
    wanted.may_create = true;
    wanted.size_bytes = 8192;
    const share::Session other = share::Session::attach(wanted).value();
    start(service->control());
    // What the filter forbids ends the test.
    std::thread main{[&] {
        const auto entered = Sandbox{}.enter(ThreadKind::main);
        ASSERT_TRUE(entered) << entered.error().message();
        for (const auto& [call, arguments] : std::initializer_list<std::pair<const char*, const char*>>{
                 {"vm.dirty_log", R"({"on":true})"},
                 {"vm.attach", R"({"share":"mailbox"})"},
                 {"vm.stat", "{}"},
                 {"vm.memory_map", "{}"},
                 {"vm.dirty_harvest", "{}"},
                 {"vm.pause", "{}"},
                 {"vm.detach", R"({"share":"mailbox"})"},
                 {"vm.resume", "{}"},
                 {"vm.dirty_log", R"({"on":false})"},
                 {"vm.power_button", "{}"},
                 {"vm.stop", "{}"}}) {
            const auto answer = ask(call, arguments);
            EXPECT_TRUE(answer) << call << ": " << answer.error().message();
        }
    }};
    main.join();
    EXPECT_EQ(count_stops_, 1);
}

TEST_F(VmControlTest, ADevicesAddressesAreNoPlaceForAShare) {
    testing::TextLog log;
    const auto service = OwnService::create(folder_.path_of("share"), log).value();
    share::SessionOptions wanted{.control = service->control(), .share = "mailbox"};
    wanted.may_create = true;
    wanted.size_bytes = 8192;
    const share::Session other = share::Session::attach(wanted).value();
    start(service->control());
    const auto code_at = [&](std::uint64_t address) {
        const auto reply = ask("vm.attach", to_json(AttachShareCall{.share = "mailbox", .address = address}));
        return reply ? "ok" : std::string{to_string(reply.error().code())};
    };
    EXPECT_EQ(code_at(0xf800'0000), "already_exists");
    EXPECT_EQ(code_at(0xf7ff'f000), "already_exists");
    EXPECT_EQ(code_at(0xfee0'0000), "invalid_argument");
    EXPECT_EQ(code_at(0), "already_exists");
    EXPECT_EQ(code_at((16UL << 20) - 4096), "already_exists");
    EXPECT_EQ(code_at(plan_->share_window.base().value()), "invalid_argument");
    EXPECT_EQ(code_at(16UL << 20), "ok");
}

TEST(VmControlNames, ANameLeadsToAFileOfTheFolderOnly) {
    EXPECT_EQ(vm_control_path("/run/guestmem", "a.b-c_1").value(), "/run/guestmem/vm-a.b-c_1.control");
    EXPECT_TRUE(vm_control_path("/x", std::string(64, 'a')));
    for (const std::string& name : {std::string{}, std::string{".."}, std::string{"../a"}, std::string{"a/b"},
                                    std::string{".a"}, std::string{"-a"}, std::string{"a\0b", 3},
                                    std::string{"a\n"}, std::string{"\xc3\xa4"}, std::string(65, 'a')})
        EXPECT_EQ(vm_control_path("/x", name).error().code(), Errc::invalid_argument) << name;
}

TEST(VmControlNames, AFileNameIsAMachinesOrNobodys) {
    EXPECT_EQ(vm_name_of("vm-cluster.control"), "cluster");
    for (const char* name : {"vm-.control", "vm-cluster.share", "share.control", "vm-control",
                             "xvm-a.control", "vm-..control", "vm-a.control.x"})
        EXPECT_FALSE(vm_name_of(name)) << name;
}

}  // namespace
}  // namespace guestmem::vmm

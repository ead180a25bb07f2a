// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/shmem.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/control/server.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/share/testing/fake_service.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/vmm/share_watch.hpp"
#include "guestmem/vmm/testing/share_world.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;

constexpr std::uint32_t ok = 0;
constexpr std::uint32_t nomem = 2;
constexpr std::uint32_t client_max = 3;
constexpr std::uint32_t illegal_name = 4;
constexpr std::uint32_t no_permission = 5;
constexpr std::uint32_t does_not_exist = 6;
/// Of the window's regions.
constexpr std::uint64_t first_place = std::uint64_t{4} << 30;

template <typename T>
T read_at(IoDevice& device, std::uint64_t offset) {
    std::array<std::byte, sizeof(T)> bytes{};
    bytes.fill(std::byte{0xff});
    device.read(offset, bytes);
    T value{};
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
}

template <typename T>
void write_at(IoDevice& device, std::uint64_t offset, T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    std::memcpy(bytes.data(), &value, sizeof value);
    device.write(offset, bytes);
}

class CountingLine final : public InterruptLine {
public:
    void set(bool is_up) override { up = is_up; }
    std::atomic<bool> up{false};
};

class ShmemTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!world_.start()) GTEST_SKIP() << "SKIPPED: " << world_.machine.why;
        device_ = make({});
    }
    void TearDown() override {
        for (const auto& device : all_) device->detach_all();
    }

    std::shared_ptr<ShmemDevice> make(std::vector<share::Rule> rules) {
        auto device = std::make_shared<ShmemDevice>(
            ShmemDevice::Options{
                .name = "vdev shmem",
                .control = world_.control(),
                .rights = share::Rights{std::move(rules)},
                .rights_file = "vm.qvmconf",
                .line = line_,
                .warn = [this](const std::string& text) { world_.log.write(LogLevel::warning, text); }},
            *world_.window);
        all_.push_back(device);
        return device;
    }
    /// The sequence that a guest's program goes through; gives the status.
    static std::uint32_t request(ShmemDevice& device, const std::string& name, std::uint32_t pages) {
        for (std::size_t at = 0; at < ShmemDevice::name_field_bytes; ++at) {
            write_at(device, 0x1c + at, at < name.size() ? name[at] : '\0');
        }
        write_at<std::uint32_t>(device, 0x18, pages);
        return read_at<std::uint32_t>(device, 0x14);
    }
    std::uint32_t request(const std::string& name, std::uint32_t pages = 4) {
        return request(*device_, name, pages);
    }
    std::uint32_t control(std::uint64_t place, std::uint64_t offset) const {
        std::array<std::byte, 4> bytes{};
        EXPECT_TRUE(world_.bus.read(place + offset, bytes));
        std::uint32_t value = 0;
        std::memcpy(&value, bytes.data(), 4);
        return value;
    }
    void set_control(std::uint64_t place, std::uint64_t offset, std::uint32_t value) const {
        std::array<std::byte, 4> bytes{};
        std::memcpy(bytes.data(), &value, 4);
        EXPECT_TRUE(world_.bus.write(place + offset, bytes));
    }
    std::uint64_t place() { return read_at<std::uint64_t>(*device_, 0x08); }

    testing::ShareWorld world_;
    std::shared_ptr<CountingLine> line_ = std::make_shared<CountingLine>();
    std::vector<std::shared_ptr<ShmemDevice>> all_;
    std::shared_ptr<ShmemDevice> device_;
};

TEST_F(ShmemTest, TheSignatureReadsAsTheGuestsKnowIt) {
    std::array<std::byte, 8> bytes{};
    device_->read(0, bytes);
    EXPECT_EQ(std::memcmp(bytes.data(), "QVMG2GSM", 8), 0);
    device_->set_vector(43);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x10), 43U);
}

TEST_F(ShmemTest, ARegionIsMadeAtTheFirstRequestAndFoundAtTheNext) {
    ASSERT_EQ(request("mailbox", 4), ok) << world_.log.text();
    const std::uint64_t first = place();
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x18), 4U);
    ASSERT_EQ(request("mailbox", 9), ok);
    const std::uint64_t second = place();
    EXPECT_NE(first, second);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x18), 4U) << "the first maker's size stands";
    EXPECT_NE(control(first, 4), control(second, 4));
    auto reader = world_.memory->make_reader("test");
    ASSERT_TRUE(reader);
    ASSERT_TRUE(reader->memory().store<std::uint32_t>(GuestAddress{first + 4096}, 77));
    EXPECT_EQ(*reader->memory().load<std::uint32_t>(GuestAddress{second + 4096}), 77U);
}

TEST_F(ShmemTest, IllegalNamesAreRefusedAndSaidOnce) {
    EXPECT_EQ(request(""), illegal_name);
    EXPECT_EQ(request("a/b"), illegal_name);
    EXPECT_EQ(request("tab\t"), illegal_name);
    EXPECT_EQ(request(std::string(32, 'x')), illegal_name);
    EXPECT_EQ(place(), 0U);
    EXPECT_EQ(request(std::string(31, 'x')), ok);
    EXPECT_NE(world_.log.text().find("0x2f"), std::string::npos) << world_.log.text();
}

TEST_F(ShmemTest, SizesThatNobodyHasAreRefused) {
    EXPECT_EQ(request("much", 0xffff'ffff), nomem);
    EXPECT_NE(request("none", 0), ok);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x18), 0U);
}

TEST_F(ShmemTest, TheConfigurationsRightsDecideAtEachRequest) {
    const auto denying = make({{.verdict = share::Verdict::deny, .pattern = "pluto", .line = 7},
                               {.verdict = share::Verdict::allow, .pattern = "pluto*", .line = 8}});
    EXPECT_EQ(request(*denying, "pluto", 1), no_permission);
    EXPECT_EQ(request(*denying, "mars", 1), no_permission) << "an allow ends the list in deny *";
    EXPECT_EQ(request(*denying, "pluto2", 1), ok);
    EXPECT_NE(world_.log.text().find("vm.qvmconf:7"), std::string::npos) << world_.log.text();
}

TEST_F(ShmemTest, SeventeenClientsAreOneTooMany) {
    for (int count = 0; count < 16; ++count) ASSERT_EQ(request("full"), ok) << count;
    EXPECT_EQ(request("full"), client_max);
    EXPECT_EQ(request("other"), ok);
}

TEST_F(ShmemTest, FindCountsLiveConnectionsInTheOrderOfAttach) {
    ASSERT_EQ(request("first"), ok);
    const std::uint64_t first = place();
    ASSERT_EQ(request("second", 2), ok);
    const std::uint64_t second = place();
    write_at<std::uint32_t>(*device_, 0x3c, 0);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x14), ok);
    EXPECT_EQ(place(), first);
    EXPECT_EQ(read_at<std::uint8_t>(*device_, 0x1c), 'f');
    set_control(first, 0x0c, 1);
    write_at<std::uint32_t>(*device_, 0x3c, 0);
    EXPECT_EQ(place(), second);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x18), 2U);
    write_at<std::uint32_t>(*device_, 0x3c, 1);
    EXPECT_EQ(read_at<std::uint32_t>(*device_, 0x14), does_not_exist);
}

TEST_F(ShmemTest, NoticesReachWhoIsMeantWithTheSendersBit) {
    ASSERT_EQ(request("talk"), ok);
    const std::uint64_t first = place();
    ASSERT_EQ(request("talk"), ok);
    const std::uint64_t second = place();
    const std::uint32_t first_bit = 1U << control(first, 4);
    const std::uint32_t second_bit = 1U << control(second, 4);
    static_cast<void>(control(first, 0));
    EXPECT_EQ(control(second, 0) >> 16, first_bit | second_bit);
    set_control(first, 0x08, second_bit);
    EXPECT_EQ(control(second, 0) & 0xffff, first_bit);
    EXPECT_EQ(control(second, 0) & 0xffff, 0U) << "the low half is cleared by a look";
    set_control(first, 0x08, 0xffff'ffff);
    EXPECT_EQ(control(first, 0) & 0xffff, 0U) << "all ones leave the writer out";
    EXPECT_EQ(control(second, 0) & 0xffff, first_bit);
    set_control(first, 0x08, 0xffff);
    EXPECT_EQ(control(first, 0) & 0xffff, first_bit) << "0xffff is the writer, too";
}

TEST_F(ShmemTest, TheLineIsUpFromAChangeUntilItIsRead) {
    auto watch = ShareWatch::create().value();
    watch->add([this] { return device_->clients(); });
    ASSERT_EQ(request("line"), ok);
    const std::uint64_t first = place();
    static_cast<void>(control(first, 0));
    EXPECT_FALSE(line_->up);
    watch->start();
    const auto other = make({});
    ASSERT_EQ(request(*other, "line", 1), ok);
    EXPECT_TRUE(eventually([this] { return line_->up.load(); })) << "somebody came";
    EXPECT_NE(control(first, 0) >> 16, 0U);
    EXPECT_FALSE(line_->up);
    other->detach_all();
    EXPECT_TRUE(eventually([this] { return line_->up.load(); })) << "and went";
    static_cast<void>(control(first, 0));
    EXPECT_FALSE(line_->up);
    watch->stop();
}

TEST_F(ShmemTest, AMessageIsDueFromAChangeUntilItIsServed) {
    std::atomic<int> due{-1};
    const auto device = std::make_shared<ShmemDevice>(
        ShmemDevice::Options{.name = "vdev shmem",
                             .control = world_.control(),
                             .message = [&due](bool is_due) { due = is_due ? 1 : 0; },
                             .warn = [](const std::string&) {}},
        *world_.window);
    all_.push_back(device);
    auto watch = ShareWatch::create().value();
    watch->add([&] { return device->clients(); });
    ASSERT_EQ(request(*device, "message", 1), ok);
    const auto at = read_at<std::uint64_t>(*device, 0x08);
    static_cast<void>(control(at, 0));
    watch->start();
    set_control(at, 0x08, 0xffff);
    EXPECT_TRUE(eventually([&] { return due == 1; }));
    static_cast<void>(control(at, 0));
    EXPECT_EQ(due, 0) << "what was served is no message any more";
    watch->stop();
}

/// As the machine's messages: what is connected is taken by nobody else.
class Bells {
public:
    explicit Bells(ShmemDevice::Options& options) {
        options.connect_bell = [this](FdView bell) -> Result<void> {
            if (is_refusing) return Error{Errc::exhausted, "no bell"};
            connected.push_back(bell.number());
            return {};
        };
        options.disconnect_bell = [this](FdView bell) { std::erase(connected, bell.number()); };
    }
    std::vector<int> connected;
    bool is_refusing = false;
};

TEST_F(ShmemTest, AKickIsInTheBellOfItsReceiverAndInTheStatusWithoutAnyThreadOfOurs) {
    ShmemDevice::Options options{.name = "vdev shmem", .control = world_.control()};
    Bells bells{options};
    const auto device = std::make_shared<ShmemDevice>(std::move(options), *world_.window);
    all_.push_back(device);
    ASSERT_EQ(request(*device, "play", 4), ok);
    const std::uint64_t receiver = read_at<std::uint64_t>(*device, 0x08);
    ASSERT_EQ(bells.connected.size(), 1U);
    ASSERT_EQ(request("play"), ok);
    const std::uint64_t sender = place();
    static_cast<void>(control(receiver, 0));

    set_control(sender, 8, 1U << control(receiver, 4));

    // The kernel takes it, as it does from a bell that is an interrupt.
    const FdView bell{bells.connected.front()};
    EXPECT_TRUE(poll_readable(bell, 0).value());
    std::uint64_t kicks = 0;
    ASSERT_EQ(::read(bell.number(), &kicks, sizeof kicks), static_cast<ssize_t>(sizeof kicks));
    EXPECT_EQ(kicks, 1U);
    EXPECT_EQ(control(receiver, 0) & 0xffff, 1U << control(sender, 4));
    EXPECT_EQ(control(receiver, 0) & 0xffff, 0U);

    set_control(receiver, 12, 0);
    EXPECT_TRUE(bells.connected.empty());
}

TEST_F(ShmemTest, WithoutABellAConnectionIsMadeAllTheSame) {
    ShmemDevice::Options options{.name = "vdev shmem", .control = world_.control()};
    Bells bells{options};
    bells.is_refusing = true;
    std::string warnings;
    options.warn = [&](const std::string& text) { warnings += text; };
    const auto device = std::make_shared<ShmemDevice>(std::move(options), *world_.window);
    all_.push_back(device);
    EXPECT_EQ(request(*device, "play", 4), ok);
    EXPECT_NE(warnings.find("no bell"), std::string::npos) << warnings;
    device->detach_all();
}

TEST_F(ShmemTest, WhoHasDetachedIsSeenAsGoneAndItsPlaceIsNothing) {
    ASSERT_EQ(request("leave"), ok);
    const std::uint64_t first = place();
    ASSERT_EQ(request("leave"), ok);
    const std::uint64_t second = place();
    const std::uint32_t first_bit = 1U << control(first, 4);
    set_control(second, 0x0c, 0);
    std::array<std::byte, 4> bytes{};
    EXPECT_FALSE(world_.bus.read(second, bytes));
    EXPECT_TRUE(eventually([&] { return control(first, 0) >> 16 == first_bit; }));
    EXPECT_EQ(device_->clients().size(), 1U);
}

TEST_F(ShmemTest, AServiceThatLostTheRegionHasEndedTheConnection) {
    ASSERT_EQ(request("lost"), ok);
    const std::uint64_t old = place();
    ASSERT_EQ(request("other"), ok);
    const std::uint32_t index = control(old, 4);
    const auto clients = device_->clients();
    for (const auto& client : clients) static_cast<void>(client->look());
    static_cast<void>(control(old, 0));
    const std::size_t slots = world_.memory->count_slots();
    auto reader = world_.memory->make_reader("test");
    ASSERT_TRUE(reader);
    ASSERT_TRUE(reader->memory().store<std::uint32_t>(GuestAddress{old + 4096}, 77));
    reader->park();
    world_.restart_service();
    ASSERT_TRUE(eventually([&] {
        clients[0]->look();
        return clients[0]->has_ended();
    }));
    EXPECT_TRUE(line_->up) << "that is a change of status";
    EXPECT_EQ(world_.memory->count_slots(), slots - 1);
    EXPECT_FALSE(reader->memory().load<std::uint32_t>(GuestAddress{old + 4096}))
        << "no byte is left to be stale";
    EXPECT_EQ(control(old, 0), 0U) << "nobody is active";
    EXPECT_EQ(control(old, 4), index);
    set_control(old, 0x08, 0xffff);
    EXPECT_EQ(control(old, 0), 0U);
    EXPECT_NE(world_.log.text().find("share 'lost': the service came back without this region"),
              std::string::npos)
        << world_.log.text();
    write_at<std::uint32_t>(*device_, 0x3c, 0);
    EXPECT_EQ(read_at<std::uint8_t>(*device_, 0x1c), 'o') << "only the live are found";

    ASSERT_EQ(request("lost"), ok);
    const std::uint64_t again = place();
    EXPECT_NE(again, old);
    EXPECT_EQ(*reader->memory().load<std::uint32_t>(GuestAddress{again + 4096}), 0U);
    EXPECT_EQ(control(again, 0) >> 16, 1U << control(again, 4)) << "the ended one holds no place in it";
    set_control(old, 0x0c, 1);
    std::array<std::byte, 4> bytes{};
    EXPECT_FALSE(world_.bus.read(old, bytes));
}

TEST_F(ShmemTest, AnotherPlaceInTheSameRegionIsNotThisConnection) {
    share::testing::FakeShare share{.path = world_.folder.path_of("fake"), .slots = 4, .vectors = 1};
    guestmem::testing::LoopThread loop;
    std::unique_ptr<share::testing::FakeService> service;
    loop.call([&](EventLoop& on) { service = std::make_unique<share::testing::FakeService>(on, share); });
    const auto device = std::make_shared<ShmemDevice>(
        ShmemDevice::Options{
            .name = "vdev shmem",
            .control = share.path,
            .warn = [this](const std::string& text) { world_.log.write(LogLevel::warning, text); }},
        *world_.window);
    all_.push_back(device);
    ASSERT_EQ(request(*device, "moved", 1), ok) << world_.log.text();
    const auto at = read_at<std::uint64_t>(*device, 0x08);
    ASSERT_EQ(control(at, 4), 0U);
    // Cut off, and its place given away before it is back.
    loop.call([&](EventLoop&) { service->cut(0); });
    auto taker = share::Session::attach({.control = share.path, .share = "moved", .slot = 0});
    ASSERT_TRUE(taker) << taker.error().message();
    ASSERT_TRUE(eventually([&] { return control(at, 0) == 0; }));
    EXPECT_TRUE(device->clients().front()->has_ended());
    EXPECT_EQ(control(at, 4), 0U) << "its index is what it was";
    device->detach_all();
    loop.call([&](EventLoop&) { service.reset(); });
}

TEST_F(ShmemTest, ABellThatMovesWhileItsConnectionIsMadeIsConnectedAgain) {
    share::testing::FakeShare share{.path = world_.folder.path_of("fake"), .slots = 4, .vectors = 1};
    guestmem::testing::LoopThread loop;
    std::unique_ptr<share::testing::FakeService> service;
    loop.call([&](EventLoop& on) { service = std::make_unique<share::testing::FakeService>(on, share); });
    ShmemDevice::Options options{.name = "vdev shmem", .control = share.path};
    int connects = 0;
    std::vector<int> connected;
    options.connect_bell = [&](FdView bell) -> Result<void> {
        connected.push_back(bell.number());
        if (++connects != 1) return {};
        // Cut off once its bell was taken, and back by another processor's read of its page, which shows already.
        loop.call([&](EventLoop&) { service->cut(0); });
        EXPECT_TRUE(eventually([&] {
            static_cast<void>(control(first_place, 0));
            std::size_t count = 0;
            loop.call([&](EventLoop&) { count = service->count_attaches(); });
            return count == 2;
        }));
        static_cast<void>(control(first_place, 0));
        return {};
    };
    options.disconnect_bell = [&](FdView bell) { std::erase(connected, bell.number()); };
    const auto device = std::make_shared<ShmemDevice>(std::move(options), *world_.window);
    all_.push_back(device);
    ASSERT_EQ(request(*device, "moving", 1), ok) << world_.log.text();
    ASSERT_EQ(read_at<std::uint64_t>(*device, 0x08), first_place);
    EXPECT_EQ(connects, 2);
    EXPECT_EQ(connected.size(), 1U);
    device->detach_all();
    EXPECT_TRUE(connected.empty());
    loop.call([&](EventLoop&) { service.reset(); });
}

TEST_F(ShmemTest, AServiceThatNeverAnswersHoldsOneProcessorForAWhileAndNoOther) {
    // It listens, and its loop does not run.
    EventLoop loop = EventLoop::create().value();
    const std::string path = world_.folder.path_of("silent");
    const auto server = control::Server::create(
        loop, {.socket = {.path = path}},
        [](const PeerCredentials&, const control::Request&) { return control::Outcome{}; });
    ASSERT_TRUE(server) << server.error().message();
    const auto device = std::make_shared<ShmemDevice>(
        ShmemDevice::Options{
            .name = "vdev shmem",
            .control = path,
            .warn = [this](const std::string& text) { world_.log.write(LogLevel::warning, text); }},
        *world_.window);
    // Whether the second one comes while the first one waits is the scheduler's to say.
    bool was_refused = false;
    for (int tries = 0; tries < 10 && !was_refused; ++tries) {
        std::atomic<bool> is_over{false};
        std::thread first{[&] {
            request(*device, "slow", 1);
            is_over = true;
        }};
        while (!is_over && !was_refused) {
            if (world_.log.text().find("while another processor's") != std::string::npos) was_refused = true;
            // Not a request of its own before the first one has begun.
            std::this_thread::sleep_for(std::chrono::milliseconds{50});
            if (!is_over) write_at<std::uint32_t>(*device, 0x18, 1);
        }
        first.join();
    }
    EXPECT_TRUE(was_refused) << world_.log.text();
    EXPECT_EQ(request(*device, "slow", 1), nomem) << "what is not there in time is short";
}

TEST_F(ShmemTest, EveryOffsetAndWidthIsAnswered) {
    ASSERT_EQ(request("wide"), ok);
    const std::uint64_t control_page = place();
    for (const std::size_t width : {1U, 2U, 4U, 8U}) {
        std::vector<std::byte> data(width);
        for (std::uint64_t offset = 0; offset + width <= 4096; ++offset) {
            device_->read(offset, data);
            world_.bus.read(control_page + offset, data);
            if (offset < 0x18 || offset >= 0x40) device_->write(offset, data);
            if (offset >= 0x10) world_.bus.write(control_page + offset, data);
        }
    }
    EXPECT_EQ(device_->clients().size(), 1U);
}

TEST_F(ShmemTest, WithoutAServiceARequestIsAnUnknownFailure) {
    world_.service.reset();
    EXPECT_EQ(request("alone"), 1U);
    EXPECT_NE(world_.log.text().find("guestmem share serve"), std::string::npos) << world_.log.text();
}

}  // namespace
}  // namespace guestmem::vmm

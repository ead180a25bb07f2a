// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/share/hall.hpp"
#include "guestmem/share/host_shm.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

constexpr int patience_ms = 30'000;

class Silence final : public Log {
public:
    void write(LogLevel, std::string_view) override {}
};

/// A service with a share of 16 slots and 2 vectors; ivshmem clients come by its door as QEMU does.
class PairedShare : public ::testing::Test {
protected:
    ~PairedShare() override {
        loop_.call([this](EventLoop&) { service_.reset(); });
    }
    void serve(bool is_kept = false) {
        QuickOptions options;
        options.share = {.name = "m", .size_bytes = 8192, .vectors = 2, .slots = 16, .ids = IdPolicy::stable};
        options.socket = folder_.path_of("s");
        options.control = folder_.path_of("c");
        const ServiceConfig config = quick_config(options).value();
        loop_.call([&](EventLoop& loop) {
            ServiceOptions made;
            if (is_kept) made.inheritance = join_keeper({.path = folder_.path_of("k")}).value();
            auto service = Service::create(loop, log_, config, std::move(made));
            ASSERT_TRUE(service) << service.error().message();
            service_.emplace(std::move(*service));
        });
    }
    /// The next instance goes on with what the keeper holds.
    void serve_again() {
        loop_.call([&](EventLoop&) {
            ASSERT_TRUE(service_->retire());
            service_.reset();
        });
        serve(true);
    }
    [[nodiscard]] Client join() const {
        Client client = Client::connect(folder_.path_of("s")).value();
        EXPECT_TRUE(client.join(2, patience_ms));
        return client;
    }
    [[nodiscard]] HostShm attach() const {
        HostShm shm = HostShm::create(0).value();
        const auto done = shm.attach({.name = "m",
                                      .size_pages = 2,
                                      .control = folder_.path_of("c"),
                                      .timeout_ms = static_cast<std::uint64_t>(patience_ms)});
        EXPECT_TRUE(done) << done.error().message();
        return shm;
    }
    static std::uint32_t bit(const Client& client) { return std::uint32_t{1} << *client.table().own_id(); }
    /// Who poked, once all of `expected` have.
    static std::uint32_t heard(HostShm& shm, std::uint32_t expected) {
        std::uint32_t bits = 0;
        const Deadline deadline{std::chrono::milliseconds{patience_ms}};
        while ((bits & expected) != expected && !deadline.has_passed())
            bits |= shm.wait_status(100).value() & host_shm_poke_all;
        return bits;
    }
    static std::uint32_t heard_at_once(HostShm& shm) { return shm.status().value() & host_shm_poke_all; }
    /// Until the service has let a slot go.
    static void wait_until_left(HostShm& shm, std::uint32_t slot) {
        const Deadline deadline{std::chrono::milliseconds{patience_ms}};
        while ((shm.status().value() >> 16 >> slot & 1) != 0 && !deadline.has_passed())
            static_cast<void>(shm.wait_status(20).has_value());
    }

    guestmem::testing::TempFolder folder_;
    Silence log_;
    guestmem::testing::LoopThread loop_;
    std::optional<Service> service_;
};

TEST_F(PairedShare, AKickSetsTheBitOfTheClientThatRangAndNoOther) {
    serve();
    const Client early = join();
    const Client other = join();
    HostShm shm = attach();
    const Client late = join();
    for (const Client* const client : {&early, &other, &late}) {
        for (const std::uint32_t vector : {0U, 1U}) {
            ASSERT_TRUE(client->ring(*shm.index(), vector));
            EXPECT_EQ(heard(shm, bit(*client)), bit(*client));
            EXPECT_EQ(heard_at_once(shm), 0U);
        }
    }
    ASSERT_TRUE(late.ring(*shm.index(), 0));
    ASSERT_TRUE(early.ring(*shm.index(), 1));
    EXPECT_EQ(heard(shm, bit(late) | bit(early)), bit(late) | bit(early));
}

TEST_F(PairedShare, TwoReceiversHearTheSameClientApart) {
    serve();
    const Client client = join();
    HostShm one = attach();
    HostShm two = attach();
    ASSERT_NE(one.index(), two.index());
    ASSERT_TRUE(client.ring(*one.index(), 0));
    EXPECT_EQ(heard(one, bit(client)), bit(client));
    EXPECT_EQ(heard_at_once(two), 0U);
    ASSERT_TRUE(two.poke(std::uint32_t{1} << *one.index()));
    ASSERT_TRUE(client.ring(*one.index(), 0));
    const std::uint32_t both = bit(client) | std::uint32_t{1} << *two.index();
    EXPECT_EQ(heard(one, both), both);
}

TEST_F(PairedShare, ClientsRingEachOtherWithoutTheService) {
    serve();
    const Client one = join();
    HostShm shm = attach();
    const Client two = join();
    // The service's thread does this, and nothing else meanwhile.
    loop_.call([&](EventLoop&) {
        for (const std::uint32_t vector : {0U, 1U}) {
            EXPECT_TRUE(one.ring(*two.table().own_id(), vector));
            EXPECT_EQ(two.wait(vector, 0).value(), 1U);
            EXPECT_TRUE(two.ring(*one.table().own_id(), vector));
            EXPECT_EQ(one.wait(vector, 0).value(), 1U);
        }
    });
    ASSERT_TRUE(shm.poke(bit(one)));
    EXPECT_EQ(one.wait(0, patience_ms).value(), 1U);
}

TEST_F(PairedShare, WhoTakesTheSlotOfASenderHasDoorbellsOfItsOwn) {
    serve();
    HostShm shm = attach();
    std::optional<Client> first{join()};
    const std::uint32_t slot = *first->table().own_id();
    const Fd old = (*first->table().find(*shm.index()))[0].duplicate().value();
    ASSERT_TRUE(first->ring(*shm.index(), 0));
    first.reset();
    wait_until_left(shm, slot);
    const Client second = join();
    ASSERT_EQ(second.table().own_id(), slot);
    static_cast<void>(heard_at_once(shm));
    // Whoever kept the former's doorbell rings nobody with it.
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(old.view().number(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
    const Client other = join();
    ASSERT_TRUE(other.ring(*shm.index(), 0));
    EXPECT_EQ(heard(shm, bit(other)), bit(other));
    ASSERT_TRUE(second.ring(*shm.index(), 0));
    EXPECT_EQ(heard(shm, bit(second)), bit(second));
}

TEST_F(PairedShare, WhatASenderRangBeforeItLeftIsTold) {
    serve();
    HostShm shm = attach();
    std::optional<Client> client{join()};
    const std::uint32_t its_bit = bit(*client);
    ASSERT_TRUE(client->ring(*shm.index(), 1));
    client.reset();
    EXPECT_EQ(heard(shm, its_bit), its_bit);
}

TEST_F(PairedShare, WhatASenderRangOnAnotherVectorBeforeItLeftEndsNoWait) {
    serve();
    Session session = Session::attach({.control = folder_.path_of("c"),
                                       .share = "m",
                                       .timeout_ms = static_cast<std::uint64_t>(patience_ms),
                                       .hears_senders = true})
                          .value();
    for (int round = 0; round < 2; ++round) {
        std::optional<Client> client{join()};
        const std::uint32_t slot = *client->table().own_id();
        ASSERT_TRUE(client->ring(session.id(), 1));
        client.reset();
        const Deadline deadline{std::chrono::milliseconds{patience_ms}};
        while (session.is_present(slot) && !deadline.has_passed()) ASSERT_TRUE(session.refresh());
        // Its doorbell was taken out of the session with its kick.
        ASSERT_TRUE(session.refresh());
        const std::vector<std::uint32_t> first{0};
        const auto start = std::chrono::steady_clock::now();
        const WaitOutcome outcome = session.wait({.vectors = first, .timeout_ms = 100}).value();
        EXPECT_TRUE(outcome.kicks.empty());
        EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds{90});
    }
    std::uint64_t count = 0;
    const std::vector<std::uint32_t> second{1};
    const Deadline deadline{std::chrono::milliseconds{patience_ms}};
    while (count < 2 && !deadline.has_passed()) {
        const WaitOutcome outcome = session.wait({.vectors = second, .timeout_ms = 100}).value();
        EXPECT_LE(outcome.kicks.size(), 1U) << "one entry a vector";
        for (const Kick& kick : outcome.kicks) count += kick.count;
    }
    EXPECT_EQ(count, 2U);
}

TEST_F(PairedShare, WhoTakesTheSlotOfAReceiverHearsNothingThatWasForTheFormer) {
    serve();
    const Client client = join();
    HostShm watcher = attach();
    std::optional<HostShm> first{attach()};
    const std::uint32_t slot = *first->index();
    ASSERT_TRUE(client.ring(slot, 0));
    first->detach();
    wait_until_left(watcher, slot);
    HostShm second = attach();
    ASSERT_EQ(second.index(), slot);
    EXPECT_EQ(heard_at_once(second), 0U);
    ASSERT_TRUE(client.ring(slot, 0));
    EXPECT_EQ(heard(second, bit(client)), bit(client));
    EXPECT_EQ(heard_at_once(watcher), 0U);
}

TEST_F(PairedShare, KicksArePassedOnWhereAnotherKindOfReceiverHasTheSlot) {
    serve();
    std::vector<Client> clients;
    for (int i = 0; i < 16; ++i) clients.push_back(join());
    for (Client& from : clients)
        for (Client& to : clients) {
            if (&from == &to) continue;
            ASSERT_TRUE(from.ring(*to.table().own_id(), 1));
            EXPECT_GE(to.wait(1, patience_ms).value(), 1U)
                << *from.table().own_id() << " to " << *to.table().own_id();
        }
}

TEST_F(PairedShare, AFullAndBlockingDoorbellHarmsNobody) {
    serve();
    const Client hostile = join();
    HostShm shm = attach();
    const Client client = join();
    for (const EventFd& bell : *hostile.table().find(*shm.index())) {
        const int number = bell.view().number();
        const std::uint64_t all = UINT64_MAX - 1;
        ASSERT_EQ(::write(number, &all, sizeof all), static_cast<ssize_t>(sizeof all));
        ASSERT_EQ(::fcntl(number, F_SETFL, 0), 0);
    }
    EXPECT_EQ(heard(shm, bit(hostile)), bit(hostile));
    EXPECT_EQ(heard_at_once(shm), 0U);
    ASSERT_TRUE(client.ring(*shm.index(), 0));
    EXPECT_EQ(heard(shm, bit(client)), bit(client));
    shm.detach();
    // The service drains what was for it, and serves on.
    ASSERT_TRUE(hostile.ring(*client.table().own_id(), 0));
    EXPECT_EQ(client.wait(0, patience_ms).value(), 1U);
    HostShm again = attach();
    ASSERT_TRUE(hostile.ring(*again.index(), 0));
    EXPECT_EQ(heard(again, bit(hostile)), bit(hostile));
}

TEST_F(PairedShare, TheNextInstanceKnowsWhoRingsByWhat) {
    serve(true);
    const Client early = join();
    HostShm shm = attach();
    const Client client = join();
    ASSERT_TRUE(client.ring(*shm.index(), 0));
    serve_again();
    // What was rung meanwhile is not lost, and what is rung later is heard, by whoever came when.
    EXPECT_EQ(heard(shm, bit(client)), bit(client));
    HostShm other = attach();
    const Client late = join();
    for (HostShm* const hearer : {&shm, &other}) {
        for (const Client* const caller : {&early, &client, &late}) {
            ASSERT_TRUE(caller->ring(*hearer->index(), 0));
            EXPECT_EQ(heard(*hearer, bit(*caller)), bit(*caller));
        }
        EXPECT_EQ(heard_at_once(*hearer), 0U);
    }
    serve_again();
    ASSERT_TRUE(early.ring(*other.index(), 1));
    EXPECT_EQ(heard(other, bit(early)), bit(early));
    loop_.call([this](EventLoop&) { service_.reset(); });
}

TEST_F(PairedShare, ASenderThatLeftWhileNobodyServedIsForgotten) {
    serve(true);
    HostShm shm = attach();
    std::optional<Client> client{join()};
    const std::uint32_t slot = *client->table().own_id();
    ASSERT_TRUE(client->ring(*shm.index(), 0));
    EXPECT_EQ(heard(shm, 1U << slot), 1U << slot);
    loop_.call([&](EventLoop&) {
        ASSERT_TRUE(service_->retire());
        service_.reset();
    });
    client.reset();
    serve(true);
    wait_until_left(shm, slot);
    const Client next = join();
    ASSERT_EQ(next.table().own_id(), slot);
    ASSERT_TRUE(next.ring(*shm.index(), 0));
    EXPECT_EQ(heard(shm, bit(next)), bit(next));
}

}  // namespace
}  // namespace guestmem::share

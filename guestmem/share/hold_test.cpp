// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/hold.hpp"

#include <gmock/gmock.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/control/client.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/host_shm.hpp"
#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

constexpr int patience_ms = 30'000;

class Silence final : public Log {
public:
    void write(LogLevel, std::string_view) override {}
};

class Holding : public ::testing::Test {
protected:
    ~Holding() override { stop(); }
    void serve(bool is_kept = false, UsageLimits limits = {}) {
        ServiceConfig config;
        config.control.socket.path = control();
        VmConfig vm;
        vm.name = "vm";
        vm.socket = ListenOptions{.path = folder_.path_of("vm")};
        vm.rules = {{.verdict = Verdict::deny, .pattern = "secret*"}};
        vm.limits = limits;
        config.vms.push_back(vm);
        loop_.call([&](EventLoop& loop) {
            ServiceOptions made;
            if (is_kept) made.inheritance = join_keeper({.path = folder_.path_of("k")}).value();
            auto service = Service::create(loop, log_, config, std::move(made));
            ASSERT_TRUE(service) << service.error().message();
            service_.emplace(std::move(*service));
        });
    }
    void stop() {
        loop_.call([this](EventLoop&) { service_.reset(); });
    }
    void serve_again() {
        loop_.call([&](EventLoop&) {
            ASSERT_TRUE(service_->retire());
            service_.reset();
        });
        serve(true);
    }
    [[nodiscard]] std::string control() const { return folder_.path_of("c"); }
    [[nodiscard]] HoldOptions options(const std::string& name = "region") const {
        return {.control = control(),
                .share = name,
                .size_bytes = 8192,
                .timeout_ms = static_cast<std::uint64_t>(patience_ms)};
    }
    [[nodiscard]] Result<Session> attach() const {
        return Session::attach(
            {.control = control(), .share = "region", .timeout_ms = static_cast<std::uint64_t>(patience_ms)});
    }
    [[nodiscard]] std::optional<ShareSummary> summary() const {
        auto client = control::Client::connect(control(), patience_ms).value();
        const auto answer = client.call("share.list", "{}").value();
        const ServiceSummary service = parse_service_summary(answer.result).value();
        for (const ShareSummary& share : service.shares)
            if (share.name == "region") return share;
        return std::nullopt;
    }
    static bool becomes(const std::function<bool()>& is_so) {
        const Deadline deadline{std::chrono::milliseconds{patience_ms}};
        while (!is_so()) {
            if (deadline.has_passed()) return false;
            static_cast<void>(poll_readable(std::span<const FdView>{}, 5).has_value());
        }
        return true;
    }

    guestmem::testing::TempFolder folder_;
    Silence log_;
    guestmem::testing::LoopThread loop_;
    std::optional<Service> service_;
};

TEST_F(Holding, MakesAShareThatIsThereForOthersAndTakesNoneOfItsPlaces) {
    serve();
    const Hold hold = Hold::take(options()).value();
    EXPECT_TRUE(hold.was_created());
    EXPECT_EQ(hold.size_bytes(), 8192U);
    EXPECT_EQ(hold.share(), "region");
    ASSERT_TRUE(summary());
    EXPECT_EQ(summary()->count_peers, 0U);
    EXPECT_EQ(summary()->count_holders, 1U);
    EXPECT_EQ(summary()->stage, "ready");
    std::vector<Session> sessions;
    for (int i = 0; i < 16; ++i) {
        auto session = attach();
        ASSERT_TRUE(session) << i << ": " << session.error().message();
        sessions.push_back(std::move(*session));
    }
    EXPECT_EQ(attach().error().os_error(), ENOSPC);
}

TEST_F(Holding, KeepsTheBytesWhileNobodyIsThereAndTheShareEndsWithIt) {
    serve();
    std::optional<Hold> hold{Hold::take(options()).value()};
    for (const char* const text : {"", "written"}) {
        Session session = attach().value();
        Mapping memory = session.map().value();
        EXPECT_STREQ(reinterpret_cast<const char*>(memory.bytes().data()), text);
        std::memcpy(memory.bytes().data(), "written", 8);
    }
    ASSERT_TRUE(becomes([&] { return summary()->count_peers == 0; }));
    hold.reset();
    EXPECT_TRUE(becomes([&] { return !summary(); }));
}

TEST_F(Holding, TheShareStaysForItsLastClientWhenTheHoldEndsFirst) {
    serve();
    std::optional<Hold> hold{Hold::take(options()).value()};
    std::optional<Session> session{attach().value()};
    hold.reset();
    ASSERT_TRUE(becomes([&] { return summary()->count_holders == 0; }));
    EXPECT_EQ(summary()->count_peers, 1U);
    session.reset();
    EXPECT_TRUE(becomes([&] { return !summary(); }));
}

TEST_F(Holding, OneThatExistsHasTheSizeOfItsMaker) {
    serve();
    const Hold first = Hold::take(options()).value();
    HoldOptions larger = options();
    larger.size_bytes = 65'536;
    const Hold second = Hold::take(larger).value();
    EXPECT_FALSE(second.was_created());
    EXPECT_EQ(second.size_bytes(), 8192U);
    EXPECT_EQ(summary()->count_holders, 2U);
}

TEST_F(Holding, IsRefusedWhereTheRulesRefuseAnAttach) {
    serve();
    HoldOptions as_vm = options("secret-1");
    as_vm.control = folder_.path_of("vm");
    EXPECT_EQ(Hold::take(as_vm).error().os_error(), EACCES);
    const Hold of_host = Hold::take(options("secret-1")).value();
    EXPECT_EQ(Hold::take(as_vm).error().os_error(), EACCES);
    as_vm.share = "open";
    EXPECT_TRUE(Hold::take(as_vm));
}

TEST_F(Holding, CountsAsAPeerForLimits) {
    UsageLimits limits;
    limits.peers = 2;
    serve(false, limits);
    HoldOptions as_vm = options();
    as_vm.control = folder_.path_of("vm");
    std::vector<Hold> holds;
    for (int i = 0; i < 2; ++i) holds.push_back(Hold::take(as_vm).value());
    EXPECT_EQ(Hold::take(as_vm).error().os_error(), EDQUOT);
    holds.pop_back();
    EXPECT_TRUE(becomes([&] { return Hold::take(as_vm).has_value(); }));
}

TEST_F(Holding, IsRefusedWhereTheHostHasNotTheMemory) {
    serve();
    HoldOptions huge = options();
    huge.size_bytes = max_size_bytes;
    const auto refused = Hold::take(huge);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::exhausted) << refused.error().message();
    EXPECT_TRUE(becomes([&] { return !summary(); }));
}

TEST_F(Holding, OutlivesTheServiceWithAKeeper) {
    serve(true);
    std::optional<Hold> hold{Hold::take(options()).value()};
    {
        Session session = attach().value();
        std::memcpy(session.map().value().bytes().data(), "kept", 5);
    }
    for (int i = 0; i < 2; ++i) {
        serve_again();
        EXPECT_FALSE(hold->is_lost().value());
        ASSERT_TRUE(summary());
        EXPECT_EQ(summary()->count_holders, 1U);
        const Session session = attach().value();
        EXPECT_STREQ(reinterpret_cast<const char*>(session.map().value().bytes().data()), "kept");
    }
    hold.reset();
    EXPECT_TRUE(becomes([&] { return !summary(); }));
    // Nobody holds it while nobody serves: the next instance lets it go.
    hold.emplace(Hold::take(options()).value());
    loop_.call([&](EventLoop&) {
        ASSERT_TRUE(service_->retire());
        service_.reset();
    });
    hold.reset();
    serve(true);
    EXPECT_TRUE(becomes([&] { return !summary(); }));
}

TEST_F(Holding, IsLostWithAServiceThatHasNoKeeper) {
    serve();
    const Hold hold = Hold::take(options()).value();
    EXPECT_FALSE(hold.is_lost().value());
    stop();
    EXPECT_TRUE(hold.is_lost().value());
}

}  // namespace
}  // namespace guestmem::share

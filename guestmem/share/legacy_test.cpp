// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/legacy.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/share/keeper/testing/keeper_fixtures.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem::share {
namespace {

using testing::Bells;
using testing::eventually;
using ::testing::HasSubstr;
using testing::KeeperProcess;
using testing::TempFolder;

constexpr std::chrono::seconds patience{30};

class Lines final : public Log {
public:
    void write(LogLevel, std::string_view text) override { lines.emplace_back(text); }
    [[nodiscard]] std::size_t count(std::string_view part) const {
        return static_cast<std::size_t>(std::ranges::count_if(
            lines, [&](const std::string& line) { return line.find(part) != std::string::npos; }));
    }
    std::vector<std::string> lines;
};

/// A legacy with a keeper of its own, and a clock that the test moves.
class LegacyTest : public ::testing::Test {
protected:
    void start(std::size_t capacity = 1000) {
        keeper_.emplace(KeeperProcessOptions{.path = path_, .capacity = capacity});
        legacy_.emplace(Journal::create().value(), join().keeper, limiter_);
        legacy_->call_when_behind([this] { ++count_calls_; });
    }
    [[nodiscard]] Inheritance join() const {
        return join_keeper(
                   {.path = path_, .patience = patience, .call_patience = std::chrono::milliseconds{50}})
            .value();
    }
    /// What the next instance gets.
    [[nodiscard]] std::vector<KeptFd> inherit() {
        legacy_.reset();
        return join().kept;
    }
    /// Gives the same one again and again until the keeper takes no more.
    void overflow(const Bells& bell) {
        for (int count = 0; !legacy_->is_behind() && count < 100'000; ++count)
            legacy_->keep(bell.requests(), now_);
        ASSERT_TRUE(legacy_->is_behind());
    }
    void catch_up(const std::function<void()>& offer) {
        EXPECT_TRUE(eventually([&] { return !legacy_->catch_up(now_ += 60'000, offer); }, patience));
        EXPECT_FALSE(legacy_->is_behind());
    }

    TempFolder folder_;
    std::string path_ = folder_.path_of("keeper");
    Lines log_;
    LogLimiter limiter_{log_, 1000};
    std::optional<KeeperProcess> keeper_;
    std::optional<Legacy> legacy_;
    std::uint64_t now_ = 1;
    int count_calls_ = 0;
};

TEST_F(LegacyTest, AStoppedKeeperIsNotWaitedForAndGetsEverythingAfter) {
    start();
    const Bells early{3, 1};
    const Bells flood{1, 2};
    const Bells late{300, 3};
    const Bells gone{2, 4};
    legacy_->keep(early.requests(), now_);
    legacy_->sync(now_);
    keeper_->signal(SIGSTOP);
    overflow(flood);
    EXPECT_EQ(count_calls_, 1);
    EXPECT_FALSE(legacy_->has_failed()) << "the keeper stays";
    EXPECT_EQ(log_.count("takes nothing for the moment"), 1U);

    const auto begin = std::chrono::steady_clock::now();
    for (int turn = 0; turn < 1000; ++turn) {
        legacy_->keep(late.requests(), now_);
        legacy_->keep(gone.requests(), now_);
        legacy_->forget(gone.keys(), now_);
        legacy_->sync(now_);
        EXPECT_TRUE(legacy_->catch_up(now_ += 60'000, [] { ADD_FAILURE() << "it does not answer"; }));
    }
    legacy_->forget(early.keys()[0], now_);
    // A thousand times its patience would be 50 seconds.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, patience);
    EXPECT_EQ(count_calls_, 1);

    keeper_->signal(SIGCONT);
    catch_up([&] {
        legacy_->keep(early.requests(), now_);
        legacy_->keep(flood.requests(), now_);
        legacy_->keep(late.requests(), now_);
    });
    EXPECT_EQ(log_.count("takes nothing for the moment"), 1U) << "said once";
    EXPECT_EQ(log_.count("holds everything"), 1U);
    EXPECT_FALSE(legacy_->catch_up(now_, [] { ADD_FAILURE() << "nothing is missing"; }));

    std::vector<KeptFd> kept = inherit();
    const auto take = [&](std::uint32_t share) {
        std::vector<KeptFd> own;
        for (KeptFd& one : kept)
            if (one.key.share == share && one.key.kind == KeptKind::doorbell) own.push_back(std::move(one));
        return own;
    };
    const auto first = take(1);
    ASSERT_EQ(first.size(), 2U) << "one was forgotten meanwhile";
    EXPECT_TRUE(std::ranges::all_of(first, [&](const KeptFd& one) { return early.has(one); }));
    EXPECT_TRUE(flood.are(take(2)));
    EXPECT_TRUE(late.are(take(3)));
    EXPECT_TRUE(take(4).empty());
}

TEST_F(LegacyTest, BetweenTwoLooksAtAKeeperThatIsBehindThereIsAPauseThatGrows) {
    start();
    keeper_->signal(SIGSTOP);
    overflow(Bells{1});
    const auto is_looked_at = [&](std::uint64_t at_ms) {
        const FaultInjector injector{0, {.os_error = EAGAIN}};
        EXPECT_TRUE(legacy_->catch_up(at_ms, [] { ADD_FAILURE() << "it does not answer"; }));
        return injector.has_fired();
    };
    EXPECT_FALSE(is_looked_at(now_));
    EXPECT_FALSE(is_looked_at(now_ + 49));
    EXPECT_TRUE(is_looked_at(now_ + 50));
    EXPECT_FALSE(is_looked_at(now_ + 50 + 99)) << "twice as long";
    EXPECT_TRUE(is_looked_at(now_ + 50 + 100));
    keeper_->signal(SIGCONT);
    catch_up([] {});
}

TEST_F(LegacyTest, WhatNobodyOffersIsNotMissed) {
    start();
    keeper_->signal(SIGSTOP);
    overflow(Bells{1, 2});
    legacy_->keep(Bells{2, 3}.requests(), now_);
    keeper_->signal(SIGCONT);
    catch_up([] {});
    for (const KeptFd& one : inherit()) EXPECT_NE(one.key.share, 3U);
}

TEST_F(LegacyTest, AFullKeeperIsNoRoomAndStays) {
    start(4);
    const Bells bells{3};
    const Bells more{2, 4};
    legacy_->keep(bells.requests(), now_);
    EXPECT_TRUE(legacy_->check_room(1));
    const auto full = legacy_->check_room(2);
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Errc::exhausted);
    EXPECT_EQ(full.error().os_error(), ENOSPC);
    legacy_->keep(more.requests(), now_);
    EXPECT_EQ(log_.count("has no room for more"), 1U);
    EXPECT_FALSE(legacy_->has_failed());
    EXPECT_FALSE(legacy_->is_behind());
    EXPECT_TRUE(bells.are(inherit()));
}

TEST_F(LegacyTest, WithoutAKeeperThereIsRoomForEverything) {
    Legacy legacy{Journal::create().value(), nullptr, limiter_};
    legacy.keep(Bells{1}.requests(), now_);
    EXPECT_TRUE(legacy.check_room(1'000'000));
    EXPECT_FALSE(legacy.is_behind());
    EXPECT_FALSE(legacy.catch_up(now_, [] { ADD_FAILURE() << "nobody wants it"; }));
}

TEST_F(LegacyTest, AnotherKeeperForgetsWhatItIsNotGivenAgain) {
    start();
    const Bells bells{3};
    const Bells others{2, 4};
    legacy_->keep(bells.requests(), now_);
    legacy_->keep(others.requests(), now_);
    // The connection ends, and the keeper lives on.
    legacy_->let_go_of_keeper();
    legacy_->forget(others.keys(), now_);
    legacy_->replace_keeper(join().keeper, now_, [&] { legacy_->keep(bells.requests(), now_); });
    EXPECT_FALSE(legacy_->has_failed());
    EXPECT_TRUE(bells.are(inherit()));
}

}  // namespace
}  // namespace guestmem::share

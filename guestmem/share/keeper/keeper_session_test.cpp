// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_session.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem::share {
namespace {

using testing::Resources;

const Fd& some_file() {
    static const Fd file = open_file("/dev/null", OpenMode::read).value();
    return file;
}

std::vector<Fd> files(std::size_t count) {
    std::vector<Fd> all;
    for (std::size_t i = 0; i < count; ++i) all.push_back(some_file().duplicate().value());
    return all;
}

KeptKey key_of(std::uint32_t index) { return {.kind = KeptKind::doorbell, .share = 1, .index = index}; }

KeeperMessage keep(std::uint32_t first, std::uint32_t count, std::uint32_t number = 0) {
    KeeperMessage message{.verb = KeeperVerb::keep, .number = number};
    for (std::uint32_t i = 0; i < count; ++i) message.keys.push_back(key_of(first + i));
    return message;
}

/// A session that has handed over.
KeeperSession settled(KeptTable& table) {
    KeeperSession session{table};
    while (!session.is_handed_over())
        EXPECT_FALSE(session.take({.verb = KeeperVerb::next}, {}, false).is_over);
    return session;
}

KeptTable filled(std::uint32_t count) {
    KeptTable table;
    for (std::uint32_t i = 0; i < count; ++i)
        EXPECT_TRUE(table.keep(key_of(i), some_file().duplicate().value()));
    return table;
}

TEST(KeeperSession, HandsEverythingOverOneMessageForEachNext) {
    KeptTable table = filled(2 * max_keys_per_message + 1);
    KeeperSession session{table};
    EXPECT_EQ(session.welcome().values[1], table.size());
    std::set<KeptKey> seen;
    for (const std::size_t count :
         {max_keys_per_message, max_keys_per_message, std::size_t{1}, std::size_t{0}}) {
        EXPECT_FALSE(session.is_handed_over());
        const KeeperReply reply = session.take({.verb = KeeperVerb::next}, {}, false);
        ASSERT_TRUE(reply.message);
        EXPECT_EQ(reply.message->verb, KeeperVerb::holding);
        EXPECT_EQ(reply.fds.size(), count);
        seen.insert(reply.message->keys.begin(), reply.message->keys.end());
    }
    EXPECT_TRUE(session.is_handed_over());
    EXPECT_EQ(seen.size(), table.size());
}

TEST(KeeperSession, TakesNothingBeforeAllIsHandedOverAndGivesNothingAfter) {
    KeptTable table = filled(1);
    KeeperSession early{table};
    EXPECT_TRUE(early.take(keep(5, 1), files(1), false).is_over);
    EXPECT_TRUE(early.take({.verb = KeeperVerb::end, .number = 1}, {}, false).is_over);
    KeeperSession late = settled(table);
    EXPECT_TRUE(late.take({.verb = KeeperVerb::next}, {}, false).is_over);
    EXPECT_EQ(table.size(), 1U);
}

TEST(KeeperSession, AnswersOnlyWhoWantsAnAnswer) {
    KeptTable table;
    KeeperSession session = settled(table);
    EXPECT_FALSE(session.take(keep(0, 1), files(1), false).message);
    const KeeperReply reply = session.take(keep(1, 1, 9), files(1), false);
    ASSERT_TRUE(reply.message);
    EXPECT_EQ(reply.message->number, 9U);
    EXPECT_EQ(reply.message->status, 0U);
    EXPECT_EQ(table.size(), 2U);
}

TEST(KeeperSession, AKeyThatIsKeptAgainGetsTheNewDescriptor) {
    const EventFd bell = EventFd::create().value();
    static_cast<void>(some_file());  // is open from its first use on
    const Resources before = Resources::look();
    {
        KeptTable table = filled(1);
        KeeperSession session = settled(table);
        std::vector<Fd> fds;
        fds.emplace_back(::dup(bell.view().number()));
        ASSERT_FALSE(session.take(keep(0, 1), std::move(fds), false).is_over);
        ASSERT_EQ(table.size(), 1U);
        EXPECT_TRUE(EventFd::adopt(table.fds().at(key_of(0)).duplicate().value()));
    }
    EXPECT_EQ(Resources::look(), before);
}

TEST(KeeperSession, AtItsCapacityOneMoreIsAnErrorInTheNextAnswer) {
    KeptTable table{3};
    KeeperSession session = settled(table);
    EXPECT_EQ(session.take(keep(0, 3, 1), files(3), false).message->status, 0U);
    EXPECT_FALSE(session.take(keep(3, 1), files(1), false).message);
    EXPECT_EQ(session.take({.verb = KeeperVerb::sync, .number = 2}, {}, false).message->status,
              static_cast<std::uint32_t>(ENOSPC));
    EXPECT_EQ(session.take({.verb = KeeperVerb::sync, .number = 3}, {}, false).message->status, 0U)
        << "an error is told once";
    EXPECT_EQ(session.take(keep(2, 1, 4), files(1), false).message->status, 0U) << "it was there before";
    EXPECT_EQ(table.size(), 3U);
}

TEST(KeeperSession, DescriptorsThatWereLostOnTheWayAreAnError) {
    KeptTable table;
    KeeperSession session = settled(table);
    const KeeperReply reply = session.take(keep(0, 3, 1), files(2), true);
    EXPECT_EQ(reply.message->status, static_cast<std::uint32_t>(EMFILE));
    EXPECT_EQ(table.size(), 2U) << "those that came are kept";
}

TEST(KeeperSession, DescriptorsThatDoNotFitTheirKeysEndTheConnection) {
    static_cast<void>(some_file());  // is open from its first use on
    const Resources before = Resources::look();
    KeptTable table;
    KeeperSession session = settled(table);
    EXPECT_TRUE(session.take(keep(0, 2), files(1), false).is_over);
    EXPECT_TRUE(session.take(keep(0, 2), files(3), false).is_over);
    EXPECT_TRUE(session.take(keep(0, 2), files(2), true).is_over);
    EXPECT_TRUE(session.take({.verb = KeeperVerb::sync}, files(1), false).is_over);
    EXPECT_TRUE(session.take({.verb = KeeperVerb::forget, .keys = {key_of(0)}}, files(1), false).is_over);
    EXPECT_EQ(table.size(), 0U);
    EXPECT_EQ(Resources::look(), before);
}

TEST(KeeperSession, WordsOfAKeeperEndTheConnection) {
    KeptTable table = filled(1);
    KeeperSession session = settled(table);
    for (const auto verb : {KeeperVerb::welcome, KeeperVerb::refused, KeeperVerb::done})
        EXPECT_TRUE(session.take({.verb = verb}, {}, false).is_over);
    EXPECT_TRUE(session.take({.verb = KeeperVerb::holding, .keys = {key_of(7)}}, files(1), false).is_over);
    EXPECT_EQ(table.size(), 1U);
}

TEST(KeeperSession, ForgetsWhatItHasAndPassesOverTheRest) {
    KeptTable table = filled(3);
    KeeperSession session = settled(table);
    const KeeperReply reply =
        session.take({.verb = KeeperVerb::forget, .keys = {key_of(1), key_of(77)}}, {}, false);
    EXPECT_FALSE(reply.is_over);
    EXPECT_EQ(table.size(), 2U);
    EXPECT_FALSE(table.fds().contains(key_of(1)));
}

TEST(KeeperSession, EndsWithNothingHeld) {
    KeptTable table = filled(3);
    KeeperSession session = settled(table);
    const KeeperReply reply = session.take({.verb = KeeperVerb::end, .number = 4}, {}, false);
    EXPECT_TRUE(reply.is_end);
    EXPECT_EQ(reply.message->number, 4U);
    EXPECT_EQ(table.size(), 0U);
}

}  // namespace
}  // namespace guestmem::share

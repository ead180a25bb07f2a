// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/journal.hpp"

#include <gmock/gmock.h>

#include <set>

#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::for_each_fault;
using ::testing::HasSubstr;

void fill(ShareRecord& record, std::string_view name) {
    record.name.set(name);
    record.size_bytes = 8192;
    record.vectors = 2;
    record.slots = 3;
    record.stage.store(ShareStage::ready);
}

Fd copy_of(const Journal& journal) { return std::move(journal.memory().duplicate().value()); }

TEST(Journal, TheNextInstanceFindsWhatWasWritten) {
    Journal first = std::move(Journal::create().value());
    ShareRecord* const share = first.add_share();
    fill(*share, "m");
    ConnectionRecord* const peer = first.add_connection();
    peer->vm.set("linux");
    peer->share = share->number;
    peer->id = 2;
    peer->progress.begun.store(5);
    peer->progress.done.store(4);
    peer->stage.store(ConnectionStage::admitted);

    auto second = Journal::adopt(copy_of(first));
    ASSERT_TRUE(second) << second.error().message();
    EXPECT_EQ(second->generation(), 2U);
    ASSERT_EQ(second->shares().size(), 1U);
    EXPECT_EQ(second->shares()[0]->name.get(), "m");
    EXPECT_EQ(second->shares()[0]->number, share->number);
    ASSERT_EQ(second->connections().size(), 1U);
    EXPECT_EQ(second->connections()[0]->vm.get(), "linux");
    EXPECT_FALSE(second->connections()[0]->progress.is_certain());
    EXPECT_NE(second->add_connection()->number, peer->number) << "numbers are used once";
}

TEST(Journal, ARecordWithoutAStageDoesNotCountAndItsPlaceIsUsedAgain) {
    Journal journal = std::move(Journal::create().value());
    ConnectionRecord* const first = journal.add_connection();
    EXPECT_TRUE(journal.connections().empty());
    first->stage.store(ConnectionStage::greeted);
    const std::uint32_t number = first->number;
    journal.remove(*first);
    EXPECT_TRUE(journal.connections().empty());
    ConnectionRecord* const again = journal.add_connection();
    EXPECT_EQ(again, first);
    EXPECT_NE(again->number, number);
}

TEST(Journal, IsFullAtItsLimitsAndNotBefore) {
    Journal journal = std::move(Journal::create().value());
    std::set<ConnectionRecord*> connections;
    for (std::size_t i = 0; i < max_journal_connections; ++i) {
        ConnectionRecord* const record = journal.add_connection();
        ASSERT_NE(record, nullptr);
        record->stage.store(ConnectionStage::greeted);
        connections.insert(record);
    }
    EXPECT_EQ(connections.size(), max_journal_connections);
    EXPECT_EQ(journal.add_connection(), nullptr);
    journal.remove(**connections.begin());
    EXPECT_NE(journal.add_connection(), nullptr);
    for (std::size_t i = 0; i < max_journal_shares; ++i) {
        ShareRecord* const record = journal.add_share();
        ASSERT_NE(record, nullptr);
        fill(*record, "s");
    }
    EXPECT_EQ(journal.add_share(), nullptr);
}

TEST(Journal, TextsThatDoNotFitAreCutAndEnd) {
    JournalText<4> text{};
    text.set("abcdef");
    EXPECT_EQ(text.get(), "abc");
    text.bytes = {'a', 'b', 'c', 'd'};
    EXPECT_EQ(text.get(), "abcd") << "without an end of its own it ends with its field";
}

TEST(Journal, OfAnotherSizeVersionOrContentIsRefused) {
    EXPECT_FALSE(Journal::adopt(Fd{}));
    auto small = create_sealed_memory({.name = "j", .size_bytes = 4096});
    const auto refused = Journal::adopt(std::move(*small));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("another version"));

    Journal journal = std::move(Journal::create().value());
    ShareRecord* const share = journal.add_share();
    const auto refuses = [&] { return !Journal::adopt(copy_of(journal)); };
    fill(*share, "m");
    EXPECT_FALSE(refuses());
    share->vectors = 0;
    EXPECT_TRUE(refuses());
    share->vectors = 4096;
    EXPECT_TRUE(refuses());
    fill(*share, "m");
    share->size_bytes = 5000;
    EXPECT_TRUE(refuses());
    fill(*share, "");
    EXPECT_TRUE(refuses());
    fill(*share, "m");
    share->backing = 9;
    EXPECT_TRUE(refuses());
    share->backing = 0;
    share->stage.store(static_cast<ShareStage>(77));
    EXPECT_TRUE(refuses());
    share->stage.store(ShareStage::ready);
    ConnectionRecord* const peer = journal.add_connection();
    peer->stage.store(static_cast<ConnectionStage>(9));
    EXPECT_TRUE(refuses());
    peer->stage.store(ConnectionStage::admitted);
    peer->id = 70'000;
    EXPECT_TRUE(refuses());
    peer->id = 7;
    EXPECT_FALSE(refuses());
}

TEST(Journal, WhateverFailsNothingIsLeft) {
    EXPECT_GT(for_each_fault([] { return Journal::create(); }), 3U);
    const Journal journal = std::move(Journal::create().value());
    const auto adopt = [&]() -> Result<Journal> {
        Fd copy = GM_TRY(journal.memory().duplicate());
        return Journal::adopt(std::move(copy));
    };
    EXPECT_GT(for_each_fault(adopt), 2U);
}

}  // namespace
}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/client.hpp"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <vector>

#include "guestmem/share/ivshmem/outbox.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {
namespace {

using ::testing::HasSubstr;

/// A server's end that says what a test wants it to say.
class IvshmemClient : public ::testing::Test {
protected:
    IvshmemClient() {
        auto [ours, theirs] = UnixStream::pair().value();
        server_ = std::move(ours);
        client_.emplace(Client::adopt(std::move(theirs).release()).value());
    }
    void say(std::int64_t value) const { ASSERT_TRUE(server_.send(encode_ivshmem(value))); }
    void say(std::int64_t value, FdView fd) const {
        ASSERT_TRUE(server_.send(encode_ivshmem(value), std::span{&fd, 1}));
    }
    void greet(std::int64_t id) {
        say(0);
        say(id);
        say(-1, memory_);
    }
    /// The error that follows from what was said; fails when there is none.
    std::string complaint() {
        for (;;) {
            const auto notice = client_->receive(0);
            if (!notice) return notice.error().message();
            if (!*notice) return "no complaint";
        }
    }

    UnixStream server_;
    std::optional<Client> client_;
    Fd memory_ = create_sealed_memory({.name = "t", .size_bytes = 8192, .huge_page_bytes = 0}).value();
    EventFd bell_ = EventFd::create().value();
};

TEST_F(IvshmemClient, JoinsWhenItsOwnDoorbellsAreThere) {
    greet(5);
    say(3, bell_.view());
    say(5, bell_.view());
    EXPECT_EQ(client_->join(2, 50).error().code(), Errc::timed_out) << "one of two";
    say(5, bell_.view());
    ASSERT_TRUE(client_->join(2, 1000));
    EXPECT_EQ(client_->table().own_id(), 5U);
    EXPECT_EQ(client_->table().find(3)->size(), 1U);
    EXPECT_EQ(client_->map(MapAccess::read_write).value().bytes().size(), 8192U);
}

TEST_F(IvshmemClient, RingsAndIsRung) {
    greet(0);
    const EventFd own = EventFd::create().value();
    say(1, bell_.view());
    say(0, own.view());
    ASSERT_TRUE(client_->join(1, 1000));
    ASSERT_TRUE(client_->ring(1, 0));
    EXPECT_EQ(bell_.drain().value(), 1U);
    EXPECT_EQ(client_->wait(0, 0).value(), 0U);
    ASSERT_TRUE(own.ring());
    ASSERT_TRUE(own.ring());
    EXPECT_EQ(client_->wait(0, 1000).value(), 2U);
    EXPECT_FALSE(client_->ring(1, 1));
    EXPECT_FALSE(client_->ring(9, 0));
    EXPECT_FALSE(client_->wait(1, 0));
}

TEST_F(IvshmemClient, ARingIsOneWriteAndAWaitThatWasRungOnePollAndOneRead) {
    greet(0);
    const EventFd own = EventFd::create().value();
    say(1, bell_.view());
    say(0, own.view());
    ASSERT_TRUE(client_->join(1, 1000));
    const auto call_of = [](std::uint64_t nth, auto&& attempt) {
        const FaultInjector injector{nth};
        const bool is_good = attempt();
        EXPECT_NE(is_good, injector.has_fired());
        return injector.failed_call();
    };
    const auto ring = [&] { return client_->ring(1, 0).has_value(); };
    EXPECT_EQ(call_of(0, ring), SysCall::write);
    EXPECT_EQ(call_of(1, ring), SysCall::count);
    ASSERT_TRUE(own.ring());
    const auto wait = [&] { return client_->wait(0, 10'000).has_value(); };
    EXPECT_EQ(call_of(0, wait), SysCall::poll);
    EXPECT_EQ(call_of(1, wait), SysCall::read);
    EXPECT_EQ(call_of(2, wait), SysCall::count);
}

TEST_F(IvshmemClient, ADoorbellThatIsFullIsRungAsItIs) {
    greet(0);
    const std::uint64_t full = 0xffff'ffff'ffff'fffe;
    ASSERT_EQ(::write(bell_.view().number(), &full, sizeof full), static_cast<ssize_t>(sizeof full));
    const EventFd own = EventFd::create().value();
    say(1, bell_.view());
    say(0, own.view());
    ASSERT_TRUE(client_->join(1, 1000));
    EXPECT_TRUE(client_->ring(1, 0));
    EXPECT_EQ(bell_.drain().value(), full);
}

TEST_F(IvshmemClient, ARefusalIsItsErrno) {
    say(-EBUSY);
    const auto refused = client_->receive(1000);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), EBUSY);
    EXPECT_EQ(refused.error().code(), Errc::busy);
}

TEST_F(IvshmemClient, AnotherVersionIsAnError) {
    say(2);
    EXPECT_THAT(complaint(), HasSubstr("version 0"));
}

TEST_F(IvshmemClient, AVersionWithADescriptorIsAnError) {
    say(0, bell_.view());
    EXPECT_THAT(complaint(), HasSubstr("version 0"));
}

TEST_F(IvshmemClient, AnIdBeyondTheLastIsAnError) {
    say(0);
    say(65'536);
    EXPECT_THAT(complaint(), HasSubstr("65536"));
}

TEST_F(IvshmemClient, MemoryWithoutADescriptorIsAnError) {
    say(0);
    say(0);
    say(-1);
    EXPECT_THAT(complaint(), HasSubstr("-1 with the memory"));
}

TEST_F(IvshmemClient, AnEventfdInThePlaceOfTheMemoryIsAnError) {
    say(0);
    say(0);
    say(-1, bell_.view());
    EXPECT_THAT(complaint(), HasSubstr("not a file with bytes"));
}

TEST_F(IvshmemClient, AFileInThePlaceOfADoorbellIsAnError) {
    greet(0);
    say(1, memory_);
    EXPECT_THAT(complaint(), HasSubstr("not an eventfd"));
}

TEST_F(IvshmemClient, GoneIsOnlyWhoWasThere) {
    greet(0);
    say(1, bell_.view());
    say(1);
    EXPECT_EQ(complaint(), "no complaint");
    EXPECT_EQ(client_->table().find(1), nullptr);
    say(1);
    EXPECT_THAT(complaint(), HasSubstr("peer that is here"));
}

TEST_F(IvshmemClient, TheEndOfTheServerIsAnError) {
    greet(0);
    server_ = UnixStream{};
    EXPECT_THAT(complaint(), HasSubstr("closed"));
}

TEST_F(IvshmemClient, AMessageInPiecesIsOneMessage) {
    const IvshmemMessage message = encode_ivshmem(0);
    ASSERT_TRUE(server_.send(std::span{message}.first(3)));
    ASSERT_TRUE(server_.send(std::span{message}.subspan(3)));
    const auto notice = client_->receive(1000);
    ASSERT_TRUE(notice);
    EXPECT_EQ((*notice)->kind, NoticeKind::version);
}

TEST_F(IvshmemClient, HalfAMessageIsAnErrorAndNotAWaitForEver) {
    const IvshmemMessage message = encode_ivshmem(0);
    ASSERT_TRUE(server_.send(std::span{message}.first(4)));
    EXPECT_THAT(complaint(), HasSubstr("4 of 8 bytes"));
}

TEST(PeerTable, HoldsItsLimitOfDoorbellsAndNotOneMore) {
    const Fd memory = create_sealed_memory({.name = "t", .size_bytes = 4096, .huge_page_bytes = 0}).value();
    const EventFd bell = EventFd::create().value();
    const auto copy = [](FdView fd) { return Fd{::dup(fd.number())}; };
    PeerTable table;
    ASSERT_TRUE(table.take(0, std::nullopt));
    ASSERT_TRUE(table.take(0, std::nullopt));
    ASSERT_TRUE(table.take(-1, copy(memory)));
    if (raise_descriptor_limit() < max_table_doorbells + 64)
        GTEST_SKIP() << "SKIPPED: needs 16448 descriptors (ulimit -n)";
    for (std::size_t i = 0; i < max_table_doorbells; ++i) ASSERT_TRUE(table.take(1, copy(bell.view())));
    const auto refused = table.take(2, copy(bell.view()));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
    ASSERT_TRUE(table.take(1, std::nullopt)) << "who leaves makes room";
    EXPECT_TRUE(table.take(2, copy(bell.view())));
}

/// The values that an outbox sends, in order.
std::vector<std::int64_t> values_of(Outbox& outbox) {
    auto [ours, theirs] = UnixStream::pair().value();
    EXPECT_EQ(outbox.flush(ours).value(), SendStatus::sent);
    std::vector<std::int64_t> values;
    IvshmemMessage message{};
    while (theirs.wait_readable(0).value()) {
        EXPECT_EQ(theirs.receive(message).value()->count_bytes, message.size());
        values.push_back(decode_ivshmem(message));
    }
    return values;
}

TEST(Outbox, TellsAllSlotsButTheExceptedOneWhereverItStands) {
    using ::testing::ElementsAre;
    std::vector<std::shared_ptr<const Doorbells>> slots;
    for (std::uint32_t id = 0; id < 3; ++id) slots.push_back(create_doorbells(id, 2).value());
    const auto told = [&](std::uint32_t except, std::size_t count) {
        Outbox outbox;
        outbox.add_slots(std::span{slots}.first(count), except);
        const std::size_t queued = outbox.count_queued();
        auto values = values_of(outbox);
        EXPECT_EQ(values.size(), queued);
        EXPECT_EQ(outbox.count_queued(), 0U);
        EXPECT_TRUE(outbox.is_empty());
        return values;
    };
    EXPECT_THAT(told(0, 3), ElementsAre(1, 1, 2, 2));
    EXPECT_THAT(told(1, 3), ElementsAre(0, 0, 2, 2));
    EXPECT_THAT(told(2, 3), ElementsAre(0, 0, 1, 1));
    EXPECT_THAT(told(9, 3), ElementsAre(0, 0, 1, 1, 2, 2));
    EXPECT_THAT(told(0, 1), ElementsAre());
    EXPECT_THAT(told(0, 0), ElementsAre());
}

TEST_F(IvshmemClient, FirstMessagesThatComeTogetherFindTheirDescriptors) {
    const auto other = create_doorbells(3, 2).value();
    const auto own = create_doorbells(5, 2).value();
    Outbox outbox;
    outbox.add_value(0);
    outbox.add_value(5);
    outbox.add_memory(memory_);
    outbox.add_doorbells(other);
    outbox.add_doorbells(own);
    outbox.batch_first();
    // What comes later comes alone.
    outbox.add_value(3);
    {
        const FaultInjector third{2, {.only = SysCall::sendmsg}};
        ASSERT_EQ(outbox.flush(server_).value(), SendStatus::sent);
    }
    EXPECT_EQ(outbox.count_sent(), 8U);
    for (int i = 0; i < 7; ++i) ASSERT_TRUE(client_->receive_ahead(1000).value()) << i;
    EXPECT_FALSE(client_->has_more());
    EXPECT_EQ(client_->table().own_id(), 5U);
    EXPECT_TRUE(client_->table().memory().is_open());
    ASSERT_TRUE(client_->ring(3, 1));
    EXPECT_EQ(other->vectors[1].drain().value(), 1U);
    ASSERT_TRUE(own->vectors[0].ring());
    EXPECT_EQ(client_->wait(0, 0).value(), 1U);
    EXPECT_EQ(client_->receive(1000).value()->kind, NoticeKind::gone);
}

TEST_F(IvshmemClient, ABatchGoesOnAloneWhereItsDescriptorsAreTooMany) {
    const auto own = create_doorbells(0, 40).value();
    Progress progress{};
    Outbox outbox;
    outbox.note_progress(progress);
    outbox.add_value(0);
    outbox.add_value(0);
    outbox.add_memory(memory_);
    outbox.add_doorbells(own);
    outbox.batch_first();
    {
        // 31 beside the memory, and nine alone.
        const FaultInjector eleventh{10, {.only = SysCall::sendmsg}};
        ASSERT_EQ(outbox.flush(server_).value(), SendStatus::sent);
    }
    EXPECT_EQ(progress.done.load(), 43U);
    EXPECT_TRUE(progress.is_certain());
    for (int i = 0; i < 43; ++i) ASSERT_TRUE(client_->receive_ahead(1000).value()) << i;
    for (std::uint32_t vector = 0; vector < 40; ++vector) {
        ASSERT_TRUE(own->vectors[vector].ring());
        EXPECT_EQ(client_->wait(vector, 0).value(), 1U) << vector;
    }
}

TEST_F(IvshmemClient, ABatchThatDoesNotFitStaysWhole) {
    ASSERT_TRUE(server_.set_nonblocking());
    while (server_.send(encode_ivshmem(0)).value().status == SendStatus::sent) {
    }
    Progress progress{};
    Outbox outbox;
    outbox.note_progress(progress);
    outbox.add_value(0);
    outbox.add_memory(memory_);
    outbox.batch_first();
    EXPECT_EQ(outbox.flush(server_).value(), SendStatus::would_block);
    EXPECT_EQ(outbox.count_queued(), 2U);
    EXPECT_TRUE(progress.is_certain());
}

TEST_F(IvshmemClient, DescriptorsWithoutAMessageAreAnError) {
    say(0);
    say(5, bell_.view());
    std::string text;
    for (int i = 0; i < 2 && text.empty(); ++i)
        if (const auto notice = client_->receive_ahead(1000); !notice) text = notice.error().message();
    EXPECT_THAT(text, HasSubstr("without a message"));
}

TEST(PeerTable, KnowsCallersOnlyWhenItAskedAndForgetsThemWhenTheyAreOver) {
    const auto bell = [] { return EventFd::create().value().duplicate().value(); };
    const auto greeted = [] {
        PeerTable table;
        EXPECT_TRUE(table.take(0, std::nullopt));
        EXPECT_TRUE(table.take(9, std::nullopt));
        EXPECT_TRUE(table.take(
            -1, create_sealed_memory({.name = "t", .size_bytes = 4096, .huge_page_bytes = 0}).value()));
        return table;
    };
    PeerTable plain = greeted();
    EXPECT_FALSE(plain.take(ivshmem_caller_mark + 3, bell()));
    PeerTable table = greeted();
    table.expect_callers();
    EXPECT_EQ(table.take(ivshmem_caller_mark + 3, std::nullopt)->kind, NoticeKind::caller_over);
    EXPECT_EQ(table.take(ivshmem_caller_mark + 3, bell())->vector, 0U);
    EXPECT_EQ(table.take(ivshmem_caller_mark + 3, bell())->vector, 1U);
    EXPECT_EQ(table.take(ivshmem_caller_mark + 15, bell())->kind, NoticeKind::caller);
    EXPECT_FALSE(table.take(ivshmem_caller_mark + 16, bell()));
    EXPECT_FALSE(table.take(ivshmem_callers_over, bell()));
    EXPECT_FALSE(table.take(ivshmem_callers_over + 1, std::nullopt));
    EXPECT_EQ(table.callers().at(3).size(), 2U);
    EXPECT_EQ(table.take(ivshmem_caller_mark + 3, std::nullopt)->id, 3U);
    auto past = table.take_past_callers();
    ASSERT_EQ(past.size(), 1U);
    EXPECT_EQ(past[0].id, 3U);
    EXPECT_EQ(past[0].bells.size(), 2U);
    EXPECT_TRUE(table.take(ivshmem_callers_over, std::nullopt));
    EXPECT_TRUE(table.callers().empty());
    EXPECT_EQ(table.take_past_callers().size(), 1U);
    EXPECT_TRUE(table.take_past_callers().empty());
}

TEST_F(IvshmemClient, UnsealedMemoryIsNotMapped) {
    const Fd plain = open_file("/proc/self/exe", OpenMode::read).value();
    EXPECT_EQ(map_sealed(plain, MapAccess::read_only).error().code(), Errc::permission_denied);
}

TEST_F(IvshmemClient, TheEndIsSeenBehindWhatNobodyAskedFor) {
    say(0);
    EXPECT_FALSE(client_->has_ended().value());
    say(7, bell_.view());
    EXPECT_FALSE(client_->has_ended().value());
    say(0);
    server_ = {};
    EXPECT_TRUE(client_->has_ended().value());
}

TEST(Outbox, DropsWhatItSaysOfALabelAndWasNotBegunAndNothingElse) {
    const auto bells = create_doorbells(3, 2).value();
    Outbox outbox;
    outbox.add_value(3);
    outbox.add_doorbells(bells);
    outbox.add_value(100);
    outbox.add_doorbells(bells, 100);
    outbox.add_value(101);
    EXPECT_EQ(outbox.count_queued(), 7U);
    EXPECT_TRUE(outbox.drop(100, 100));
    EXPECT_EQ(outbox.count_queued(), 4U);
    EXPECT_FALSE(outbox.drop(100, 101)) << "no doorbell is among them";
    EXPECT_EQ(outbox.count_queued(), 3U);
    EXPECT_FALSE(outbox.drop(102, 200));
    EXPECT_EQ(bells.use_count(), 2) << "a label's doorbells are closed with it";
}

TEST(Outbox, FinishesDoorbellsOfALabelThatItHasBegun) {
    auto [ours, theirs] = UnixStream::pair().value();
    ASSERT_TRUE(ours.set_nonblocking());
    ASSERT_TRUE(ours.set_send_buffer(4096));
    Outbox outbox;
    outbox.add_doorbells(create_doorbells(3, 40).value(), 100);
    ASSERT_EQ(outbox.flush(ours).value(), SendStatus::would_block);
    const std::size_t left = outbox.count_queued();
    EXPECT_FALSE(outbox.drop(100, 100));
    EXPECT_EQ(outbox.count_queued(), left);
}

TEST(Outbox, CountsOnFromWhatAnEarlierInstanceHasSentBeyondItsFirstMessages) {
    auto [ours, theirs] = UnixStream::pair().value();
    Progress progress{.begun = 50, .done = 50};
    Outbox outbox;
    outbox.note_progress(progress);
    outbox.add_value(0);
    outbox.skip(50);
    EXPECT_TRUE(outbox.is_empty());
    outbox.add_value(100);
    ASSERT_EQ(outbox.flush(ours).value(), SendStatus::sent);
    EXPECT_EQ(progress.begun.load(), 51U);
    EXPECT_EQ(progress.done.load(), 51U);
}

TEST(Outbox, SendsEachMessageAloneAndInOrderAndResumesWhereItStopped) {
    auto [ours, theirs] = UnixStream::pair().value();
    ASSERT_TRUE(ours.set_nonblocking());
    ASSERT_TRUE(ours.set_send_buffer(4096));
    constexpr std::uint32_t vectors = 40;
    Outbox outbox;
    outbox.add_value(0);
    outbox.add_value(7);
    outbox.add_doorbells(create_doorbells(3, vectors).value());
    EXPECT_EQ(outbox.count_queued(), 2U + vectors);
    EXPECT_EQ(outbox.flush(ours).value(), SendStatus::would_block);
    EXPECT_LT(outbox.count_sent(), 20U) << "few descriptors in flight for who does not read";

    Client client = Client::adopt(std::move(theirs).release()).value();
    std::size_t count = 0;
    while (count < 2) {
        ASSERT_TRUE(client.receive(1000));
        ++count;
    }
    // Without memory the third message is no doorbell: the stream itself is what counts here.
    EXPECT_FALSE(client.receive(1000));
    EXPECT_NE(outbox.flush(ours).value(), SendStatus::too_many_in_flight);
}

}  // namespace
}  // namespace guestmem::share

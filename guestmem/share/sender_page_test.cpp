// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/sender_page.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::eventually;
using guestmem::testing::for_each_fault;

/// The pages of a share, as the service has them.
struct Pages {
    std::vector<Fd> writable;
    std::vector<Fd> read_only;

    explicit Pages(std::uint32_t slots) {
        for (std::uint32_t slot = 0; slot < slots; ++slot) {
            writable.push_back(std::move(create_sender_page().value()));
            read_only.push_back(std::move(reopen_read_only(writable.back()).value()));
        }
    }
    [[nodiscard]] Result<SenderPages> map(std::uint32_t slot) const {
        std::vector<FdView> others;
        for (std::uint32_t other = 0; other < read_only.size(); ++other)
            if (other != slot) others.push_back(read_only[other]);
        return SenderPages::map(slot, writable[slot], others);
    }
};

SenderPages pages_of(const Pages& pages, std::uint32_t slot) { return std::move(pages.map(slot).value()); }

TEST(SenderPages, TellWhoSentAndTellItOnce) {
    const Pages pages{4};
    SenderPages two = pages_of(pages, 2);
    SenderPages zero = pages_of(pages, 0);
    SenderPages three = pages_of(pages, 3);
    EXPECT_TRUE(two.take().none());

    zero.own().add(2);
    three.own().add(2);
    three.own().add(2);
    three.own().add(1);

    EXPECT_EQ(two.look(), SenderSet{0b1001});
    EXPECT_EQ(two.take(), SenderSet{0b1001});
    EXPECT_TRUE(two.take().none());
    EXPECT_TRUE(two.look().none());
    EXPECT_TRUE(zero.take().none());
    zero.own().add(2);
    EXPECT_EQ(two.take(), SenderSet{0b0001});
}

TEST(SenderPages, TellWhoSendsToItself) {
    const Pages pages{3};
    SenderPages one = pages_of(pages, 1);
    one.own().add(1);
    EXPECT_EQ(one.take(), SenderSet{0b010});
    EXPECT_TRUE(one.take().none());
}

TEST(SenderPages, GoOnWhereTheHolderBeforeStopped) {
    const Pages pages{2};
    SenderPages sender = pages_of(pages, 0);
    {
        SenderPages first = pages_of(pages, 1);
        sender.own().add(1);
        EXPECT_EQ(first.take(), SenderSet{0b01});
    }
    EXPECT_TRUE(pages_of(pages, 1).take().none());
    sender.own().add(1);  // nobody is there
    EXPECT_EQ(pages_of(pages, 1).take(), SenderSet{0b01});
}

TEST(SenderPages, BytesAreWhereTheDocumentSaysTheyAre) {
    const Pages pages{2};
    SenderPages zero = pages_of(pages, 0);
    SenderPages one = pages_of(pages, 1);
    for (int i = 0; i < 0x102; ++i) zero.own().add(1);
    EXPECT_EQ(one.take(), SenderSet{0b01});
    std::vector<std::uint8_t> sent(4096);
    std::vector<std::uint8_t> heard(4096);
    ASSERT_EQ(::pread(pages.writable[0].view().number(), sent.data(), sent.size(), 0), 4096);
    ASSERT_EQ(::pread(pages.writable[1].view().number(), heard.data(), heard.size(), 0), 4096);
    std::vector<std::uint8_t> wanted_sent(4096);
    std::vector<std::uint8_t> wanted_heard(4096);
    wanted_sent[4] = 2, wanted_sent[5] = 1;
    wanted_heard[0x800] = 2, wanted_heard[0x801] = 1;
    EXPECT_EQ(sent, wanted_sent);
    EXPECT_EQ(heard, wanted_heard);
}

TEST(SenderPages, AreOfMaxSendersAndNotOneMore) {
    const Pages pages{max_senders};
    SenderPages last = pages_of(pages, max_senders - 1);
    SenderPages first = pages_of(pages, 0);
    first.own().add(max_senders - 1);
    last.own().add(0);
    EXPECT_EQ(last.take(), SenderSet{1});
    EXPECT_EQ(first.take(), SenderSet{1U << (max_senders - 1)});
    EXPECT_FALSE(Pages{max_senders + 1}.map(0));
}

TEST(SenderPages, OfASlotThatTheShareHasNotAreRefused) {
    const Pages pages{2};
    const std::vector<FdView> others{pages.read_only[0].view()};
    EXPECT_TRUE(SenderPages::map(1, pages.writable[1], others));
    EXPECT_FALSE(SenderPages::map(2, pages.writable[1], others));
    EXPECT_FALSE(SenderPages::map(0xffffffff, pages.writable[1], others));
}

TEST(SenderPages, OfASlotBeyondAllCountNothing) {
    const Fd page = std::move(create_sender_page().value());
    SenderPage own = std::move(SenderPage::map(page).value());
    own.add(max_senders);
    own.add(0xffffffff);
    std::vector<std::uint8_t> bytes(4096);
    ASSERT_EQ(::pread(page.view().number(), bytes.data(), bytes.size(), 0), 4096);
    EXPECT_TRUE(std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == 0; }));
}

TEST(SenderPages, ThatCouldBeCutShortOrHaveAnotherSizeAreRefused) {
    const Pages pages{2};
    const Fd unsealed =
        std::move(create_sparse_memory({.name = "x", .size_bytes = 4096}, Sealing::none).value());
    const Fd large = std::move(create_sealed_memory({.name = "x", .size_bytes = 8192}).value());
    for (const FdView bad : {unsealed.view(), large.view(), FdView{}}) {
        const std::vector<FdView> others{bad};
        EXPECT_FALSE(SenderPages::map(0, pages.writable[0], others));
        EXPECT_FALSE(SenderPage::map(bad));
    }
    EXPECT_FALSE(SenderPage::map(pages.read_only[0]));
}

TEST(SenderPages, OfOthersCannotBeWritten) {
    const Pages pages{1};
    EXPECT_EQ(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, pages.read_only[0].view().number(), 0),
        MAP_FAILED);
    EXPECT_EQ(errno, EACCES);
}

TEST(SenderPages, OfASenderThatLiesShowOnlyThatSender) {
    const Pages pages{3};
    SenderPages zero = pages_of(pages, 0);
    const std::vector<std::uint8_t> lies(4096, 0xff);
    ASSERT_EQ(::pwrite(pages.writable[2].view().number(), lies.data(), lies.size(), 0), 4096);
    EXPECT_EQ(zero.take(), SenderSet{0b100});
    EXPECT_TRUE(zero.take().none());
}

TEST(SenderPages, LoseNoSenderWhoAddsBeforeItRings) {
    constexpr std::uint32_t senders = 3;
    constexpr int rounds = 200;
    const Pages pages{senders + 1};
    SenderPages receiver = pages_of(pages, senders);
    const EventFd bell = std::move(EventFd::create().value());
    std::array<std::atomic<int>, senders> sent{};
    std::array<std::atomic<bool>, senders> is_heard{};
    std::vector<std::thread> threads;
    for (std::uint32_t sender = 0; sender < senders; ++sender)
        threads.emplace_back([&, sender] {
            SenderPages own = pages_of(pages, sender);
            for (int round = 0; round < rounds; ++round) {
                is_heard[sender].store(false);
                own.own().add(senders);
                EXPECT_TRUE(bell.ring());
                // Each one is heard for itself: the receiver says so before the next.
                EXPECT_TRUE(eventually([&] { return is_heard[sender].load(); }));
                sent[sender].fetch_add(1);
            }
        });
    const auto is_done = [&] {
        return std::ranges::all_of(sent, [](const auto& count) { return count.load() == rounds; });
    };
    while (!is_done() && !::testing::Test::HasFailure()) {
        // Only a doorbell makes the receiver look.
        const auto rung = bell.drain();
        ASSERT_TRUE(rung);
        if (*rung == 0) {
            std::this_thread::yield();
            continue;
        }
        const SenderSet who = receiver.take();
        for (std::uint32_t sender = 0; sender < senders; ++sender)
            if (who[sender]) is_heard[sender].store(true);
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(is_done());
}

TEST(SenderPages, WhateverFailsNothingIsLeft) {
    EXPECT_GE(for_each_fault([] { return create_sender_page(); }), 8U);
    const Pages pages{3};
    EXPECT_GE(for_each_fault([&] { return pages.map(1); }), 12U);
}

}  // namespace
}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/io_space.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/mem/testing/stopping_page.hpp"
#include "guestmem/mem/testing/store_buffering.hpp"
#include "guestmem/mem/testing/table_translator.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/mem/translated_memory.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using testing::counted_bytes;
using ::testing::HasSubstr;
using testing::io_range;
using testing::is_all;
using testing::StoppingPage;
using testing::TableTranslator;
using testing::TestDevice;
using testing::TestMap;
using testing::translation;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

/// The address 0x1000, and where it leads.
struct IoSpaceTest : ::testing::Test {
    static constexpr std::uint64_t page = 0x1000;

    IoSpaceTest() {
        guest.ram(0x8000, 8 * page);
        device.emplace(guest.map());
    }
    [[nodiscard]] AccessResult<void> write(std::uint64_t address, std::uint8_t value) {
        return device->memory->write<std::uint8_t>(IoAddress{address}, value);
    }
    [[nodiscard]] std::uint8_t byte(std::uint64_t guest_address) const {
        return std::to_integer<std::uint8_t>(guest.bytes(0)[guest_address - 0x8000]);
    }

    TestMap guest;
    std::optional<TestDevice> device;
};

// ---- creation ----

TEST(IoSpace, IsMadeWithATranslatorAGoodCapacityAndAWindowOfWholePages) {
    const auto table = std::make_shared<TableTranslator>();
    EXPECT_EQ(IoSpace::create({.name = "a", .translator = nullptr}).error().code(), Errc::invalid_argument);
    for (const std::size_t capacity : {std::size_t{0}, max_iotlb_capacity + 1}) {
        const auto space = IoSpace::create({.name = "net0", .translator = table, .iotlb_capacity = capacity});
        EXPECT_EQ(space.error().code(), Errc::out_of_range);
        EXPECT_THAT(space.error().message(), HasSubstr("io space 'net0'"));
    }
    for (const IoRange& window : {io_range(0x1001, 0xfff), io_range(0x1000, 0x1001), io_range(0, 1)}) {
        const auto space = IoSpace::create({.name = "a", .translator = table, .dirty_window = window});
        EXPECT_EQ(space.error().code(), Errc::invalid_argument);
    }
    const auto space = IoSpace::create({.name = "a", .translator = table});
    ASSERT_TRUE(space);
    EXPECT_EQ(space->dirty(), nullptr);
}

TEST_F(IoSpaceTest, HasAtMostSoManyHandles) {
    std::vector<std::unique_ptr<TranslatedMemory>> handles;
    handles.push_back(std::move(device->memory));
    while (handles.size() < max_io_handles)
        handles.push_back(device->space.make_memory("h", guest.map()).value());
    const auto more = device->space.make_memory("one more", guest.map());
    EXPECT_EQ(more.error().code(), Errc::exhausted);
    EXPECT_THAT(more.error().message(), HasSubstr("'one more'"));
    handles.pop_back();
    EXPECT_TRUE(device->space.make_memory("one more", guest.map()));
}

TEST_F(IoSpaceTest, HandlesAndHoldsOutliveIt) {
    std::optional<IoHold> hold;
    std::unique_ptr<TranslatedMemory> memory;
    {
        TestDevice other{guest.map()};
        other.table->set(translation(page, page, 0x8000));
        memory = std::move(other.memory);
        hold.emplace(memory->hold(io_range(page, page), "test").value());
    }
    EXPECT_TRUE(memory->write<std::uint8_t>(IoAddress{page}, 1));
    memory.reset();
    hold.reset();
}

// ---- what is taken away ----

TEST_F(IoSpaceTest, WhatIsInvalidatedIsAskedForAgain) {
    device->table->set(translation(page, page, 0x8000));
    EXPECT_TRUE(write(page, 1));
    device->table->set(translation(page, page, 0x9000));
    EXPECT_TRUE(write(page, 2)) << "a mapping stays until it is invalidated";
    EXPECT_EQ(byte(0x8000), 2U);
    ASSERT_TRUE(device->space.invalidate(io_range(page, 1), 1s));
    EXPECT_TRUE(write(page, 3));
    EXPECT_EQ(byte(0x8000), 2U);
    EXPECT_EQ(byte(0x9000), 3U);
    device->table->remove(page);
    ASSERT_TRUE(device->space.invalidate_all(1s));
    EXPECT_EQ(write(page, 4).error().reason(), AccessReason::untranslated);
    EXPECT_EQ(device->space.counts().changes, 2U);
}

TEST_F(IoSpaceTest, ItsNeighborsAreNotAskedForAgain) {
    device->table->set(translation(page, 3 * page, 0x8000));
    EXPECT_TRUE(write(page, 1));
    ASSERT_TRUE(device->space.invalidate(io_range(2 * page, page), 1s));
    EXPECT_TRUE(write(page, 1));
    EXPECT_TRUE(write(4 * page - 1, 1));
    EXPECT_EQ(device->table->count_questions(), 1U);
    EXPECT_TRUE(write(2 * page, 1));
    EXPECT_EQ(device->table->count_questions(), 2U);
}

TEST_F(IoSpaceTest, WhatWasEvictedIsTakenFromHandlesToo) {
    const auto table = std::make_shared<TableTranslator>();
    IoSpace space = IoSpace::create({.name = "small", .translator = table, .iotlb_capacity = 1}).value();
    const auto memory = space.make_memory("queue", guest.map()).value();
    for (std::uint64_t i = 0; i < 4; ++i) table->set(translation(i * 2 * page, page, 0x8000 + i * page));
    for (std::uint64_t i = 0; i < 4; ++i)
        EXPECT_TRUE(memory->write<std::uint8_t>(IoAddress{i * 2 * page}, 1));
    EXPECT_EQ(space.counts().count_entries, 1U);
    for (std::uint64_t i = 0; i < 4; ++i) {
        table->remove(i * 2 * page);
        ASSERT_TRUE(space.invalidate(io_range(i * 2 * page, page), 1s));
        EXPECT_FALSE(memory->write<std::uint8_t>(IoAddress{i * 2 * page}, 2)) << i;
    }
}

TEST_F(IoSpaceTest, AMappingThatIsSetNeedsNoQuestion) {
    ASSERT_TRUE(device->space.set_mapping(translation(page, page, 0x8000), 1s));
    EXPECT_TRUE(write(page, 1));
    ASSERT_TRUE(device->space.set_mapping(translation(page, page, 0x9000), 1s));
    EXPECT_TRUE(write(page, 2));
    EXPECT_EQ(byte(0x8000), 1U);
    EXPECT_EQ(byte(0x9000), 2U);
    EXPECT_EQ(device->table->count_questions(), 0U);
    ASSERT_TRUE(device->space.set_mapping(translation(page, page, 0, Permissions::none), 1s));
    EXPECT_FALSE(write(page, 3));
    EXPECT_EQ(device->table->count_questions(), 1U) << "the fast way and the slow way do not both ask";
}

TEST_F(IoSpaceTest, SwitchedOffAddressesMeanThemselves) {
    EXPECT_FALSE(write(0x8000, 1));
    ASSERT_TRUE(device->space.set_translating(Translating::off, 1s));
    EXPECT_EQ(device->space.translating(), Translating::off);
    EXPECT_TRUE(write(0x8000, 2));
    EXPECT_EQ(byte(0x8000), 2U);
    const AccessError refused{AccessReason::out_of_range, Access::write, top, 0};
    EXPECT_EQ(write(top, 1).error(), refused);
    EXPECT_EQ(device->memory->refused_at(refused), GuestAddress{top});
    ASSERT_TRUE(device->space.set_translating(Translating::on, 1s));
    EXPECT_EQ(write(0x8000, 3).error().reason(), AccessReason::untranslated);
}

// ---- answers that come too late ----

TEST_F(IoSpaceTest, AnAnswerThatIsOlderThanAnInvalidationIsNotUsed) {
    for (const bool is_all : {false, true}) {
        SCOPED_TRACE(is_all);
        TestDevice other{guest.map()};
        other.table->set(translation(page, page, 0x8000));
        other.table->on_question = [&](IoAddress, Access) {
            if (other.table->count_questions() > 1) return;
            other.table->set(translation(page, page, 0x9000));
            EXPECT_TRUE(is_all ? other.space.invalidate_all(1s)
                               : other.space.invalidate(io_range(page + 0x100, 1), 1s));
        };
        std::memset(guest.bytes(0).data(), 0, 2 * page);
        EXPECT_TRUE(other.memory->write<std::uint8_t>(IoAddress{page + 0x100}, 1));
        EXPECT_EQ(byte(0x8100), 0U);
        EXPECT_EQ(byte(0x9100), 1U);
        EXPECT_EQ(other.table->count_questions(), 2U);
        EXPECT_EQ(other.space.counts().stale_answers, 1U);
    }
}

TEST_F(IoSpaceTest, WhatWasNotInvalidatedOfAnAnswerIsUsed) {
    device->table->set(translation(page, 5 * page, 0x8000));
    device->table->on_question = [&](IoAddress address, Access) {
        if (address != IoAddress{3 * page}) return;
        EXPECT_TRUE(device->space.invalidate(io_range(2 * page - 1, 1), 1s));
        EXPECT_TRUE(device->space.invalidate(io_range(4 * page, 1), 1s));
    };
    EXPECT_TRUE(write(3 * page, 1));
    EXPECT_TRUE(write(2 * page, 1));
    EXPECT_TRUE(write(4 * page - 1, 1));
    EXPECT_EQ(device->table->count_questions(), 1U);
    EXPECT_EQ(device->space.counts().stale_answers, 0U);
    EXPECT_TRUE(write(2 * page - 1, 1));
    EXPECT_EQ(device->table->count_questions(), 2U);
}

TEST_F(IoSpaceTest, AnAnswerOutlastsAnyNumberOfChangesElsewhere) {
    device->table->set(translation(page, page, 0x8000));
    device->table->on_question = [&](IoAddress, Access) {
        for (int i = 0; i < 1000; ++i) EXPECT_TRUE(device->space.invalidate(io_range(0x100000, 1), 1s));
    };
    EXPECT_TRUE(write(page, 1));
    EXPECT_EQ(device->table->count_questions(), 1U);
    EXPECT_EQ(device->space.counts().stale_answers, 0U);
}

TEST_F(IoSpaceTest, ARefusalThatIsOlderThanAMappingIsAskedAgain) {
    device->table->on_question = [&](IoAddress, Access) {
        if (device->table->count_questions() > 1) return;
        device->table->set(translation(page, page, 0x8000));
        EXPECT_TRUE(device->space.invalidate(io_range(page, page), 1s));
    };
    EXPECT_TRUE(write(page, 1)) << "it was mapped before the answer came";
    EXPECT_EQ(device->table->count_questions(), 2U);
    EXPECT_EQ(device->space.counts().stale_answers, 1U);
}

TEST_F(IoSpaceTest, ATranslatorThatThrowsLeavesNoQuestionBehind) {
    device->table->on_question = [](IoAddress, Access) { throw std::runtime_error{"the table is gone"}; };
    EXPECT_THROW(static_cast<void>(write(page, 1)), std::runtime_error);
    device->table->on_question = nullptr;
    EXPECT_TRUE(device->space.invalidate_all(1s));
    device->table->set(translation(page, page, 0x8000));
    EXPECT_TRUE(write(page, 1));
}

TEST_F(IoSpaceTest, TheLongestAndTheShortestLimitsAreLimits) {
    EXPECT_TRUE(device->space.invalidate_all(std::chrono::milliseconds::max()));
    EXPECT_TRUE(device->space.invalidate_all(std::chrono::milliseconds::min()));
}

TEST_F(IoSpaceTest, AMappingThatIsAlwaysTakenAwayIsGivenUp) {
    device->table->set(translation(page, page, 0x8000));
    device->table->on_question = [&](IoAddress, Access) {
        EXPECT_TRUE(device->space.invalidate(io_range(page, page), 1s));
    };
    EXPECT_EQ(write(page, 1).error(), (AccessError{AccessReason::translator_failed, Access::write, page, 0}));
    EXPECT_EQ(device->table->count_questions(), max_translation_tries);
    EXPECT_EQ(byte(0x8000), 0U);
}

// ---- accesses under way ----

using Verb = std::function<bool(TranslatedMemory&)>;

TEST(IoSpaceAccess, AnInvalidationWaitsForEveryKindOfAccessAndNamesIt) {
    StoppingPage page;
    TestMap guest;
    guest.add({.name = "stopping",
               .base = GuestAddress{0x8000},
               .memory = HostMemory::borrow(page.bytes(), MapAccess::read_write, nullptr).value()});
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x1000, 0x8000));
    const IoAddress at{0x1040};
    std::array<std::byte, 100> buffer{};
    const std::vector<Verb> verbs = {
        [&](TranslatedMemory& memory) { return memory.read<std::uint64_t>(at).has_value(); },
        [&](TranslatedMemory& memory) { return memory.write<std::uint64_t>(at, 1).has_value(); },
        [&](TranslatedMemory& memory) { return memory.read<std::uint64_t>(IoAddress{0x1041}).has_value(); },
        [&](TranslatedMemory& memory) { return memory.load<std::uint32_t>(at).has_value(); },
        [&](TranslatedMemory& memory) { return memory.store<std::uint32_t>(at, 1).has_value(); },
        [&](TranslatedMemory& memory) { return memory.exchange<std::uint8_t>(at, 1).has_value(); },
        [&](TranslatedMemory& memory) { return memory.fetch_add<std::uint64_t>(at, 1).has_value(); },
        [&](TranslatedMemory& memory) { return memory.fetch_or<std::uint64_t>(at, 1).has_value(); },
        [&](TranslatedMemory& memory) {
            return memory.compare_exchange<std::uint64_t>(at, 1, 1).has_value();
        },
        [&](TranslatedMemory& memory) { return memory.read_bytes(at, buffer).has_value(); },
        [&](TranslatedMemory& memory) { return memory.write_bytes(at, buffer).has_value(); },
        [&](TranslatedMemory& memory) { return memory.read_some(at, buffer).has_value(); },
        [&](TranslatedMemory& memory) { return memory.write_some(at, buffer).has_value(); },
        [&](TranslatedMemory& memory) { return memory.compare(at, buffer).has_value(); },
        [&](TranslatedMemory& memory) { return memory.fill(at, std::byte{0}, 64).has_value(); },
        [&](TranslatedMemory& memory) { return memory.copy(IoAddress{0x1100}, at, 64).has_value(); },
        [&](TranslatedMemory& memory) { return memory.read_string(at, 200).has_value(); },
    };
    for (std::size_t i = 0; i < verbs.size(); ++i) {
        for (const bool is_known : {true, false}) {
            SCOPED_TRACE(::testing::Message() << "verb " << i << ", known " << is_known);
            ASSERT_TRUE(device.space.invalidate_all(1s));
            ASSERT_TRUE(!is_known || device.memory->check_range(at, 8, Access::write));
            page.close();
            bool is_done = false;
            std::thread other{[&] { is_done = verbs[i](*device.memory); }};
            page.wait_for_access();
            const auto invalidated = device.space.invalidate(io_range(0x1000, 0x1000), 2ms);
            page.let_go();
            other.join();
            EXPECT_TRUE(is_done);
            ASSERT_FALSE(invalidated);
            EXPECT_EQ(invalidated.error().code(), Errc::timed_out);
            EXPECT_EQ(
                invalidated.error().message(),
                "io space 'test': invalidate 0x1000 to 0x1fff: still in use after 2 ms by handle 'queue 0'");
            EXPECT_TRUE(device.space.invalidate(io_range(0x1000, 0x1000), 0ms)) << "when it is over";
        }
    }
}

TEST(IoSpaceAccess, AnInvalidationEndsWhenTheAccessDoes) {
    StoppingPage page;
    TestMap guest;
    guest.add({.name = "stopping",
               .base = GuestAddress{0x8000},
               .memory = HostMemory::borrow(page.bytes(), MapAccess::read_write, nullptr).value()});
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x1000, 0x8000));
    page.close();
    std::atomic<bool> is_over{false};
    std::thread other{[&] {
        EXPECT_TRUE(device.memory->fill(IoAddress{0x1000}, std::byte{1}, 0x1000));
        is_over = true;
    }};
    page.wait_for_access();
    std::thread helper{[&] {
        std::this_thread::sleep_for(5ms);
        page.let_go();
    }};
    EXPECT_TRUE(device.space.invalidate_all(std::chrono::milliseconds::max()));
    EXPECT_TRUE(is_all(page.bytes(), std::byte{1})) << "all of it was written when invalidate() returned";
    other.join();
    helper.join();
}

// ---- holds ----

TEST_F(IoSpaceTest, AHoldMakesInvalidationsOfItsRangeWaitAndNamesItself) {
    device->table->set(translation(page, 4 * page, 0x8000));
    ASSERT_TRUE(write(page, 1));
    std::optional<IoHold> hold = device->memory->hold(io_range(2 * page, page), "disk read").value();
    EXPECT_TRUE(device->space.invalidate(io_range(page, page), 0ms));
    EXPECT_TRUE(device->space.invalidate(io_range(3 * page, top - 3 * page), 0ms));
    for (const IoRange& range :
         {io_range(2 * page, page), io_range(3 * page - 1, 1), io_range(0, top), io_range(2 * page, 1)}) {
        const auto invalidated = device->space.invalidate(range, 1ms);
        ASSERT_FALSE(invalidated);
        EXPECT_THAT(invalidated.error().message(),
                    HasSubstr("by handle 'queue 0' for 'disk read' (0x2000 to 0x2fff)"));
    }
    EXPECT_FALSE(device->space.invalidate_all(0ms));
    EXPECT_FALSE(device->space.set_mapping(translation(0, 3 * page, 0x8000), 0ms));
    EXPECT_TRUE(write(page, 1)) << "accesses go on";
    std::thread other{[&] {
        std::this_thread::sleep_for(2ms);
        hold.reset();
    }};
    EXPECT_TRUE(device->space.invalidate_all(10s));
    other.join();
}

TEST_F(IoSpaceTest, AHoldThatIsMovedIsOne) {
    IoHold first = device->memory->hold(io_range(page, page), "first").value();
    {
        const IoHold second{std::move(first)};
        EXPECT_FALSE(device->space.invalidate_all(0ms));
    }
    EXPECT_TRUE(device->space.invalidate_all(0ms));
    first = device->memory->hold(io_range(page, page), "third").value();
    EXPECT_FALSE(device->space.invalidate_all(0ms));
    {
        const IoHold fourth = std::move(first);
    }
    EXPECT_TRUE(device->space.invalidate_all(0ms));
}

TEST_F(IoSpaceTest, HasAtMostSoManyHolds) {
    std::vector<IoHold> holds;
    while (holds.size() < max_io_holds)
        holds.push_back(device->memory->hold(io_range(page, page), "one of many").value());
    const auto more = device->memory->hold(io_range(page, page), "one more");
    EXPECT_EQ(more.error().code(), Errc::exhausted);
    EXPECT_THAT(more.error().message(), HasSubstr("'one more'"));
    holds.pop_back();
    EXPECT_TRUE(device->memory->hold(io_range(page, page), "one more"));
}

// ---- membarrier ----

TEST_F(IoSpaceTest, WithoutMembarrierItWorksTheSame) {
    std::optional<TestDevice> other;
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS, .repeat = 100}};
        other.emplace(guest.map());
    }
    other->table->set(translation(page, page, 0x8000));
    EXPECT_TRUE(other->memory->write<std::uint64_t>(IoAddress{page}, 1));
    EXPECT_EQ(other->memory->fetch_add<std::uint64_t>(IoAddress{page}, 1).value(), 1U);
    EXPECT_EQ(other->memory->read<std::uint64_t>(IoAddress{page}).value(), 2U);
    const FaultInjector injector{0, {.only = SysCall::membarrier}};
    EXPECT_TRUE(other->space.invalidate_all(0ms));
    EXPECT_FALSE(injector.has_fired()) << "it does not ask for what it cannot have";
    EXPECT_EQ(other->memory->read<std::uint64_t>(IoAddress{page}).value(), 2U);
}

TEST_F(IoSpaceTest, AMembarrierThatFailsIsTriedAgainUntilTheDeadline) {
    if (FaultInjector probe{0, {.only = SysCall::membarrier}};
        !device->space.invalidate_all(1s) || !probe.has_fired())
        GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOMEM, .repeat = 3}};
        EXPECT_TRUE(device->space.invalidate_all(10s));
        EXPECT_TRUE(injector.has_fired());
    }
    const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOMEM, .repeat = 1'000'000}};
    const auto invalidated = device->space.invalidate_all(2ms);
    ASSERT_FALSE(invalidated);
    EXPECT_EQ(invalidated.error().os_error(), ENOMEM);
    EXPECT_THAT(invalidated.error().message(), HasSubstr("io space 'test': invalidate all: "));
}

// ---- stress ----

/// Writers write through a mapping all the time; the mapping goes from one page to the other and back. Whatever is in
/// the page that was left stays there.
void expect_nobody_writes_to_the_old_page(TestDevice& device, TestMap& guest,
                                          std::chrono::milliseconds limit) {
    constexpr std::uint64_t page = 0x1000;
    const auto map_to = [&](std::uint64_t number) {
        device.table->set(translation(page, page, 0x8000 + number * page));
    };
    map_to(0);
    std::atomic<bool> is_over{false};
    std::atomic<std::uint64_t> count_writes{0};
    std::vector<std::thread> writers;
    for (std::uint64_t i = 0; i < 3; ++i) {
        writers.emplace_back([&, i] {
            const auto memory = device.space.make_memory("writer", guest.map()).value();
            std::uint64_t count = 0;
            for (; !is_over.load(std::memory_order_relaxed); ++count) {
                const IoAddress at{page + count * 8 % page};
                switch (i == 0 ? 0 : count % 4) {
                    case 0: EXPECT_TRUE(memory->write<std::uint64_t>(at, count)); break;
                    case 1: EXPECT_TRUE(memory->fetch_add<std::uint32_t>(at, 1)); break;
                    case 2: EXPECT_TRUE(memory->fill(IoAddress{page}, std::byte{1}, 256)); break;
                    default:
                        EXPECT_TRUE(memory->write_bytes(IoAddress{page + 100}, counted_bytes(300)));
                        break;
                }
            }
            count_writes += count;
        });
    }
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::uint64_t rounds = 0;
    for (; std::chrono::steady_clock::now() < deadline && !::testing::Test::HasFailure(); ++rounds) {
        const std::uint64_t old = rounds % 2;
        map_to(1 - old);
        ASSERT_TRUE(device.space.invalidate(io_range(page, page), 10s));
        const std::span bytes = guest.bytes(0).subspan(old * page, page);
        std::memset(bytes.data(), 0xee, page);
        for (int i = 0; i < 3; ++i) EXPECT_TRUE(is_all(bytes, std::byte{0xee})) << "round " << rounds;
        if (rounds % 16 == 0) std::this_thread::yield();
    }
    is_over = true;
    for (std::thread& writer : writers) writer.join();
    EXPECT_GT(rounds, 10U);
    EXPECT_GT(count_writes.load(), 100U);
}

TEST(IoSpaceStress, NobodyWritesToAPageAfterItWasInvalidated) {
    TestMap guest;
    guest.ram(0x8000, 0x2000);
    TestDevice device{guest.map()};
    expect_nobody_writes_to_the_old_page(device, guest, 400ms);
}

TEST(IoSpaceStress, NorWithoutMembarrier) {
    TestMap guest;
    guest.ram(0x8000, 0x2000);
    std::optional<TestDevice> device;
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS, .repeat = 100}};
        device.emplace(guest.map());
    }
    expect_nobody_writes_to_the_old_page(*device, guest, 200ms);
}

// ---- the barrier between a handle and an invalidation ----

/// A writer begins to write at the moment when its mapping is taken away; what it writes through the old mapping has
/// to be there when invalidate() returns.
class Litmus {
public:
    Litmus() {
        guest_.ram(0x8000, 0x1000);
        device_.emplace(guest_.map());
    }

    /// How many writes came after invalidate() had returned.
    std::uint64_t run(std::uint64_t count_rounds) {
        const testing::TwoProcessors processors;
        std::thread writer{[&] {
            processors.take_second();
            write();
        }};
        const std::atomic_ref word{*reinterpret_cast<std::uint64_t*>(guest_.bytes(0).data())};
        const auto last_moment = std::chrono::steady_clock::now() + 1s;
        std::uint64_t count_late = 0;
        std::int64_t lead = 0;
        std::uint64_t round = 1;
        for (; round <= count_rounds && std::chrono::steady_clock::now() < last_moment; ++round) {
            device_->table->set(translation(0x1000, 0x1000, 0x8000));
            writer_waits_.store(-lead, std::memory_order_relaxed);
            for (const Line& line : lines_) static_cast<void>(line.value.load(std::memory_order_relaxed));
            go_.store(round, std::memory_order_release);
            testing::wait_for(ready_, round);
            wait(lead);
            device_->table->remove(0x1000);
            EXPECT_TRUE(device_->space.invalidate(io_range(0x1000, 0x1000), 10s));
            const std::uint64_t seen = word.load(std::memory_order_relaxed);
            testing::wait_for(done_, round);
            if (word.load(std::memory_order_relaxed) != seen) ++count_late;
            const bool was_written = seen == round;
            count_written_ += was_written ? 1 : 0;
            // Whoever came too early waits a little longer in the next round, so that the two meet.
            lead = std::clamp<std::int64_t>(lead + (was_written ? -1 : 1), -4'000, 4'000);
        }
        go_.store(is_over, std::memory_order_release);
        writer.join();
        EXPECT_GT(count_written_, 0U);
        EXPECT_LT(count_written_, round - 1);
        return count_late;
    }

private:
    static constexpr std::uint64_t is_over = ~std::uint64_t{0};
    struct alignas(64) Line {
        std::atomic<std::uint64_t> value{0};
    };

    void write() {
        const auto memory = device_->space.make_memory("writer", guest_.map()).value();
        for (std::uint64_t round = 1;; ++round) {
            testing::wait_for(go_, round);
            if (go_.load(std::memory_order_relaxed) == is_over) return;
            EXPECT_TRUE(memory->read<std::uint64_t>(IoAddress{0x1000}));
            ready_.store(round, std::memory_order_release);
            wait(writer_waits_.load(std::memory_order_relaxed));
            // Lines of the other processor: what is stored behind them waits for them in the store buffer.
            for (Line& line : lines_) line.value.store(round, std::memory_order_relaxed);
            static_cast<void>(memory->write<std::uint64_t>(IoAddress{0x1000}, round));
            done_.store(round, std::memory_order_release);
        }
    }
    void wait(std::int64_t count) const {
        for (; count > 0; --count) static_cast<void>(go_.load(std::memory_order_relaxed));
    }

    TestMap guest_;
    std::optional<TestDevice> device_;
    std::array<Line, 8> lines_;
    alignas(64) std::atomic<std::uint64_t> go_{0};
    alignas(64) std::atomic<std::uint64_t> ready_{0};
    alignas(64) std::atomic<std::uint64_t> done_{0};
    alignas(64) std::atomic<std::int64_t> writer_waits_{0};
    std::uint64_t count_written_ = 0;
};

constexpr std::uint64_t count_litmus_rounds = testing::has_thread_sanitizer ? 20'000 : 200'000;

TEST(IoSpaceLitmus, NoWriteComesAfterItsMappingWasInvalidated) {
    // Not on the stack: with its checks for returned frames, g++ 12 places this without its alignment.
    const auto litmus = std::make_unique<Litmus>();
    EXPECT_EQ(litmus->run(count_litmus_rounds), 0U);
}

TEST(IoSpaceLitmus, NorWithoutMembarrier) {
    std::unique_ptr<Litmus> litmus;
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS, .repeat = 100}};
        litmus = std::make_unique<Litmus>();
    }
    EXPECT_EQ(litmus->run(count_litmus_rounds), 0U);
}

}  // namespace
}  // namespace guestmem

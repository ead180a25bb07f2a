// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/live_map_state.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_slice.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;

constexpr std::uint64_t page = 4096;
/// Before all that will ever be published.
constexpr std::uint64_t max_map_generation = ~std::uint64_t{0};

RegionPtr ram(std::uint64_t base, std::uint64_t size_bytes = page) {
    return Region::create({.name = "ram",
                           .base = GuestAddress{base},
                           .memory = HostMemory::create_anonymous({.size_bytes = size_bytes}).value()})
        .value();
}

MapPtr map_of(const std::vector<RegionPtr>& regions) {
    Layout layout;
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

GuestRange page_at(std::uint64_t base) { return GuestRange::create(GuestAddress{base}, page).value(); }

/// Why the old map is still in use; empty when it is not.
std::string users(const LiveMap& live, RetiredMap retired) {
    const auto unused = live.wait_until_unused(retired, 0ms);
    return unused ? "" : unused.error().message();
}

/// A device's memory, whose owner runs `on_gone` when nobody has it any more.
RegionPtr region_with_owner(std::uint64_t base, std::function<void()> on_gone) {
    auto bytes = std::make_shared<std::vector<std::byte>>(page);
    const std::shared_ptr<const void> owner{
        bytes.get(), [bytes, on_gone = std::move(on_gone)](const void*) { on_gone(); }};
    return Region::create({.name = "bar",
                           .base = GuestAddress{base},
                           .memory = HostMemory::borrow(*bytes, MapAccess::read_write, owner).value()})
        .value();
}

// ---- which maps go, and when ----

TEST(LiveMapState, AMapThatNoReaderHoldsGoesAlsoBehindAnOlderOne) {
    LiveMap live{map_of({ram(0)})};
    MapReader slow = live.make_reader("slow").value();
    static_cast<void>(slow.memory());
    for (int turn = 0; turn < 50; ++turn) {
        RegionPtr dimm = ram(page);
        const std::weak_ptr<const Region> watch = dimm;
        ASSERT_TRUE(live.insert(std::move(dimm)));
        ASSERT_TRUE(live.remove(page_at(page)));
        EXPECT_TRUE(watch.expired()) << turn;
    }
}

TEST(LiveMapState, AMapThatComesBackIsNoOldOne) {
    const MapPtr first = map_of({ram(0)});
    LiveMap live{first};
    const RetiredMap gone = live.publish(map_of({}));
    const RetiredMap other = live.publish(first);
    EXPECT_EQ(users(live, other), "");
    EXPECT_EQ(users(live, gone), "") << "it is the current one";
    const RetiredMap again = live.publish(map_of({}));
    EXPECT_THAT(users(live, gone), HasSubstr("owner(s)")) << "this test has it";
    EXPECT_THAT(users(live, again), HasSubstr("owner(s)"));
}

TEST(LiveMapState, AWaitIsForPointersOfTheTimeWhenTheRegionFirstLeft) {
    const RegionPtr dimm = ram(page);
    LiveMap live{map_of({ram(0), dimm})};
    std::optional<ReadPointer> pointer;
    {
        GuestMemory memory{live.current()};
        pointer.emplace(ReadPointer::create(memory, GuestAddress{page}, 16, "kernel header").value());
    }
    const RetiredMap first = live.remove(page_at(page)).value();
    ASSERT_TRUE(live.insert(dimm));
    const RetiredMap again = live.remove(page_at(page)).value();
    EXPECT_THAT(users(live, first), HasSubstr("'kernel header'"));
    EXPECT_THAT(users(live, again), HasSubstr("'kernel header'"));
    pointer.reset();
    EXPECT_EQ(users(live, first), "");
    EXPECT_EQ(users(live, again), "");
}

TEST(LiveMapState, ManyRegionsAreReplacedAtOnce) {
    // Two maps of the most regions there are: a comparison of all pairs would take minutes.
    constexpr std::uint64_t count = 16384;
    const auto all = [] {
        const auto memory = HostMemory::create_anonymous({.size_bytes = page}).value();
        std::vector<RegionPtr> regions;
        for (std::uint64_t i = 0; i < count; ++i)
            regions.push_back(
                Region::create({.name = "r", .base = GuestAddress{i * page}, .memory = memory}).value());
        return regions;
    };
    const std::vector<RegionPtr> before = all();
    const std::vector<RegionPtr> after = all();
    LiveMap live{map_of(before)};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    const RetiredMap old = live.publish(map_of(after));
    EXPECT_THAT(users(live, old), HasSubstr("'reader'"));
    EXPECT_EQ(&reader.memory().map(), live.current().get());
    EXPECT_EQ(users(live, old), "");
}

// ---- owners that come back ----

TEST(LiveMapState, TheOwnerOfMemoryMayUseTheMapThatLetsItGo) {
    LiveMap live{map_of({ram(0)})};
    int count_gone = 0;
    const auto plug = [&] {
        auto reader = std::make_shared<MapReader>(live.make_reader("device").value());
        ASSERT_TRUE(live.insert(region_with_owner(page, [&, reader] {
            ++count_gone;
            reader->park();
            EXPECT_EQ(live.current()->regions().size(), 1U);
            EXPECT_TRUE(live.insert(ram(2 * page)));
            EXPECT_TRUE(live.remove(page_at(2 * page)));
        })));
    };
    plug();
    ASSERT_TRUE(live.remove(page_at(page)));
    EXPECT_EQ(count_gone, 1) << "in the call that took it away";

    plug();
    MapReader other = live.make_reader("other").value();
    static_cast<void>(other.memory());
    const RetiredMap old = live.remove(page_at(page)).value();
    EXPECT_EQ(count_gone, 1);
    other.park();
    EXPECT_EQ(users(live, old), "");
    EXPECT_EQ(count_gone, 2) << "in the call that waited for it";
}

TEST(LiveMapState, AWaitIsAlsoForTheOwnerThatIsJustLettingGo) {
    LiveMap live{map_of({ram(0)})};
    std::atomic<bool> is_going{false};
    std::atomic<bool> is_gone{false};
    ASSERT_TRUE(live.insert(region_with_owner(page, [&] {
        is_going = true;
        EXPECT_TRUE(live.wait_until_unused(RetiredMap{max_map_generation}, 1s)) << "but not for itself";
        std::this_thread::sleep_for(50ms);
        is_gone = true;
    })));
    std::thread remover{[&] { EXPECT_TRUE(live.remove(page_at(page))); }};
    while (!is_going.load()) std::this_thread::yield();
    const RetiredMap all{max_map_generation};
    EXPECT_THAT(users(live, all), HasSubstr("letting the map of generation"));
    EXPECT_TRUE(live.wait_until_unused(all, 10s));
    EXPECT_TRUE(is_gone);
    remover.join();
}

// ---- changes ----

TEST(LiveMapState, AMapThatIsPublishedDuringAnUpdateIsNotLost) {
    LiveMap live{map_of({})};
    std::thread publisher;
    std::atomic<bool> is_published{false};
    const auto updated = live.update([&](const MemoryMap& map) {
        publisher = std::thread{[&] {
            live.publish(map_of({ram(page), ram(2 * page)}));
            is_published = true;
        }};
        std::this_thread::sleep_for(20ms);
        EXPECT_FALSE(is_published) << "changes come one after another";
        return map.with(ram(0));
    });
    EXPECT_TRUE(updated);
    publisher.join();
    EXPECT_EQ(live.current()->regions().size(), 2U);
}

TEST(LiveMapState, TheLongestAndTheShortestLimitsAreLimits) {
    LiveMap live{map_of({ram(0)})};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    const RetiredMap old = live.publish(map_of({}));
    EXPECT_FALSE(live.wait_until_unused(old, std::chrono::milliseconds::min()));
    std::thread parker{[&] {
        std::this_thread::sleep_for(20ms);
        reader.park();
    }};
    EXPECT_TRUE(live.wait_until_unused(old, std::chrono::milliseconds::max()));
    parker.join();
}

// ---- numbers ----

TEST(LiveMapState, ASliceServesTheReadersOfTwoMachines) {
    std::vector<LiveMap> machines;
    std::vector<MapReader> readers;
    for (std::uint8_t number = 1; number <= 2; ++number) {
        const RegionPtr one = ram(0);
        *one->host_base() = std::byte{number};
        machines.emplace_back(map_of({one}));
        readers.push_back(machines.back().make_reader("reader").value());
    }
    CachedSlice cached{page_at(0)};
    for (int turn = 0; turn < 2; ++turn) {
        for (std::uint8_t number = 1; number <= 2; ++number) {
            MapReader& reader = readers.at(number - 1U);
            static_cast<void>(reader.memory());
            GuestSlice& slice = **cached.slice(reader);
            EXPECT_EQ(slice.read<std::uint8_t>(slice.at(0)).value(), number);
        }
    }
}

TEST(LiveMapState, AReaderThatIsMovedAwayLeavesItsSlotAlone) {
    LiveMap live{map_of({ram(0)})};
    MapReader first = live.make_reader("moved").value();
    static_cast<void>(first.memory());
    MapReader second{std::move(first)};
    first.park();  // NOLINT(bugprone-use-after-move): as the end of a pin would
    const RetiredMap old = live.publish(map_of({}));
    EXPECT_THAT(users(live, old), HasSubstr("'moved'"));

    MapReader& same = second;
    second = std::move(same);
    EXPECT_THAT(users(live, old), HasSubstr("'moved'"));
    EXPECT_EQ(second.held_generation(), old.generation);
    second.park();
    EXPECT_EQ(users(live, old), "");
}

// ---- a pin against a publish ----

/// Whether a map ever went while a reader had it pinned.
struct PinLitmus {
    std::uint64_t count_pinned = 0;  ///< rounds in which the reader was first
    std::uint64_t count_lost = 0;

    void run() {
        LiveMap live{map_of({})};
        MapReader reader = live.make_reader("reader").value();
        std::atomic<std::uint64_t> round{0};
        std::atomic<std::uint64_t> pinned_round{0};
        std::atomic<std::uint64_t> checked_round{0};
        std::atomic<std::uint64_t> pinned_generation{0};
        std::atomic<bool> is_over{false};
        const auto await = [&](const std::atomic<std::uint64_t>& number, std::uint64_t wanted) {
            while (number.load() < wanted && !is_over.load()) {
            }
        };
        std::thread pinner{[&] {
            for (std::uint64_t i = 1; !is_over.load(); ++i) {
                await(round, i);
                const MapPin pin = reader.pin();
                pinned_generation = reader.held_generation();
                pinned_round = i;
                await(checked_round, i);
            }
        }};
        const auto end = std::chrono::steady_clock::now() + 1s;
        for (std::uint64_t i = 1; std::chrono::steady_clock::now() < end; ++i) {
            MapPtr next = map_of({});
            const std::weak_ptr<const MemoryMap> old = live.current();
            round = i;
            // A little later each round, so that the two meet.
            for (std::uint64_t step = 0; step < i % 60; ++step)
                std::atomic_signal_fence(std::memory_order_seq_cst);
            const RetiredMap retired = live.publish(std::move(next));
            const bool is_gone = old.expired();
            await(pinned_round, i);
            if (pinned_generation.load() <= retired.generation) {
                ++count_pinned;
                if (is_gone) ++count_lost;
            }
            checked_round = i;
        }
        is_over = true;
        pinner.join();
    }
};

void expect_no_pin_is_lost() {
    PinLitmus litmus;
    litmus.run();
    EXPECT_EQ(litmus.count_lost, 0U) << "of " << litmus.count_pinned;
    EXPECT_GT(litmus.count_pinned, 0U) << "the two never met";
}

TEST(LiveMapStateLitmus, NoMapGoesWhileItIsPinned) { expect_no_pin_is_lost(); }

TEST(LiveMapStateLitmus, NorWithoutMembarrier) {
    const FaultInjector none{0, {.only = SysCall::membarrier, .os_error = EPERM, .repeat = UINT64_MAX}};
    expect_no_pin_is_lost();
}

}  // namespace
}  // namespace guestmem

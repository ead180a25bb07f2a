// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/live_map.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

static_assert(!std::is_copy_constructible_v<MapReader>);
static_assert(std::is_nothrow_move_constructible_v<MapReader>);
static_assert(!std::is_copy_constructible_v<MapPin> && !std::is_move_constructible_v<MapPin>);

constexpr std::uint64_t page = 4096;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;

RegionPtr ram(std::string name, std::uint64_t base, std::uint64_t value = 0) {
    const auto memory = HostMemory::create_anonymous({.size_bytes = page}).value();
    for (std::size_t i = 0; i < page; i += 8) std::memcpy(memory->bytes().data() + i, &value, 8);
    return Region::create({.name = std::move(name), .base = GuestAddress{base}, .memory = memory}).value();
}

MapPtr map_of(const std::vector<RegionPtr>& regions) {
    Layout layout;
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

GuestRange page_at(std::uint64_t base) { return GuestRange::create(GuestAddress{base}, page).value(); }

std::uint64_t value_at(GuestMemory& memory, std::uint64_t address = 0) {
    return memory.read<std::uint64_t>(GuestAddress{address}).value();
}

/// Why the old map is still in use; empty when it is not.
std::string users(const LiveMap& live, RetiredMap retired) {
    const auto unused = live.wait_until_unused(retired, 0ms);
    if (unused) return "";
    EXPECT_EQ(unused.error().code(), Errc::timed_out);
    return unused.error().message();
}

TEST(LiveMap, AReaderFollowsWhatIsPublished) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader reader = live.make_reader("reader").value();
    EXPECT_EQ(value_at(reader.memory()), 1U);
    live.publish(map_of({ram("two", 0, 2)}));
    EXPECT_EQ(value_at(reader.memory()), 2U);
    EXPECT_EQ(value_at(*reader.pin()), 2U);
    live.publish(map_of({ram("three", 0, 3)}));
    EXPECT_EQ(value_at(*reader.pin()), 3U);
}

TEST(LiveMap, AReaderStaysWithItsMapUntilItAsksAgain) {
    const MapPtr first = map_of({ram("one", 0, 1)});
    LiveMap live{first};
    MapReader reader = live.make_reader("reader").value();
    GuestMemory& memory = reader.memory();
    EXPECT_EQ(&reader.memory(), &memory);

    live.publish(map_of({ram("two", 0, 2)}));

    EXPECT_EQ(&memory.map(), first.get());
    EXPECT_EQ(value_at(memory), 1U);
    EXPECT_FALSE(reader.is_current());
    EXPECT_NE(&reader.memory().map(), first.get());
    EXPECT_TRUE(reader.is_current());
}

TEST(LiveMap, AReaderKnowsWhichMapItHolds) {
    const MapPtr first = map_of({ram("one", 0)});
    LiveMap live{first};
    MapReader reader = live.make_reader("reader").value();
    EXPECT_EQ(reader.held_generation(), 0U);
    EXPECT_FALSE(reader.is_current());
    static_cast<void>(reader.memory());
    EXPECT_EQ(&reader.held_map(), first.get());
    const std::uint64_t before = reader.held_generation();
    live.publish(first);  // the same map again: nothing to follow
    EXPECT_TRUE(reader.is_current());
    live.publish(map_of({ram("one", 0)}));
    EXPECT_EQ(reader.held_generation(), before);
    static_cast<void>(reader.memory());
    EXPECT_GT(reader.held_generation(), before);
    reader.park();
    EXPECT_EQ(reader.held_generation(), 0U);
    EXPECT_DEATH(static_cast<void>(reader.held_map()), "check failed");
}

TEST(LiveMap, AMapThatAReaderHoldsLivesAndGoesWhenTheReaderParks) {
    MapPtr first = map_of({ram("one", 0, 1)});
    const std::weak_ptr<const MemoryMap> watch = first;
    LiveMap live{std::move(first)};
    MapReader reader = live.make_reader("reader").value();
    GuestMemory& memory = reader.memory();

    const RetiredMap old = live.publish(map_of({}));
    EXPECT_FALSE(watch.expired());
    EXPECT_EQ(value_at(memory), 1U);

    reader.park();
    EXPECT_TRUE(live.wait_until_unused(old, 0ms));
    EXPECT_TRUE(watch.expired());
}

TEST(LiveMap, WithoutReadersAnOldMapGoesAtOnce) {
    MapPtr first = map_of({ram("one", 0)});
    const std::weak_ptr<const MemoryMap> watch = first;
    LiveMap live{std::move(first)};
    const RetiredMap old = live.publish(map_of({}));
    EXPECT_TRUE(watch.expired());
    EXPECT_TRUE(live.wait_until_unused(old, 0ms));
}

TEST(LiveMap, AWaitNamesTheReaderThatHoldsIt) {
    LiveMap live{map_of({ram("one", 0)})};
    MapReader queue = live.make_reader("net queue 0").value();
    MapReader other = live.make_reader("parked").value();
    static_cast<void>(queue.memory());
    static_cast<void>(other.memory());
    other.park();
    const RetiredMap old = live.publish(map_of({}));

    const auto start = std::chrono::steady_clock::now();
    const auto unused = live.wait_until_unused(old, 30ms);
    const auto took = std::chrono::steady_clock::now() - start;

    ASSERT_FALSE(unused);
    EXPECT_EQ(unused.error().code(), Errc::timed_out);
    EXPECT_EQ(unused.error().message(),
              fmt::format("memory map of generation {0}: still in use after 30 ms by reader 'net queue 0' "
                          "(generation {0})",
                          old.generation));
    EXPECT_GE(took, 30ms);
    EXPECT_LT(took, 10s);
    static_cast<void>(queue.memory());
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AWaitNamesAPin) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader reader = live.make_reader("vcpu 3").value();
    RetiredMap old;
    {
        const MapPin pin = reader.pin();
        old = live.publish(map_of({}));
        EXPECT_THAT(users(live, old),
                    HasSubstr(fmt::format("reader 'vcpu 3' (generation {})", old.generation)));
        EXPECT_EQ(value_at(*pin), 1U);
        EXPECT_EQ(pin->map().regions().size(), 1U);
    }
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AWaitNamesASnapshotAndWhatItHoldsStays) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    RetiredMap old;
    {
        const MapSnapshot snapshot = live.snapshot("migration").value();
        old = live.publish(map_of({}));
        EXPECT_THAT(users(live, old), HasSubstr("'migration'"));
        EXPECT_EQ(snapshot->regions().size(), 1U);
        EXPECT_EQ((*snapshot).regions().front()->name(), "one");
        EXPECT_EQ(snapshot.map()->last(), GuestAddress{page - 1});
        EXPECT_TRUE(live.snapshot("another").value()->regions().empty());
    }
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AWaitCountsOwnersWithoutAName) {
    LiveMap live{map_of({ram("one", 0)})};
    MapPtr kept = live.current();
    const RetiredMap old = live.publish(map_of({}));
    EXPECT_THAT(users(live, old),
                HasSubstr(fmt::format("1 owner(s) of the map of generation {} itself", old.generation)));
    MapPtr second = kept;
    EXPECT_THAT(users(live, old), HasSubstr("2 owner(s)"));
    kept = nullptr;
    second = nullptr;
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AWaitNamesWhoHoldsAPointerIntoARegionThatIsGone) {
    LiveMap live{map_of({ram("stays", 0), ram("goes", page)})};
    MapReader reader = live.make_reader("reader").value();
    auto goes = ReadPointer::create(reader.memory(), GuestAddress{page}, 8, "kernel header");
    const auto stays = ReadPointer::create(reader.memory(), GuestAddress{0}, 8, "initrd");
    ASSERT_TRUE(goes && stays);

    const RetiredMap old = live.remove(page_at(page)).value();
    const std::string while_held = users(live, old);
    EXPECT_THAT(while_held,
                AllOf(HasSubstr("reader 'reader'"), HasSubstr("pointer 'kernel header' into region 'goes'")));
    EXPECT_THAT(while_held, Not(HasSubstr("initrd")));

    // The map itself is gone, the pointer is not.
    reader.park();
    EXPECT_THAT(users(live, old), HasSubstr("pointer 'kernel header' into region 'goes'"));
    {
        const ReadPointer last = std::move(*goes);
        EXPECT_THAT(users(live, old), HasSubstr("kernel header"));
    }
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AWaitIsForOlderMapsTooAndNotForYoungerOnes) {
    LiveMap live{map_of({ram("one", 0)})};
    MapReader oldest = live.make_reader("oldest").value();
    MapReader youngest = live.make_reader("youngest").value();
    static_cast<void>(oldest.memory());
    const RetiredMap first = live.publish(map_of({ram("two", 0)}));
    const RetiredMap second = live.publish(map_of({ram("three", 0)}));
    static_cast<void>(youngest.memory());

    const auto oldest_holds = HasSubstr(fmt::format("'oldest' (generation {})", first.generation));
    EXPECT_THAT(users(live, first), oldest_holds);
    EXPECT_THAT(users(live, second), AllOf(oldest_holds, Not(HasSubstr("youngest"))));
    oldest.park();
    EXPECT_EQ(users(live, second), "");
    EXPECT_EQ(users(live, first), "");
}

TEST(LiveMap, AWaitEndsWhenTheLastReaderMovesOn) {
    LiveMap live{map_of({ram("one", 0)})};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    const RetiredMap old = live.publish(map_of({}));
    std::thread thread{[&] {
        std::this_thread::sleep_for(20ms);
        static_cast<void>(reader.memory());
    }};
    const auto unused = live.wait_until_unused(old, 20s);
    thread.join();
    EXPECT_TRUE(unused);
}

TEST(LiveMap, AReplacedRegionIsReadAlsoBehindARememberedHit) {
    LiveMap live{map_of({ram("one", 0, 1), ram("other", page, 7)})};
    MapReader reader = live.make_reader("reader").value();
    for (std::uint64_t value = 2; value < 20; ++value) {
        EXPECT_EQ(value_at(reader.memory()), value - 1);
        ASSERT_TRUE(live.replace(page_at(0), ram("next", 0, value)));
        EXPECT_EQ(value_at(reader.memory()), value);
    }
}

TEST(LiveMap, RegionsComeAndGoByName) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader reader = live.make_reader("reader").value();
    ASSERT_TRUE(live.insert(ram("two", page, 2)));
    EXPECT_EQ(value_at(reader.memory(), page), 2U);
    ASSERT_TRUE(live.remove(page_at(0)));
    EXPECT_FALSE(reader.memory().read<std::uint64_t>(GuestAddress{0}));
    ASSERT_TRUE(live.replace(page_at(page), ram("three", 4 * page, 3)));
    EXPECT_EQ(value_at(reader.memory(), 4 * page), 3U);
    EXPECT_EQ(live.current()->regions().size(), 1U);
}

TEST(LiveMap, AChangeThatFailsPublishesNothing) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    EXPECT_THAT(live.insert(ram("two", 0)).error().message(), HasSubstr("overlap"));
    EXPECT_EQ(live.remove(page_at(page)).error().code(), Errc::not_found);
    EXPECT_FALSE(live.replace(page_at(page), ram("two", page)));
    EXPECT_FALSE(live.update([](const MemoryMap&) -> Result<MapPtr> { return Error{Errc::busy, "later"}; }));
    EXPECT_TRUE(reader.is_current());
    EXPECT_TRUE(live.insert(ram("two", page))) << "a failed update does not block the next";
}

TEST(LiveMap, OfWritersAtTheSameTimeNoneIsLost) {
    LiveMap live{map_of({})};
    constexpr std::uint64_t count_threads = 4;
    constexpr std::uint64_t count_each = 50;
    std::vector<std::thread> writers;
    for (std::uint64_t i = 0; i < count_threads; ++i)
        writers.emplace_back([&live, i] {
            for (std::uint64_t j = 0; j < count_each; ++j)
                EXPECT_TRUE(live.insert(ram("r", (j * count_threads + i) * page)));
        });
    for (std::thread& writer : writers) writer.join();
    EXPECT_EQ(live.current()->regions().size(), count_threads * count_each);
}

TEST(LiveMap, AnUpdateThatTakesLongLosesNoneThatComesMeanwhile) {
    LiveMap live{map_of({})};
    std::thread other;
    const auto updated = live.update([&](const MemoryMap& map) {
        other = std::thread{[&] { EXPECT_TRUE(live.insert(ram("other", page))); }};
        std::this_thread::sleep_for(30ms);
        return map.with(ram("slow", 0));
    });
    other.join();
    EXPECT_TRUE(updated);
    EXPECT_EQ(live.current()->regions().size(), 2U);
}

TEST(LiveMap, ThereMayBeSoManyReadersAndNotOneMore) {
    LiveMap live{map_of({})};
    std::vector<MapReader> readers;
    for (std::size_t i = 0; i < max_map_readers - 1; ++i) readers.push_back(live.make_reader("r").value());
    std::optional<MapSnapshot> snapshot = live.snapshot("the last").value();

    const auto more = live.make_reader("one more");
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), Errc::exhausted);
    EXPECT_EQ(more.error().message(), "reader 'one more': a live map has at most 4096 readers");
    EXPECT_EQ(live.snapshot("s").error().code(), Errc::exhausted);

    snapshot.reset();
    EXPECT_TRUE(live.make_reader("in its place"));
    readers.pop_back();
    EXPECT_TRUE(live.snapshot("in its place"));
}

TEST(LiveMap, AReaderThatIsMovedHoldsItsMapUnderItsName) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader first = live.make_reader("moved").value();
    static_cast<void>(first.memory());
    MapReader second{std::move(first)};
    const RetiredMap old = live.publish(map_of({}));
    EXPECT_THAT(users(live, old), HasSubstr("'moved'"));
    EXPECT_EQ(&second.held_map(), &second.held_map());

    MapReader third = live.make_reader("overwritten").value();
    EXPECT_TRUE(third.memory().map().regions().empty());
    third = std::move(second);
    EXPECT_THAT(users(live, old), AllOf(HasSubstr("'moved'"), Not(HasSubstr("overwritten"))));
    third.park();
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, AReaderThatIsOverwrittenOrGoneHoldsNothing) {
    LiveMap live{map_of({ram("one", 0)})};
    MapReader kept = live.make_reader("kept").value();
    static_cast<void>(kept.memory());
    RetiredMap old;
    {
        MapReader gone = live.make_reader("gone").value();
        static_cast<void>(gone.memory());
        old = live.publish(map_of({}));
        EXPECT_THAT(users(live, old), AllOf(HasSubstr("'kept'"), HasSubstr("'gone'")));
    }
    EXPECT_THAT(users(live, old), Not(HasSubstr("'gone'")));
    kept = live.make_reader("other").value();
    EXPECT_EQ(users(live, old), "");
}

TEST(LiveMap, ItsReadersPinsAndSnapshotsMayOutliveIt) {
    std::optional<LiveMap> live{map_of({ram("one", 0, 1)})};
    MapReader reader = live->make_reader("reader").value();
    MapReader parked = live->make_reader("parked").value();
    std::optional<MapSnapshot> snapshot = live->snapshot("snapshot").value();
    {
        const MapPin pin = reader.pin();
        live.reset();
        EXPECT_EQ(value_at(*pin), 1U);
    }
    EXPECT_EQ(value_at(reader.memory()), 1U);
    EXPECT_EQ(value_at(parked.memory()), 1U);
    EXPECT_EQ((*snapshot)->regions().size(), 1U);
    snapshot.reset();
    EXPECT_EQ(value_at(reader.memory()), 1U);
}

TEST(LiveMap, APinInsideOfAHeldMapEndsAndTheMapIsHeldOn) {
    LiveMap live{map_of({ram("one", 0, 1)})};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    {
        const MapPin pin = reader.pin();
    }
    const RetiredMap old = live.publish(map_of({ram("two", 0, 2)}));
    EXPECT_THAT(users(live, old), HasSubstr("'reader'"));
    reader.park();
    EXPECT_EQ(users(live, old), "");
    {
        const MapPin outer = reader.pin();
        {
            const MapPin inner = reader.pin();
        }
        const RetiredMap second = live.publish(map_of({}));
        EXPECT_THAT(users(live, second), HasSubstr("'reader'"));
        EXPECT_EQ(value_at(*outer), 2U);
    }
    EXPECT_EQ(users(live, RetiredMap{2}), "");
}

TEST(LiveMapDeathTest, NoMapIsOurOwnBug) {
    EXPECT_DEATH(LiveMap{nullptr}, "check failed");
    LiveMap live{map_of({})};
    EXPECT_DEATH(live.publish(nullptr), "check failed");
}

/// Fails membarrier, as a seccomp filter would, while it lives.
class NoMembarrier {
public:
    NoMembarrier() : injector_(0, {.only = SysCall::membarrier, .os_error = EPERM, .repeat = UINT64_MAX}) {}

private:
    FaultInjector injector_;
};

TEST(LiveMap, AWaitDoesNotEndWhileTheBarrierCannotBeHad) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    LiveMap live{map_of({ram("one", 0)})};
    MapReader reader = live.make_reader("reader").value();
    static_cast<void>(reader.memory());
    const RetiredMap old = live.publish(map_of({}));
    reader.park();
    {
        const NoMembarrier none;
        // Nobody says that no reader has just begun to use the old map: it has not been asked.
        EXPECT_NE(users(live, old), "");
    }
    EXPECT_EQ(users(live, old), "");
}

enum class Barrier : std::uint8_t { membarrier, fence };

/// What the writer puts where nobody may read any more.
constexpr std::uint64_t poison = 0xdead'dead'dead'dead;

/// Pages that are lent to maps and poisoned when they come back.
class Pages {
public:
    Pages() {
        for (auto& words : pages_) words.assign(page / 8, poison);
    }
    /// A map of the page, filled with `value`.
    [[nodiscard]] MapPtr lend(std::size_t number, std::uint64_t value) {
        std::vector<std::uint64_t>& words = pages_.at(number);
        for (std::uint64_t& word : words) word = value;
        const std::span bytes{reinterpret_cast<std::byte*>(words.data()), page};
        const auto memory = HostMemory::borrow(bytes, MapAccess::read_write, nullptr).value();
        Layout layout;
        layout.add(Region::create({.name = "r", .base = GuestAddress{0}, .memory = memory}).value());
        return std::move(layout).freeze().value();
    }
    void take_back(std::size_t number) {
        for (std::uint64_t& word : pages_.at(number)) word = poison;
    }

private:
    std::array<std::vector<std::uint64_t>, 2> pages_;
};

/// Reads without guards, so that a thread sanitizer sees it, too.
std::uint64_t plain_read(GuestMemory& memory, std::uint64_t address) {
    const Run run = memory.map().find_run(GuestAddress{address}, Access::read).value();
    return *reinterpret_cast<const std::uint64_t*>(run.host);
}

/// Reads in every way that there is until it is told to stop.
void read_on(MapReader& reader, std::uint64_t seed, const std::atomic<bool>& is_over,
             std::atomic<std::uint64_t>& count_poisoned) {
    std::mt19937_64 random{seed};
    std::uint64_t last = 0;
    const auto look = [&](GuestMemory& memory) {
        const std::uint64_t guarded = value_at(memory, random() % (page / 8) * 8);
        const std::uint64_t plain = plain_read(memory, random() % (page / 8) * 8);
        if (guarded == poison || plain != guarded || guarded < last) ++count_poisoned;
        last = guarded;
    };
    while (!is_over.load(std::memory_order_relaxed)) {
        switch (random() % 4) {
            case 0:
            case 1: {
                const MapPin pin = reader.pin();
                look(*pin);
                break;
            }
            case 2: look(reader.memory()); break;
            case 3: reader.park(); break;
            default: break;
        }
    }
    reader.park();
}

void swap_under_readers(Barrier barrier, int count_swaps) {
    std::optional<NoMembarrier> none;
    if (barrier == Barrier::fence) none.emplace();
    Pages pages;
    LiveMap live{pages.lend(0, 1)};
    constexpr std::uint64_t count_readers = 3;
    std::atomic<bool> is_over{false};
    std::atomic<std::uint64_t> count_poisoned{0};
    std::vector<MapReader> readers;
    for (std::uint64_t i = 0; i < count_readers; ++i) readers.push_back(live.make_reader("reader").value());
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < count_readers; ++i)
        threads.emplace_back([&, i] { read_on(readers[i], i, is_over, count_poisoned); });
    for (int turn = 0; turn < count_swaps; ++turn) {
        const std::size_t next = (static_cast<std::size_t>(turn) + 1) % 2;
        const RetiredMap old = live.publish(pages.lend(next, static_cast<std::uint64_t>(turn) + 2));
        const auto unused = live.wait_until_unused(old, 60s);
        EXPECT_TRUE(unused) << (unused ? "" : unused.error().message());
        pages.take_back(1 - next);
        if (turn % 8 == 0) std::this_thread::sleep_for(50us);
    }
    is_over = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(count_poisoned, 0U);
}

TEST(LiveMap, NoReaderSeesMemoryThatWasTakenBackAfterAWait) { swap_under_readers(Barrier::membarrier, 2000); }

TEST(LiveMap, NoReaderSeesItEitherWhereMembarrierIsMissing) { swap_under_readers(Barrier::fence, 2000); }

TEST(LiveMap, ReadersAndSnapshotsComeAndGoWhileMapsAreSwapped) {
    Pages pages;
    LiveMap live{pages.lend(0, 1)};
    std::atomic<bool> is_over{false};
    std::atomic<std::uint64_t> count_poisoned{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i)
        threads.emplace_back([&] {
            while (!is_over.load(std::memory_order_relaxed)) {
                MapReader reader = live.make_reader("short").value();
                if (plain_read(reader.memory(), 0) == poison) ++count_poisoned;
                MapReader moved{std::move(reader)};
                if (plain_read(*moved.pin(), 8) == poison) ++count_poisoned;
                const MapSnapshot snapshot = live.snapshot("short").value();
                const auto* const words =
                    reinterpret_cast<const std::uint64_t*>(snapshot->regions().front()->host_base());
                if (*words == poison) ++count_poisoned;
            }
        });
    for (std::uint64_t turn = 0; turn < 500; ++turn) {
        const std::size_t next = (turn + 1) % 2;
        const RetiredMap old = live.publish(pages.lend(next, turn + 2));
        ASSERT_TRUE(live.wait_until_unused(old, 60s));
        pages.take_back(1 - next);
    }
    is_over = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(count_poisoned, 0U);
}

}  // namespace
}  // namespace guestmem

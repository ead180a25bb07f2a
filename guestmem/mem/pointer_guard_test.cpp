// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/pointer_guard.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::TestMap;
using Numbers = std::vector<std::uint64_t>;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();

static_assert(std::same_as<decltype(std::declval<ReadPointer>().bytes()), std::span<const std::byte>>);
static_assert(std::same_as<decltype(std::declval<WritePointer>().bytes()), std::span<std::byte>>);
static_assert(!std::is_copy_constructible_v<WritePointer> && !std::is_copy_assignable_v<ReadPointer>);
static_assert(std::is_nothrow_move_constructible_v<WritePointer>);
template <typename Pointer>
concept CanMark = requires(Pointer pointer) { pointer.mark_written(0, 1); };
static_assert(CanMark<WritePointer> && !CanMark<ReadPointer>);

/// RAM of one page at 0x1000 and at 0x2000, ROM at 0x3000, a device at 0x4000, and the last page.
class PointerGuardTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.ram(0x1000, 0x1000, "low").ram(0x2000, 0x1000, "high").rom(0x3000, 0x1000);
        memory.device(0x4000, 0x1000).ram(last_address - 0xfff, 0x1000);
        memory.count_up().start_tracking();
        return memory;
    }
    template <typename Pointer = WritePointer>
    AccessResult<Pointer> take(std::uint64_t address, std::uint64_t size_bytes, std::string why = "test") {
        return Pointer::create(view_, GuestAddress{address}, size_bytes, std::move(why));
    }

    TestMap memory_ = machine();
    GuestMemory view_{memory_.map()};
};

TEST_F(PointerGuardTest, PointsToTheBytesOfItsRange) {
    for (const auto& [offset, size] :
         {std::pair{0U, 1U}, std::pair{0xfffU, 1U}, std::pair{3U, 0xffdU}, std::pair{0U, 0x1000U}}) {
        const auto read = take<ReadPointer>(0x1000 + offset, size);
        ASSERT_TRUE(read);
        EXPECT_EQ(read->bytes().data(), memory_.bytes(0).data() + offset);
        EXPECT_EQ(read->bytes().size(), size);
        EXPECT_EQ(&read->region(), &memory_.region(0));
        const auto written = take<WritePointer>(0x1000 + offset, size);
        EXPECT_EQ(written->bytes().data(), memory_.bytes(0).data() + offset);
    }
    const auto last = take<ReadPointer>(last_address, 1);
    EXPECT_EQ(last->bytes().data(), &memory_.bytes(4).back());
    EXPECT_TRUE(take<ReadPointer>(0x3000, 0x1000));
}

TEST_F(PointerGuardTest, RefusesWhatIsNotInOneRegionOfMemory) {
    const auto expect_refused = [&](std::uint64_t address, std::uint64_t size, AccessReason reason,
                                    std::uint64_t refused) {
        SCOPED_TRACE(::testing::Message() << std::hex << address << " + " << size);
        EXPECT_EQ(take<WritePointer>(address, size).error(),
                  (AccessError{reason, Access::write, refused, 0}));
    };
    using enum AccessReason;
    expect_refused(0x1fff, 2, crosses_border, 0x2000);
    expect_refused(0x1000, 0x2000, crosses_border, 0x2000);
    expect_refused(0x2fff, 2, read_only, 0x3000);
    expect_refused(0x3000, 1, read_only, 0x3000);
    expect_refused(0x4000, 1, device, 0x4000);
    expect_refused(0x0fff, 2, hole, 0x0fff);
    expect_refused(0x8000, 1, hole, 0x8000);
    expect_refused(last_address, 2, overflow, last_address);
    expect_refused(0x1000, last_address, overflow, 0x1000);
    EXPECT_EQ(take<ReadPointer>(0x2fff, 2).error(),
              (AccessError{AccessReason::crosses_border, Access::read, 0x3000, 0}));
    EXPECT_EQ(take<ReadPointer>(0x3fff, 2).error(),
              (AccessError{AccessReason::device, Access::read, 0x4000, 0}));
    EXPECT_TRUE(take<WritePointer>(0x1000, 0)->bytes().empty());
    for (std::size_t i = 0; i < 5; ++i) EXPECT_THAT(memory_.region(i).holders(), IsEmpty());
}

TEST_F(PointerGuardTest, IsNamedByItsRegionWhileItLives) {
    const Region& region = memory_.region(0);
    {
        const auto kernel = take<ReadPointer>(0x1000, 16, "kernel header");
        const auto packet = take<WritePointer>(0x1800, 16, "packet");
        const auto again = take<WritePointer>(0x1800, 16, "packet");
        EXPECT_THAT(region.holders(), ElementsAre("kernel header", "packet", "packet"));
        EXPECT_THAT(memory_.region(1).holders(), IsEmpty());
    }
    EXPECT_THAT(region.holders(), IsEmpty());
}

TEST_F(PointerGuardTest, MovesWithItsNameAndItsMarks) {
    std::optional<WritePointer> first{take(0x1000, 64, "first").value()};
    // NOLINTNEXTLINE(bugprone-optional-value-conversion): the value moves, the optional stays
    std::optional<WritePointer> second{std::move(*first)};
    EXPECT_TRUE(first->bytes().empty());
    EXPECT_EQ(second->bytes().size(), 64U);
    first.reset();
    EXPECT_THAT(memory_.region(0).holders(), ElementsAre("first"));
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    second.reset();
    EXPECT_THAT(memory_.region(0).holders(), IsEmpty());
    EXPECT_EQ(memory_.take_dirty(0), Numbers{0});
}

TEST_F(PointerGuardTest, LetsGoAtOnceOfWhatItPointedToWhenAnotherIsMovedIntoIt) {
    WritePointer kept = take(0x1000, 64, "old").value();
    WritePointer other = take(0x2040, 64, "new").value();
    kept = std::move(other);
    EXPECT_THAT(memory_.region(0).holders(), IsEmpty());
    EXPECT_EQ(memory_.take_dirty(0), Numbers{0});
    EXPECT_THAT(memory_.region(1).holders(), ElementsAre("new"));
    EXPECT_THAT(memory_.take_dirty(1), IsEmpty());
    EXPECT_EQ(kept.bytes().data(), memory_.bytes(1).data() + 64);
    EXPECT_EQ(&kept.region(), &memory_.region(1));
}

TEST_F(PointerGuardTest, MarksAllItsPagesWhenItGoesUnlessItWasToldWhich) {
    {
        const auto pointer = take(0x1030, 0x20);
    }
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 1}));
    {
        auto pointer = take(0x1000, 0x400).value();
        pointer.mark_written(0x40, 1);
        EXPECT_EQ(memory_.take_dirty(0), Numbers{1});  // at once
        pointer.mark_written(0xff, 2);
        pointer.mark_written(0x3ff, 100);  // clipped
        pointer.mark_written(0x400, 100);
        pointer.mark_written(last_address, last_address);
        EXPECT_EQ(memory_.take_dirty(0), (Numbers{3, 4, 15}));
    }
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    {
        take(0x1000, 64)->mark_written(0, 0);
    }
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    {
        const auto pointer = take<ReadPointer>(0x1000, 64);
    }
    {
        const auto pointer = take(0x1000, 0);
    }
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
}

TEST_F(PointerGuardTest, KeepsItsBytesMappedWhenEverybodyElseHasLetGo) {
    auto memory = std::make_unique<TestMap>();
    memory->ram(0x1000, 0x1000, "plugged");
    const std::weak_ptr<const Region> region = memory->shared_region(0);
    auto view = std::make_unique<GuestMemory>(memory->take_map());
    auto pointer = std::make_unique<WritePointer>(
        WritePointer::create(*view, GuestAddress{0x1000}, 0x1000, "last").value());
    memory.reset();
    view.reset();
    ASSERT_FALSE(region.expired());
    pointer->bytes().front() = std::byte{1};
    pointer->bytes().back() = std::byte{2};
    pointer.reset();
    EXPECT_TRUE(region.expired());
}

TEST_F(PointerGuardTest, IsWhatTheWriterOfALiveMapWaitsForByName) {
    TestMap memory = machine();
    LiveMap live{memory.take_map()};
    MapReader reader = live.make_reader("loader").value();
    std::optional<WritePointer> pointer{
        WritePointer::create(reader.memory(), GuestAddress{0x2000}, 64, "disk read").value()};
    const auto other = ReadPointer::create(reader.memory(), GuestAddress{0x1000}, 64, "stays");
    reader.park();
    const RetiredMap old = live.remove(memory.region(1).range()).value();

    const auto early = live.wait_until_unused(old, 20ms);
    ASSERT_FALSE(early);
    EXPECT_EQ(early.error().code(), Errc::timed_out);
    EXPECT_THAT(early.error().message(), HasSubstr("pointer 'disk read' into region 'high'"));
    EXPECT_THAT(early.error().message(), Not(HasSubstr("stays")));
    pointer->bytes()[0] = std::byte{0x42};  // still there
    pointer.reset();
    EXPECT_TRUE(live.wait_until_unused(old, 5s));
    EXPECT_EQ(memory.bytes(1)[0], std::byte{0x42});
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/scatter_list.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
#include "guestmem/mem/testing/lost_memory.hpp"
#include "guestmem/mem/testing/table_translator.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/mem/transfer.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using testing::counted_bytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::io_range;
using ::testing::IsEmpty;
using testing::LostMemory;
using testing::LostMemoryTest;
using testing::TableTranslator;
using testing::TestDevice;
using testing::TestMap;
using testing::translation;
using Numbers = std::vector<std::uint64_t>;
using Slices = std::vector<std::pair<const std::byte*, std::size_t>>;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();

static_assert(!std::is_copy_constructible_v<ScatterList> && !std::is_copy_assignable_v<ScatterList>);

Slices slices_of(const ScatterList& list) {
    Slices slices;
    for (const IoSlice& slice : list.slices()) slices.emplace_back(slice.data, slice.size_bytes);
    return slices;
}

/// RAM of one page at 0x1000 and 0x2000, a hole, ROM at 0x4000, a device at 0x5000, the last page.
class ScatterListTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.ram(0x1000, 0x1000, "low").ram(0x2000, 0x1000, "high").rom(0x4000, 0x1000);
        memory.device(0x5000, 0x1000).ram(last_address - 0xfff, 0x1000);
        memory.count_up().start_tracking();
        return memory;
    }
    AccessResult<void> add(ScatterList& list, std::uint64_t address, std::uint64_t size_bytes) {
        return list.add(view_, GuestAddress{address}, size_bytes);
    }
    [[nodiscard]] const std::byte* host(std::size_t number, std::size_t offset) const {
        return memory_.bytes(number).data() + offset;
    }

    TestMap memory_ = machine();
    GuestMemory view_{memory_.map()};
};

TEST_F(ScatterListTest, HasAPieceForEachRegionOfARange) {
    ScatterList list{Access::write, "test"};
    EXPECT_THAT(slices_of(list), IsEmpty());
    EXPECT_EQ(list.size_bytes(), 0U);
    ASSERT_TRUE(add(list, 0x1ff0, 0x30));
    EXPECT_EQ(slices_of(list), (Slices{{host(0, 0xff0), 0x10}, {host(1, 0), 0x20}}));
    EXPECT_EQ(list.size_bytes(), 0x30U);
    ASSERT_TRUE(add(list, 0x1000, 1));
    ASSERT_TRUE(add(list, last_address, 1));
    EXPECT_EQ(slices_of(list),
              (Slices{{host(0, 0xff0), 0x10}, {host(1, 0), 0x20}, {host(0, 0), 1}, {host(4, 0xfff), 1}}));
    EXPECT_EQ(list.size_bytes(), 0x32U);
    EXPECT_EQ(list.iovecs()[1].iov_base, host(1, 0));
    EXPECT_EQ(list.iovecs()[1].iov_len, 0x20U);
}

TEST_F(ScatterListTest, JoinsPiecesThatContinueEachOtherInHostMemory) {
    ScatterList list{Access::read, "test"};
    ASSERT_TRUE(add(list, 0x1000, 0x10));
    ASSERT_TRUE(add(list, 0x1010, 0x10));
    ASSERT_TRUE(add(list, 0x1030, 0x10));
    EXPECT_EQ(slices_of(list), (Slices{{host(0, 0), 0x20}, {host(0, 0x30), 0x10}}));
    EXPECT_EQ(list.size_bytes(), 0x30U);

    // Two regions of one memory that also touch in the guest.
    const auto bytes = HostMemory::create_anonymous({.size_bytes = 0x2000}).value();
    TestMap memory;
    memory.add({.name = "a", .base = GuestAddress{0}, .size_bytes = 0x1000, .memory = bytes});
    memory.add({.name = "b", .base = GuestAddress{0x1000}, .memory = bytes, .memory_offset_bytes = 0x1000});
    memory.start_tracking();
    GuestMemory view{memory.map()};
    ScatterList joined{Access::write, "joined"};
    ASSERT_TRUE(joined.add(view, GuestAddress{0xff0}, 0x20));
    EXPECT_EQ(slices_of(joined), (Slices{{bytes->bytes().data() + 0xff0, 0x20}}));
    EXPECT_THAT(memory.region(0).holders(), ElementsAre("joined"));
    EXPECT_THAT(memory.region(1).holders(), ElementsAre("joined"));
    joined.mark_written(0x11);
    EXPECT_EQ(memory.take_dirty(0), Numbers{63});
    EXPECT_EQ(memory.take_dirty(1), Numbers{0});
}

TEST_F(ScatterListTest, IsWhatItWasWhenAnyPartOfARangeRefuses) {
    ScatterList list{Access::write, "test"};
    ASSERT_TRUE(add(list, 0x1000, 16));
    const Slices before = slices_of(list);
    const auto expect_refused = [&](std::uint64_t address, std::uint64_t size, AccessReason reason,
                                    std::uint64_t refused) {
        EXPECT_EQ(add(list, address, size).error(), (AccessError{reason, Access::write, refused, 0}));
        EXPECT_EQ(slices_of(list), before);
        EXPECT_EQ(list.size_bytes(), 16U);
    };
    using enum AccessReason;
    expect_refused(0x2ff0, 32, hole, 0x3000);
    expect_refused(0x1000, 0x2001, hole, 0x3000);
    expect_refused(0x4000, 1, read_only, 0x4000);
    expect_refused(0x5000, 1, device, 0x5000);
    expect_refused(0, 1, hole, 0);
    expect_refused(last_address, 2, overflow, last_address);
    expect_refused(0x1000, last_address, overflow, 0x1000);
    EXPECT_THAT(memory_.region(0).holders(), ElementsAre("test"));
    EXPECT_THAT(memory_.region(1).holders(), IsEmpty());
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{0x5000}, last_address})
        EXPECT_TRUE(add(list, address, 0));
    EXPECT_EQ(slices_of(list), before);
    list.mark_written(0);

    ScatterList out{Access::read, "out"};
    EXPECT_TRUE(add(out, 0x4000, 0x1000));
    EXPECT_EQ(add(out, 0x4fff, 2).error(), (AccessError{device, Access::read, 0x5000, 0}));
}

TEST_F(ScatterListTest, TakesAsManyPiecesAsOneSystemCallAndNotOneMore) {
    TestMap memory;
    for (std::uint64_t i = 0; i < max_io_slices + 2; ++i) memory.shifted_ram(i * 8, 8, 0);
    MapView view{*memory.map()};
    ScatterList list{Access::write, "full"};
    EXPECT_EQ(list.add(view, GuestAddress{0}, max_io_slices * 8 + 1).error(),
              (AccessError{AccessReason::list_full, Access::write, max_io_slices * 8, 0}));
    EXPECT_THAT(slices_of(list), IsEmpty());
    ASSERT_TRUE(list.add(view, GuestAddress{0}, max_io_slices * 8));
    EXPECT_EQ(list.slices().size(), max_io_slices);
    EXPECT_EQ(list.add(view, GuestAddress{16}, 1).error(),
              (AccessError{AccessReason::list_full, Access::write, 16, 0}));
    EXPECT_EQ(list.size_bytes(), max_io_slices * 8);
    list.clear();
    ASSERT_TRUE(list.add(view, GuestAddress{8}, (max_io_slices - 1) * 8));
    ASSERT_TRUE(list.add(view, GuestAddress{1}, 1));
    EXPECT_FALSE(list.add(view, GuestAddress{3}, 1));
    EXPECT_EQ(list.slices().size(), max_io_slices);
}

TEST_F(ScatterListTest, MarksWhatWasWrittenOrAllWhenNobodySaid) {
    const auto dirty = [&] { return std::pair{memory_.take_dirty(0), memory_.take_dirty(1)}; };
    const auto expect_marked = [&](std::uint64_t count, const Numbers& low, const Numbers& high) {
        SCOPED_TRACE(count);
        {
            ScatterList list{Access::write, "test"};
            ASSERT_TRUE(add(list, 0x1f80, 0x100));
            list.mark_written(count);
            EXPECT_EQ(dirty(), (std::pair{low, high}));
        }
        EXPECT_EQ(dirty(), (std::pair{Numbers{}, Numbers{}}));
    };
    expect_marked(0, {}, {});
    expect_marked(1, {62}, {});
    expect_marked(0x40, {62}, {});
    expect_marked(0x80, {62, 63}, {});
    expect_marked(0x81, {62, 63}, {0});
    expect_marked(0x100, {62, 63}, {0, 1});
    expect_marked(last_address, {62, 63}, {0, 1});
    {
        ScatterList untold{Access::write, "test"};
        ASSERT_TRUE(add(untold, 0x1f80, 0x81));
        EXPECT_EQ(dirty(), (std::pair{Numbers{}, Numbers{}}));
    }
    EXPECT_EQ(dirty(), (std::pair{Numbers{62, 63}, Numbers{0}}));
    {
        ScatterList read{Access::read, "test"};
        ASSERT_TRUE(add(read, 0x1f80, 0x81));
    }
    EXPECT_EQ(dirty(), (std::pair{Numbers{}, Numbers{}}));
}

TEST_F(ScatterListTest, IsEmptyAndUntoldAgainAfterClear) {
    ScatterList list{Access::write, "test"};
    ASSERT_TRUE(add(list, 0x1000, 64));
    list.clear();
    EXPECT_EQ(memory_.take_dirty(0), Numbers{0});
    EXPECT_THAT(slices_of(list), IsEmpty());
    EXPECT_EQ(list.size_bytes(), 0U);
    EXPECT_THAT(memory_.region(0).holders(), IsEmpty());
    ASSERT_TRUE(add(list, 0x1040, 64));
    list.mark_written(0);
    list.clear();
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    ASSERT_TRUE(add(list, 0x1080, 64));
    list.clear();
    EXPECT_EQ(memory_.take_dirty(0), Numbers{2});
}

TEST_F(ScatterListTest, MarksWhatWasAddedAfterItWasTold) {
    {
        ScatterList list{Access::write, "test"};
        ASSERT_TRUE(add(list, 0x1000, 64));
        list.mark_written(64);
        ASSERT_TRUE(add(list, 0x1080, 64));
    }
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 2}));
}

TEST_F(ScatterListTest, MovesWithAllThatItHolds) {
    std::optional<ScatterList> first{std::in_place, Access::write, "moved"};
    ASSERT_TRUE(add(*first, 0x1000, 64));
    // NOLINTNEXTLINE(bugprone-optional-value-conversion): the value moves, the optional stays
    std::optional<ScatterList> second{std::move(*first)};
    first.reset();
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    EXPECT_THAT(memory_.region(0).holders(), ElementsAre("moved"));
    EXPECT_EQ(slices_of(*second), (Slices{{host(0, 0), 64}}));
    second.reset();
    EXPECT_EQ(memory_.take_dirty(0), Numbers{0});
    EXPECT_THAT(memory_.region(0).holders(), IsEmpty());
}

TEST_F(ScatterListTest, HoldsItsRegionsByName) {
    LiveMap live{machine().take_map()};
    MapReader reader = live.make_reader("disk").value();
    const auto region = reader.memory().map().regions()[1];
    std::optional<ScatterList> list{std::in_place, Access::write, "disk read"};
    ASSERT_TRUE(list->add(reader.memory(), GuestAddress{0x1ff0}, 32));
    EXPECT_THAT(region->holders(), ElementsAre("disk read"));
    reader.park();
    const RetiredMap old = live.remove(region->range()).value();
    const auto early = live.wait_until_unused(old, 10ms);
    ASSERT_FALSE(early);
    EXPECT_THAT(early.error().message(), HasSubstr("pointer 'disk read' into region 'high'"));
    list.reset();
    EXPECT_TRUE(live.wait_until_unused(old, 5s));
}

/// Two regions behind an IOMMU, of which the first is unplugged while the second one's mapping is asked for.
class UnpluggedTest : public ::testing::Test {
protected:
    UnpluggedTest() {
        TestMap guest;
        guest.ram(0x8000, 0x1000, "leaving").ram(0x20000, 0x1000, "staying").start_tracking();
        first_ = guest.shared_region(0);
        live_.emplace(guest.take_map());
        other_.ram(0x8000, 0x1000, "coming");
        device_.table->set(translation(0x1000, 0x1000, 0x8000));
        device_.table->set(translation(0x2000, 0x1000, 0x20000));
        memory_ = device_.space.make_memory("disk", live_->make_reader("disk").value()).value();
        device_.table->on_question = [this](IoAddress address, Access) {
            if (address != IoAddress{0x2000}) return;
            const RetiredMap old = live_->replace(first_->range(), other_.shared_region(0)).value();
            const auto unused = live_->wait_until_unused(old, 0ms);
            if (!unused) waited_ = unused.error().message();
        };
    }

    TestMap other_;
    std::shared_ptr<const Region> first_;
    std::optional<LiveMap> live_;
    TestDevice device_{TestMap{}.map()};
    std::unique_ptr<TranslatedMemory> memory_;
    std::string waited_;
};

TEST_F(UnpluggedTest, AListHoldsTheRegionsThatItsPiecesAreIn) {
    ScatterList list{Access::write, "disk read"};
    ASSERT_TRUE(list.add(*memory_, IoAddress{0x1ff0}, 32));
    ASSERT_EQ(list.slices().size(), 2U);
    EXPECT_EQ(list.slices()[0].data, first_->host_base() + 0xff0);
    EXPECT_THAT(first_->holders(), ElementsAre("disk read"));
    EXPECT_THAT(waited_, HasSubstr("region 'leaving'")) << "whoever waits hears of it";
    std::memset(list.slices()[0].data, 1, 16);
    list.clear();
    EXPECT_FALSE(first_->dirty().harvest()->runs().empty());
}

TEST_F(UnpluggedTest, ATransferKeepsTheRegionsThatItReadsInto) {
    const testing::TempFolder folder;
    const Fd file = open_file(folder.write("disk", std::string(32, 'x')), OpenMode::read_write).value();
    EXPECT_EQ(read_some_from(*memory_, IoAddress{0x1ff0}, 32, FdStream{file, 0}).count_done, 32U);
    EXPECT_THAT(waited_, HasSubstr("pointer 'transfer' into region 'leaving'"));
    EXPECT_EQ(first_->host_base()[0xfff], std::byte{'x'});
    EXPECT_THAT(first_->holders(), IsEmpty());
}

TEST(ScatterList, MarksInTheLogByIovaAlsoWhenItsSpaceIsGone) {
    TestMap guest;
    guest.ram(0x8000, 0x1000);
    auto device = std::make_unique<TestDevice>(guest.map(), io_range(0, 0x10000));
    device->table->set(translation(0x1000, 0x1000, 0x8000));
    ScatterList list{Access::write, "disk read"};
    ASSERT_TRUE(list.add(*device->memory, IoAddress{0x1000}, 32));
    std::optional<WritePointer> pointer{
        WritePointer::create(*device->memory, IoAddress{0x1100}, 16, "header").value()};
    const std::weak_ptr<TableTranslator> space_lives = device->table;
    device.reset();
    list.clear();
    EXPECT_FALSE(space_lives.expired()) << "the pointer's log is in it";
    pointer.reset();
    EXPECT_TRUE(space_lives.expired());
    EXPECT_EQ(guest.region(0).holders().size(), 0U);
}

TEST_F(ScatterListTest, IsMovedByOneSystemCall) {
    const testing::TempFolder folder;
    const Fd file = open_file(folder.path_of("disk"), OpenMode::create_exclusive).value();
    ScatterList out{Access::read, "disk write"};
    ASSERT_TRUE(add(out, 0x1f00, 0x200));
    ASSERT_TRUE(add(out, 0x4010, 0x10));
    EXPECT_EQ(::pwritev(file.view().number(), out.iovecs(), static_cast<int>(out.slices().size()), 100),
              0x210);

    std::ranges::fill(memory_.bytes(0), std::byte{0});
    std::ranges::fill(memory_.bytes(1), std::byte{0});
    ScatterList in{Access::write, "disk read"};
    ASSERT_TRUE(add(in, 0x1008, 8));
    ASSERT_TRUE(add(in, 0x1f08, 0x1f8));
    ASSERT_TRUE(add(in, 0x1000, 8));
    EXPECT_EQ(::preadv(file.view().number(), in.iovecs(), static_cast<int>(in.slices().size()), 100), 0x208);
    in.mark_written(0x208);
    const std::vector<std::byte> expected = counted_bytes(0x200, 0xf00);
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(0).subspan(8, 8), std::span{expected}.first(8)));
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(0).subspan(0xf08), std::span{expected}.subspan(8, 0xf8)));
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(1).first(0x100), std::span{expected}.last(0x100)));
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(0).first(8), memory_.bytes(2).subspan(0x10, 8)));
}

using ScatterListLostTest = LostMemoryTest;

TEST_P(ScatterListLostTest, LosesNothingButTheSystemCall) {
    const testing::TempFolder folder;
    const Fd file =
        open_file(folder.write("disk", std::string(3 * page_size_bytes, 'x')), OpenMode::read_write).value();
    lost_.lose_from(2);
    GuestMemory memory{lost_.map().map()};
    ScatterList list{Access::write, "disk read"};
    ASSERT_TRUE(list.add(memory, lost_.page(1), 3 * page_size_bytes));
    const int number = file.view().number();
    const auto count = ::preadv(number, list.iovecs(), static_cast<int>(list.slices().size()), 0);
    EXPECT_EQ(count, static_cast<ssize_t>(page_size_bytes));
    list.mark_written(page_size_bytes);
    EXPECT_EQ(lost_.map().take_dirty(LostMemory::number).size(), page_size_bytes / testing::dirty_page_bytes);

    ScatterList lost{Access::read, "disk write"};
    ASSERT_TRUE(lost.add(memory, lost_.page(2), 16));
    errno = 0;
    EXPECT_EQ(::pwritev(number, lost.iovecs(), 1, 0), -1);
    EXPECT_EQ(errno, EFAULT);
}

INSTANTIATE_TEST_SUITE_P(, ScatterListLostTest, testing::all_ways_to_lose());

}  // namespace
}  // namespace guestmem

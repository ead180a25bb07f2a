// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/translated_memory.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/mem/testing/io_session.hpp"
#include "guestmem/mem/testing/table_translator.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using testing::Choices;
using testing::counted_bytes;
using testing::io_range;
using testing::IoSession;
using testing::is_all;
using testing::TestDevice;
using testing::TestMap;
using testing::translation;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

AccessError refused(AccessReason reason, Access access, std::uint64_t address, std::uint64_t count_done = 0) {
    return AccessError{reason, access, address, count_done};
}

// ---- mappings ----

TEST(TranslatedMemory, ReadsAndWritesWhereItsMappingLeads) {
    TestMap guest;
    guest.ram(0x8000, 0x2000).count_up();
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x1000, 0x9000));
    std::uint32_t expected = 0;
    std::memcpy(&expected, &guest.bytes(0)[0x1004], 4);
    EXPECT_EQ(device.memory->read<std::uint32_t>(IoAddress{0x1004}).value(), expected);
    EXPECT_TRUE(device.memory->write<std::uint32_t>(IoAddress{0x1ffc}, 0x01020304));
    EXPECT_EQ(guest.bytes(0)[0x1ffc], std::byte{4});
    EXPECT_TRUE(device.memory->write_be<std::uint16_t>(IoAddress{0x1001}, 0x0506));
    EXPECT_EQ(guest.bytes(0)[0x1001], std::byte{5});
}

TEST(TranslatedMemory, AsksOnceForAMapping) {
    TestMap guest;
    guest.ram(0x8000, 0x2000);
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x1000, 0x8000));
    device.table->set(translation(0x5000, 0x1000, 0x9000));
    for (int turn = 0; turn < 100; ++turn) {
        EXPECT_TRUE(device.memory->read<std::uint8_t>(IoAddress{0x1000}));
        EXPECT_TRUE(device.memory->fetch_add<std::uint64_t>(IoAddress{0x5ff8}, 1));
        EXPECT_TRUE(device.memory->write_bytes(IoAddress{0x1100}, counted_bytes(100)));
    }
    EXPECT_EQ(device.table->count_questions(), 2U);
    const IoSpaceCounts counts = device.space.counts();
    EXPECT_EQ(counts.questions, 2U);
    EXPECT_EQ(counts.count_entries, 2U);
    EXPECT_EQ(counts.stale_answers, 0U);
}

TEST(TranslatedMemory, FindsMoreMappingsThanAHandleRemembers) {
    constexpr std::uint64_t count = TranslatedMemory::count_hits * 3;
    TestMap guest;
    guest.ram(0, count * 0x1000);
    TestDevice device{guest.map()};
    for (std::uint64_t i = 0; i < count; ++i)
        device.table->set(translation(i * 0x10000, 0x1000, (count - 1 - i) * 0x1000));
    for (std::uint64_t turn = 0; turn < 4; ++turn)
        for (std::uint64_t i = 0; i < count; ++i)
            EXPECT_EQ(device.memory->fetch_add<std::uint64_t>(IoAddress{i * 0x10000 + 8}, 1).value(), turn);
    for (std::uint64_t i = 0; i < count; ++i) EXPECT_EQ(guest.bytes(0)[i * 0x1000 + 8], std::byte{4});
    EXPECT_EQ(device.table->count_questions(), count);
}

TEST(TranslatedMemory, ReachesTheLastAddressOfBothSpaces) {
    TestMap guest;
    guest.ram(top - 0xfff, 0x1000);
    TestDevice device{guest.map()};
    device.table->set(translation(top - 0xfff, 0x1000, top - 0xfff));
    EXPECT_TRUE(device.memory->write<std::uint64_t>(IoAddress{top - 7}, 7));
    EXPECT_EQ(guest.bytes(0)[0xff8], std::byte{7});
    EXPECT_TRUE(device.memory->write<std::uint8_t>(IoAddress{top}, 9));
    EXPECT_EQ(guest.bytes(0)[0xfff], std::byte{9});
    const auto wrapped = device.memory->read<std::uint64_t>(IoAddress{top - 6});
    ASSERT_FALSE(wrapped);
    EXPECT_EQ(wrapped.error(), refused(AccessReason::overflow, Access::read, top - 6));
    std::array<std::byte, 16> buffer;
    EXPECT_EQ(device.memory->read_some(IoAddress{top - 3}, buffer).value(), 4U);
}

TEST(TranslatedMemory, NoBytesAreGoodAtAnyAddressWithoutAQuestion) {
    TestMap guest;
    guest.ram(0, 0x1000);
    TestDevice device{guest.map()};
    EXPECT_TRUE(device.memory->read_bytes(IoAddress{0x5000}, {}));
    EXPECT_TRUE(device.memory->write_bytes(IoAddress{top}, {}));
    EXPECT_TRUE(device.memory->fill(IoAddress{top}, std::byte{1}, 0));
    EXPECT_EQ(device.table->count_questions(), 0U);
}

// ---- refusals ----

TEST(TranslatedMemory, SaysWhichAddressWasRefusedAndWhy) {
    TestMap guest;
    guest.ram(0x8000, 0x1000).rom(0x9000, 0x1000).device(0xa000, 0x1000).ram(0xc000, 0x1000);
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x8000, 0x8000));
    device.table->set(translation(0x20000, 0x1000, 0x8000, Permissions::read));
    device.table->set(translation(0x30000, 0x1000, 0x8000, Permissions::write));
    device.table->set(translation(0x40000, 0x1000, 0x8000, Permissions::none));
    struct Case {
        std::uint64_t address;
        Access access;
        AccessReason reason;
        std::optional<GuestAddress> guest;
    };
    const Case cases[] = {
        {0x0ff8, Access::read, AccessReason::untranslated, {}},
        {0x9000, Access::write, AccessReason::untranslated, {}},
        {0x2000, Access::write, AccessReason::read_only, GuestAddress{0x9000}},
        {0x3008, Access::read, AccessReason::device, GuestAddress{0xa008}},
        {0x4010, Access::read, AccessReason::hole, GuestAddress{0xb010}},
        {0x6000, Access::write, AccessReason::out_of_range, GuestAddress{0xd000}},
        {0x20008, Access::write, AccessReason::denied, {}},
        {0x30008, Access::read, AccessReason::denied, {}},
        {0x40008, Access::read, AccessReason::denied, {}},
        {0x40008, Access::write, AccessReason::denied, {}},
    };
    for (const Case& some : cases) {
        SCOPED_TRACE(some.address);
        const IoAddress at{some.address};
        const AccessError expected = refused(some.reason, some.access, some.address);
        if (some.access == Access::read) {
            EXPECT_EQ(device.memory->read<std::uint64_t>(at).error(), expected);
            EXPECT_EQ(device.memory->load<std::uint64_t>(at).error(), expected);
        } else {
            EXPECT_EQ(device.memory->write<std::uint64_t>(at, 1).error(), expected);
            EXPECT_EQ(device.memory->fetch_or<std::uint32_t>(at, 1).error(), expected);
            EXPECT_EQ(device.memory->fill(at, std::byte{1}, 8).error(), expected);
        }
        EXPECT_EQ(device.memory->refused_at(expected), some.guest);
        EXPECT_EQ(device.memory->refused_at(refused(AccessReason::misaligned, some.access, some.address)),
                  std::nullopt);
    }
    EXPECT_TRUE(is_all(guest.bytes(0), std::byte{0}));
}

TEST(TranslatedMemory, EachKindOfAccessNeedsItsPermission) {
    TestMap guest;
    guest.ram(0x8000, 0x1000);
    for (const Permissions permissions :
         {Permissions::none, Permissions::read, Permissions::write, Permissions::read_write}) {
        SCOPED_TRACE(static_cast<int>(permissions));
        TestDevice device{guest.map()};
        device.table->set(translation(0, 0x1000, 0x8000, permissions));
        TranslatedMemory& memory = *device.memory;
        const IoAddress at{0x10};
        std::array<std::byte, 24> buffer{};
        const bool can_read = allows(permissions, Access::read);
        const bool can_write = allows(permissions, Access::write);
        EXPECT_EQ(memory.read<std::uint16_t>(at).has_value(), can_read);
        EXPECT_EQ(memory.load<std::uint64_t>(at).has_value(), can_read);
        EXPECT_EQ(memory.read_bytes(at, buffer).has_value(), can_read);
        EXPECT_EQ(memory.read_some(at, buffer).has_value(), can_read);
        EXPECT_EQ(memory.compare(at, buffer).has_value(), can_read);
        EXPECT_EQ(memory.read_string(at, 8).has_value(), can_read);
        EXPECT_EQ(memory.check_range(at, 8, Access::read).has_value(), can_read);
        EXPECT_EQ(memory.hold_piece(at, Access::read).has_value(), can_read);
        EXPECT_EQ(memory.write<std::uint16_t>(at, 0).has_value(), can_write);
        EXPECT_EQ(memory.store<std::uint64_t>(at, 0).has_value(), can_write);
        EXPECT_EQ(memory.write_bytes(at, buffer).has_value(), can_write);
        EXPECT_EQ(memory.write_some(at, buffer).has_value(), can_write);
        EXPECT_EQ(memory.fill(at, std::byte{0}, 8).has_value(), can_write);
        EXPECT_EQ(memory.exchange<std::uint32_t>(at, 0).has_value(), can_write);
        EXPECT_EQ(memory.fetch_and<std::uint8_t>(at, 0).has_value(), can_write);
        EXPECT_EQ(memory.compare_exchange<std::uint32_t>(at, 0, 0).has_value(), can_write);
        EXPECT_EQ(memory.check_range(at, 8, Access::write).has_value(), can_write);
        EXPECT_EQ(memory.hold_piece(at, Access::write).has_value(), can_write);
        EXPECT_EQ(memory.copy(IoAddress{0x80}, at, 8).has_value(), can_read && can_write);
        // The same with a mapping that the handle has used for the other kind.
        EXPECT_EQ(memory.read<std::uint16_t>(at).has_value(), can_read);
        EXPECT_EQ(memory.write<std::uint16_t>(at, 0).has_value(), can_write);
    }
}

TEST(TranslatedMemory, ARefusalIsNotRemembered) {
    TestMap guest;
    guest.ram(0x8000, 0x1000);
    TestDevice device{guest.map()};
    const IoAddress at{0x10};
    EXPECT_EQ(device.memory->read<std::uint64_t>(at).error().reason(), AccessReason::untranslated);
    device.table->set(translation(0, 0x1000, 0x8000, Permissions::read));
    EXPECT_TRUE(device.memory->read<std::uint64_t>(at));
    EXPECT_EQ(device.memory->write<std::uint64_t>(at, 1).error().reason(), AccessReason::denied);
    // More permissions need no invalidation.
    device.table->set(translation(0, 0x1000, 0x8000, Permissions::read_write));
    EXPECT_TRUE(device.memory->write<std::uint64_t>(at, 1));
    EXPECT_TRUE(device.memory->read<std::uint64_t>(at));
}

// ---- across mappings ----

struct AcrossMappings : ::testing::Test {
    AcrossMappings() {
        guest.ram(0x8000, 0x1000).ram(0x20000, 0x1000).ram(0x9000, 0x1000);
        device.emplace(guest.map());
        // In the device's eyes one range of 0x400 bytes; the second part ends in another region than it begins.
        device->table->set(translation(0x1000, 0x100, 0x8f00));
        device->table->set(translation(0x1100, 0x100, 0x20ff0 - 0xf00));
        device->table->set(translation(0x1200, 0x200, 0x8f80));
    }
    /// Where each byte of the range is.
    [[nodiscard]] std::byte& byte(std::uint64_t i) const {
        if (i < 0x100) return guest.bytes(0)[0xf00 + i];
        if (i < 0x200) return guest.bytes(1)[0xf0 + i - 0x100];
        return i < 0x280 ? guest.bytes(0)[0xf80 + i - 0x200] : guest.bytes(2)[i - 0x280];
    }
    TestMap guest;
    std::optional<TestDevice> device;
};

TEST_F(AcrossMappings, BytesGoThroughAllOfThem) {
    const auto bytes = counted_bytes(0x1f8);
    ASSERT_TRUE(device->memory->write_bytes(IoAddress{0x1004}, bytes));
    for (std::uint64_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(byte(4 + i), bytes[i]) << i;
    std::vector<std::byte> found(bytes.size());
    ASSERT_TRUE(device->memory->read_bytes(IoAddress{0x1004}, found));
    EXPECT_EQ(found, bytes);
    EXPECT_EQ(device->memory->compare(IoAddress{0x1004}, bytes).value(), std::strong_ordering::equal);
}

TEST_F(AcrossMappings, ObjectsStraddleThem) {
    ASSERT_TRUE(device->memory->write_le<std::uint64_t>(IoAddress{0x10fc}, 0x0807060504030201));
    EXPECT_EQ(byte(0xff), std::byte{4});
    EXPECT_EQ(byte(0x100), std::byte{5});
    EXPECT_EQ(device->memory->read_le<std::uint64_t>(IoAddress{0x10fc}).value(), 0x0807060504030201U);
    // From one region into the next, inside of one mapping.
    ASSERT_TRUE(device->memory->write_le<std::uint64_t>(IoAddress{0x127c}, 0x0807060504030201));
    EXPECT_EQ(byte(0x280), std::byte{5});
}

TEST_F(AcrossMappings, FillCopyAndStringsGoThroughAllOfThem) {
    ASSERT_TRUE(device->memory->fill(IoAddress{0x10f0}, std::byte{'x'}, 0x120));
    ASSERT_TRUE(device->memory->write<std::uint8_t>(IoAddress{0x1210}, 0));
    EXPECT_EQ(device->memory->read_string(IoAddress{0x10f0}, 0x200).value(), std::string(0x120, 'x'));
    ASSERT_TRUE(device->memory->copy(IoAddress{0x10f8}, IoAddress{0x10f0}, 0x120));
    EXPECT_EQ(byte(0x217), std::byte{'x'});
    const auto unterminated = device->memory->read_string(IoAddress{0x10f8}, 0x100);
    EXPECT_EQ(unterminated.error().reason(), AccessReason::unterminated);
}

TEST_F(AcrossMappings, WhatReachesPastThemIsRefusedAtTheFirstByteAndWritesNothing) {
    const auto bytes = counted_bytes(0x500);
    EXPECT_EQ(device->memory->write_bytes(IoAddress{0x1380}, bytes).error(),
              refused(AccessReason::untranslated, Access::write, 0x1400));
    EXPECT_EQ(device->memory->fill(IoAddress{0x1380}, std::byte{1}, 0x81).error(),
              refused(AccessReason::untranslated, Access::write, 0x1400));
    EXPECT_EQ(byte(0x3ff), std::byte{0});
    EXPECT_EQ(device->memory->write_some(IoAddress{0x13f0}, bytes).value(), 16U);
    EXPECT_EQ(byte(0x3ff), bytes[15]);
    std::vector<std::byte> found(0x100);
    EXPECT_EQ(device->memory->read_bytes(IoAddress{0x13f0}, found).error(),
              refused(AccessReason::untranslated, Access::read, 0x1400, 16));
}

TEST_F(AcrossMappings, AnAtomicAccessIsInOneRegionAndAligned) {
    EXPECT_EQ(device->memory->load<std::uint64_t>(IoAddress{0x10fc}).error(),
              refused(AccessReason::misaligned, Access::read, 0x10fc));
    TestMap small;
    small.ram(0x8000, 4).ram(0x8004, 12);
    TestDevice other{small.map()};
    other.table->set(translation(0x1000, 16, 0x8000));
    other.table->set(translation(0x2000, 4, 0x8000));
    other.table->set(translation(0x2004, 4, 0x8004, Permissions::read));
    EXPECT_EQ(other.memory->store<std::uint64_t>(IoAddress{0x1000}, 1).error(),
              refused(AccessReason::crosses_border, Access::write, 0x1000));
    EXPECT_EQ(other.memory->load<std::uint64_t>(IoAddress{0x2000}).error(),
              refused(AccessReason::crosses_border, Access::read, 0x2000));
    EXPECT_EQ(other.memory->store<std::uint64_t>(IoAddress{0x2000}, 1).error(),
              refused(AccessReason::denied, Access::write, 0x2004));
    EXPECT_TRUE(other.memory->store<std::uint32_t>(IoAddress{0x1000}, 1));
}

TEST(TranslatedMemory, AMappingAtAnOddDistanceIsGoodForBytesOnly) {
    TestMap guest;
    guest.ram(0x8000, 0x1000).count_up();
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x100, 0x8003));
    std::uint64_t expected = 0;
    std::memcpy(&expected, &guest.bytes(0)[0xb], 8);
    EXPECT_EQ(device.memory->read<std::uint64_t>(IoAddress{0x1008}).value(), expected);
    EXPECT_EQ(device.memory->load<std::uint64_t>(IoAddress{0x1008}).error(),
              refused(AccessReason::misaligned, Access::read, 0x1008));
    EXPECT_EQ(device.memory->load<std::uint8_t>(IoAddress{0x1008}).value(), 0xbU);
    EXPECT_TRUE(device.memory->write<std::uint64_t>(IoAddress{0x10f8}, 0));
}

TEST(TranslatedMemory, GivesAPointerIntoOneMapping) {
    TestMap guest;
    guest.ram(0x8000, 0x1000).start_tracking();
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x100, 0x8040));
    {
        const auto pointer = WritePointer::create(*device.memory, IoAddress{0x1010}, 8, "test");
        ASSERT_TRUE(pointer);
        EXPECT_EQ(pointer->bytes().data(), &guest.bytes(0)[0x50]);
        EXPECT_EQ(&pointer->region(), &guest.region(0));
    }
    EXPECT_EQ(guest.take_dirty(0), std::vector<std::uint64_t>{1});
    EXPECT_EQ(WritePointer::create(*device.memory, IoAddress{0x10f9}, 8, "test").error(),
              refused(AccessReason::untranslated, Access::write, 0x1100));
}

// ---- the dirty log by I/O virtual address ----

std::vector<std::uint64_t> dirty_offsets(IoSpace& space) {
    std::vector<std::uint64_t> offsets;
    const DirtyPages pages = space.dirty()->harvest().value();
    pages.for_each_run([&](DirtyRun run) {
        for (std::uint64_t i = 0; i < run.size_bytes; i += 64) offsets.push_back(run.offset + i);
    });
    return offsets;
}

TEST(TranslatedMemory, MarksWhatItWritesByBothAddresses) {
    TestMap guest;
    guest.ram(0x8000, 0x2000).start_tracking();
    TestDevice device{guest.map(), io_range(0x10000, 0x1000)};
    ASSERT_TRUE(device.space.dirty()->start(64));
    device.table->set(translation(0xf000, 0x2000, 0x8000));
    using Offsets = std::vector<std::uint64_t>;
    const auto expect_dirty = [&](const Offsets& pages, const Offsets& offsets, std::string_view what) {
        EXPECT_EQ(guest.take_dirty(0), pages) << what;
        EXPECT_EQ(dirty_offsets(device.space), offsets) << what;
    };
    TranslatedMemory& memory = *device.memory;
    ASSERT_TRUE(memory.read<std::uint64_t>(IoAddress{0x10000}));
    expect_dirty({}, {}, "read");
    ASSERT_TRUE(memory.write<std::uint64_t>(IoAddress{0x10040}, 1));
    expect_dirty({65}, {0x40}, "write");
    ASSERT_TRUE(memory.fetch_add<std::uint32_t>(IoAddress{0x10ffc}, 1));
    expect_dirty({127}, {0xfc0}, "fetch_add");
    ASSERT_TRUE(memory.compare_exchange<std::uint32_t>(IoAddress{0x10ffc}, 0, 1));
    expect_dirty({}, {}, "a compare_exchange that does not exchange");
    ASSERT_TRUE(memory.write<std::uint64_t>(IoAddress{0xf000}, 1));
    expect_dirty({0}, {}, "write below the window");
    // Around the window's first address, in one mapping and one region.
    ASSERT_TRUE(memory.write<std::uint64_t>(IoAddress{0xfffc}, 1));
    expect_dirty({63, 64}, {0}, "write into the window from below");
    ASSERT_TRUE(memory.fill(IoAddress{0xffc0}, std::byte{1}, 0x81));
    expect_dirty({63, 64, 65}, {0, 0x40}, "fill into the window from below");
    ASSERT_TRUE(memory.write_bytes(IoAddress{0x10080}, counted_bytes(64)));
    expect_dirty({66}, {0x80}, "write_bytes");
    // Above the window, in another mapping.
    device.table->set(translation(0x11000, 0x1000, 0x8000));
    ASSERT_TRUE(memory.copy(IoAddress{0x10fc0}, IoAddress{0x10f00}, 0x80));
    expect_dirty({0, 127}, {0xfc0}, "copy out of the window's end");
}

TEST(TranslatedMemory, AWindowMayEndAtTheEndOfTheSpace) {
    TestMap guest;
    guest.ram(0x8000, 0x1000);
    TestDevice device{guest.map(), io_range(top - 0xfff, 0x1000)};
    ASSERT_TRUE(device.space.dirty()->start(64));
    device.table->set(translation(top - 0xfff, 0x1000, 0x8000));
    ASSERT_TRUE(device.memory->write<std::uint8_t>(IoAddress{top}, 1));
    EXPECT_EQ(dirty_offsets(device.space), std::vector<std::uint64_t>{0xfc0});
}

// ---- a map that changes ----

TEST(TranslatedMemory, FollowsALiveMap) {
    TestMap old_guest;
    old_guest.ram(0x8000, 0x1000, "old");
    TestMap new_guest;
    new_guest.ram(0x8000, 0x1000, "new");
    LiveMap live{old_guest.map()};
    TestDevice device{old_guest.map()};
    device.table->set(translation(0, 0x1000, 0x8000));
    const auto memory = device.space.make_memory("queue 1", live.make_reader("queue 1").value()).value();
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{8}, 1));
    const RetiredMap retired = live.publish(new_guest.map());
    EXPECT_FALSE(live.wait_until_unused(retired, 0ms)) << "the handle holds the map of its last access";
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{16}, 1));
    EXPECT_EQ(old_guest.bytes(0)[16], std::byte{0});
    EXPECT_EQ(new_guest.bytes(0)[16], std::byte{1});
    EXPECT_EQ(new_guest.bytes(0)[8], std::byte{0});
    EXPECT_EQ(memory->hold_piece(IoAddress{16}, Access::read)->region->name(), "new");
    EXPECT_EQ(device.table->count_questions(), 1U) << "mappings do not depend on the map";
}

TEST(TranslatedMemory, HoldsNoMapWhenParkedNorWhileItAsks) {
    TestMap guest;
    guest.ram(0x8000, 0x1000);
    const auto live = std::make_shared<LiveMap>(guest.map());
    TestDevice device{guest.map()};
    device.table->set(translation(0, 0x1000, 0x8000));
    device.table->set(translation(0x1000, 0x1000, 0x8000));
    const auto memory = device.space.make_memory("queue 1", live->make_reader("queue 1").value()).value();
    std::string waited = "nobody asked";
    const auto replace_map = [&] {
        TestMap other;
        other.ram(0x8000, 0x1000);
        const auto result = live->wait_until_unused(live->publish(other.map()), 0ms);
        waited = result ? "" : result.error().message();
        return other;
    };
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{0}, 1));
    memory->park();
    replace_map();
    EXPECT_EQ(waited.find("queue 1"), std::string::npos) << waited;
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{0}, 1));
    waited = "nobody asked";
    device.table->on_question = [&](IoAddress, Access) { replace_map(); };
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{0x1000}, 1));
    EXPECT_EQ(waited.find("queue 1"), std::string::npos) << waited;
    EXPECT_EQ(waited.find("nobody asked"), std::string::npos);
}

TEST(TranslatedMemory, ARegionThatIsRemovedIsAHoleInItsMapping) {
    TestMap guest;
    guest.ram(0x8000, 0x1000).ram(0x9000, 0x1000);
    LiveMap live{guest.map()};
    TestDevice device{guest.map()};
    device.table->set(translation(0, 0x2000, 0x8000));
    const auto memory = device.space.make_memory("queue 1", live.make_reader("queue 1").value()).value();
    ASSERT_TRUE(memory->write<std::uint64_t>(IoAddress{0}, 1));
    ASSERT_TRUE(live.remove(GuestRange::create(GuestAddress{0x8000}, 0x1000).value()));
    EXPECT_EQ(memory->write<std::uint64_t>(IoAddress{0}, 1).error(),
              refused(AccessReason::hole, Access::write, 0));
    EXPECT_EQ(memory->refused_at(refused(AccessReason::hole, Access::write, 0)), GuestAddress{0x8000});
    EXPECT_TRUE(memory->write<std::uint64_t>(IoAddress{0x1000}, 1));
}

// ---- a change while nothing is known ----

TEST(TranslatedMemory, WhatChangesBetweenAMissAndItsQuestionIsSeen) {
    // The Translator knows nothing of the switch: only the space can tell that its answer is an old one.
    TestMap guest;
    guest.ram(0x1000, 0x1000).ram(0x8000, 0x1000);
    std::memset(guest.bytes(0).data(), 1, 0x1000);
    std::memset(guest.bytes(1).data(), 2, 0x1000);
    TestDevice device{guest.map()};
    device.table->set(translation(0x1000, 0x1000, 0x8000));
    const IoAddress at{0x1000};
    std::atomic<std::uint64_t> begun{0};
    std::atomic<std::uint64_t> switched{0};
    std::atomic<std::uint64_t> checked{0};
    std::atomic<bool> is_over{false};
    const auto await = [&](const std::atomic<std::uint64_t>& number, std::uint64_t wanted) {
        while (number.load() < wanted && !is_over.load()) {
        }
    };
    std::uint64_t count_wrong = 0;
    std::thread queue{[&] {
        for (std::uint64_t i = 1; !is_over.load(); ++i) {
            await(begun, i);
            const bool is_first_good = device.memory->read<std::uint8_t>(at).has_value();
            await(switched, i);
            if (is_over.load()) return;
            const auto after = device.memory->read<std::uint8_t>(at);
            if (!is_first_good || !after || *after != 1) ++count_wrong;
            checked = i;
        }
    }};
    const auto end = std::chrono::steady_clock::now() + 500ms;
    for (std::uint64_t i = 1; std::chrono::steady_clock::now() < end; ++i) {
        begun = i;
        // A little later each round, so that the two meet.
        for (std::uint64_t step = 0; step < i * 13 % 300; ++step)
            std::atomic_signal_fence(std::memory_order_seq_cst);
        ASSERT_TRUE(device.space.set_translating(Translating::off, 1s));
        switched = i;
        await(checked, i);
        ASSERT_TRUE(device.space.set_translating(Translating::on, 1s));
        ASSERT_TRUE(device.space.invalidate_all(1s));
    }
    is_over = true;
    queue.join();
    EXPECT_EQ(count_wrong, 0U) << "of " << checked.load();
}

// ---- against a naive model ----

TEST(TranslatedMemory, AgreesWithTheModelInRandomOperations) {
    for (std::uint64_t seed = 1; seed <= 200; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        Choices choices{seed};
        IoSession session{choices};
        for (int i = 0; i < 250; ++i) ASSERT_EQ(session.step(), "") << "operation " << i;
    }
}

}  // namespace
}  // namespace guestmem

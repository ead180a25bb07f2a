// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/kvm_slots.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/testing/kvm_machine.hpp"
#include "guestmem/mem/testing/random_maps.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::KvmMachine;
using testing::RandomMaps;

static_assert(sizeof(KvmSlot) == sizeof(kvm_userspace_memory_region));
static_assert(offsetof(KvmSlot, slot) == offsetof(kvm_userspace_memory_region, slot));
static_assert(offsetof(KvmSlot, flags) == offsetof(kvm_userspace_memory_region, flags));
static_assert(offsetof(KvmSlot, guest_phys_addr) == offsetof(kvm_userspace_memory_region, guest_phys_addr));
static_assert(offsetof(KvmSlot, memory_size) == offsetof(kvm_userspace_memory_region, memory_size));
static_assert(offsetof(KvmSlot, userspace_addr) == offsetof(kvm_userspace_memory_region, userspace_addr));
static_assert(kvm_mem_log_dirty_pages == KVM_MEM_LOG_DIRTY_PAGES);
static_assert(kvm_mem_readonly == KVM_MEM_READONLY);

constexpr std::uint64_t page = 4096;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;
using MemoryPtr = std::shared_ptr<const HostMemory>;

MemoryPtr some_memory(std::uint64_t size_bytes) {
    return HostMemory::create_anonymous({.size_bytes = size_bytes}).value();
}

RegionPtr memory_region(std::string name, RegionKind kind, std::uint64_t base,
                        std::uint64_t size_bytes = 4 * page) {
    return Region::create({.name = std::move(name),
                           .base = GuestAddress{base},
                           .kind = kind,
                           .memory = some_memory(size_bytes)})
        .value();
}

RegionPtr ram(std::string name, std::uint64_t base, std::uint64_t size_bytes = 4 * page) {
    return memory_region(std::move(name), RegionKind::ram, base, size_bytes);
}

MapPtr map_of(const std::vector<RegionPtr>& regions, std::uint64_t granule_bytes = page) {
    Layout layout{{.granule_bytes = granule_bytes}};
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

std::uint64_t host_of(const RegionPtr& region) {
    return reinterpret_cast<std::uintptr_t>(region->host_base());
}

std::vector<KvmSlot> slots_in(const std::vector<KvmSlotEntry>& entries) {
    std::vector<KvmSlot> slots;
    for (const KvmSlotEntry& entry : entries) slots.push_back(entry.slot);
    return slots;
}

KvmSlots some_slots(std::uint32_t max_slots = 32) {
    return KvmSlots::create({.max_slots = max_slots}).value();
}

/// All steps of the plan to `map` go well.
std::vector<KvmSlot> update(KvmSlots& slots, const MemoryMap& map,
                            KvmDirtyLogging logging = KvmDirtyLogging::of_tracked) {
    const KvmSlotPlan plan = slots.plan(map, logging).value();
    EXPECT_TRUE(slots.commit(plan, plan.steps().size()));
    return slots_in(plan.steps());
}

TEST(KvmSlots, EachMemoryRegionHasASlotAndADeviceHasNone) {
    const RegionPtr low = ram("low", 0);
    const RegionPtr device =
        Region::create(
            {.name = "uart", .base = GuestAddress{16 * page}, .size_bytes = page, .kind = RegionKind::device})
            .value();
    const RegionPtr rom = memory_region("rom", RegionKind::rom, 32 * page);
    const RegionPtr fixed = memory_region("fixed", RegionKind::read_only, 48 * page);
    KvmSlots slots = some_slots();

    const auto steps = update(slots, *map_of({fixed, rom, device, low}));

    EXPECT_EQ(steps, (std::vector<KvmSlot>{{0, 0, 0, 4 * page, host_of(low)},
                                           {1, KVM_MEM_READONLY, 32 * page, 4 * page, host_of(rom)},
                                           {2, KVM_MEM_READONLY, 48 * page, 4 * page, host_of(fixed)}}));
    EXPECT_EQ(slots_in(slots.entries()), steps);
    EXPECT_EQ(slots.count(), 3U);
}

TEST(KvmSlots, WithoutReadOnlySlotsSuchRegionsHaveNone) {
    KvmSlots slots = KvmSlots::create({.max_slots = 4, .has_read_only = false}).value();
    const RegionPtr low = ram("low", 0);
    EXPECT_EQ(update(slots, *map_of({low, memory_region("rom", RegionKind::rom, 32 * page)})),
              (std::vector<KvmSlot>{{0, 0, 0, 4 * page, host_of(low)}}));
}

TEST(KvmSlots, AMapThatKvmHasAlreadyNeedsNoStep) {
    KvmSlots slots = some_slots();
    const MapPtr map = map_of({ram("a", 0), ram("b", 16 * page)});
    EXPECT_EQ(update(slots, *map).size(), 2U);
    EXPECT_TRUE(update(slots, *map).empty());
}

TEST(KvmSlots, ARemovalIsASlotOfNoBytesAndComesFirst) {
    KvmSlots slots = some_slots();
    const RegionPtr old = ram("old", 16 * page);
    ASSERT_TRUE(old->dirty().start());
    update(slots, *map_of({ram("a", 0), old}));
    const RegionPtr larger = ram("larger", 8 * page, 16 * page);

    const auto steps = update(slots, *map_of({larger}));

    ASSERT_EQ(steps.size(), 3U);
    EXPECT_EQ(steps[0].slot, 0U);
    EXPECT_EQ(steps[0].memory_size, 0U);
    EXPECT_EQ(steps[1], (KvmSlot{1, 0, 16 * page, 0, host_of(old)}));
    EXPECT_EQ(steps[2], (KvmSlot{0, 0, 8 * page, 16 * page, host_of(larger)}));
}

TEST(KvmSlots, NumbersAreKeptAndTheLowestFreeOneIsTaken) {
    KvmSlots slots = some_slots();
    const RegionPtr a = ram("a", 0);
    const RegionPtr b = ram("b", 16 * page);
    const RegionPtr c = ram("c", 32 * page);
    update(slots, *map_of({a, b, c}));

    update(slots, *map_of({b, c}));
    EXPECT_EQ(slots.find(0), nullptr);
    EXPECT_EQ(slots.find(1)->region, b);
    EXPECT_EQ(slots.find(2)->region, c);

    const RegionPtr d = ram("d", 48 * page);
    const RegionPtr e = ram("e", 64 * page);
    update(slots, *map_of({b, c, d, e}));
    EXPECT_EQ(slots.find(0)->region, d);
    EXPECT_EQ(slots.find(3)->region, e);
    EXPECT_EQ(slots.find(4), nullptr);
}

TEST(KvmSlots, TheAddressSpaceIsInTheHighBitsOfTheNumber) {
    KvmSlots slots = KvmSlots::create({.max_slots = 4, .address_space = 1}).value();
    const RegionPtr a = ram("a", 0);
    EXPECT_EQ(update(slots, *map_of({a})), (std::vector<KvmSlot>{{0x10000, 0, 0, 4 * page, host_of(a)}}));
    EXPECT_EQ(slots.find(0x10000)->region, a);
    EXPECT_EQ(slots.find(0), nullptr);
    EXPECT_EQ(slots.find(0x20000), nullptr);
    EXPECT_EQ(update(slots, *map_of({})), (std::vector<KvmSlot>{{0x10000, 0, 0, 0, host_of(a)}}));
}

TEST(KvmSlots, RamIsLoggedWhileItsTrackerIsOn) {
    KvmSlots slots = some_slots();
    const RegionPtr a = ram("a", 0);
    const RegionPtr b = ram("b", 16 * page);
    const RegionPtr rom = memory_region("rom", RegionKind::rom, 32 * page);
    const MapPtr map = map_of({a, b, rom});
    update(slots, *map);

    ASSERT_TRUE(b->dirty().start());
    ASSERT_TRUE(rom->dirty().start());
    EXPECT_EQ(update(slots, *map),
              (std::vector<KvmSlot>{{1, KVM_MEM_LOG_DIRTY_PAGES, 16 * page, 4 * page, host_of(b)}}));
    EXPECT_TRUE(update(slots, *map).empty());

    ASSERT_TRUE(b->dirty().stop());
    EXPECT_EQ(update(slots, *map), (std::vector<KvmSlot>{{1, 0, 16 * page, 4 * page, host_of(b)}}));
}

TEST(KvmSlots, AllRamIsLoggedForACallerWhoWantsThat) {
    KvmSlots slots = some_slots();
    const RegionPtr a = ram("a", 0);
    const MapPtr map = map_of({a, memory_region("rom", RegionKind::rom, 32 * page)});
    update(slots, *map);
    EXPECT_EQ(update(slots, *map, KvmDirtyLogging::of_all),
              (std::vector<KvmSlot>{{0, KVM_MEM_LOG_DIRTY_PAGES, 0, 4 * page, host_of(a)}}));
    EXPECT_TRUE(update(slots, *map, KvmDirtyLogging::of_all).empty());
    EXPECT_EQ(update(slots, *map).size(), 1U);
}

/// The same bytes at 0 in another object.
RegionPtr renamed(std::string name, const MemoryPtr& memory) {
    return Region::create({.name = std::move(name), .base = GuestAddress{0}, .memory = memory}).value();
}

TEST(KvmSlots, AnotherRegionOfTheSameBytesNeedsNoCallAndIsTheOneThatIsFound) {
    KvmSlots slots = some_slots();
    const MemoryPtr memory = some_memory(page);
    update(slots, *map_of({renamed("before", memory)}));
    const RegionPtr after = renamed("after", memory);
    EXPECT_TRUE(update(slots, *map_of({after})).empty());
    EXPECT_EQ(slots.find(0)->region, after);
    EXPECT_EQ(slots.find(0)->region->name(), "after");
}

TEST(KvmSlots, MemoryStaysMappedUntilTheRemovalOfItsSlotIsConfirmed) {
    KvmSlots slots = some_slots();
    MapPtr map = map_of({ram("a", 0)});
    const std::weak_ptr<const Region> region = map->regions().front();
    update(slots, *map);
    map = nullptr;
    EXPECT_FALSE(region.expired());

    const KvmSlotPlan plan = slots.plan(*map_of({})).value();
    ASSERT_EQ(plan.steps().size(), 1U);
    ASSERT_TRUE(slots.commit(plan, 0));
    EXPECT_FALSE(region.expired());
    ASSERT_TRUE(slots.commit(plan, 1));
    EXPECT_TRUE(region.expired());
}

TEST(KvmSlots, OnlyConfirmedStepsChangeTheState) {
    KvmSlots slots = some_slots();
    const RegionPtr a = ram("a", 0);
    const RegionPtr b = ram("b", 16 * page);
    const RegionPtr c = ram("c", 32 * page);
    const MapPtr before = map_of({a});
    update(slots, *before);
    const auto entries = slots_in(slots.entries());

    const KvmSlotPlan plan = slots.plan(*map_of({b, c})).value();
    ASSERT_EQ(plan.steps().size(), 3U);
    EXPECT_EQ(slots_in(slots.entries()), entries);
    ASSERT_TRUE(slots.commit(plan, 2));

    EXPECT_EQ(slots_in(slots.entries()), (std::vector<KvmSlot>{{0, 0, 16 * page, 4 * page, host_of(b)}}));
    EXPECT_EQ(update(slots, *before).size(), 2U) << "back: b goes, a comes";
    EXPECT_EQ(slots_in(slots.entries()), entries);
}

TEST(KvmSlots, AnOldPlanIsRefused) {
    KvmSlots slots = some_slots();
    const MapPtr map = map_of({ram("a", 0)});
    const KvmSlotPlan plan = slots.plan(*map).value();
    ASSERT_TRUE(slots.commit(plan, 0)) << "changes nothing";
    ASSERT_TRUE(slots.commit(plan, 1));

    const auto again = slots.commit(plan, 1);

    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Errc::busy);
    EXPECT_THAT(again.error().message(), HasSubstr("make another plan"));
    EXPECT_EQ(slots.count(), 1U);
}

TEST(KvmSlots, APlanThatIsOlderThanAnotherRegionObjectIsRefused) {
    KvmSlots slots = some_slots();
    const MemoryPtr memory = some_memory(page);
    update(slots, *map_of({renamed("first", memory)}));
    const KvmSlotPlan old = slots.plan(*map_of({renamed("second", memory)})).value();
    const RegionPtr third = renamed("third", memory);
    const KvmSlotPlan plan = slots.plan(*map_of({third})).value();
    EXPECT_TRUE(plan.steps().empty());
    ASSERT_TRUE(slots.commit(plan, 0));

    EXPECT_FALSE(slots.commit(old, 0));
    EXPECT_FALSE(slots.commit(plan, 0)) << "twice";
    EXPECT_EQ(slots.find(0)->region, third);
}

TEST(KvmSlots, RegionObjectsOfAMapThatIsNotWholeAreNotTakenOver) {
    KvmSlots slots = some_slots();
    const MemoryPtr memory = some_memory(page);
    const RegionPtr before = renamed("before", memory);
    update(slots, *map_of({before}));
    const RegionPtr after = renamed("after", memory);
    const MapPtr map = map_of({after, ram("b", 16 * page), ram("c", 32 * page)});

    for (const std::size_t count_done : {0U, 1U}) {
        const KvmSlotPlan plan = slots.plan(*map).value();
        ASSERT_EQ(plan.steps().size(), 2U);
        ASSERT_TRUE(slots.commit(plan, count_done));
        EXPECT_EQ(slots.find(0)->region, before) << count_done << " of 2 steps";
    }
    EXPECT_EQ(update(slots, *map).size(), 1U);
    EXPECT_EQ(slots.find(0)->region, after);
}

TEST(KvmSlots, MoreStepsThanThePlanHasCannotBeDone) {
    KvmSlots slots = some_slots();
    const KvmSlotPlan plan = slots.plan(*map_of({ram("a", 0)})).value();
    const auto done = slots.commit(plan, 2);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().message(), "kvm slots: 2 steps are said to be done, of a plan of 1");
    EXPECT_EQ(slots.count(), 0U);
}

TEST(KvmSlots, AMapMayNeedAllSlotsAndNotOneMore) {
    KvmSlots slots = some_slots(2);
    const RegionPtr a = ram("a", 0);
    const RegionPtr b = ram("b", 16 * page);
    EXPECT_EQ(update(slots, *map_of({a, b})).size(), 2U);
    EXPECT_EQ(update(slots, *map_of({ram("c", 0), ram("d", 16 * page)})).size(), 4U);

    const auto plan = slots.plan(*map_of({a, b, ram("c", 32 * page)}));
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.error().code(), Errc::exhausted);
    EXPECT_EQ(plan.error().message(), "kvm slots: the map needs 3 slots, and KVM has 2");
}

TEST(KvmSlots, ThereAreOneTo65536Slots) {
    EXPECT_TRUE(KvmSlots::create({.max_slots = 1}));
    EXPECT_TRUE(KvmSlots::create({.max_slots = 65536}));
    EXPECT_FALSE(KvmSlots::create({.max_slots = 0}));
    EXPECT_EQ(KvmSlots::create({.max_slots = 65537}).error().code(), Errc::out_of_range);
    EXPECT_FALSE(KvmSlots::create({.max_slots = 1, .page_bytes = 4095}));
    EXPECT_FALSE(KvmSlots::create({.max_slots = 1, .page_bytes = 0}));
}

/// The sentence with which a map of this one region is refused.
std::string refusal_of(const RegionPtr& region) {
    const KvmSlots slots = some_slots();
    const auto plan = slots.plan(*map_of({region}, 1));
    return plan ? "taken" : plan.error().message();
}

RegionPtr borrowed(std::uint64_t base, std::uint64_t host, std::uint64_t size_bytes) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a pointer that nobody follows
    auto* const begin = reinterpret_cast<std::byte*>(host);
    auto memory = HostMemory::borrow({begin, size_bytes}, MapAccess::read_write, nullptr).value();
    return Region::create({.name = "r", .base = GuestAddress{base}, .memory = memory}).value();
}

TEST(KvmSlots, WhatIsNotWholePagesIsRefusedWithItsNumbers) {
    const std::uint64_t host = 0x10000000;
    EXPECT_EQ(refusal_of(borrowed(page, host, page)), "taken");
    EXPECT_EQ(refusal_of(borrowed(page + 1, host, page)),
              "kvm slots: region 'r' (0x1001 to 0x2000): it does not begin and end with pages of 4096 bytes");
    EXPECT_EQ(refusal_of(borrowed(page, host, page + 1)),
              "kvm slots: region 'r' (0x1000 to 0x2000): it does not begin and end with pages of 4096 bytes");
    EXPECT_EQ(
        refusal_of(borrowed(page, host + 8, page)),
        "kvm slots: region 'r' (0x1000 to 0x1fff): its host address 0x10000008 is not a multiple of the "
        "page size 4096");
}

TEST(KvmSlots, TheLimitsOfASlotAreTheKernels) {
    const std::uint64_t host = 0x10000000;
    EXPECT_EQ(refusal_of(borrowed(0, host, max_kvm_slot_pages * page)), "taken");
    EXPECT_THAT(refusal_of(borrowed(0, host, (max_kvm_slot_pages + 1) * page)),
                HasSubstr("it has 2147483648 pages; a slot has at most 2147483647"));
    EXPECT_EQ(refusal_of(borrowed(0 - 2 * page, host, page)), "taken");
    EXPECT_THAT(refusal_of(borrowed(0 - page, host, page)), HasSubstr("no slot that ends at 2^64"));
}

/// What KVM_SET_USER_MEMORY_REGION accepts, as virt/kvm/kvm_main.c has it.
class ModelKvm {
public:
    [[nodiscard]] int set(const KvmSlot& slot) {
        const auto old = slots_.find(slot.slot);
        if (slot.memory_size == 0) {
            if (old == slots_.end()) return EINVAL;
            slots_.erase(old);
            return 0;
        }
        if (old != slots_.end()) {
            const bool is_other = slot.userspace_addr != old->second.userspace_addr ||
                                  slot.memory_size != old->second.memory_size ||
                                  ((slot.flags ^ old->second.flags) & KVM_MEM_READONLY) != 0;
            if (is_other) return EINVAL;
        }
        for (const auto& [number, other] : slots_)
            if (number != slot.slot && slot.guest_phys_addr < other.guest_phys_addr + other.memory_size &&
                other.guest_phys_addr < slot.guest_phys_addr + slot.memory_size)
                return EEXIST;
        slots_[slot.slot] = slot;
        return 0;
    }
    [[nodiscard]] std::vector<KvmSlot> slots() const {
        std::vector<KvmSlot> all;
        for (const auto& [number, slot] : slots_) all.push_back(slot);
        return all;
    }

private:
    std::map<std::uint32_t, KvmSlot> slots_;
};

/// The slots that a map should have, without their numbers.
std::vector<KvmSlot> wanted_slots(const MemoryMap& map) {
    std::vector<KvmSlot> wanted;
    for (const RegionPtr& region : map.regions()) {
        if (!region->is_memory()) continue;
        std::uint32_t flags = region->dirty().is_on() ? KVM_MEM_LOG_DIRTY_PAGES : 0;
        if (!region->is_writable()) flags = KVM_MEM_READONLY;
        wanted.push_back(
            {0, flags, region->range().base().value(), region->range().size_bytes(), host_of(region)});
    }
    return wanted;
}

std::vector<KvmSlot> by_address_without_numbers(std::vector<KvmSlot> slots) {
    for (KvmSlot& slot : slots) slot.slot = 0;
    std::ranges::sort(slots, {}, &KvmSlot::guest_phys_addr);
    return slots;
}

TEST(KvmSlots, KvmTakesEveryStepFromAnyMapToAnyOtherAlsoAfterAFailureHalfWay) {
    for (std::uint32_t seed = 0; seed < 200; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        RandomMaps maps{seed};
        ModelKvm kvm;
        KvmSlots slots = some_slots(16);
        for (int turn = 0; turn < 20; ++turn) {
            SCOPED_TRACE(::testing::Message() << "turn " << turn);
            const MapPtr map = maps.next();
            const KvmSlotPlan plan = slots.plan(*map).value();
            // One turn in four stops half way, as if the call after that had failed.
            const std::size_t count = plan.steps().size();
            const std::size_t done = maps.below(4) == 0 ? maps.below(count + 1) : count;
            for (std::size_t i = 0; i < done; ++i)
                ASSERT_EQ(kvm.set(plan.steps()[i].slot), 0) << "step " << i;
            ASSERT_TRUE(slots.commit(plan, done));
            ASSERT_EQ(slots_in(slots.entries()), kvm.slots());
            if (done == count) {
                ASSERT_EQ(by_address_without_numbers(kvm.slots()), wanted_slots(*map));
            }
        }
    }
}

TEST(KvmSlots, TheKernelTakesEveryStepFromAnyMapToAnyOther) {
    KvmMachine machine;
    if (!machine.start()) GTEST_SKIP() << "SKIPPED: no /dev/kvm that opens";
    if (machine.ask(KVM_CAP_READONLY_MEM) <= 0) GTEST_SKIP() << "SKIPPED: this KVM has no read-only slots";
    constexpr std::uint32_t seed = 1;
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    RandomMaps maps{seed};
    KvmSlots slots = machine.make_slots();
    for (int turn = 0; turn < 50; ++turn) {
        const MapPtr map = maps.next();
        const auto done = machine.update(slots, *map);
        ASSERT_TRUE(done) << "turn " << turn << ": " << done.error().message();
        ASSERT_EQ(by_address_without_numbers(slots_in(slots.entries())), wanted_slots(*map));
    }
}

TEST(KvmSlots, TheKernelRefusesWhatPlansRefuse) {
    KvmMachine machine;
    if (!machine.start()) GTEST_SKIP() << "SKIPPED: no /dev/kvm that opens";
    const MemoryPtr memory = some_memory(4 * page);
    const std::uint64_t host = reinterpret_cast<std::uintptr_t>(memory->bytes().data());
    EXPECT_TRUE(machine.set({0, 0, 0, 2 * page, host}));
    EXPECT_FALSE(machine.set({0, KVM_MEM_READONLY, 0, 2 * page, host})) << "another permission";
    EXPECT_FALSE(machine.set({0, 0, 0, page, host})) << "another size";
    EXPECT_FALSE(machine.set({0, 0, 0, 2 * page, host + page})) << "other bytes";
    EXPECT_FALSE(machine.set({1, 0, page, page, host})) << "overlap";
    EXPECT_FALSE(machine.set({1, 0, 16 * page + 8, page, host})) << "base";
    EXPECT_FALSE(machine.set({1, 0, 16 * page, page + 8, host})) << "size";
    EXPECT_FALSE(machine.set({1, 0, 16 * page, page, host + 8})) << "host address";
    EXPECT_FALSE(machine.set({1, 0, 0 - page, page, host})) << "ends at 2^64";
    EXPECT_FALSE(machine.set({1, 0, 16 * page, 0, host})) << "a removal of nothing";
    EXPECT_TRUE(machine.set({0, KVM_MEM_LOG_DIRTY_PAGES, 0, 2 * page, host})) << "flags";
}

#if defined(__x86_64__)

constexpr std::uint16_t code_at = 0x1000;
constexpr std::uint64_t data_at = 0x20000;
constexpr std::uint64_t rom_at = 0x30000;
constexpr std::uint64_t plug_at = 0x50000;

/// Reads a byte of data and adds one of ROM, tells it, writes it to data and to ROM; then tells a byte of what is
/// plugged in.
constexpr std::uint8_t payload[] = {
    0xb8, 0x00, 0x20,              // mov ax, 0x2000
    0x8e, 0xd8,                    // mov ds, ax
    0xa0, 0x00, 0x00,              // mov al, [0]
    0xbb, 0x00, 0x30,              // mov bx, 0x3000
    0x8e, 0xc3,                    // mov es, bx
    0x26, 0x02, 0x06, 0x00, 0x00,  // add al, es:[0]
    0xe6, 0xe9,                    // out 0xe9, al
    0xa2, 0x01, 0x00,              // mov [1], al
    0x26, 0xa2, 0x02, 0x00,        // mov es:[2], al
    0xbb, 0x00, 0x50,              // mov bx, 0x5000
    0x8e, 0xc3,                    // mov es, bx
    0x26, 0xa0, 0x00, 0x00,        // mov al, es:[0]
    0xe6, 0xe9,                    // out 0xe9, al
    0xf4,                          // hlt
};

class KvmGuest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: no /dev/kvm that opens";
        if (machine_.ask(KVM_CAP_READONLY_MEM) <= 0)
            GTEST_SKIP() << "SKIPPED: this KVM has no read-only slots";
        ASSERT_TRUE(machine_.start_processor());
        std::memcpy(low_->host_base() + code_at, payload, sizeof payload);
        data_->host_base()[0] = std::byte{0x11};
        rom_->host_base()[0] = std::byte{0x22};
        plug_->host_base()[0] = std::byte{0x44};
        slots_.emplace(machine_.make_slots());
        const auto done = machine_.update(*slots_, *map_);
        ASSERT_TRUE(done) << done.error().message();
    }

    RegionPtr low_ = ram("low", 0, 0x10000);
    RegionPtr data_ = ram("data", data_at);
    RegionPtr rom_ = memory_region("rom", RegionKind::rom, rom_at);
    RegionPtr plug_ = ram("plug", plug_at);
    MapPtr map_ = map_of({low_, data_, rom_});
    std::optional<KvmSlots> slots_;
    KvmMachine machine_;  // the first to go
};

TEST_F(KvmGuest, ReadsOneSlotAndWritesAnotherAndLeavesAtRomAndAtAHole) {
    EXPECT_THAT(machine_.run(code_at),
                ElementsAre("out 0x33", "write 0x33 to 0x30002", "read 0x50000", "out 0x77"));
    EXPECT_EQ(data_->host_base()[1], std::byte{0x33});
    EXPECT_EQ(rom_->host_base()[2], std::byte{0});
}

TEST_F(KvmGuest, SeesWhatIsPluggedInAndNoLongerWhatIsPulledOut) {
    ASSERT_TRUE(machine_.update(*slots_, *map_->with(plug_).value()));
    EXPECT_THAT(machine_.run(code_at), ElementsAre("out 0x33", "write 0x33 to 0x30002", "out 0x44"));

    ASSERT_TRUE(machine_.update(*slots_, *map_of({low_, data_, plug_})));
    EXPECT_THAT(machine_.run(code_at),
                ElementsAre("read 0x30000", "out 0x88", "write 0x88 to 0x30002", "out 0x44"));

    ASSERT_TRUE(machine_.update(*slots_, *map_));
    EXPECT_EQ(machine_.run(code_at).size(), 4U);
}

TEST_F(KvmGuest, SeesTheMapBeforeAgainWhenAnUpdateFailedHalfWay) {
    // The kernel refuses a host address of its own.
    const MapPtr bad = map_of({low_, plug_, borrowed(0x100000, 0xffff'8000'0000'0000, page)});

    const auto done = machine_.update(*slots_, *bad);

    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().os_error(), EINVAL);
    EXPECT_EQ(slots_->count(), 2U) << "low and plug";
    EXPECT_THAT(machine_.run(code_at),
                ElementsAre("read 0x20000", "read 0x30000", "out 0xee", "write 0xee to 0x20001",
                            "write 0xee to 0x30002", "out 0x44"));
    ASSERT_TRUE(machine_.update(*slots_, *map_));
    EXPECT_THAT(machine_.run(code_at),
                ElementsAre("out 0x33", "write 0x33 to 0x30002", "read 0x50000", "out 0x77"));
}

TEST_F(KvmGuest, HasItsWritesLoggedWhileTheTrackerIsOn) {
    const std::uint32_t number = 1;
    ASSERT_EQ(slots_->find(number)->region, data_);
    EXPECT_FALSE(machine_.dirty_bits(number));

    ASSERT_TRUE(data_->dirty().start());
    ASSERT_TRUE(machine_.update(*slots_, *map_));
    EXPECT_EQ(machine_.dirty_bits(number).value(), 0U);
    EXPECT_EQ(machine_.run(code_at).front(), "out 0x33");
    EXPECT_EQ(machine_.dirty_bits(number).value(), 1U);

    ASSERT_TRUE(data_->dirty().stop());
    ASSERT_TRUE(machine_.update(*slots_, *map_));
    EXPECT_FALSE(machine_.dirty_bits(number));
}

TEST_F(KvmGuest, LosesWhatKvmLoggedWhenItsLoggingEndsBeforeAHarvest) {
    const std::uint32_t number = 1;
    const RegionPtr twin =
        Region::create({.name = "twin", .base = data_->range().base(), .memory = data_->memory()}).value();
    ASSERT_TRUE(data_->dirty().start());
    // The tracker is stopped; another region of the same bytes, with its tracker off, takes the place.
    for (const bool is_stopped : {true, false}) {
        ASSERT_TRUE(machine_.update(*slots_, *map_));
        EXPECT_EQ(machine_.run(code_at).front(), "out 0x33");
        ASSERT_TRUE(!is_stopped || data_->dirty().stop());
        ASSERT_TRUE(machine_.update(*slots_, is_stopped ? *map_ : *map_of({low_, twin, rom_})));
        ASSERT_TRUE(!is_stopped || data_->dirty().start());
        ASSERT_TRUE(machine_.update(*slots_, *map_));
        EXPECT_EQ(machine_.dirty_bits(number).value(), 0U) << "no hole any more: say so in kvm_slots.hpp";
    }
}

#endif

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/kvm_dirty.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace guestmem {
namespace {

constexpr std::uint64_t whole_space = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t page = 4096;

/// A tracker that is on.
std::unique_ptr<DirtyTracker> tracker_of(std::uint64_t size_bytes, std::uint64_t page_bytes = page) {
    auto tracker = std::make_unique<DirtyTracker>(size_bytes);
    EXPECT_TRUE(tracker->start(page_bytes));
    return tracker;
}

std::vector<std::uint64_t> marked_pages(const DirtyTracker& tracker) {
    const DirtyLog& log = *tracker.log();
    std::vector<std::uint64_t> found;
    for (std::uint64_t i = 0; i < log.count_pages(); ++i)
        if (log.is_marked(i * log.page_bytes())) found.push_back(i);
    return found;
}

using Pages = std::vector<std::uint64_t>;

TEST(KvmDirtyGfn, IsTheKernelsStruct) {
    static_assert(sizeof(KvmDirtyGfn) == sizeof(kvm_dirty_gfn));
    static_assert(offsetof(KvmDirtyGfn, flags) == offsetof(kvm_dirty_gfn, flags));
    static_assert(offsetof(KvmDirtyGfn, slot) == offsetof(kvm_dirty_gfn, slot));
    static_assert(offsetof(KvmDirtyGfn, offset) == offsetof(kvm_dirty_gfn, offset));
    EXPECT_EQ(kvm_dirty_gfn_dirty, KVM_DIRTY_GFN_F_DIRTY);
    EXPECT_EQ(kvm_dirty_gfn_reset, KVM_DIRTY_GFN_F_RESET);
    EXPECT_EQ(kvm_slot(0, 7), 7U);
    EXPECT_EQ(kvm_slot(1, 0xffff), 0x1ffffU);
}

// ---- the bitmap ----

TEST(MergeKvmBitmap, MarksEachPageAtItsPlaceInTheRegion) {
    const auto tracker = tracker_of(300 * page);
    const std::array<std::uint64_t, 2> words{std::uint64_t{1} << 63 | 1, 0b110};
    ASSERT_TRUE(
        merge_kvm_bitmap(words, {.tracker = *tracker, .region_offset = 10 * page, .slot_bytes = 128 * page}));
    EXPECT_EQ(marked_pages(*tracker), (Pages{10, 73, 75, 76}));
}

TEST(MergeKvmBitmap, IgnoresBitsPastTheEndOfTheSlot) {
    for (const std::uint64_t count_pages : {1U, 63U, 64U, 65U, 100U, 128U}) {
        const auto tracker = tracker_of(200 * page);
        const std::vector<std::uint64_t> words((count_pages + 63) / 64, ~std::uint64_t{0});
        ASSERT_TRUE(merge_kvm_bitmap(
            words, {.tracker = *tracker, .region_offset = 5 * page, .slot_bytes = count_pages * page}));
        const DirtyPages pages = tracker->harvest().value();
        EXPECT_EQ(pages.runs(), (std::vector{DirtyRun{5 * page, count_pages * page}}));
    }
}

TEST(MergeKvmBitmap, GoesIntoATrackerWithPagesOfAnySize) {
    const auto coarse = tracker_of(1 << 20, 65536);
    const auto fine = tracker_of(1 << 20, 64);
    const std::array<std::uint64_t, 1> words{1};
    ASSERT_TRUE(
        merge_kvm_bitmap(words, {.tracker = *coarse, .region_offset = 65536 + page, .slot_bytes = page}));
    ASSERT_TRUE(
        merge_kvm_bitmap(words, {.tracker = *fine, .region_offset = 65536 + page, .slot_bytes = page}));
    EXPECT_EQ(coarse->harvest()->runs(), (std::vector{DirtyRun{65536, 65536}}));
    EXPECT_EQ(fine->harvest()->runs(), (std::vector{DirtyRun{65536 + page, page}}));
    // A host with pages of 64 KiB.
    ASSERT_TRUE(merge_kvm_bitmap(
        words, {.tracker = *fine, .region_offset = 0, .slot_bytes = 65536, .page_bytes = 65536}));
    EXPECT_EQ(fine->harvest()->runs(), (std::vector{DirtyRun{0, 65536}}));
}

TEST(MergeKvmBitmap, OfASlotThatDoesNotFitMarksNothing) {
    const auto tracker = tracker_of(10 * page);
    const std::vector<std::uint64_t> words(64, ~std::uint64_t{0});
    for (const KvmSlotPlace& place : {
             KvmSlotPlace{.tracker = *tracker, .region_offset = 0, .slot_bytes = 11 * page},
             KvmSlotPlace{.tracker = *tracker, .region_offset = page, .slot_bytes = 10 * page},
             KvmSlotPlace{.tracker = *tracker, .region_offset = 10 * page + 1, .slot_bytes = 0},
             KvmSlotPlace{.tracker = *tracker, .region_offset = whole_space, .slot_bytes = page},
             KvmSlotPlace{
                 .tracker = *tracker, .region_offset = whole_space - page + 1, .slot_bytes = 2 * page},
             KvmSlotPlace{.tracker = *tracker, .region_offset = 0, .slot_bytes = whole_space - page + 1},
             KvmSlotPlace{.tracker = *tracker, .region_offset = 0, .slot_bytes = page + 1},
             KvmSlotPlace{.tracker = *tracker, .region_offset = 0, .slot_bytes = page, .page_bytes = 0},
             KvmSlotPlace{.tracker = *tracker, .region_offset = 0, .slot_bytes = page, .page_bytes = 100},
         }) {
        const auto merged = merge_kvm_bitmap(words, place);
        ASSERT_FALSE(merged) << place.region_offset << " " << place.slot_bytes;
        EXPECT_EQ(merged.error().code(), Errc::out_of_range);
    }
    EXPECT_TRUE(marked_pages(*tracker).empty());
    EXPECT_TRUE(merge_kvm_bitmap(words, {.tracker = *tracker, .region_offset = 10 * page, .slot_bytes = 0}));
    EXPECT_TRUE(
        merge_kvm_bitmap(words, {.tracker = *tracker, .region_offset = 9 * page, .slot_bytes = page}));
    EXPECT_EQ(marked_pages(*tracker), (Pages{9}));
}

TEST(MergeKvmBitmap, ThatIsTooShortForItsSlotMarksNothing) {
    const auto tracker = tracker_of(200 * page);
    const std::array<std::uint64_t, 1> words{~std::uint64_t{0}};
    const auto merged = merge_kvm_bitmap(words, {.tracker = *tracker, .slot_bytes = 65 * page});
    ASSERT_FALSE(merged);
    EXPECT_EQ(merged.error().code(), Errc::invalid_argument);
    EXPECT_TRUE(marked_pages(*tracker).empty());
}

TEST(MergeKvmBitmap, GoesIntoTheLogOfThatMoment) {
    const auto tracker = tracker_of(10 * page);
    const KvmSlotPlace place{.tracker = *tracker, .slot_bytes = 10 * page};
    const std::array<std::uint64_t, 1> words{0b10};
    ASSERT_TRUE(merge_kvm_bitmap(words, place));
    ASSERT_TRUE(tracker->stop());

    const auto merged = merge_kvm_bitmap(words, place);
    ASSERT_FALSE(merged);
    EXPECT_EQ(merged.error().code(), Errc::invalid_argument);
    EXPECT_EQ(merged.error().message(),
              "dirty bitmap of a memory slot: tracking of its region is off; start it");

    for (const std::uint64_t page_bytes : {std::uint64_t{64}, page}) {
        ASSERT_TRUE(tracker->start(page_bytes));
        ASSERT_TRUE(merge_kvm_bitmap(words, place));
        EXPECT_EQ(tracker->harvest()->runs(), (std::vector{DirtyRun{page, page}})) << page_bytes;
        ASSERT_TRUE(tracker->stop());
    }
}

TEST(MergeKvmBitmap, MarksWhatANaiveLoopMarks) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 300; ++turn) {
        const std::uint64_t count_pages = 1 + random() % 300;
        const std::uint64_t first = random() % 100;
        std::vector<std::uint64_t> words((count_pages + 63) / 64);
        for (std::uint64_t& word : words)
            word = random() % 3 == 0 ? 0 : ~(std::uint64_t{1} << (random() % 64));
        const auto tracker = tracker_of((first + count_pages + random() % 3) * page);
        Pages expected;
        for (std::uint64_t i = 0; i < count_pages; ++i)
            if ((words[i / 64] >> (i % 64) & 1) != 0) expected.push_back(first + i);
        ASSERT_TRUE(merge_kvm_bitmap(
            words, {.tracker = *tracker, .region_offset = first * page, .slot_bytes = count_pages * page}));
        ASSERT_EQ(marked_pages(*tracker), expected) << "turn " << turn;
    }
}

// ---- the ring ----

/// The kernel's side of a ring.
class Kernel {
public:
    explicit Kernel(std::size_t count_entries) : entries_(count_entries) {}
    std::span<KvmDirtyGfn> entries() { return entries_; }

    [[nodiscard]] bool is_full() const { return dirty_ - reset_ == entries_.size(); }
    void push(std::uint32_t slot, std::uint64_t page_number) {
        KvmDirtyGfn& entry = entries_[dirty_++ % entries_.size()];
        EXPECT_EQ(entry.flags, 0U);
        std::atomic_ref{entry.slot}.store(slot, std::memory_order_relaxed);
        std::atomic_ref{entry.offset}.store(page_number, std::memory_order_relaxed);
        std::atomic_ref{entry.flags}.store(KVM_DIRTY_GFN_F_DIRTY, std::memory_order_release);
    }
    /// KVM_RESET_DIRTY_RINGS: takes back what was harvested, in order.
    std::uint64_t reset() {
        std::uint64_t count = 0;
        for (; reset_ != dirty_; ++reset_, ++count) {
            const std::atomic_ref flags{entries_[reset_ % entries_.size()].flags};
            if ((flags.load(std::memory_order_acquire) & KVM_DIRTY_GFN_F_RESET) == 0) break;
            flags.store(0, std::memory_order_release);
        }
        return count;
    }

private:
    std::vector<KvmDirtyGfn> entries_;
    std::uint64_t dirty_ = 0;
    std::uint64_t reset_ = 0;
};

TEST(KvmDirtyRing, HasAPowerOfTwoOfEntriesUpToTheKernelsLimit) {
    std::vector<KvmDirtyGfn> entries(std::size_t{max_kvm_dirty_ring_entries} * 2);
    const std::span all{entries};
    for (const std::size_t good : {1U, 2U, 4096U, max_kvm_dirty_ring_entries})
        EXPECT_TRUE(KvmDirtyRing::create(all.first(good))) << good;
    for (const std::size_t bad : {0U, 3U, 4095U, max_kvm_dirty_ring_entries - 1,
                                  max_kvm_dirty_ring_entries + 1, max_kvm_dirty_ring_entries * 2}) {
        const auto ring = KvmDirtyRing::create(all.first(bad));
        ASSERT_FALSE(ring) << bad;
        EXPECT_EQ(ring.error().code(), Errc::invalid_argument);
    }
}

TEST(KvmDirtyRing, MarksThePagesOfItsEntriesAndHandsThemBack) {
    Kernel kernel{8};
    const auto ram = tracker_of(100 * page);
    const auto smm = tracker_of(20 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries()).value();
    const auto find = [&](std::uint32_t slot) -> std::optional<KvmSlotPlace> {
        if (slot == kvm_slot(0, 3))
            return KvmSlotPlace{.tracker = *ram, .region_offset = 50 * page, .slot_bytes = 50 * page};
        if (slot == kvm_slot(1, 3)) return KvmSlotPlace{.tracker = *smm, .slot_bytes = 20 * page};
        return std::nullopt;
    };

    EXPECT_EQ(ring.harvest(find).count_marked, 0U);
    kernel.push(kvm_slot(0, 3), 0);
    kernel.push(kvm_slot(1, 3), 19);
    kernel.push(kvm_slot(0, 3), 49);
    EXPECT_EQ(kernel.reset(), 0U);
    const KvmRingHarvest taken = ring.harvest(find);

    EXPECT_EQ(taken.count_marked, 3U);
    EXPECT_TRUE(taken.strays.empty());
    EXPECT_EQ(marked_pages(*ram), (Pages{50, 99}));
    EXPECT_EQ(marked_pages(*smm), (Pages{19}));
    EXPECT_EQ(ring.next(), 3U);
    EXPECT_EQ(ring.harvest(find).count_marked, 0U) << "an entry was taken twice";
    EXPECT_EQ(kernel.reset(), 3U);
}

TEST(KvmDirtyRing, GoesRoundAndStaysInOrder) {
    Kernel kernel{4};
    const auto tracker = tracker_of(64 * page);
    // Near the end of the 32 bits of the index.
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries(), std::uint32_t{0} - 8).value();
    const auto find = [&](std::uint32_t) -> std::optional<KvmSlotPlace> {
        return KvmSlotPlace{.tracker = *tracker, .slot_bytes = 64 * page};
    };
    for (std::uint64_t i = 0; i < 64; ++i) {
        kernel.push(0, i);
        if (i % 3 != 2) continue;
        EXPECT_EQ(ring.harvest(find).count_marked, 3U);
        EXPECT_EQ(kernel.reset(), 3U);
    }
    EXPECT_EQ(ring.harvest(find).count_marked, 1U);
    EXPECT_EQ(tracker->harvest()->count_dirty(), 64U);
    EXPECT_EQ(ring.next(), 56U);
}

TEST(KvmDirtyRing, TakesAFullRingOnceAndStops) {
    Kernel kernel{4};
    const auto tracker = tracker_of(64 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries()).value();
    const auto find = [&](std::uint32_t) -> std::optional<KvmSlotPlace> {
        return KvmSlotPlace{.tracker = *tracker, .slot_bytes = 64 * page};
    };
    while (!kernel.is_full()) kernel.push(0, 7);
    EXPECT_EQ(ring.harvest(find).count_marked, 4U);
    EXPECT_EQ(ring.harvest(find).count_marked, 0U);
    EXPECT_EQ(kernel.reset(), 4U);

    // Entries that look dirty for ever: memory that nobody resets, or a hostile kernel.
    std::uint64_t count_finds = 0;
    const auto undo = [&](std::uint32_t slot) -> std::optional<KvmSlotPlace> {
        ++count_finds;
        for (KvmDirtyGfn& entry : kernel.entries()) entry.flags = KVM_DIRTY_GFN_F_DIRTY;
        return find(slot);
    };
    for (KvmDirtyGfn& entry : kernel.entries()) entry.flags = KVM_DIRTY_GFN_F_DIRTY;
    EXPECT_EQ(ring.harvest(undo).count_marked, 4U);
    EXPECT_EQ(count_finds, 4U);
}

TEST(KvmDirtyRing, HandsOutWhatBelongsToNoPageAndMarksNothingForIt) {
    Kernel kernel{8};
    const auto tracker = tracker_of(10 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries()).value();
    const auto find = [&](std::uint32_t slot) -> std::optional<KvmSlotPlace> {
        if (slot == 0)
            return KvmSlotPlace{.tracker = *tracker, .region_offset = 4 * page, .slot_bytes = 4 * page};
        if (slot == 1)
            return KvmSlotPlace{.tracker = *tracker, .region_offset = 8 * page, .slot_bytes = 4 * page};
        return std::nullopt;
    };
    kernel.push(9, 1);
    kernel.push(0, 4);
    kernel.push(0, whole_space);
    kernel.push(0, (whole_space >> 12) + 1);
    kernel.push(1, 0);
    kernel.push(0, 3);
    const KvmRingHarvest taken = ring.harvest(find);

    EXPECT_EQ(taken.strays, (std::vector{
                                KvmStray{9, 1, KvmStrayReason::unknown_slot},
                                KvmStray{0, 4, KvmStrayReason::outside_of_slot},
                                KvmStray{0, whole_space, KvmStrayReason::outside_of_slot},
                                KvmStray{0, (whole_space >> 12) + 1, KvmStrayReason::outside_of_slot},
                                KvmStray{1, 0, KvmStrayReason::outside_of_slot},
                            }));
    EXPECT_EQ(taken.count_marked, 1U);
    EXPECT_EQ(marked_pages(*tracker), (Pages{7}));
    EXPECT_EQ(kernel.reset(), 6U) << "the ring is stuck behind a stray";
}

TEST(KvmDirtyRing, MarksInTheLogOfThatMomentAndHandsOutWhatComesWhileTrackingIsOff) {
    Kernel kernel{8};
    const auto tracker = tracker_of(10 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries()).value();
    const KvmSlotPlace place{.tracker = *tracker, .slot_bytes = 10 * page};
    const auto find = [&](std::uint32_t) -> std::optional<KvmSlotPlace> { return place; };
    ASSERT_TRUE(tracker->stop());
    kernel.push(0, 7);

    const KvmRingHarvest off = ring.harvest(find);
    EXPECT_EQ(off.count_marked, 0U);
    EXPECT_EQ(off.strays, (std::vector{KvmStray{0, 7, KvmStrayReason::tracking_is_off}}));

    ASSERT_TRUE(tracker->start(64));
    kernel.push(0, 8);
    const KvmRingHarvest on = ring.harvest(find);
    EXPECT_EQ(on.count_marked, 1U);
    EXPECT_EQ(tracker->harvest()->runs(), (std::vector{DirtyRun{8 * page, page}}));
    EXPECT_EQ(kernel.reset(), 2U);
}

TEST(KvmDirtyRing, StopsAtAnEntryThatIsNotDirty) {
    std::array<KvmDirtyGfn, 4> entries{};
    const auto tracker = tracker_of(10 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(entries).value();
    const auto find = [&](std::uint32_t) -> std::optional<KvmSlotPlace> {
        return KvmSlotPlace{.tracker = *tracker, .slot_bytes = 10 * page};
    };
    // Not yet dirty; already ours; both at once; what no kernel of today sets.
    for (const std::uint32_t flags : {0U, 2U, 3U, 4U, 0xffff'fffeU}) {
        entries[0] = {.flags = flags, .slot = 0, .offset = 1};
        entries[1] = {.flags = 1, .slot = 0, .offset = 2};
        EXPECT_EQ(ring.harvest(find).count_marked, 0U) << flags;
        EXPECT_EQ(entries[0].flags, flags);
        EXPECT_EQ(entries[1].flags, 1U);
    }
    EXPECT_TRUE(marked_pages(*tracker).empty());
}

TEST(KvmDirtyRing, LosesNothingWhileTheKernelPushes) {
    constexpr std::uint64_t count_pushes = 100'000;
    constexpr std::uint64_t count_pages = 1'000;
    Kernel kernel{16};
    const auto tracker = tracker_of(count_pages * page);
    KvmDirtyRing ring = KvmDirtyRing::create(kernel.entries()).value();
    std::vector<std::uint64_t> counts(count_pages);
    std::atomic<std::uint64_t> count_taken{0};
    std::thread processor{[&] {
        for (std::uint64_t i = 0; i < count_pushes; ++i) {
            while (kernel.is_full()) {
                if (kernel.reset() == 0) std::this_thread::yield();
            }
            kernel.push(0, i * 7 % count_pages);
        }
    }};
    const auto find = [&](std::uint32_t) -> std::optional<KvmSlotPlace> {
        return KvmSlotPlace{.tracker = *tracker, .slot_bytes = count_pages * page};
    };
    while (count_taken < count_pushes) {
        const KvmRingHarvest taken = ring.harvest(find);
        EXPECT_TRUE(taken.strays.empty());
        count_taken += taken.count_marked;
        if (taken.count_marked == 0) std::this_thread::yield();
    }
    processor.join();
    EXPECT_EQ(count_taken, count_pushes);
    EXPECT_EQ(tracker->harvest()->count_dirty(), count_pages);
}

// ---- a real KVM ----
#if defined(__x86_64__)

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    [[nodiscard]] int number() const { return number_; }

private:
    int number_;
};

class Bytes {
public:
    Bytes(std::size_t size, int flags, int fd, off_t offset)
        : base_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, offset)), size_(size) {}
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() {
        if (is_mapped()) ::munmap(base_, size_);
    }
    [[nodiscard]] bool is_mapped() const { return base_ != MAP_FAILED; }
    [[nodiscard]] std::uint8_t* data() const { return static_cast<std::uint8_t*>(base_); }

private:
    void* base_;
    std::size_t size_;
};

/// A guest of 100 pages in real mode that writes one byte into each page of a list and halts.
class TinyGuest {
public:
    static constexpr std::uint64_t count_pages = 100;
    static constexpr std::uint64_t code_address = 0x1000;
    static constexpr std::uint32_t count_ring_entries = 1024;
    static constexpr std::uint16_t slot = 5;

    enum class Log : std::uint8_t { bitmap, ring };

    /// Empty when it works, else why not.
    std::string start(Log log) {
        if (kvm_.number() < 0) return std::string{"/dev/kvm: "} + std::strerror(errno);
        vm_ = std::make_unique<Descriptor>(::ioctl(kvm_.number(), KVM_CREATE_VM, 0));
        if (vm_->number() < 0) return std::string{"KVM_CREATE_VM: "} + std::strerror(errno);
        if (log == Log::ring) {
            kvm_enable_cap cap{};
            cap.cap = KVM_CAP_DIRTY_LOG_RING;
            cap.args[0] = count_ring_entries * sizeof(kvm_dirty_gfn);
            if (::ioctl(vm_->number(), KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING) <= 0)
                return "this KVM has no dirty ring";
            if (::ioctl(vm_->number(), KVM_ENABLE_CAP, &cap) < 0)
                return std::string{"KVM_CAP_DIRTY_LOG_RING: "} + std::strerror(errno);
        }
        memory_ = std::make_unique<Bytes>(count_pages * page, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        kvm_userspace_memory_region region{};
        region.slot = slot;
        region.flags = KVM_MEM_LOG_DIRTY_PAGES;
        region.memory_size = count_pages * page;
        region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_->data());
        if (::ioctl(vm_->number(), KVM_SET_USER_MEMORY_REGION, &region) < 0)
            return std::string{"KVM_SET_USER_MEMORY_REGION: "} + std::strerror(errno);
        return start_processor(log);
    }

    /// Runs the guest until it halts; empty when it did.
    std::string write(const Pages& pages) {
        std::uint8_t* code = memory_->data() + code_address;
        for (const std::uint64_t number : pages) {
            // mov $segment, %ax; mov %ax, %es; mov %al, %es:0x10
            const auto high = static_cast<std::uint8_t>(number);
            for (const std::uint8_t byte :
                 std::to_array<std::uint8_t>({0xb8, 0x00, high, 0x8e, 0xc0, 0x26, 0xa2, 0x10, 0x00}))
                *code++ = byte;
        }
        *code = 0xf4;  // hlt
        kvm_sregs sregs{};
        if (::ioctl(vcpu_->number(), KVM_GET_SREGS, &sregs) < 0) return "KVM_GET_SREGS";
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        if (::ioctl(vcpu_->number(), KVM_SET_SREGS, &sregs) < 0) return "KVM_SET_SREGS";
        kvm_regs regs{};
        regs.rip = code_address;
        regs.rflags = 2;
        if (::ioctl(vcpu_->number(), KVM_SET_REGS, &regs) < 0) return "KVM_SET_REGS";
        if (::ioctl(vcpu_->number(), KVM_RUN, 0) < 0) return std::string{"KVM_RUN: "} + std::strerror(errno);
        const std::uint32_t reason = reinterpret_cast<const kvm_run*>(run_->data())->exit_reason;
        return reason == KVM_EXIT_HLT ? "" : "exit reason " + std::to_string(reason);
    }

    std::vector<std::uint64_t> dirty_bitmap() {
        std::vector<std::uint64_t> words((count_pages + 63) / 64, 0);
        kvm_dirty_log log{};
        log.slot = slot;
        log.dirty_bitmap = words.data();
        EXPECT_EQ(::ioctl(vm_->number(), KVM_GET_DIRTY_LOG, &log), 0);
        return words;
    }
    std::span<KvmDirtyGfn> ring() {
        return {reinterpret_cast<KvmDirtyGfn*>(ring_->data()), count_ring_entries};
    }
    int reset_rings() { return ::ioctl(vm_->number(), KVM_RESET_DIRTY_RINGS, 0); }

private:
    std::string start_processor(Log log) {
        vcpu_ = std::make_unique<Descriptor>(::ioctl(vm_->number(), KVM_CREATE_VCPU, 0));
        if (vcpu_->number() < 0) return std::string{"KVM_CREATE_VCPU: "} + std::strerror(errno);
        const int run_bytes = ::ioctl(kvm_.number(), KVM_GET_VCPU_MMAP_SIZE, 0);
        run_ = std::make_unique<Bytes>(static_cast<std::size_t>(run_bytes), MAP_SHARED, vcpu_->number(), 0);
        if (!run_->is_mapped()) return std::string{"the processor's page: "} + std::strerror(errno);
        if (log == Log::bitmap) return "";
        ring_ =
            std::make_unique<Bytes>(count_ring_entries * sizeof(kvm_dirty_gfn), MAP_SHARED, vcpu_->number(),
                                    KVM_DIRTY_LOG_PAGE_OFFSET * static_cast<off_t>(page));
        return ring_->is_mapped() ? "" : std::string{"the ring's pages: "} + std::strerror(errno);
    }

    Descriptor kvm_{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    std::unique_ptr<Descriptor> vm_;
    std::unique_ptr<Descriptor> vcpu_;
    std::unique_ptr<Bytes> memory_;
    std::unique_ptr<Bytes> run_;
    std::unique_ptr<Bytes> ring_;
};

Pages some_pages(std::mt19937_64& random) {
    Pages pages;
    for (std::uint64_t i = 0; i < TinyGuest::count_pages; ++i)
        if (i != TinyGuest::code_address / page && random() % 3 == 0) pages.push_back(i);
    return pages;
}

TEST(KvmDirtyOnKvm, TheBitmapHasExactlyThePagesThatTheGuestWrote) {
    TinyGuest guest;
    if (const std::string why = guest.start(TinyGuest::Log::bitmap); !why.empty())
        GTEST_SKIP() << "SKIPPED: " << why;
    const auto tracker = tracker_of(200 * page);
    const KvmSlotPlace place{.tracker = *tracker, .region_offset = 70 * page, .slot_bytes = 100 * page};
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 5; ++turn) {
        Pages pages = turn == 0 ? Pages{0, 2, 63, 64, 99} : some_pages(random);
        ASSERT_EQ(guest.write(pages), "");
        ASSERT_TRUE(merge_kvm_bitmap(guest.dirty_bitmap(), place));
        for (std::uint64_t& number : pages) number += 70;
        EXPECT_EQ(marked_pages(*tracker), pages) << "turn " << turn;
        ASSERT_TRUE(tracker->log()->clear());
    }
}

TEST(KvmDirtyOnKvm, TheRingHasExactlyThePagesThatTheGuestWroteAlsoWhenItGoesRound) {
    TinyGuest guest;
    if (const std::string why = guest.start(TinyGuest::Log::ring); !why.empty())
        GTEST_SKIP() << "SKIPPED: " << why;
    const auto tracker = tracker_of(200 * page);
    KvmDirtyRing ring = KvmDirtyRing::create(guest.ring()).value();
    const auto find = [&](std::uint32_t slot) -> std::optional<KvmSlotPlace> {
        if (slot != kvm_slot(0, TinyGuest::slot)) return std::nullopt;
        return KvmSlotPlace{.tracker = *tracker, .region_offset = 70 * page, .slot_bytes = 100 * page};
    };
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    while (ring.next() < 2 * TinyGuest::count_ring_entries) {
        Pages pages = some_pages(random);
        ASSERT_EQ(guest.write(pages), "");
        const KvmRingHarvest taken = ring.harvest(find);
        EXPECT_TRUE(taken.strays.empty());
        ASSERT_GE(taken.count_marked, pages.size());
        ASSERT_EQ(guest.reset_rings(), static_cast<int>(taken.count_marked));
        for (std::uint64_t& number : pages) number += 70;
        ASSERT_EQ(marked_pages(*tracker), pages) << "after " << ring.next() << " entries";
        ASSERT_TRUE(tracker->log()->clear());
    }
}

#endif

}  // namespace
}  // namespace guestmem

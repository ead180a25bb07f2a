// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <random>
#include <span>
#include <thread>
#include <tuple>
#include <vector>

#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::GuestPages;
using testing::PageAccess;
using testing::TempFolder;

/// Bytes 1, 2, 3... that name their place.
std::vector<std::byte> pattern(std::size_t count, unsigned seed = 1) {
    std::vector<std::byte> bytes(count);
    for (std::size_t i = 0; i < count; ++i)
        bytes[i] = static_cast<std::byte>((i * 7 + i / 251 + seed) & 0xff);
    return bytes;
}

/// Sizes around each border of the ways to copy.
const std::vector<std::size_t> sizes{0,    1,    2,    3,    7,    8,    9,    15,   16,  17,  31,
                                     33,   63,   64,   65,   66,   127,  128,  129,  191, 192, 193,
                                     255,  256,  257,  383,  384,  511,  512,  513,  640, 777, 999,
                                     1023, 1024, 1025, 1151, 1500, 2047, 2048, 2049, 4000};

TEST(GuardedCopy, CopiesAllBytesAndNoMoreAtAnyAlignment) {
    const GuestPages guest{3};
    for (const std::size_t size : sizes)
        for (std::size_t guest_offset = 0; guest_offset < 17; ++guest_offset)
            for (const std::size_t own_offset : {0U, 1U, 3U, 8U}) {
                SCOPED_TRACE(::testing::Message()
                             << size << " bytes at " << guest_offset << ", " << own_offset);
                const auto bytes = pattern(size, static_cast<unsigned>(guest_offset));
                std::byte* const there = guest.data() + 64 + guest_offset;
                std::vector<std::byte> own(size + 128, std::byte{0xee});

                std::memset(guest.data(), 0xdd, size + 256);
                std::ranges::copy(bytes, own.begin() + 64 + static_cast<std::ptrdiff_t>(own_offset));
                ASSERT_EQ(copy_to_guest(there, own.data() + 64 + own_offset, size), size);
                ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), there));
                ASSERT_EQ(there[-1], std::byte{0xdd});
                ASSERT_EQ(there[size], std::byte{0xdd});

                std::ranges::fill(own, std::byte{0xee});
                ASSERT_EQ(copy_from_guest(own.data() + 64 + own_offset, there, size), size);
                ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), own.data() + 64 + own_offset));
                ASSERT_EQ(own[63 + own_offset], std::byte{0xee});
                ASSERT_EQ(own[64 + own_offset + size], std::byte{0xee});

                ASSERT_EQ(fill_guest(there, std::byte{0x42}, size), size);
                ASSERT_EQ(std::count(there, there + size, std::byte{0x42}),
                          static_cast<std::ptrdiff_t>(size));
                ASSERT_EQ(there[-1], std::byte{0xdd});
                ASSERT_EQ(there[size], std::byte{0xdd});
            }
}

TEST(GuardedCopy, CopiesOfMegabytesAreWhole) {
    constexpr std::size_t size = std::size_t{3} << 20;
    const GuestPages guest{size / 4096 + 1};
    const auto bytes = pattern(size);
    std::vector<std::byte> own(size);
    for (const std::size_t offset : {0U, 5U}) {
        ASSERT_EQ(copy_to_guest(guest.data() + offset, bytes.data(), size), size);
        ASSERT_EQ(copy_from_guest(own.data(), guest.data() + offset, size), size);
        EXPECT_EQ(own, bytes);
    }
    ASSERT_EQ(fill_guest(guest.data(), std::byte{9}, size), size);
    EXPECT_EQ(std::count(guest.data(), guest.data() + size, std::byte{9}), static_cast<std::ptrdiff_t>(size));
}

/// A file of four pages that is cut to `kept_pages` under its mapping.
class CutFile {
public:
    explicit CutFile(std::uint64_t kept_pages) {
        GM_CHECK(install_fault_guard() && prepare_thread_for_guest_memory());
        GM_CHECK(::ftruncate(file_.view().number(), static_cast<off_t>(kept_pages * page)) == 0);
        std::ranges::copy(pattern(kept_pages * page), mapping_.bytes().begin());
    }
    [[nodiscard]] std::byte* cut(std::uint64_t kept_pages) const {
        return mapping_.bytes().data() + kept_pages * page;
    }

    static constexpr std::uint64_t page = 4096;

private:
    TempFolder folder_;
    Fd file_ = open_file(folder_.write("ram", std::string(4 * page, 'x')), OpenMode::read_write).value();
    Mapping mapping_ = Mapping::create(file_, 4 * page, MapAccess::read_write).value();
};

TEST(GuardedCopy, OutOfAFileThatWasCutStopsAtTheCut) {
    const CutFile file{2};
    std::byte* const cut = file.cut(2);
    const auto bytes = pattern(2 * CutFile::page);
    std::vector<std::byte> own(3 * CutFile::page);
    for (const std::size_t size : sizes)
        for (std::size_t before = 0; before <= std::min<std::size_t>(size, 300);
             before += size > 300 && before > 70 ? 13 : 1) {
            SCOPED_TRACE(::testing::Message() << size << " bytes, " << before << " before the cut");
            std::ranges::fill(own, std::byte{0xee});
            ASSERT_EQ(copy_from_guest(own.data(), cut - before, size), before);
            ASSERT_TRUE(std::equal(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(before),
                                   bytes.end() - static_cast<std::ptrdiff_t>(before)));
            ASSERT_EQ(std::count(own.begin() + static_cast<std::ptrdiff_t>(before),
                                 own.begin() + static_cast<std::ptrdiff_t>(size), std::byte{0xee}),
                      static_cast<std::ptrdiff_t>(size - before));
        }
}

TEST(GuardedCopy, IntoAFileThatWasCutStopsAtTheCut) {
    const CutFile file{2};
    std::byte* const cut = file.cut(2);
    const auto bytes = pattern(3 * CutFile::page, 99);
    for (const std::size_t size : sizes)
        for (std::size_t before = 0; before <= std::min<std::size_t>(size, 300);
             before += size > 300 && before > 70 ? 13 : 1) {
            SCOPED_TRACE(::testing::Message() << size << " bytes, " << before << " before the cut");
            std::memset(cut - 512, 0, 512);
            ASSERT_EQ(copy_to_guest(cut - before, bytes.data(), size), before);
            ASSERT_TRUE(std::equal(cut - before, cut, bytes.begin()));
            ASSERT_EQ(cut[-static_cast<std::ptrdiff_t>(before) - 1], std::byte{0});
            ASSERT_EQ(fill_guest(cut - before, std::byte{7}, size), before);
            ASSERT_EQ(std::count(cut - before, cut, std::byte{7}), static_cast<std::ptrdiff_t>(before));
            ASSERT_EQ(cut[-static_cast<std::ptrdiff_t>(before) - 1], std::byte{0});
        }
}

TEST(GuardedCopy, NothingIsWrittenBehindAHole) {
    const std::size_t page = GuestPages::page_bytes();
    const GuestPages guest{4};
    const auto bytes = pattern(4 * page, 3);
    guest.protect(2, PageAccess::none);
    for (const std::size_t before : {std::size_t{0}, std::size_t{1}, std::size_t{100}, page, page + 333}) {
        std::memset(guest.page(3), 0, page);
        EXPECT_EQ(copy_to_guest(guest.page(2) - before, bytes.data(), before + 2 * page), before);
        EXPECT_EQ(fill_guest(guest.page(2) - before, std::byte{1}, before + 2 * page), before);
        EXPECT_EQ(std::count(guest.page(3), guest.page(3) + page, std::byte{0}),
                  static_cast<std::ptrdiff_t>(page));
    }
}

TEST(GuardedCopy, WritesToAReadOnlyPageStopThere) {
    const std::size_t page = GuestPages::page_bytes();
    const GuestPages guest{2};
    const auto bytes = pattern(2 * page, 3);
    guest.protect(1, PageAccess::read_only);
    EXPECT_EQ(copy_to_guest(guest.page(1) - 77, bytes.data(), 200), 77U);
    EXPECT_EQ(copy_within_guest(guest.page(1) - 77, guest.data(), 200), 77U);
    EXPECT_EQ(copy_within_guest(guest.data(), guest.page(1) - 77, 200), 200U);
}

/// What copy_within_guest promises, byte by byte.
struct Model {
    std::vector<std::byte> bytes;
    std::vector<PageAccess> pages;

    [[nodiscard]] bool can(std::size_t at, PageAccess access) const {
        return pages[at / GuestPages::page_bytes()] >= access;
    }
    std::size_t copy(std::size_t to, std::size_t from, std::size_t count) {
        const bool is_down = from < to && to < from + count;
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = is_down ? count - 1 - i : i;
            if (!can(from + at, PageAccess::read_only) || !can(to + at, PageAccess::read_write)) return i;
            bytes[to + at] = bytes[from + at];
        }
        return count;
    }
};

TEST(GuardedCopy, InsideTheGuestAgreesWithAModel) {
    const std::size_t page = GuestPages::page_bytes();
    constexpr std::size_t count_pages = 5;
    const std::uint32_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random{seed};
    const GuestPages guest{count_pages};
    const auto below = [&](std::size_t limit) {
        return std::uniform_int_distribution<std::size_t>{0, limit - 1}(random);
    };
    for (int round = 0; round < 1'000; ++round) {
        Model model{pattern(count_pages * page, static_cast<unsigned>(round)), {}};
        std::ranges::copy(model.bytes, guest.data());
        for (std::size_t i = 0; i < count_pages; ++i) {
            const std::size_t dice = below(6);
            model.pages.push_back(dice == 0   ? PageAccess::none
                                  : dice == 1 ? PageAccess::read_only
                                              : PageAccess::read_write);
            guest.protect(i, model.pages.back());
        }
        const std::size_t limit = std::array<std::size_t, 4>{16, 80, 1000, 2 * page}[below(4)];
        const std::size_t count = below(limit);
        const std::size_t to = below(count_pages * page - count);
        // Half of them near each other.
        const std::size_t near =
            std::min(count_pages * page - count - 1, to + below(2 * limit) - std::min(to, limit));
        const std::size_t from = below(2) == 0 ? near : below(count_pages * page - count);
        const std::size_t expected = model.copy(to, from, count);
        const std::size_t done = copy_within_guest(guest.data() + to, guest.data() + from, count);
        for (std::size_t i = 0; i < count_pages; ++i) guest.protect(i, PageAccess::read_write);
        ASSERT_EQ(done, expected) << to << " " << from << " " << count;
        ASSERT_TRUE(std::equal(model.bytes.begin(), model.bytes.end(), guest.data()))
            << to << " " << from << " " << count;
    }
}

#if defined(__x86_64__)

#if defined(__SANITIZE_THREAD__)
constexpr bool has_thread_sanitizer = true;
#elif defined(__has_feature)
constexpr bool has_thread_sanitizer = __has_feature(thread_sanitizer);
#else
constexpr bool has_thread_sanitizer = false;
#endif

struct Store {
    std::size_t offset = 0;
    std::size_t size = 0;
    friend bool operator==(const Store&, const Store&) = default;
    friend void PrintTo(const Store& store, std::ostream* out) { *out << store.size << "@" << store.offset; }
};

/// The stores of a piece of code into some bytes, in order: the code runs one instruction at a time (trap flag).
/// Each store has to change all bytes it writes.
class StoreWatch {
public:
    explicit StoreWatch(std::span<const std::byte> watched) {
        GM_CHECK(watched.size() <= seen_.size());
        watched_ = watched;
        std::ranges::copy(watched, seen_.begin());
        count_ = 0;
        struct sigaction action{};
        action.sa_handler = look;
        GM_CHECK(::sigaction(SIGTRAP, &action, &before_) == 0);
    }
    StoreWatch(const StoreWatch&) = delete;
    StoreWatch& operator=(const StoreWatch&) = delete;
    ~StoreWatch() { GM_CHECK(::sigaction(SIGTRAP, &before_, nullptr) == 0); }

    template <typename Code>
    std::vector<Store> run(Code&& code) const {
        __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() | trap_flag);
        code();
        __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~trap_flag);
        return {stores_.begin(), stores_.begin() + count_};
    }

private:
    static constexpr std::uint64_t trap_flag = 0x100;

    static void look(int) {
        std::size_t first = 0;
        std::size_t behind = watched_.size();
        while (first < behind && watched_[first] == seen_[first]) ++first;
        while (behind > first && watched_[behind - 1] == seen_[behind - 1]) --behind;
        if (first == behind || count_ == static_cast<std::ptrdiff_t>(stores_.size())) return;
        stores_[static_cast<std::size_t>(count_++)] = {first, behind - first};
        for (std::size_t i = first; i < behind; ++i) seen_[i] = watched_[i];
    }

    // A handler has no other way to know.
    // NOLINTBEGIN(readability-identifier-naming): private members
    static inline std::span<const std::byte> watched_;
    static inline std::array<std::byte, 128> seen_;
    static inline std::array<Store, 128> stores_;
    static inline std::ptrdiff_t count_ = 0;
    // NOLINTEND(readability-identifier-naming)
    struct sigaction before_{};
};

/// Each naturally aligned piece of 8, 4 or 2 bytes whole, the rest by bytes; offsets from `skipped` bytes before.
std::vector<Store> whole_pieces(std::size_t address, std::size_t count, std::size_t skipped) {
    std::vector<Store> pieces;
    for (std::size_t done = 0; done < count;) {
        std::size_t size = 8;
        while ((address + done) % size != 0 || size > count - done) size /= 2;
        pieces.push_back({skipped + done, size});
        done += size;
    }
    return pieces;
}

TEST(GuardedCopy, OfAtMost64BytesAccessesEachAlignedPieceOnceAndInOrder) {
    if (has_thread_sanitizer)
        GTEST_SKIP() << "ThreadSanitizer's runtime cannot be run one instruction at a time";
    const GuestPages guest{1};
    const auto bytes = pattern(128);
    std::array<std::byte, 128> own{};
    const auto other_than = [](std::byte byte) { return ~byte; };
    // Each instruction is a signal: sizes that differ in how they end, not all.
    for (std::size_t offset = 0; offset < 8; ++offset)
        for (const std::size_t count :
             {0U, 1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 9U, 11U, 14U, 16U, 23U, 32U, 47U, 63U, 64U}) {
            SCOPED_TRACE(::testing::Message() << count << " bytes at " << offset);
            std::byte* const there = guest.data() + 256 + offset;
            const std::span watched{guest.data() + 256, 128};
            const auto expected = whole_pieces(offset, count, offset);

            std::ranges::transform(bytes, there, other_than);
            ASSERT_EQ(
                StoreWatch{watched}.run([&] { std::ignore = copy_to_guest(there, bytes.data(), count); }),
                expected);
            std::memset(there, 0xff, count);
            ASSERT_EQ(StoreWatch{watched}.run([&] { std::ignore = fill_guest(there, std::byte{1}, count); }),
                      expected);
            std::ranges::transform(bytes, there, other_than);
            std::ranges::copy(bytes, guest.data() + 512);
            ASSERT_EQ(StoreWatch{watched}.run(
                          [&] { std::ignore = copy_within_guest(there, guest.data() + 512, count); }),
                      expected);

            // What is read is seen where it arrives: a piece at a time.
            std::ranges::copy(bytes, there);
            std::ranges::transform(bytes, own.begin(), other_than);
            ASSERT_EQ(StoreWatch{own}.run([&] { std::ignore = copy_from_guest(own.data(), there, count); }),
                      whole_pieces(offset, count, 0));
        }
}

#endif

/// A thread that writes all ones and all zeros in turns into each field of type T of 128 bytes.
template <typename T>
class Flipper {
public:
    explicit Flipper(std::byte* at)
        : thread_([this, at] {
              for (T value = 0; !stopping_.load(std::memory_order_relaxed); value = static_cast<T>(~value))
                  for (std::size_t i = 0; i < 128; i += sizeof(T)) GM_CHECK(try_store(at + i, value));
          }) {}
    Flipper(const Flipper&) = delete;
    Flipper& operator=(const Flipper&) = delete;
    ~Flipper() {
        stopping_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

/// Whether each aligned field that lies whole in the copy is all ones or all zeros.
template <typename T>
bool is_untorn(const std::byte* copy, const std::byte* guest, std::size_t count) {
    const std::size_t first = (sizeof(T) - reinterpret_cast<std::uintptr_t>(guest) % sizeof(T)) % sizeof(T);
    for (std::size_t i = first; i + sizeof(T) <= count; i += sizeof(T)) {
        T value{};
        std::memcpy(&value, copy + i, sizeof value);
        if (value != 0 && value != static_cast<T>(~T{0})) return false;
    }
    return true;
}

template <typename T>
void expect_untorn_reads() {
    const GuestPages guest{1};
    const Flipper<T> flipper{guest.data()};
    std::array<std::byte, max_untorn_copy_bytes> copy{};
    for (int turn = 0; turn < 40; ++turn)
        for (std::size_t offset = 0; offset < 16; ++offset)
            for (std::size_t count = 0; count <= max_untorn_copy_bytes; ++count) {
                ASSERT_EQ(copy_from_guest(copy.data(), guest.data() + offset, count), count);
                ASSERT_TRUE(is_untorn<T>(copy.data(), guest.data() + offset, count))
                    << offset << " " << count;
            }
}

TEST(GuardedCopy, OfAtMost64BytesReadsNoTornField) {
    expect_untorn_reads<std::uint16_t>();
    expect_untorn_reads<std::uint32_t>();
    expect_untorn_reads<std::uint64_t>();
}

template <typename T>
void expect_untorn_writes() {
    const GuestPages guest{1};
    std::atomic<bool> is_done{false};
    std::thread writer{[&] {
        std::array<std::byte, max_untorn_copy_bytes> ones{};
        ones.fill(std::byte{0xff});
        const std::array<std::byte, max_untorn_copy_bytes> zeros{};
        for (int turn = 0; turn < 40; ++turn)
            for (std::size_t offset = 0; offset < 16; ++offset)
                for (std::size_t count = 0; count <= max_untorn_copy_bytes; ++count) {
                    // Fields that are written in part would look torn: only whole ones are.
                    const std::size_t first = (offset + sizeof(T) - 1) / sizeof(T) * sizeof(T);
                    const std::size_t whole = count / sizeof(T) * sizeof(T);
                    GM_CHECK(copy_to_guest(guest.data() + first, ones.data(), whole) == whole);
                    GM_CHECK(copy_to_guest(guest.data() + first, zeros.data(), whole) == whole);
                    GM_CHECK(fill_guest(guest.data() + first, std::byte{0xff}, whole) == whole);
                    GM_CHECK(copy_within_guest(guest.data() + first, guest.data() + 512, whole) == whole);
                }
        is_done = true;
    }};
    while (!is_done) {
        for (std::size_t i = 0; i < 80; i += sizeof(T)) {
            T value{};
            EXPECT_TRUE(try_load(guest.data() + i, value));
            EXPECT_TRUE(value == 0 || value == static_cast<T>(~T{0})) << std::hex << +value;
        }
        if (::testing::Test::HasFailure()) break;
    }
    writer.join();
}

TEST(GuardedCopy, OfAtMost64BytesWritesNoTornField) {
    expect_untorn_writes<std::uint16_t>();
    expect_untorn_writes<std::uint32_t>();
    expect_untorn_writes<std::uint64_t>();
}

}  // namespace
}  // namespace guestmem

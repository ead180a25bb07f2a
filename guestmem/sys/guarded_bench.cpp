// SPDX-License-Identifier: Apache-2.0
/// What a guarded access costs beside a plain one, and a guarded copy beside memcpy.
///
/// load, store, fetch_add: 64-bit accesses at random aligned places of 1 MiB, as a device reads rings and
/// descriptors. copy_from, copy_to: one buffer of SIZE bytes, guest side MISALIGNED bytes past a page's start; up
/// to 4 KiB in turns over 16 pages. fault: an access to a page that is gone, caught.
/// The baseline is taken in turns with it in the same run: a volatile access, memcpy, memset, memmove. Counters:
/// ns and raw_ns are medians for one access or copy, of_raw their ratio, over_raw_ns their difference.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t guest_bytes = std::uint64_t{1} << 20;
constexpr std::size_t page = 4096;

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values.empty() ? 0 : values[values.size() / 2];
}

template <typename Work>
double seconds_of(Work&& work) {
    const auto start = Clock::now();
    work();
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Both in turns, `count` accesses each.
template <typename Raw, typename Guarded>
void compare(benchmark::State& state, std::size_t count, Raw&& raw, Guarded&& guarded) {
    std::vector<double> raw_seconds;
    std::vector<double> guarded_seconds;
    for ([[maybe_unused]] auto turn : state) {
        raw_seconds.push_back(seconds_of(raw));
        guarded_seconds.push_back(seconds_of(guarded));
        state.SetIterationTime(guarded_seconds.back());
    }
    const double each = 1e9 / static_cast<double>(count);
    const double raw_ns = median(std::move(raw_seconds)) * each;
    const double ns = median(std::move(guarded_seconds)) * each;
    state.counters["ns"] = ns;
    state.counters["raw_ns"] = raw_ns;
    state.counters["over_raw_ns"] = ns - raw_ns;
    state.counters["of_raw"] = ns / raw_ns;
}

/// Shared memory with all its pages there, as a guest's is.
class Guest {
public:
    Guest() { std::ranges::fill(mapping_.bytes(), std::byte{1}); }
    [[nodiscard]] std::byte* data() const { return mapping_.bytes().data(); }

    /// Random places for accesses of 8 bytes.
    [[nodiscard]] std::vector<std::byte*> places(std::size_t count) const {
        std::minstd_rand random{1};
        std::vector<std::byte*> places(count);
        for (std::byte*& place : places) place = data() + random() % (guest_bytes / 8) * 8;
        return places;
    }

private:
    Mapping mapping_ =
        Mapping::create_anonymous({.size_bytes = guest_bytes + page, .sharing = MapSharing::shared}).value();
};

constexpr std::size_t count_places = 4096;

volatile std::uint64_t& word(std::byte* at) { return *reinterpret_cast<volatile std::uint64_t*>(at); }

void load(benchmark::State& state) {
    const Guest guest;
    const auto places = guest.places(count_places);
    std::uint64_t sum = 0;
    compare(
        state, count_places,
        [&] {
            for (std::byte* place : places) sum += word(place);
            benchmark::DoNotOptimize(sum);
        },
        [&] {
            for (std::byte* place : places) {
                std::uint64_t value = 0;
                if (!try_load(place, value)) break;
                sum += value;
            }
            benchmark::DoNotOptimize(sum);
        });
}

void load_byte(benchmark::State& state) {
    const Guest guest;
    const auto places = guest.places(count_places);
    std::uint64_t sum = 0;
    compare(
        state, count_places,
        [&] {
            for (std::byte* place : places) sum += *reinterpret_cast<volatile std::uint8_t*>(place);
            benchmark::DoNotOptimize(sum);
        },
        [&] {
            for (std::byte* place : places) {
                std::uint8_t value = 0;
                if (!try_load(place, value)) break;
                sum += value;
            }
            benchmark::DoNotOptimize(sum);
        });
}

void store(benchmark::State& state) {
    const Guest guest;
    const auto places = guest.places(count_places);
    compare(
        state, count_places,
        [&] {
            for (std::byte* place : places) word(place) = 7;
        },
        [&] {
            for (std::byte* place : places)
                if (!try_store(place, std::uint64_t{7})) break;
        });
}

void store_seq_cst(benchmark::State& state) {
    const Guest guest;
    const auto places = guest.places(count_places);
    compare(
        state, count_places,
        [&] {
            for (std::byte* place : places)
                std::atomic_ref{*reinterpret_cast<std::uint64_t*>(place)}.store(7);
        },
        [&] {
            for (std::byte* place : places)
                if (!try_store(place, std::uint64_t{7}, std::memory_order_seq_cst)) break;
        });
}

void fetch_add(benchmark::State& state) {
    const Guest guest;
    const auto places = guest.places(count_places);
    std::uint64_t sum = 0;
    compare(
        state, count_places,
        [&] {
            for (std::byte* place : places)
                sum += std::atomic_ref{*reinterpret_cast<std::uint64_t*>(place)}.fetch_add(1);
            benchmark::DoNotOptimize(sum);
        },
        [&] {
            for (std::byte* place : places) {
                std::uint64_t previous = 0;
                if (!try_fetch_add(place, std::uint64_t{1}, previous)) break;
                sum += previous;
            }
            benchmark::DoNotOptimize(sum);
        });
}

/// A buffer of our own and a place in the guest for each copy of a pass.
class CopyPlaces {
public:
    explicit CopyPlaces(const benchmark::State& state)
        : size_(static_cast<std::size_t>(state.range(0))),
          misaligned_(static_cast<std::size_t>(state.range(1))),
          buffer_(guest_bytes + 2 * page) {}

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] std::size_t count() const {
        return std::max<std::size_t>(4, (std::size_t{256} << 10) / size_ / 4);
    }
    [[nodiscard]] std::byte* own(std::size_t turn) { return buffer_.data() + 64 + offset(turn) / 2; }
    [[nodiscard]] std::byte* guest(std::size_t turn) const {
        return guest_.data() + misaligned_ + offset(turn);
    }

private:
    [[nodiscard]] std::size_t offset(std::size_t turn) const { return size_ <= page ? turn % 16 * page : 0; }

    std::size_t size_;
    std::size_t misaligned_;
    std::vector<std::byte> buffer_;
    Guest guest_;
};

template <typename Raw, typename Guarded>
void compare_copies(benchmark::State& state, Raw&& raw, Guarded&& guarded) {
    CopyPlaces places{state};
    std::size_t sum = 0;
    compare(
        state, places.count(),
        [&] {
            for (std::size_t turn = 0; turn < places.count(); ++turn) raw(places, turn);
            benchmark::ClobberMemory();
        },
        [&] {
            for (std::size_t turn = 0; turn < places.count(); ++turn) sum += guarded(places, turn);
            benchmark::DoNotOptimize(sum);
        });
}

void copy_from(benchmark::State& state) {
    compare_copies(
        state, [](CopyPlaces& at, std::size_t turn) { std::memcpy(at.own(turn), at.guest(turn), at.size()); },
        [](CopyPlaces& at, std::size_t turn) {
            return copy_from_guest(at.own(turn), at.guest(turn), at.size());
        });
}

void copy_to(benchmark::State& state) {
    compare_copies(
        state, [](CopyPlaces& at, std::size_t turn) { std::memcpy(at.guest(turn), at.own(turn), at.size()); },
        [](CopyPlaces& at, std::size_t turn) {
            return copy_to_guest(at.guest(turn), at.own(turn), at.size());
        });
}

void fill(benchmark::State& state) {
    compare_copies(
        state, [](CopyPlaces& at, std::size_t turn) { std::memset(at.guest(turn), 3, at.size()); },
        [](CopyPlaces& at, std::size_t turn) { return fill_guest(at.guest(turn), std::byte{3}, at.size()); });
}

/// Up by 64 bytes within one page: the ranges overlap from 65 bytes on.
void copy_within(benchmark::State& state) {
    compare_copies(
        state,
        [](CopyPlaces& at, std::size_t turn) {
            std::memmove(at.guest(turn) + 64, at.guest(turn), at.size());
        },
        [](CopyPlaces& at, std::size_t turn) {
            return copy_within_guest(at.guest(turn) + 64, at.guest(turn), at.size());
        });
}

/// A page past the end of its file (SIGBUS).
void fault(benchmark::State& state) {
    GM_CHECK(install_fault_guard() && prepare_thread_for_guest_memory());
    const Fd file = create_sealed_memory({.name = "bench", .size_bytes = page}).value();
    const Mapping mapping = Mapping::create(file, {.size_bytes = 2 * page, .may_exceed_file = true}).value();
    std::uint64_t value = 0;
    std::uint64_t count_failed = 0;
    const std::uint64_t before = count_caught_faults();
    for ([[maybe_unused]] auto turn : state) count_failed += !try_load(mapping.bytes().data() + page, value);
    GM_CHECK(count_failed == count_caught_faults() - before);
}

}  // namespace

BENCHMARK(load)->UseManualTime();
BENCHMARK(load_byte)->UseManualTime();
BENCHMARK(store)->UseManualTime();
BENCHMARK(store_seq_cst)->UseManualTime();
BENCHMARK(fetch_add)->UseManualTime();
BENCHMARK(copy_from)
    ->ArgNames({"size", "misaligned"})
    ->ArgsProduct({{8, 16, 24, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536, 1 << 20}, {0}})
    ->ArgsProduct({{16, 64, 4096}, {4, 8}})
    ->UseManualTime();
BENCHMARK(copy_to)
    ->ArgNames({"size", "misaligned"})
    ->ArgsProduct({{8, 16, 24, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536, 1 << 20}, {0}})
    ->ArgsProduct({{16, 64, 4096}, {4, 8}})
    ->UseManualTime();
BENCHMARK(fill)->ArgNames({"size", "misaligned"})->ArgsProduct({{64, 4096, 1 << 20}, {0}})->UseManualTime();
BENCHMARK(copy_within)->ArgNames({"size", "misaligned"})->ArgsProduct({{64, 4000}, {0}})->UseManualTime();
BENCHMARK(fault)->Unit(benchmark::kMicrosecond);

}  // namespace guestmem

BENCHMARK_MAIN();

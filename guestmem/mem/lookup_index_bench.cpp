// SPDX-License-Identifier: Apache-2.0
/// What finding a region costs: a stateless read of 8 bytes (MapView), each at a random address of a random region.
///
/// jumps/LAYOUT/N stands for a device model that touches rings, tables and buffers in turn, each in another region.
/// adjacent: N regions in a row; sparse48: regions of random sizes at random exponents up to 2^48 (up to 6 of them:
/// the usual places of a machine); clusters: four dense groups at 0, 4 G, 1 T and 255 T. All regions together have
/// 4 MiB, and the addresses are chosen beforehand.
/// The baseline of the same run, taken in turns with it, reads the same bytes through pointers that were computed
/// beforehand. Counters: ns and raw_ns are the best pass per read, over_raw_ns their difference; dep_ns and
/// raw_dep_ns are the same when each address depends on the last value. index_KiB and the label say which index the
/// map has.
/// build/LAYOUT/N is a map of N regions over existing memory, from the first add() to the frozen map.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/layout.hpp"

namespace guestmem {
namespace {

using Clock = std::chrono::steady_clock;
using Regions = std::vector<std::shared_ptr<const Region>>;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t working_set_bytes = 4 << 20;
constexpr std::size_t count_reads = 65536;

enum class LayoutKind : std::uint8_t { adjacent, sparse48, clusters };

struct Place {
    std::uint64_t base;
    std::uint64_t size_bytes;
};

std::vector<Place> usual_places(std::size_t count, std::uint64_t share) {
    constexpr std::uint64_t gib = 1 << 30;
    const std::uint64_t bases[] = {0, 3 * gib, 4 * gib, 64 * gib, 1024 * gib, 255 * 1024 * gib};
    std::vector<Place> places;
    for (std::size_t i = 0; i < count; ++i) places.push_back({bases[i], i % 2 == 1 ? page : share});
    return places;
}

std::vector<Place> places_of(LayoutKind kind, std::size_t count) {
    const std::uint64_t share = std::max(page, working_set_bytes / count / page * page);
    std::vector<Place> places;
    if (kind == LayoutKind::adjacent) {
        for (std::size_t i = 0; i < count; ++i) places.push_back({i * share, share});
    } else if (kind == LayoutKind::clusters) {
        const std::uint64_t groups[] = {0, std::uint64_t{4} << 30, std::uint64_t{1} << 40,
                                        std::uint64_t{255} << 40};
        const std::size_t each = std::max<std::size_t>(1, count / 4);
        for (std::size_t i = 0; i < count; ++i)
            places.push_back({groups[i / each] + i % each * 3 * page, page * (1 + i % 3)});
    } else if (count <= 6) {
        return usual_places(count, share);
    } else {
        std::mt19937_64 random{7};
        while (places.size() < count) {
            const std::uint64_t top = std::uint64_t{1} << (16 + random() % 32);
            const Place place{(top | (random() & (top - 1))) & ~(page - 1),
                              page * (1 + 2 * (random() % (share / page)))};
            const auto is_apart = [&](const Place& other) {
                return place.base >= other.base + other.size_bytes ||
                       other.base >= place.base + place.size_bytes;
            };
            if (std::ranges::all_of(places, is_apart)) places.push_back(place);
        }
    }
    return places;
}

/// Regions over one block of memory, touched.
Regions make_regions(LayoutKind kind, std::size_t count) {
    const std::vector<Place> places = places_of(kind, count);
    std::uint64_t sum = 0;
    for (const Place& place : places) sum += place.size_bytes;
    const auto memory =
        HostMemory::create_anonymous({.size_bytes = sum, .sharing = MapSharing::shared}).value();
    std::ranges::fill(memory->bytes(), std::byte{0});
    Regions regions;
    std::uint64_t offset = 0;
    for (const Place& place : places) {
        regions.push_back(Region::create({.name = "ram",
                                          .base = GuestAddress{place.base},
                                          .size_bytes = place.size_bytes,
                                          .memory = memory,
                                          .memory_offset_bytes = offset})
                              .value());
        offset += place.size_bytes;
    }
    return regions;
}

std::shared_ptr<const MemoryMap> freeze(const Regions& regions) {
    Layout layout;
    for (const auto& region : regions) layout.add(region);
    return std::move(layout).freeze().value();
}

/// The best time of a pass, in ns per read.
template <typename Pass>
void keep_best(double& best_ns, Pass&& pass) {
    const auto start = Clock::now();
    pass();
    const std::chrono::duration<double, std::nano> took = Clock::now() - start;
    best_ns = std::min(best_ns, took.count() / static_cast<double>(count_reads));
}

void jumps(benchmark::State& state, LayoutKind kind, std::size_t count) {
    const Regions regions = make_regions(kind, count);
    const auto map = freeze(regions);
    std::vector<std::uint64_t> guest;
    std::vector<const std::byte*> host;
    std::mt19937_64 random{11};
    for (std::size_t i = 0; i < count_reads; ++i) {
        const Region& region = *regions[random() % regions.size()];
        const std::uint64_t offset = random() % (region.range().size_bytes() / 8) * 8;
        guest.push_back(region.range().base().value() + offset);
        host.push_back(region.host_base() + offset);
    }
    MapView view{*map};
    double ns = 1e9;
    double raw_ns = 1e9;
    double dep_ns = 1e9;
    double raw_dep_ns = 1e9;
    std::uint64_t sum = 0;
    for (auto pass : state) {
        keep_best(ns, [&] {
            for (const std::uint64_t address : guest) sum += *view.read<std::uint64_t>(GuestAddress{address});
        });
        keep_best(raw_ns, [&] {
            for (const std::byte* at : host) {
                std::uint64_t value = 0;
                std::memcpy(&value, at, sizeof value);
                sum += value;
            }
        });
        keep_best(dep_ns, [&] {
            std::uint64_t last = 0;
            for (const std::uint64_t address : guest)
                last = *view.read<std::uint64_t>(GuestAddress{address + last});
            sum += last;
        });
        keep_best(raw_dep_ns, [&] {
            std::uint64_t last = 0;
            for (const std::byte* at : host) std::memcpy(&last, at + last, sizeof last);
            sum += last;
        });
        benchmark::DoNotOptimize(sum);
    }
    state.counters["ns"] = ns;
    state.counters["raw_ns"] = raw_ns;
    state.counters["over_raw_ns"] = ns - raw_ns;
    state.counters["dep_ns"] = dep_ns;
    state.counters["raw_dep_ns"] = raw_dep_ns;
    state.counters["index_KiB"] = static_cast<double>(map->index().index_bytes()) / 1024;
    state.SetLabel(std::string{map->index().kind()});
}

void build(benchmark::State& state, LayoutKind kind, std::size_t count) {
    const Regions regions = make_regions(kind, count);
    double best_us = 1e9;
    for (auto pass : state) {
        const auto start = Clock::now();
        benchmark::DoNotOptimize(freeze(regions));
        const std::chrono::duration<double, std::micro> took = Clock::now() - start;
        best_us = std::min(best_us, took.count());
    }
    state.counters["best_us"] = best_us;
}

void add_all() {
    const std::pair<LayoutKind, std::string> kinds[] = {{LayoutKind::adjacent, "adjacent"},
                                                        {LayoutKind::sparse48, "sparse48"},
                                                        {LayoutKind::clusters, "clusters"}};
    for (const auto& [kind, name] : kinds) {
        for (const std::size_t count : {1U, 4U, 6U, 64U, 1024U}) {
            if (count == 6 && kind != LayoutKind::sparse48) continue;
            const std::string suffix = "/" + name + "/" + std::to_string(count);
            benchmark::RegisterBenchmark(
                ("jumps" + suffix).c_str(),
                [which = kind, count](benchmark::State& state) { jumps(state, which, count); })
                ->Unit(benchmark::kMillisecond)
                ->MinTime(0.2);
            benchmark::RegisterBenchmark(
                ("build" + suffix).c_str(),
                [which = kind, count](benchmark::State& state) { build(state, which, count); })
                ->Unit(benchmark::kMicrosecond)
                ->MinTime(0.1);
        }
    }
}

}  // namespace
}  // namespace guestmem

int main(int argc, char** argv) {
    guestmem::add_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}

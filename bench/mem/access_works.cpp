// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/mem/maps.hpp"
#include "bench/mem/works.hpp"
#include "guestmem/base/check.hpp"
#include "guestmem/mem/guest_memory.hpp"

namespace guestmem::bench {
namespace {

using Addresses = std::span<const GuestAddress>;

std::vector<GuestAddress> addresses_of(std::span<const Place> places) {
    std::vector<GuestAddress> addresses;
    for (const Place& place : places) addresses.emplace_back(place.guest);
    return addresses;
}

/// That the view leads each address to the byte that the raw pointer leads to; leaves the memory zeroed.
template <typename View>
void check(View& view, Addresses addresses, std::span<std::byte* const> hosts) {
    for (std::size_t i = 0; i < hosts.size(); ++i) {
        const std::uint64_t number = i;
        std::memcpy(hosts[i], &number, sizeof number);
        GM_CHECK(view.template read<std::uint64_t>(addresses[i]).value_or(0) == number);
        GM_CHECK(view.template write<std::uint64_t>(addresses[i], 0).has_value());
        std::uint64_t left = 1;
        std::memcpy(&left, hosts[i], sizeof left);
        GM_CHECK(left == 0);
    }
}

template <typename View>
[[gnu::noinline]] void read(View& view, Addresses addresses) {
    std::uint64_t sum = 0;
    std::uint64_t failures = 0;
    for (const GuestAddress address : addresses) {
        const AccessResult<std::uint64_t> value = view.template read<std::uint64_t>(address);
        if (value) [[likely]] {
            sum += *value;
        } else {
            ++failures;
        }
    }
    keep(sum);
    GM_CHECK(failures == 0);
}

template <typename View>
[[gnu::noinline]] void read_dependent(View& view, Addresses addresses) {
    std::uint64_t last = 0;
    std::uint64_t failures = 0;
    for (const GuestAddress address : addresses) {
        const AccessResult<std::uint64_t> value =
            view.template read<std::uint64_t>(GuestAddress{address.value() + last});
        if (value) [[likely]] {
            last = *value;
        } else {
            ++failures;
        }
    }
    keep(last);
    GM_CHECK(failures == 0);
}

template <typename View>
[[gnu::noinline]] void write(View& view, Addresses addresses) {
    std::uint64_t failures = 0;
    for (const GuestAddress address : addresses)
        failures += view.template write<std::uint64_t>(address, 0) ? 0U : 1U;
    keep(failures);
    GM_CHECK(failures == 0);
}

[[gnu::noinline]] void load_acquire(GuestMemory& memory, Addresses addresses) {
    std::uint64_t sum = 0;
    std::uint64_t failures = 0;
    for (const GuestAddress address : addresses) {
        const AccessResult<std::uint64_t> value =
            memory.load<std::uint64_t>(address, std::memory_order_acquire);
        if (value) [[likely]] {
            sum += *value;
        } else {
            ++failures;
        }
    }
    keep(sum);
    GM_CHECK(failures == 0);
}

[[gnu::noinline]] void store_release(GuestMemory& memory, Addresses addresses) {
    std::uint64_t failures = 0;
    for (const GuestAddress address : addresses)
        failures += memory.store<std::uint64_t>(address, 0, std::memory_order_release) ? 0U : 1U;
    keep(failures);
    GM_CHECK(failures == 0);
}

template <typename View>
void measure_plain(const Row& row, View& view, Addresses addresses, Budget budget) {
    const std::size_t count = addresses.size();
    row.print("read_u64", best_of(budget, count, [&] { read(view, addresses); }));
    row.print("read_u64", "dependent", best_of(budget, count, [&] { read_dependent(view, addresses); }));
    row.print("write_u64", best_of(budget, count, [&] { write(view, addresses); }));
}

/// The time of a write while another thread writes to the upper halves of the same pages.
double write_beside_another(const std::shared_ptr<const MemoryMap>& map, std::span<const Place> places,
                            Budget budget) {
    const std::vector<GuestAddress> own = addresses_of(lower_halves(places));
    const std::vector<GuestAddress> others = addresses_of(upper_halves(places));
    std::atomic<bool> is_running{false};
    std::atomic<bool> is_over{false};
    std::thread other{[&] {
        GuestMemory memory{map};
        while (!is_over.load(std::memory_order_relaxed)) {
            write(memory, others);
            is_running.store(true, std::memory_order_release);
        }
    }};
    while (!is_running.load(std::memory_order_acquire)) std::this_thread::yield();
    GuestMemory memory{map};
    const double ns = median_of(budget, own.size(), [&] { write(memory, own); });
    is_over.store(true, std::memory_order_relaxed);
    other.join();
    return ns;
}

}  // namespace

void measure_objects(LayoutKind layout, std::uint64_t regions, Budget budget) {
    const std::vector<RegionPlace> list = regions_of(layout, regions);
    const auto arena = std::make_shared<const Arena>(list);
    const auto map = map_over(list, arena);
    const auto tracked_map = tracked_map_over(list, arena);
    for (const Pattern pattern : {Pattern::runs, Pattern::jumps}) {
        if (pattern == Pattern::jumps && regions == 1) continue;
        const Row row{layout, pattern, regions};
        const std::vector<Place> places = places_in(list, {.pattern = pattern});
        const std::vector<GuestAddress> addresses = addresses_of(places);
        const std::vector<std::byte*> hosts = arena->hosts_of(places);
        row.print_digest("u64", digest_of(places));
        GuestMemory memory{map};
        MapView view{*map};
        check(memory, addresses, hosts);
        check(view, addresses, hosts);
        measure_raw_objects(row, hosts, budget);
        if (pattern == Pattern::jumps) {
            measure_plain(row, view, addresses, budget);
            continue;
        }
        measure_plain(row, memory, addresses, budget);
        GuestMemory tracked{tracked_map};
        const std::size_t count = addresses.size();
        row.print("write_tracked", best_of(budget, count, [&] { write(tracked, addresses); }));
        row.print("load_acquire", best_of(budget, count, [&] { load_acquire(memory, addresses); }));
        row.print("store_release", best_of(budget, count, [&] { store_release(memory, addresses); }));
    }
}

void measure_two_threads(std::uint64_t regions, Budget budget) {
    const Row row{LayoutKind::adjacent, Pattern::runs, regions};
    const std::vector<RegionPlace> list = regions_of(row.layout, regions);
    const auto arena = std::make_shared<const Arena>(list);
    const std::vector<Place> places = places_in(list, {.pattern = row.pattern});
    row.print_digest("two_threads", digest_of(lower_halves(places)));
    row.print("write_u64_two_threads", write_beside_another(map_over(list, arena), places, budget));
    row.print("write_tracked_two_threads",
              write_beside_another(tracked_map_over(list, arena), places, budget));
}

void measure_straddling(std::uint64_t regions, Budget budget) {
    const Row row{LayoutKind::adjacent, Pattern::jumps, regions};
    const std::vector<RegionPlace> list = regions_of(row.layout, regions);
    const auto arena = std::make_shared<const Arena>(list);
    const auto map = map_over(list, arena);
    MapView view{*map};
    const std::vector<Place> places = straddling_places_in(list, count_accesses);
    const std::vector<GuestAddress> addresses = addresses_of(places);
    row.print_digest("straddling", digest_of(places));
    check(view, addresses, arena->hosts_of(places));
    row.print("read_straddling", best_of(budget, addresses.size(), [&] { read(view, addresses); }));
    row.print("write_straddling", best_of(budget, addresses.size(), [&] { write(view, addresses); }));
}

void measure_copies(Budget budget) {
    struct Kind {
        std::string name;
        std::uint64_t regions;
        std::uint64_t size_bytes;
        std::size_t count;
        std::size_t skip_bytes;  // from a page border to our buffer
    };
    const Kind kinds[] = {{"4k", 1, page_bytes, 4096, 0},
                          {"4k", 64, page_bytes, 4096, 0},
                          {"4k_at_16", 1, page_bytes, 4096, 16},
                          {"1m", 1, 1024 * 1024, 16, 0}};
    for (const Kind& kind : kinds) {
        const Row row{LayoutKind::adjacent, Pattern::jumps, kind.regions};
        const std::vector<RegionPlace> list = regions_of(row.layout, row.regions);
        const auto arena = std::make_shared<const Arena>(list);
        const auto map = map_over(list, arena);
        const std::vector<Place> places = places_in(list, {.count = kind.count,
                                                           .pattern = row.pattern,
                                                           .size_bytes = kind.size_bytes,
                                                           .alignment = kind.size_bytes});
        const std::vector<GuestAddress> addresses = addresses_of(places);
        row.print_digest("copy_" + kind.name, digest_of(places));
        std::vector<std::byte> room(kind.size_bytes + 2 * page_bytes);
        void* begin = room.data();
        std::size_t left = room.size();
        GM_CHECK(std::align(page_bytes, kind.size_bytes, begin, left) != nullptr);
        const std::span buffer{static_cast<std::byte*>(begin) + kind.skip_bytes, kind.size_bytes};
        measure_raw_copies(row, kind.name, arena->hosts_of(places), buffer, budget);
        MapView view{*map};
        row.print("read_" + kind.name, best_of(budget, kind.count, [&] {
                      for (const GuestAddress address : addresses)
                          GM_CHECK(view.read_bytes(address, buffer).has_value());
                  }));
        row.print("write_" + kind.name, best_of(budget, kind.count, [&] {
                      for (const GuestAddress address : addresses)
                          GM_CHECK(view.write_bytes(address, buffer).has_value());
                  }));
    }
}

}  // namespace guestmem::bench

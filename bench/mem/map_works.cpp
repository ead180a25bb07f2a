// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#include "bench/mem/maps.hpp"
#include "bench/mem/works.hpp"
#include "guestmem/base/check.hpp"
#include "guestmem/mem/dirty_log.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/sys/guarded.hpp"

namespace guestmem::bench {
namespace {

constexpr std::uint64_t gib = 1024 * 1024 * 1024;
constexpr std::uint64_t order_seed = 5;

/// Fisher-Yates.
template <typename T>
void shuffle(std::vector<T>& values) {
    Random random{order_seed};
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random.below(i)]);
}

[[gnu::noinline]] void load_guarded(std::span<std::byte* const> hosts) {
    std::uint64_t sum = 0;
    std::uint64_t failures = 0;
    for (const std::byte* host : hosts) {
        std::uint64_t value = 0;
        if (try_load(host, value)) [[likely]] {
            sum += value;
        } else {
            ++failures;
        }
    }
    keep(sum);
    GM_CHECK(failures == 0);
}

[[gnu::noinline]] void store_guarded(std::span<std::byte* const> hosts) {
    std::uint64_t failures = 0;
    for (std::byte* host : hosts) failures += try_store(host, std::uint64_t{0}) ? 0U : 1U;
    keep(failures);
    GM_CHECK(failures == 0);
}

}  // namespace

/// The log of 1 GiB with pages of 4 KiB, empty before each mark.
void measure_dirty_log(Budget budget) {
    const auto log = DirtyLog::create({.size_bytes = gib}).value();
    print_plain(
        "mark_1g", 0,
        best_single_of(budget, [&] { GM_CHECK(log->clear().has_value()); }, [&] { log->mark(0, gib); }));
    GM_CHECK(log->is_marked(0) && log->is_marked(gib - 1));
    GM_CHECK(log->clear().has_value());
    const auto nothing = [] {};
    print_plain("harvest_clean_1g", 0, best_single_of(budget, nothing, [&] { return log->harvest(); }));
    DirtyPages pages;
    print_plain("harvest_clean_1g_into", 0,
                best_single_of(budget, nothing, [&] { GM_CHECK(log->harvest_into(pages).has_value()); }));
}

/// The current map, asked for on a hot path and used at once.
void measure_snapshot(Budget budget) {
    const std::vector<RegionPlace> list = regions_of(LayoutKind::adjacent, 4);
    const auto map = map_over(list, std::make_shared<const Arena>(list));
    LiveMap live{map};
    MapReader reader = live.make_reader("bench").value();
    print_plain("snapshot", 4, best_of(budget, count_accesses, [&] {
                    for (std::size_t i = 0; i < count_accesses; ++i)
                        keep(reader.memory().map().regions().size());
                }));
    print_plain("snapshot_pin", 4, best_of(budget, count_accesses, [&] {
                    for (std::size_t i = 0; i < count_accesses; ++i)
                        keep(reader.pin()->map().regions().size());
                }));
    const std::atomic<const MemoryMap*> pointer{map.get()};
    print_plain("raw_snapshot", 4, best_of(budget, count_accesses, [&] {
                    for (std::size_t i = 0; i < count_accesses; ++i)
                        keep(pointer.load(std::memory_order_relaxed)->regions().size());
                }));
}

/// A map of 1024 regions over memory that is there; the regions come in any order.
void measure_build(LayoutKind layout, Budget budget) {
    const Row row{layout, Pattern::runs, 1024};
    std::vector<RegionPlace> list = regions_of(layout, row.regions);
    const auto arena = std::make_shared<const Arena>(list);
    shuffle(list);
    row.print("build_map", best_single_of(budget, [] {}, [&] { return map_over(list, arena); }));
    const std::size_t index_bytes = map_over(list, arena)->index().index_bytes();
    fmt::print(
        R"({{"work": "index", "layout": "{}", "pattern": "none", "chain": "none", "regions": {}, "bytes": {}}})"
        "\n",
        to_string(layout), row.regions, index_bytes);
}

/// Guarded accesses, against raw ones at the same places.
void measure_guarded(LayoutKind layout, Budget budget) {
    const Row row{layout, Pattern::runs, 1};
    const std::vector<RegionPlace> list = regions_of(layout, row.regions);
    const Arena arena{list};
    const std::vector<std::byte*> hosts = arena.hosts_of(places_in(list, {}));
    row.print("guarded_read_u64", best_of(budget, hosts.size(), [&] { load_guarded(hosts); }));
    row.print("guarded_write_u64", best_of(budget, hosts.size(), [&] { store_guarded(hosts); }));
}

/// A read of a page that its file does not have, by a thread that has the fault guard.
void measure_fault(Budget budget) {
    const int fd = ::memfd_create("short", MFD_CLOEXEC);
    GM_CHECK(fd >= 0);
    void* const page = ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    GM_CHECK(page != MAP_FAILED);
    constexpr std::size_t count = 64;
    print_plain("caught_fault", 0, best_of(budget, count, [&] {
                    for (std::size_t i = 0; i < count; ++i) {
                        std::uint64_t value = 0;
                        GM_CHECK(!try_load(static_cast<const std::byte*>(page), value));
                    }
                }));
    ::munmap(page, page_bytes);
    ::close(fd);
}

}  // namespace guestmem::bench

// SPDX-License-Identifier: Apache-2.0
// Memory that is plugged and unplugged while a device works: readers follow the map, the writer waits for them.
#include "guestmem/mem/live_map.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/guest_slice.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/region.hpp"

namespace {

using namespace guestmem;
using namespace std::chrono_literals;

constexpr GuestAddress dimm_base{1ULL << 32};
constexpr std::uint64_t ring_base = 0x2000;

Result<std::shared_ptr<const Region>> make_region(const char* name, GuestAddress base) {
    const auto memory = GM_TRY(HostMemory::create_anonymous({.size_bytes = 1 << 20}));
    return Region::create({.name = name, .base = base, .memory = memory});
}

/// A device's queue: takes numbers from a ring until it reads the last one.
void serve_queue(MapReader reader, std::atomic<int>& count_served) {
    CachedSlice ring{GuestRange::create(GuestAddress{ring_base}, 4096).value()};
    for (std::uint16_t seen = 0; seen != 0xffff;) {
        {
            const MapPin memory = reader.pin();
            const AccessResult<GuestSlice*> slice = ring.slice(reader);
            GM_CHECK(slice.has_value());
            const auto head = (*slice)->load<std::uint16_t>((*slice)->at(2), std::memory_order_acquire);
            GM_CHECK(head.has_value());
            if (*head != seen) ++count_served;
            seen = *head;
        }
        // Here the queue holds no map: a pin ends with its scope. Who uses memory() parks before it sleeps.
        std::this_thread::sleep_for(1ms);
    }
}

Result<void> run() {
    Layout layout;
    layout.add(GM_TRY(make_region("ram", GuestAddress{0})));
    LiveMap live{GM_TRY(std::move(layout).freeze())};

    std::atomic<int> count_served{0};
    std::thread queue{serve_queue, GM_TRY(live.make_reader("net queue 0")), std::ref(count_served)};
    MapReader cpu = GM_TRY(live.make_reader("cpu 0"));

    const auto dimm = GM_TRY(make_region("dimm", dimm_base));
    const GuestRange dimm_range = dimm->range();
    GM_TRY(live.insert(dimm));
    GM_CHECK(cpu.memory().write<std::uint64_t>(dimm_base, 1).has_value());

    // The processor still holds the map with the dimm: the writer learns who at its deadline.
    const RetiredMap old = GM_TRY(live.remove(dimm_range));
    const Result<void> early = live.wait_until_unused(old, 10ms);
    GM_CHECK(!early);
    std::printf("%s\n", early.error().message().c_str());
    cpu.park();
    const Result<void> unused = live.wait_until_unused(old, 5s);
    if (unused) std::printf("the dimm is unused: it can be unmapped\n");
    GM_CHECK(!cpu.memory().read<std::uint64_t>(dimm_base));

    const auto sent = cpu.memory().store<std::uint16_t>(GuestAddress{ring_base + 2}, 0xffff);
    GM_CHECK(sent.has_value());
    queue.join();
    std::printf("the queue served %d request(s)\n", count_served.load());
    return unused;
}

}  // namespace

int main() {
    const Result<void> done = run();
    if (!done) std::fprintf(stderr, "live_map: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
}

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/live_map_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem::detail {

std::uint64_t next_generation() {
    static std::atomic<std::uint64_t> last{0};
    return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

LiveMapState::LiveMapState(std::shared_ptr<const MemoryMap> first)
    : has_membarrier(prepare_membarrier()), current(std::move(first)) {}

bool LiveMapState::settle() const {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return !has_membarrier || membarrier().has_value();
}

void Leaving::finish() {
    regions_.clear();
    if (maps_.empty()) return;
    maps_.clear();
    const std::scoped_lock lock{state_->mutex};
    std::erase_if(state_->in_flight, [&](const LiveMapState::InFlight& old) { return old.by == this; });
}

std::vector<std::string> LiveMapState::users_up_to(std::uint64_t retired_generation) const {
    std::vector<std::string> users;
    for (const ReaderSlot* slot : slots) {
        // Acquire pairs with the release of park(): its accesses are over.
        const std::uint64_t held = slot->held.load(std::memory_order_acquire);
        if (held != 0 && held <= retired_generation)
            users.push_back(fmt::format("reader '{}' (generation {})", slot->name, held));
    }
    return users;
}

bool LiveMapState::collect(Leaving& leaving) {
    if (retired.empty()) return true;
    if (!settle()) return false;
    // A slot that names an older generation without holding it is about to name the current one.
    std::vector<std::uint64_t> held;
    for (const ReaderSlot* slot : slots) held.push_back(slot->held.load(std::memory_order_acquire));
    std::ranges::sort(held);
    const auto is_held = [&](const Retired& old) { return std::ranges::binary_search(held, old.generation); };
    const auto gone = std::partition(retired.begin(), retired.end(), is_held);
    // What may fail for want of memory comes first: nothing has left until then.
    const auto count = static_cast<std::size_t>(retired.end() - gone);
    leaving.maps_.reserve(leaving.maps_.size() + count);
    in_flight.reserve(in_flight.size() + count);
    for (auto old = gone; old != retired.end(); ++old) {
        const auto [entry, is_new] = released.try_emplace(old->map, old->generation);
        if (!is_new) entry->second = std::min(entry->second, old->generation);
    }
    for (auto old = gone; old != retired.end(); ++old) {
        in_flight.push_back({&leaving, std::this_thread::get_id(), old->generation, old->map});
        leaving.maps_.push_back(std::move(old->map));
    }
    retired.erase(gone, retired.end());
    std::erase_if(unplugged, [](const auto& old) { return old.first.expired(); });
    std::erase_if(released, [](const auto& old) { return old.first.expired(); });
    return true;
}

void LiveMapState::add_unplugged(std::uint64_t old_generation, const MemoryMap& before,
                                 const MemoryMap& after) {
    // Both are in the order of their addresses.
    auto next = after.regions().begin();
    for (const auto& region : before.regions()) {
        while (next != after.regions().end() && (*next)->range().base() < region->range().base()) ++next;
        if (next != after.regions().end() && *next == region) continue;
        unplugged.try_emplace(region, old_generation);
    }
}

std::vector<std::string> LiveMapState::holders_up_to(std::uint64_t retired_generation, bool is_settled,
                                                     Leaving& leaving) const {
    std::vector<std::string> holders = users_up_to(retired_generation);
    const auto is_waited_for = [&](const Retired& old) { return old.generation <= retired_generation; };
    if (holders.empty() && std::ranges::any_of(retired, is_waited_for))
        holders.emplace_back(is_settled ? "a reader that is leaving"
                                        : "readers that cannot be asked: the kernel refuses membarrier");
    // A release may wait for others, and not for itself.
    for (const InFlight& old : in_flight)
        if (old.generation <= retired_generation && old.thread != std::this_thread::get_id())
            holders.push_back(
                fmt::format("a thread that is letting the map of generation {} go", old.generation));
    for (const auto& [old, old_generation] : released) {
        const bool is_current = !old.owner_before(current) && !current.owner_before(old);
        if (old_generation > retired_generation || old.expired() || is_current || is_in_flight(old)) continue;
        holders.push_back(
            fmt::format("{} owner(s) of the map of generation {} itself", old.use_count(), old_generation));
    }
    for (const auto& [old, old_generation] : unplugged) {
        const auto region = old_generation <= retired_generation ? old.lock() : nullptr;
        leaving.regions_.push_back(region);
        if (!region || current->find_region(region->range().base()) == region) continue;
        for (const std::string& why : region->holders())
            holders.push_back(fmt::format("pointer '{}' into region '{}'", why, region->name()));
    }
    return holders;
}

bool LiveMapState::is_in_flight(const std::weak_ptr<const MemoryMap>& map) const {
    return std::ranges::any_of(in_flight, [&](const InFlight& old) {
        return !old.map.owner_before(map) && !map.owner_before(old.map);
    });
}

std::vector<std::string> LiveMapState::collect_and_name(std::uint64_t retired_generation, Leaving& leaving) {
    std::unique_lock lock{mutex};
    const bool is_settled = collect(leaving);
    if (leaving.has_maps()) {
        // First they go: who still has them then is a holder.
        lock.unlock();
        leaving.finish();
        lock.lock();
    }
    return holders_up_to(retired_generation, is_settled, leaving);
}

std::uint64_t LiveMapState::publish(std::shared_ptr<const MemoryMap> map, Leaving& leaving) {
    GM_CHECK(map != nullptr);
    const std::scoped_lock lock{mutex};
    const std::uint64_t old = generation.load(std::memory_order_relaxed);
    // The same map again retires nothing.
    if (map == current) return old - 1;
    add_unplugged(old, *current, *map);
    retired.reserve(retired.size() + 1);
    retired.push_back({old, std::exchange(current, std::move(map))});
    // Release: a reader that sees the number finds the map complete.
    generation.store(next_generation(), std::memory_order_release);
    static_cast<void>(collect(leaving));
    return old;
}

}  // namespace guestmem::detail

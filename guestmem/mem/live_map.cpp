// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/live_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/live_map_state.hpp"

namespace guestmem {

MapReader::MapReader(std::shared_ptr<detail::LiveMapState> state, std::unique_ptr<detail::ReaderSlot> slot)
    : generation_(&state->generation),
      slot_held_(&slot->held),
      needs_fence_(!state->has_membarrier),
      slot_(std::move(slot)),
      state_(std::move(state)) {}

namespace {
/// What a reader that was moved away still writes to when a pin of it ends.
std::atomic<std::uint64_t> nobodys_slot{0};
}  // namespace

MapReader::MapReader(MapReader&& other) noexcept
    : generation_(other.generation_),
      slot_held_(std::exchange(other.slot_held_, &nobodys_slot)),
      held_(std::exchange(other.held_, 0)),
      seen_(std::exchange(other.seen_, 0)),
      needs_fence_(other.needs_fence_),
      memory_(std::move(other.memory_)),
      slot_(std::move(other.slot_)),
      state_(std::move(other.state_)) {}

MapReader& MapReader::operator=(MapReader&& other) noexcept {
    if (this == &other) return *this;
    MapReader old{std::move(*this)};
    generation_ = other.generation_;
    slot_held_ = std::exchange(other.slot_held_, &nobodys_slot);
    held_ = std::exchange(other.held_, 0);
    seen_ = std::exchange(other.seen_, 0);
    needs_fence_ = other.needs_fence_;
    memory_ = std::move(other.memory_);
    slot_ = std::move(other.slot_);
    state_ = std::move(other.state_);
    return *this;
}

MapReader::~MapReader() {
    if (!state_) return;
    const std::scoped_lock lock{state_->mutex};
    state_->slots.erase(slot_.get());
}

void MapReader::hold_current() {
    // Whoever replaces the map holds the mutex: the slot cannot name a map that is gone already.
    const std::scoped_lock lock{state_->mutex};
    const std::uint64_t now = state_->generation.load(std::memory_order_relaxed);
    slot_held_->store(now, std::memory_order_release);
    if (seen_ != now) memory_.follow(state_->current.get());
    held_ = now;
    seen_ = now;
}

LiveMap::LiveMap(std::shared_ptr<const MemoryMap> first) {
    GM_CHECK(first != nullptr);
    state_ = std::make_shared<detail::LiveMapState>(std::move(first));
}

Result<MapReader> LiveMap::make_reader(std::string name) {
    auto slot = std::make_unique<detail::ReaderSlot>(std::move(name));
    const std::scoped_lock lock{state_->mutex};
    if (state_->slots.size() >= max_map_readers)
        return Error{Errc::exhausted, fmt::format("reader '{}': a live map has at most {} readers",
                                                  slot->name, max_map_readers)};
    state_->slots.insert(slot.get());
    return MapReader{state_, std::move(slot)};
}

Result<MapSnapshot> LiveMap::snapshot(std::string name) {
    MapReader holder = GM_TRY(make_reader(std::move(name)));
    static_cast<void>(holder.memory());
    // The holder's map is current until the next publish, and held from here on.
    const std::scoped_lock lock{state_->mutex};
    auto map = state_->current;
    if (holder.seen_ != state_->generation.load(std::memory_order_relaxed)) {
        const auto old =
            std::ranges::find(state_->retired, holder.seen_, &detail::LiveMapState::Retired::generation);
        GM_CHECK(old != state_->retired.end());
        map = old->map;
    }
    return MapSnapshot{std::move(holder), std::move(map)};
}

std::shared_ptr<const MemoryMap> LiveMap::current() const {
    const std::scoped_lock lock{state_->mutex};
    return state_->current;
}

RetiredMap LiveMap::publish(std::shared_ptr<const MemoryMap> map) {
    detail::Leaving leaving{state_};  // before the locks: gone after them
    const std::scoped_lock updating{state_->update_mutex};
    return RetiredMap{state_->publish(std::move(map), leaving)};
}

Result<RetiredMap> LiveMap::update(const Change& change) {
    detail::Leaving leaving{state_};
    const std::scoped_lock updating{state_->update_mutex};
    return RetiredMap{state_->publish(GM_TRY(change(*current())), leaving)};
}

Result<RetiredMap> LiveMap::insert(std::shared_ptr<const Region> region) {
    return update([&](const MemoryMap& map) { return map.with(region); });
}

Result<RetiredMap> LiveMap::remove(const GuestRange& range) {
    return update([&](const MemoryMap& map) { return map.without(range); });
}

Result<RetiredMap> LiveMap::replace(const GuestRange& range, std::shared_ptr<const Region> region) {
    return update([&](const MemoryMap& map) { return map.with_replaced(range, region); });
}

Result<void> LiveMap::wait_until_unused(RetiredMap retired, std::chrono::milliseconds limit) const {
    limit = std::clamp(limit, std::chrono::milliseconds{0}, max_map_wait);
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::chrono::microseconds pause{10};
    for (;;) {
        detail::Leaving leaving{state_};
        const auto holders = state_->collect_and_name(retired.generation, leaving);
        if (holders.empty()) return {};
        const auto now = std::chrono::steady_clock::now();
        if (now >= deadline)
            return Error{Errc::timed_out,
                         fmt::format("memory map of generation {}: still in use after {} ms by {}",
                                     retired.generation, limit.count(), fmt::join(holders, ", "))};
        std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, deadline - now));
        pause = std::min<std::chrono::microseconds>(pause * 2, std::chrono::milliseconds{1});
    }
}

}  // namespace guestmem

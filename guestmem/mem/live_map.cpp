// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/live_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem {

namespace detail {

/// What one reader stores to; two cache lines of its own, since processors fetch lines in pairs.
struct alignas(128) ReaderSlot {
    explicit ReaderSlot(std::string reader_name) : name(std::move(reader_name)) {}
    /// The generation that its reader uses; 0 when it is parked.
    std::atomic<std::uint64_t> held{0};
    const std::string name;
};

struct LiveMapState {
    struct Retired {
        std::uint64_t generation;
        std::shared_ptr<const MemoryMap> map;
    };

    explicit LiveMapState(std::shared_ptr<const MemoryMap> first)
        : has_membarrier(prepare_membarrier()), current(std::move(first)) {}

    /// Makes all readers' stores visible; without membarrier they have fenced themselves.
    [[nodiscard]] bool settle() const { return !has_membarrier || membarrier().has_value(); }
    /// Readers that may use the map of this generation or an older one. After settle(), with the mutex held.
    [[nodiscard]] std::vector<std::string> users_up_to(std::uint64_t generation) const;
    /// Lets go of retired maps that nobody uses; false when the kernel did not say. With the mutex held.
    bool collect();
    /// Everybody who keeps the map of this generation, or an older one, from being gone. With the mutex held.
    [[nodiscard]] std::vector<std::string> holders_up_to(std::uint64_t retired_generation);
    /// Remembers the regions that `before` has and `after` has not. With the mutex held.
    void add_unplugged(std::uint64_t old_generation, const MemoryMap& before, const MemoryMap& after);

    // Read by every reader on its hot path, written with the mutex held.
    alignas(128) std::atomic<std::uint64_t> generation{1};
    alignas(128) const bool has_membarrier;
    std::mutex mutex;
    std::mutex update_mutex;  ///< held while an update is being made; taken before `mutex`
    std::shared_ptr<const MemoryMap> current;
    std::vector<Retired> retired;
    /// Maps that LiveMap let go of; somebody else may still own them.
    std::vector<std::pair<std::uint64_t, std::weak_ptr<const MemoryMap>>> released;
    /// Regions that left with a map; raw pointers may still hold them.
    std::vector<std::pair<std::uint64_t, std::weak_ptr<const Region>>> unplugged;
    std::set<ReaderSlot*> slots;
};

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

bool LiveMapState::collect() {
    std::erase_if(unplugged, [](const auto& old) { return old.second.expired(); });
    if (retired.empty()) return true;
    if (!settle()) return false;
    std::uint64_t oldest_held = generation.load(std::memory_order_relaxed);
    for (const ReaderSlot* slot : slots) {
        const std::uint64_t held = slot->held.load(std::memory_order_acquire);
        if (held != 0) oldest_held = std::min(oldest_held, held);
    }
    for (const Retired& old : retired)
        if (old.generation < oldest_held) released.emplace_back(old.generation, old.map);
    std::erase_if(retired, [&](const Retired& old) { return old.generation < oldest_held; });
    std::erase_if(released, [](const auto& old) { return old.second.expired(); });
    return true;
}

void LiveMapState::add_unplugged(std::uint64_t old_generation, const MemoryMap& before,
                                 const MemoryMap& after) {
    // Both are in the order of their addresses.
    auto next = after.regions().begin();
    for (const auto& region : before.regions()) {
        while (next != after.regions().end() && (*next)->range().base() < region->range().base()) ++next;
        if (next != after.regions().end() && *next == region) continue;
        // A region that comes and goes has one entry.
        std::erase_if(unplugged, [&](const auto& old) { return old.second.lock() == region; });
        unplugged.emplace_back(old_generation, region);
    }
}

std::vector<std::string> LiveMapState::holders_up_to(std::uint64_t retired_generation) {
    const bool is_settled = collect();
    std::vector<std::string> holders = users_up_to(retired_generation);
    const auto is_waited_for = [&](const Retired& old) { return old.generation <= retired_generation; };
    if (holders.empty() && std::ranges::any_of(retired, is_waited_for))
        holders.emplace_back(is_settled ? "a reader that is leaving"
                                        : "readers that cannot be asked: the kernel refuses membarrier");
    for (const auto& [old_generation, old] : released) {
        if (old_generation > retired_generation || old.expired()) continue;
        holders.push_back(
            fmt::format("{} owner(s) of the map of generation {} itself", old.use_count(), old_generation));
    }
    for (const auto& [old_generation, old] : unplugged) {
        const auto region = old_generation <= retired_generation ? old.lock() : nullptr;
        if (!region || current->find_region(region->range().base()) == region) continue;
        for (const std::string& why : region->holders())
            holders.push_back(fmt::format("pointer '{}' into region '{}'", why, region->name()));
    }
    return holders;
}

}  // namespace detail

MapReader::MapReader(std::shared_ptr<detail::LiveMapState> state, std::unique_ptr<detail::ReaderSlot> slot)
    : generation_(&state->generation),
      slot_held_(&slot->held),
      needs_fence_(!state->has_membarrier),
      slot_(std::move(slot)),
      state_(std::move(state)) {}

MapReader::MapReader(MapReader&&) noexcept = default;

MapReader& MapReader::operator=(MapReader&& other) noexcept {
    MapReader old{std::move(*this)};
    generation_ = other.generation_;
    slot_held_ = other.slot_held_;
    held_ = other.held_;
    seen_ = other.seen_;
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
    GM_CHECK(map != nullptr);
    const std::scoped_lock lock{state_->mutex};
    const std::uint64_t old = state_->generation.load(std::memory_order_relaxed);
    // The same map again retires nothing.
    if (map == state_->current) return RetiredMap{old - 1};
    state_->add_unplugged(old, *state_->current, *map);
    state_->retired.push_back({old, std::exchange(state_->current, std::move(map))});
    // Release: a reader that sees the number finds the map complete.
    state_->generation.store(old + 1, std::memory_order_release);
    static_cast<void>(state_->collect());
    return RetiredMap{old};
}

Result<RetiredMap> LiveMap::update(const Change& change) {
    const std::scoped_lock updating{state_->update_mutex};
    return publish(GM_TRY(change(*current())));
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
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::chrono::microseconds pause{10};
    for (;;) {
        std::vector<std::string> holders;
        {
            const std::scoped_lock lock{state_->mutex};
            holders = state_->holders_up_to(retired.generation);
        }
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

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/memory_map.hpp"

/// The current map of a running machine: published by whoever plugs memory, read by everybody else.
///
/// Concepts: a map never changes; memory is plugged by publishing another one. Each reader (a device's queue, a
/// processor) has a MapReader with a name. It follows the current map in one of two ways: memory() holds on to the map
/// until the next call or until park(), for threads that come by often; pin() holds it for a scope. Who replaces a map
/// waits until nobody uses the old one, or learns at the deadline who does.
/// Contract: what memory() or pin() gave stays valid until the same reader's next memory(), pin() or park(), or its
/// move, and no longer: a pin within a pin moves on to the current map, and the end of a pin that began on a parked
/// reader parks it. No reader is moved while it is pinned. Changes come one after another: a `change` that calls
/// publish() or update() waits for itself.
/// A reader parks before it sleeps: until then it holds up whoever waits. `wait_until_unused` also waits for
/// snapshots, for raw pointers (PointerGuard) into regions that the current map lacks, and for owners of the old map
/// itself.
/// Threads: LiveMap any. A MapReader is one thread's at a time.
/// Lifetime: readers, pins and snapshots may outlive the LiveMap. A map goes, with what only it had, in the call that
/// finds it unused, and no lock is held then: the owner of its memory may use the LiveMap, and whoever waits waits for
/// that, too. A map that no reader holds goes, also behind a reader that holds an older one.
/// Limits: max_map_readers readers and snapshots.
/// Cost: memory() of an unchanged map is a load and a comparison, 0.6 ns; pin() 1.7 ns: it stores to a place of its
/// own without a fence, and the writer makes all processors agree by membarrier(2). Where the kernel has none, pin()
/// fences, 5 ns.
/// Example (examples/live_map.cpp):
///     MapReader reader = GM_TRY(live.make_reader("net queue 0"));
///     const auto head = reader.memory().load<std::uint16_t>(ring);
///     ...
///     reader.park();
///     poll(...);

namespace guestmem {

inline constexpr std::size_t max_map_readers = 4096;
/// A longer limit of a wait counts as this.
inline constexpr std::chrono::milliseconds max_map_wait = std::chrono::hours{24};

namespace detail {
struct LiveMapState;
struct ReaderSlot;
}  // namespace detail

/// A map that was replaced; to wait for.
struct RetiredMap {
    std::uint64_t generation = 0;
};

class MapReader;

/// The current map, held for a scope.
class [[nodiscard]] MapPin {
public:
    MapPin(const MapPin&) = delete;
    MapPin& operator=(const MapPin&) = delete;
    inline ~MapPin();

    [[nodiscard]] GuestMemory& operator*() const { return memory_; }
    [[nodiscard]] GuestMemory* operator->() const { return &memory_; }

private:
    friend class MapReader;
    MapPin(MapReader& reader, GuestMemory& memory, bool was_parked)
        : reader_(reader), memory_(memory), was_parked_(was_parked) {}

    MapReader& reader_;
    GuestMemory& memory_;
    bool was_parked_;
};

class MapReader {
public:
    MapReader(MapReader&&) noexcept;
    MapReader& operator=(MapReader&&) noexcept;
    ~MapReader();

    /// The current map's memory, held until the next call or park().
    [[nodiscard, gnu::always_inline]] GuestMemory& memory() {
        if (generation_->load(std::memory_order_acquire) != held_) [[unlikely]]
            hold_current();
        return memory_;
    }

    /// The current map's memory, held while the pin lives.
    [[nodiscard, gnu::always_inline]] MapPin pin() {
        const bool was_parked = held_ == 0;
        const std::uint64_t now = generation_->load(std::memory_order_relaxed);
        // Release: what this reader did with the map that it held before is over.
        slot_held_->store(now, std::memory_order_release);
        // Pairs with the membarrier of whoever waits: it sees this store, or this sees its generation.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        if (needs_fence_) [[unlikely]]
            std::atomic_thread_fence(std::memory_order_seq_cst);
        if (generation_->load(std::memory_order_acquire) == now && seen_ == now) [[likely]] {
            held_ = now;
        } else {
            hold_current();
        }
        return MapPin{*this, memory_, was_parked};
    }

    /// Holds no map until the next memory() or pin().
    void park() {
        held_ = 0;
        slot_held_->store(0, std::memory_order_release);
    }

    /// Whether the map that this reader holds is the current one. Not when it is parked.
    [[nodiscard, gnu::always_inline]] bool is_current() const {
        return generation_->load(std::memory_order_acquire) == held_;
    }
    /// The number of the map that this reader holds; another map has another number, also in another LiveMap. 0: it
    /// is parked.
    [[nodiscard]] std::uint64_t held_generation() const { return held_; }
    /// That map. Before the first memory() or pin(), and after park(), there is none to ask for.
    [[nodiscard]] const MemoryMap& held_map() const {
        GM_CHECK(held_ != 0);
        return memory_.map();
    }

private:
    friend class LiveMap;
    friend class MapPin;
    MapReader(std::shared_ptr<detail::LiveMapState> state, std::unique_ptr<detail::ReaderSlot> slot);
    void hold_current();

    const std::atomic<std::uint64_t>* generation_;
    std::atomic<std::uint64_t>* slot_held_;
    std::uint64_t held_ = 0;  ///< what the slot says; 0: parked
    std::uint64_t seen_ = 0;  ///< the map that memory_ follows
    bool needs_fence_;
    GuestMemory memory_;
    std::unique_ptr<detail::ReaderSlot> slot_;
    std::shared_ptr<detail::LiveMapState> state_;
};

inline MapPin::~MapPin() {
    if (was_parked_) reader_.park();
}

/// A map to keep, by name: for a debugger, for whoever saves memory.
class MapSnapshot {
public:
    [[nodiscard]] const MemoryMap& operator*() const { return *map_; }
    [[nodiscard]] const MemoryMap* operator->() const { return map_.get(); }
    [[nodiscard]] const std::shared_ptr<const MemoryMap>& map() const { return map_; }

private:
    friend class LiveMap;
    MapSnapshot(MapReader holder, std::shared_ptr<const MemoryMap> map)
        : map_(std::move(map)), holder_(std::move(holder)) {}

    std::shared_ptr<const MemoryMap> map_;
    MapReader holder_;
};

class LiveMap {
public:
    explicit LiveMap(std::shared_ptr<const MemoryMap> first);

    [[nodiscard]] Result<MapReader> make_reader(std::string name);
    [[nodiscard]] Result<MapSnapshot> snapshot(std::string name);
    /// The current map for its writer's own use. A copy that is kept holds up whoever waits, without a name.
    [[nodiscard]] std::shared_ptr<const MemoryMap> current() const;

    /// Makes `map` the current one.
    RetiredMap publish(std::shared_ptr<const MemoryMap> map);
    /// Publishes what `change` makes of the current map; two updates at once come one after the other.
    using Change = std::function<Result<std::shared_ptr<const MemoryMap>>(const MemoryMap&)>;
    [[nodiscard]] Result<RetiredMap> update(const Change& change);
    [[nodiscard]] Result<RetiredMap> insert(std::shared_ptr<const Region> region);
    [[nodiscard]] Result<RetiredMap> remove(const GuestRange& range);
    [[nodiscard]] Result<RetiredMap> replace(const GuestRange& range, std::shared_ptr<const Region> region);

    /// Waits until nobody uses this map, nor an older one; at the deadline the error names who does.
    [[nodiscard]] Result<void> wait_until_unused(RetiredMap retired, std::chrono::milliseconds limit) const;

private:
    std::shared_ptr<detail::LiveMapState> state_;
};

}  // namespace guestmem

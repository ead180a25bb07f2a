// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/mem/memory_map.hpp"

/// What a LiveMap and its readers share: which map is the current one, which were, and who may still use them.
/// For live_map.cpp.
///
/// Concepts: a map that is replaced is retired. It is let go of when no reader's slot has its number, and is remembered
/// until it is gone: its owners, and pointers into the regions that left with it, hold up whoever waits.
/// Contract: everything but `generation` and what is const is read and written with the mutex held.
/// Threads: any.

namespace guestmem::detail {

/// What one reader stores to; two cache lines of its own, since processors fetch lines in pairs.
struct alignas(128) ReaderSlot {
    explicit ReaderSlot(std::string reader_name) : name(std::move(reader_name)) {}
    /// The generation that its reader uses; 0 when it is parked.
    std::atomic<std::uint64_t> held{0};
    const std::string name;
};

/// The number of a map that is published: no other has it, in no LiveMap.
[[nodiscard]] std::uint64_t next_generation();

struct LiveMapState;

/// What one thread lets go of when it holds no mutex: the owners of memory run code of their own, which may come here
/// again. Whoever waits for the maps, waits until that code has ended.
class Leaving {
public:
    explicit Leaving(std::shared_ptr<LiveMapState> state) : state_(std::move(state)) {}
    Leaving(const Leaving&) = delete;
    Leaving& operator=(const Leaving&) = delete;
    ~Leaving() { finish(); }

    [[nodiscard]] bool has_maps() const { return !maps_.empty(); }
    /// Without the mutex.
    void finish();

private:
    friend struct LiveMapState;
    std::shared_ptr<LiveMapState> state_;
    std::vector<std::shared_ptr<const MemoryMap>> maps_;
    std::vector<std::shared_ptr<const Region>> regions_;
};

struct LiveMapState {
    /// A map that a thread is letting go of.
    struct InFlight {
        const Leaving* by;
        std::thread::id thread;
        std::uint64_t generation;
        std::weak_ptr<const MemoryMap> map;
    };
    struct Retired {
        std::uint64_t generation;
        std::shared_ptr<const MemoryMap> map;
    };
    /// With the oldest generation that each has left.
    template <typename T>
    using Left = std::map<std::weak_ptr<const T>, std::uint64_t, std::owner_less<>>;

    explicit LiveMapState(std::shared_ptr<const MemoryMap> first);

    /// Makes all readers' stores visible. Without membarrier they fence themselves, between their store to the slot and
    /// their load of the generation, as here between the store of the generation and the loads of the slots.
    [[nodiscard]] bool settle() const;
    /// Readers that may use the map of this generation or an older one. After settle(), with the mutex held.
    [[nodiscard]] std::vector<std::string> users_up_to(std::uint64_t generation) const;
    /// Lets go of retired maps that nobody uses; false when the kernel did not say. With the mutex held.
    bool collect(Leaving& leaving);
    /// Everybody who keeps the map of this generation, or an older one, from being gone. With the mutex held.
    [[nodiscard]] std::vector<std::string> holders_up_to(std::uint64_t retired_generation, bool is_settled,
                                                         Leaving& leaving) const;
    /// Both, without the mutex.
    [[nodiscard]] std::vector<std::string> collect_and_name(std::uint64_t retired_generation,
                                                            Leaving& leaving);
    [[nodiscard]] bool is_in_flight(const std::weak_ptr<const MemoryMap>& map) const;
    /// Gives the generation that it retires. With the update_mutex held.
    std::uint64_t publish(std::shared_ptr<const MemoryMap> map, Leaving& leaving);
    /// Remembers the regions that `before` has and `after` has not. With the mutex held.
    void add_unplugged(std::uint64_t old_generation, const MemoryMap& before, const MemoryMap& after);

    // Read by every reader on its hot path, written with the mutex held.
    alignas(128) std::atomic<std::uint64_t> generation{next_generation()};
    alignas(128) const bool has_membarrier;
    std::mutex mutex;
    std::mutex update_mutex;  ///< held while a change is being made; taken before `mutex`
    std::shared_ptr<const MemoryMap> current;
    std::vector<Retired> retired;
    /// Maps that LiveMap let go of; somebody else may still own them.
    Left<MemoryMap> released;
    std::vector<InFlight> in_flight;
    /// Regions that left with a map; raw pointers may still hold them.
    Left<Region> unplugged;
    std::set<ReaderSlot*> slots;
};

}  // namespace guestmem::detail

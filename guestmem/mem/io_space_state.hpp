// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/mem/io_space.hpp"
#include "guestmem/mem/iotlb.hpp"
#include "guestmem/mem/translated_memory.hpp"

/// What an IoSpace and its handles share. For io_space.cpp and translated_memory.cpp.
///
/// Contract: everything but `generation` and what is const is read and written with the mutex held.
/// Threads: any.

namespace guestmem::detail {

/// A translation that was right when the mappings had this generation; or none.
struct FoundTranslation {
    std::optional<Translation> translation;
    std::uint64_t generation = 0;
};

struct IoSpaceState {
    struct Hold {
        IoRange range;
        std::uint64_t generation = 0;
        std::string handle;
        std::string why;
    };
    /// Nothing: all addresses.
    using Changed = std::optional<IoRange>;
    /// A question that the Translator is being asked, on the stack of who asks: what changed since it began.
    struct Question {
        IoAddress address;
        IoAddress first{0};                 ///< around the address, nothing changed from here
        IoAddress last = IoAddress::max();  ///< to here
        bool is_stale = false;              ///< the address itself changed

        void note(const Changed& changed);
    };

    IoSpaceState(IoSpaceOptions options, Iotlb cache);

    [[nodiscard]] FoundTranslation find(IoAddress address);
    /// With the mutex held.
    [[nodiscard]] FoundTranslation look_up(IoAddress address);
    /// What is known, or what the Translator says; `reader` is parked before it is asked. No translation: what it said
    /// about the address was invalidated meanwhile.
    [[nodiscard]] AccessResult<FoundTranslation> find_or_ask(IoAddress address, Access access,
                                                             MapReader& reader);

    /// Calls do_change() for the mappings of `changed`, and waits until nobody uses the old ones.
    template <typename DoChange>
    [[nodiscard]] Result<void> change(std::string_view what, const Changed& changed,
                                      std::chrono::milliseconds limit, DoChange&& do_change);
    [[nodiscard]] Result<void> wait(std::uint64_t next, const Changed& changed,
                                    std::chrono::milliseconds limit);
    /// Who uses mappings from before this generation. With the mutex held, after the barrier.
    [[nodiscard]] std::vector<std::string> users_before(std::uint64_t next, const Changed& changed) const;

    // Read by every handle on its hot path, written with the mutex held.
    alignas(128) std::atomic<std::uint64_t> generation{1};
    alignas(128) const std::string name;
    const std::shared_ptr<Translator> translator;
    const std::optional<IoRange> window;
    std::unique_ptr<DirtyTracker> tracker;  ///< pointers and lists keep the state for it
    const bool has_membarrier;

    mutable std::mutex mutex;
    Iotlb iotlb;
    Translating translating = Translating::on;
    /// At most one of each handle.
    std::set<Question*> questions_open;
    std::map<const IoSlot*, std::string> slots;
    std::map<std::uint64_t, Hold> holds;
    std::uint64_t next_ticket = 0;
    std::uint64_t questions = 0;
    std::uint64_t stale_answers = 0;
};

}  // namespace guestmem::detail

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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
    /// How many changes an answer of the Translator is compared with; an older one is thrown away.
    static constexpr std::size_t count_remembered_changes = 64;

    IoSpaceState(IoSpaceOptions options, Iotlb cache);

    [[nodiscard]] FoundTranslation find(IoAddress address);
    /// Asks the Translator. No translation: the answer came too late for what was known at `since`.
    [[nodiscard]] AccessResult<FoundTranslation> ask(IoAddress address, Access access, std::uint64_t since);
    /// What is left of an answer around the address without all that changed since; nothing when that did.
    [[nodiscard]] std::optional<Translation> keep_unchanged(const Translation& answer, IoAddress address,
                                                            std::uint64_t since) const;

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
    std::unique_ptr<DirtyTracker> tracker;
    const bool has_membarrier;

    mutable std::mutex mutex;
    Iotlb iotlb;
    Translating translating = Translating::on;
    /// What was changed by the change that began generation g, at [g modulo their number].
    std::array<Changed, count_remembered_changes> changes;
    std::map<const IoSlot*, std::string> slots;
    std::map<std::uint64_t, Hold> holds;
    std::uint64_t next_ticket = 0;
    std::uint64_t questions = 0;
    std::uint64_t stale_answers = 0;
};

}  // namespace guestmem::detail

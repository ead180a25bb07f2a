// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/mem/iotlb.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/translator.hpp"

/// What one device behind an IOMMU may reach: its mappings, and the promise that those taken away are not used.
///
/// Concepts: an IoSpace has an IOTLB, and a Translator that is asked for what the IOTLB lacks. Each thread of a device
/// (a queue) has a handle, a TranslatedMemory. Whoever hears the guest's IOMMU invalidates here.
/// Contract: when invalidate() has returned, no access through the old mappings of that range is under way, and none
/// will come, on any handle: what an IOMMU promises for its invalidation commands. Answers of the Translator that are
/// older than an invalidation are not used for its range.
/// Pointers and scatter lists keep their bytes mapped; an IoHold makes invalidate() wait for them, too.
/// Why: a handle stores "inside, with the mappings of generation g" to a slot of its own, then looks whether g is still
/// the generation, and clears the slot when it has touched the memory. invalidate() makes g + 1 the generation, runs
/// membarrier(2), and waits until no slot says less. A handle that looked before its barrier has said so before it,
/// too, and is waited for; one that looks afterwards sees g + 1 and goes to the IOTLB. Where membarrier is missing,
/// handles fence between the two steps. No handle is inside while the Translator is asked.
/// Threads: any.
/// Lifetime: handles and holds may outlive the IoSpace.
/// Limits: max_io_handles, max_io_holds; the IOTLB as iotlb.hpp says.
/// Cost: invalidate() about 1 us while other processors are idle, about 10 us while they run our threads.
/// Example (io_space_test.cpp):
///     IoSpace space = GM_TRY(IoSpace::create({.name = "net0", .translator = iommu}));
///     const auto memory = GM_TRY(space.make_memory("queue 0", map));
///     ...
///     GM_TRY(space.invalidate(range, std::chrono::seconds{1}));
/// Known holes: one invalidation makes all handles of the space look their mappings up again. PointerGuard,
/// ScatterList and transfers do not take an IoHold: who uses them with a TranslatedMemory takes one.

namespace guestmem {

class TranslatedMemory;

inline constexpr std::size_t max_io_handles = 4096;
inline constexpr std::size_t max_io_holds = 65536;
/// A longer limit of an invalidation counts as this.
inline constexpr std::chrono::milliseconds max_invalidate_limit = std::chrono::hours{24};

struct IoSpaceOptions {
    std::string name;
    std::shared_ptr<Translator> translator;
    std::size_t iotlb_capacity = default_iotlb_capacity;
    /// The addresses of the second dirty log; whole pages.
    std::optional<IoRange> dirty_window = std::nullopt;
};

struct IoSpaceCounts {
    IotlbCounts iotlb;
    std::size_t count_entries = 0;
    std::uint64_t questions = 0;      ///< to the Translator
    std::uint64_t stale_answers = 0;  ///< thrown away: the address was invalidated meanwhile
    std::uint64_t changes = 0;        ///< invalidations, mappings that were set, switches
};

/// Off: addresses mean themselves, with all permissions, as behind an IOMMU that is switched off.
enum class Translating : std::uint8_t { on, off };

namespace detail {
struct IoSpaceState;
}

/// Makes invalidations of a range wait, and tells them why, while it lives. A pointer that is taken for this range
/// meanwhile stays good until it goes. check_range() before it, so that the Translator is not asked under it.
class [[nodiscard]] IoHold {
public:
    IoHold(IoHold&& other) noexcept;
    IoHold& operator=(IoHold&& other) noexcept;
    ~IoHold();

private:
    friend class TranslatedMemory;
    IoHold(std::shared_ptr<detail::IoSpaceState> state, std::uint64_t ticket);
    std::shared_ptr<detail::IoSpaceState> state_;
    std::uint64_t ticket_;
};

class IoSpace {
public:
    [[nodiscard]] static Result<IoSpace> create(IoSpaceOptions options);

    [[nodiscard]] Result<std::unique_ptr<TranslatedMemory>> make_memory(std::string name, MapReader map);
    /// Over a map that stays.
    [[nodiscard]] Result<std::unique_ptr<TranslatedMemory>> make_memory(std::string name,
                                                                        std::shared_ptr<const MemoryMap> map);

    /// Takes the mappings of a range away and waits until no access uses them. At the deadline the error names the
    /// handles and holds that do; then they are gone for new accesses, and another call waits again.
    [[nodiscard]] Result<void> invalidate(const IoRange& range, std::chrono::milliseconds limit);
    [[nodiscard]] Result<void> invalidate_all(std::chrono::milliseconds limit);
    /// Puts this in the place of what there was, without a question; waits as invalidate() does.
    [[nodiscard]] Result<void> set_mapping(const Translation& translation, std::chrono::milliseconds limit);
    [[nodiscard]] Result<void> set_translating(Translating translating, std::chrono::milliseconds limit);
    [[nodiscard]] Translating translating() const;

    /// The log by I/O virtual address: offsets count from the window's base. Null without a window.
    [[nodiscard]] DirtyTracker* dirty() const;
    [[nodiscard]] IoSpaceCounts counts() const;

private:
    explicit IoSpace(std::shared_ptr<detail::IoSpaceState> state) : state_(std::move(state)) {}

    std::shared_ptr<detail::IoSpaceState> state_;
};

}  // namespace guestmem

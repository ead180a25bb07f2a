// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/io_space.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/translator.hpp"
#include "guestmem/mem/typed_access.hpp"

/// Guest memory as a device behind an IOMMU sees it: by I/O virtual addresses, as far as its mappings permit.
///
/// Concepts: a TranslatedMemory is one thread's handle on an IoSpace. It remembers the mappings where it was last; what
/// they lack is looked up in the space's IOTLB, and then asked of the Translator.
/// Contract: a refusal has the I/O virtual address and the reason: untranslated, denied or translator_failed;
/// or what the map says about the guest address it leads to (hole, out_of_range, read_only, device; see refused_at()).
/// A denial is not remembered: the Translator is asked each time. Of its answer only that is kept which was not
/// invalidated meanwhile; when the address itself was, it is asked again, max_translation_tries times in all.
/// A verb of several pieces can lose a mapping on the way: then it ends there, with the bytes done.
/// What is written is marked in the region's log, and in the space's log by I/O virtual address, if it has one.
/// Threads: one at a time. The space's invalidate() may run at any time on another.
/// Lifetime: over a LiveMap it holds on to the map as MapReader::memory() does, until its next access or park(); it
/// parks by itself while a Translator is asked. Regions of which a list or a transfer has pieces already stay held
/// then.
/// Cost: about 0.7 ns (read) and 1.1 ns (write) over GuestMemory within a mapping, about 9 ns in one of the last
/// count_hits mappings, about 50 ns (a mutex) in another that the IOTLB has. Without membarrier(2) about 10 ns always.
/// Example (translated_memory_test.cpp):
///     const auto memory = GM_TRY(space.make_memory("queue 0", map));
///     const std::uint16_t head = GM_TRY(memory->read_le<std::uint16_t>(IoAddress{0x1002}));

namespace guestmem {

inline constexpr unsigned max_translation_tries = 16;

namespace detail {
/// What one handle stores to; two cache lines of its own, since processors fetch lines in pairs.
struct alignas(128) IoSlot {
    /// The generation of the mappings that an access uses; 0: none is under way.
    std::atomic<std::uint64_t> inside{0};
};
}  // namespace detail

class TranslatedMemory final : public TypedAccess<TranslatedMemory, IoVirtualSpace> {
public:
    /// How many mappings a handle finds without the IOTLB.
    static constexpr std::size_t count_hits = 8;

    /// An access under way: it ends when the spot goes.
    struct Spot {
        Spot() = default;
        Spot(Spot&& other) noexcept { *this = std::move(other); }
        Spot& operator=(Spot&& other) noexcept {
            host = other.host;
            offset = other.offset;
            std::swap(memory, other.memory);
            return *this;
        }
        Spot(const Spot&) = delete;
        Spot& operator=(const Spot&) = delete;
        [[gnu::always_inline]] ~Spot() {
            if (memory != nullptr) memory->leave();
        }
        [[gnu::always_inline]] void mark_written(std::uint64_t count) const {
            const Hit& hit = memory->hit_;
            hit.tracker->mark_written(hit.offset + offset, count);
            if (hit.io_tracker != nullptr) hit.io_tracker->mark_written(hit.io_offset + offset, count);
        }

        std::byte* host = nullptr;
        std::uint64_t offset = 0;  ///< into hit_
        TranslatedMemory* memory = nullptr;
    };

    TranslatedMemory(const TranslatedMemory&) = delete;
    TranslatedMemory& operator=(const TranslatedMemory&) = delete;
    ~TranslatedMemory();

    /// Makes invalidations wait for what uses a range for longer than one access: a pointer, a list, a transfer.
    [[nodiscard]] Result<IoHold> hold(const IoRange& range, std::string why);

    /// Holds no map until the next access.
    void park() { reader_.park(); }

    /// Where the address of this error led to, if it was the last that had a translation and that the map refused.
    [[nodiscard]] std::optional<GuestAddress> refused_at(const AccessError& error) const {
        const bool is_last = error.reason() == refusal_.reason() && error.address() == refusal_.address();
        return is_last ? std::optional{refused_at_} : std::nullopt;
    }

private:
    friend class TypedAccess<TranslatedMemory, IoVirtualSpace>;
    friend class IoSpace;

    /// What one translation and one region have in common.
    struct Hit {
        std::uint64_t base = 0;  ///< I/O virtual
        std::uint64_t readable_room = 0;
        std::uint64_t writable_room = 0;  ///< rooms as LookupEntry::room; 0 when it is not permitted
        std::byte* host = nullptr;
        std::uint64_t quick_generation = 0;  ///< 0 when handles have to fence: then nothing is quick
        DirtyTracker* tracker = nullptr;
        std::uint64_t offset = 0;  ///< into the region
        DirtyTracker* io_tracker = nullptr;
        std::uint64_t io_offset = 0;   ///< into the window
        std::uint64_t generation = 0;  ///< of the space's mappings; 0: nothing
        std::uint64_t size_bytes = 0;
        GuestAddress guest;
        Permissions permissions = Permissions::none;

        [[nodiscard]] bool has(IoAddress address, Access access) const {
            return address.value() - base < size_bytes && allows(permissions, access);
        }
    };

    enum class Asking : std::uint8_t { no, yes };

    TranslatedMemory(std::shared_ptr<detail::IoSpaceState> state, std::string name, MapReader reader);

    /// Says that an access with hit_ begins; false when hit_ is of another time, and nothing may be touched.
    [[nodiscard, gnu::always_inline]] bool enter_quickly() {
        const std::uint64_t generation = hit_.quick_generation;
        // Release: whoever waits and reads this instead of the end of the access before has waited for that, too.
        slot_.inside.store(generation, std::memory_order_release);
        // Pairs with the membarrier of an invalidation: it sees this store, or this sees its generation.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        return generation_->load(std::memory_order_acquire) == generation && reader_.is_current();
    }
    [[nodiscard]] bool enter();
    [[gnu::always_inline]] void leave() {
        std::atomic_signal_fence(std::memory_order_seq_cst);
        slot_.inside.store(0, std::memory_order_release);
    }

    template <Access access>
    [[nodiscard, gnu::always_inline]] bool find(std::uint64_t address, std::uint64_t count, Spot& spot) {
        const std::uint64_t room = access == Access::read ? hit_.readable_room : hit_.writable_room;
        if (!enter_quickly() || !detail::fits(address - hit_.base, count, room)) [[unlikely]]
            if (!find_again(IoAddress{address}, count, access)) return false;
        spot.offset = address - hit_.base;
        spot.host = hit_.host + spot.offset;
        spot.memory = this;
        return true;
    }
    [[nodiscard, gnu::always_inline]] bool find_readable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        return find<Access::read>(address, count, spot);
    }
    [[nodiscard, gnu::always_inline]] bool find_writable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        return find<Access::write>(address, count, spot);
    }
    [[nodiscard]] Spot to_spot(const Piece& piece);

    /// The same in another mapping that this handle or the IOTLB knows; when true, an access has begun. Asks nobody:
    /// what is missing takes the slow way.
    [[nodiscard, gnu::noinline]] bool find_again(IoAddress address, std::uint64_t count, Access access);

    [[nodiscard]] AccessResult<Piece> find_piece(IoAddress address, Access access) override;
    [[nodiscard]] std::shared_ptr<const Region> find_region(GuestAddress address) override;
    [[nodiscard]] std::shared_ptr<const void> io_log() const override { return state_; }
    [[nodiscard]] AccessResult<Piece> enter_piece(IoAddress address, Access access) override;
    void leave_piece() override { leave(); }

    /// Makes hit_ the one that has the address, or leaves it when the Translator's answer came too late.
    [[nodiscard]] AccessResult<void> aim(IoAddress address, Access access, Asking asking);
    [[nodiscard]] AccessResult<void> place(const Translation& translation, std::uint64_t generation,
                                           IoAddress address, Access access);
    /// Holds the current map; hits in another one are gone.
    void follow_map();
    /// Whether one of hits_ has it: then it is hit_.
    [[nodiscard]] bool recall(IoAddress address, Access access);

    detail::IoSlot slot_;
    // Apart from the slot, which other threads read.
    alignas(128) Hit hit_;
    const std::atomic<std::uint64_t>* generation_;
    bool needs_fence_;
    MapReader reader_;
    std::array<Hit, count_hits> hits_;  ///< the last one is among them
    std::size_t next_hit_ = 0;
    std::uint64_t map_generation_ = 0;                             ///< the map that the hits are of
    AccessError refusal_{AccessReason::none, Access::read, 0, 0};  ///< the map's last
    GuestAddress refused_at_;
    std::shared_ptr<detail::IoSpaceState> state_;
};

}  // namespace guestmem

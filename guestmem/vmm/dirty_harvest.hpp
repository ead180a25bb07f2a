// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// The dirty log of a machine, told in parts of bounded size to somebody who may go away in between.
///
/// Concepts: a round is everything that was written until it began. It is told in parts, in the order of addresses;
/// each part has a ticket. Who has taken a part confirms its ticket with the next call, and the part is forgotten.
/// Contract: what was not confirmed is told again, together with what was written meanwhile: a caller that is lost
/// loses no page. A confirmation that empties the round begins the next one. Only the last ticket counts. Pages of a
/// region that is unplugged are told no more.
/// Threads: one at a time.
/// Limits: a part has at most max_ranges.
/// Cost: one bit for each page of RAM while a round is not told to its end; a part looks at all of them.
/// Example:
///     auto part = GM_TRY(harvest.next({}));
///     while (!part.ranges.empty()) { copy(part.ranges); part = GM_TRY(harvest.next({.confirm = part.ticket})); }

namespace guestmem::vmm {

class DirtyHarvest {
public:
    static constexpr std::size_t max_ranges = 8192;

    struct Wish {
        std::size_t limit = max_ranges;
        std::optional<std::uint64_t> confirm = std::nullopt;
    };
    struct Part {
        std::vector<GuestRange> ranges = {};
        std::uint64_t ticket = 0;
        bool has_more = false;
    };

    /// The memory outlives it.
    explicit DirtyHarvest(VmMemory& memory) : memory_(memory) {}

    [[nodiscard]] Result<Part> next(const Wish& wish);
    /// The log was switched off: nothing of it is told any more.
    void forget();

private:
    struct Pending {
        std::weak_ptr<const Region> region;
        GuestRange range;
        std::vector<std::uint64_t> words;  ///< a bit for each page

        [[nodiscard]] std::uint64_t count_pages() const;
    };
    struct Told {
        std::uint64_t ticket = 0;
        std::optional<GuestAddress> last;  ///< nothing: the part was empty
    };

    [[nodiscard]] Result<void> confirm(std::uint64_t ticket);
    [[nodiscard]] Result<void> collect();
    void merge(const VmMemory::DirtyRegion& dirty);
    void drop_unplugged();
    [[nodiscard]] bool is_told() const;

    VmMemory& memory_;
    std::vector<Pending> pending_;  ///< in the order of addresses
    std::optional<Told> told_;
    std::uint64_t next_ticket_ = 1;
};

}  // namespace guestmem::vmm

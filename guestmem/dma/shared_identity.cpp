// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/shared_identity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <tuple>
#include <unordered_map>

namespace guestmem::dma {
namespace {

class Joiner {
public:
    Joiner(const std::vector<Unit>& units, const std::vector<Device>& devices, ContainmentSet& set)
        : units_(units), devices_(devices), set_(set) {}

    void join_unit(std::span<const UnitId> ids) {
        std::vector<std::uint32_t> masks;
        for (const UnitId& one : ids) {
            if (masks.empty() || masks.back() != one.id.ignored_bits) {
                masks.push_back(one.id.ignored_bits);  // ids are sorted by mask
            }
        }
        if (masks.size() > most_masks_of_unit) {
            const UnitId* first = nullptr;
            for (const UnitId& one : ids) {
                // Also those without a mask: the mask of another may take their ids for its own.
                join(first == nullptr ? one : *first, one);
                first = first == nullptr ? &one : first;
            }
            return;
        }
        for (std::size_t i = 0; i < masks.size(); ++i) {
            for (std::size_t j = i; j < masks.size(); ++j) {
                join_masks(of_mask(ids, masks[i]), of_mask(ids, masks[j]), masks[i] | masks[j]);
            }
        }
    }

private:
    static std::span<const UnitId> of_mask(std::span<const UnitId> ids, std::uint32_t mask) {
        const auto found =
            std::ranges::equal_range(ids, mask, {}, [](const UnitId& one) { return one.id.ignored_bits; });
        return {found.begin(), found.end()};
    }

    void join_masks(std::span<const UnitId> some, std::span<const UnitId> others, std::uint32_t ignored) {
        // Only ids of different sides are the same here: two that ignore less are not, though each equals a third.
        std::unordered_map<std::uint32_t, const UnitId*> seen;
        for (const UnitId& one : some) {
            const auto [at, is_new] = seen.try_emplace(one.id.id & ~ignored, &one);
            if (!is_new && some.data() == others.data()) {
                join(*at->second, one);
            }
        }
        if (some.data() == others.data()) {
            return;
        }
        std::unordered_map<std::uint32_t, const UnitId*> matched;
        for (const UnitId& one : others) {
            if (seen.contains(one.id.id & ~ignored)) {
                matched.try_emplace(one.id.id & ~ignored, &one);
                join(*seen.at(one.id.id & ~ignored), one);
            }
        }
        for (const UnitId& one : some) {
            if (const auto at = matched.find(one.id.id & ~ignored); at != matched.end()) {
                join(*at->second, one);
            }
        }
    }

    void join(const UnitId& one, const UnitId& other) {
        if (set_.is_joined(one.device, other.device)) {
            return;
        }
        const Unit& unit = units_[one.unit];
        const bool is_alias = unit.kind == UnitKind::amd_vi;
        set_.join(is_alias ? JoinReason::alias : JoinReason::shared_identity, one.device, other.device,
                  fmt::format("{} and {} arrive at {} with ids that it takes for one: {:#x} and {:#x}",
                              devices_[one.device].name, devices_[other.device].name, unit.name, one.id.id,
                              other.id.id));
    }

    const std::vector<Unit>& units_;
    const std::vector<Device>& devices_;
    ContainmentSet& set_;
};

}  // namespace

void join_shared(std::vector<UnitId> ids, const std::vector<Unit>& units, const std::vector<Device>& devices,
                 ContainmentSet& set) {
    std::ranges::sort(ids, {}, [](const UnitId& one) {
        return std::tuple(one.unit, one.id.ignored_bits, one.id.id, one.device);
    });
    Joiner joiner(units, devices, set);
    for (std::size_t first = 0; first < ids.size();) {
        std::size_t next = first;
        while (next < ids.size() && ids[next].unit == ids[first].unit) {
            ++next;
        }
        joiner.join_unit(std::span(ids).subspan(first, next - first));
        first = next;
    }
}

}  // namespace guestmem::dma

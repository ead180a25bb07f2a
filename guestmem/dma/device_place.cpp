// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_place.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/dma/assemble.hpp"
#include "guestmem/dma/selector_index.hpp"

namespace guestmem::dma {
namespace {

constexpr std::size_t no_unit = 0xffffffff;  // said to be behind none

bool is_rest(const CoverFact& cover) { return std::holds_alternative<PciRest>(cover.which); }

/// The identity that a cover gives to a requester id; nothing when the id is not in the cover's range.
std::optional<std::uint32_t> identity_of(const CoverFact& cover, std::uint16_t rid) {
    const auto masked = static_cast<std::uint16_t>(rid & cover.identity.rid_mask);
    if (!cover.identity.first_id) {
        return masked;
    }
    const auto* range = std::get_if<PciRange>(&cover.which);
    if (cover.identity.is_shared || range == nullptr) {
        return cover.identity.first_id;
    }
    if (masked < range->first_rid || masked > range->last_rid) {
        return std::nullopt;
    }
    return *cover.identity.first_id + (masked - range->first_rid);
}

class Placer {
public:
    Placer(const SourceFacts& facts, const DeviceList& list, const PciTopology& topology,
           const PciAliases& aliases, const UnitTable& units, ComplaintList& complaints)
        : facts_(facts),
          list_(list),
          topology_(topology),
          aliases_(aliases),
          units_(units),
          complaints_(complaints) {}

    std::vector<DevicePlace> place() {
        find_units();
        find_selecting();
        std::vector<DevicePlace> places(list_.devices().size());
        for (std::uint32_t device = 0; device < places.size(); ++device) {
            places[device] = place_one(device);
        }
        return places;
    }

private:
    void find_units() {
        unit_of_cover_.resize(facts_.covers.size());
        for (std::size_t i = 0; i < facts_.covers.size(); ++i) {
            const CoverFact& cover = facts_.covers[i];
            const auto unit = cover.unit.empty() ? std::optional(no_unit) : units_.find(cover.unit);
            if (!unit) {
                complaints_.add(cover.origin, fmt::format("{} is said to be behind unit '{}', which nobody "
                                                          "describes: that word counts for nothing",
                                                          to_string(cover.which), cover.unit));
            }
            unit_of_cover_[i] = unit;
        }
    }

    void find_selecting() {
        const std::size_t count_functions = topology_.functions().size();
        std::vector<PciAddress> alias_addresses;
        alias_points_.assign(count_functions, 0);
        for (std::size_t i = 0; i < count_functions; ++i) {
            if (const auto alias = PciAliases::alias_of(topology_.function(i))) {
                alias_points_[i] = static_cast<std::uint32_t>(count_functions + alias_addresses.size());
                alias_addresses.push_back(*alias);
            }
        }
        SelectorIndex index(topology_, alias_addresses);
        selecting_others_.resize(list_.devices().size() - count_functions);
        for (std::uint32_t i = 0; i < facts_.covers.size(); ++i) {
            const CoverFact& cover = facts_.covers[i];
            if (!unit_of_cover_[i] || std::holds_alternative<InterruptSender>(cover.which)) {
                continue;
            }
            if (index.add(cover.which, cover.identity.rid_mask, i) == SelectorIndex::Added::too_many_masks) {
                complaints_.add(cover.origin,
                                fmt::format("{}: more than {} different masks of requester ids: this one "
                                            "counts for nothing",
                                            to_string(cover.which), SelectorIndex::most_masks));
            }
            for (const std::uint32_t device : list_.find(cover.which)) {
                if (device < count_functions) {
                    index.add_function(device, i);
                } else if (auto& covers = selecting_others_[device - count_functions];
                           covers.size() <= most_ids_of_device) {
                    covers.push_back(i);
                }
            }
        }
        selecting_ = index.facts_of_points(most_covers_of_device + 1);  // one more tells that there are more
    }

    /// The covers that select a function, with the rule for virtual functions.
    [[nodiscard]] std::vector<std::uint32_t> covers_of_function(std::uint32_t device) const {
        const auto is_explicit = [&](std::uint32_t cover) { return !is_rest(facts_.covers[cover]); };
        std::vector<std::uint32_t> covers = selecting_[device];
        const auto& physical = topology_.function(device).physical_function;
        if (!physical || std::ranges::any_of(covers, is_explicit)) {
            return covers;
        }
        if (const std::uint32_t at = topology_.find(*physical); at != PciTopology::none) {
            for (const std::uint32_t cover : selecting_[at]) {
                const auto unit = unit_of_cover_[cover];
                if (unit == no_unit || units_.units()[*unit].kind == UnitKind::vt_d ||
                    units_.units()[*unit].kind == UnitKind::other) {
                    covers.push_back(cover);
                }
            }
        }
        std::ranges::sort(covers);
        const auto again = std::ranges::unique(covers);
        covers.erase(again.begin(), again.end());
        return covers;
    }

    DevicePlace place_one(std::uint32_t device) {
        const bool is_function = device < topology_.functions().size();
        const auto own =
            is_function ? units_.find_function(topology_.function(device).address) : std::nullopt;
        DevicePlace place;
        std::vector<const CoverFact*> selecting;
        const auto& covers = is_function ? covers_of_function(device)
                                         : selecting_others_[device - topology_.functions().size()];
        for (const std::uint32_t cover : covers) {
            if (!own || unit_of_cover_[cover] != own) {
                selecting.push_back(&facts_.covers[cover]);
            }
        }
        const std::size_t most = is_function ? most_covers_of_device : most_ids_of_device;
        if (selecting.size() > most) {
            selecting.resize(most);
            cut(device, place, fmt::format("more than {} covers select it: the first are looked at", most));
        }
        CoverChoice choice = choose_covers(selecting);
        if (choice.taken.empty()) {
            return place;
        }
        place.is_said = true;
        place.is_user = choice.taken.front()->origin.source == Source::user;
        place.origins = std::move(choice.origins);
        const auto unit = unit_of(*choice.taken.front());
        if (unit != no_unit) {
            place.unit = unit;
            for (const CoverFact* cover : choice.taken) {
                add_ids(device, *cover, place);
            }
            if (is_function) {
                add_alias_ids(device, *unit, place);
            }
        }
        complain(device, choice);
        return place;
    }

    /// One complaint for a device, the first.
    void cut(std::uint32_t device, DevicePlace& place, std::string_view why) {
        if (!place.is_cut) {
            complaints_.add(
                {}, fmt::format("{}: {}; it counts as not protected", list_.devices()[device].name, why));
        }
        place.is_cut = true;
    }

    void add_id(std::uint32_t device, DevicePlace& place, DeviceId id) {
        if (place.ids.size() >= most_ids_of_device || count_ids_ >= most_ids) {
            if (!place.is_cut) {
                cut(device, place,
                    fmt::format("more than {} identities, or {} of all devices: the first are kept",
                                most_ids_of_device, most_ids));
            }
            return;
        }
        place.ids.push_back(id);
        ++count_ids_;
    }

    [[nodiscard]] std::optional<std::size_t> unit_of(const CoverFact& cover) const {
        return unit_of_cover_[static_cast<std::size_t>(&cover - facts_.covers.data())];
    }

    void add_ids(std::uint32_t device, const CoverFact& cover, DevicePlace& place) {
        if (device >= topology_.functions().size()) {
            if (cover.identity.first_id) {
                add_id(device, place, {*cover.identity.first_id, cover.identity.ignored_bits});
            }
            return;
        }
        const auto id = identity_of(cover, topology_.function(device).address.rid);
        if (id) {
            add_id(device, place, {*id, cover.identity.ignored_bits});
        }
    }

    void add_alias_ids(std::uint32_t device, std::size_t unit, DevicePlace& place) {
        for (std::uint32_t bridge = aliases_.bridge_above(device); bridge != PciTopology::none;
             bridge = aliases_.bridge_above(bridge)) {
            const auto& covers = selecting_[alias_points_[bridge]];
            count_alias_steps_ += 1 + covers.size();
            if (place.is_cut) {
                return;
            }
            if (count_alias_steps_ > most_alias_steps || covers.size() > most_covers_of_device) {
                cut(device, place,
                    fmt::format(
                        "too much is said of the bridges above it, whose identity {} its requests carry: it "
                        "is not looked at",
                        to_string(topology_.function(bridge).address)));
                return;
            }
            const std::uint16_t rid =
                PciAliases::alias_of(topology_.function(bridge)).value_or(PciAddress{}).rid;
            bool is_mapped = false;
            for (const std::uint32_t at : covers) {
                const CoverFact& cover = facts_.covers[at];
                if (unit_of_cover_[at] != unit || is_rest(cover)) {
                    continue;
                }
                const auto id = identity_of(cover, rid);
                is_mapped = true;
                if (id) {
                    add_id(device, place, {*id, cover.identity.ignored_bits});
                }
            }
            // Units that are told of functions and not of ids see the requester id as it arrives.
            const UnitKind kind = units_.units()[unit].kind;
            if (!is_mapped &&
                (kind == UnitKind::vt_d || kind == UnitKind::amd_vi || kind == UnitKind::other)) {
                add_id(device, place, {rid, 0});
            }
        }
    }

    void complain(std::uint32_t device, const CoverChoice& choice) {
        if (choice.contradicting.empty() || !complaints_.has_room()) {
            return;
        }
        const CoverFact& other = *choice.contradicting.front();
        complaints_.add(
            other.origin,
            fmt::format("{} is said to be behind {} and behind {} (from: {}): the latter is taken",
                        list_.devices()[device].name, other.unit.empty() ? "none" : other.unit,
                        choice.taken.front()->unit.empty() ? "none" : choice.taken.front()->unit,
                        to_string(choice.taken.front()->origin)));
    }

    const SourceFacts& facts_;
    const DeviceList& list_;
    const PciTopology& topology_;
    const PciAliases& aliases_;
    const UnitTable& units_;
    ComplaintList& complaints_;
    std::vector<std::optional<std::size_t>> unit_of_cover_;
    std::vector<std::uint32_t> alias_points_;
    std::size_t count_ids_ = 0;
    std::size_t count_alias_steps_ = 0;
    std::vector<std::vector<std::uint32_t>> selecting_;         ///< covers, by point
    std::vector<std::vector<std::uint32_t>> selecting_others_;  ///< covers, by device behind the functions
};

}  // namespace

std::vector<DevicePlace> place_devices(const SourceFacts& facts, const DeviceList& list,
                                       const PciTopology& topology, const PciAliases& aliases,
                                       const UnitTable& units, ComplaintList& complaints) {
    return Placer(facts, list, topology, aliases, units, complaints).place();
}

std::vector<DeviceId> requester_ids(const PciTopology& topology, const PciAliases& aliases,
                                    std::uint32_t function) {
    std::vector<DeviceId> ids = {{topology.function(function).address.rid, 0}};
    for (std::uint32_t bridge = aliases.bridge_above(function);
         bridge != PciTopology::none && ids.size() < most_ids_of_device;
         bridge = aliases.bridge_above(bridge)) {
        const auto alias = PciAliases::alias_of(topology.function(bridge));
        ids.push_back({alias.value_or(PciAddress{}).rid, 0});
    }
    return ids;
}

}  // namespace guestmem::dma

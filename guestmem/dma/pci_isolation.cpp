// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_isolation.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace guestmem::dma {
namespace {

constexpr std::uint16_t required_bits = AccessControl::source_validation | AccessControl::request_redirect |
                                        AccessControl::completion_redirect |
                                        AccessControl::upstream_forwarding;

/// The kernel counts each function but the first of a device as one of several; virtual functions say it themselves.
bool is_one_of_several(const PciFunction& function) {
    return function.is_multifunction || (function.address.function() != 0 && !function.physical_function);
}

Acs redirects(const PciFunction& function) {
    if (!function.access_control) {
        return Acs::unknown;
    }
    const AccessControl& control = *function.access_control;
    if (!control.is_present && control.can == 0) {
        return Acs::missing;
    }
    const auto needed = static_cast<std::uint16_t>(required_bits & control.can);
    return (control.is_on & needed) == needed ? Acs::on : Acs::missing;
}

/// What the ports from one up to the root do, and the port to blame.
struct Way {
    Acs acs = Acs::on;
    std::uint32_t port = PciTopology::none;
};

class Rules {
public:
    Rules(const PciTopology& topology, const PciAliases& aliases, const std::vector<bool>& is_apart,
          ContainmentSet& set)
        : topology_(topology), aliases_(aliases), is_apart_(is_apart), set_(set) {}

    std::vector<PciAddress> apply() {
        for (const std::uint32_t index : topology_.preorder()) {
            join_below_bridge(index);
        }
        find_ways();
        for (const std::uint32_t index : topology_.preorder()) {
            join_below_port(index);
        }
        join_siblings();
        std::ranges::sort(separations_);
        const auto again = std::ranges::unique(separations_);
        separations_.erase(again.begin(), again.end());
        return std::move(separations_);
    }

private:
    [[nodiscard]] std::string name(std::uint32_t index) const {
        return to_string(topology_.function(index).address);
    }

    void join_below_bridge(std::uint32_t index) {
        const std::uint32_t bridge = aliases_.bridge_above(index);
        if (bridge == PciTopology::none || is_apart_[index] || is_apart_[bridge] ||
            set_.is_joined(index, bridge)) {
            return;
        }
        const auto alias = PciAliases::alias_of(topology_.function(bridge));
        set_.join(JoinReason::conventional_bridge, index, bridge,
                  fmt::format("requests of {} go through the PCI bridge {} and carry the id {} behind it",
                              name(index), name(bridge), to_string(alias.value_or(PciAddress{}))));
    }

    void find_ways() {
        ways_.resize(topology_.functions().size());
        for (const std::uint32_t index : topology_.preorder()) {
            const std::uint32_t above = topology_.parent(index);
            const Way higher = above == PciTopology::none ? Way{} : ways_[above];
            const Acs own = acs_of(topology_.function(index));
            const bool is_own = own == Acs::missing || (own == Acs::unknown && higher.acs != Acs::missing);
            ways_[index] = is_own ? Way{own, index} : higher;
        }
    }

    void join_below_port(std::uint32_t index) {
        const std::uint32_t above = topology_.parent(index);
        if (above == PciTopology::none || is_apart_[index] || is_apart_[above] ||
            ways_[above].acs == Acs::on || set_.is_joined(index, above)) {
            return;
        }
        const Way& way = ways_[above];
        if (does_kernel_separate(topology_.function(index), topology_.function(above))) {
            believe(way.acs, way.port);
            return;
        }
        if (way.acs == Acs::unknown) {
            set_.join(JoinReason::unknown_acs, index, above,
                      fmt::format("whether {} above {} redirects requests could not be read", name(way.port),
                                  name(index)));
            return;
        }
        const bool is_port = topology_.function(way.port).port == PortType::root_port ||
                             topology_.function(way.port).port == PortType::downstream_port ||
                             topology_.function(way.port).port == PortType::upstream_port;
        set_.join(is_port ? JoinReason::missing_acs_port : JoinReason::conventional_bridge, index, above,
                  fmt::format("{} above {} has no ACS that sends requests up instead of to its other sides",
                              name(way.port), name(index)));
    }

    void join_siblings() {
        const auto functions = topology_.functions();
        const auto slot = [&](std::size_t i) {
            return std::uint32_t{functions[i].address.segment} << 13 | functions[i].address.rid >> 3;
        };
        for (std::uint32_t first = 0; first < functions.size(); ++first) {
            for (std::uint32_t i = first + 1; i < functions.size() && slot(i) == slot(first); ++i) {
                join_pair(first, i);
            }
        }
    }

    void join_pair(std::uint32_t one, std::uint32_t other) {
        const PciFunction& left = topology_.function(one);
        const PciFunction& right = topology_.function(other);
        const Acs left_acs = acs_of(left);
        const Acs right_acs = acs_of(right);
        if (is_apart_[one] || is_apart_[other] || left_acs == Acs::on || right_acs == Acs::on ||
            !(is_one_of_several(left) || is_one_of_several(right)) || set_.is_joined(one, other)) {
            return;
        }
        const Acs both = left_acs == Acs::unknown || right_acs == Acs::unknown ? Acs::unknown : Acs::missing;
        if (does_kernel_separate(left, right)) {
            believe(both, one);
            return;
        }
        set_.join(
            both == Acs::unknown ? JoinReason::unknown_acs : JoinReason::missing_acs_function, one, other,
            both == Acs::unknown
                ? fmt::format("whether functions {} and {} of one device are kept apart could not be read",
                              name(one), name(other))
                : fmt::format("functions {} and {} of one device have no ACS between them", name(one),
                              name(other)));
    }

    void believe(Acs acs, std::uint32_t port) {
        if (acs == Acs::missing) {
            separations_.push_back(topology_.function(port).address);
        }
    }

    const PciTopology& topology_;
    const PciAliases& aliases_;
    const std::vector<bool>& is_apart_;
    ContainmentSet& set_;
    std::vector<Way> ways_;
    std::vector<PciAddress> separations_;
};

}  // namespace

Acs acs_of(const PciFunction& function) {
    switch (function.port) {
        case PortType::conventional: return is_port_unknown(function) ? Acs::unknown : Acs::missing;
        case PortType::express_to_pci_bridge:
        case PortType::pci_to_express_bridge:
        case PortType::event_collector: return Acs::missing;
        case PortType::root_port:
        case PortType::downstream_port: return redirects(function);
        case PortType::endpoint:
        case PortType::legacy_endpoint:
        case PortType::upstream_port:
        case PortType::integrated_endpoint:
            return is_one_of_several(function) ? redirects(function) : Acs::on;
    }
    return Acs::missing;
}

std::vector<PciAddress> join_functions(const PciTopology& topology, const PciAliases& aliases,
                                       const std::vector<bool>& is_apart, ContainmentSet& set) {
    return Rules(topology, aliases, is_apart, set).apply();
}

}  // namespace guestmem::dma

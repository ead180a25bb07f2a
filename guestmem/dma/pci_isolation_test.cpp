// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_isolation.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::acs;
using testing::bridge;
using testing::endpoint;
using testing::one_of_several;

struct Outcome {
    std::vector<std::size_t> places;  ///< containment of each function
    std::vector<Containment> containments;
    std::vector<PciAddress> separations;
};

Outcome outcome_of(const std::vector<PciFunction>& functions) {
    ComplaintList complaints;
    const PciTopology topology(functions, complaints);
    ContainmentSet set(functions.size());
    Outcome outcome;
    outcome.separations =
        join_functions(topology, PciAliases(topology), std::vector<bool>(functions.size(), false), set);
    std::vector<Device> devices(functions.size());
    outcome.containments = set.take(devices);
    for (const Device& device : devices) {
        outcome.places.push_back(device.containment);
    }
    return outcome;
}

TEST(PciIsolationTest, ABitThatAPortDoesNotHaveIsWiredOn) {
    PciFunction port = bridge(pci_address(0, 1, 0, 0), PortType::root_port, 2, 2, acs(true));
    EXPECT_EQ(acs_of(port), Acs::on);
    port.access_control = AccessControl{.can = 0x1d, .is_on = 0x1c, .is_present = true};
    EXPECT_EQ(acs_of(port), Acs::missing) << "source validation is off";
    port.access_control = AccessControl{.can = 0x1c, .is_on = 0x1c, .is_present = true};
    EXPECT_EQ(acs_of(port), Acs::on) << "source validation is not switchable";
    port.access_control = AccessControl{.can = 0x1f, .is_on = 0x1d, .is_present = true};
    EXPECT_EQ(acs_of(port), Acs::on) << "translation blocking is not asked for";
    port.access_control = AccessControl{.is_present = true};
    EXPECT_EQ(acs_of(port), Acs::on) << "nothing passes at all";
    port.access_control = AccessControl{};
    EXPECT_EQ(acs_of(port), Acs::missing);
    port.access_control.reset();
    EXPECT_EQ(acs_of(port), Acs::unknown);
}

TEST(PciIsolationTest, AFunctionAloneOnItsDeviceNeedsNoAcs) {
    const PciAddress at = pci_address(0, 1, 0, 0);
    for (const auto port : {PortType::endpoint, PortType::legacy_endpoint, PortType::integrated_endpoint,
                            PortType::upstream_port}) {
        EXPECT_EQ(acs_of(endpoint(at, port)), Acs::on);
        EXPECT_EQ(acs_of(one_of_several(at, port)), Acs::missing);
    }
    for (const auto port : {PortType::conventional, PortType::event_collector,
                            PortType::express_to_pci_bridge, PortType::pci_to_express_bridge}) {
        EXPECT_EQ(acs_of(endpoint(at, port)), Acs::missing);
    }
    EXPECT_EQ(acs_of(endpoint(pci_address(0, 1, 0, 1))), Acs::missing) << "function 1 is never alone";
}

TEST(PciIsolationTest, AMissingPortIsNamedWithItsReason) {
    const Outcome outcome = outcome_of(
        {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1), endpoint(pci_address(0, 1, 0, 0))});
    ASSERT_EQ(outcome.containments.size(), 1U);
    ASSERT_EQ(outcome.containments[0].joins.size(), 1U);
    EXPECT_EQ(outcome.containments[0].joins[0].reason, JoinReason::missing_acs_port);
    EXPECT_NE(outcome.containments[0].joins[0].text.find("0000:00:01.0"), std::string::npos);
}

TEST(PciIsolationTest, APortThatRedirectsDoesNotHelpBelowOneThatDoesNot) {
    const auto switch_below = [](bool is_root_on) {
        return outcome_of({bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 3, acs(is_root_on)),
                           bridge(pci_address(0, 1, 0, 0), PortType::upstream_port, 2, 3),
                           bridge(pci_address(0, 2, 0, 0), PortType::downstream_port, 3, 3, acs(true)),
                           endpoint(pci_address(0, 3, 0, 0))});
    };
    EXPECT_EQ(switch_below(true).containments.size(), 4U);
    EXPECT_EQ(switch_below(false).containments.size(), 1U);
}

TEST(PciIsolationTest, TheKernelIsBelievedWhereAcsIsMissingAndTheBridgeIsNoPciBridge) {
    std::vector functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1),
                             endpoint(pci_address(0, 1, 0, 0))};
    functions[0].group = 1;
    functions[1].group = 2;
    const Outcome separated = outcome_of(functions);
    EXPECT_EQ(separated.containments.size(), 2U);
    EXPECT_EQ(separated.separations, std::vector{pci_address(0, 0, 1, 0)});

    functions[0].port = PortType::express_to_pci_bridge;
    const Outcome below_pci = outcome_of(functions);
    EXPECT_EQ(below_pci.containments.size(), 1U)
        << "ids are gone below a PCI bridge, whatever the kernel says";
    EXPECT_TRUE(below_pci.separations.empty());
}

TEST(PciIsolationTest, UnknownAcsIsMissingUnlessTheKernelSeparates) {
    std::vector functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1),
                             endpoint(pci_address(0, 1, 0, 0))};
    functions[0].access_control.reset();
    const Outcome unknown = outcome_of(functions);
    ASSERT_EQ(unknown.containments.size(), 1U);
    EXPECT_EQ(unknown.containments[0].joins.at(0).reason, JoinReason::unknown_acs);
    functions[0].group = 1;
    EXPECT_EQ(outcome_of(functions).containments.size(), 1U)
        << "one group says nothing of the other function";
    functions[1].group = 2;
    const Outcome separated = outcome_of(functions);
    EXPECT_EQ(separated.containments.size(), 2U);
    EXPECT_TRUE(separated.separations.empty());
    functions[1].group = 1;
    EXPECT_EQ(outcome_of(functions).containments.size(), 1U);
}

TEST(PciIsolationTest, SiblingsJoinOnlyWhereNeitherHasAcs) {
    std::vector functions = {one_of_several(pci_address(0, 2, 0, 0)), one_of_several(pci_address(0, 2, 0, 1)),
                             one_of_several(pci_address(0, 2, 0, 2)), endpoint(pci_address(0, 2, 1, 0))};
    functions[1].access_control = acs(true);
    const Outcome outcome = outcome_of(functions);
    EXPECT_EQ(outcome.places, (std::vector<std::size_t>{0, 1, 0, 2}));
    EXPECT_EQ(outcome.containments[0].joins.at(0).reason, JoinReason::missing_acs_function);
}

/// A machine with well-formed bus numbers, everything else by chance.
class RandomMachine {
public:
    explicit RandomMachine(unsigned seed) : random_(seed) {
        add_bus(0, 0);
        std::ranges::sort(functions_, {}, &PciFunction::address);
    }
    [[nodiscard]] const std::vector<PciFunction>& functions() const { return functions_; }

private:
    unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }
    bool chance(unsigned percent) { return below(100) < percent; }

    void add_bus(std::uint8_t bus, unsigned depth) {
        const unsigned count_devices = 1 + below(4);
        for (std::uint8_t device = 0; device < count_devices; ++device) {
            const unsigned count_functions = chance(30) ? 2 + below(3) : 1;
            for (std::uint8_t function = 0; function < count_functions; ++function) {
                add_function(pci_address(0, bus, device, function), count_functions > 1, depth);
            }
        }
    }

    void add_function(PciAddress address, bool is_multifunction, unsigned depth) {
        constexpr PortType leaves[] = {PortType::conventional, PortType::endpoint, PortType::legacy_endpoint,
                                       PortType::integrated_endpoint, PortType::event_collector};
        constexpr PortType bridges[] = {PortType::root_port,    PortType::downstream_port,
                                        PortType::root_port,    PortType::upstream_port,
                                        PortType::conventional, PortType::express_to_pci_bridge,
                                        PortType::root_port,    PortType::pci_to_express_bridge};
        const bool is_bridge = depth < 5 && next_bus_ < 100 && chance(45);
        PciFunction function = endpoint(address, leaves[random_() % std::size(leaves)]);
        if (is_bridge) {
            const std::uint8_t secondary = next_bus_++;
            const PortType port = bridges[random_() % std::size(bridges)];
            add_bus(secondary, depth + 1);
            function = bridge(address, port, secondary, static_cast<std::uint8_t>(next_bus_ - 1));
        }
        if (chance(70)) {
            function.access_control = AccessControl{.can = static_cast<std::uint16_t>(random_() % 32),
                                                    .is_on = static_cast<std::uint16_t>(random_() % 32),
                                                    .is_present = true};
            if (chance(60)) {
                function.access_control->is_on = function.access_control->can;
            }
        }
        function.is_multifunction = is_multifunction;
        functions_.push_back(function);
    }

    std::mt19937 random_;
    std::uint8_t next_bus_ = 1;
    std::vector<PciFunction> functions_;
};

/// A second writing of the kernel's rule: functions come one by one, and each asks those that were there before for
/// a group to be in.
class KernelModel {
public:
    explicit KernelModel(const std::vector<PciFunction>& functions) : functions_(functions) {
        for (const PciFunction& function : functions) {
            group_of_[function.address] = group_for(function);
        }
    }
    [[nodiscard]] int group(PciAddress address) const { return group_of_.at(address); }

private:
    [[nodiscard]] const PciFunction* above(const PciFunction& function) const {
        for (const PciFunction& candidate : functions_) {
            if (candidate.secondary_bus == function.address.bus() && candidate.header_type != 0) {
                return &candidate;
            }
        }
        return nullptr;
    }

    static bool is_isolated(const PciFunction& function) {
        const bool is_flagged = [&] {
            const AccessControl& control = function.access_control.value();
            return control.is_present && (0x1d & control.can & ~control.is_on) == 0;
        }();
        switch (function.port) {
            case PortType::root_port:
            case PortType::downstream_port: return is_flagged;
            case PortType::endpoint:
            case PortType::legacy_endpoint:
            case PortType::integrated_endpoint:
            case PortType::upstream_port: return !function.is_multifunction || is_flagged;
            default: return false;
        }
    }

    [[nodiscard]] bool is_way_isolated(const PciFunction* bridge) const {
        return bridge == nullptr || (is_isolated(*bridge) && is_way_isolated(above(*bridge)));
    }

    int group_for(const PciFunction& function) {
        for (const PciFunction* at = above(function); at != nullptr; at = above(*at)) {
            const bool is_aliasing = at->port == PortType::conventional ||
                                     at->port == PortType::express_to_pci_bridge ||
                                     at->port == PortType::pci_to_express_bridge;
            if (is_aliasing) {
                return group_of_.at(at->address);
            }
        }
        if (const PciFunction* at = above(function); at != nullptr && !is_way_isolated(at)) {
            return group_of_.at(at->address);
        }
        if (function.is_multifunction && !is_isolated(function)) {
            for (const PciFunction& sibling : functions_) {
                if (sibling.address.rid >> 3 == function.address.rid >> 3 && !is_isolated(sibling) &&
                    group_of_.contains(sibling.address)) {
                    return group_of_.at(sibling.address);
                }
            }
        }
        return next_group_++;
    }

    const std::vector<PciFunction>& functions_;
    std::map<PciAddress, int> group_of_;
    int next_group_ = 0;
};

TEST(PciIsolationTest, OnRandomMachinesTheGroupsAreThoseOfTheKernelsRule) {
    std::size_t count_joined = 0;
    for (unsigned seed = 0; seed < 1500; ++seed) {
        const RandomMachine machine(seed);
        const Outcome outcome = outcome_of(machine.functions());
        const KernelModel model(machine.functions());
        std::map<int, std::size_t> place_of_group;
        std::map<std::size_t, int> group_of_place;
        for (std::size_t i = 0; i < machine.functions().size(); ++i) {
            const int group = model.group(machine.functions()[i].address);
            const auto place = place_of_group.try_emplace(group, outcome.places[i]).first;
            const auto back = group_of_place.try_emplace(outcome.places[i], group).first;
            ASSERT_EQ(place->second, outcome.places[i])
                << "seed " << seed << ": kept apart " << to_string(machine.functions()[i].address);
            ASSERT_EQ(back->second, group)
                << "seed " << seed << ": put together " << to_string(machine.functions()[i].address);
        }
        count_joined += machine.functions().size() - place_of_group.size();
    }
    EXPECT_GT(count_joined, 1000U) << "machines without joins prove nothing";
}

}  // namespace
}  // namespace guestmem::dma

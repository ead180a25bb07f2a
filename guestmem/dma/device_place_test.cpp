// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_place.hpp"

#include <gtest/gtest.h>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::bridge;
using testing::endpoint;

struct Placed {
    std::vector<DevicePlace> places;
    std::vector<Complaint> complaints;
};

Placed place(const SourceFacts& facts, const HostView& view) {
    ComplaintList complaints;
    const UnitTable units(facts, view, complaints);
    const DeviceList list(facts, view, complaints);
    const PciTopology topology(list.functions(), complaints);
    const PciAliases aliases(topology);
    Placed placed;
    placed.places = place_devices(facts, list, topology, aliases, units, complaints);
    placed.complaints = complaints.take();
    return placed;
}

UnitFact unit(std::string name, UnitKind kind) { return {.name = std::move(name), .kind = kind}; }

std::vector<std::uint32_t> ids_of(const DevicePlace& place) {
    std::vector<std::uint32_t> ids;
    for (const DeviceId& id : place.ids) {
        ids.push_back(id.id);
    }
    std::ranges::sort(ids);
    return ids;
}

TEST(DevicePlaceTest, FurtherCoversOfTheSameUnitAddIdentitiesAndOthersContradict) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3), unit("b", UnitKind::smmu_v3)};
    const auto cover = [](std::string name, std::uint32_t id) {
        return CoverFact{.unit = std::move(name), .which = PciRange{0, 8, 8}, .identity = {.first_id = id}};
    };
    facts.covers = {cover("a", 1), cover("b", 2), cover("a", 3)};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 1, 0))};
    const Placed placed = place(facts, view);
    EXPECT_EQ(placed.places[0].unit, 0U);
    EXPECT_EQ(ids_of(placed.places[0]), (std::vector<std::uint32_t>{1, 3}));
    ASSERT_EQ(placed.complaints.size(), 1U);
    EXPECT_NE(placed.complaints[0].text.find("behind b and behind a"), std::string::npos)
        << placed.complaints[0].text;
}

TEST(DevicePlaceTest, AnOverrideTakesTheDeviceFromFirmwaresUnit) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::vt_d), unit("b", UnitKind::vt_d)};
    facts.covers = {{.unit = "b",
                     .which = PciRange{0, 8, 8},
                     .origin = {Source::user, "board.smmu:7"},
                     .is_override = true},
                    {.unit = "a", .which = PciRest{}, .origin = {Source::dmar, "offset 0x30"}}};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 1, 0)), endpoint(pci_address(0, 0, 2, 0))};
    const Placed placed = place(facts, view);
    EXPECT_EQ(placed.places[0].unit, 1U);
    EXPECT_TRUE(placed.places[0].is_user);
    EXPECT_EQ(placed.places[0].origins.at(0).overrides, "DMAR");
    EXPECT_EQ(placed.places[1].unit, 0U);
    EXPECT_FALSE(placed.places[1].is_user);
    EXPECT_TRUE(placed.complaints.empty());
}

TEST(DevicePlaceTest, ACoverWithoutAUnitSaysBehindNone) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::vt_d)};
    facts.covers = {{.unit = "", .which = PciRange{0, 8, 8}}, {.unit = "a", .which = PciRest{}}};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 1, 0))};
    const Placed placed = place(facts, view);
    EXPECT_TRUE(placed.places[0].is_said);
    EXPECT_EQ(placed.places[0].unit, std::nullopt);
    EXPECT_TRUE(placed.places[0].ids.empty());
}

TEST(DevicePlaceTest, AnAliasIsMappedAsTheIdThatArrives) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3)};
    facts.covers = {{.unit = "a", .which = PciRange{0, 0, 0xffff}, .identity = {.first_id = 0x10000}}};
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::express_to_pci_bridge, 1, 1),
                      endpoint(pci_address(0, 1, 3, 0), PortType::conventional)};
    EXPECT_EQ(ids_of(place(facts, view).places[1]), (std::vector<std::uint32_t>{0x10100, 0x10118}));
}

TEST(DevicePlaceTest, AMaskWrapsFunctionsOntoOneStream) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v2)};
    facts.covers = {{.unit = "a",
                     .which = PciRange{0, 0x10, 0x17},
                     .identity = {.first_id = 0x400, .rid_mask = 0xfff8, .ignored_bits = 3}}};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 2, 5)), endpoint(pci_address(0, 0, 3, 0))};
    const Placed placed = place(facts, view);
    ASSERT_EQ(placed.places[0].ids.size(), 1U);
    EXPECT_EQ(placed.places[0].ids[0].id, 0x400U);
    EXPECT_EQ(placed.places[0].ids[0].ignored_bits, 3U);
    EXPECT_FALSE(placed.places[1].is_said);
}

TEST(DevicePlaceTest, CoversBeyondTheLimitAreAComplaint) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3)};
    for (std::uint32_t i = 0; i <= most_covers_of_device; ++i) {
        facts.covers.push_back(
            {.unit = "a", .which = PciRange{}, .identity = {.first_id = i, .is_shared = true}});
    }
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 1, 0))};
    const Placed placed = place(facts, view);
    EXPECT_EQ(placed.places[0].ids.size(), most_covers_of_device);
    EXPECT_EQ(placed.complaints.size(), 1U);
    EXPECT_TRUE(placed.places[0].is_cut);
    facts.covers.resize(most_covers_of_device);
    EXPECT_TRUE(place(facts, view).complaints.empty());
    EXPECT_FALSE(place(facts, view).places[0].is_cut);
}

TEST(DevicePlaceTest, IdentitiesBeyondTheLimitAreAComplaint) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3)};
    for (std::uint32_t i = 0; i <= most_ids_of_device; ++i) {
        facts.covers.push_back({.unit = "a", .which = MmioDevice{0x1000}, .identity = {.first_id = i}});
    }
    const Placed placed = place(facts, {});
    EXPECT_EQ(placed.places[0].ids.size(), most_ids_of_device);
    EXPECT_TRUE(placed.places[0].is_cut);
    EXPECT_EQ(placed.complaints.size(), 1U);
    facts.covers.pop_back();
    EXPECT_FALSE(place(facts, {}).places[0].is_cut);
}

TEST(DevicePlaceTest, WhatIsSaidOfBridgesHasItsLimitsToo) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3)};
    HostView view;
    // Eleven bridges, each with more covers than a device keeps identities of, and a card below them all.
    for (std::uint8_t bus = 0; bus < 11; ++bus) {
        view.functions.push_back(bridge(pci_address(0, bus, 0, 0), PortType::conventional, bus + 1, 11));
    }
    view.functions.push_back(endpoint(pci_address(0, 11, 0, 0), PortType::conventional));
    for (std::uint32_t i = 0; i < most_covers_of_device; ++i) {
        facts.covers.push_back(
            {.unit = "a", .which = PciRange{0, 0, 0xffff}, .identity = {.first_id = i << 16}});
    }
    const Placed deep = place(facts, view);
    EXPECT_TRUE(deep.places[11].is_cut);
    EXPECT_EQ(deep.places[11].ids.size(), most_ids_of_device);
    EXPECT_FALSE(deep.places[0].is_cut);
    facts.covers.push_back({.unit = "a", .which = PciRange{0, 0, 0}, .identity = {.first_id = 5}});
    view.functions.resize(1);
    view.functions.push_back(endpoint(pci_address(0, 1, 0, 0), PortType::conventional));
    const Placed below = place(facts, view);
    EXPECT_TRUE(below.places[1].is_cut) << "not all identities of its bridge are known";
    EXPECT_EQ(below.complaints.size(), 2U);
}

TEST(DevicePlaceTest, AllDevicesTogetherHaveALimitOfIdentities) {
    SourceFacts facts;
    facts.units = {unit("a", UnitKind::smmu_v3)};
    for (std::uint32_t i = 0; i < most_covers_of_device; ++i) {
        facts.covers.push_back(
            {.unit = "a", .which = PciRange{0, 0, 0xffff}, .identity = {.first_id = i << 16}});
    }
    HostView view;
    for (std::uint32_t rid = 0; rid < most_ids / most_covers_of_device + 2; ++rid) {
        view.functions.push_back(endpoint(PciAddress{0, static_cast<std::uint16_t>(rid)}));
    }
    const Placed placed = place(facts, view);
    EXPECT_EQ(std::ranges::count(placed.places, true, &DevicePlace::is_cut), 2);
    EXPECT_TRUE(placed.places.back().is_cut);
    EXPECT_TRUE(placed.places.back().ids.empty());
    EXPECT_EQ(placed.complaints.size(), 2U);
}

}  // namespace
}  // namespace guestmem::dma

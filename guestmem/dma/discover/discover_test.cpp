// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/discover.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "guestmem/dma/discover/testing/machine_tree.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

Result<Inventory> discover_kept(const std::string& machine, const std::vector<std::string>& words = {}) {
    const auto tree =
        GM_TRY(open_host_tree(GUESTMEM_SOURCE "/tests/conformance/machines/" + machine + ".tar"));
    return discover(*tree, GM_TRY(read_smmu_words(words, &read_text_file)));
}

/// Sets of device names.
using Partition = std::set<std::set<std::string>>;

Partition kernel_groups(const Inventory& inventory) {
    Partition groups;
    for (const KernelGroup& group : inventory.kernel_groups)
        groups.insert(std::set<std::string>(group.members.begin(), group.members.end()));
    return groups;
}

/// Of devices that are in a group.
Partition containments(const Inventory& inventory) {
    Partition sets;
    for (const Containment& containment : inventory.containments) {
        std::set<std::string> names;
        for (const std::size_t index : containment.devices)
            if (inventory.devices[index].kernel_group) names.insert(inventory.devices[index].name);
        if (!names.empty()) sets.insert(std::move(names));
    }
    return sets;
}

class KeptMachine : public ::testing::TestWithParam<const char*> {};

TEST_P(KeptMachine, ContainmentsAreTheKernelsGroups) {
    const auto inventory = discover_kept(GetParam());
    ASSERT_TRUE(inventory) << inventory.error().message();
    EXPECT_EQ(containments(*inventory), kernel_groups(*inventory));
    for (const Containment& containment : inventory->containments)
        for (const Join& join : containment.joins)
            EXPECT_NE(join.reason, JoinReason::kernel_group) << join.text;
}

INSTANTIATE_TEST_SUITE_P(All, KeptMachine,
                         ::testing::Values("vtd", "vtd-off", "amdvi", "virtio-iommu", "smmuv3-tree",
                                           "smmuv3-acpi", "none"),
                         [](const auto& machine) {
                             std::string name = machine.param;
                             std::ranges::replace(name, '-', '_');
                             return name;
                         });

TEST(DiscoverTest, AUnitIsNamedByFirmwareAndByTheKernel) {
    const auto inventory = discover_kept("vtd");
    ASSERT_TRUE(inventory) << inventory.error().message();
    ASSERT_THAT(inventory->units, SizeIs(1));
    const Unit& unit = inventory->units[0];
    EXPECT_EQ(unit.name, "vtd@fed90000");
    EXPECT_EQ(unit.kernel_name, "dmar0");
    EXPECT_EQ(unit.abilities.can_forbid_reads, false);
    EXPECT_EQ(unit.abilities.input_bits, 39);
    ASSERT_THAT(unit.origins, SizeIs(2));
    EXPECT_EQ(unit.origins[0].source, Source::dmar);
    EXPECT_EQ(unit.origins[1].source, Source::kernel);
}

TEST(DiscoverTest, AUnitThatTheKernelDoesNotUseProtectsNobody) {
    const auto inventory = discover_kept("vtd-off");
    ASSERT_TRUE(inventory) << inventory.error().message();
    ASSERT_THAT(inventory->units, SizeIs(1));
    EXPECT_EQ(inventory->units[0].kernel_name, "");
    for (const Device& device : inventory->devices)
        EXPECT_NE(device.protection, Protection::behind_unit) << device.name;
}

TEST(DiscoverTest, TheUsersWordStandsInPlaceOfTheTables) {
    const auto inventory = discover_kept("vtd", {"smmu", "vtd", "unit", "mine", "fed90000"});
    ASSERT_TRUE(inventory) << inventory.error().message();
    ASSERT_THAT(inventory->units, SizeIs(1));
    EXPECT_EQ(inventory->units[0].name, "mine");
    EXPECT_EQ(inventory->units[0].kernel_name, "dmar0");
    EXPECT_THAT(to_string(inventory->units[0].origins[0]), HasSubstr("overrides DMAR"));
    const auto ignored = discover_kept("vtd", {"smmu", "vtd", "ignore"});
    ASSERT_TRUE(ignored) << ignored.error().message();
    for (const Unit& unit : ignored->units)
        for (const Origin& origin : unit.origins) EXPECT_NE(origin.source, Source::dmar);
}

TEST(DiscoverTest, ATableThatHasToBeThereAndIsNotIsAnError) {
    const auto inventory = discover_kept("none", {"smmu", "vtd", "require"});
    ASSERT_FALSE(inventory);
    EXPECT_EQ(inventory.error().code(), Errc::not_found);
}

TEST(DiscoverTest, ATableThatCannotBeUsedIsAComplaint) {
    testing::MachineTree machine;
    machine.put("sys/firmware/acpi/tables/DMAR", "DMAR");
    machine.put("proc/cmdline", "\n");
    const auto tree = open_host_tree(machine.path());
    ASSERT_TRUE(tree) << tree.error().message();
    const auto inventory = discover(**tree, {});
    ASSERT_TRUE(inventory) << inventory.error().message();
    EXPECT_TRUE(std::ranges::any_of(inventory->complaints, [](const Complaint& complaint) {
        return complaint.origin.source == Source::dmar && complaint.text.starts_with("it is left out: ");
    }));
}

}  // namespace
}  // namespace guestmem::dma

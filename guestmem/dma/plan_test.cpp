// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>

namespace guestmem::dma {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::uint64_t mib = 1 << 20;

/// Functions of bus 1, each alone in its containment and group, behind one VT-d, taken by VFIO.
Inventory machine(std::size_t count) {
    Inventory inventory;
    inventory.units.push_back({.name = "vtd@fed90000",
                               .kind = UnitKind::vt_d,
                               .kernel_name = "dmar0",
                               .abilities = {.page_sizes = 4096 | 2 * mib | 1024 * mib,
                                             .input_bits = 39,
                                             .has_interrupt_remapping = true,
                                             .can_forbid_reads = false}});
    for (std::size_t i = 0; i < count; ++i) {
        const PciAddress address{0, static_cast<std::uint16_t>(0x100 + i)};
        inventory.devices.push_back({.name = to_string(address),
                                     .pci = address,
                                     .driver = "vfio-pci",
                                     .unit = 0,
                                     .ids = {address.rid},
                                     .protection = Protection::behind_unit,
                                     .containment = i,
                                     .kernel_group = static_cast<std::uint32_t>(i),
                                     .is_interrupt_isolated = true});
        inventory.containments.push_back({.devices = {i}, .kernel_groups = {static_cast<std::uint32_t>(i)}});
    }
    return inventory;
}

/// Both into one containment.
void join(Inventory& inventory, std::size_t one, std::size_t other) {
    Containment& into = inventory.containments[inventory.devices[one].containment];
    Containment& from = inventory.containments[inventory.devices[other].containment];
    for (const std::size_t device : from.devices) {
        into.devices.push_back(device);
        inventory.devices[device].containment = inventory.devices[one].containment;
    }
    from.devices.clear();
    into.joins.push_back({JoinReason::missing_acs_function, one, other, "they are functions of one device"});
}

GrantedVm vm(std::string name, std::vector<std::string> devices) {
    GrantedVm vm;
    vm.name = std::move(name);
    vm.memory = {{.name = "ram", .at = 0, .size_bytes = 64 * mib, .page_bytes = 2 * mib}};
    for (std::size_t i = 0; i < devices.size(); ++i)
        vm.devices.push_back({.name = devices[i], .line = 10 + i});
    return vm;
}

auto is_problem(ProblemKind kind, bool is_fatal, const char* text) {
    return AllOf(Field("kind", &Problem::kind, kind), Field("is_fatal", &Problem::is_fatal, is_fatal),
                 Field("text", &Problem::text, HasSubstr(text)));
}

TEST(PlanTest, AGoodMachineHasAPlanWithoutProblems) {
    const Plan plan = make_plan(machine(2), {.vms = {vm("a", {"0000:01:00.0", "01:00.1"})}});
    EXPECT_THAT(plan.problems, IsEmpty());
    EXPECT_TRUE(plan.would_work());
    ASSERT_EQ(plan.domains.size(), 1U) << "devices of equal reach share a domain";
    const PlannedDomain& domain = plan.domains[0];
    EXPECT_THAT(domain.devices, ElementsAre("0000:01:00.0", "0000:01:00.1"));
    ASSERT_EQ(domain.mappings.size(), 1U);
    EXPECT_EQ(domain.mappings[0].size_bytes, 64 * mib);
    EXPECT_EQ(domain.mappings[0].page_bytes, 2 * mib);
    EXPECT_EQ(domain.page_entries, 32U);
    EXPECT_EQ(domain.locked_bytes, 64 * mib);
    EXPECT_EQ(plan.vms[0].locked_bytes, 64 * mib);
    EXPECT_GT(domain.seconds_unpopulated, domain.seconds_populated);
}

TEST(PlanTest, WriteOnlyIsShownAsTheUnitKeepsIt) {
    Inventory inventory = machine(1);
    Grants grants{.vms = {vm("a", {"01:00.0"})}};
    grants.vms[0].devices[0].reaches_all = false;
    grants.vms[0].devices[0].ranges = {{.memory = 0, .size_bytes = 4096, .permission = {false, true}}};
    const Plan kept = make_plan(inventory, grants);
    EXPECT_EQ(kept.domains.at(0).mappings.at(0).asked, (Permission{false, true}));
    EXPECT_EQ(kept.domains.at(0).mappings.at(0).kept, (Permission{true, true}));
    EXPECT_THAT(kept.problems,
                ElementsAre(is_problem(ProblemKind::permission_kept_wider, false, "can also read")));
    inventory.units[0].abilities.can_forbid_reads = true;
    const Plan exact = make_plan(inventory, grants);
    EXPECT_EQ(exact.domains.at(0).mappings.at(0).kept, (Permission{false, true}));
    EXPECT_THAT(exact.problems, IsEmpty());
}

TEST(PlanTest, ADeviceOfTwoVmsIsOneProblemForEach) {
    const Plan plan = make_plan(machine(1), {.vms = {vm("a", {"01:00.0"}), vm("b", {"01:00.0"})}});
    EXPECT_THAT(plan.problems,
                ElementsAre(is_problem(ProblemKind::claimed_twice, true, "VM 'a''s by line 10")));
    EXPECT_FALSE(plan.would_work());
}

TEST(PlanTest, WhatCanOnlyBeContainedTogetherIsForOneVmWithOneReach) {
    Inventory inventory = machine(2);
    join(inventory, 0, 1);
    const Plan two = make_plan(inventory, {.vms = {vm("a", {"01:00.0"}), vm("b", {"01:00.1"})}});
    EXPECT_THAT(two.problems,
                Contains(is_problem(ProblemKind::containment_split, true, "which is VM 'a''s")));
    Grants reach{.vms = {vm("a", {"01:00.0", "01:00.1"})}};
    EXPECT_TRUE(make_plan(inventory, reach).would_work());
    reach.vms[0].devices[1].reaches_all = false;
    reach.vms[0].devices[1].ranges = {{.memory = 0, .size_bytes = mib}};
    EXPECT_THAT(make_plan(inventory, reach).problems,
                ElementsAre(is_problem(ProblemKind::containment_split, true, "reaches other memory")));
}

TEST(PlanTest, AGroupMemberWithAHostDriverIsNamedWithWhatTakesItAway) {
    Inventory inventory = machine(2);
    join(inventory, 0, 1);
    inventory.devices[1].driver = "e1000e";
    const Plan plan = make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}});
    ASSERT_THAT(plan.problems, ElementsAre(is_problem(ProblemKind::group_not_viable, true,
                                                      "'0000:01:00.1' is in its group")));
    EXPECT_THAT(plan.problems[0].text, HasSubstr("'e1000e' (they are functions of one device)"));
    EXPECT_THAT(plan.problems[0].commands,
                Contains("echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind"));
    inventory.devices[1].is_bridge = true;
    EXPECT_TRUE(make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}}).would_work())
        << "bridges keep their driver";
}

TEST(PlanTest, EachThingThatIsWrongWithADeviceIsSaid) {
    Inventory inventory = machine(6);
    auto& devices = inventory.devices;
    devices[0].is_bridge = true;
    devices[1].protection = Protection::none;
    devices[2].driver = "nvme";
    devices[3].reserved = {{.first = 0x1000, .last = 0x1fff, .kind = ReservedKind::direct}};
    devices[4].is_interrupt_isolated = false;
    devices[5].driver.clear();
    Grants grants{
        .vms = {vm("a", {"01:00.0", "01:00.1", "01:00.2", "01:00.3", "01:00.4", "01:00.5", "02:00.0"})}};
    const Plan plan = make_plan(inventory, grants);
    EXPECT_THAT(plan.problems,
                ElementsAre(is_problem(ProblemKind::is_bridge, true, "is a bridge"),
                            is_problem(ProblemKind::not_protected, true, "behind no IOMMU"),
                            is_problem(ProblemKind::driver_bound, true, "driver 'nvme'"),
                            is_problem(ProblemKind::firmware_memory, true, "0x1000 to 0x1fff"),
                            is_problem(ProblemKind::interrupts_not_isolated, true, "not isolated"),
                            is_problem(ProblemKind::driver_bound, false, "no driver yet"),
                            is_problem(ProblemKind::no_such_device, true, "no device '02:00.0'")));
    inventory.settings.may_use_unsafe_interrupts = true;
    EXPECT_THAT(make_plan(inventory, grants).problems,
                Contains(is_problem(ProblemKind::interrupts_not_isolated, false, "not isolated")));
}

TEST(PlanTest, MemoryOverTheInterruptWindowIsRefused) {
    Inventory inventory = machine(1);
    inventory.devices[0].reserved = {{.first = 0xfee00000, .last = 0xfeefffff, .kind = ReservedKind::msi}};
    Grants grants{.vms = {vm("a", {"01:00.0"})}};
    EXPECT_TRUE(make_plan(inventory, grants).would_work());
    grants.vms[0].memory.push_back({.name = "high", .at = 0xfee00000 - mib, .size_bytes = 2 * mib});
    EXPECT_THAT(
        make_plan(inventory, grants).problems,
        ElementsAre(is_problem(ProblemKind::reserved_overlap, true, "memory 'high' lies over 0xfee00000")));
    grants.vms[0].memory.back().size_bytes = mib;
    EXPECT_TRUE(make_plan(inventory, grants).would_work()) << "it ends just before";
}

TEST(PlanTest, AddressesThatTheUnitDoesNotHaveAreRefused) {
    Grants grants{.vms = {vm("a", {"01:00.0"})}};
    grants.vms[0].memory.push_back({.name = "far", .at = (std::uint64_t{1} << 39) - mib, .size_bytes = mib});
    EXPECT_TRUE(make_plan(machine(1), grants).would_work());
    grants.vms[0].memory.back().size_bytes = mib + 4096;
    EXPECT_THAT(make_plan(machine(1), grants).problems,
                ElementsAre(is_problem(ProblemKind::beyond_unit, true, "39-bit addresses")));
}

TEST(PlanTest, LimitsInForceAreHeld) {
    Inventory inventory = machine(1);
    inventory.settings.memory_lock_bytes = 8 * mib;
    inventory.settings.dma_entry_limit = 3;
    Grants grants{.vms = {vm("a", {"01:00.0"})}};
    const Plan locked = make_plan(inventory, grants);
    ASSERT_THAT(locked.problems,
                ElementsAre(is_problem(ProblemKind::memory_lock, true, "64M would be locked")));
    EXPECT_THAT(locked.problems[0].commands, Contains("ulimit -l 65536"));
    grants.vms[0].is_memory_lock_unlimited = true;
    EXPECT_TRUE(make_plan(inventory, grants).would_work());
    grants.vms[0].devices[0].reaches_all = false;
    for (std::uint64_t i = 0; i < 4; ++i)
        grants.vms[0].devices[0].ranges.push_back(
            {.memory = 0, .offset_bytes = 2 * i * 4096, .size_bytes = 4096});
    EXPECT_THAT(
        make_plan(inventory, grants).problems,
        ElementsAre(is_problem(ProblemKind::entry_limit, true, "needs 4 mappings, and VFIO takes 3")));
    grants.vms[0].devices[0].ranges.pop_back();
    EXPECT_TRUE(make_plan(inventory, grants).would_work());
    inventory.settings.memory_total_bytes = 4096;
    EXPECT_THAT(make_plan(inventory, grants).problems,
                ElementsAre(is_problem(ProblemKind::memory_lock, true, "the machine has 4K")));
}

TEST(PlanTest, WritingToMemoryThatTheVmMayOnlyReadIsRefused) {
    Grants grants{.vms = {vm("a", {"01:00.0"})}};
    grants.vms[0].memory[0].is_writable = false;
    EXPECT_TRUE(make_plan(machine(1), grants).would_work()) << "the whole VM means what the VM itself may do";
    grants.vms[0].devices[0].reaches_all = false;
    grants.vms[0].devices[0].ranges = {{.memory = 0, .size_bytes = 4096}};
    EXPECT_THAT(make_plan(machine(1), grants).problems,
                ElementsAre(is_problem(ProblemKind::read_only_memory, true, "may only read")));
}

TEST(PlanTest, OneVmsPlanStillSeesTheOthersDevices) {
    const Grants grants{.vms = {vm("a", {"01:00.0"}), vm("b", {"01:00.0", "01:00.1"})}};
    const Plan plan = make_plan(machine(2), grants, "b");
    EXPECT_THAT(plan.problems, ElementsAre(is_problem(ProblemKind::claimed_twice, true, "VM 'a''s")));
    ASSERT_EQ(plan.domains.size(), 1U);
    EXPECT_EQ(plan.vms.at(plan.domains[0].vm).name, "b");
    EXPECT_FALSE(make_plan(machine(2), grants, "a").would_work()) << "it is the other one's problem, too";
}

/// The property that everything else is for.
TEST(PlanTest, DevicesOfOneContainmentAreNeverPlannedForTwoVmsWithoutARefusal) {
    std::mt19937 random{5};
    const auto below = [&](std::size_t limit) {
        return std::uniform_int_distribution<std::size_t>{0, limit - 1}(random);
    };
    int count_split = 0;
    for (int round = 0; round < 500; ++round) {
        Inventory inventory = machine(12);
        for (std::size_t i = below(6); i > 0; --i) {
            const std::size_t one = below(12);
            const std::size_t other = below(12);
            if (inventory.devices[one].containment != inventory.devices[other].containment)
                join(inventory, one, other);
        }
        Grants grants{.vms = {vm("a", {}), vm("b", {}), vm("c", {})}};
        std::vector<std::optional<std::size_t>> owner(12);
        for (std::size_t device = 0; device < 12; ++device) {
            if (below(2) == 0) continue;
            owner[device] = below(3);
            grants.vms[*owner[device]].devices.push_back(
                {.name = inventory.devices[device].name, .line = device + 1});
        }
        bool is_split = false;
        for (const Containment& containment : inventory.containments)
            for (const std::size_t one : containment.devices)
                for (const std::size_t other : containment.devices)
                    is_split |= owner[one] && owner[other] && owner[one] != owner[other];
        const Plan plan = make_plan(inventory, grants);
        ASSERT_EQ(plan.would_work(), !is_split) << "round " << round;
        for (std::size_t vm = 0; vm < grants.vms.size(); ++vm) {
            bool is_concerned = false;
            for (const Containment& containment : inventory.containments)
                for (const std::size_t one : containment.devices)
                    for (const std::size_t other : containment.devices)
                        is_concerned |= owner[one] == vm && owner[other] && owner[other] != vm;
            // The other one may be told of a third; nobody who is concerned is told that it would work.
            if (is_concerned) {
                ASSERT_FALSE(make_plan(inventory, grants, grants.vms[vm].name).would_work()) << round;
            }
        }
        count_split += is_split ? 1 : 0;
    }
    EXPECT_GT(count_split, 50);
    EXPECT_LT(count_split, 450);
}

TEST(PlanTest, GroupsThatTheCommandLineMadeSmallerAreNotForTwoVms) {
    Inventory inventory = machine(2);
    inventory.unproven_separations = {{.port = pci_address(0, 0, 0x1c, 0), .is_overridden = false}};
    const Grants two{.vms = {vm("a", {"01:00.0"}), vm("b", {"01:00.1"})}};
    EXPECT_THAT(make_plan(inventory, two).problems, IsEmpty()) << "the kernel knows the hardware";
    inventory.unproven_separations[0].is_overridden = true;
    EXPECT_THAT(make_plan(inventory, two, "b").problems,
                ElementsAre(is_problem(ProblemKind::acs_overridden, true, "as at 0000:00:1c.0")));
    EXPECT_THAT(make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}}).problems,
                ElementsAre(is_problem(ProblemKind::acs_overridden, false, "pcie_acs_override")));
}

TEST(PlanTest, DriversOfVfioAreKnownByTheirNames) {
    Inventory inventory = machine(2);
    inventory.devices[0].driver = "mlx5_vfio_pci";
    EXPECT_THAT(make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}}).problems, IsEmpty());
    inventory.devices[0].driver = "pci-stub";
    EXPECT_THAT(make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}}).problems,
                ElementsAre(is_problem(ProblemKind::driver_bound, true, "'pci-stub'")));
    join(inventory, 0, 1);
    EXPECT_THAT(make_plan(inventory, {.vms = {vm("a", {"01:00.1"})}}).problems, IsEmpty())
        << "a neighbor may have it";
}

TEST(PlanTest, AMachineWithoutVfioIsToldToLoadIt) {
    Inventory inventory = machine(1);
    inventory.settings.has_vfio = false;
    const Plan plan = make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}});
    EXPECT_THAT(plan.problems,
                ElementsAre(is_problem(ProblemKind::not_settled, false, "VFIO is not loaded")));
    inventory.settings.has_iommufd = true;
    EXPECT_THAT(make_plan(inventory, {.vms = {vm("a", {"01:00.0"})}}).problems, IsEmpty());
}

TEST(PlanTest, EveryKindOfProblemHasANameOfItsOwn) {
    std::vector<std::string_view> names;
    for (int kind = 0; kind <= static_cast<int>(ProblemKind::not_settled); ++kind)
        names.push_back(to_string(static_cast<ProblemKind>(kind)));
    std::ranges::sort(names);
    EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
    EXPECT_THAT(names, Not(Contains("unknown")));
}

}  // namespace
}  // namespace guestmem::dma

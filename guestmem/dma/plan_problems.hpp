// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/plan.hpp"
#include "guestmem/dma/reach.hpp"

/// The reasons why a plan would not work, each with what it is about and the commands that would mend it.
///
/// Contract: each function looks at one thing and adds what is wrong with it, nothing when nothing is. VMs and devices
/// are indices into the grants and the inventory. Names that come from the machine go into commands only when they are
/// PCI addresses: nobody else's bytes become a shell's words.
/// Lifetime: inventory and grants outlive it.
/// Threads: one at a time.

namespace guestmem::dma {

class PlanProblems {
public:
    PlanProblems(const Inventory& inventory, const Grants& grants) : inventory_(inventory), grants_(grants) {}

    void no_such_device(std::size_t vm, const GrantedDevice& granted);
    void claimed_twice(std::size_t vm, const GrantedDevice& granted, std::size_t other_vm,
                       std::size_t other_line);
    /// Whether it is a bridge, is protected, isolated, free of the host's drivers and of firmware's ranges.
    void look_at_device(std::size_t vm, const GrantedDevice& granted, std::size_t index);
    void look_at_reach(std::size_t vm, const GrantedDevice& granted, const Device& device, const Reach& reach,
                       std::uint64_t granule);
    /// Who else is in its group; `vm_of_device` says whose each device is to be.
    void look_at_group(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                       const std::vector<std::optional<std::size_t>>& vm_of_device);
    void split_between_vms(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                           std::size_t other_vm, std::size_t other_index);
    void split_by_reach(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                        std::size_t other_index);
    /// Whether groups are as the hardware keeps devices apart; `count_vms` have devices.
    void look_at_separations(std::size_t count_vms);
    void look_at_vfio(std::size_t vm);
    void too_many_entries(std::size_t vm, const std::string& device, std::size_t count, std::uint64_t limit);
    void too_much_locked(std::size_t vm, std::uint64_t bytes, std::uint64_t limit);
    void more_than_there_is(std::size_t vm, std::uint64_t bytes, std::uint64_t total);

    /// By line; of this VM only, unless it is empty.
    [[nodiscard]] std::vector<Problem> take(std::string_view only_vm);

private:
    Problem& add(ProblemKind kind, std::size_t vm, const GrantedDevice& granted, std::string text);
    Problem& add_for_vm(ProblemKind kind, std::size_t vm, std::string text);
    void look_at_driver(std::size_t vm, const GrantedDevice& granted, const Device& device);
    void look_at_reserved(std::size_t vm, const GrantedDevice& granted, const Device& device,
                          const Reach& reach);

    const Inventory& inventory_;
    const Grants& grants_;
    std::vector<Problem> problems_;
};

}  // namespace guestmem::dma

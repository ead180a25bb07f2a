// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/control/server.hpp"
#include "guestmem/vmm/board_plan.hpp"
#include "guestmem/vmm/dirty_harvest.hpp"
#include "guestmem/vmm/machine.hpp"
#include "guestmem/vmm/plugged_shares.hpp"
#include "guestmem/vmm/vm_calls.hpp"

/// The answers to control calls of one machine: what its operator asks and tells.
///
/// Concepts: vm_calls.hpp has the calls as types, docs/protocols/vm-control.md what they mean.
/// Contract: only root and the machine's own user are heard; the kernel says who asks. Nothing that a caller sends does
/// more than an error. vm.pause and vm.resume say the state that is wanted: a second one changes nothing, whoever
/// paused.
/// Threads: the owner's loop. vm.pause waits until the processors stand, vm.attach for the share service.
/// Lifetime: machine and plan outlive it.

namespace guestmem::vmm {

class VmControl {
public:
    /// `stop` ends the machine after the answer.
    VmControl(Machine& machine, const BoardPlan& plan, std::function<void()> stop);
    VmControl(const VmControl&) = delete;
    VmControl& operator=(const VmControl&) = delete;

    [[nodiscard]] Result<control::Outcome> answer(const PeerCredentials& caller,
                                                  const control::Request& request);

private:
    [[nodiscard]] Result<std::string> act(const control::Request& request);
    [[nodiscard]] Result<std::string> answer_state(const std::string& call);
    [[nodiscard]] std::string stat() const;
    [[nodiscard]] Result<std::string> memory_map(const MemoryMapCall& call) const;
    [[nodiscard]] Result<std::string> attach(const AttachShareCall& call);
    [[nodiscard]] Result<std::string> switch_dirty_log(const DirtyLogCall& call);
    [[nodiscard]] Result<std::string> harvest(const DirtyHarvestCall& call);
    [[nodiscard]] std::string backend_of(const Region& region) const;

    Machine& machine_;
    const BoardPlan& plan_;
    std::function<void()> stop_;
    DirtyHarvest harvest_;
    PluggedShares plugged_;
};

/// The socket of the machine of that name; an error for what is no name of a machine.
[[nodiscard]] Result<std::string> vm_control_path(const std::string& folder, const std::string& name);
/// The other way round: the machine's name of a file in that folder; nothing for other files.
[[nodiscard]] std::optional<std::string> vm_name_of(std::string_view file_name);

}  // namespace guestmem::vmm

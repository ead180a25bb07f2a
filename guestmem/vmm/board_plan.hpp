// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/pci/bar_plan.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/vmm/config/qvmconf.hpp"

/// What a machine will be made of, said before anything is made: its configuration, and what this host makes of it.
///
/// Concepts: `vmm/config` has checked what a file can tell by itself. A plan adds what follows from the host: which
/// backend each memory is and whether it can be had, that files are there, where BARs and shared memory will lie.
/// Contract: nothing is made or opened for writing. Every mistake is in the error, each with its line.
/// Threads: any; plain values.
/// Example:
///     const BoardPlan plan = GM_TRY(plan_board(GM_TRY(read_words(words, &read_text_file))));

namespace guestmem::vmm {

/// RAM or ROM: bytes of one backend, in one or two pieces of guest addresses.
struct PlannedMemory {
    std::string name;  ///< "ram0"
    bool is_rom = false;
    std::vector<GuestRange> ranges;  ///< the first bytes of the backend are in the first one
    BackendPlan backend;
};

struct BoardPlan {
    ConfigRead read;
    std::vector<PlannedMemory> memory;
    std::optional<std::uint64_t> ioapic_base;
    bool has_pci = false;
    std::optional<std::uint64_t> ecam_base;
    pci::AddressWindows pci_windows = {};
    GuestRange share_window;  ///< where regions of `vdev shmem` appear

    [[nodiscard]] const VmConfig& config() const { return read.config; }
};

[[nodiscard]] Result<BoardPlan> plan_board(ConfigRead read);

/// The machine that follows, for a terminal.
[[nodiscard]] std::string explain_board(const BoardPlan& plan);

}  // namespace guestmem::vmm

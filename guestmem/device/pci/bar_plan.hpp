// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/device/pci/bars.hpp"

/// Where BARs go before the guest runs, so that a guest without firmware finds them assigned.
///
/// Concepts: BARs of 64 bits go into the 64-bit window, and below 4 GiB where that is absent or full; all others into
/// the 32-bit window, ports into theirs. The largest come first, each at the first place that is a multiple of its size
/// (PCI 3.0, 6.2.5.1) and that nothing has: neither a window of the bus nor another BAR.
/// Contract: an answer for each request, in their order, or an error that names the first BAR without a place and what
/// its window has. No BAR is at zero or where its register would be all ones: those are no addresses.
/// Threads: any; plain values.
/// Cost: requests times windows.

namespace guestmem::pci {

struct AddressWindow {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
};

struct AddressWindows {
    std::optional<AddressWindow> memory32 = {};
    std::optional<AddressWindow> memory64 = {};
    std::optional<AddressWindow> ports = {};
};

struct BarRequest {
    std::string name;
    Bar bar;
};

[[nodiscard]] Result<std::vector<std::uint64_t>> plan_bars(std::span<const BarRequest> requests,
                                                           const AddressWindows& windows,
                                                           std::span<const AddressWindow> taken_memory,
                                                           std::span<const AddressWindow> taken_ports);

/// The runs that a bus has windows in.
[[nodiscard]] std::vector<AddressWindow> taken_on(const Bus& bus);

}  // namespace guestmem::pci

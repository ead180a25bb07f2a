// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/device_list.hpp"
#include "guestmem/dma/pci_alias.hpp"
#include "guestmem/dma/unit_table.hpp"

/// Behind which unit each device is by what is said of it, and with which identities its requests arrive there.
///
/// Concepts: of all covers that select a device, choose_covers() of assemble.hpp says which hold. A cover without an
/// identity of its own means the requester id; a function below a bridge that aliases has the bridge's id besides.
/// A virtual function that nothing selects by itself is where its physical function is, on VT-d: such units look it
/// up by the latter. A unit's own function is not behind that unit.
/// Contract: one place per device, with the device's index. A cover of a unit that nobody names is a complaint and
/// counts for nothing.
/// Limits: most_covers_of_device covers of a function are looked at, most_ids_of_device of any device's covers and
/// identities, and most_ids
/// of all devices together are kept, and most_alias_steps covers are looked at for bridges that alias. A device that
/// meets a limit is cut, which is a complaint: it counts as not protected (resolve.cpp).
/// Cost: n log n in covers and devices, and most_alias_steps.
/// Threads: any.

namespace guestmem::dma {

inline constexpr std::size_t most_covers_of_device = 64;
inline constexpr std::size_t most_ids_of_device = 512;
inline constexpr std::size_t most_ids = std::size_t{1} << 20;
inline constexpr std::size_t most_alias_steps = std::size_t{1} << 24;

struct DeviceId {
    std::uint32_t id = 0;
    std::uint32_t ignored_bits = 0;
};

struct DevicePlace {
    bool is_said = false;  ///< some cover holds for it
    bool is_user = false;  ///< and it is the user's word
    std::optional<std::size_t> unit = {};
    std::vector<DeviceId> ids = {};
    std::vector<Origin> origins = {};
    /// A limit was met: it may have identities that are not in ids, so that nobody can say who shares them.
    bool is_cut = false;
};

[[nodiscard]] std::vector<DevicePlace> place_devices(const SourceFacts& facts, const DeviceList& list,
                                                     const PciTopology& topology, const PciAliases& aliases,
                                                     const UnitTable& units, ComplaintList& complaints);

/// The requester ids that a function's requests can carry: its own, and those of bridges above it; at most
/// most_ids_of_device, which is more than a segment has buses.
[[nodiscard]] std::vector<DeviceId> requester_ids(const PciTopology& topology, const PciAliases& aliases,
                                                  std::uint32_t function);

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A `vdev shmem` in use: the device found, its interrupt routed, its connections and what they were told.
//
// Concepts: a *connection* is one attachment with its control page. The interrupt handler reads `status` of every
//   connection, since they share one line, and keeps what it says: who has notified, who is active, how often.
// Contract: the device is the MMIO one at option `loc`, else PCI 1c05:0001. The interrupt is option `intr` (a pin of
//   the I/O APIC), else the `vector` register, as a level line; with `msi=1` an MSI of the PCI form.
//   Whoever reads what a connection was told does so with interrupts off, as they are outside of wait_until().
// Limits: 16 connections at a time.
// Example: open_shmem(); Connection* one = attach("TEST1", 16); wait_until([&] { return one->changes; }, 1000);

#include <cstdint>

#include "guests/payload/lib/factory_page.hpp"
#include "guests/payload/lib/pci.hpp"

namespace guestmem::payload {

struct Connection {
    bool is_attached;
    ControlPage control;
    std::uint32_t pages;
    std::uint32_t idx;
    std::uint32_t notified;  // everybody who has notified; whoever has seen it clears it
    std::uint32_t active;    // the set that `status` said last
    std::uint64_t kicks;     // how often `status` said that somebody notified
    std::uint64_t changes;   // how often the active set changed
};

struct ShmemDevice {
    FactoryPage factory;
    bool is_pci;
    PciFunction function;
    std::uint32_t pin;
    bool uses_msi;
};

// Says what is missing, and whether the device is usable.
bool open_shmem(ShmemDevice& device);
std::uint64_t count_shmem_interrupts();

// A null pointer where the device refuses, which `status` tells the reason of, or its memory is out of reach.
Connection* attach(const ShmemDevice& device, Text name, std::uint32_t pages, std::uint32_t& status);
void detach(Connection& connection);

}  // namespace guestmem::payload

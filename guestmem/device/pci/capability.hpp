// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/device/pci/config_space.hpp"

/// A capability that does something: its bytes in the configuration, and what happens when a guest writes them.
///
/// Contract: image() is asked once, when the function is made. programmed() is called after each write to the
/// configuration with the capability's bytes as they are then, whether they changed or not. refresh() is called before
/// each read and may store what changes on its own (pending bits).
/// Threads: image(), programmed() and refresh() are called with the function's mutex held; they must not call the
/// function.

namespace guestmem::pci {

class Capability {
public:
    Capability() = default;
    Capability(const Capability&) = delete;
    Capability& operator=(const Capability&) = delete;
    virtual ~Capability() = default;

    [[nodiscard]] virtual CapabilityImage image() const = 0;
    virtual void programmed(std::span<const std::byte> bytes) = 0;
    virtual void refresh(std::span<std::byte>) {}
    /// Whether the guest has switched to messages, so that the INTx pin is silent.
    [[nodiscard]] virtual bool replaces_intx() const { return false; }
};

}  // namespace guestmem::pci

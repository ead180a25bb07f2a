// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// How a device asks for its guest's attention: a line that is up or down, or a message.
///
/// Concepts: an InterruptLine is one pin of an interrupt controller as one device sees it. Who shares a pin with others
/// has an input of its own, and the pin is up while any of them is (interrupt_pin.hpp). Edge and level are the business
/// of the controller: a device says what its output is, and a pulse is up and down.
/// A message interrupt (MSI) is an eventfd that becomes the message: whoever writes the eventfd, be it another virtual
/// machine, interrupts the guest, and nobody of ours runs. A masked one keeps its kicks in the eventfd until it is
/// unmasked.
/// Contract: set() of what is so already changes nothing. No call waits. What fails behind set() is the machine's to
/// report.
/// Threads: any.

namespace guestmem {

class InterruptLine {
public:
    InterruptLine() = default;
    InterruptLine(const InterruptLine&) = delete;
    InterruptLine& operator=(const InterruptLine&) = delete;
    virtual ~InterruptLine() = default;

    virtual void set(bool is_up) = 0;
    void pulse() {
        set(true);
        set(false);
    }
};

/// What a guest wrote into an MSI capability or into an entry of an MSI-X table.
struct MsiMessage {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
    friend bool operator==(const MsiMessage&, const MsiMessage&) = default;
};

/// One eventfd on its way to being a message. Born masked; destroyed, it is no interrupt any more.
class MsiInterrupt {
public:
    MsiInterrupt() = default;
    MsiInterrupt(const MsiInterrupt&) = delete;
    MsiInterrupt& operator=(const MsiInterrupt&) = delete;
    virtual ~MsiInterrupt() = default;

    /// unmask() with that message follows: a machine may prepare what is expected of many by one call. Binds nobody.
    virtual void expect(MsiMessage /*message*/) {}
    /// Kicks that came meanwhile are delivered as one. What fails changes nothing.
    [[nodiscard]] virtual Result<void> unmask(MsiMessage message) = 0;
    [[nodiscard]] virtual Result<void> mask() = 0;

    /// Another eventfd that is the same message, masked and unmasked with the first. It stays open until remove().
    [[nodiscard]] virtual Result<void> add(FdView eventfd) = 0;
    virtual void remove(FdView eventfd) = 0;
};

/// Who makes message interrupts: a virtual machine, or a fake of it.
class MsiConnector {
public:
    MsiConnector() = default;
    MsiConnector(const MsiConnector&) = delete;
    MsiConnector& operator=(const MsiConnector&) = delete;
    virtual ~MsiConnector() = default;

    /// The eventfd outlives what is made.
    [[nodiscard]] virtual Result<std::unique_ptr<MsiInterrupt>> connect(FdView eventfd) = 0;
};

}  // namespace guestmem

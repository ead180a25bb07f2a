// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/kvm.hpp"

/// The interrupts of a machine whose I/O APIC is ours: which eventfd is which message.
///
/// Concepts: a GSI is a number with a route (a message to the local APICs); an irqfd is an eventfd whose write is
/// that GSI. The first GSIs are the I/O APIC's pins, each with an eventfd of ours; the others are given to devices'
/// messages. KVM tells the end of an interrupt only for pins.
/// Contract: a message that is masked has no irqfd: kicks stay in its eventfd, and unmasking delivers them as one. Its
/// route stays, without an effect, until the next change after it is destroyed. The table of routes is set as a whole,
/// with all that is expected by then; what KVM refuses leaves the old one in force, and is no longer expected. A number
/// whose eventfd KVM does not let go of is not given to another message.
/// A message's own eventfd decides whether it can be unmasked. One that was added is not ours alone: whoever else has
/// it may have bound it to a machine of its own, and then KVM refuses it here. That is said once, takes nothing from
/// the others, and is tried again at the next unmasking; until then its kicks wait in it. One that KVM does not let go
/// of when it is removed stays this message as long as anybody has it open, which is said.
/// Threads: any.
/// Lifetime: the machine outlives it, and it outlives the interrupts that it made.
/// Limits: max_gsis routes.
/// Cost: changing a route tells KVM all of them, 40 to 80 us; those that are expected together are one change
/// (512 of them: 1 ms, one by one 55 ms), and a message that comes again as it was is none. An interrupt is one
/// write(2).

namespace guestmem::vmm {

class KvmInterrupts final : public MsiConnector {
public:
    static constexpr std::uint32_t max_gsis = 4096;
    /// What cannot be returned to whoever caused it: a guest's write that KVM refuses.
    using Complain = std::function<void(const Error&)>;

    [[nodiscard]] static Result<std::unique_ptr<KvmInterrupts>> create(const KvmMachine& machine,
                                                                       std::uint32_t pins, Complain complain);
    ~KvmInterrupts() override = default;

    [[nodiscard]] Result<std::unique_ptr<MsiInterrupt>> connect(FdView eventfd) override;

    /// What the pin is from here on; nothing: it is masked. False when KVM refuses, which is complained of.
    [[nodiscard]] bool route_pin(std::uint32_t pin, std::optional<MsiMessage> message);
    void fire_pin(std::uint32_t pin);

private:
    class Message;

    KvmInterrupts(const KvmMachine& machine, Complain complain)
        : machine_(machine), complain_(std::move(complain)) {}
    [[nodiscard]] Result<void> set_route(std::uint32_t gsi, std::optional<MsiMessage> message);
    /// With the mutex held.
    [[nodiscard]] Result<void> set_table(const std::map<std::uint32_t, MsiMessage>& routes) const;
    void expect(std::uint32_t gsi, MsiMessage message);
    [[nodiscard]] Result<std::uint32_t> take_gsi();
    void free_gsi(std::uint32_t gsi);

    const KvmMachine& machine_;
    Complain complain_;
    std::vector<EventFd> pins_;
    std::mutex mutex_;
    std::map<std::uint32_t, MsiMessage> routes_;    ///< what KVM has
    std::map<std::uint32_t, MsiMessage> expected_;  ///< goes into the next table
    std::set<std::uint32_t> unused_;                ///< of the routes: stays out of the next table
    std::vector<bool> is_taken_;                    ///< of the GSIs behind the pins
};

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/device/interrupt_pin.hpp"
#include "guestmem/device/pci/bar_plan.hpp"
#include "guestmem/device/pci/function.hpp"

/// PCI bus 0 of a machine: its devices, and the two ways in which a guest reaches their configuration.
///
/// Concepts: configuration mechanism #1 is a pair of ports (PCI 3.0, 3.2.2.3.2): a double word at 0xcf8 says which
/// function and register, 1, 2 or 4 bytes at 0xcfc to 0xcff are its contents. ECAM is the same as memory: 4 KiB for
/// each function (PCI Express 3.0, 7.2.2). Device 0 is the bridge itself; 1 to 31 are for others. A device's INTA goes
/// to line (device modulo 4), as a bridge's swizzle has it (PCI-to-PCI Bridge 1.2, 9.1).
/// Contract: what is absent reads as ones and takes no write: other buses, functions above 0, registers above 0xff,
/// accesses that leave a function's part of ECAM. Bytes and words at 0xcf8 to 0xcfb are no access to the address
/// register (3.2.2.3.2); what answers at 0xcf9 can be given. BARs that guests put over each other or over anything else
/// on the bus are not visible until there is room, and do no harm.
/// Threads: any. Configuration writes run one at a time; moved() of a BAR comes within one, and must not access the
/// configuration.
/// Lifetime: the buses outlive the bridge; the bridge holds its functions.
/// Limits: 31 devices of one function each. Plugging while the guest runs works as far as the bus goes, but tells the
/// guest nothing.
/// Example:
///     auto bridge = GM_TRY(HostBridge::create({.memory = &memory, .ports = &ports, .ecam_base = 0xe0000000}));
///     GM_TRY(bridge->add(function));
///     GM_TRY(bridge->assign({.memory32 = AddressWindow{0xf0000000, 0xfebfffff}}));

namespace guestmem::pci {

class HostBridge {
public:
    static constexpr unsigned count_devices = 32;
    static constexpr std::size_t count_lines = 4;
    static constexpr std::uint64_t config_port = 0xcf8;
    static constexpr std::uint64_t reset_port = 0xcf9;
    static constexpr std::uint64_t ecam_size_bytes = std::uint64_t{1} << 20;  ///< of one bus
    /// The generic host bridge of QEMU's boards: guests know it and have no special treatment for it.
    static constexpr Identity default_identity{
        .vendor = 0x1b36, .device = 0x0008, .revision = 0, .class_code = 0x0600};

    struct Options {
        Bus* memory = nullptr;
        Bus* ports = nullptr;                         ///< nullptr: a machine without ports
        std::optional<std::uint64_t> ecam_base = {};  ///< a multiple of ecam_size_bytes
        std::array<std::shared_ptr<InterruptLine>, count_lines> lines = {};
        /// For the Interrupt Line registers of devices; 0xff: unknown.
        std::array<std::uint8_t, count_lines> line_numbers = {0xff, 0xff, 0xff, 0xff};
        std::shared_ptr<IoDevice> reset_control = {};  ///< bytes at reset_port, at its offset 0
        Identity identity = default_identity;
    };
    /// Puts its ports and its ECAM window on the buses.
    [[nodiscard]] static Result<std::unique_ptr<HostBridge>> create(Options options);
    HostBridge(const HostBridge&) = delete;
    HostBridge& operator=(const HostBridge&) = delete;
    ~HostBridge();

    /// At that device number, or at the lowest that is free; says which.
    [[nodiscard]] Result<unsigned> add(std::shared_ptr<Function> function,
                                       std::optional<unsigned> device = std::nullopt);
    [[nodiscard]] Result<void> remove(unsigned device);

    /// Gives an address to each BAR that has none; decoding stays off, as after a reset. All or none.
    [[nodiscard]] Result<void> assign(const AddressWindows& windows);

    struct Entry {
        unsigned device = 0;
        std::shared_ptr<Function> function;
    };
    /// In ascending order, the bridge's own first.
    [[nodiscard]] std::vector<Entry> functions() const;

    /// Which of the four lines pin 1 (INTA) to 4 (INTD) of a device is.
    [[nodiscard]] static constexpr std::size_t line_of(unsigned device, unsigned pin) {
        return (device + pin - 1) % count_lines;
    }

private:
    struct State;
    class ConfigPorts;
    class Ecam;
    explicit HostBridge(Options options);
    [[nodiscard]] Result<void> put_on_buses();
    [[nodiscard]] std::vector<BarRequest> requests_without_address(std::vector<AddressWindow>& memory,
                                                                   std::vector<AddressWindow>& ports) const;

    Options options_;
    Bus no_ports_{"port", 0xffff};  ///< of a machine without ports: nothing reaches it
    std::vector<InterruptPin> pins_;
    std::shared_ptr<State> state_;
    bool has_ports_ = false;
    bool has_ecam_ = false;
};

}  // namespace guestmem::pci

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/device/pci/bars.hpp"
#include "guestmem/device/pci/capability.hpp"
#include "guestmem/device/pci/config_space.hpp"
#include "guestmem/device/pci/intx_pin.hpp"
#include "guestmem/device/pci/report.hpp"

/// What a PCI device is to its bus: who it is, its BARs, its INTx pin and its capabilities.
///
/// Concepts: a device does not own its Function, nor the other way round: the device has the IntxPin and the Msi or
/// Msix that were put into the Function's options, and the Function's BARs have the device. Who makes both keeps both.
/// Contract: reads and writes of the configuration take every offset and length. After each write, windows, pin and
/// messages are what the registers say. Functions are born with decoding off and BARs at zero (PCI 3.0, 6.2.2).
/// Threads: any. moved() of a BAR and Capability's calls come with the function's mutex held; set() of the pin and
/// give() of a vector do not take it, so that a device may call them with a mutex held that it takes in moved().
/// Lifetime: the buses and lines of a Slot outlive the function, or unplug() comes first.
/// Limits: a function of a device has number 0: there are no devices with several.
/// Example:
///     auto pin = std::make_shared<IntxPin>();
///     auto function = GM_TRY(Function::create(
///         {.name = "shmem", .identity = {.vendor = 0x1c05, .device = 1, .class_code = 0x0500}, .intx = pin,
///          .bars = {{.index = 0, .size_bytes = 4096, .device = registers}}, .capabilities = {msi}}));
///     GM_TRY(bridge.add(function));

namespace guestmem::pci {

class Function {
public:
    struct Options {
        std::string name;  ///< for errors and lists
        Identity identity = {};
        std::shared_ptr<IntxPin> intx = {};  ///< none: Interrupt Pin reads 0 (6.2.4)
        std::vector<Bar> bars = {};
        std::vector<std::shared_ptr<Capability>> capabilities = {};
        Report report = {};  ///< the first time that each BAR does not fit where the guest wants it
    };
    /// What a place on a bus gives.
    struct Slot {
        std::reference_wrapper<Bus> memory;
        std::reference_wrapper<Bus> ports;
        std::shared_ptr<InterruptLine> line = {};
        std::uint8_t line_number = 0xff;  ///< for the Interrupt Line register; 0xff: unknown (6.2.4)
    };

    [[nodiscard]] static Result<std::shared_ptr<Function>> create(Options options);
    Function(const Function&) = delete;
    Function& operator=(const Function&) = delete;
    ~Function();

    void plug(const Slot& slot);
    void unplug();

    void read_config(std::uint64_t offset, std::span<std::byte> data);
    /// True when a window went away: somebody else may fit there.
    bool write_config(std::uint64_t offset, std::span<const std::byte> data);
    /// Tries again to show what was refused.
    void settle();

    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] const Identity& identity() const { return identity_; }
    [[nodiscard]] bool has_intx() const { return intx_ != nullptr; }
    [[nodiscard]] std::vector<Bar> bars() const;
    /// What the register says, visible or not.
    [[nodiscard]] std::uint64_t programmed_address(unsigned bar_index) const;
    void program_address(unsigned bar_index, std::uint64_t address);
    /// Where the guest sees it.
    [[nodiscard]] std::optional<std::uint64_t> visible_address(unsigned bar_index) const;

private:
    struct Placed {
        std::shared_ptr<Capability> capability;
        std::size_t offset = 0;
        std::size_t size_bytes = 0;
    };
    Function(Options options, Bars bars);
    [[nodiscard]] Result<void> add_capabilities(const std::vector<std::shared_ptr<Capability>>& all);
    void drive_pin();
    [[nodiscard]] bool apply();

    std::string name_;
    Identity identity_;
    std::shared_ptr<IntxPin> intx_;
    mutable std::mutex mutex_;
    ConfigSpace space_;
    Bars bars_;
    std::vector<Placed> capabilities_;
    std::atomic<bool> has_refused_{false};
};

}  // namespace guestmem::pci

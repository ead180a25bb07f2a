// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/device/io_device.hpp"
#include "guestmem/device/pci/config_space.hpp"
#include "guestmem/device/pci/report.hpp"

/// The base address registers of a PCI function, and the windows that they move.
///
/// Concepts: a BAR shows registers (an IoDevice) or memory (`moved`, which maps it into the guest), at the address that
/// the guest programs while it has switched on decoding (PCI 3.0, 6.2.5). Sizing needs no state: address bits below the
/// size are read-only zeros, so that a register of ones reads as the size.
/// Contract: update() makes the windows what the registers say: first all that leave, then all that come. A BAR is
/// visible where its kind is decoded, its address is neither zero nor all ones (no address, and a guest that asks for
/// the size), and the bus has nothing else there. One that does not fit is not visible; its first refusal is reported,
/// and each update() tries again. Memory, too, has its window on the bus, without a device, so that nothing else gets
/// there: moved(address) is called after its window is there, moved(nothing) before it goes. Where moved(address)
/// fails, the BAR is not visible; where moved(nothing) does, it stays where it is, and each update() tries again.
/// Threads: one at a time; moved() is called with the function's mutex held and must not access its configuration.
/// Lifetime: the buses outlive what is plugged. unplug() before it goes, or the windows stay.

namespace guestmem::pci {

inline constexpr unsigned count_bars = 6;

enum class BarKind : std::uint8_t { memory32, memory64, io };

struct Bar {
    unsigned index = 0;  ///< a 64-bit one takes the next, too
    BarKind kind = BarKind::memory32;
    bool is_prefetchable = false;
    std::uint64_t size_bytes = 0;           ///< a power of two, from 16 (ports: 4 to 256)
    std::shared_ptr<IoDevice> device = {};  ///< who answers accesses that reach the bus
    /// Memory is at this address; nothing: nowhere.
    std::function<Result<void>(std::optional<std::uint64_t>)> moved = {};
};

/// Whether a BAR can be seen at that address at all: aligned, inside its space, neither zero nor all ones.
[[nodiscard]] bool is_decodable(const Bar& bar, std::uint64_t address);

class Bars {
public:
    /// Errors name the BAR.
    [[nodiscard]] static Result<Bars> create(std::string name, std::vector<Bar> bars, const Report& report);

    /// Writes kinds and masks into the registers.
    void install(ConfigSpace& space) const;
    void plug(Bus& memory, Bus& ports);
    /// True when a window went away: who was refused because of it can be tried again.
    bool update(const ConfigSpace& space);
    /// Gives up all windows and forgets the buses.
    void unplug();

    [[nodiscard]] std::vector<Bar> list() const;
    /// What the guest (or whoever assigned it) programmed.
    [[nodiscard]] std::uint64_t programmed(const ConfigSpace& space, unsigned index) const;
    void program(ConfigSpace& space, unsigned index, std::uint64_t address) const;
    /// Where it is visible.
    [[nodiscard]] std::optional<std::uint64_t> address(unsigned index) const;
    /// Whether one is decoded, and refused.
    [[nodiscard]] bool has_refused() const;

private:
    struct Slot {
        Bar bar;
        std::string name;
        std::optional<std::uint64_t> shown;
        bool is_refused = false;
        std::unique_ptr<ReportOnce> report;
    };
    Bars() = default;
    [[nodiscard]] Bus* bus_of(const Slot& slot) const;
    [[nodiscard]] const Slot* find(unsigned index) const;
    [[nodiscard]] Result<void> show(Slot& slot, std::uint64_t address) const;
    /// False when it stays.
    [[nodiscard]] bool hide(Slot& slot) const;

    std::vector<Slot> slots_;
    Bus* memory_ = nullptr;
    Bus* ports_ = nullptr;
};

}  // namespace guestmem::pci

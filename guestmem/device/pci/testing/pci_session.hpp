// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/device/pci/testing/pci_machine.hpp"
#include "guestmem/mem/testing/choices.hpp"

/// A guest that does anything to a PCI bus, and what has to hold all the while: for random tests and for the fuzzer.
///
/// Contract: step() does one thing that the choices say, then compares the machine with what its registers say, and
/// returns what is wrong, or nothing. What holds: windows do not overlap, and foreign ones stay; a BAR is visible
/// exactly where it is decoded, can be decoded and has room; memory is mapped where its BAR is visible; a vector is the
/// message of its table entry exactly while nothing masks it; a line is up exactly while a device says so through open
/// gates; identities and capability lists do not change.
/// Threads: one at a time.

namespace guestmem::testing {

class PciSession {
public:
    explicit PciSession(Choices& choices) : choices_(choices) {
        if (choices_.one_in(2)) machine_.bridge->assign(PciMachine::windows).value();
    }

    std::string step() {
        act();
        for (const auto check :
             {&PciSession::check_windows, &PciSession::check_bars, &PciSession::check_msix,
              &PciSession::check_msi, &PciSession::check_lines, &PciSession::check_identities})
            if (std::string wrong = (this->*check)(); !wrong.empty()) return wrong;
        return "";
    }

private:
    static constexpr unsigned count_devices = 6;  // one of them absent

    void act() {
        switch (choices_.below(11)) {
            case 0: return access(machine_.ports, 0xcf0 + choices_.below(24));
            case 1: return access(machine_.memory, PciMachine::ecam_base + some_ecam_offset());
            case 2: return configure_by_ports();
            case 3: return program_bar();
            case 4: return machine_.write(some_device(), pci::command_register, some_command());
            case 5: return access_bar();
            case 6: return write_table();
            case 7: return write_message_control();
            case 8: return change_vector();
            case 9: return set_pin();
            default: return plug_or_deliver();
        }
    }
    unsigned some_device() { return static_cast<unsigned>(choices_.below(count_devices)); }
    std::uint16_t some_command() {
        // Everything on is what most guests do.
        return choices_.one_in(3) ? static_cast<std::uint16_t>(choices_.below(0x10000)) : std::uint16_t{7};
    }
    std::uint64_t some_ecam_offset() {
        if (choices_.one_in(8)) return choices_.below(0x10'0010);
        const std::uint64_t function = choices_.one_in(8) ? choices_.below(8) << 12 : 0;
        return std::uint64_t{some_device()} << 15 | function |
               choices_.below(choices_.one_in(8) ? 4096 : 256);
    }
    std::uint64_t some_address() {
        static constexpr std::array<std::uint64_t, 12> places{
            0,           0x1000,      0x100'0000,    0xe000'0000,   0xf000'0000,           0xfebf'f000,
            0xfec0'0000, 0xffff'ffff, 0x1'0000'0000, 0x1'0010'0000, 0xffff'ffff'fff0'0000, ~std::uint64_t{0}};
        if (choices_.one_in(16)) return choices_.any();
        return places[choices_.below(places.size())] + choices_.below(4) * 0x1000;
    }
    void access(const Bus& bus, std::uint64_t address) {
        std::array<std::byte, 8> data{};
        const std::span bytes = std::span{data}.first(std::size_t{1} << choices_.below(4));
        if (choices_.one_in(2)) {
            bus.read(address, bytes);
        } else {
            choices_.fill(bytes);
            bus.write(address, bytes);
        }
    }
    void configure_by_ports() {
        const std::uint64_t offset = choices_.below(256);
        const auto address = static_cast<std::uint32_t>(0x8000'0000 | some_device() << 11 | (offset & 0xfc));
        machine_.out(pci::HostBridge::config_port, address);
        access(machine_.ports, pci::HostBridge::config_port + 4 + (offset & 3));
    }
    void program_bar() {
        const unsigned device = some_device();
        const std::uint64_t at = pci::first_bar_register + 4 * choices_.below(6);
        const std::uint64_t address = some_address();
        if (choices_.one_in(2)) return machine_.write(device, at, address);
        machine_.write(device, at, static_cast<std::uint32_t>(address & 0xffff'ffff));
    }
    void access_bar() {
        const auto function = machine_.function(some_device());
        if (!function) return;
        const auto bars = function->bars();
        if (bars.empty()) return;
        const pci::Bar& bar = bars[choices_.below(bars.size())];
        const Bus& bus = bar.kind == pci::BarKind::io ? machine_.ports : machine_.memory;
        access(bus, function->programmed_address(bar.index) + choices_.below(bar.size_bytes + 4));
    }
    void write_table() {
        std::array<std::byte, 8> data{};
        const std::span bytes = std::span{data}.first(choices_.one_in(2) ? 4 : 8);
        choices_.fill(bytes);
        machine_.msix->write(choices_.below(PciMachine::count_msix * 16 + 8) & ~std::uint64_t{3}, bytes);
    }
    void write_message_control() {
        const bool is_msix = choices_.one_in(2);
        const unsigned device = is_msix ? 2 : 1;
        const auto at =
            machine_.find_capability(device, is_msix ? pci::Msix::capability_id : pci::Msi::capability_id);
        const auto value = static_cast<std::uint16_t>(choices_.below(16) << 12 | choices_.below(256));
        if (at != 0) machine_.write(device, at + 2U, value);
    }
    void change_vector() {
        const std::size_t vector = choices_.below(6);  // one too many for either
        if (choices_.one_in(4)) machine_.connector->refuse(static_cast<int>(choices_.below(3)));
        if (choices_.one_in(2)) {
            has_msix_[vector % 6] = false;
            machine_.msix->take_back(vector);
            if (vector < PciMachine::count_msix && choices_.one_in(2))
                has_msix_[vector] =
                    machine_.msix->give(vector, machine_.msix_bells[vector].view()).has_value();
        } else {
            has_msi_[vector % 6] = false;
            machine_.msi->take_back(vector);
            if (vector < PciMachine::count_msi && choices_.one_in(2))
                has_msi_[vector] = machine_.msi->give(vector, machine_.msi_bells[vector].view()).has_value();
        }
        machine_.connector->refuse(0);
    }
    void set_pin() {
        const bool is_up = choices_.one_in(2);
        (choices_.one_in(2) ? machine_.shmem_pin : machine_.ivshmem_pin)->set(is_up);
    }
    void plug_or_deliver() {
        switch (choices_.below(4)) {
            case 0: machine_.msix_bells[choices_.below(PciMachine::count_msix)].kick().value(); break;
            case 1: machine_.msi_bells[choices_.below(PciMachine::count_msi)].kick().value(); break;
            case 2: machine_.connector->deliver(); break;
            default:
                if (!machine_.bridge->remove(4)) machine_.plug(machine_.make_memory(), 4);
                break;
        }
    }

    std::string check_windows() {
        for (const Bus* bus : {&machine_.memory, &machine_.ports}) {
            std::optional<std::uint64_t> last;
            const auto windows = bus->windows();
            for (const BusWindow& one : windows) {
                if (last && one.first <= *last) return fmt::format("{} overlaps what is below", one.name);
                last = one.first + (one.count - 1);
            }
        }
        if (machine_.load<std::uint8_t>(PciMachine::io_apic + 0x13) != 0x13) return "the I/O APIC is gone";
        if (machine_.in<std::uint8_t>(PciMachine::serial_port + 7) != 7) return "the serial port is gone";
        return "";
    }
    static bool has_room(const std::vector<BusWindow>& windows, std::uint64_t first, std::uint64_t count) {
        for (const BusWindow& one : windows)
            if (one.first <= first + (count - 1) && first <= one.first + (one.count - 1)) return false;
        return true;
    }
    std::string check_bars() {
        std::size_t count_visible = 0;
        const auto functions = machine_.bridge->functions();
        for (const auto& [device, function] : functions) {
            const auto bars = function->bars();
            for (const pci::Bar& bar : bars) {
                if (auto wrong = check_bar(device, *function, bar); !wrong.empty()) return wrong;
                if (function->visible_address(bar.index)) ++count_visible;
            }
        }
        const std::size_t count_windows = machine_.memory.windows().size() + machine_.ports.windows().size();
        if (count_windows != 4 + count_visible) return "a window belongs to nobody";
        if (machine_.shared.is_wrong || machine_.other.is_wrong) return "memory was mapped or unmapped twice";
        return "";
    }
    std::string check_bar(unsigned device, const pci::Function& function, const pci::Bar& bar) {
        const bool is_io = bar.kind == pci::BarKind::io;
        const std::uint64_t at = pci::first_bar_register + 4 * bar.index;
        std::uint64_t address = machine_.read<std::uint32_t>(device, at) & (is_io ? ~3U : ~15U);
        if (bar.kind == pci::BarKind::memory64)
            address |= std::uint64_t{machine_.read<std::uint32_t>(device, at + 4)} << 32;
        const auto command = machine_.read<std::uint16_t>(device, pci::command_register);
        const bool is_decoded = (command & (is_io ? pci::command_io : pci::command_memory)) != 0;
        const auto visible = function.visible_address(bar.index);
        const std::string name = fmt::format("device {} BAR{} at {:#x}", device, bar.index, address);
        if (function.programmed_address(bar.index) != address) return name + ": the register reads otherwise";
        if (visible && (!is_decoded || *visible != address)) return name + ": visible, but should not be";
        const MovableMemory* memory = device == 2 && bar.index == 2 ? &machine_.shared : nullptr;
        if (device == 4) memory = &machine_.other;
        if (memory != nullptr && memory->address != visible) return name + ": memory is elsewhere";
        if (visible || !is_decoded || !pci::is_decodable(bar, address)) return "";
        const bool may_map = memory == nullptr || address >= MovableMemory::least_address;
        const bool is_inside = !is_io || address + (bar.size_bytes - 1) <= 0xffff;
        const auto windows = is_io ? machine_.ports.windows() : machine_.memory.windows();
        if (may_map && is_inside && has_room(windows, address, bar.size_bytes))
            return name + ": has room, but hidden";
        return "";
    }
    std::string check_msix() {
        const auto at = machine_.find_capability(2, pci::Msix::capability_id);
        const auto control = machine_.read<std::uint16_t>(2, at + 2U);
        for (std::size_t i = 0; i < PciMachine::count_msix; ++i) {
            std::array<std::uint32_t, 4> words{};
            machine_.msix->read(i * 16, std::as_writable_bytes(std::span{words}));
            std::optional<MsiMessage> expected;
            if (has_msix_[i] && (control & 0xc000) == 0x8000 && (words[3] & 1) == 0)
                expected = {std::uint64_t{words[1]} << 32 | (words[0] & ~3U), words[2]};
            if (machine_.connector->message_of(machine_.msix_bells[i].view()) != expected)
                return fmt::format("MSI-X vector {} is not what its entry says", i);
        }
        return "";
    }
    std::string check_msi() {
        const auto at = machine_.find_capability(1, pci::Msi::capability_id);
        const auto control = machine_.read<std::uint16_t>(1, at + 2U);
        const auto address = machine_.read<std::uint64_t>(1, at + 4U);
        const auto data = machine_.read<std::uint16_t>(1, at + 12U);
        const auto masked = machine_.read<std::uint32_t>(1, at + 16U);
        const std::uint32_t count = std::min(1U << (control >> 4 & 7), 4U);
        for (std::uint32_t i = 0; i < PciMachine::count_msi; ++i) {
            std::optional<MsiMessage> expected;
            if (has_msi_[i] && (control & 1) != 0 && (masked >> i % count & 1) == 0)
                expected = {address, data / count * count + i % count};
            if (machine_.connector->message_of(machine_.msi_bells[i].view()) != expected)
                return fmt::format("MSI vector {} is not what its registers say", i);
        }
        return "";
    }
    std::string check_lines() {
        const auto is_open = [this](unsigned device, bool is_replaced) {
            const auto command = machine_.read<std::uint16_t>(device, pci::command_register);
            return !is_replaced && (command & pci::command_interrupt_disable) == 0;
        };
        const bool is_shmem = machine_.shmem_pin->is_up() && is_open(1, machine_.msi->is_enabled());
        const bool is_ivshmem = machine_.ivshmem_pin->is_up() && is_open(2, machine_.msix->is_enabled());
        if (machine_.lines[1]->is_up() != is_shmem) return "line 1 is not what device 1 says";
        if (machine_.lines[2]->is_up() != is_ivshmem) return "line 2 is not what device 2 says";
        if (machine_.lines[0]->is_up() || machine_.lines[3]->is_up()) return "a line is up that nobody has";
        return "";
    }
    std::string check_identities() {
        const std::array<std::uint32_t, 4> ids{0x0008'1b36, 0x0001'1c05, 0x1110'1af4, 0x5678'1234};
        for (unsigned device = 0; device < ids.size(); ++device)
            if (machine_.read<std::uint32_t>(device, 0) != ids[device]) return "an identity changed";
        if (machine_.read<std::uint32_t>(5, 0) != 0xffff'ffff) return "there is a device that nobody made";
        const bool has_both = machine_.find_capability(1, pci::Msi::capability_id) == 0x40 &&
                              machine_.find_capability(2, pci::Msix::capability_id) == 0x40;
        return has_both ? "" : "a capability moved";
    }

    Choices& choices_;
    PciMachine machine_;
    std::array<bool, 6> has_msix_{};
    std::array<bool, 6> has_msi_{};
};

}  // namespace guestmem::testing

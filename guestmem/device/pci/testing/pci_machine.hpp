// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/device/bus.hpp"
#include "guestmem/device/pci/host_bridge.hpp"
#include "guestmem/device/pci/msi.hpp"
#include "guestmem/device/pci/msix.hpp"
#include "guestmem/device/testing/fake_msi.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/sys/eventfd.hpp"

/// A machine with a PCI bus and the kinds of devices that there are, without a processor: tests play the guest.
///
/// Concepts: device 1 is a `vdev shmem` as a guest sees it (BAR0 4 KiB, INTx, MSI), device 2 an ivshmem (BAR0 256
/// bytes, BAR1 MSI-X, BAR2 1 MiB of memory), device 3 has ports and a 64-bit BAR, device 4 is memory of 1 MiB again.
/// Memory can be mapped from 16 MiB on, as if RAM were below.
/// Contract: in(), out(), load(), store() are what a guest's instructions do; read() and write() of configuration go by
/// ECAM.
/// Threads: any for those; the rest one at a time.

namespace guestmem::testing {

/// Registers that remember nothing and read as their offset.
class PlainRegisters final : public IoDevice {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) override {
        for (std::byte& byte : data) byte = static_cast<std::byte>(offset++ & 0xff);
    }
    void write(std::uint64_t, std::span<const std::byte>) override {}
};

/// Shared memory that is somewhere in the guest or nowhere.
struct MovableMemory {
    static constexpr std::uint64_t least_address = std::uint64_t{16} << 20;

    Result<void> move(std::optional<std::uint64_t> to) {
        const std::scoped_lock lock{mutex};
        if (to && *to < least_address) return Error{Errc::already_exists, "there is RAM"};
        if (to.has_value() == address.has_value()) is_wrong = true;  // mapped twice, or unmapped twice
        address = to;
        ++count_moves;
        return {};
    }
    std::mutex mutex;
    std::optional<std::uint64_t> address;
    int count_moves = 0;
    bool is_wrong = false;
};

class PciMachine {
public:
    static constexpr std::uint64_t ecam_base = 0xe000'0000;
    static constexpr std::size_t count_msi = 4;
    static constexpr std::size_t count_msix = 5;
    static constexpr std::uint64_t io_apic = 0xfec0'0000;
    static constexpr std::uint64_t serial_port = 0x3f8;
    static constexpr pci::AddressWindows windows{.memory32 = pci::AddressWindow{0xf000'0000, 0xfebf'ffff},
                                                 .memory64 = pci::AddressWindow{0x1'0000'0000, 0x1'ffff'ffff},
                                                 .ports = pci::AddressWindow{0xc000, 0xcfff}};

    PciMachine() {
        memory.add({.name = "I/O APIC", .first = io_apic, .count = 0x1000, .device = plain}).value();
        ports.add({.name = "COM1", .first = serial_port, .count = 8, .device = plain}).value();
        pci::HostBridge::Options options{.memory = &memory, .ports = &ports, .ecam_base = ecam_base};
        for (std::size_t i = 0; i < lines.size(); ++i) {
            options.lines[i] = lines[i] = std::make_shared<RecordingLine>();
            options.line_numbers[i] = static_cast<std::uint8_t>(16 + i);
        }
        bridge = pci::HostBridge::create(std::move(options)).value();
        for (EventFd& bell : msi_bells) bell = EventFd::create().value();
        for (EventFd& bell : msix_bells) bell = EventFd::create().value();
        msi = pci::Msi::create({.count_vectors = count_msi, .connector = connector}).value();
        msix =
            pci::Msix::create({.count_vectors = count_msix, .bar_index = 1, .connector = connector}).value();
        plug(make_shmem());
        plug(make_ivshmem());
        plug(make_ports());
        plug(make_memory());
    }

    template <std::unsigned_integral T>
    T in(std::uint64_t port) const {
        return access<T>(ports, port);
    }
    template <std::unsigned_integral T>
    void out(std::uint64_t port, T value) const {
        ports.write(port, std::as_bytes(std::span{&value, 1}));
    }
    template <std::unsigned_integral T>
    T load(std::uint64_t address) const {
        return access<T>(memory, address);
    }
    template <std::unsigned_integral T>
    void store(std::uint64_t address, T value) const {
        memory.write(address, std::as_bytes(std::span{&value, 1}));
    }
    template <std::unsigned_integral T>
    T read(unsigned device, std::uint64_t offset) const {
        return load<T>(ecam_base + (std::uint64_t{device} << 15) + offset);
    }
    template <std::unsigned_integral T>
    void write(unsigned device, std::uint64_t offset, T value) const {
        store<T>(ecam_base + (std::uint64_t{device} << 15) + offset, value);
    }
    /// Where the capability with that id is; 0: nowhere.
    [[nodiscard]] std::uint8_t find_capability(unsigned device, std::uint8_t id) const {
        if ((read<std::uint16_t>(device, pci::status_register) & pci::status_capabilities) == 0) return 0;
        auto at = read<std::uint8_t>(device, pci::capabilities_register);
        for (int i = 0; at != 0 && i < 48; ++i) {
            if (read<std::uint8_t>(device, at) == id) return at;
            at = read<std::uint8_t>(device, at + 1U);
        }
        return 0;
    }
    [[nodiscard]] std::shared_ptr<pci::Function> function(unsigned device) const {
        const auto all = bridge->functions();
        for (const auto& entry : all)
            if (entry.device == device) return entry.function;
        return nullptr;
    }
    void plug(std::shared_ptr<pci::Function> function, std::optional<unsigned> device = std::nullopt) const {
        GM_CHECK(bridge->add(std::move(function), device).has_value());
    }
    void note(const Error& error) {
        const std::scoped_lock lock{report_mutex};
        reports.push_back(error.message());
    }

    std::shared_ptr<pci::Function> make_shmem() {
        return pci::Function::create({.name = "shmem",
                                      .identity = {.vendor = 0x1c05, .device = 1, .class_code = 0x0500},
                                      .intx = shmem_pin,
                                      .bars = {{.index = 0, .size_bytes = 4096, .device = plain}},
                                      .capabilities = {msi},
                                      .report = [this](const Error& error) { note(error); }})
            .value();
    }
    std::shared_ptr<pci::Function> make_ivshmem() {
        return pci::Function::create(
                   {.name = "ivshmem",
                    .identity = {.vendor = 0x1af4, .device = 0x1110, .revision = 1, .class_code = 0x0500},
                    .intx = ivshmem_pin,
                    .bars = {{.index = 0, .size_bytes = 256, .device = plain},
                             {.index = 1, .size_bytes = msix->bar_size_bytes(), .device = msix},
                             memory_bar(2, shared)},
                    .capabilities = {msix},
                    .report = [this](const Error& error) { note(error); }})
            .value();
    }
    std::shared_ptr<pci::Function> make_ports() {
        return pci::Function::create(
                   {.name = "ports",
                    .identity = {.vendor = 0x1234, .device = 0x5678, .class_code = 0xff00},
                    .bars =
                        {{.index = 0, .kind = pci::BarKind::io, .size_bytes = 32, .device = plain},
                         {.index = 1, .kind = pci::BarKind::memory64, .size_bytes = 65'536, .device = plain},
                         {.index = 4, .size_bytes = 16, .device = plain}},
                    .report = [this](const Error& error) { note(error); }})
            .value();
    }
    std::shared_ptr<pci::Function> make_memory() {
        return pci::Function::create({.name = "memory",
                                      .identity = {.vendor = 0x1234, .device = 0x9abc, .class_code = 0x0500},
                                      .bars = {memory_bar(0, other)},
                                      .report = [this](const Error& error) { note(error); }})
            .value();
    }
    static pci::Bar memory_bar(unsigned index, MovableMemory& what) {
        return {.index = index,
                .kind = pci::BarKind::memory64,
                .is_prefetchable = true,
                .size_bytes = std::uint64_t{1} << 20,
                .moved = [&what](std::optional<std::uint64_t> to) { return what.move(to); }};
    }

    std::shared_ptr<PlainRegisters> plain = std::make_shared<PlainRegisters>();
    Bus memory{"memory", ~std::uint64_t{0}};
    Bus ports{"port", 0xffff};
    std::shared_ptr<FakeMsiConnector> connector = std::make_shared<FakeMsiConnector>();
    std::array<std::shared_ptr<RecordingLine>, pci::HostBridge::count_lines> lines;
    std::shared_ptr<pci::IntxPin> shmem_pin = std::make_shared<pci::IntxPin>();
    std::shared_ptr<pci::IntxPin> ivshmem_pin = std::make_shared<pci::IntxPin>();
    std::array<EventFd, count_msi> msi_bells;
    std::array<EventFd, count_msix> msix_bells;
    std::shared_ptr<pci::Msi> msi;
    std::shared_ptr<pci::Msix> msix;
    MovableMemory shared;
    MovableMemory other;
    std::mutex report_mutex;
    std::vector<std::string> reports;
    std::unique_ptr<pci::HostBridge> bridge;  ///< goes before all that it reaches

private:
    template <std::unsigned_integral T>
    static T access(const Bus& bus, std::uint64_t address) {
        T value = 0;
        bus.read(address, std::as_writable_bytes(std::span{&value, 1}));
        return value;
    }
};

}  // namespace guestmem::testing

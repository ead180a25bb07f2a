// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/host_tree.hpp"
#include "guestmem/dma/discover/testing/acpi_builder.hpp"
#include "guestmem/dma/discover/testing/config_space.hpp"
#include "guestmem/dma/discover/testing/machine_tree.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// A machine of 4,096 PCI functions for benches: a folder as it is captured, and the archive of it.
///
/// Concepts: 64 root ports and 4,032 endpoints below them with 4096 bytes of configuration space each (ACS, ATS,
/// MSI-X), a driver, a group of its own with reserved regions, and one of 8 units, which a table DMAR gives the ports;
/// every 16th has an ACPI name.
/// Contract: made at the first large_machine(), and gone with the program.
/// Threads: one at a time.
/// Cost: 60,000 files and links: seconds.

namespace guestmem::dma::testing {

inline constexpr std::size_t count_large_functions = 4096;
inline constexpr std::size_t count_large_ports = 64;
inline constexpr std::size_t count_large_units = 8;

inline std::string large_port_space(unsigned bus) {
    ConfigSpace space;
    space.put8(0x0e, 1).put8(0x19, bus).put8(0x1a, bus).put32(0x08, 0x06040000).express(0x40, 4, 0, true);
    return space.extended(0x100, 0x0001, 0x150).extended(0x150, 0x000d, 0).put16(0x154, 0x1f).text();
}

inline std::string large_endpoint_space() {
    ConfigSpace space;
    space.put32(0x08, 0x02000000).capability(0x40, 0x01, 0x50).capability(0x50, 0x11, 0x70).express(0x70, 0);
    space.extended(0x100, 0x0001, 0x150).extended(0x150, 0x000d, 0x180).extended(0x180, 0x000f, 0);
    return space.text();
}

inline std::uint64_t large_registers(std::size_t unit) { return 0xfed90000 + unit * 0x1000; }

/// Each unit has 8 ports and what is below them, and the last one the rest, too.
inline std::string large_dmar() {
    AcpiBuilder table{"DMAR"};
    table.u8(45).u8(1).zeros(10);
    for (std::size_t unit = 0; unit < count_large_units; ++unit) {
        const std::size_t start = table.begin();
        table.u16(0).u16(0).u8(unit + 1 == count_large_units ? 1 : 0).u8(0).u16(0).u64(large_registers(unit));
        for (std::size_t port = unit; port < count_large_ports; port += count_large_units)
            table.u8(2).u8(8).u16(0).u8(0).u8(0).u8(port / 8).u8(port % 8);
        table.end_u16(start, 2);
    }
    const std::vector<std::byte>& bytes = table.done();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct LargeMachine {
    LargeMachine() {
        const std::string endpoint = large_endpoint_space();
        for (std::size_t i = 0; i < count_large_functions; ++i) {
            const bool is_port = i < count_large_ports;
            const std::size_t bus = is_port ? 0 : 1 + i % count_large_ports;
            const std::size_t slot = is_port ? i : i / count_large_ports;
            const std::string address = fmt::format("0000:{:02x}:{:02x}.{}", bus, slot / 8 & 31, slot % 8);
            addresses.push_back(address);
            add(address, i, is_port ? large_port_space(static_cast<unsigned>(1 + i)) : endpoint);
        }
        for (std::size_t i = 0; i < count_large_units; ++i)
            machine.add_unit("dmar" + std::to_string(i), fmt::format("{:x}", large_registers(i)));
        machine.put("sys/firmware/acpi/tables/DMAR", large_dmar());
        machine.put("proc/cmdline", "intel_iommu=on\n");
        const auto tree = open_host_tree(machine.path()).value();
        archive_path = files.write("machine.tar", capture(*tree).value().archive);
    }

    MachineTree machine;
    guestmem::testing::TempFolder files;
    std::string archive_path;
    std::vector<std::string> addresses;

private:
    void add(const std::string& address, std::size_t number, const std::string& configuration) {
        const std::string device = "sys/bus/pci/devices/" + address;
        machine.put(device + "/config", configuration);
        for (const char* name : {"class", "vendor", "device"}) machine.put(device + "/" + name, "0x020000\n");
        machine.put(device + "/resource", "0x00000000feb80000 0x00000000feb9ffff 0x0000000000040200\n");
        machine.link(device + "/driver", "bus/pci/drivers/ixgbe");
        machine.link(device + "/iommu_group", "kernel/iommu_groups/" + std::to_string(number));
        machine.link(device + "/iommu",
                     "devices/virtual/iommu/dmar" + std::to_string(number % count_large_units));
        if (number % 16 == 0) machine.put(device + "/firmware_node/path", "\\_SB_.PC00.RP01\n");
        const std::string group = "sys/kernel/iommu_groups/" + std::to_string(number);
        machine.put(group + "/type", "DMA-FQ\n");
        machine.put(group + "/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n");
        machine.link(group + "/devices/" + address, "devices/pci0000:00/" + address);
    }
};

inline const LargeMachine& large_machine() {
    static const LargeMachine made;
    return made;
}

/// The best of the rounds in wall and in processor time; counters ms and cpu_ms.
template <typename State, typename Work>
double best_ms(State& state, Work&& work) {
    const auto cpu_ms = [] { return static_cast<double>(std::clock()) * 1000 / CLOCKS_PER_SEC; };
    double best = std::numeric_limits<double>::max();
    double best_cpu = best;
    for ([[maybe_unused]] auto round : state) {
        const auto start = std::chrono::steady_clock::now();
        const double start_cpu = cpu_ms();
        work();
        const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
        best = std::min(best, taken.count());
        best_cpu = std::min(best_cpu, cpu_ms() - start_cpu);
    }
    state.counters["ms"] = best;
    state.counters["cpu_ms"] = best_cpu;
    return best_cpu;
}

}  // namespace guestmem::dma::testing

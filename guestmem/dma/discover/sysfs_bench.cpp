// SPDX-License-Identifier: Apache-2.0
/// How long it takes to read a machine of 4,096 PCI functions: a folder as it is captured, and the archive of it.
///
/// The machine has 64 root ports and 4,032 endpoints below them with 4096 bytes of configuration space each (ACS, ATS,
/// MSI-X), a driver, a group of its own with reserved regions, and one of 8 units; every 16th has an ACPI name.
/// read/folder opens the folder and reads it, read/archive the same with the .tar, firmware tables included.
/// capture/folder makes the archive in memory.
/// Baseline of the same run: open/folder opens, reads and closes each configuration space by its whole path.
/// Counters: ms (the best round), of_open (the ratio to the best round of the baseline). Target: 200 ms.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/firmware_tables.hpp"
#include "guestmem/dma/discover/sysfs.hpp"
#include "guestmem/dma/discover/testing/machine_tree.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::dma {
namespace {

using testing::ConfigSpace;
using testing::MachineTree;

constexpr std::size_t count_functions = 4096;
constexpr std::size_t count_ports = 64;

std::string port_space(unsigned bus) {
    ConfigSpace space;
    space.put8(0x0e, 1).put8(0x19, bus).put8(0x1a, bus).put32(0x08, 0x06040000).express(0x40, 4, 0, true);
    return space.extended(0x100, 0x0001, 0x150).extended(0x150, 0x000d, 0).put16(0x154, 0x1f).text();
}

std::string endpoint_space() {
    ConfigSpace space;
    space.put32(0x08, 0x02000000).capability(0x40, 0x01, 0x50).capability(0x50, 0x11, 0x70).express(0x70, 0);
    space.extended(0x100, 0x0001, 0x150).extended(0x150, 0x000d, 0x180).extended(0x180, 0x000f, 0);
    return space.text();
}

/// Made once: the folder of a captured machine, and its archive.
struct Ground {
    Ground() {
        TarWriter writer;
        const std::string endpoint = endpoint_space();
        for (std::size_t i = 0; i < count_functions; ++i) {
            const bool is_port = i < count_ports;
            const std::size_t bus = is_port ? 0 : 1 + i % count_ports;
            const std::size_t slot = is_port ? i : i / count_ports;
            const std::string address = fmt::format("0000:{:02x}:{:02x}.{}", bus, slot / 8 & 31, slot % 8);
            addresses.push_back(address);
            const std::string device = "sys/bus/pci/devices/" + address;
            machine.put(device + "/config", is_port ? port_space(static_cast<unsigned>(1 + i)) : endpoint);
            for (const char* name : {"class", "vendor", "device"})
                machine.put(device + "/" + name, "0x020000\n");
            machine.put(device + "/resource", "0x00000000feb80000 0x00000000feb9ffff 0x0000000000040200\n");
            machine.link(device + "/driver", "bus/pci/drivers/ixgbe");
            machine.link(device + "/iommu_group", "kernel/iommu_groups/" + std::to_string(i));
            machine.link(device + "/iommu", "devices/virtual/iommu/dmar" + std::to_string(i % 8));
            if (i % 16 == 0) machine.put(device + "/firmware_node/path", "\\_SB_.PC00.RP01\n");
            const std::string group = "sys/kernel/iommu_groups/" + std::to_string(i);
            machine.put(group + "/type", "DMA-FQ\n");
            machine.put(group + "/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n");
            machine.link(group + "/devices/" + address, "devices/pci0000:00/" + address);
        }
        for (int i = 0; i < 8; ++i) machine.add_unit("dmar" + std::to_string(i), "fed90000");
        machine.put("sys/firmware/acpi/tables/DMAR", std::string(4096, 'x'));
        machine.put("proc/cmdline", "intel_iommu=on\n");
        const auto tree = open_host_tree(machine.path()).value();
        archive_path = files.write("machine.tar", capture(*tree).value().archive);
    }

    MachineTree machine;
    guestmem::testing::TempFolder files;
    std::string archive_path;
    std::vector<std::string> addresses;
};

Ground& ground() {
    static Ground made;
    return made;
}

template <typename Work>
double best_ms(benchmark::State& state, Work&& work) {
    double best = std::numeric_limits<double>::max();
    for ([[maybe_unused]] auto round : state) {
        const auto start = std::chrono::steady_clock::now();
        work();
        best = std::min(
            best,
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    state.counters["ms"] = best;
    return best;
}

double& baseline_ms() {
    static double ms = 0;
    return ms;
}

void compare(benchmark::State& state, double ms) {
    if (baseline_ms() > 0) state.counters["of_open"] = ms / baseline_ms();
}

void open_each(benchmark::State& state) {
    Ground& made = ground();
    baseline_ms() = best_ms(state, [&] {
        std::vector<std::byte> bytes(config_bytes);
        for (const std::string& address : made.addresses) {
            const auto file = open_file(made.machine.path() + "/sys/bus/pci/devices/" + address + "/config",
                                        OpenMode::read);
            GM_CHECK(file && read_some(*file, bytes));
        }
    });
}

void read_machine(benchmark::State& state, bool is_archive) {
    Ground& made = ground();
    compare(state, best_ms(state, [&] {
                const auto tree =
                    open_host_tree(is_archive ? made.archive_path : made.machine.path()).value();
                const HostView view = read_host_view(*tree).value();
                const FirmwareTables tables = firmware_tables(*tree).value();
                GM_CHECK(view.functions.size() == count_functions && view.groups.size() == count_functions);
                GM_CHECK(view.complaints.empty() && tables.tables.size() == 1);
            }));
}

void capture_machine(benchmark::State& state) {
    Ground& made = ground();
    compare(state, best_ms(state, [&] {
                const auto tree = open_host_tree(made.machine.path()).value();
                GM_CHECK(capture(*tree).value().unreadable.empty());
            }));
}

BENCHMARK(open_each)->Name("open/folder")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(read_machine, folder, false)->Name("read/folder")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(read_machine, archive, true)->Name("read/archive")->Unit(benchmark::kMillisecond);
BENCHMARK(capture_machine)->Name("capture/folder")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

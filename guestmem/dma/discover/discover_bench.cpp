// SPDX-License-Identifier: Apache-2.0
/// How long all of discover() takes on a machine of 4,096 PCI functions: a folder as it is captured, and the archive.
///
/// The machine is that of testing/large_machine.hpp. discover/folder and discover/archive open it, read sysfs and the
/// table, and resolve the inventory, its destruction included.
/// Baseline of the same run: open/folder opens, reads and closes each configuration space by its whole path.
/// Counters: ms and cpu_ms (of the best round), of_open (the ratio of cpu_ms to that of the baseline). Target: 200 ms.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/discover.hpp"
#include "guestmem/dma/discover/pci_config.hpp"
#include "guestmem/dma/discover/testing/large_machine.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::dma {
namespace {

using testing::best_ms;
using testing::large_machine;

double& baseline_ms() {
    static double ms = 0;
    return ms;
}

void open_each(benchmark::State& state) {
    const std::string folder = large_machine().machine.path() + "/sys/bus/pci/devices/";
    baseline_ms() = best_ms(state, [&] {
        std::vector<std::byte> bytes(config_bytes);
        for (const std::string& address : large_machine().addresses) {
            const auto file = open_file(folder + address + "/config", OpenMode::read);
            GM_CHECK(file && read_some(*file, bytes));
        }
    });
}

void discover_machine(benchmark::State& state, bool is_archive) {
    const std::string& root = is_archive ? large_machine().archive_path : large_machine().machine.path();
    const double ms = best_ms(state, [&] {
        const auto tree = open_host_tree(root).value();
        const Inventory inventory = discover(*tree, {}).value();
        GM_CHECK(inventory.devices.size() == testing::count_large_functions);
        GM_CHECK(inventory.units.size() == testing::count_large_units);
    });
    if (baseline_ms() > 0) state.counters["of_open"] = ms / baseline_ms();
}

BENCHMARK(open_each)->Name("open/folder")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(discover_machine, folder, false)->Name("discover/folder")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(discover_machine, archive, true)->Name("discover/archive")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

// SPDX-License-Identifier: Apache-2.0
/// How long it takes to read a machine of 4,096 PCI functions: a folder as it is captured, and the archive of it.
///
/// The machine is that of testing/large_machine.hpp.
/// read/folder opens the folder and reads it, read/archive the same with the .tar, firmware tables included.
/// capture/folder makes the archive in memory.
/// Baseline of the same run: open/folder opens, reads and closes each configuration space by its whole path.
/// Counters: ms and cpu_ms (of the best round), of_open (the ratio of cpu_ms to that of the baseline). Target: 200 ms.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/firmware_tables.hpp"
#include "guestmem/dma/discover/pci_config.hpp"
#include "guestmem/dma/discover/sysfs.hpp"
#include "guestmem/dma/discover/testing/large_machine.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::dma {
namespace {

using testing::best_ms;
using testing::large_machine;
using testing::LargeMachine;

double& baseline_ms() {
    static double ms = 0;
    return ms;
}

void compare(benchmark::State& state, double ms) {
    if (baseline_ms() > 0) state.counters["of_open"] = ms / baseline_ms();
}

void open_each(benchmark::State& state) {
    const LargeMachine& made = large_machine();
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
    const LargeMachine& made = large_machine();
    compare(state, best_ms(state, [&] {
                const auto tree =
                    open_host_tree(is_archive ? made.archive_path : made.machine.path()).value();
                const HostView view = read_host_view(*tree).value();
                const FirmwareTables tables = firmware_tables(*tree).value();
                GM_CHECK(view.functions.size() == testing::count_large_functions &&
                         view.groups.size() == testing::count_large_functions);
                GM_CHECK(view.complaints.empty() && tables.tables.size() == 1);
            }));
}

void capture_machine(benchmark::State& state) {
    const LargeMachine& made = large_machine();
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

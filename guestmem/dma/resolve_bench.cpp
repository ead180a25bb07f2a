// SPDX-License-Identifier: Apache-2.0
/// What it costs to make an inventory of a large machine, and of a hostile one.
///
/// resolve/functions/N stands for a server with N PCI functions below root ports of four segments, a VT-d unit for
/// each segment, a scope for each function, and the kernel's groups: part of `dma discover`, which has 200 ms for a
/// captured machine with 4096 functions.
/// resolve/platform/N is a board with N platform devices, each with a stream of its own.
/// resolve/hostile stands for tables and a user's file with as many facts as there can be, all of them for everybody.
/// The baseline of the same run is a copy and a sort of the machine's functions. Counters: of_sort (the ratio to it).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

#include "guestmem/dma/resolve.hpp"
#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::acs;
using testing::bridge;
using testing::endpoint;
using Clock = std::chrono::steady_clock;

struct Machine {
    SourceFacts facts = {};
    HostView view = {};
};

Machine server(std::size_t count_functions) {
    Machine machine;
    machine.view.settings.architecture = "x86_64";
    constexpr std::size_t per_port = 17;  // the port and two devices with eight functions
    for (std::size_t i = 0; i < count_functions; ++i) {
        const auto segment = static_cast<std::uint16_t>(i % 4);
        const std::size_t port = i / 4 / per_port;
        const std::size_t place = i / 4 % per_port;
        const auto bus = static_cast<std::uint8_t>(port + 1);
        const auto at = place == 0 ? pci_address(segment, 0, static_cast<std::uint8_t>(port % 32),
                                                 static_cast<std::uint8_t>(port / 32))
                                   : pci_address(segment, bus, static_cast<std::uint8_t>((place - 1) / 8),
                                                 static_cast<std::uint8_t>((place - 1) % 8));
        PciFunction function =
            place == 0 ? bridge(at, PortType::root_port, bus, bus, acs(true)) : endpoint(at);
        function.is_multifunction = true;
        function.group = static_cast<std::uint32_t>(
            place == 0 ? i : i / 4 / per_port * 1000 + segment * 10 + (place - 1) / 8 + 1000000);
        function.kernel_unit = "dmar" + std::to_string(segment);
        machine.view.functions.push_back(function);
        machine.facts.covers.push_back({.unit = unit_name(UnitKind::vt_d, 0x1000U * (segment + 1U)),
                                        .which = PciRange{segment, at.rid, at.rid},
                                        .origin = {Source::dmar, "offset 0x30"}});
    }
    for (std::uint16_t segment = 0; segment < 4; ++segment) {
        const std::uint64_t registers = 0x1000U * (segment + 1U);
        machine.facts.units.push_back({.name = unit_name(UnitKind::vt_d, registers),
                                       .kind = UnitKind::vt_d,
                                       .registers = registers,
                                       .segment = segment,
                                       .origin = {Source::dmar, "offset 0x30"}});
        machine.view.units.push_back({.name = "dmar" + std::to_string(segment), .registers = registers});
    }
    testing::sort(machine.view);
    return machine;
}

Machine board(std::size_t count_devices) {
    Machine machine;
    machine.facts.units = {{.name = "smmuv3@1000", .kind = UnitKind::smmu_v3, .registers = 0x1000}};
    for (std::size_t i = 0; i < count_devices; ++i) {
        const std::string path = "/soc/dma@" + std::to_string(i);
        machine.view.platform_devices.push_back({.name = std::to_string(i) + ".dma", .firmware_node = path});
        machine.facts.covers.push_back({.unit = "smmuv3@1000",
                                        .which = NamedDevice{path},
                                        .identity = {.first_id = static_cast<std::uint32_t>(i)}});
    }
    return machine;
}

Machine hostile() {
    Machine machine = server(4096);
    machine.facts.covers.clear();
    for (std::uint32_t i = 0; i < max_facts / 2; ++i) {
        machine.facts.covers.push_back({.unit = machine.facts.units[i % 4].name,
                                        .which = PciRange{static_cast<std::uint16_t>(i % 4), 0, 0xffff},
                                        .identity = {.first_id = i, .ignored_bits = i % 8}});
        machine.facts.reserved.push_back({.who = {PciRest{static_cast<std::uint16_t>(i % 4)}}, .first = i});
    }
    return machine;
}

void run(benchmark::State& state, const Machine& machine) {
    double best_sort = 1e9;
    double best = 1e9;
    for (auto step : state) {
        const auto start = Clock::now();
        auto functions = machine.view.functions;
        std::ranges::sort(functions, std::ranges::greater{}, &PciFunction::address);
        benchmark::DoNotOptimize(functions.data());
        const auto middle = Clock::now();
        const Inventory inventory = resolve(machine.facts, machine.view);
        benchmark::DoNotOptimize(inventory.devices.data());
        const auto stop = Clock::now();
        best_sort = std::min(best_sort, std::chrono::duration<double>(middle - start).count());
        best = std::min(best, std::chrono::duration<double>(stop - middle).count());
        state.SetIterationTime(std::chrono::duration<double>(stop - middle).count());
    }
    state.counters["of_sort"] = best / best_sort;
}

void functions(benchmark::State& state) { run(state, server(static_cast<std::size_t>(state.range(0)))); }
void platform(benchmark::State& state) { run(state, board(static_cast<std::size_t>(state.range(0)))); }
void enemy(benchmark::State& state) { run(state, hostile()); }

BENCHMARK(functions)
    ->Name("resolve/functions")
    ->Arg(256)
    ->Arg(4096)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(platform)->Name("resolve/platform")->Arg(10000)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(enemy)->Name("resolve/hostile")->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

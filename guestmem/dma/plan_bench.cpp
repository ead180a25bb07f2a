// SPDX-License-Identifier: Apache-2.0
// A plan for 10,000 devices with 100 ranges each: at most 1 s.
#include <benchmark/benchmark.h>

#include "guestmem/dma/plan.hpp"

namespace guestmem::dma {
namespace {

constexpr std::size_t count_vms = 100;
constexpr std::uint64_t page = 4096;

Inventory machine(std::size_t count) {
    Inventory inventory;
    inventory.units.push_back({.name = "vtd@fed90000",
                               .kind = UnitKind::vt_d,
                               .kernel_name = "dmar0",
                               .abilities = {.page_sizes = page | page << 9 | page << 18, .input_bits = 48}});
    for (std::size_t i = 0; i < count; ++i) {
        const PciAddress address{static_cast<std::uint16_t>(i >> 16), static_cast<std::uint16_t>(i)};
        inventory.devices.push_back(
            {.name = to_string(address),
             .pci = address,
             .driver = "vfio-pci",
             .unit = 0,
             .protection = Protection::behind_unit,
             .containment = i,
             .is_interrupt_isolated = true,
             .reserved = {{.first = 0xfee00000, .last = 0xfeefffff, .kind = ReservedKind::msi}}});
        inventory.containments.push_back({.devices = {i}});
    }
    return inventory;
}

/// The ranges of each device are others than those of the device before it.
Grants grants_for(const Inventory& inventory, std::size_t count_ranges) {
    Grants grants;
    grants.vms.resize(count_vms);
    for (std::size_t i = 0; i < count_vms; ++i) {
        grants.vms[i].name = "vm" + std::to_string(i);
        grants.vms[i].memory = {{.name = "ram", .at = 0, .size_bytes = 2048 * count_ranges * page}};
    }
    for (std::size_t i = 0; i < inventory.devices.size(); ++i) {
        GrantedDevice device{.name = inventory.devices[i].name, .reaches_all = false, .line = i};
        for (std::size_t range = 0; range < count_ranges; ++range) {
            const std::uint64_t place = (range * 37 % count_ranges) * 2048 + i % 1000;
            device.ranges.push_back({.memory = 0,
                                     .offset_bytes = place * page,
                                     .size_bytes = page,
                                     .permission = {true, range % 2 == 0}});
        }
        grants.vms[i % count_vms].devices.push_back(std::move(device));
    }
    return grants;
}

void BM_plan(benchmark::State& state) {
    const Inventory inventory = machine(static_cast<std::size_t>(state.range(0)));
    const Grants grants = grants_for(inventory, static_cast<std::size_t>(state.range(1)));
    for (auto _ : state) {
        Plan plan = make_plan(inventory, grants);
        benchmark::DoNotOptimize(plan);
    }
    state.SetItemsProcessed(state.iterations() * state.range(0) * state.range(1));
}
BENCHMARK(BM_plan)->Args({1000, 100})->Args({10'000, 100})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

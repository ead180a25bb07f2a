// SPDX-License-Identifier: Apache-2.0
/// What reading a device tree costs: ns per byte, for QEMU's own tree and for hostile ones of 1 MiB.
///
/// Each shape is what makes some way of reading quadratic: deep nesting (paths), many phandles (looking one up), many
/// devices and entries of one device (facts), long names, one name for many properties, wide `ranges` above many
/// IOMMUs, maps whose rows are in no order, many regions of reserved memory. The baseline of the same run is libfdt's
/// own check of the blob (check_ns_per_byte). The target is 10 ns per byte.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <libfdt.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "guestmem/dma/discover/device_tree.hpp"
#include "guestmem/dma/discover/testing/tree_builder.hpp"

namespace guestmem::dma {
namespace {

using testing::TreeBuilder;
using Clock = std::chrono::steady_clock;

constexpr std::size_t tree_bytes = (1 << 20) - 4096;
constexpr std::uint32_t count_units = 64;

void add_unit(TreeBuilder& tree, std::uint32_t phandle, std::uint32_t cells) {
    tree.begin(fmt::format("iommu@{:x}000", phandle)).cells("reg", {0, phandle << 12, 0x1000});
    tree.cells("#iommu-cells", {cells}).cells("phandle", {phandle}).end();
}

void deep(TreeBuilder& tree) {
    while (tree.size_bytes() < tree_bytes) {
        for (int i = 0; i < 62; ++i) tree.begin("0123456789abc");
        for (int i = 0; i < 62; ++i) tree.end();
    }
}
void too_deep(TreeBuilder& tree) {
    std::size_t depth = 0;
    for (; tree.size_bytes() + depth * 4 < tree_bytes; ++depth) tree.begin("a");
    for (; depth > 0; --depth) tree.end();
}
void phandles(TreeBuilder& tree) {
    for (std::uint32_t i = 1; tree.size_bytes() < tree_bytes; ++i)
        tree.begin("a").cells("phandle", {i * 0x9e3779b1}).end();
}
void units(TreeBuilder& tree) {
    for (std::uint32_t i = 1; tree.size_bytes() < tree_bytes; ++i) add_unit(tree, i, 1);
}
void devices(TreeBuilder& tree) {
    for (std::uint32_t i = 1; i <= count_units; ++i) add_unit(tree, i, 1);
    for (std::uint32_t i = 0; tree.size_bytes() < tree_bytes; ++i)
        tree.begin(fmt::format("dma@{:x}", i)).cells("iommus", {1 + i % count_units, i}).end();
}
void entries(TreeBuilder& tree) {
    for (std::uint32_t i = 1; i <= count_units; ++i) add_unit(tree, i, 1);
    std::vector<std::uint32_t> list;
    for (std::uint32_t i = 0; list.size() * 4 < tree_bytes - 8192; ++i)
        list.insert(list.end(), {1 + i * 7 % count_units, i});
    tree.begin("dma").cells("iommus", list).end();
}
void entries_below_the_limit(TreeBuilder& tree) {
    add_unit(tree, 1, 1);
    while (tree.size_bytes() < tree_bytes) {
        tree.begin("dma").cells("iommus", {1, 1, 1, 2, 1, 3, 1, 4});
        tree.cells("reg", std::vector<std::uint32_t>(24)).end();
    }
}
void long_names(TreeBuilder& tree) {
    tree.begin(std::string(tree_bytes / 2, 'x'));
    while (tree.size_bytes() < tree_bytes) tree.begin("a").cells("iommus", {1}).end();
    tree.end();
}
void long_paths(TreeBuilder& tree) {
    add_unit(tree, 1, 1);
    tree.begin(std::string(480, 'x'));
    while (tree.size_bytes() < tree_bytes) tree.begin("a").cells("iommus", {1, 1}).end();
    tree.end();
}
void long_paths_below_the_limit(TreeBuilder& tree) {
    add_unit(tree, 1, 1);
    tree.begin(std::string(480, 'x'));
    while (tree.size_bytes() < tree_bytes)
        tree.begin("a").cells("iommus", {1, 1}).cells("reg", std::vector<std::uint32_t>(20)).end();
    tree.end();
}
void properties(TreeBuilder& tree) {
    const std::string name(255, 'p');
    tree.begin("a");
    while (tree.size_bytes() < tree_bytes) tree.cells(name, {});
    tree.end();
}
void nothing(TreeBuilder& tree) {
    while (tree.size_bytes() < tree_bytes) tree.nop();
}
void wide_ranges(TreeBuilder& tree) {
    std::vector<std::uint32_t> ranges;
    for (std::uint32_t i = 0; ranges.size() * 4 < tree_bytes / 2; ++i)
        ranges.insert(ranges.end(), {i, 0, i, 1});
    tree.begin("bus").cells("ranges", ranges).cells("#address-cells", {1});
    while (tree.size_bytes() < tree_bytes)
        tree.begin("u").cells("reg", {0xffffff00, 1}).cells("#iommu-cells", {1}).end();
    tree.end();
}
void maps(TreeBuilder& tree) {
    for (std::uint32_t i = 1; i <= count_units; ++i) add_unit(tree, i, 1);
    while (tree.size_bytes() < tree_bytes) {
        std::vector<std::uint32_t> map;
        for (std::uint32_t i = 500; i > 0; --i)
            map.insert(map.end(), {i * 64, 1 + i % count_units, i, 1 + i % 100});
        tree.begin("pcie").text("device_type", "pci").cells("iommu-map", map).end();
    }
}
void ordered_maps(TreeBuilder& tree) {
    for (std::uint32_t i = 1; i <= count_units; ++i) add_unit(tree, i, 1);
    std::vector<std::uint32_t> map;
    for (std::uint32_t i = 0; map.size() * 4 < tree_bytes - 8192; ++i)
        map.insert(map.end(), {i, 1 + i % count_units, i, 1});
    tree.begin("pcie").text("device_type", "pci").cells("iommu-map", map).end();
}
void needs(TreeBuilder& tree) {
    for (std::uint32_t i = 1; i <= count_units; ++i) tree.begin("dma").cells("phandle", {i}).end();
    tree.begin("reserved-memory");
    for (std::uint32_t i = 0; tree.size_bytes() < tree_bytes; ++i)
        tree.begin("r").cells("iommu-addresses", {1 + i % count_units, 0, i << 12, 0x1000}).end();
    tree.end();
}

void read(benchmark::State& state, const std::function<void(TreeBuilder&)>& write) {
    TreeBuilder tree;
    write(tree);
    const std::vector<std::byte> blob = tree.done();
    std::size_t count = 0;
    double check_ns = 0;
    for (auto _ : state) {
        const auto start = Clock::now();
        benchmark::DoNotOptimize(fdt_check_full(blob.data(), blob.size()));
        const auto checked = Clock::now();
        const auto facts = read_device_tree(blob);
        state.SetIterationTime(std::chrono::duration<double>(Clock::now() - checked).count());
        check_ns += std::chrono::duration<double, std::nano>(checked - start).count();
        count = facts ? facts->units.size() + facts->covers.size() + facts->reserved.size() : 0;
    }
    const auto bytes = static_cast<double>(blob.size());
    // Prints seconds with a unit: 8.5n is 8.5 ns.
    state.counters["per_byte"] = benchmark::Counter(
        bytes, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
    state.counters["check_ns_per_byte"] = check_ns / bytes / static_cast<double>(state.iterations());
    state.counters["facts"] = static_cast<double>(count);
}

#define SHAPE(name) BENCHMARK_CAPTURE(read, name, name)->UseManualTime()->Unit(benchmark::kMillisecond)
SHAPE(deep);
SHAPE(too_deep);
SHAPE(phandles);
SHAPE(units);
SHAPE(devices);
SHAPE(entries);
SHAPE(entries_below_the_limit);
SHAPE(long_names);
SHAPE(long_paths);
SHAPE(long_paths_below_the_limit);
SHAPE(properties);
SHAPE(nothing);
SHAPE(wide_ranges);
SHAPE(maps);
SHAPE(ordered_maps);
SHAPE(needs);

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

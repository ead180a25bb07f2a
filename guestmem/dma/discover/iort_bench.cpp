// SPDX-License-Identifier: Apache-2.0
/// What reading a table IORT costs, per byte of it, with the facts' destruction.
///
/// Each table is 1 MiB of one kind of content: SMMUs, mappings in order, mappings in no order, forks of forks, named
/// components, reserved memory of many devices and many stream ids, nodes of which everything is wrong. The baseline
/// of the same run is the sum of all bytes, which the checksum needs (sum_ns_per_byte). The target is 10 ns per byte.
#include <benchmark/benchmark.h>

#include <functional>
#include <vector>

#include "guestmem/dma/discover/iort.hpp"
#include "guestmem/dma/discover/testing/iort_builder.hpp"
#include "guestmem/dma/discover/testing/table_timing.hpp"

namespace guestmem::dma {
namespace {

using testing::IortBuilder;
constexpr std::uint64_t is_single = 1;

void read(benchmark::State& state, const std::function<void(IortBuilder&, std::uint32_t)>& add) {
    IortBuilder iort;
    iort.smmu_v3(0x9050000);
    for (std::uint32_t i = 0; iort.size_bytes() < (1 << 20) - 65536; ++i) add(iort, i);
    testing::time_reading(state, iort.done(), read_iort);
}

IortBuilder::Maps maps_of(std::uint32_t count, const std::function<testing::IortMap(std::uint32_t)>& make) {
    IortBuilder::Maps maps;
    for (std::uint32_t i = 0; i < count; ++i) maps.push_back(make(i));
    return maps;
}

BENCHMARK_CAPTURE(read, units, [](IortBuilder& iort, std::uint32_t i) { iort.smmu_v3(0x9050001 + i); });
BENCHMARK_CAPTURE(read, its, [](IortBuilder& iort, std::uint32_t) { iort.its(); });
BENCHMARK_CAPTURE(read, ordered, [](IortBuilder& iort, std::uint32_t i) {
    iort.root_complex(i, maps_of(3000, [](std::uint32_t at) { return testing::IortMap{at * 2, 0, at, 48}; }));
});
BENCHMARK_CAPTURE(read, seams, [](IortBuilder& iort, std::uint32_t i) {
    iort.root_complex(i, maps_of(3000, [](std::uint32_t at) { return testing::IortMap{at * 2, 2, at, 48}; }));
});
BENCHMARK_CAPTURE(read, unordered, [](IortBuilder& iort, std::uint32_t i) {
    iort.root_complex(
        i, maps_of(2000, [](std::uint32_t at) { return testing::IortMap{4000 - at * 2, 2, at, 48}; }));
});
BENCHMARK_CAPTURE(read, components, [](IortBuilder& iort, std::uint32_t i) {
    iort.component("\\_SB_.DMA0.DMA1.DMA2", {{0, 0, i, 48, is_single}});
});
BENCHMARK_CAPTURE(read, wide_components, [](IortBuilder& iort, std::uint32_t) {
    iort.component("\\_SB_.DMA0", {{0, 0xfffffffc, 1, 48, 0}});
});
BENCHMARK_CAPTURE(read, forks, [](IortBuilder& iort, std::uint32_t i) {
    static std::size_t before = 0;
    before = i == 0 ? 48 : before;
    before = iort.component("\\_SB_.DMA0", maps_of(3000, [&](std::uint32_t at) {
                                return testing::IortMap{at * 4, 3, 0, before};
                            }));
});
BENCHMARK_CAPTURE(read, reserved, [](IortBuilder& iort, std::uint32_t i) {
    if (i < 4)
        iort.root_complex(i,
                          maps_of(3000, [](std::uint32_t at) { return testing::IortMap{at * 2, 0, 5, 48}; }));
    iort.reserved(0, {{0x1000, 0x1000}}, {{0, 0, i % 7, 48}});
});
BENCHMARK_CAPTURE(read, reserved_squares, [](IortBuilder& iort, std::uint32_t i) {
    if (i == 0) iort.component("\\_SB_.DMA0", {{0, 0, 1, 48, is_single}});
    iort.reserved(0, std::vector<IortBuilder::Range>(1500, {0x1000, 0x1000}),
                  IortBuilder::Maps(1500, {0, 0, 1, 48}));
});
BENCHMARK_CAPTURE(read, wrong, [](IortBuilder& iort, std::uint32_t i) {
    iort.root_complex(i, maps_of(3000, [](std::uint32_t at) { return testing::IortMap{at * 2, 0, at, 49}; }));
});

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

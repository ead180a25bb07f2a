// SPDX-License-Identifier: Apache-2.0
/// What reading a table VIOT costs, per byte of it, with the facts' destruction.
///
/// Each table has as many nodes of one kind as go into 1 MiB or into the count's 16 bits: IOMMUs, endpoints, ranges in
/// order, ranges that overlap, ranges of many segments, nodes of which everything is wrong. The baseline of the same
/// run is the sum of all bytes, which the checksum needs (sum_ns_per_byte). The target is 10 ns per byte.
#include <benchmark/benchmark.h>

#include <functional>
#include <vector>

#include "guestmem/dma/discover/testing/table_timing.hpp"
#include "guestmem/dma/discover/testing/viot_builder.hpp"
#include "guestmem/dma/discover/viot.hpp"

namespace guestmem::dma {
namespace {

using testing::ViotBuilder;

void read(benchmark::State& state, const std::function<void(ViotBuilder&, std::uint32_t)>& add) {
    ViotBuilder viot;
    viot.mmio_unit(0x888800000000);
    for (std::uint32_t i = 0; viot.size_bytes() < (1 << 20) - 64 && i < 65000; ++i) add(viot, i);
    testing::time_reading(state, viot.done(), read_viot);
}

BENCHMARK_CAPTURE(read, units,
                  [](ViotBuilder& viot, std::uint32_t i) { viot.mmio_unit(0x999900000000 + i); });
BENCHMARK_CAPTURE(read, endpoints, [](ViotBuilder& viot, std::uint32_t i) { viot.endpoint(i, i, 48); });
BENCHMARK_CAPTURE(read, ordered, [](ViotBuilder& viot, std::uint32_t i) {
    viot.range(i, {i >> 8, i >> 8}, {(i & 0xff) * 2, (i & 0xff) * 2}, 48);
});
BENCHMARK_CAPTURE(read, overlapping, [](ViotBuilder& viot, std::uint32_t i) {
    viot.range(i, {i & 7, i & 7}, {0xffff - i, 0xffff}, 48);
});
BENCHMARK_CAPTURE(read, scattered, [](ViotBuilder& viot, std::uint32_t i) {
    const std::uint32_t at = i * 0x9e3779b1 >> 15;
    viot.range(i, {at >> 15, at >> 15}, {(at & 0x7fff) * 2, (at & 0x7fff) * 2}, 48);
});
BENCHMARK_CAPTURE(read, segments,
                  [](ViotBuilder& viot, std::uint32_t) { viot.range(0, {0, 255}, {0, 0xffff}, 48); });
BENCHMARK_CAPTURE(read, wrong, [](ViotBuilder& viot, std::uint32_t i) { viot.range(i, {0, 0}, {1, 0}, 49); });

}  // namespace
}  // namespace guestmem::dma

BENCHMARK_MAIN();

// SPDX-License-Identifier: Apache-2.0
/// What reading a table DMAR costs, per byte of it, with the facts' destruction.
///
/// machine stands for a table as firmware writes it; the others are tables of one kind of content up to the end, the
/// worst that are known: those with most facts that are taken, those that are refused for having more, those in which
/// everything is wrong. Counters: ns_per_byte (the best of the passes), is_taken, facts, complaints.
/// The baseline of the same run is the sum of all bytes, which the checksum needs (sum_ns_per_byte).
/// The target is 10 ns per byte of a table of 1 MiB.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "guestmem/dma/discover/dmar.hpp"
#include "guestmem/dma/discover/testing/acpi_builder.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"

namespace guestmem::dma {
namespace {

using testing::AcpiBuilder;
using Clock = std::chrono::steady_clock;

constexpr std::size_t mebibyte = std::size_t{1} << 20;

struct Work {
    std::string name;
    std::size_t table_bytes;
    std::function<void(AcpiBuilder&)> add;  ///< called until the table is as long
};

using Scopes = std::function<void(AcpiBuilder&)>;

void structure(AcpiBuilder& table, unsigned type, const Scopes& fields) {
    const std::size_t start = table.begin();
    table.u16(type).u16(0);
    fields(table);
    table.end_u16(start, 2);
}

/// A unit with `count` scopes of `hops` hops each.
void unit(AcpiBuilder& table, std::uint64_t base, unsigned type, std::size_t count, std::size_t hops) {
    structure(table, 0, [&](AcpiBuilder& fields) {
        fields.u8(0).u8(0).u16(0).u64(base);
        for (std::size_t i = 0; i < count; ++i) {
            fields.u8(type).u8(6 + hops * 2).u16(0).u8(0).u8(0);
            for (std::size_t hop = 0; hop < hops; ++hop) fields.u8(1).u8(2);
        }
    });
}

void range(AcpiBuilder& table, std::uint64_t first) {
    structure(table, 1, [&](AcpiBuilder& fields) {
        fields.u16(0).u16(0).u64(first).u64(first + 0xfff).u8(1).u8(8).u16(0).u8(0).u8(0).u8(2).u8(0);
    });
}

const std::vector<Work>& works() {
    // Registers above 44 bits make names that do not fit into a string's own room.
    static const std::vector<Work> list{
        {"machine", 4096,
         [](AcpiBuilder& table) {
             unit(table, 0xfed90000, 1, 400, 1);
             range(table, table.begin() << 12);
         }},
        {"smallest_scopes", mebibyte, [](AcpiBuilder& table) { unit(table, 0xfed90000, 1, 10'000, 0); }},
        {"scopes", mebibyte, [](AcpiBuilder& table) { unit(table, 0xfed90000, 1, 8000, 1); }},
        {"most_covers", mebibyte, [](AcpiBuilder& table) { unit(table, 0xfed9000000000000, 1, 1900, 14); }},
        {"most_covers_of_64_KiB", 1 << 16,
         [](AcpiBuilder& table) { unit(table, 0xfed9000000000000, 1, 500, 4); }},
        {"bad_paths", mebibyte,
         [](AcpiBuilder& table) {
             structure(table, 2, [](AcpiBuilder& fields) {
                 fields.u32(0);
                 for (int i = 0; i < 10'000; ++i) fields.u8(1).u8(6).u32(0);
             });
         }},
        {"units_at_one_place", 1 << 14, [](AcpiBuilder& table) { unit(table, 0xfed9000000000000, 1, 0, 0); }},
        {"units", 1 << 14, [](AcpiBuilder& table) { unit(table, table.begin() << 44, 1, 0, 0); }},
        {"ranges", mebibyte,
         [](AcpiBuilder& table) { range(table, std::uint64_t{table.begin()} * 2654435761 << 12); }},
        {"unknown_types", mebibyte, [](AcpiBuilder& table) { table.u16(9).u16(4); }},
        {"affinities", mebibyte,
         [](AcpiBuilder& table) { structure(table, 3, [](AcpiBuilder& fields) { fields.zeros(16); }); }},
        {"zeros", mebibyte, [](AcpiBuilder& table) { table.zeros(4096); }},
    };
    return list;
}

template <typename Call>
double best_ns(Call call) {
    double best = std::numeric_limits<double>::max();
    for (int pass = 0; pass < 5; ++pass) {
        const auto start = Clock::now();
        call();
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count());
    }
    return best;
}

void read(benchmark::State& state, const Work& work) {
    AcpiBuilder table{"DMAR"};
    table.u8(38).u8(1).zeros(10);
    while (table.begin() < work.table_bytes) work.add(table);
    const std::vector<std::byte> bytes = table.done();
    double best = std::numeric_limits<double>::max();
    double sum = best;
    for (auto _ : state) {
        best = std::min(best, best_ns([&] { benchmark::DoNotOptimize(read_dmar(bytes)); }));
        sum = std::min(sum, best_ns([&] {
                           unsigned total = 0;
                           for (const std::byte byte : bytes) total += std::to_integer<unsigned>(byte);
                           benchmark::DoNotOptimize(total);
                       }));
    }
    const auto facts = read_dmar(bytes);
    const auto size = static_cast<double>(bytes.size());
    state.counters["ns_per_byte"] = best / size;
    state.counters["sum_ns_per_byte"] = sum / size;
    state.counters["is_taken"] = facts ? 1 : 0;
    state.counters["facts"] = facts ? static_cast<double>(testing::count_of(*facts)) : 0;
    state.counters["complaints"] = facts ? static_cast<double>(facts->complaints.size()) : 0;
}

}  // namespace
}  // namespace guestmem::dma

int main(int argc, char** argv) {
    using guestmem::dma::Work;
    for (const Work& work : guestmem::dma::works())
        benchmark::RegisterBenchmark(work.name.c_str(), guestmem::dma::read, work);
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}

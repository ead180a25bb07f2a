// SPDX-License-Identifier: Apache-2.0
/// What reading a table IVRS costs, per byte of it, with the facts' destruction.
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

#include "guestmem/dma/discover/ivrs.hpp"
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

using Entries = std::function<void(AcpiBuilder&)>;

/// A block of 64,000 bytes, or one less long where the table is to be shorter, full of such entries.
void unit(AcpiBuilder& table, const Entries& entry, std::size_t entries_bytes = 64'000) {
    const std::size_t start = table.begin();
    table.u8(0x40).u8(0).u16(0).u16(2).u16(0x40).u64(0xfeb80000).u16(0).u16(0).u32(0).zeros(16);
    const std::size_t entries = table.begin();
    while (table.begin() - entries < entries_bytes) entry(table);
    table.end_u16(start, 2);
}

void select(AcpiBuilder& table) { table.u8(2).u16(table.begin()).u8(0); }
void alias(AcpiBuilder& table) { table.u8(0x42).u16(table.begin()).u8(0).u8(0).u16(0x10).u8(0); }
void device(AcpiBuilder& table) {
    table.u8(0xf0).u16(table.begin()).u8(0).text("AMDI0020").zeros(8).u8(2).u8(44).text(std::string(44, 'U'));
}
void memory(AcpiBuilder& table) {
    table.u8(0x21).u8(7).u16(32).u16(table.begin()).u16(0).zeros(8).u64(0x1000).u64(0x1000);
}

const std::vector<Work>& works() {
    static const std::vector<Work> list{
        {"machine", 4096,
         [](AcpiBuilder& table) {
             unit(table, select, 4000);
             memory(table);
         }},
        {"selects", mebibyte, [](AcpiBuilder& table) { unit(table, select); }},
        {"selects_of_16_KiB", 1 << 14, [](AcpiBuilder& table) { unit(table, select, 16'300); }},
        {"aliases", mebibyte, [](AcpiBuilder& table) { unit(table, alias); }},
        {"most_covers", mebibyte, [](AcpiBuilder& table) { unit(table, device); }},
        {"open_ranges", mebibyte,
         [](AcpiBuilder& table) { unit(table, [](AcpiBuilder& entries) { entries.u32(3); }); }},
        {"closed_ranges", mebibyte,
         [](AcpiBuilder& table) { unit(table, [](AcpiBuilder& entries) { entries.u32(4); }); }},
        {"padding", mebibyte,
         [](AcpiBuilder& table) { unit(table, [](AcpiBuilder& entries) { entries.u32(0); }); }},
        {"unknown_entries", mebibyte,
         [](AcpiBuilder& table) { unit(table, [](AcpiBuilder& entries) { entries.u32(5); }); }},
        {"memory", mebibyte, memory},
        {"unknown_blocks", mebibyte, [](AcpiBuilder& table) { table.u8(0x30).u8(0).u16(4); }},
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
    AcpiBuilder table{"IVRS"};
    table.u32(0x203000).zeros(8);
    while (table.begin() < work.table_bytes) work.add(table);
    const std::vector<std::byte> bytes = table.done();
    double best = std::numeric_limits<double>::max();
    double sum = best;
    for (auto _ : state) {
        best = std::min(best, best_ns([&] { benchmark::DoNotOptimize(read_ivrs(bytes)); }));
        sum = std::min(sum, best_ns([&] {
                           unsigned total = 0;
                           for (const std::byte byte : bytes) total += std::to_integer<unsigned>(byte);
                           benchmark::DoNotOptimize(total);
                       }));
    }
    const auto facts = read_ivrs(bytes);
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

// SPDX-License-Identifier: Apache-2.0
/// What it costs to be behind an IOMMU: u64 accesses of a device that stays in a mapping, or goes from one to another.
///
/// runs/N stands for a queue that is at work in a ring or a buffer: 64 accesses in a row in one of N mappings of
/// 64 KiB each, then another. jumps/N stands for descriptor, ring and buffer in turn: each access is in another of N
/// mappings. invalidate stands for a guest that unmaps a buffer while nobody is at work.
/// The baselines of the same run are raw pointers at the same places, and a GuestMemory without translation.
#include <benchmark/benchmark.h>

#include <array>
#include <chrono>
#include <memory>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/translated_memory.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t mapping_bytes = 64 * 1024;
constexpr std::uint64_t io_distance = 1024 * 1024;
constexpr std::uint64_t count_accesses = 16384;
constexpr std::uint64_t run_length = 64;

/// I/O virtual address i x 1 MiB leads to guest address i x 64 KiB.
class Table final : public Translator {
public:
    AccessResult<Translation> translate(IoAddress address, Access /*access*/) override {
        const std::uint64_t number = address.value() / io_distance;
        const auto from = IoRange::create(IoAddress{number * io_distance}, mapping_bytes);
        return *Translation::create(*from, GuestAddress{number * mapping_bytes}, Permissions::read_write);
    }
};

struct Fixture {
    explicit Fixture(std::uint64_t mappings, std::uint64_t accesses_per_visit)
        : memory(HostMemory::create_anonymous({.size_bytes = mappings * mapping_bytes}).value()) {
        Layout layout;
        layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory}).value());
        map = std::move(layout).freeze().value();
        space = std::make_unique<IoSpace>(
            IoSpace::create({.name = "bench", .translator = std::make_shared<Table>()}).value());
        translated = space->make_memory("bench", map).value();
        std::uint64_t state = 1;
        for (std::uint64_t i = 0; i < count_accesses; ++i) {
            state = state * 6364136223846793005U + 1442695040888963407U;
            const std::uint64_t mapping = i / accesses_per_visit % mappings;
            const std::uint64_t offset = (state >> 40) % (mapping_bytes / 8) * 8;
            io.emplace_back(mapping * io_distance + offset);
            guest.emplace_back(mapping * mapping_bytes + offset);
            host.push_back(memory->bytes().data() + guest.back().value());
            GM_CHECK(translated->write<std::uint64_t>(io.back(), 0));
        }
    }

    std::shared_ptr<const HostMemory> memory;
    std::shared_ptr<const MemoryMap> map;
    std::unique_ptr<IoSpace> space;
    std::unique_ptr<TranslatedMemory> translated;
    std::vector<IoAddress> io;
    std::vector<GuestAddress> guest;
    std::vector<std::byte*> host;
};

template <typename View, typename Address>
void read_all(benchmark::State& state, View& view, const std::vector<Address>& addresses) {
    for (auto _ : state) {
        std::uint64_t sum = 0;
        for (const Address address : addresses) sum += view.template read<std::uint64_t>(address).value_or(1);
        benchmark::DoNotOptimize(sum);
    }
    state.counters["ns"] = benchmark::Counter(
        static_cast<double>(state.iterations()) * static_cast<double>(count_accesses) * 1e-9,
        benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

template <typename View, typename Address>
void write_all(benchmark::State& state, View& view, const std::vector<Address>& addresses) {
    for (auto _ : state) {
        std::uint64_t failures = 0;
        for (const Address address : addresses)
            failures += view.template write<std::uint64_t>(address, 0) ? 0U : 1U;
        benchmark::DoNotOptimize(failures);
    }
    state.counters["ns"] = benchmark::Counter(
        static_cast<double>(state.iterations()) * static_cast<double>(count_accesses) * 1e-9,
        benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// What a raw pointer does: neither bounds nor dirty marks.
struct RawView {
    template <typename T>
    [[gnu::always_inline]] AccessResult<T> read(const std::byte* from) {
        T value;
        return try_load(from, value) ? value : T{1};
    }
    template <typename T>
    [[gnu::always_inline]] AccessResult<void> write(std::byte* to, T value) {
        static_cast<void>(try_store(to, value));
        return {};
    }
};

template <std::uint64_t accesses_per_visit>
void read_raw(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    RawView raw;
    read_all(state, raw, fixture.host);
}
template <std::uint64_t accesses_per_visit>
void read_guest(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    GuestMemory memory{fixture.map};
    read_all(state, memory, fixture.guest);
}
template <std::uint64_t accesses_per_visit>
void read_translated(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    read_all(state, *fixture.translated, fixture.io);
}
template <std::uint64_t accesses_per_visit>
void write_raw(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    RawView raw;
    write_all(state, raw, fixture.host);
}
template <std::uint64_t accesses_per_visit>
void write_guest(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    GuestMemory memory{fixture.map};
    write_all(state, memory, fixture.guest);
}
template <std::uint64_t accesses_per_visit>
void write_translated(benchmark::State& state) {
    Fixture fixture{static_cast<std::uint64_t>(state.range(0)), accesses_per_visit};
    write_all(state, *fixture.translated, fixture.io);
}

void invalidate(benchmark::State& state) {
    Fixture fixture{4, 1};
    for (auto _ : state)
        GM_CHECK(fixture.space->invalidate(*IoRange::create(IoAddress{0}, 4096), std::chrono::seconds{1}));
}

/// An access whose mapping the guest has just taken away and given back: lock, question, answer, insert.
void miss(benchmark::State& state) {
    Fixture fixture{4, 1};
    for (auto _ : state) {
        GM_CHECK(fixture.space->invalidate_all(std::chrono::seconds{1}));
        benchmark::DoNotOptimize(fixture.translated->read<std::uint64_t>(IoAddress{0}).has_value());
    }
}

void copy_4k(benchmark::State& state) {
    Fixture fixture{4, 1};
    std::array<std::byte, 4096> buffer;
    for (auto _ : state) {
        GM_CHECK(fixture.translated->read_bytes(IoAddress{0}, buffer));
        benchmark::DoNotOptimize(buffer);
    }
}

BENCHMARK(read_raw<run_length>)->Name("read/runs/raw")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(read_guest<run_length>)->Name("read/runs/guest")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(read_translated<run_length>)->Name("read/runs/translated")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(write_raw<run_length>)->Name("write/runs/raw")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(write_guest<run_length>)->Name("write/runs/guest")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(write_translated<run_length>)->Name("write/runs/translated")->Arg(1)->Arg(4)->Arg(64);
BENCHMARK(read_raw<1>)->Name("read/jumps/raw")->Arg(4)->Arg(8)->Arg(64);
BENCHMARK(read_guest<1>)->Name("read/jumps/guest")->Arg(4)->Arg(8)->Arg(64);
BENCHMARK(read_translated<1>)->Name("read/jumps/translated")->Arg(4)->Arg(8)->Arg(64);
BENCHMARK(invalidate);
BENCHMARK(miss);
BENCHMARK(copy_4k);

}  // namespace
}  // namespace guestmem

BENCHMARK_MAIN();

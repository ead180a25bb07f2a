// SPDX-License-Identifier: Apache-2.0
/// What it costs to hold the current map of a running machine, per hold.
///
/// memory stands for a device's queue that comes by for each request; pin for a thread that holds the map for one
/// request only. The baselines of the same run: pointer is the load of a raw pointer, which holds nothing;
/// shared_ptr_copy copies a shared_ptr that nobody replaces, which no live map could do; atomic_shared_ptr is what
/// the standard library has for one that is replaced.
/// quiet: nobody publishes. busy: a thread publishes another map every 100 us, as while memory is plugged, and looks
/// whether the old one is unused. threads:2 has two readers at once; the time is one reader's.
#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/live_map.hpp"

namespace guestmem {
namespace {

using MapPtr = std::shared_ptr<const MemoryMap>;

constexpr std::chrono::microseconds publish_interval{100};

MapPtr some_map() {
    const auto memory = HostMemory::create_anonymous({.size_bytes = 4096}).value();
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory}).value());
    return std::move(layout).freeze().value();
}

/// A live map, its rivals, and perhaps a writer.
class World {
public:
    explicit World(bool is_busy) : live_(some_map()), shared_(some_map()), atomic_(shared_) {
        if (is_busy) writer_ = std::thread{[this] { publish_on(); }};
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World() {
        is_over_ = true;
        if (writer_.joinable()) writer_.join();
    }

    [[nodiscard]] MapReader make_reader() { return live_.make_reader("bench").value(); }
    [[nodiscard]] const MapPtr& shared() const { return shared_; }
    [[nodiscard]] MapPtr load_atomic() const { return atomic_.load(std::memory_order_acquire); }
    [[nodiscard]] const std::atomic<const MemoryMap*>& pointer() const { return pointer_; }

private:
    void publish_on() {
        while (!is_over_) {
            MapPtr next = some_map();
            atomic_.store(next, std::memory_order_release);
            const RetiredMap old = live_.publish(std::move(next));
            std::this_thread::sleep_for(publish_interval);
            // A look, no wait: a reader whose run has ended holds its map until it is gone.
            benchmark::DoNotOptimize(live_.wait_until_unused(old, std::chrono::milliseconds{0}));
        }
    }

    LiveMap live_;
    MapPtr shared_;
    std::atomic<MapPtr> atomic_;
    std::atomic<const MemoryMap*> pointer_{shared_.get()};
    std::atomic<bool> is_over_{false};
    std::thread writer_;
};

std::optional<World> world;

void start_quiet(const benchmark::State& /*state*/) { world.emplace(false); }
void start_busy(const benchmark::State& /*state*/) { world.emplace(true); }
void stop(const benchmark::State& /*state*/) { world.reset(); }

void pointer(benchmark::State& state) {
    for (auto turn : state) {
        const MemoryMap* map = world->pointer().load(std::memory_order_acquire);
        benchmark::DoNotOptimize(map);
    }
}

void memory(benchmark::State& state) {
    MapReader reader = world->make_reader();
    for (auto turn : state) {
        GuestMemory* memory = &reader.memory();
        benchmark::DoNotOptimize(memory);
    }
}

void pin(benchmark::State& state) {
    MapReader reader = world->make_reader();
    for (auto turn : state) {
        const MapPin pin = reader.pin();
        GuestMemory* memory = &*pin;
        benchmark::DoNotOptimize(memory);
    }
}

void shared_ptr_copy(benchmark::State& state) {
    for (auto turn : state) {
        const MapPtr map = world->shared();
        benchmark::DoNotOptimize(map.get());
    }
}

void atomic_shared_ptr(benchmark::State& state) {
    for (auto turn : state) {
        const MapPtr map = world->load_atomic();
        benchmark::DoNotOptimize(map.get());
    }
}

void add_all() {
    using Function = void (*)(benchmark::State&);
    const std::pair<const char*, Function> functions[] = {{"pointer", pointer},
                                                          {"memory", memory},
                                                          {"pin", pin},
                                                          {"shared_ptr_copy", shared_ptr_copy},
                                                          {"atomic_shared_ptr", atomic_shared_ptr}};
    for (const bool is_busy : {false, true})
        for (const auto& [name, function] : functions)
            for (const int count_readers : {1, 2})
                benchmark::RegisterBenchmark((std::string{name} + (is_busy ? "/busy" : "/quiet")).c_str(),
                                             function)
                    ->Setup(is_busy ? start_busy : start_quiet)
                    ->Teardown(stop)
                    ->Threads(count_readers)
                    ->MinTime(0.2);
}

}  // namespace
}  // namespace guestmem

int main(int argc, char** argv) {
    guestmem::add_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}

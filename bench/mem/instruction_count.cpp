// SPDX-License-Identifier: Apache-2.0
/// Fixed works of the fast path, for counting their instructions: test_instructions.py runs this under callgrind with
/// two numbers of passes, and the difference belongs to the accesses alone. No clock, no random numbers, no threads.
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "bench/mem/maps.hpp"
#include "bench/mem/measure.hpp"
#include "bench/mem/workload.hpp"
#include "guestmem/base/check.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem::bench {
namespace {

constexpr std::size_t accesses_per_pass = 64;
constexpr std::uint64_t count_regions = 64;

using Addresses = std::array<GuestAddress, accesses_per_pass>;

/// What a work needs, made before the passes.
class Stage {
public:
    explicit Stage(LayoutKind layout) : regions_(regions_of(layout, count_regions)) {
        arena_ = std::make_shared<const Arena>(regions_);
        map_ = map_over(regions_, arena_);
    }

    [[nodiscard]] const std::shared_ptr<const MemoryMap>& map() const { return map_; }
    /// The same regions with their dirty trackers on.
    [[nodiscard]] std::shared_ptr<const MemoryMap> tracked_map() const {
        return tracked_map_over(regions_, arena_);
    }
    /// All in one region.
    [[nodiscard]] Addresses near() const {
        Addresses addresses;
        for (std::size_t i = 0; i < addresses.size(); ++i)
            addresses[i] = GuestAddress{regions_[1].base + i * 56};
        return addresses;
    }
    /// Each in another region.
    [[nodiscard]] Addresses far() const {
        Addresses addresses;
        for (std::size_t i = 0; i < addresses.size(); ++i)
            addresses[i] = GuestAddress{regions_[i].base + i * 8};
        return addresses;
    }
    /// Each in two regions; for the adjacent layout.
    [[nodiscard]] Addresses straddling() const {
        Addresses addresses;
        for (std::size_t i = 0; i < addresses.size(); ++i)
            addresses[i] = GuestAddress{regions_[1 + i % (count_regions - 1)].base - 4};
        return addresses;
    }

private:
    std::vector<RegionPlace> regions_;
    std::shared_ptr<const Arena> arena_;
    std::shared_ptr<const MemoryMap> map_;
};

template <typename Step>
[[gnu::noinline]] void repeat(std::uint64_t passes, const Addresses& addresses, Step step) {
    for (std::uint64_t i = 0; i < passes; ++i)
        for (const GuestAddress address : addresses) step(address);
}

template <typename View>
void read(View& view, std::uint64_t passes, const Addresses& addresses) {
    repeat(passes, addresses, [&](GuestAddress address) {
        const auto value = view.template read<std::uint64_t>(address);
        GM_CHECK(value.has_value());
        keep(*value);
    });
}

template <typename View>
void write(View& view, std::uint64_t passes, const Addresses& addresses) {
    repeat(passes, addresses, [&](GuestAddress address) {
        GM_CHECK(view.template write<std::uint64_t>(address, 0).has_value());
    });
}

void read_near(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GuestMemory memory{stage.map()};
    read(memory, passes, stage.near());
}

void read_far_linear(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GM_CHECK(stage.map()->index().kind() == "linear");
    MapView view{*stage.map()};
    read(view, passes, stage.far());
}

void read_far_floating(std::uint64_t passes) {
    const Stage stage{LayoutKind::sparse48};
    GM_CHECK(stage.map()->index().kind() == "floating");
    MapView view{*stage.map()};
    read(view, passes, stage.far());
}

void read_straddling(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    MapView view{*stage.map()};
    read(view, passes, stage.straddling());
}

void write_near(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GuestMemory memory{stage.map()};
    write(memory, passes, stage.near());
}

/// All but the first pass find the pages marked.
void write_tracked(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GuestMemory memory{stage.tracked_map()};
    write(memory, passes, stage.near());
}

void load_acquire(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GuestMemory memory{stage.map()};
    // 64 bytes apart less 8: aligned.
    repeat(passes, stage.near(), [&](GuestAddress address) {
        const auto value = memory.load<std::uint64_t>(address, std::memory_order_acquire);
        GM_CHECK(value.has_value());
        keep(*value);
    });
}

void store_release(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    GuestMemory memory{stage.map()};
    repeat(passes, stage.near(), [&](GuestAddress address) {
        GM_CHECK(memory.store<std::uint64_t>(address, 0, std::memory_order_release).has_value());
    });
}

void snapshot(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    LiveMap live{stage.map()};
    MapReader reader = live.make_reader("count").value();
    repeat(passes, stage.near(), [&](GuestAddress) { keep(&reader.memory()); });
}

void snapshot_pin(std::uint64_t passes) {
    const Stage stage{LayoutKind::adjacent};
    LiveMap live{stage.map()};
    MapReader reader = live.make_reader("count").value();
    repeat(passes, stage.near(), [&](GuestAddress) { keep(&*reader.pin()); });
}

/// A map of 64 regions for each pass: the count is that of one region.
void build_map(std::uint64_t passes) {
    const std::vector<RegionPlace> regions = regions_of(LayoutKind::adjacent, count_regions);
    const auto arena = std::make_shared<const Arena>(regions);
    for (std::uint64_t i = 0; i < passes; ++i) keep(map_over(regions, arena).get());
}

struct Work {
    std::string_view name;
    void (*run)(std::uint64_t passes);
};

constexpr Work works[] = {
    {"read_near", read_near},
    {"read_far_linear", read_far_linear},
    {"read_far_floating", read_far_floating},
    {"read_straddling", read_straddling},
    {"write_near", write_near},
    {"write_tracked", write_tracked},
    {"load_acquire", load_acquire},
    {"store_release", store_release},
    {"snapshot", snapshot},
    {"snapshot_pin", snapshot_pin},
    {"build_map", build_map},
};

constexpr std::string_view usage = R"(usage: instruction_count WORK PASSES
       instruction_count --about

Does a work that many times 64 times. --about: a JSON object with the works and how this was compiled.

example: valgrind --tool=callgrind --callgrind-out-file=/dev/null instruction_count read_near 1000
)";

void print_about() {
    std::string names;
    for (const Work& work : works) names += fmt::format("{}\"{}\"", names.empty() ? "" : ", ", work.name);
#if defined(__clang__)
    constexpr std::string_view compiler = "clang";
#else
    constexpr std::string_view compiler = "g++";
#endif
#if defined(__x86_64__)
    constexpr std::string_view machine = "x86-64";
#else
    constexpr std::string_view machine = "other";
#endif
    fmt::print(R"({{"compiler": "{}", "machine": "{}", "flags": "{}", "membarrier": {}, "works": [{}]}})"
               "\n",
               compiler, machine, GUESTMEM_FLAGS, prepare_membarrier(), names);
}

std::optional<std::uint64_t> number_of(std::string_view text) {
    std::uint64_t number = 0;
    const auto [last, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || last != text.data() + text.size()) return std::nullopt;
    return number;
}

int run(std::span<char* const> arguments) {
    if (arguments.size() == 1 && std::string_view{arguments[0]} == "--about") {
        print_about();
        return 0;
    }
    if (arguments.size() == 1 && std::string_view{arguments[0]} == "--help") {
        fmt::print("{}", usage);
        return 0;
    }
    if (arguments.size() == 2)
        for (const Work& work : works)
            if (const auto passes = number_of(arguments[1]); work.name == arguments[0] && passes) {
                work.run(*passes);
                return 0;
            }
    fmt::print(stderr, "{}", usage);
    return 2;
}

}  // namespace
}  // namespace guestmem::bench

int main(int argc, char** argv) {
    GM_CHECK(guestmem::install_fault_guard().has_value());
    return guestmem::bench::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}

// SPDX-License-Identifier: Apache-2.0
// Forks against the bare system calls that map the same image, first touches against the kernel's own and against a
// bare userfaultfd loop, and making a template or a difference against scanning and copying.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/kernel_text.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/written_pages.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t gib = std::uint64_t{1} << 30;

/// On tmpfs, where there is one.
class Store {
public:
    Store() : path_("/dev/shm/guestmem-bench-XXXXXX") { GM_CHECK(::mkdtemp(path_.data()) != nullptr); }
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;
    ~Store() {
        const std::vector<std::string> names = list_templates(path_).value();
        for (const std::string& name : names) GM_CHECK(remove_template(path_ + "/" + name).has_value());
        GM_CHECK(::rmdir(path_.c_str()) == 0);
    }
    [[nodiscard]] std::string path_of(const std::string& name) const { return path_ + "/" + name; }

    /// A template of a hole.
    [[nodiscard]] std::shared_ptr<const Template> sparse(std::uint64_t size_bytes) const {
        const std::string folder = path_of("sparse");
        TemplateMaker maker = TemplateMaker::begin(folder).value();
        const Fd hole = create_unlinked_file("/dev/shm", "hole").value();
        GM_CHECK(resize_file(hole, size_bytes).has_value());
        GM_CHECK(maker.add_file({.name = "ram", .size_bytes = size_bytes}, hole, 0).has_value());
        GM_CHECK(std::move(maker).commit().has_value());
        return Template::open(folder).value();
    }

private:
    std::string path_;
};

void bare_open_and_map(benchmark::State& state) {
    const Store store;
    const std::uint64_t size = static_cast<std::uint64_t>(state.range(0)) * gib;
    const auto base = store.sparse(size);
    const std::string path = store.path_of("sparse/image");
    for (auto _ : state) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        void* const bytes =
            ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
        GM_CHECK(bytes != MAP_FAILED);
        GM_CHECK(::munmap(bytes, size) == 0 && ::close(file) == 0);
    }
}
BENCHMARK(bare_open_and_map)->Arg(1)->Arg(64);

void fork(benchmark::State& state) {
    const Store store;
    const auto base = store.sparse(static_cast<std::uint64_t>(state.range(0)) * gib);
    const auto kept = base->fork();
    for (auto _ : state) {
        auto made = base->fork();
        GM_CHECK(made.has_value());
        benchmark::DoNotOptimize(made);
    }
}
BENCHMARK(fork)->Arg(1)->Arg(64);

void fork_with_write_watch(benchmark::State& state) {
    const Store store;
    const auto base = store.sparse(static_cast<std::uint64_t>(state.range(0)) * gib);
    const auto kept = base->fork();
    for (auto _ : state) {
        auto made = base->fork({.is_write_watched = true});
        GM_CHECK(made.has_value());
        benchmark::DoNotOptimize(made);
    }
}
BENCHMARK(fork_with_write_watch)->Arg(1)->Arg(64);

/// What the kernel has for mappings and open files, of all processes: nothing where only root may know.
std::optional<double> kernel_bytes() {
    const auto text = read_text_file("/proc/slabinfo", std::size_t{1} << 20);
    if (!text) return std::nullopt;
    double bytes = 0;
    for (const char* cache : {"vm_area_struct", "maple_node", "filp", "anon_vma", "anon_vma_chain"}) {
        std::istringstream line{std::string{value_of_line(*text, cache).value_or("0 0 0")}};
        double active = 0;
        double all = 0;
        double size = 0;
        line >> active >> all >> size;
        bytes += active * size;
    }
    return bytes + static_cast<double>(
                       meminfo_bytes(read_text_file("/proc/self/status", 65536).value(), "VmPTE:").value());
}

/// 1,000 forks of 256 MiB: the kernel's memory for each that was not touched.
void kernel_memory_of_1000_forks(benchmark::State& state) {
    const Store store;
    const auto base = store.sparse(gib / 4);
    constexpr int count_forks = 1000;
    std::vector<double> taken;
    for (auto _ : state) {
        std::vector<Fork> forks;
        forks.reserve(count_forks);
        const auto before = kernel_bytes();
        for (int i = 0; i < count_forks; ++i) forks.push_back(base->fork().value());
        const auto after = kernel_bytes();
        if (!before || !after) return state.SkipWithError("/proc/slabinfo can be read by root alone");
        taken.push_back((*after - *before) / count_forks);
        state.PauseTiming();
        forks.clear();
        state.ResumeTiming();
    }
    // Others take and give back meanwhile.
    std::ranges::sort(taken);
    state.counters["bytes_per_fork"] = taken[taken.size() / 2];
}
BENCHMARK(kernel_memory_of_1000_forks)->Iterations(31)->Unit(benchmark::kMillisecond);

/// 1,000 forks alive, with 10 pages written in each, 2 MiB and more apart: what a page costs, and whether the last
/// forks are as quick as the first.
void touched_1000_forks(benchmark::State& state) {
    const Store store;
    const auto base = store.sparse(gib / 4);
    constexpr int count_forks = 1000;
    constexpr int count_pages = 10;
    const auto status_bytes = [](std::string_view key) {
        const std::string text = read_text_file("/proc/self/status", 65536).value();
        return static_cast<double>(meminfo_bytes(text, key).value());
    };
    using Clock = std::chrono::steady_clock;
    const auto us = [](Clock::duration time) {
        return std::chrono::duration<double, std::micro>(time).count() / 100;
    };
    for (auto _ : state) {
        std::vector<Fork> forks;
        forks.reserve(count_forks);
        const double pages_before = status_bytes("RssAnon:");
        const double tables_before = status_bytes("VmPTE:");
        std::vector<Clock::time_point> times;
        for (int i = 0; i < count_forks; ++i) {
            if (i % 100 == 0) times.push_back(Clock::now());
            forks.push_back(base->fork().value());
            std::byte* const bytes = forks.back().regions.front()->host_base();
            for (std::uint64_t page = 0; page < count_pages; ++page)
                bytes[page * (std::uint64_t{21} << 20)] = std::byte{1};
        }
        times.push_back(Clock::now());
        const double pages = count_forks * count_pages;
        state.counters["bytes_per_page"] = (status_bytes("RssAnon:") - pages_before) / pages;
        state.counters["tables_per_page"] = (status_bytes("VmPTE:") - tables_before) / pages;
        state.counters["first_us"] = us(times[1] - times[0]);
        state.counters["last_us"] = us(times[10] - times[9]);
        state.PauseTiming();
        forks.clear();
        state.ResumeTiming();
    }
}
BENCHMARK(touched_1000_forks)->Iterations(5)->Unit(benchmark::kMillisecond);

void fork_of_1000_alive(benchmark::State& state) {
    const Store store;
    const auto base = store.sparse(gib / 4);
    for (auto _ : state) {
        std::vector<Fork> forks;
        forks.reserve(1000);
        for (int i = 0; i < 1000; ++i) forks.push_back(base->fork().value());
        state.PauseTiming();
        forks.clear();
        state.ResumeTiming();
    }
    state.SetItemsProcessed(state.iterations() * 1000);
}
BENCHMARK(fork_of_1000_alive)->Unit(benchmark::kMicrosecond);

/// 1 GiB of which every tenth page is no zeros.
std::shared_ptr<const HostMemory> tenth_full() {
    auto memory = HostMemory::create_anonymous({.size_bytes = gib}).value();
    for (std::uint64_t at = 0; at < gib; at += 10 * page_size_bytes)
        std::memset(memory->bytes().data() + at, 0x5a, page_size_bytes);
    return memory;
}

void scan_and_copy(benchmark::State& state) {
    const auto memory = tenth_full();
    for (auto _ : state) {
        const Fd file = create_unlinked_file("/dev/shm", "copy").value();
        GM_CHECK(resize_file(file, gib).has_value());
        for (std::uint64_t at = 0; at < gib; at += page_size_bytes) {
            const auto page = memory->bytes().subspan(at, page_size_bytes);
            if (is_zero_page(page)) continue;
            GM_CHECK(::pwrite(file.view().number(), page.data(), page.size(), static_cast<off_t>(at)) ==
                     page_size_bytes);
        }
    }
}
BENCHMARK(scan_and_copy)->Unit(benchmark::kMillisecond);

void make_template(benchmark::State& state) {
    const Store store;
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = tenth_full()}).value());
    const auto map = std::move(layout).freeze().value();
    for (auto _ : state) {
        TemplateMaker maker = TemplateMaker::begin(store.path_of("full")).value();
        GM_CHECK(maker.add_map(*map).has_value());
        GM_CHECK(std::move(maker).commit().has_value());
        state.PauseTiming();
        GM_CHECK(remove_template(store.path_of("full")).has_value());
        state.ResumeTiming();
    }
}
BENCHMARK(make_template)->Unit(benchmark::kMillisecond);

constexpr std::uint64_t touched_bytes = std::uint64_t{64} << 20;

/// A template of 64 MiB, no page of which is zeros.
std::shared_ptr<const Template> full(const Store& store) {
    auto memory = HostMemory::create_anonymous({.size_bytes = touched_bytes}).value();
    std::memset(memory->bytes().data(), 0x5a, touched_bytes);
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = std::move(memory)}).value());
    TemplateMaker maker = TemplateMaker::begin(store.path_of("full")).value();
    GM_CHECK(maker.add_map(*std::move(layout).freeze().value()).has_value());
    GM_CHECK(std::move(maker).commit().has_value());
    return Template::open(store.path_of("full")).value();
}

enum class Touch : std::int64_t { read, write };
void touch_all(std::byte* bytes, Touch how) {
    for (std::uint64_t at = 0; at < touched_bytes; at += page_size_bytes) {
        if (how == Touch::write) bytes[at] = std::byte{1};
        benchmark::DoNotOptimize(*static_cast<volatile std::byte*>(bytes + at));
    }
}
void of_pages(benchmark::State& state) {
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(touched_bytes / page_size_bytes));
}

void bare_first_touch(benchmark::State& state) {
    const Store store;
    const auto base = full(store);
    const Fd image = open_file(store.path_of("full/image"), OpenMode::read).value();
    for (auto _ : state) {
        state.PauseTiming();
        auto* const bytes =
            static_cast<std::byte*>(::mmap(nullptr, touched_bytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_NORESERVE, image.view().number(), 0));
        state.ResumeTiming();
        touch_all(bytes, Touch{state.range(0)});
        state.PauseTiming();
        GM_CHECK(::munmap(bytes, touched_bytes) == 0);
        state.ResumeTiming();
    }
    of_pages(state);
}
BENCHMARK(bare_first_touch)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void first_touch(benchmark::State& state, RestoreMode mode) {
    const Store store;
    const auto base = full(store);
    for (auto _ : state) {
        state.PauseTiming();
        auto made = base->fork({.mode = mode});
        GM_CHECK(made.has_value());
        state.ResumeTiming();
        touch_all(made->regions.front()->host_base(), Touch{state.range(0)});
        state.PauseTiming();
        made = Fork{};
        state.ResumeTiming();
    }
    of_pages(state);
}
BENCHMARK_CAPTURE(first_touch, map, RestoreMode::map)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(first_touch, lazy, RestoreMode::lazy)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

/// The whole of a fork by copying: what `lazy` does not have to wait for.
void fork_by_copying(benchmark::State& state) {
    const Store store;
    const auto base = full(store);
    for (auto _ : state) benchmark::DoNotOptimize(base->fork({.mode = RestoreMode::copy}).value());
}
BENCHMARK(fork_by_copying)->Unit(benchmark::kMillisecond);

/// A difference of 1 GiB of which every n-th page was written.
void make_difference(benchmark::State& state) {
    const Store store;
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = tenth_full()}).value());
    TemplateMaker whole = TemplateMaker::begin(store.path_of("full")).value();
    GM_CHECK(whole.add_map(*std::move(layout).freeze().value()).has_value());
    GM_CHECK(std::move(whole).commit().has_value());
    const auto base = Template::open(store.path_of("full")).value();
    const Fork fork = base->fork().value();
    const auto step = static_cast<std::uint64_t>(state.range(0)) * page_size_bytes;
    for (std::uint64_t at = 0; at < gib; at += step) fork.regions[0]->host_base()[at] = std::byte{0xa5};
    double stored = 0;
    for (auto _ : state) {
        TemplateMaker maker = TemplateMaker::begin_difference(store.path_of("diff"), base).value();
        const auto written = written_since_fork(fork).value();
        GM_CHECK(maker.add_written(written).has_value());
        const Manifest made = std::move(maker).commit().value();
        stored = static_cast<double>(made.parent->count_pages);
        state.PauseTiming();
        GM_CHECK(remove_template(store.path_of("diff")).has_value());
        state.ResumeTiming();
    }
    state.counters["pages"] = stored;
    state.counters["pages_per_s"] = benchmark::Counter(stored, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(make_difference)->Arg(1000)->Arg(100)->Arg(10)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem

BENCHMARK_MAIN();

// SPDX-License-Identifier: Apache-2.0
// Forks against the bare system calls that map the same image, and making a template against scanning and copying.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
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
#include "guestmem/sys/testing/temp_folder.hpp"

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

}  // namespace
}  // namespace guestmem

BENCHMARK_MAIN();

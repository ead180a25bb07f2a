// SPDX-License-Identifier: Apache-2.0
/// What a backend costs over the system calls that make the same memory; plans; pre-allocation by threads.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/prealloc.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t huge_bytes = std::uint64_t{2} << 20;

BackendOptions options_of(BackendKind kind, std::uint64_t size_bytes) {
    return {.kind = kind, .id = "bench", .size_bytes = size_bytes, .is_reserved = false};
}

BackendPlan plan_of(const BackendOptions& options) {
    return plan_backend(options, ask_machine().value(), ask_file(options).value());
}

void create(benchmark::State& state, BackendKind kind) {
    const BackendPlan plan = plan_of(options_of(kind, static_cast<std::uint64_t>(state.range(0))));
    for (auto step : state) {
        const auto backend = Backend::create(plan);
        GM_CHECK(backend.has_value());
    }
}

/// Room with guards, aligned for huge pages; the memory in its middle; what is asked of the kernel; gone again.
void create_bare(benchmark::State& state, BackendKind kind) {
    const auto size = static_cast<std::uint64_t>(state.range(0));
    const std::uint64_t align = size >= huge_bytes ? huge_bytes : page_size_bytes;
    const std::uint64_t room = size + 2 * page_size_bytes + align - page_size_bytes;
    for (auto step : state) {
        int fd = -1;
        if (kind == BackendKind::memfd) {
            fd = ::memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
            GM_CHECK(::fchmod(fd, 0600) == 0 && ::ftruncate(fd, static_cast<off_t>(size)) == 0);
            GM_CHECK(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
        }
        void* const reserved =
            ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        GM_CHECK(reserved != MAP_FAILED);
        const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(reserved) + page_size_bytes;
        void* const at = reinterpret_cast<void*>((first + align - 1) / align * align);
        const int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_FIXED | MAP_NORESERVE;
        GM_CHECK(::mmap(at, size, PROT_READ | PROT_WRITE, flags, fd, 0) == at);
        for (const int advice : {MADV_HUGEPAGE, MADV_DONTFORK, MADV_MERGEABLE})
            static_cast<void>(::madvise(at, size, advice));
        ::munmap(reserved, room);
        if (fd >= 0) ::close(fd);
    }
}

void plan_together(benchmark::State& state) {
    const MachineFacts machine = ask_machine().value();
    const testing::TempFolder folder;
    const Fd file = create_file(folder.path_of("ram"), 0600).value();
    GM_CHECK(resize_file(file, static_cast<std::uint64_t>(state.range(0)) << 20).has_value());
    std::vector<std::string> texts;
    for (int i = 0; i < state.range(0); ++i)
        texts.push_back("memory-backend-file,id=m" + std::to_string(i) + ",size=1M,share=on,offset=" +
                        std::to_string(i) + "M,mem-path=" + folder.path_of("ram"));
    for (auto step : state) {
        std::vector<BackendPlan> plans;
        for (const std::string& text : texts) {
            const BackendOptions options = parse_backend(text).value();
            plans.push_back(plan_backend(options, machine, ask_file(options).value()));
        }
        GM_CHECK(!check_together(plans, machine).has_refusal());
    }
}

void preallocate_by(benchmark::State& state) {
    constexpr std::uint64_t size = std::uint64_t{1} << 30;
    for (auto step : state) {
        state.PauseTiming();
        std::shared_ptr<const Backend> backend =
            Backend::create(plan_of(options_of(BackendKind::ram, size))).value();
        const std::span<std::byte> bytes = backend->memory()->bytes();
        GM_CHECK(advise(bytes, Advice::no_huge_pages).has_value());
        state.ResumeTiming();
        GM_CHECK(
            preallocate(bytes, {.count_threads = static_cast<std::uint64_t>(state.range(0))}).has_value());
        state.PauseTiming();
        backend.reset();
        state.ResumeTiming();
    }
}

#define GM_SIZES Arg(4096)->Arg(1 << 20)->Arg(1 << 30)->Arg(std::int64_t{64} << 30)
BENCHMARK_CAPTURE(create, ram, BackendKind::ram)->GM_SIZES;
BENCHMARK_CAPTURE(create_bare, ram, BackendKind::ram)->GM_SIZES;
BENCHMARK_CAPTURE(create, memfd, BackendKind::memfd)->GM_SIZES;
BENCHMARK_CAPTURE(create_bare, memfd, BackendKind::memfd)->GM_SIZES;
BENCHMARK(plan_together)->Arg(1000)->Unit(benchmark::kMillisecond);
BENCHMARK(preallocate_by)->Arg(1)->Arg(2)->Iterations(3)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem

BENCHMARK_MAIN();

// SPDX-License-Identifier: Apache-2.0
// Pre-allocates on command and says how long each took: "ours BYTES THREADS" by a backend, "raw BYTES THREADS" by the
// bare system calls. One line in, one line with nanoseconds out; compare.py speaks to it.
#include <fmt/format.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/backends/backend.hpp"

namespace {

using Clock = std::chrono::steady_clock;

std::chrono::nanoseconds ours(std::uint64_t size_bytes, std::uint64_t threads) {
    const auto begin = Clock::now();
    const auto backend = guestmem::Backend::create({.kind = guestmem::BackendKind::ram,
                                                    .id = "bench",
                                                    .size_bytes = size_bytes,
                                                    .is_prealloc = true,
                                                    .prealloc_threads = threads});
    const auto time = Clock::now() - begin;
    if (!backend) fmt::print(stderr, "prealloc_works: {}\n", backend.error().message());
    GM_CHECK(backend);
    return time;
}

std::chrono::nanoseconds raw(std::uint64_t size_bytes, std::uint64_t threads) {
    const auto begin = Clock::now();
    constexpr std::uint64_t huge = std::uint64_t{2} << 20;
    void* const space =
        ::mmap(nullptr, size_bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GM_CHECK(space != MAP_FAILED);
    auto* const first =
        static_cast<std::byte*>(space) + (huge - reinterpret_cast<std::uintptr_t>(space) % huge) % huge;
    ::madvise(first, size_bytes, MADV_HUGEPAGE);
    {
        std::vector<std::jthread> workers;
        const std::uint64_t part = size_bytes / threads / huge * huge;
        for (std::uint64_t i = 0; i < threads; ++i)
            workers.emplace_back([=] {
                const std::uint64_t size = i + 1 == threads ? size_bytes - i * part : part;
                GM_CHECK(::madvise(first + i * part, size, MADV_POPULATE_WRITE) == 0);
            });
    }
    const auto time = Clock::now() - begin;
    GM_CHECK(::munmap(space, size_bytes + huge) == 0);
    return time;
}

}  // namespace

int main() {
    std::string how;
    std::uint64_t size_bytes = 0;
    std::uint64_t threads = 0;
    while (std::cin >> how >> size_bytes >> threads) {
        const auto time = how == "ours" ? ours(size_bytes, threads) : raw(size_bytes, threads);
        fmt::print("{}\n", time.count());
        std::fflush(stdout);
    }
    return 0;
}

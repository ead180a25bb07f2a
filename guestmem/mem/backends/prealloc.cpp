// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/prealloc.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/memory_limits.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t bytes_per_thread = std::uint64_t{64} << 20;

/// Fails when fewer than that many bytes are left for ordinary pages.
Result<void> check_left(std::uint64_t needed_bytes, std::uint64_t done_bytes) {
    const MemoryLimits limits = GM_TRY(memory_limits());
    std::uint64_t left = limits.available_bytes;
    if (limits.cgroup_headroom_bytes) left = std::min(left, *limits.cgroup_headroom_bytes);
    if (needed_bytes <= left) return {};
    return Error{Errc::exhausted,
                 fmt::format("prealloc: {} bytes were taken, {} more are needed, and {} are left", done_bytes,
                             needed_bytes, left)};
}

/// What SIGBUS would have said.
Error no_page_error(std::span<std::byte> bytes) {
    return Error{
        Errc::exhausted, EFAULT,
        fmt::format("among {} bytes is a page that cannot be had: the file system is full, no huge page is "
                    "free, or the file was cut short",
                    bytes.size())};
}

/// Whether a fault of a guarded access in this thread is a false, and no signal.
bool is_guarded_thread() {
    sigset_t blocked{};
    if (::pthread_sigmask(SIG_BLOCK, nullptr, &blocked) != 0) return false;
    return sigismember(&blocked, SIGBUS) == 0 && sigismember(&blocked, SIGSEGV) == 0 &&
           is_fault_guard_installed();
}

/// For kernels without MADV_POPULATE_WRITE: to add nothing writes the page and changes no byte, whoever else writes.
Result<void> touch(std::span<std::byte> bytes, std::uint64_t page_bytes) {
    GM_TRY(register_fault_table());
    if (!is_guarded_thread())
        return Error{
            Errc::unsupported, EINVAL,
            "this kernel cannot populate pages (MADV_POPULATE_WRITE came with Linux 5.14), and they are only "
            "touched where the fault guard is installed: call install_fault_guard(), or leave prealloc out"};
    for (std::uint64_t at = 0; at < bytes.size(); at += page_bytes) {
        std::uint8_t previous = 0;
        if (!try_fetch_add(bytes.data() + at, std::uint8_t{0}, previous, std::memory_order_relaxed))
            return no_page_error(bytes);
    }
    return {};
}

Result<void> populate_part(std::span<std::byte> bytes, std::uint64_t page_bytes) {
    auto done = populate_write(bytes);
    if (done) return {};
    if (done.error().code() == Errc::unsupported) return touch(bytes, page_bytes);
    if (done.error().os_error() == EFAULT) return no_page_error(bytes);
    return std::move(done).error();
}

/// One part for each thread, whole pages. When there are fewer threads to be had, each does more of them.
Result<void> populate(std::span<std::byte> bytes, std::uint64_t page_bytes, std::uint64_t count_threads) {
    const std::uint64_t count_pages = bytes.size() / page_bytes;
    const std::uint64_t count_parts = std::max<std::uint64_t>(std::min(count_threads, count_pages), 1);
    std::atomic<std::uint64_t> next{0};
    std::mutex mutex;
    std::optional<Error> failure;
    const auto work = [&] {
        for (std::uint64_t part = next++; part < count_parts; part = next++) {
            const std::uint64_t begin = count_pages * part / count_parts * page_bytes;
            const std::uint64_t behind =
                part + 1 == count_parts ? bytes.size() : count_pages * (part + 1) / count_parts * page_bytes;
            auto done = populate_part(bytes.subspan(begin, behind - begin), page_bytes);
            if (done) continue;
            const std::scoped_lock lock{mutex};
            if (!failure) failure = std::move(done).error();
            return;
        }
    };
    {
        std::vector<std::jthread> threads;
        threads.reserve(count_parts);
        try {
            for (std::uint64_t number = 1; number < count_parts; ++number) threads.emplace_back(work);
        } catch (const std::system_error&) {
            // A limit on threads (RLIMIT_NPROC, pids.max): those that there are go on.
        }
        work();
    }
    if (failure) return std::move(*failure).with_context("prealloc");
    return {};
}

}  // namespace

Result<void> preallocate(std::span<std::byte> bytes, std::uint64_t page_bytes, std::uint64_t count_threads,
                         const PreallocProgress& progress) {
    if (count_threads == 0) count_threads = std::max(std::thread::hardware_concurrency(), 1U);
    count_threads = std::min({count_threads, max_prealloc_threads, bytes.size() / bytes_per_thread + 1});
    const std::uint64_t chunk = std::max(prealloc_chunk_bytes, page_bytes);
    for (std::uint64_t done = 0; done < bytes.size();) {
        const std::span part = bytes.subspan(done, std::min<std::uint64_t>(chunk, bytes.size() - done));
        // Huge pages come from a pool of their own.
        if (page_bytes == page_size_bytes) GM_TRY(check_left(part.size(), done));
        GM_TRY(populate(part, page_bytes, count_threads));
        done += part.size();
        if (progress) progress(done);
    }
    return {};
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/prealloc.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "guestmem/sys/numa.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t bytes_per_thread = std::uint64_t{64} << 20;
/// Small enough that threads end together, large enough that taking the next one costs nothing.
constexpr std::uint64_t bytes_per_piece = std::uint64_t{16} << 20;

/// What is left for ordinary pages, and by whose limit.
struct Left {
    std::uint64_t bytes = 0;
    std::string whose;
};
Result<Left> memory_left(std::span<const std::uint16_t> bound_nodes) {
    const MemoryLimits limits = GM_TRY(memory_limits());
    Left left{.bytes = limits.available_bytes, .whose = "the machine"};
    if (limits.cgroup_headroom_bytes && *limits.cgroup_headroom_bytes < left.bytes)
        left = {.bytes = *limits.cgroup_headroom_bytes,
                .whose = fmt::format("the control group {}", limits.cgroup_path)};
    if (bound_nodes.empty()) return left;
    std::uint64_t of_nodes = 0;
    for (const std::uint16_t node : bound_nodes)
        of_nodes += GM_TRY(node_available_bytes(node)).value_or(limits.available_bytes);
    if (of_nodes < left.bytes)
        left = {.bytes = of_nodes, .whose = fmt::format("node {}", fmt::join(bound_nodes, ", "))};
    return left;
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

/// Pieces of the bytes, of which each thread takes the next one when it is done with its own.
class Job {
public:
    Job(std::span<std::byte> bytes, const PreallocOptions& options)
        : bytes_(bytes),
          options_(options),
          piece_bytes_(std::max(bytes_per_piece, options.page_bytes)),
          chunk_bytes_(std::max(prealloc_chunk_bytes, options.page_bytes)),
          cost_of_1024_(cost_of_1024(bytes.size(), options.cost_bytes.value_or(bytes.size()))) {}

    Result<void> run(std::uint64_t count_threads) {
        std::vector<std::jthread> threads;
        threads.reserve(count_threads);
        // The threads end before their vector goes: also when the caller's progress throws.
        const AtEnd stop{is_stopped_};
        try {
            for (std::uint64_t number = 1; number < count_threads; ++number)
                threads.emplace_back([this] { work(false); });
        } catch (const std::system_error&) {  // NOLINT(bugprone-empty-catch)
            // A limit on threads (RLIMIT_NPROC, pids.max): those that there are do all of it.
        }
        work(true);
        threads.clear();
        if (failure_) return std::move(*failure_).with_context("prealloc");
        // The last piece, or all of them, may have been another thread's.
        tell(done_);
        return {};
    }

private:
    struct AtEnd {
        std::atomic<bool>& flag;
        ~AtEnd() { flag = true; }
    };

    static std::uint64_t cost_of_1024(std::uint64_t size_bytes, std::uint64_t cost_bytes) {
        // Sizes are of mappings, below 2^48.
        return size_bytes == 0 ? 0 : (cost_bytes * 1024 + size_bytes - 1) / size_bytes;
    }
    [[nodiscard]] std::uint64_t cost_of(std::uint64_t bytes) const {
        return bytes / 1024 * cost_of_1024_ + bytes % 1024 * cost_of_1024_ / 1024;
    }

    void work(bool is_caller) {
        while (!is_stopped_) {
            const std::uint64_t begin = next_.fetch_add(piece_bytes_);
            if (begin >= bytes_.size()) return;
            const std::uint64_t size = std::min<std::uint64_t>(piece_bytes_, bytes_.size() - begin);
            // Huge pages come from a pool of their own.
            auto taken = options_.page_bytes == page_size_bytes ? check_chunk(begin + size) : Result<void>{};
            // Somebody else has found that there is too little.
            if (taken && is_stopped_) return;
            if (taken) taken = populate_part(bytes_.subspan(begin, size), options_.page_bytes);
            if (!taken) {
                const std::scoped_lock lock{failure_mutex_};
                if (!failure_) failure_ = std::move(taken).error();
                is_stopped_ = true;
                return;
            }
            const std::uint64_t done = done_ += size;
            if (is_caller) tell(done);
        }
    }

    void tell(std::uint64_t done) {
        if (done == told_ || !options_.progress) return;
        told_ = done;
        options_.progress(done);
    }

    /// Asks for the next chunk when a piece is the first to reach into it.
    Result<void> check_chunk(std::uint64_t behind) {
        const std::scoped_lock lock{check_mutex_};
        while (checked_ < behind && !is_stopped_) {
            const std::uint64_t chunk_end = std::min<std::uint64_t>(checked_ + chunk_bytes_, bytes_.size());
            const Left left = GM_TRY(memory_left(options_.bound_nodes));
            // Pieces that others are at are counted as if they had taken nothing yet.
            if (with_kernel_share(cost_of(chunk_end - done_)) > left.bytes) {
                wait_for_others();
                GM_TRY(check_exactly(chunk_end));
            }
            checked_ = chunk_end;
        }
        return {};
    }

    Result<void> check_exactly(std::uint64_t chunk_end) const {
        const Left left = GM_TRY(memory_left(options_.bound_nodes));
        const std::uint64_t done = done_;
        const std::uint64_t needed = with_kernel_share(cost_of(chunk_end - done));
        if (needed <= left.bytes) return {};
        return Error{
            Errc::exhausted,
            fmt::format("{} bytes are done, the next {} need {} with page tables, and {} has {} left", done,
                        chunk_end - done, needed, left.whose, left.bytes)};
    }

    /// Until all that was checked is done, or somebody has failed.
    void wait_for_others() const {
        constexpr std::chrono::microseconds pause{200};
        while (done_ < checked_ && !is_stopped_) std::this_thread::sleep_for(pause);
    }

    std::span<std::byte> bytes_;
    const PreallocOptions& options_;
    std::uint64_t piece_bytes_;
    std::uint64_t chunk_bytes_;
    std::uint64_t cost_of_1024_;
    std::atomic<std::uint64_t> next_{0};
    std::atomic<std::uint64_t> done_{0};
    std::atomic<bool> is_stopped_{false};
    std::uint64_t told_ = 0;  ///< what progress heard last; the caller's
    std::mutex check_mutex_;
    std::uint64_t checked_ = 0;  ///< up to there is memory enough; under check_mutex_
    std::mutex failure_mutex_;
    std::optional<Error> failure_;  ///< the first one; under failure_mutex_
};

}  // namespace

Result<void> preallocate(std::span<std::byte> bytes, const PreallocOptions& options) {
    std::uint64_t count_threads = options.count_threads;
    if (count_threads == 0) count_threads = std::max(std::thread::hardware_concurrency(), 1U);
    count_threads = std::min({count_threads, max_prealloc_threads, bytes.size() / bytes_per_thread + 1});
    return Job{bytes, options}.run(count_threads);
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/poll.hpp"

/// Lazy memory for tests: an image that is made up, looks that are no crash, and an end to waits that have none.
///
/// Contract: each word of page n is word_of(n). A source does what a test wants instead of giving its pages.
/// Threads: fetched() any; what a test sets before the pager starts is not changed later.
/// Example:
///     const auto bytes = begin(with(std::make_shared<MadeUpSource>(64)));
///     EXPECT_EQ(look(bytes, 9), word_of(9));

namespace guestmem::testing {

using namespace std::chrono_literals;

inline constexpr std::uint64_t page = page_size_bytes;

/// What every word of a page of the image is; every seventh page is zeros.
inline std::uint64_t word_of(std::uint64_t number) {
    return number % 7 == 3 ? 0 : (number + 1) * std::uint64_t{0x9e3779b97f4a7c15};
}
inline ImagePart part_of(std::uint64_t first, std::uint64_t count) {
    return {.offset_bytes = first * page, .size_bytes = count * page};
}

/// An image that is made up as it is asked for.
class MadeUpSource final : public PageSource {
public:
    using Fetch = std::function<Result<void>(ImagePart, PageSink&)>;
    explicit MadeUpSource(std::uint64_t count_pages, Fetch instead = nullptr)
        : count_pages_(count_pages), instead_(std::move(instead)) {}

    [[nodiscard]] std::uint64_t size_bytes() const override { return count_pages_ * page; }
    Result<void> fetch(ImagePart wanted, PageSink& sink) override {
        {
            const std::lock_guard lock{mutex_};
            fetched_.push_back(wanted);
        }
        return instead_ ? instead_(wanted, sink) : give(wanted, sink);
    }
    static Result<void> give(ImagePart wanted, PageSink& sink) {
        std::vector<std::uint64_t> words;
        for (std::uint64_t at = wanted.offset_bytes; at < wanted.offset_bytes + wanted.size_bytes;
             at += page) {
            if (word_of(at / page) == 0) {
                GM_TRY(sink.take_zeros({.offset_bytes = at, .size_bytes = page}));
                continue;
            }
            words.assign(page / sizeof(std::uint64_t), word_of(at / page));
            GM_TRY(sink.take_pages(at, std::as_bytes(std::span{words})));
        }
        return {};
    }
    [[nodiscard]] std::vector<ImagePart> fetched() const {
        const std::lock_guard lock{mutex_};
        return fetched_;
    }
    [[nodiscard]] FdView arrivals() const override { return pushed ? pushed->view() : FdView{}; }
    /// on_arrival is called when `pushed` was rung, or there is none any more.
    Result<bool> take_arrivals(PageSink& sink) override {
        if (pushed && !GM_TRY(poll_readable(pushed->view(), 0))) return true;
        return on_arrival(sink);
    }
    [[nodiscard]] bool can_be_asked() const override { return is_askable; }

    std::optional<EventFd> pushed;
    std::function<Result<bool>(PageSink&)> on_arrival;
    bool is_askable = true;

private:
    std::uint64_t count_pages_;
    Fetch instead_;
    mutable std::mutex mutex_;
    std::vector<ImagePart> fetched_;
};

/// Ends the program when a test does not: a thread that waits for a page can be ended by nothing else.
class Watchdog {
public:
    explicit Watchdog(std::chrono::seconds limit = 60s)
        : thread_{[this, limit] {
              std::unique_lock lock{mutex_};
              if (ended_.wait_for(lock, limit, [this] { return is_over_; })) return;
              std::fputs("a touch of lazy memory has no answer\n", stderr);
              std::abort();
          }} {}
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog() {
        {
            const std::lock_guard lock{mutex_};
            is_over_ = true;
        }
        ended_.notify_all();
        thread_.join();
    }

private:
    std::mutex mutex_;
    std::condition_variable ended_;
    bool is_over_ = false;
    std::thread thread_;
};

/// A guarded look at a page: its word when all that was looked at is the same, nothing when it is a fault.
inline std::optional<std::uint64_t> look(std::span<std::byte> bytes, std::uint64_t number) {
    std::uint64_t first = 0;
    for (const std::uint64_t at : {std::uint64_t{0}, page / 2, page - 8}) {
        std::uint64_t word = 0;
        if (!try_load(bytes.data() + number * page + at, word)) return std::nullopt;
        if (at == 0) first = word;
        EXPECT_EQ(word, first) << "a torn page " << number;
    }
    return first;
}

class PagerTest : public ::testing::Test {
protected:
    void SetUp() override {
        ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
        if (const auto made = Pager::start(with(std::make_shared<MadeUpSource>(1))); !made)
            GTEST_SKIP() << "SKIPPED: " << made.error().message();
    }
    /// All of the image in one region.
    static PagerOptions with(std::shared_ptr<PageSource> source) {
        PagerOptions options;
        options.regions = {{.offset_bytes = 0, .size_bytes = source->size_bytes()}};
        options.source = std::move(source);
        options.user_faults_only = true;
        return options;
    }
    std::span<std::byte> begin(PagerOptions options) {
        pager = Pager::start(std::move(options)).value();
        memory = pager->memory(0).value();
        return memory->bytes();
    }
    /// Waits until the counters say so.
    template <typename Condition>
    void wait_for(Condition&& condition) const {
        const auto limit = std::chrono::steady_clock::now() + 20s;
        while (!condition(pager->counters()) && std::chrono::steady_clock::now() < limit)
            std::this_thread::sleep_for(100us);
        EXPECT_TRUE(condition(pager->counters())) << pager->counters().faults;
    }

    Watchdog watchdog;
    std::shared_ptr<Pager> pager;
    std::shared_ptr<const HostMemory> memory;
};

}  // namespace guestmem::testing

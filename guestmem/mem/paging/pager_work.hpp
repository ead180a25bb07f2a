// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "guestmem/mem/paging/lazy_area.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/userfaultfd.hpp"

/// The thread of a Pager, and the memory that it fills. It is the sink of its own source.
///
/// Concepts: a waiter is a page that somebody waits for. The thread takes one step after the other: it hears what has
/// happened, answers what needs no source, then takes the most urgent of what is left.
/// What the kernel refuses while pages are removed is asked again at once: it takes it only between the end of one
/// removal and the beginning of the next, a few microseconds where somebody removes page after page.
/// Contract: a removal is heard before any page is given that it could be about: the kernel refuses to take pages until
/// then (userfaultfd.hpp), and what was heard is settled. No waiter is forgotten before the kernel took an answer: a
/// call that fails is made again, or another one that ends the wait.
/// Threads: its own; shared() under its lock by all; areas() do not change.
/// Lifetime: the destructor stops the thread. The userfaultfd goes before the memory. In a child of fork(2) there is no
/// thread, and the userfaultfd is about the parent's memory: is_own() is false, and nothing of it may be destroyed.

namespace guestmem {

/// Somebody who touched a page that has not come.
struct Waiter {
    LazyArea* area = nullptr;
    std::uint64_t page = 0;
    std::chrono::steady_clock::time_point since;
    bool is_asked = false;  ///< of a source that pushes: the page comes by itself
};

class PagerWork final : public PageSink {
public:
    explicit PagerWork(PagerOptions options)
        : options_(std::move(options)), image_bytes_(options_.source->size_bytes()) {}
    ~PagerWork() override;
    PagerWork(const PagerWork&) = delete;
    PagerWork& operator=(const PagerWork&) = delete;

    /// False in a child of fork(2).
    [[nodiscard]] bool is_own() const { return own_process() == owner_; }

    Result<void> prepare();
    Result<void> launch();

    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override;
    Result<void> take_zeros(ImagePart part) override;

    [[nodiscard]] const std::vector<std::unique_ptr<LazyArea>>& areas() const { return areas_; }

    /// What others may ask, under its lock.
    struct Shared {
        mutable std::mutex mutex;
        mutable std::condition_variable has_changed;
        std::optional<Error> failure;
        PagerCounters counters = {};
        std::vector<std::uint64_t> recorded;
        std::size_t count_open_areas = 0;
    };
    [[nodiscard]] const Shared& shared() const { return shared_; }

private:
    enum class Cause : std::uint8_t { fault, ahead, fill, arrival };

    void run();
    void turn();
    void rest();
    /// How many there were.
    std::size_t read_events();
    /// In the middle of a fetch, which may last.
    void hear_meanwhile();
    void hear_removal(std::span<std::byte> bytes);
    void add_waiter(std::span<std::byte> bytes);
    void answer_settled();
    [[nodiscard]] bool answer_zeros(const Waiter& waiter);
    [[nodiscard]] bool is_missing(std::span<std::byte> bytes, const Error& error);
    void answer_lost();
    void tell_failure();
    [[nodiscard]] bool lose(const Waiter& waiter);
    void give_up();
    [[nodiscard]] bool make_unreachable_where_missing(LazyArea& area);
    void unwatch_all();
    void fetch_for(std::size_t index);
    [[nodiscard]] bool fetch_ahead();
    [[nodiscard]] bool fetch_working_set();
    [[nodiscard]] bool fetch_fill();
    void take_arrivals();
    void look_for_the_last_push();
    void end_pushing();
    void fetch(LazyArea& area, PageRun run, Cause cause);
    void fail(Error error);
    Result<void> put(LazyArea& area, PageRun run, const std::byte* from);
    void settle(LazyArea& area, PageRun run);
    void close_area(LazyArea& area);
    void forget_waiters(LazyArea& area, PageRun run);
    [[nodiscard]] ImagePart welcome(ImagePart part) const;
    Error refuse(Error error);
    /// Changes a counter.
    template <typename Change>
    void count(Change&& change) {
        const std::lock_guard lock{shared_.mutex};
        change(shared_.counters);
    }

    PagerOptions options_;
    std::uint64_t image_bytes_;
    std::int32_t owner_ = own_process();
    std::vector<std::unique_ptr<LazyArea>> areas_;  ///< as in the options
    UserFaultFd faults_;                            ///< behind the memory: it has to go first
    EventFd bell_;
    std::atomic<bool> is_stopping_{false};
    Shared shared_;

    // The thread's own.
    std::vector<Waiter> waiters_;
    bool has_failed_ = false;
    bool is_told_ = false;  ///< on_failure was called
    bool has_given_up_ = false;
    bool has_areas_to_close_ = false;  ///< the kernel refused to tell about one that is full
    bool is_pushed_ = false;
    bool has_unseen_arrivals_ = false;  ///< a source that pushes may have pages that made nothing readable
    FdView arrivals_;
    std::size_t next_ahead_ = 0;
    std::vector<std::uint64_t> ahead_in_order_;  ///< page numbers, ascending
    std::size_t fill_area_ = 0;
    std::uint64_t fill_page_ = 0;
    std::uint64_t fill_bytes_ = 0;  ///< at once: more and more while only zeros come
    bool has_copied_ = false;       ///< the fetch that goes on brought bytes
    Cause cause_ = Cause::fault;
    ImagePart wanted_;
    std::optional<Error> sink_error_;

    std::thread thread_;
};

}  // namespace guestmem

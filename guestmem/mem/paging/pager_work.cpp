// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/pager_work.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <system_error>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t large_page_bytes = std::uint64_t{2} << 20;
/// Between two tries of what the kernel refuses for the moment.
constexpr std::chrono::microseconds short_pause{100};
constexpr int long_wait_ms = -1;
constexpr int retry_ms = 10;

}  // namespace

// ------------------------------------------------------------------------------------------- begin and end

Result<void> PagerWork::prepare() {
    faults_ =
        GM_TRY_CONTEXT(UserFaultFd::create({.user_faults_only = options_.user_faults_only}), "lazy memory");
    bell_ = GM_TRY_CONTEXT(EventFd::create(), "lazy memory");
    for (const ImagePart& part : options_.regions) {
        Mapping mapping =
            GM_TRY_CONTEXT(Mapping::create_anonymous(
                               {.size_bytes = part.size_bytes,
                                .guard_bytes = page_size_bytes,
                                .align_bytes = part.size_bytes >= large_page_bytes ? large_page_bytes : 0}),
                           "lazy memory");
        // A child would see zeros where nothing has come.
        GM_TRY_CONTEXT(advise(mapping.bytes(), Advice::dont_fork), "lazy memory");
        GM_TRY_CONTEXT(faults_.watch_missing(mapping.bytes()), "lazy memory");
        areas_.push_back(
            std::make_unique<LazyArea>(LazyArea{.part = part,
                                                .mapping = std::move(mapping),
                                                .settled = SettledPages{part.size_bytes / page_size_bytes}}));
    }
    shared_.count_open_areas = areas_.size();
    ahead_in_order_ = options_.ahead;
    std::ranges::sort(ahead_in_order_);
    arrivals_ = options_.source->arrivals();
    is_pushed_ = arrivals_.is_open();
    return {};
}

Result<void> PagerWork::launch() {
    try {
        thread_ = std::thread{[this] { run(); }};
    } catch (const std::system_error& refused) {
        return Error{Errc::exhausted, refused.code().value(),
                     fmt::format("lazy memory: no thread for it: {}", refused.what())};
    }
    return {};
}

PagerWork::~PagerWork() {
    is_stopping_ = true;
    while (thread_.joinable() && !bell_.ring()) std::this_thread::sleep_for(short_pause);
    if (thread_.joinable()) thread_.join();
    unwatch_all();
}

/// Closing would do it, unless a child of fork(2) has the descriptor, too: then whoever unmaps the memory would wait
/// for somebody to read of it.
void PagerWork::unwatch_all() {
    for (const auto& area : areas_)
        if (area->is_watched) static_cast<void>(faults_.unwatch(area->mapping.bytes()));
}

void PagerWork::run() {
    while (!is_stopping_) turn();
}

/// One step, of those that could be made the one that is most urgent.
void PagerWork::turn() {
    read_events();
    answer_settled();
    if (has_failed_) {
        answer_lost();
        return rest();
    }
    for (Waiter& waiter : waiters_) {
        if (waiter.area->settled.contains(waiter.page)) continue;
        if (!waiter.is_asked) return fetch_for(waiter);
        if (Clock::now() - waiter.since >= options_.patience)
            return fail(
                Error{Errc::timed_out,
                      fmt::format("lazy memory: the page at {:#x} of the image did not come within {} ms",
                                  waiter.area->image_offset(waiter.page), options_.patience.count())});
    }
    if (is_pushed_) {
        const auto has_come = poll_readable(arrivals_, 0);
        if (has_come && *has_come) return take_arrivals();
    }
    if (!fetch_ahead()) rest();
}

/// Waits for something to do.
void PagerWork::rest() {
    int timeout_ms = waiters_.empty() ? long_wait_ms : retry_ms;
    std::array<FdView, 3> fds{bell_.view(), has_given_up_ ? FdView{} : faults_.view(), FdView{}};
    if (is_pushed_ && !has_failed_) fds[2] = arrivals_;
    if (!poll_readable(fds, timeout_ms)) std::this_thread::sleep_for(short_pause);
}

// -------------------------------------------------------------------------------------------------- events

void PagerWork::read_events() {
    if (has_given_up_) return;
    // One batch: what is left makes the descriptor readable again.
    const auto events = faults_.read_events();
    if (!events) {
        fail(events.error());
        std::this_thread::sleep_for(short_pause);
        return;
    }
    for (const FaultEvent& event : *events) {
        if (event.kind == FaultEvent::Kind::pages_removed)
            hear_removal(event.bytes);
        else
            add_waiter(event.bytes);
    }
}

void PagerWork::hear_removal(std::span<std::byte> bytes) {
    for (const auto& area : areas_) {
        const std::uint64_t removed = area->settled.add(area->overlap(bytes));
        if (removed == 0) continue;
        count([&](PagerCounters& counters) { counters.removed_pages += removed; });
        close_area(*area);
    }
}

void PagerWork::add_waiter(std::span<std::byte> bytes) {
    for (const auto& area : areas_) {
        const PageRun run = area->overlap(bytes);
        if (run.count == 0 || !area->is_watched) continue;
        const std::uint64_t page = run.first;
        const bool is_known = std::ranges::any_of(
            waiters_, [&](const Waiter& waiter) { return waiter.area == area.get() && waiter.page == page; });
        if (is_known) return;
        waiters_.push_back({.area = area.get(), .page = page, .since = Clock::now()});
        if (!options_.is_recorded || area->settled.contains(page)) return;
        const std::lock_guard lock{shared_.mutex};
        shared_.recorded.push_back(area->image_offset(page) / page_size_bytes);
        return;
    }
}

/// Those whose page the source has nothing more to say about: it came meanwhile, or it is zeros.
void PagerWork::answer_settled() {
    for (std::size_t i = 0; i < waiters_.size();) {
        const Waiter waiter = waiters_[i];
        const PageRun run{.first = waiter.page, .count = 1};
        if (!waiter.area->settled.contains(waiter.page)) {
            ++i;
            continue;
        }
        const auto bytes = waiter.area->bytes(run);
        const auto given = faults_.zero_pages(bytes);
        const bool is_there = given && !given->is_interrupted && given->given_bytes == 0;
        const bool is_answered =
            given && !given->is_interrupted && (!is_there || faults_.wake(bytes).has_value());
        if (!given) fail(given.error());
        if (is_answered) {
            forget_waiters(*waiter.area, run);
        } else if (!given && lose(waiter)) {
            waiters_.erase(waiters_.begin() + static_cast<std::ptrdiff_t>(i));
        } else {
            ++i;
        }
    }
}

/// Takes those off the list who wait for pages that were just given, and counts their time.
void PagerWork::forget_waiters(LazyArea& area, PageRun run) {
    const auto now = Clock::now();
    std::uint64_t answered = 0;
    std::chrono::nanoseconds longest{0};
    std::erase_if(waiters_, [&](const Waiter& waiter) {
        const bool is_given = waiter.area == &area && waiter.page >= run.first && waiter.page < run.behind();
        if (is_given) {
            ++answered;
            longest = std::max<std::chrono::nanoseconds>(longest, now - waiter.since);
        }
        return is_given;
    });
    if (answered == 0) return;
    count([&](PagerCounters& counters) {
        counters.faults += answered;
        counters.longest_answer = std::max(counters.longest_answer, longest);
    });
}

// ------------------------------------------------------------------------------------------------- failure

void PagerWork::fail(Error error) {
    if (has_failed_ || is_stopping_) return;
    has_failed_ = true;
    {
        const std::lock_guard lock{shared_.mutex};
        shared_.failure = error;
    }
    shared_.has_changed.notify_all();
    if (options_.on_failure) options_.on_failure(error);
}

void PagerWork::answer_lost() {
    std::erase_if(waiters_, [&](const Waiter& waiter) {
        return !waiter.area->settled.contains(waiter.page) && lose(waiter);
    });
}

/// Makes the page a fault for good; false when that has to be tried again.
bool PagerWork::lose(const Waiter& waiter) {
    if (has_given_up_) return true;
    const auto bytes = waiter.area->bytes({.first = waiter.page, .count = 1});
    bool is_lost = false;
    if (options_.may_poison && faults_.can_poison()) {
        const auto given = faults_.poison_pages(bytes);
        if (given && given->is_interrupted) return false;
        is_lost = given.has_value() && (given->given_bytes != 0 || faults_.wake(bytes).has_value());
    }
    if (!is_lost) is_lost = make_unreachable(bytes).has_value() && faults_.wake(bytes).has_value();
    if (!is_lost) give_up();
    if (is_lost) count([](PagerCounters& counters) { ++counters.lost_pages; });
    return is_lost || has_given_up_;
}

/// When not even one page can be made a fault: the regions that are not full, with all that is in them. Everything
/// else would be a wait without end, or zeros that the image does not have.
void PagerWork::give_up() {
    for (const auto& area : areas_)
        if (area->is_watched && !make_unreachable(area->mapping.bytes())) return;
    unwatch_all();
    faults_ = UserFaultFd{};
    has_given_up_ = true;
}

// ------------------------------------------------------------------------------------------------ fetching

void PagerWork::fetch_for(Waiter& waiter) {
    LazyArea& area = *waiter.area;
    PageRun run{.first = waiter.page, .count = 1};
    // A working set says what is wanted of the neighbors.
    const bool is_alone =
        options_.is_recorded ||
        std::ranges::binary_search(ahead_in_order_, area.image_offset(waiter.page) / page_size_bytes);
    if (!is_alone) {
        const std::uint64_t first =
            area.image_offset(waiter.page) / options_.fetch_bytes * options_.fetch_bytes;
        const ImagePart around{.offset_bytes = first,
                               .size_bytes = std::min(options_.fetch_bytes, image_bytes_ - first)};
        run = area.settled.missing_around(waiter.page, area.overlap(around));
    }
    waiter.is_asked = is_pushed_;
    fetch(area, run, Cause::fault);
}

/// False when there is nothing to fetch.
bool PagerWork::fetch_ahead() {
    // What is pushed comes by itself.
    if (is_pushed_) return false;
    while (next_ahead_ < options_.ahead.size()) {
        const std::uint64_t first = options_.ahead[next_ahead_];
        std::uint64_t count_pages = 1;
        while (next_ahead_ + count_pages < options_.ahead.size() &&
               options_.ahead[next_ahead_ + count_pages] == first + count_pages &&
               count_pages < options_.ahead_bytes / page_size_bytes)
            ++count_pages;
        const ImagePart part{.offset_bytes = first * page_size_bytes,
                             .size_bytes = count_pages * page_size_bytes};
        for (const auto& area : areas_) {
            const PageRun here = area->overlap(part);
            const PageRun run = area->settled.next_missing(here);
            if (run.count == 0) continue;
            // What is behind the run is looked at again in the next turn.
            fetch(*area, run, Cause::ahead);
            return true;
        }
        next_ahead_ += count_pages;
    }
    while (options_.is_filled && fill_area_ < areas_.size()) {
        LazyArea& area = *areas_[fill_area_];
        PageRun run = area.settled.next_missing(
            {.first = fill_page_,
             .count = std::min(area.count_pages() - fill_page_, options_.ahead_bytes / page_size_bytes)});
        if (run.count != 0) {
            fill_page_ = run.first;
            fetch(area, run, Cause::fill);
            return true;
        }
        fill_page_ = run.first;
        if (fill_page_ < area.count_pages()) continue;
        ++fill_area_;
        fill_page_ = 0;
    }
    return false;
}

void PagerWork::fetch(LazyArea& area, PageRun run, Cause cause) {
    const ImagePart part{.offset_bytes = area.image_offset(run.first),
                         .size_bytes = run.count * page_size_bytes};
    cause_ = cause;
    wanted_ = part;
    sink_error_.reset();
    const auto fetched = options_.source->fetch(part, *this);
    wanted_ = {};
    look_for_the_last_push();
    // Behind a source that pushes, what is missing may come by itself.
    const PageRun missing = is_pushed_ ? PageRun{} : area.settled.next_missing(run);
    if (is_stopping_ || (fetched && !sink_error_ && missing.count == 0)) return;
    const std::string what =
        fmt::format("lazy memory: fetch {} bytes at {:#x} of the image", part.size_bytes, part.offset_bytes);
    if (!fetched) return fail(Error{fetched.error()}.with_context(what));
    // A source that goes on after an error of its sink.
    if (sink_error_) return fail(Error{*sink_error_}.with_context(what));
    fail(Error{Errc::corrupt,
               fmt::format("{}: the source says that it gave all, and the page at {:#x} did not come", what,
                           area.image_offset(missing.first))});
}

/// From here on every page has to be asked for, those that somebody waits for, too.
void PagerWork::end_pushing() {
    is_pushed_ = false;
    for (Waiter& waiter : waiters_) waiter.is_asked = false;
}

/// A source that has pushed its last page closes what it told of them with.
void PagerWork::look_for_the_last_push() {
    if (!is_pushed_) return;
    arrivals_ = options_.source->arrivals();
    if (!arrivals_.is_open()) end_pushing();
}

void PagerWork::take_arrivals() {
    cause_ = Cause::arrival;
    sink_error_.reset();
    const auto more = options_.source->take_arrivals(*this);
    if (more && !*more) end_pushing();
    look_for_the_last_push();
    if (is_stopping_) return;
    if (!more) return fail(Error{more.error()}.with_context("lazy memory: take what the source pushed"));
    if (sink_error_)
        return fail(Error{*sink_error_}.with_context("lazy memory: take what the source pushed"));
}

// ---------------------------------------------------------------------------------------------------- sink

/// What is taken of it: where touches are recorded, what came along hides them, and can be asked for again.
ImagePart PagerWork::welcome(ImagePart part) const {
    return options_.is_recorded && !is_pushed_ ? common_part(part, wanted_) : part;
}

Error PagerWork::refuse(Error error) {
    sink_error_ = error;
    return error;
}

Result<void> PagerWork::take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) {
    // Nothing is believed any more of one that broke the rules.
    if (sink_error_) return *sink_error_;
    const ImagePart part{.offset_bytes = offset_bytes, .size_bytes = pages.size()};
    if (pages.empty() || pages.size() > max_part_bytes || !is_whole_pages(part) ||
        !is_within(part, image_bytes_))
        return refuse(
            {Errc::corrupt,
             fmt::format("the source gives {} bytes at {:#x} of an image of {:#x} bytes: whole pages "
                         "within it, up to {} bytes, can be taken",
                         part.size_bytes, offset_bytes, image_bytes_, max_part_bytes)});
    for (const auto& area : areas_) {
        const PageRun run = area->overlap(welcome(part));
        if (run.count == 0) continue;
        const std::byte* const from = pages.data() + (area->image_offset(run.first) - offset_bytes);
        if (const auto done = put(*area, run, from); !done) return refuse(done.error());
    }
    return {};
}

Result<void> PagerWork::take_zeros(ImagePart part) {
    if (sink_error_) return *sink_error_;
    if (!is_whole_pages(part) || !is_within(part, image_bytes_))
        return refuse({Errc::corrupt,
                       fmt::format("the source gives {} zeros at {:#x} of an image of {:#x} bytes: whole "
                                   "pages within it can be taken",
                                   part.size_bytes, part.offset_bytes, image_bytes_)});
    for (const auto& area : areas_) {
        // Mapped is what is about to be touched. Of the rest it is enough to know it, however much it is.
        const bool is_touched_soon = cause_ == Cause::fault || cause_ == Cause::ahead;
        const PageRun soon = is_touched_soon ? area->overlap(common_part(part, wanted_)) : PageRun{};
        if (const auto done = put(*area, soon, nullptr); !done) return refuse(done.error());
        settle(*area, area->overlap(welcome(part)));
    }
    return {};
}

/// Gives the pages of `run` that are not settled: copies of `from`, or zeros without it.
Result<void> PagerWork::put(LazyArea& area, PageRun run, const std::byte* from) {
    const auto deadline = Clock::now() + options_.patience;
    for (PageRun rest = area.settled.next_missing(run); rest.count != 0;
         rest = area.settled.next_missing(run)) {
        if (is_stopping_) return Error{Errc::unavailable, "it is going away"};
        const auto bytes = area.bytes(rest);
        const PagesGiven given =
            GM_TRY(from == nullptr
                       ? faults_.zero_pages(bytes)
                       : faults_.copy_pages(bytes.data(), {from + (rest.first - run.first) * page_size_bytes,
                                                           bytes.size()}));
        const PageRun done{.first = rest.first, .count = given.done_bytes / page_size_bytes};
        if (given.given_bytes == given.done_bytes && done.count != 0) forget_waiters(area, done);
        if (from == nullptr) {
            settle(area, done);
        } else {
            const std::uint64_t added = area.settled.add(done);
            count([&](PagerCounters& counters) {
                (cause_ == Cause::fault ? counters.pages_by_fault : counters.pages_ahead) += added;
                counters.copied_bytes += given.given_bytes;
            });
        }
        if (!given.is_interrupted) continue;
        // Somebody removes pages, which may be among these; who does it needs a moment after it was heard.
        read_events();
        if (has_given_up_ || Clock::now() >= deadline)
            return Error{Errc::timed_out, "give pages: a removal of pages does not come to its end"};
        std::this_thread::sleep_for(short_pause);
    }
    close_area(area);
    return {};
}

/// Notes pages of zeros.
void PagerWork::settle(LazyArea& area, PageRun run) {
    const std::uint64_t added = area.settled.add(run);
    count([&](PagerCounters& counters) {
        (cause_ == Cause::fault ? counters.pages_by_fault : counters.pages_ahead) += added;
        counters.zero_pages += added;
    });
    close_area(area);
}

/// Once everything is settled the kernel's own zeros are the right answer.
void PagerWork::close_area(LazyArea& area) {
    if (!area.is_watched || !area.settled.is_full()) return;
    if (const auto closed = faults_.unwatch(area.mapping.bytes()); !closed) return fail(closed.error());
    area.is_watched = false;
    forget_waiters(area, area.all());
    {
        const std::lock_guard lock{shared_.mutex};
        --shared_.count_open_areas;
    }
    shared_.has_changed.notify_all();
}

}  // namespace guestmem

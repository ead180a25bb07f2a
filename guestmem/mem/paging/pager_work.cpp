// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/pager_work.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
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
/// How often the kernel is asked before the events are read again: with a few system calls it is as long as the
/// moment between two removals.
constexpr unsigned max_tries = 64;
constexpr unsigned tries_between_yields = 16;
/// Of such tries, for one page of zeros, before others have their turn.
constexpr unsigned max_rounds = 64;
/// After so many rounds in which nothing was heard who removes pages is busy with something else.
constexpr unsigned max_idle_rounds = 100;
constexpr std::uint64_t largest_fill_bytes = std::uint64_t{4} << 20;
/// Looks at regions for what a working set has left to fetch, between two looks at events.
constexpr std::uint64_t max_looks = std::uint64_t{1} << 16;

/// Asks for pages to be given until some are, or the kernel refuses it for too long. On one CPU who removes pages comes
/// to its end only while we stand back.
template <typename Ask>
Result<PagesGiven> ask_again(Ask&& ask) {
    PagesGiven given;
    for (unsigned tries = 1; tries <= max_tries; ++tries) {
        given = GM_TRY(ask());
        if (!given.is_interrupted || given.done_bytes != 0) break;
        if (tries % tries_between_yields == 0) std::this_thread::yield();
    }
    return given;
}

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
        // Under mlockall(2) it is full of zeros, which nobody would miss.
        unlock_pages(mapping.bytes());
        GM_TRY_CONTEXT(discard_pages(mapping.bytes()), "lazy memory");
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
    has_unseen_arrivals_ = is_pushed_;
    fill_bytes_ = options_.ahead_bytes;
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
    if (std::exchange(has_areas_to_close_, false))
        for (const auto& area : areas_) close_area(*area);
    answer_settled();
    if (has_failed_) {
        answer_lost();
        tell_failure();
        return rest();
    }
    for (std::size_t i = 0; i < waiters_.size(); ++i) {
        const Waiter& waiter = waiters_[i];
        if (waiter.area->settled.contains(waiter.page)) continue;
        if (!waiter.is_asked) return fetch_for(i);
        if (Clock::now() - waiter.since >= options_.patience)
            return fail(
                Error{Errc::timed_out,
                      fmt::format("lazy memory: the page at {:#x} of the image did not come within {} ms",
                                  waiter.area->image_offset(waiter.page), options_.patience.count())});
    }
    if (is_pushed_) {
        const auto has_come = poll_readable(arrivals_, 0);
        if (std::exchange(has_unseen_arrivals_, false) || (has_come && *has_come)) return take_arrivals();
    }
    if (!fetch_ahead()) rest();
}

/// Waits for something to do.
void PagerWork::rest() {
    int timeout_ms = waiters_.empty() && !has_areas_to_close_ ? long_wait_ms : retry_ms;
    std::array<FdView, 3> fds{bell_.view(), has_given_up_ ? FdView{} : faults_.view(), FdView{}};
    if (is_pushed_ && !has_failed_) fds[2] = arrivals_;
    if (!poll_readable(fds, timeout_ms)) std::this_thread::sleep_for(short_pause);
}

// -------------------------------------------------------------------------------------------------- events

std::size_t PagerWork::read_events() {
    if (has_given_up_) return 0;
    // One batch: what is left makes the descriptor readable again.
    const auto events = faults_.read_events();
    if (!events) {
        fail(events.error());
        std::this_thread::sleep_for(short_pause);
        return 0;
    }
    for (const FaultEvent& event : *events) {
        if (event.kind == FaultEvent::Kind::pages_removed)
            hear_removal(event.bytes);
        else
            add_waiter(event.bytes);
    }
    return events->size();
}

void PagerWork::hear_meanwhile() {
    read_events();
    answer_settled();
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
        if (waiter.area->settled.contains(waiter.page) && answer_zeros(waiter))
            forget_waiters(*waiter.area, {.first = waiter.page, .count = 1});
        else
            ++i;
    }
}

/// False when that has to be tried again.
bool PagerWork::answer_zeros(const Waiter& waiter) {
    const auto bytes = waiter.area->bytes({.first = waiter.page, .count = 1});
    auto given = ask_again([&] { return faults_.zero_pages(bytes); });
    for (unsigned round = 0; round < max_rounds && given && given->is_interrupted; ++round) {
        read_events();
        given = ask_again([&] { return faults_.zero_pages(bytes); });
    }
    if (given && given->is_interrupted) return false;
    if (given) return given->given_bytes != 0 || faults_.wake(bytes).has_value();
    if (is_missing(bytes, given.error())) return faults_.wake(bytes).has_value();
    fail(given.error());
    return lose(waiter);
}

/// Whether an error of giving zeros says that there is no such memory any more: it was unmapped, and who touches it
/// gets what the kernel has for that.
bool PagerWork::is_missing(std::span<std::byte> bytes, const Error& error) {
    if (error.os_error() != ENOENT) return false;
    // Pretended once is not twice.
    const auto again = faults_.zero_pages(bytes);
    return !again && again.error().os_error() == ENOENT;
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
        shared_.failure = std::move(error);
    }
    shared_.has_changed.notify_all();
}

/// Behind those who wait, and in the middle of nothing.
void PagerWork::tell_failure() {
    if (std::exchange(is_told_, true) || !options_.on_failure) return;
    // Written by this thread alone.
    options_.on_failure(*shared_.failure);
}

void PagerWork::answer_lost() {
    for (std::size_t i = 0; i < waiters_.size();) {
        const Waiter waiter = waiters_[i];
        if (!waiter.area->settled.contains(waiter.page) && lose(waiter))
            waiters_.erase(waiters_.begin() + static_cast<std::ptrdiff_t>(i));
        else
            ++i;
    }
}

/// Makes the page a fault for good; false when that has to be tried again.
bool PagerWork::lose(const Waiter& waiter) {
    if (has_given_up_) return true;
    const auto bytes = waiter.area->bytes({.first = waiter.page, .count = 1});
    bool is_lost = false;
    if (options_.may_poison && faults_.can_poison()) {
        const auto given = ask_again([&] { return faults_.poison_pages(bytes); });
        if (given && given->is_interrupted) return false;
        is_lost = given.has_value() && (given->given_bytes != 0 || faults_.wake(bytes).has_value());
    }
    if (!is_lost) is_lost = make_unreachable(bytes).has_value() && faults_.wake(bytes).has_value();
    if (is_lost) {
        count([](PagerCounters& counters) { ++counters.lost_pages; });
        return true;
    }
    // It may have been unmapped a moment ago.
    if (!waiter.area->settled.contains(waiter.page)) {
        read_events();
        if (waiter.area->settled.contains(waiter.page)) return false;
    }
    give_up();
    return has_given_up_;
}

/// When not even one page can be made a fault: the regions that are not full, with all that is in them. Everything
/// else would be a wait without end, or zeros that the image does not have.
void PagerWork::give_up() {
    bool is_done = true;
    for (const auto& area : areas_)
        if (area->is_watched && !make_unreachable(area->mapping.bytes()) &&
            !make_unreachable_where_missing(*area))
            is_done = false;
    if (is_done) {
        unwatch_all();
        faults_ = UserFaultFd{};
        has_given_up_ = true;
        return;
    }
    // For those whose page is a fault by now; the others come back.
    for (const auto& area : areas_)
        if (area->is_watched) static_cast<void>(faults_.wake(area->mapping.bytes()));
}

/// In a region with a hole: what was unmapped is settled.
bool PagerWork::make_unreachable_where_missing(LazyArea& area) {
    const PageRun all = area.all();
    for (PageRun run = area.settled.next_missing(all); run.count != 0;
         run = area.settled.next_missing({.first = run.behind(), .count = all.behind() - run.behind()}))
        if (!make_unreachable(area.bytes(run))) return false;
    return true;
}

// ------------------------------------------------------------------------------------------------ fetching

void PagerWork::fetch_for(std::size_t index) {
    waiters_[index].is_asked = is_pushed_;
    if (is_pushed_ && !options_.source->can_be_asked()) return;
    const Waiter waiter = waiters_[index];
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
    fetch(area, run, Cause::fault);
}

/// False when there is nothing to fetch. What is pushed comes by itself.
bool PagerWork::fetch_ahead() { return !is_pushed_ && (fetch_working_set() || fetch_fill()); }

bool PagerWork::fetch_working_set() {
    for (std::uint64_t looks = 0; next_ahead_ < options_.ahead.size(); looks += areas_.size()) {
        // Somebody may wait meanwhile.
        if (looks >= max_looks) return true;
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
    return false;
}

bool PagerWork::fetch_fill() {
    while (options_.is_filled && fill_area_ < areas_.size()) {
        LazyArea& area = *areas_[fill_area_];
        const PageRun run = area.settled.next_missing(
            {.first = fill_page_,
             .count = std::min(area.count_pages() - fill_page_, fill_bytes_ / page_size_bytes)});
        fill_page_ = run.first;
        if (run.count != 0) {
            fetch(area, run, Cause::fill);
            // All of it came, or the pager has failed.
            fill_page_ = run.behind();
            // Zeros cost next to nothing, and a question of its own for each few of them does.
            fill_bytes_ = has_copied_
                              ? options_.ahead_bytes
                              : std::max(std::min(2 * fill_bytes_, largest_fill_bytes), options_.ahead_bytes);
            return true;
        }
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
    has_copied_ = false;
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
    hear_meanwhile();
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
    hear_meanwhile();
    return {};
}

/// Gives the pages of `run` that are not settled: copies of `from`, or zeros without it.
Result<void> PagerWork::put(LazyArea& area, PageRun run, const std::byte* from) {
    auto limit = Clock::now() + options_.patience;
    unsigned idle_rounds = 0;
    for (PageRun rest = area.settled.next_missing(run); rest.count != 0;
         rest = area.settled.next_missing(run)) {
        if (is_stopping_) return Error{Errc::unavailable, "it is going away"};
        const auto bytes = area.bytes(rest);
        const PagesGiven given = GM_TRY(ask_again([&] {
            return from == nullptr
                       ? faults_.zero_pages(bytes)
                       : faults_.copy_pages(
                             bytes.data(), {from + (rest.first - run.first) * page_size_bytes, bytes.size()});
        }));
        const PageRun done{.first = rest.first, .count = given.done_bytes / page_size_bytes};
        if (given.given_bytes != given.done_bytes)
            return Error{
                Errc::corrupt,
                fmt::format("give pages: of the {} from {:#x} of the image on some were there before "
                            "they were given: does mlockall(2) or somebody else populate this memory?",
                            done.count, area.image_offset(done.first))};
        if (done.count != 0) forget_waiters(area, done);
        if (from == nullptr) {
            settle(area, done);
        } else {
            has_copied_ = true;
            const std::uint64_t added = area.settled.add(done);
            count([&](PagerCounters& counters) {
                (cause_ == Cause::fault ? counters.pages_by_fault : counters.pages_ahead) += added;
                counters.copied_bytes += given.given_bytes;
            });
        }
        if (!given.is_interrupted) continue;
        // Somebody removes pages, which may be among these. As long as that goes on it is no failure.
        const bool is_idle = read_events() == 0 && done.count == 0;
        if (has_given_up_) return Error{Errc::unavailable, "give pages: all that had not come is given up"};
        idle_rounds = is_idle ? idle_rounds + 1 : 0;
        if (!is_idle) limit = Clock::now() + options_.patience;
        if (Clock::now() >= limit)
            return Error{Errc::timed_out, "give pages: a removal of pages does not come to its end"};
        if (idle_rounds > max_idle_rounds) std::this_thread::sleep_for(short_pause);
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
    if (const auto closed = faults_.unwatch(area.mapping.bytes()); !closed) {
        // Of a region that was unmapped as a whole there is nothing to watch.
        const auto first = area.bytes({.first = 0, .count = 1});
        const auto given = faults_.zero_pages(first);
        if (given && given->is_interrupted) {
            has_areas_to_close_ = true;
            return;
        }
        if (given || !is_missing(first, given.error())) return fail(closed.error());
        static_cast<void>(faults_.wake(area.mapping.bytes()));
    }
    area.is_watched = false;
    forget_waiters(area, area.all());
    {
        const std::lock_guard lock{shared_.mutex};
        --shared_.count_open_areas;
    }
    shared_.has_changed.notify_all();
}

}  // namespace guestmem

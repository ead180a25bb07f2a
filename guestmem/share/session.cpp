// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <limits>
#include <utility>

#include "guestmem/base/endian.hpp"
#include "guestmem/share/session_link.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/scatter_io.hpp"
#include "guestmem/sys/wait_set.hpp"

namespace guestmem::share {
namespace {

using std::chrono::milliseconds;

/// A ready word is looked at so often, at first and at last.
constexpr milliseconds min_word_pause{1};
constexpr milliseconds max_word_pause{20};
/// Messages of a stream that are taken in one look: a service that floods holds nobody up.
constexpr int max_messages_a_look = 1024;
/// To wait for the stream beside the vectors is 7 in 100 of a kick. Where it was waited for so long ago at most, a wait
/// is without it at first, for as long at most: who is kept busy by kicks looks at it so often, and no wait that ends
/// without a kick has not.
constexpr int brief_ms = 20;

Deadline deadline_of(int timeout_ms) {
    return timeout_ms < 0 ? Deadline{Deadline::farthest} : Deadline{milliseconds{timeout_ms}};
}

}  // namespace

struct Session::State {
    SessionOptions options;
    SessionLink link;
    WaitSet changes;  ///< of the link of the day
    WaitSet all;      ///< these, and its vectors once view() was asked for
    PollList awaited;
    std::vector<Kick> kicks;
    std::int64_t looked_ms = std::numeric_limits<std::int64_t>::min() / 2;  ///< at the stream, in a wait
    bool has_view = false;
    bool is_stream_due = false;  ///< a wait has seen it readable
    std::optional<Ringer> ringer;
    std::uint64_t generation = 1;
    std::uint64_t memory_generation = 1;
    std::uint64_t seen_presence = 0;
    bool is_lost = false;
    SessionChanges untold;
    std::deque<PeerNotice> notices;
    SenderSet heard;         ///< who rang without counting, and was not told yet
    std::vector<Kick> late;  ///< of callers that have left, for the next wait that wants their vectors
    bool has_dropped_notices = false;
    Deadline next_try{milliseconds{0}};
    std::uint64_t retry_ms = min_retry_ms;

    Result<void> install(SessionLink next);
    Result<void> watch_all();
    Result<std::size_t> await(const WaitOptions& wanted, bool is_brief, int timeout_ms);
    [[nodiscard]] bool has_to_tell(const WaitOptions& wanted) const;
    Result<void> take_kicks(std::span<const std::uint32_t> vectors);
    Result<void> reattach();
    Result<void> look_at_stream();
    Result<void> look_at_presence();
    Result<void> come_back();
    void lose();
    Result<void> note(const Notice& notice);
    Result<void> watch_caller(const Notice& notice);
    Result<void> end_callers();
    Result<void> take_from_callers(std::span<const std::uint32_t> vectors, std::size_t first_index);
    /// One entry a vector, whatever many callers rang it.
    static void add_kicks(std::vector<Kick>& kicks, std::uint32_t vector, std::uint64_t count);
    [[nodiscard]] bool is_present(std::uint32_t peer) const {
        return link.presence.is_present(peer) ||
               (link.is_classic && link.client.table().find(peer) != nullptr);
    }
    /// How long a wait of `left_ms` (-1: for ever) may last before the service is looked for again.
    [[nodiscard]] int patience(int left_ms) const {
        if (!is_lost || !options.may_reattach) return left_ms;
        const int pause_ms = milliseconds_left(next_try);
        return left_ms < 0 ? pause_ms : std::min(left_ms, pause_ms);
    }
    /// Those of a wait; without any, all: the one at `index`.
    [[nodiscard]] static std::uint32_t vector_of(std::span<const std::uint32_t> vectors, std::size_t index) {
        return vectors.empty() ? static_cast<std::uint32_t>(index) : vectors[index];
    }
    [[nodiscard]] static bool is_wanted(std::span<const std::uint32_t> vectors, std::uint32_t vector) {
        return vectors.empty() || std::ranges::find(vectors, vector) != vectors.end();
    }
    [[nodiscard]] std::size_t count_of(std::span<const std::uint32_t> vectors) const {
        return vectors.empty() ? link.facts.vectors : vectors.size();
    }
    [[nodiscard]] FdView stream() const { return is_lost ? FdView{} : link.client.view(); }
    Result<std::uint32_t> read_word(std::uint64_t at_bytes) const;
};

/// The sets of the session keep their descriptors: a link is one member of each.
Result<void> Session::State::install(SessionLink next) {
    // Where one of these fails, the sets of the link that is dropped leave those that they are in.
    if (has_view) GM_TRY(watch_vectors(next));
    GM_TRY(changes.add(next.changes.view()));
    GM_TRY(all.add(next.changes.view()));
    if (has_view) GM_TRY(all.add(next.vectors.view()));
    changes.remove(link.changes.view());
    all.remove(link.changes.view());
    all.remove(link.vectors.view());
    const bool is_same = link.memory.device == next.memory.device && link.memory.inode == next.memory.inode;
    if (!is_same) ++memory_generation;
    ++generation;
    link = std::move(next);
    heard.reset();
    late.clear();
    is_lost = false;
    untold.is_lost = false;
    untold.is_reattached = true;
    seen_presence = link.presence.changes();
    retry_ms = min_retry_ms;
    return {};
}

Result<void> Session::State::watch_all() {
    if (has_view) return {};
    GM_TRY(watch_vectors(link));
    GM_TRY(all.add(link.vectors.view()));
    has_view = true;
    return {};
}

Result<void> Session::State::reattach() {
    Result<void> status;
    if (auto next = attach_link(options); next) {
        status = install(std::move(*next));
    } else {
        status = std::move(next).error();
    }
    if (!status) {
        next_try = Deadline{milliseconds{retry_ms}};
        retry_ms = std::min(retry_ms * 2, max_retry_ms);
    }
    return status;
}

/// The stream stays open until the next link: its doorbells are worth ringing still.
void Session::State::lose() {
    link.changes.remove(link.client.view());
    is_lost = true;
    untold.is_lost = true;
    next_try = Deadline{milliseconds{0}};
}

/// A kick that came before is seen as soon as its doorbell is in the set.
Result<void> Session::State::watch_caller(const Notice& notice) {
    if (!has_view) return {};
    return link.vectors.add(link.client.table().callers().at(notice.id).at(notice.vector).view());
}

/// What a caller rang before it left is still told in its name.
Result<void> Session::State::end_callers() {
    for (const PastCaller& past : link.client.table().take_past_callers()) {
        for (std::uint32_t vector = 0; vector < past.bells.size(); ++vector) {
            const EventFd& bell = past.bells[vector];
            if (has_view) link.vectors.remove(bell.view());
            const std::uint64_t count = GM_TRY(bell.drain());
            if (count == 0) continue;
            heard.set(past.id % max_senders);
            if (vector < link.facts.vectors) add_kicks(late, vector, count);
        }
    }
    return {};
}

Result<void> Session::State::note(const Notice& notice) {
    if (notice.kind == NoticeKind::caller) return watch_caller(notice);
    if (notice.kind == NoticeKind::caller_over) return end_callers();
    const bool has_come = notice.kind == NoticeKind::doorbell && notice.vector == 0;
    if (!has_come && notice.kind != NoticeKind::gone) return {};
    if (notices.size() == max_peer_notices) {
        notices.pop_front();
        has_dropped_notices = true;
    }
    notices.push_back({.id = notice.id, .has_come = has_come});
    untold.has_presence_changed = true;
    return {};
}

Result<void> Session::State::look_at_stream() {
    for (int count = 0; !is_lost && count < max_messages_a_look; ++count) {
        if (!link.client.has_more() && !GM_TRY(poll_readable(link.client.view(), 0))) break;
        const auto notice = link.client.receive(0);
        if (!notice) {
            lose();
        } else if (*notice) {
            GM_TRY(note(**notice));
        }
    }
    return {};
}

Result<void> Session::State::look_at_presence() {
    GM_TRY(link.bell.drain());
    const std::uint64_t count = link.presence.changes();
    untold.has_presence_changed = untold.has_presence_changed || count != seen_presence;
    seen_presence = count;
    return {};
}

/// An attempt that fails is not the error of whoever waits for something else.
Result<void> Session::State::come_back() {
    if (is_lost && options.may_reattach && next_try.has_passed()) {
        const auto status = reattach();
        (void)status.has_value();
    }
    return {};
}

Result<std::uint32_t> Session::State::read_word(std::uint64_t at_bytes) const {
    // Not through a mapping: a file that was cut short is an error here, and a signal there.
    std::array<std::byte, sizeof(std::uint32_t)> word{};
    const std::array slices{IoSlice{word.data(), word.size()}};
    const std::size_t count = GM_TRY(read_scattered(link.client.table().memory(), slices, at_bytes));
    if (count != word.size())
        return Error{Errc::io,
                     fmt::format("the share's memory ends before its byte {}", at_bytes + word.size())};
    return load_little<std::uint32_t>(word);
}

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Session> Session::attach(const SessionOptions& options) {
    SessionLink link = GM_TRY(attach_link(options));
    WaitSet changes = GM_TRY(WaitSet::create());
    WaitSet all = GM_TRY(WaitSet::create());
    GM_TRY(changes.add(link.changes.view()));
    GM_TRY(all.add(link.changes.view()));
    std::optional<Ringer> ringer;
    if (options.ring == RingStyle::never_waits) ringer = GM_TRY(Ringer::create());
    const std::uint64_t seen_presence = link.presence.changes();
    return Session{std::make_unique<State>(State{.options = options,
                                                 .link = std::move(link),
                                                 .changes = std::move(changes),
                                                 .all = std::move(all),
                                                 .awaited = {},
                                                 .kicks = {},
                                                 .ringer = std::move(ringer),
                                                 .seen_presence = seen_presence,
                                                 .untold = {},
                                                 .notices = {},
                                                 .heard = {},
                                                 .late = {}})};
}

const SessionOptions& Session::options() const { return state_->options; }
const SessionFacts& Session::facts() const { return state_->link.facts; }

Result<Mapping> Session::map() const {
    const SessionFacts& known = facts();
    return Mapping::create(state_->link.client.table().memory(), known.size_bytes,
                           known.is_read_only ? MapAccess::read_only : state_->options.access);
}

std::vector<std::uint32_t> Session::peers() const {
    const SessionLink& link = state_->link;
    std::vector<std::uint32_t> found;
    for (std::uint32_t slot = 0; slot < link.presence.slots(); ++slot)
        if (link.presence.is_present(slot)) found.push_back(slot);
    if (link.is_classic)
        for (const auto& [id, bells] : link.client.table().doorbells())
            if (!link.presence.is_present(id)) found.push_back(id);
    std::ranges::sort(found);
    std::erase(found, id());
    return found;
}

bool Session::is_present(std::uint32_t peer) const { return state_->is_present(peer); }
std::uint32_t Session::tenancy(std::uint32_t peer) const { return state_->link.presence.tenancy(peer); }
std::uint64_t Session::presence_changes() const { return state_->link.presence.changes(); }

Result<void> Session::ring(std::uint32_t peer, std::uint32_t vector) {
    const SessionFacts& known = facts();
    const auto* bells = state_->link.client.table().find(peer);
    if (bells == nullptr && !known.may_notify)
        return Error{Errc::permission_denied,
                     fmt::format("share '{}': this program may not ring others", state_->options.share)};
    if (bells == nullptr)
        return Error{Errc::not_found,
                     fmt::format("share '{}': no peer {} here", state_->options.share, peer)};
    if (vector >= bells->size())
        return Error{Errc::out_of_range, fmt::format("share '{}': peer {} has vectors 0 to {}, not {}",
                                                     state_->options.share, peer, bells->size() - 1, vector)};
    const EventFd& bell = (*bells)[vector];
    if (state_->ringer) return state_->ringer->ring(bell);
    return state_->options.ring == RingStyle::looks_first ? bell.ring() : bell.kick();
}

void Session::State::add_kicks(std::vector<Kick>& kicks, std::uint32_t vector, std::uint64_t count) {
    const auto known = std::ranges::find(kicks, vector, &Kick::vector);
    if (known == kicks.end()) {
        kicks.push_back({.vector = vector, .count = count});
    } else {
        known->count += std::min(count, std::numeric_limits<std::uint64_t>::max() - known->count);
    }
}

/// In the order in which await() has added them.
Result<void> Session::State::take_from_callers(std::span<const std::uint32_t> vectors, std::size_t index) {
    for (const auto& [id, bells] : link.client.table().callers()) {
        for (std::size_t at = 0; at < count_of(vectors); ++at) {
            const std::uint32_t vector = vector_of(vectors, at);
            if (vector >= bells.size() || !awaited.is_ready(index++)) continue;
            const std::uint64_t count = GM_TRY(bells[vector].drain());
            if (count == 0) continue;
            heard.set(id % max_senders);
            add_kicks(kicks, vector, count);
        }
    }
    return {};
}

Result<void> Session::State::take_kicks(std::span<const std::uint32_t> vectors) {
    kicks.clear();
    std::erase_if(late, [&](const Kick& kick) {
        const bool is_over = is_wanted(vectors, kick.vector);
        if (is_over) add_kicks(kicks, kick.vector, kick.count);
        return is_over;
    });
    const std::vector<EventFd>& bells = link.own_bells();
    for (std::size_t index = 0; index < count_of(vectors); ++index) {
        if (!awaited.is_ready(index)) continue;
        const std::uint32_t vector = vector_of(vectors, index);
        const std::uint64_t count = GM_TRY(bells[vector].drain());
        if (count != 0) add_kicks(kicks, vector, count);
    }
    // Behind the vectors, the stream and the bell.
    return take_from_callers(vectors, count_of(vectors) + 2);
}

/// The vectors, and what else is wanted: the stream, the bell.
Result<std::size_t> Session::State::await(const WaitOptions& wanted, bool is_brief, int timeout_ms) {
    const std::vector<EventFd>& bells = link.own_bells();
    awaited.clear();
    for (std::size_t index = 0; index < count_of(wanted.vectors); ++index)
        awaited.add(bells[vector_of(wanted.vectors, index)].view());
    awaited.add(is_brief ? FdView{} : stream());
    awaited.add(wanted.is_for_changes ? link.bell.view() : FdView{});
    for (const auto& [id, callers] : link.client.table().callers())
        for (std::size_t index = 0; index < count_of(wanted.vectors); ++index)
            if (const std::uint32_t vector = vector_of(wanted.vectors, index); vector < callers.size())
                awaited.add(callers[vector].view());
    const bool has_late =
        std::ranges::any_of(late, [&](const Kick& kick) { return is_wanted(wanted.vectors, kick.vector); });
    return awaited.wait(has_late ? 0 : timeout_ms);
}

bool Session::State::has_to_tell(const WaitOptions& wanted) const {
    return untold.is_lost || untold.is_reattached || (wanted.is_for_changes && untold.has_presence_changed);
}

Result<WaitOutcome> Session::wait(const WaitOptions& options) {
    State& state = *state_;
    for (const std::uint32_t vector : options.vectors)
        if (vector >= facts().vectors)
            return Error{Errc::out_of_range, fmt::format("share '{}': vectors 0 to {}, not {}",
                                                         state.options.share, facts().vectors - 1, vector)};
    const std::int64_t start_ms = tick_ms();
    int left_ms = options.timeout_ms < 0 ? -1 : options.timeout_ms;
    bool is_brief = !options.is_for_changes && !state.is_lost && (left_ms < 0 || left_ms > brief_ms) &&
                    start_ms - state.looked_ms < brief_ms;
    for (;;) {
        if (std::exchange(state.is_stream_due, false)) GM_TRY(state.look_at_stream());
        GM_TRY(state.come_back());
        // Who was attached again may have other vectors: that is told before any is waited for.
        if (state.has_to_tell(options))
            return WaitOutcome{.kicks = {}, .changes = std::exchange(state.untold, {})};
        const int patience_ms = is_brief ? brief_ms : state.patience(left_ms);
        const std::size_t count_ready = GM_TRY(state.await(options, is_brief, patience_ms));
        GM_TRY(state.take_kicks(options.vectors));
        const std::size_t count = state.count_of(options.vectors);
        if (!is_brief) {
            state.looked_ms = start_ms;
            state.is_stream_due = state.awaited.is_ready(count);
        }
        // Kicks first: the stream stays readable in the sets until it is looked at.
        if (!state.kicks.empty()) return WaitOutcome{.kicks = state.kicks, .changes = {}};
        if (!is_brief && state.awaited.is_ready(count + 1)) GM_TRY(state.look_at_presence());
        const bool has_ended = count_ready == 0 && !is_brief && patience_ms == left_ms;
        // What is ready and brings nothing, as kicks that others take, holds nobody beyond the time.
        if (left_ms == 0 && std::exchange(state.is_stream_due, false)) GM_TRY(state.look_at_stream());
        if (has_ended || (left_ms == 0 && !state.has_to_tell(options))) return WaitOutcome{};
        is_brief = false;
        if (left_ms > 0)
            left_ms =
                static_cast<int>(std::max<std::int64_t>(options.timeout_ms - (tick_ms() - start_ms), 0));
    }
}

Result<SessionChanges> Session::refresh() {
    GM_TRY(state_->look_at_stream());
    GM_TRY(state_->come_back());
    GM_TRY(state_->look_at_presence());
    return std::exchange(state_->untold, {});
}

Result<bool> Session::wait_ready(std::uint32_t peer, std::optional<std::uint64_t> word_at_bytes,
                                 int timeout_ms) {
    State& state = *state_;
    const SessionFacts& known = facts();
    if (!state.link.is_classic && peer >= known.slots)
        return Error{Errc::out_of_range, fmt::format("share '{}': slots 0 to {}, not {}", state.options.share,
                                                     known.slots - 1, peer)};
    if (word_at_bytes && (*word_at_bytes % sizeof(std::uint32_t) != 0 || *word_at_bytes >= known.size_bytes))
        return Error{Errc::out_of_range,
                     fmt::format("share '{}': no ready word at {}: a multiple of 4 below its {} bytes",
                                 state.options.share, *word_at_bytes, known.size_bytes)};
    const Deadline deadline = deadline_of(timeout_ms);
    milliseconds pause = min_word_pause;
    for (;;) {
        GM_TRY(state.look_at_stream());
        GM_TRY(state.come_back());
        GM_TRY(state.look_at_presence());
        const bool is_there = !state.is_lost && state.is_present(peer);
        if (is_there && (!word_at_bytes || GM_TRY(state.read_word(*word_at_bytes)) != 0)) return true;
        if (deadline.has_passed()) return false;
        int patience = state.patience(milliseconds_left(deadline));
        if (is_there) {
            patience = std::min(patience, static_cast<int>(pause.count()));
            pause = std::min(pause * 2, max_word_pause);
        }
        const std::array views{state.link.bell.view(), state.stream()};
        GM_TRY(poll_readable(views, patience));
    }
}

std::vector<PeerNotice> Session::take_notices(bool& has_lost) {
    has_lost = std::exchange(state_->has_dropped_notices, false);
    const auto taken = std::exchange(state_->notices, {});
    return {taken.begin(), taken.end()};
}

Result<void> Session::reattach() {
    GM_TRY(state_->look_at_stream());
    if (!state_->is_lost) return {};
    return state_->reattach();
}

bool Session::is_lost() const { return state_->is_lost; }
std::uint64_t Session::generation() const { return state_->generation; }
std::uint64_t Session::memory_generation() const { return state_->memory_generation; }

FdView Session::vector_view(std::uint32_t vector) const {
    return vector < facts().vectors ? state_->link.own_bells()[vector].view() : FdView{};
}

Result<Fd> Session::duplicate_vector(std::uint32_t vector) const {
    if (vector < facts().vectors) return state_->link.own_bells()[vector].duplicate();
    return Error{Errc::out_of_range, fmt::format("share '{}': no vector {}", options().share, vector)};
}

FdView Session::doorbell_view(std::uint32_t peer, std::uint32_t vector) const {
    const auto* bells = state_->link.client.table().find(peer);
    return bells != nullptr && vector < bells->size() ? (*bells)[vector].view() : FdView{};
}

std::vector<std::uint32_t> Session::doorbell_peers() const {
    std::vector<std::uint32_t> ids;
    for (const auto& [id, bells] : state_->link.client.table().doorbells()) ids.push_back(id);
    return ids;
}

FdView Session::changes_view() const { return state_->changes.view(); }
FdView Session::view() const { return state_->watch_all() ? state_->all.view() : FdView{}; }

SenderSet Session::take_senders() {
    const SenderSet counted = state_->link.senders ? state_->link.senders->take() : SenderSet{};
    return counted | std::exchange(state_->heard, {});
}

SenderPages* Session::senders() { return state_->link.senders ? &*state_->link.senders : nullptr; }

}  // namespace guestmem::share

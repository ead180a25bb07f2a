// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <utility>

#include "guestmem/base/endian.hpp"
#include "guestmem/share/session_link.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/scatter_io.hpp"

namespace guestmem::share {
namespace {

using std::chrono::milliseconds;

/// A ready word is looked at so often, at first and at last.
constexpr milliseconds min_word_pause{1};
constexpr milliseconds max_word_pause{20};
/// Messages of a stream that are taken in one look: a service that floods holds nobody up.
constexpr int max_messages_a_look = 1024;

Deadline deadline_of(int timeout_ms) {
    return timeout_ms < 0 ? Deadline{Deadline::farthest} : Deadline{milliseconds{timeout_ms}};
}

}  // namespace

struct Session::State {
    SessionOptions options;
    SessionLink link;
    WaitSet changes;  ///< of the link of the day
    WaitSet all;
    std::optional<Ringer> ringer;
    std::uint64_t generation = 1;
    std::uint64_t memory_generation = 1;
    std::uint64_t seen_presence = 0;
    bool is_lost = false;
    SessionChanges untold;
    std::deque<PeerNotice> notices;
    bool has_dropped_notices = false;
    Deadline next_try{milliseconds{0}};
    std::uint64_t retry_ms = min_retry_ms;

    Result<void> install(SessionLink next);
    Result<void> reattach();
    Result<void> look_at_stream();
    Result<void> look_at_presence();
    Result<void> come_back();
    void lose();
    void note(const Notice& notice);
    [[nodiscard]] bool is_present(std::uint32_t peer) const {
        return link.presence.is_present(peer) ||
               (link.is_classic && link.client.table().find(peer) != nullptr);
    }
    /// How long a wait may last before the service is looked for again.
    [[nodiscard]] int patience(const Deadline& deadline) const {
        const int left = milliseconds_left(deadline);
        return is_lost && options.may_reattach ? std::min(left, milliseconds_left(next_try)) : left;
    }
    [[nodiscard]] FdView stream() const { return is_lost ? FdView{} : link.client.view(); }
    Result<std::uint32_t> read_word(std::uint64_t at_bytes) const;
};

/// The sets of the session keep their descriptors: a link is one member of each.
Result<void> Session::State::install(SessionLink next) {
    GM_TRY(changes.add(next.changes.view()));
    if (auto added = all.add(next.all.view()); !added) {
        changes.remove(next.changes.view());
        return std::move(added).error();
    }
    changes.remove(link.changes.view());
    all.remove(link.all.view());
    const bool is_same = link.memory.device == next.memory.device && link.memory.inode == next.memory.inode;
    if (!is_same) ++memory_generation;
    ++generation;
    link = std::move(next);
    is_lost = false;
    untold.is_lost = false;
    untold.is_reattached = true;
    seen_presence = link.presence.changes();
    retry_ms = min_retry_ms;
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
    link.all.remove(link.client.view());
    is_lost = true;
    untold.is_lost = true;
    next_try = Deadline{milliseconds{0}};
}

void Session::State::note(const Notice& notice) {
    const bool has_come = notice.kind == NoticeKind::doorbell && notice.vector == 0;
    if (!has_come && notice.kind != NoticeKind::gone) return;
    if (notices.size() == max_peer_notices) {
        notices.pop_front();
        has_dropped_notices = true;
    }
    notices.push_back({.id = notice.id, .has_come = has_come});
    untold.has_presence_changed = true;
}

Result<void> Session::State::look_at_stream() {
    for (int count = 0; !is_lost && count < max_messages_a_look; ++count) {
        if (!GM_TRY(poll_readable(link.client.view(), 0))) break;
        const auto notice = link.client.receive(0);
        if (!notice) {
            lose();
        } else if (*notice) {
            note(**notice);
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
    GM_TRY(all.add(link.all.view()));
    std::optional<Ringer> ringer;
    if (options.ring == RingStyle::never_waits) ringer = GM_TRY(Ringer::create());
    const std::uint64_t seen_presence = link.presence.changes();
    return Session{std::make_unique<State>(State{.options = options,
                                                 .link = std::move(link),
                                                 .changes = std::move(changes),
                                                 .all = std::move(all),
                                                 .ringer = std::move(ringer),
                                                 .seen_presence = seen_presence,
                                                 .untold = {},
                                                 .notices = {}})};
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
    return state_->ringer ? state_->ringer->ring(bell) : bell.kick();
}

Result<WaitOutcome> Session::wait(const WaitOptions& options) {
    State& state = *state_;
    const Deadline deadline = deadline_of(options.timeout_ms);
    std::vector<std::uint32_t> vectors{options.vectors.begin(), options.vectors.end()};
    for (std::uint32_t vector = 0; options.vectors.empty() && vector < facts().vectors; ++vector)
        vectors.push_back(vector);
    std::vector<FdView> views;
    for (const std::uint32_t vector : vectors) {
        views.push_back(vector_view(vector));
        if (!views.back().is_open())
            return Error{Errc::out_of_range, fmt::format("share '{}': vectors 0 to {}, not {}",
                                                         state.options.share, facts().vectors - 1, vector)};
    }
    views.resize(vectors.size() + 2);
    for (;;) {
        GM_TRY(state.come_back());
        const bool is_told = state.untold.is_lost || state.untold.is_reattached ||
                             (options.is_for_changes && state.untold.has_presence_changed);
        if (is_told) return WaitOutcome{.kicks = {}, .changes = std::exchange(state.untold, {})};
        views[vectors.size()] = options.is_for_changes ? state.link.bell.view() : FdView{};
        views[vectors.size() + 1] = state.stream();
        WaitOutcome outcome;
        const std::vector<std::size_t> ready = GM_TRY(poll_readable(views, state.patience(deadline)));
        for (const std::size_t index : ready) {
            if (index >= vectors.size()) continue;
            const std::uint64_t count = GM_TRY(state.link.own_bells()[vectors[index]].drain());
            if (count != 0) outcome.kicks.push_back({.vector = vectors[index], .count = count});
        }
        if (!outcome.kicks.empty()) return outcome;
        if (std::ranges::find(ready, vectors.size()) != ready.end()) GM_TRY(state.look_at_presence());
        if (std::ranges::find(ready, vectors.size() + 1) != ready.end()) GM_TRY(state.look_at_stream());
        if (deadline.has_passed() && ready.empty()) return outcome;
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
        int patience = state.patience(deadline);
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

FdView Session::changes_view() const { return state_->changes.view(); }
FdView Session::view() const { return state_->all.view(); }

SenderPages* Session::senders() { return state_->link.senders ? &*state_->link.senders : nullptr; }

}  // namespace guestmem::share

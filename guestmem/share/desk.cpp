// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/desk.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "guestmem/share/calls.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::share {
namespace {

/// A name that a caller has chosen, for the log.
std::string shown(std::string_view name) {
    std::string text{name.substr(0, max_name_bytes + 1)};
    for (char& c : text)
        if (c < ' ' || c > '~') c = '?';
    return text;
}

std::string stage_of(const Hall& hall) {
    switch (hall.record().stage.load()) {
        case ShareStage::ready: return "ready";
        case ShareStage::retired: return "retired";
        default: return "blank";
    }
}

ShareSummary summary_of(const Hall& hall) {
    const ShareConfig& config = hall.share().config();
    return {.name = config.name,
            .size_bytes = config.size_bytes,
            .extent_bytes = hall.share().extent_bytes(),
            .vectors = config.vectors,
            .slots = config.slots,
            .ids = config.ids == IdPolicy::stable ? "stable" : "classic",
            .count_peers = static_cast<std::uint32_t>(hall.peers().size()),
            .count_holders = static_cast<std::uint32_t>(hall.holders().size()),
            .origin = config.is_dynamic ? "dynamic" : "file",
            .maker = hall.record().maker.get(),
            .backing = std::string{to_string(config.backing)},
            .stage = stage_of(hall),
            .is_kept = config.is_kept};
}

/// One look tells which doorbells have kicks; only those are asked how many.
Result<PendingKicks> pending_of(const Doorbells& bells) {
    std::vector<FdView> views;
    for (const EventFd& bell : bells.vectors) views.push_back(bell.view());
    PendingKicks pending{.slot = bells.id, .per_vector = std::vector<std::uint64_t>(views.size())};
    for (const std::size_t vector : GM_TRY(poll_readable(views, 0)))
        pending.per_vector[vector] = GM_TRY(bells.vectors[vector].pending());
    return pending;
}

}  // namespace

bool Desk::may_see(const Principal& who, std::string_view share) const {
    return who.vm.empty() || host_.policy.decide(who, share).is_allowed;
}

Result<Hall*> Desk::find_hall(const Principal& who, const std::string& name) {
    if (!may_see(who, name))
        return Error{Errc::permission_denied, EACCES,
                     fmt::format("{} may not see share '{}'", who.to_text(), name)};
    if (Hall* const hall = host_.registry.find(name)) return hall;
    std::string names;
    for (const Hall& hall : host_.registry.halls())
        if (may_see(who, hall.share().config().name))
            names += (names.empty() ? "" : ", ") + hall.share().config().name;
    return Error{Errc::not_found, ENOENT,
                 fmt::format("no share '{}'; there are: {}", name, names.empty() ? "none" : names)};
}

Result<control::Outcome> Desk::answer(const Principal& who, const PeerCredentials& caller,
                                      const control::Request& request) {
    static constexpr std::array<std::string_view, 8> known{"share.hold",   "share.list",   "share.stat",
                                                           "share.memory", "share.attach", "share.ring",
                                                           "share.reload", "share.retire"};
    if (std::ranges::find(known, request.call) == known.end())
        return Error{Errc::unsupported, ENOSYS, fmt::format("unknown call '{}'", request.call)};
    if (request.call == "share.list") return list(who);
    if (request.call == "share.stat") {
        const NamedCall call = GM_TRY(parse_named_call(request.arguments));
        return stat(*GM_TRY(find_hall(who, call.share)));
    }
    if (request.call == "share.attach" && who.is_known())
        return attach(who, caller, GM_TRY(parse_attach_call(request.arguments)));
    if (request.call == "share.hold" && who.is_known())
        return hold(who, caller, GM_TRY(parse_hold_call(request.arguments)));
    if (!who.is_host)
        return Error{Errc::permission_denied, EACCES,
                     who.is_known()
                         ? fmt::format("{} may list, stat, attach and hold; '{}' is for the host",
                                       who.to_text(), request.call)
                         : fmt::format("uid {} may list and stat, but is not an operator of this service",
                                       caller.uid)};
    if (request.call == "share.reload")
        return control::Outcome{to_json(ReloadReply{GM_TRY(host_.reload())}), {}};
    if (request.call == "share.retire") {
        GM_TRY(host_.retire());
        return control::Outcome{};
    }
    if (request.call == "share.ring") return ring(who, GM_TRY(parse_ring_call(request.arguments)));
    const NamedCall call = GM_TRY(parse_named_call(request.arguments));
    return memory(call, *GM_TRY(find_hall(who, call.share)));
}

Result<control::Outcome> Desk::list(const Principal& who) const {
    const Keeper* const keeper = host_.legacy.keeper();
    ServiceSummary summary{.pid = own_process(),
                           .generation = host_.legacy.journal().generation(),
                           .keeper = keeper == nullptr ? "" : keeper->describe(),
                           .shares = {}};
    for (const Hall& hall : host_.registry.halls())
        if (may_see(who, hall.share().config().name)) summary.shares.push_back(summary_of(hall));
    return control::Outcome{to_json(summary), {}};
}

Result<control::Outcome> Desk::stat(Hall& hall) const {
    ShareStatus status{.summary = summary_of(hall), .seals = {}, .doors = {}, .peers = {}, .pending = {}};
    status.seals = GM_TRY(seals_of(hall.share().memory()));
    for (const DoorConfig& door : host_.config.doors)
        if (door.share == status.summary.name)
            status.doors.push_back({.path = door.socket.path, .vm = door.vm, .slots = door.slots});
    for (const Peer& peer : hall.peers()) {
        const PeerCredentials& who = peer.entrant.who;
        const bool is_read_only = peer.entrant.permissions.is_read_only;
        status.peers.push_back(
            {.slot = peer.id,
             .vm = peer.entrant.vm,
             .pid = who.pid,
             .uid = who.uid,
             .gid = who.gid,
             .is_joined = peer.is_joined,
             .is_tool = peer.entrant.is_tool,
             .may_notify = peer.entrant.permissions.may_notify,
             .is_read_only = is_read_only,
             .is_revoked = peer.is_revoked,
             .can_bypass_read_only = is_read_only && (who.uid == 0 || who.uid == own_user())});
        if (hall.share().slots().empty()) status.pending.push_back(GM_TRY(pending_of(*peer.bells)));
    }
    std::ranges::sort(status.peers, {}, &PeerStatus::slot);
    for (const auto& slot : hall.share().slots()) status.pending.push_back(GM_TRY(pending_of(*slot)));
    return control::Outcome{to_json(status), {}};
}

Result<control::Outcome> Desk::memory(const NamedCall& call, Hall& hall) const {
    control::Outcome outcome;
    outcome.result = to_json(MemoryReply{hall.share().config().size_bytes, hall.share().extent_bytes()});
    outcome.fds.push_back(GM_TRY(hall.share().memory().duplicate()));
    if (call.has_presence) outcome.fds.push_back(GM_TRY(hall.share().read_only_presence().duplicate()));
    return outcome;
}

/// What the rules say; a refusal is one line of the log.
Result<Permissions> Desk::check(const Principal& who, const PeerCredentials& caller, const std::string& share,
                                Wanted wanted) {
    std::string why;
    auto granted = host_.policy.check(who, share, wanted, why);
    if (!granted)
        host_.say(LogLevel::warning, fmt::format("share '{}': refused {} (pid {}, uid {}) to {}: {}",
                                                 shown(share), who.to_text(), caller.pid, caller.uid,
                                                 wanted == Wanted::attach ? "attach" : "create it", why));
    return granted;
}

Result<Hall*> Desk::make_share(const Principal& who, const PeerCredentials& caller, const AttachCall& call) {
    static_cast<void>(GM_TRY(check(who, caller, call.share, Wanted::create)));
    ShareConfig config;
    config.name = call.share;
    config.size_bytes = call.size_bytes.value_or(0);
    config.vectors = call.vectors.value_or(1);
    config.slots = call.slots.value_or(max_senders);
    config.is_dynamic = true;
    for (const auto& problem :
         {find_name_problem(config.name), find_size_problem(config.size_bytes),
          find_vectors_problem(config.vectors), find_slots_problem(config.slots, config.vectors)})
        if (problem)
            return Error{Errc::invalid_argument, EINVAL,
                         fmt::format("share '{}' cannot be made: {}; {}", shown(config.name), problem->what,
                                     problem->advice)};
    GM_TRY(host_.registry.check_share(config, who.vm, host_.policy.limits_of(who.vm), host_.config.totals));
    auto made = host_.registry.make(config, who.vm, Pages::later, {});
    if (!made && !who.is_host) {
        // How much the host has left is not for everybody.
        host_.say(LogLevel::warning, fmt::format("share '{}': not made for {}: {}", config.name,
                                                 who.to_text(), made.error().message()));
        return Error{
            made.error().code(), made.error().os_error(),
            fmt::format("share '{}' cannot be made: the host has not got what it takes", config.name)};
    }
    Hall* const hall = GM_TRY(std::move(made));
    host_.say(LogLevel::info, fmt::format("share '{}': made by {} (pid {}, uid {}), {} bytes", config.name,
                                          who.to_text(), caller.pid, caller.uid, config.size_bytes));
    return hall;
}

/// A VM gets one of its own slots, or the lowest that nobody owns; the host the highest that nobody owns.
void Desk::choose_slot(const Principal& who, const AttachCall& call, const Hall& hall,
                       Entrant& entrant) const {
    for (const DoorConfig& door : host_.config.doors)
        if (!who.vm.empty() && door.vm == who.vm && door.share == hall.share().config().name)
            entrant.own_slots.insert(entrant.own_slots.end(), door.slots.begin(), door.slots.end());
    if (!entrant.own_slots.empty()) {
        entrant.wish = Wish::own;
    } else {
        entrant.wish = who.is_host ? Wish::highest : Wish::lowest;
    }
    if (!call.slot || hall.share().config().ids == IdPolicy::classic) return;
    const auto owned = owned_slots(host_.config, hall.share().config().name);
    const bool is_own = std::ranges::find(entrant.own_slots, *call.slot) != entrant.own_slots.end();
    const bool is_others = !is_own && std::ranges::find(owned, *call.slot) != owned.end();
    entrant.wish = Wish::own;
    // Somebody else's is as good as taken.
    entrant.own_slots.clear();
    if (!is_others && *call.slot < hall.share().config().slots) entrant.own_slots.push_back(*call.slot);
}

/// The caller gets the other end of a socket pair and is an ivshmem client like every other from then on.
Result<control::Outcome> Desk::attach(const Principal& who, const PeerCredentials& caller,
                                      const AttachCall& call) {
    Permissions permissions = GM_TRY(check(who, caller, call.share, Wanted::attach));
    Hall* hall = host_.registry.find(call.share);
    const bool is_created = hall == nullptr && call.is_session && call.may_create;
    if (is_created) hall = GM_TRY(make_share(who, caller, call));
    if (hall == nullptr) hall = GM_TRY(find_hall(who, call.share));
    GM_TRY(host_.registry.check_peer(who.vm, host_.policy.limits_of(who.vm), host_.config.totals));
    permissions.is_read_only = permissions.is_read_only || (call.is_session && call.is_read_only);

    auto [ours, theirs] = GM_TRY(UnixStream::pair());
    GM_TRY(ours.set_nonblocking());
    Entrant entrant{.stream = std::move(ours), .who = caller, .vm = who.vm, .door = {}, .own_slots = {}};
    entrant.is_tool = true;
    entrant.permissions = permissions;
    const bool has_pages = !hall->share().senders().empty();
    entrant.hears_senders = call.is_session && call.hears_senders && has_pages;
    entrant.counts_rings = call.is_session && call.counts_rings;
    entrant.takes_batches = call.is_session && call.takes_batches;
    choose_slot(who, call, *hall, entrant);
    control::Outcome outcome;
    if (call.is_session) {
        EventFd bell = GM_TRY(EventFd::create());
        outcome.fds.push_back(std::move(theirs).release());
        outcome.fds.push_back(GM_TRY(hall->share().read_only_presence().duplicate()));
        outcome.fds.push_back(GM_TRY(bell.duplicate()));
        entrant.bell = std::move(bell);
    }
    const std::uint32_t slot = GM_TRY_CONTEXT(host_.admit(*hall, std::move(entrant)),
                                              fmt::format("share '{}'", hall->share().config().name));
    if (!call.is_session) {
        outcome.result = to_json(AttachReply{slot});
        outcome.fds.push_back(std::move(theirs).release());
        return outcome;
    }
    const std::span<const SenderSlot> senders = hall->share().senders();
    if (!senders.empty()) {
        const SenderSlot& own = senders[slot];
        outcome.fds.push_back(GM_TRY((permissions.may_notify ? own.writable : own.read_only).duplicate()));
        for (std::uint32_t other = 0; other < senders.size(); ++other)
            if (other != slot) outcome.fds.push_back(GM_TRY(senders[other].read_only.duplicate()));
    }
    const ShareConfig& config = hall->share().config();
    outcome.result = to_json(SessionReply{.slot = slot,
                                          .size_bytes = config.size_bytes,
                                          .extent_bytes = hall->share().extent_bytes(),
                                          .vectors = config.vectors,
                                          .slots = config.slots,
                                          .senders = static_cast<std::uint32_t>(senders.size()),
                                          .is_created = is_created,
                                          .may_notify = permissions.may_notify,
                                          .is_read_only = permissions.is_read_only});
    return outcome;
}

/// Who may attach could keep it alive by attaching; who may create, by making it.
Result<control::Outcome> Desk::hold(const Principal& who, const PeerCredentials& caller,
                                    const HoldCall& call) {
    Hall* hall = host_.registry.find(call.share);
    const bool is_created = hall == nullptr && call.may_create;
    if (!is_created) static_cast<void>(GM_TRY(check(who, caller, call.share, Wanted::attach)));
    GM_TRY(host_.registry.check_peer(who.vm, host_.policy.limits_of(who.vm), host_.config.totals));
    auto [ours, theirs] = GM_TRY(UnixStream::pair());
    GM_TRY(ours.set_nonblocking());
    if (is_created)
        hall = GM_TRY(make_share(who, caller,
                                 {.share = call.share,
                                  .size_bytes = call.size_bytes,
                                  .vectors = call.vectors,
                                  .slots = call.slots}));
    if (hall == nullptr) hall = GM_TRY(find_hall(who, call.share));
    Entrant entrant{.stream = std::move(ours), .who = caller, .vm = who.vm, .door = {}, .own_slots = {}};
    entrant.is_tool = true;
    GM_TRY_CONTEXT(host_.hold(*hall, std::move(entrant)),
                   fmt::format("share '{}'", hall->share().config().name));
    control::Outcome outcome;
    const ShareConfig& config = hall->share().config();
    outcome.result = to_json(HoldReply{.size_bytes = config.size_bytes,
                                       .extent_bytes = hall->share().extent_bytes(),
                                       .slots = config.slots,
                                       .is_created = is_created});
    outcome.fds.push_back(std::move(theirs).release());
    return outcome;
}

Result<control::Outcome> Desk::ring(const Principal& who, const RingCall& call) {
    Hall* const hall = GM_TRY(find_hall(who, call.share));
    RingReply reply;
    if (call.peer) {
        const bool is_present = GM_TRY(hall->ring(*call.peer, call.vector));
        reply.rung.push_back(*call.peer);
        if (!is_present) reply.absent.push_back(*call.peer);
    } else {
        for (const Peer& peer : hall->peers()) {
            GM_TRY(hall->ring(peer.id, call.vector));
            reply.rung.push_back(peer.id);
        }
    }
    return control::Outcome{to_json(reply), {}};
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/desk.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "guestmem/share/calls.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::share {
namespace {

ShareSummary summary_of(const Hall& hall) {
    const ShareConfig& config = hall.share().config();
    return {.name = config.name,
            .size_bytes = config.size_bytes,
            .extent_bytes = hall.share().extent_bytes(),
            .vectors = config.vectors,
            .slots = config.slots,
            .ids = config.ids == IdPolicy::stable ? "stable" : "classic",
            .count_peers = static_cast<std::uint32_t>(hall.peers().size())};
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

bool Desk::is_operator(const PeerCredentials& caller) const {
    return caller.uid == 0 || caller.uid == own_user() ||
           std::ranges::count(config_.control.operators, caller.uid) != 0;
}

Result<Hall*> Desk::find_hall(const std::string& name) {
    std::string names;
    for (Hall& hall : halls_) {
        if (hall.share().config().name == name) return &hall;
        names += (names.empty() ? "" : ", ") + hall.share().config().name;
    }
    return Error{Errc::not_found, ENOENT, fmt::format("no share '{}'; there are: {}", name, names)};
}

Result<control::Outcome> Desk::answer(const PeerCredentials& caller, const control::Request& request) {
    if (request.call == "share.list") return list();
    const bool is_known = request.call == "share.stat" || request.call == "share.memory" ||
                          request.call == "share.attach" || request.call == "share.ring";
    if (!is_known) return Error{Errc::unsupported, ENOSYS, fmt::format("unknown call '{}'", request.call)};
    if (request.call == "share.stat")
        return stat(*GM_TRY(find_hall(GM_TRY(parse_named_call(request.arguments)).share)));
    if (!is_operator(caller))
        return Error{
            Errc::permission_denied, EACCES,
            fmt::format("uid {} may list and stat, but is not an operator of this service", caller.uid)};
    if (request.call == "share.ring") return ring(request);
    Hall* const hall = GM_TRY(find_hall(GM_TRY(parse_named_call(request.arguments)).share));
    if (request.call == "share.memory") return memory(*hall);
    return attach(caller, *hall);
}

Result<control::Outcome> Desk::list() const {
    ServiceSummary summary{.pid = own_process(), .shares = {}};
    for (const Hall& hall : halls_) summary.shares.push_back(summary_of(hall));
    return control::Outcome{to_json(summary), {}};
}

Result<control::Outcome> Desk::stat(Hall& hall) const {
    ShareStatus status{.summary = summary_of(hall), .seals = {}, .doors = {}, .peers = {}, .pending = {}};
    status.seals = GM_TRY(seals_of(hall.share().memory()));
    for (const DoorConfig& door : config_.doors)
        if (door.share == status.summary.name)
            status.doors.push_back({.path = door.socket.path, .vm = door.vm, .slots = door.slots});
    for (const Peer& peer : hall.peers()) {
        const PeerCredentials& who = peer.entrant.who;
        status.peers.push_back({.slot = peer.id,
                                .vm = peer.entrant.vm,
                                .pid = who.pid,
                                .uid = who.uid,
                                .gid = who.gid,
                                .is_joined = peer.is_joined,
                                .is_tool = peer.entrant.is_tool});
        if (hall.share().slots().empty()) status.pending.push_back(GM_TRY(pending_of(*peer.bells)));
    }
    std::ranges::sort(status.peers, {}, &PeerStatus::slot);
    for (const auto& slot : hall.share().slots()) status.pending.push_back(GM_TRY(pending_of(*slot)));
    return control::Outcome{to_json(status), {}};
}

Result<control::Outcome> Desk::memory(Hall& hall) const {
    control::Outcome outcome;
    outcome.result = to_json(MemoryReply{hall.share().config().size_bytes, hall.share().extent_bytes()});
    outcome.fds.push_back(GM_TRY(hall.share().memory().duplicate()));
    return outcome;
}

/// The caller gets the other end of a socket pair and is an ivshmem client like every other from then on.
Result<control::Outcome> Desk::attach(const PeerCredentials& caller, Hall& hall) {
    auto [ours, theirs] = GM_TRY(UnixStream::pair());
    GM_TRY(ours.set_nonblocking());
    Entrant entrant{.stream = std::move(ours),
                    .who = caller,
                    .vm = {},
                    .door = {},
                    .wish = Wish::highest,
                    .own_slots = {},
                    .is_tool = true};
    const std::uint32_t slot = GM_TRY_CONTEXT(admit_tool_(hall, std::move(entrant)),
                                              fmt::format("share '{}'", hall.share().config().name));
    control::Outcome outcome;
    outcome.result = to_json(AttachReply{slot});
    outcome.fds.push_back(std::move(theirs).release());
    return outcome;
}

Result<control::Outcome> Desk::ring(const control::Request& request) {
    const RingCall call = GM_TRY(parse_ring_call(request.arguments));
    Hall* const hall = GM_TRY(find_hall(call.share));
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

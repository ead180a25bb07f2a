// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/session_link.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <span>
#include <utility>

#include "guestmem/control/client.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::share {
namespace {

using std::chrono::milliseconds;

/// Between two attempts of one attach, when the service went away in the middle of the first, or was short.
constexpr int broken_attach_pause_ms = 20;
Result<void> receive_handshake(Client& client, const SessionReply& reply, const Deadline& deadline) {
    for (;;) {
        const PeerTable& table = client.table();
        if (table.own_id() && *table.own_id() != reply.slot)
            return Error{Errc::corrupt,
                         fmt::format("the service announced slot {}, and its ivshmem stream says {}",
                                     reply.slot, *table.own_id())};
        const auto* own = table.find(reply.slot);
        if (table.memory().is_open() && own != nullptr && own->size() >= reply.vectors) return {};
        const bool has_come = GM_TRY(client.receive_ahead(milliseconds_left(deadline))).has_value();
        if (!has_come || deadline.has_passed())
            return Error{Errc::timed_out, "the ivshmem handshake did not end in time"};
    }
}

Result<FileFacts> question_memory(const SessionLink& link, const SessionOptions& options) {
    const FdView memory = link.client.table().memory();
    const FileFacts facts = GM_TRY(file_facts(memory));
    if (facts.size_bytes < link.facts.size_bytes)
        return Error{Errc::corrupt, fmt::format("the memory has {} bytes, the service announced {}",
                                                facts.size_bytes, link.facts.size_bytes)};
    if (!link.facts.is_sealed && !options.may_be_unsealed)
        return Error{
            Errc::permission_denied,
            "the memory is not sealed: its other writers can cut it short under this mapping (SIGBUS); "
            "allow unsealed memory where they are trusted"};
    if (link.facts.is_read_only && options.access == MapAccess::read_write)
        return Error{Errc::permission_denied, "it may only be read here: attach read-only"};
    return facts;
}

Result<std::optional<SenderPages>> map_senders(const SessionReply& reply, std::span<const Fd> fds) {
    // Who may not notify gets no page of its own to write to, and keeps no count of what it heard.
    if (reply.senders == 0 || !reply.may_notify) return std::optional<SenderPages>{};
    std::vector<FdView> others;
    for (const Fd& fd : fds.subspan(1)) others.push_back(fd.view());
    return std::optional{GM_TRY(SenderPages::map(reply.slot, fds.front(), others))};
}

Result<void> watch(SessionLink& link) {
    link.changes = GM_TRY(WaitSet::create());
    GM_TRY(link.changes.add(link.bell.view()));
    return link.changes.add(link.client.view());
}

/// Stream, presence pages, presence bell; then the sender pages.
constexpr std::size_t session_fds = 3;

/// What no service of ours says about a share.
Result<void> check_reply(const SessionReply& reply, std::size_t count_fds, const SessionOptions& options) {
    const bool is_share = reply.slot <= ivshmem_max_peer_id && reply.size_bytes != 0 &&
                          reply.size_bytes <= reply.extent_bytes && reply.extent_bytes <= max_size_bytes &&
                          reply.vectors != 0 && reply.vectors <= max_vectors && reply.slots != 0 &&
                          reply.slots <= max_slots;
    if (!is_share)
        return Error{
            Errc::corrupt,
            fmt::format("share.attach: slot {}, {} of {} bytes, {} vectors, {} slots: no "
                        "share is like that",
                        reply.slot, reply.size_bytes, reply.extent_bytes, reply.vectors, reply.slots)};
    const bool has_senders = reply.senders != 0;
    if (has_senders &&
        (reply.senders != reply.slots || reply.senders > max_senders || reply.slot >= reply.slots))
        return Error{Errc::corrupt, fmt::format("share.attach: {} sender pages for slot {} of {}",
                                                reply.senders, reply.slot, reply.slots)};
    if (count_fds != session_fds + reply.senders)
        return Error{Errc::corrupt, fmt::format("share.attach: {} descriptors came, {} belong to this answer",
                                                count_fds, session_fds + reply.senders)};
    if (options.slot && *options.slot != reply.slot)
        return Error{Errc::corrupt,
                     fmt::format("share.attach: slot {} where {} was asked for", reply.slot, *options.slot)};
    return {};
}

std::string control_path(const SessionOptions& options) {
    return options.control.empty() ? default_control_path() : options.control;
}

/// A zero is left out: the service has its own.
template <typename Number>
std::optional<Number> unless_zero(Number number) {
    return number == 0 ? std::optional<Number>{} : std::optional{number};
}

AttachCall call_of(const SessionOptions& options) {
    return {.share = options.share,
            .is_session = true,
            .may_create = options.may_create,
            .is_read_only = options.access == MapAccess::read_only,
            .size_bytes = unless_zero(options.size_bytes),
            .vectors = unless_zero(options.vectors),
            .slots = unless_zero(options.slots),
            .slot = options.slot,
            .hears_senders = options.hears_senders,
            .counts_rings = options.counts_rings,
            .takes_batches = true};
}

Result<SessionLink> attach_once(const SessionOptions& options, const Deadline& deadline, bool& was_there) {
    auto control = GM_TRY(control::Client::connect(control_path(options), milliseconds_left(deadline)));
    was_there = true;
    auto answer = GM_TRY(control.call("share.attach", to_json(call_of(options))));
    return enter_link(std::move(answer), options, deadline);
}

}  // namespace

Result<SessionLink> enter_link(control::ClientAnswer answer, const SessionOptions& options,
                               const Deadline& deadline) {
    const SessionReply reply = GM_TRY(parse_session_reply(answer.result));
    GM_TRY(check_reply(reply, answer.fds.size(), options));
    Client client = GM_TRY(Client::adopt(std::move(answer.fds[0])));
    if (options.hears_senders) client.table().expect_callers();
    PresenceReader presence = GM_TRY(PresenceReader::map(answer.fds[1]));
    EventFd bell = GM_TRY_CONTEXT(EventFd::adopt(std::move(answer.fds[2])), "presence bell");
    auto senders = GM_TRY(map_senders(reply, std::span{answer.fds}.subspan(session_fds)));
    GM_TRY(receive_handshake(client, reply, deadline));
    const bool is_sealed = GM_TRY(is_size_sealed(client.table().memory()));
    const bool is_classic = reply.may_notify && client.table().doorbells().size() < reply.slots;
    SessionLink link{.facts = {.slot = reply.slot,
                               .size_bytes = reply.size_bytes,
                               .extent_bytes = reply.extent_bytes,
                               .vectors = reply.vectors,
                               .slots = reply.slots,
                               .was_created = reply.is_created,
                               .may_notify = reply.may_notify,
                               .is_read_only = reply.is_read_only,
                               .is_sealed = is_sealed},
                     .client = std::move(client),
                     .presence = std::move(presence),
                     .bell = std::move(bell),
                     .senders = std::move(senders),
                     .changes = {},
                     .vectors = {},
                     .memory = {},
                     .is_classic = is_classic};
    link.memory = GM_TRY(question_memory(link, options));
    GM_TRY(watch(link));
    return link;
}

Result<void> watch_vectors(SessionLink& link) {
    WaitSet vectors = GM_TRY(WaitSet::create());
    for (const EventFd& bell : std::span{link.own_bells()}.first(link.facts.vectors))
        GM_TRY(vectors.add(bell.view()));
    for (const auto& [id, callers] : link.client.table().callers())
        for (const EventFd& bell : callers) GM_TRY(vectors.add(bell.view()));
    link.vectors = std::move(vectors);
    return {};
}

int milliseconds_left(const Deadline& deadline) {
    return static_cast<int>(std::min<std::int64_t>(deadline.left().count(), 1'000'000'000));
}

/// A service that is killed in the middle of an attach closes what it had begun: its next instance is asked.
Result<SessionLink> attach_link(const SessionOptions& options) {
    const Deadline deadline{milliseconds{std::min<std::uint64_t>(options.timeout_ms, 1'000'000'000)}};
    bool was_there = false;
    for (;;) {
        auto link = attach_once(options, deadline, was_there);
        if (link) return link;
        // Descriptors on their way through sockets are counted for all processes of a user: others' are soon read.
        const bool may_try_again = (was_there && link.error().code() == Errc::unavailable) ||
                                   link.error().os_error() == ETOOMANYREFS;
        if (!may_try_again || deadline.has_passed())
            return std::move(link).error().with_context(fmt::format("share '{}'", options.share));
        GM_TRY(poll_readable(std::span<const FdView>{},
                             std::min(broken_attach_pause_ms, milliseconds_left(deadline))));
    }
}

}  // namespace guestmem::share

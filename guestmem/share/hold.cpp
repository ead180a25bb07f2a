// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/hold.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "guestmem/control/client.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/session_link.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::share {
namespace {

/// Between two attempts, when the service went away in the middle of the first.
constexpr int pause_ms = 20;

struct Taken {
    HoldReply reply;
    Client stream;
};

Result<Taken> take_once(const HoldOptions& options, const Deadline& deadline, bool& was_there) {
    const std::string path = options.control.empty() ? default_control_path() : options.control;
    auto control = GM_TRY(control::Client::connect(path, milliseconds_left(deadline)));
    was_there = true;
    auto answer = GM_TRY(control.call("share.hold", to_json(HoldCall{.share = options.share,
                                                                     .may_create = true,
                                                                     .size_bytes = options.size_bytes,
                                                                     .vectors = options.vectors,
                                                                     .slots = options.slots})));
    const HoldReply reply = GM_TRY(parse_hold_reply(answer.result));
    if (answer.fds.size() != 1 || reply.size_bytes == 0 || reply.size_bytes > reply.extent_bytes ||
        reply.extent_bytes > max_size_bytes)
        return Error{Errc::corrupt,
                     fmt::format("share.hold: {} of {} bytes and {} descriptors came: no hold is like "
                                 "that",
                                 reply.size_bytes, reply.extent_bytes, answer.fds.size())};
    Client stream = GM_TRY(Client::adopt(std::move(answer.fds.front())));
    const auto first = GM_TRY(stream.receive(milliseconds_left(deadline)));
    if (!first) return Error{Errc::timed_out, ETIMEDOUT, "the share's memory was not there in time"};
    return Taken{.reply = reply, .stream = std::move(stream)};
}

}  // namespace

Result<Hold> Hold::take(const HoldOptions& options) {
    const Deadline deadline{
        std::chrono::milliseconds{std::min<std::uint64_t>(options.timeout_ms, 1'000'000'000)}};
    bool was_there = false;
    for (;;) {
        auto taken = take_once(options, deadline, was_there);
        if (taken) {
            Hold hold{std::move(taken->stream)};
            hold.share_ = options.share;
            hold.size_bytes_ = taken->reply.size_bytes;
            hold.slots_ = taken->reply.slots;
            hold.was_created_ = taken->reply.is_created;
            return hold;
        }
        const bool may_try_again = (was_there && taken.error().code() == Errc::unavailable) ||
                                   taken.error().os_error() == ETOOMANYREFS;
        if (!may_try_again || deadline.has_passed())
            return std::move(taken).error().with_context(fmt::format("share '{}'", options.share));
        GM_TRY(poll_readable(std::span<const FdView>{}, std::min(pause_ms, milliseconds_left(deadline))));
    }
}

Result<bool> Hold::is_lost() const { return stream_.has_ended(); }

}  // namespace guestmem::share

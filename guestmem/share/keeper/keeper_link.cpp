// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_link.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "guestmem/share/keeper/keeper_process.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

constexpr std::chrono::milliseconds retry_time{5};
constexpr std::chrono::milliseconds join_retry_time{2};

Error corrupt(std::string text) { return Error{Errc::corrupt, EPROTO, std::move(text)}; }

Result<void> check_keeper(const PeerCredentials& who, const KeeperJoinOptions& options) {
    if (who.uid == 0 || who.uid == own_user()) return {};
    if (std::ranges::find(options.users, who.uid) != options.users.end()) return {};
    return Error{
        Errc::permission_denied, EACCES,
        fmt::format("keeper {}: process {} of user {} listens there; it has to be of user {} or root",
                    options.path, who.pid, who.uid, own_user())};
}

/// A connection to whoever listens there, once; an error (unavailable, not_found) when nobody does.
Result<SeqpacketStream> reach(const KeeperJoinOptions& options) {
    auto connected = SeqpacketStream::connect(options.path);
    if (connected) return connected;
    Error failure = std::move(connected).error();
    if (failure.os_error() != ENOENT && failure.os_error() != ECONNREFUSED) return failure;
    // Another one that starts a keeper at the same time is as good.
    const auto started = start_keeper(
        {.path = options.path, .users = options.users, .drops_privileges = options.drops_privileges});
    if (!started && started.error().code() != Errc::busy) return started.error();
    return SeqpacketStream::connect(options.path);
}

Result<Inheritance> join_once(const KeeperJoinOptions& options) {
    SeqpacketStream stream = GM_TRY(reach(options));
    GM_TRY(check_keeper(GM_TRY(stream.peer()), options));
    Inheritance inheritance;
    inheritance.keeper = GM_TRY(KeeperLink::create(std::move(stream), options, inheritance.kept));
    return inheritance;
}

/// Another service that is about to end, a keeper that has just ended, a full backlog.
bool is_passing(const Error& error) {
    return error.code() == Errc::busy || error.code() == Errc::unavailable;
}

}  // namespace

Result<Inheritance> join_keeper(const KeeperJoinOptions& options) {
    const Deadline deadline{options.patience};
    for (;;) {
        auto joined = join_once(options);
        if (joined) return joined;
        if (!is_passing(joined.error()) || deadline.has_passed()) return joined;
        std::this_thread::sleep_for(join_retry_time);
    }
}

Result<std::unique_ptr<KeeperLink>> KeeperLink::create(SeqpacketStream stream,
                                                       const KeeperJoinOptions& options,
                                                       std::vector<KeptFd>& kept) {
    const PeerCredentials who = GM_TRY(stream.peer());
    Fd hangup = GM_TRY(stream.watch_hangup());
    std::unique_ptr<KeeperLink> link{
        new KeeperLink{std::move(stream), std::move(hangup), who.pid, options.patience}};
    GM_TRY_CONTEXT(link->take_over(kept, Deadline{options.patience}), fmt::format("keeper {}", options.path));
    return link;
}

std::string KeeperLink::describe() const { return fmt::format("keeper (pid {})", process_); }

Result<void> KeeperLink::greet(const Incoming& first) {
    const KeeperMessage& message = first.message;
    if (message.verb == KeeperVerb::refused) {
        if (message.status == EBUSY)
            return Error{Errc::busy, EBUSY,
                         fmt::format("it serves process {}; end that one first", message.values[0])};
        return Error::from_errno(static_cast<int>(message.status), "it does not serve this user");
    }
    if (message.verb != KeeperVerb::welcome) return corrupt("it does not begin with a welcome");
    const auto [version, count, capacity] = message.values;
    if (version != keeper_version)
        return Error{
            Errc::unsupported,
            fmt::format("process {} speaks version {}, this program version {}: use the program that "
                        "started it, or end it (what it holds is lost)",
                        process_, version, keeper_version)};
    if (count > max_kept_fds || capacity > max_kept_fds)
        return corrupt(fmt::format("it says that it holds {} of {}", count, capacity));
    count_announced_ = count;
    capacity_ = capacity;
    return {};
}

Result<void> KeeperLink::take_over(std::vector<KeptFd>& kept, const Deadline& deadline) {
    GM_TRY(greet(GM_TRY(receive(deadline))));
    kept.reserve(count_announced_);
    for (;;) {
        GM_TRY(send({.verb = KeeperVerb::next}, {}, deadline));
        Incoming batch = GM_TRY(receive(deadline));
        if (batch.message.verb != KeeperVerb::holding) return corrupt("it answers with another verb");
        if (batch.message.keys.empty()) break;
        for (std::size_t i = 0; i < batch.fds.size(); ++i) {
            const KeptKey& key = batch.message.keys[i];
            if (!keys_.insert(key).second) return corrupt(fmt::format("it gives {} twice", to_name(key)));
            kept.push_back({.key = key, .fd = std::move(batch.fds[i])});
        }
        if (kept.size() > count_announced_) return corrupt("it gives more than it said");
    }
    if (kept.size() != count_announced_)
        return corrupt(fmt::format("it gave {} descriptors of {}", kept.size(), count_announced_));
    return {};
}

Result<void> KeeperLink::send(const KeeperMessage& message, std::span<const FdView> fds,
                              const Deadline& deadline) const {
    const std::vector<std::byte> packet = encode(message);
    for (;;) {
        const auto sent = stream_.send(packet, fds);
        if (!sent) return stream_.is_hung_up() ? ended() : sent.error();
        if (*sent == SendStatus::sent) return {};
        if (deadline.has_passed()) return late();
        if (*sent == SendStatus::too_many_in_flight) {
            std::this_thread::sleep_for(retry_time);
        } else {
            GM_TRY(wait_writable(stream_.view(), deadline));
        }
    }
}

Result<KeeperLink::Incoming> KeeperLink::receive(const Deadline& deadline) {
    std::array<std::byte, max_keeper_message_bytes + 1> buffer{};
    if (!GM_TRY(wait_readable(stream_.view(), deadline))) return late();
    auto received = stream_.receive(buffer);
    if (!received) return stream_.is_hung_up() ? ended() : std::move(received).error();
    if (!*received) return late();
    ReceivedPacket packet = std::move(**received);
    if (packet.count_bytes == 0) return ended();
    if (packet.has_lost_fds)
        return Error{Errc::exhausted, EMFILE,
                     fmt::format("{} gives more descriptors than this process can have: raise "
                                 "RLIMIT_NOFILE, which is {}",
                                 describe(), descriptor_limit())};
    if (packet.is_cut) return corrupt("a message is too long");
    Incoming incoming{.message = GM_TRY(decode_keeper_message(std::span{buffer}.first(packet.count_bytes))),
                      .fds = std::move(packet.fds)};
    const std::size_t count_wanted = incoming.message.has_fds() ? incoming.message.keys.size() : 0;
    if (incoming.fds.size() != count_wanted)
        return corrupt(fmt::format("{} descriptors with {} keys", incoming.fds.size(), count_wanted));
    return incoming;
}

Result<void> KeeperLink::ask(KeeperMessage message, std::span<const FdView> fds) {
    const Deadline deadline{patience_};
    // 0 wants no answer; four billion calls later the numbers begin again.
    last_number_ = std::max<std::uint32_t>(last_number_ + 1, 1);
    message.number = last_number_;
    GM_TRY(send(message, fds, deadline));
    for (;;) {
        const Incoming answer = GM_TRY(receive(deadline));
        if (answer.message.verb != KeeperVerb::done) return corrupt("an answer has another verb");
        // One that came too late for its call tells of that call's descriptors.
        if (answer.message.status != 0)
            return Error::from_errno(static_cast<int>(answer.message.status),
                                     fmt::format("{} could not keep a descriptor", describe()));
        if (answer.message.number == last_number_) return {};
    }
}

Result<void> KeeperLink::check_room(std::span<const KeepRequest> requests) const {
    if (keys_.size() + requests.size() <= capacity_) return {};
    std::set<KeptKey> others;
    for (const KeepRequest& request : requests)
        if (!keys_.contains(request.key)) others.insert(request.key);
    if (keys_.size() + others.size() <= capacity_) return {};
    return Error{Errc::exhausted, ENOSPC,
                 fmt::format("{} holds {} descriptors of at most {}; {} more do not fit", describe(),
                             keys_.size(), capacity_, others.size())};
}

Result<void> KeeperLink::keep(std::span<const KeepRequest> requests) {
    GM_TRY(check_room(requests));
    const bool is_single = requests.size() == 1;
    while (!requests.empty()) {
        const auto part = requests.first(std::min(requests.size(), max_keys_per_message));
        KeeperMessage message{.verb = KeeperVerb::keep};
        std::vector<FdView> fds;
        for (const KeepRequest& request : part) {
            message.keys.push_back(request.key);
            fds.push_back(request.fd);
        }
        if (is_single) {
            GM_TRY(send(message, fds, Deadline{patience_}));
        } else {
            GM_TRY(ask(message, fds));
        }
        keys_.insert(message.keys.begin(), message.keys.end());
        requests = requests.subspan(part.size());
    }
    return {};
}

Result<void> KeeperLink::forget(std::span<const KeptKey> keys) {
    while (!keys.empty()) {
        const auto part = keys.first(std::min(keys.size(), max_keys_per_message));
        GM_TRY(
            send({.verb = KeeperVerb::forget, .keys = {part.begin(), part.end()}}, {}, Deadline{patience_}));
        for (const KeptKey& key : part) keys_.erase(key);
        keys = keys.subspan(part.size());
    }
    return {};
}

Result<void> KeeperLink::sync() { return ask({.verb = KeeperVerb::sync}, {}); }

Result<void> KeeperLink::end() {
    auto answer = ask({.verb = KeeperVerb::end}, {});
    // One that has ended by itself holds nothing either.
    if (!answer && answer.error().code() == Errc::unavailable) return {};
    if (answer) keys_.clear();
    return answer;
}

Error KeeperLink::late() const {
    return Error{
        Errc::timed_out, ETIMEDOUT,
        fmt::format("{} has not answered within {} ms; is it stopped?", describe(), patience_.count())};
}

Error KeeperLink::ended() const {
    return Error{Errc::unavailable, EPIPE, fmt::format("{} has ended the connection", describe())};
}

}  // namespace guestmem::share

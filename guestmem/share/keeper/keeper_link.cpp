// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_link.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <thread>
#include <utility>

#include "guestmem/share/keeper/keeper_process.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

constexpr std::chrono::milliseconds retry_time{5};
constexpr std::chrono::milliseconds join_retry_time{2};
/// The keeper takes a descriptor out of flight within this time, unless it is others' that are many.
constexpr std::chrono::milliseconds in_flight_patience{20};
/// Messages with descriptors that may be under way in a join: the keeper fills one while the other is taken.
constexpr std::size_t messages_ahead = 2;

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
    std::unique_ptr<KeeperLink> link{new KeeperLink{std::move(stream), std::move(hangup), who.pid, options}};
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
    std::size_t count_awaited = 0;
    for (;;) {
        // Ahead only of what comes for certain: a question behind the last answer would end the connection.
        while (count_awaited == 0 ||
               (count_awaited < messages_ahead &&
                kept.size() + count_awaited * max_keys_per_message < count_announced_)) {
            GM_TRY(send({.verb = KeeperVerb::next}, {}, deadline));
            ++count_awaited;
        }
        Incoming batch = GM_TRY(receive(deadline));
        --count_awaited;
        if (batch.message.verb != KeeperVerb::holding) return corrupt("it answers with another verb");
        if (batch.message.keys.empty()) break;
        for (std::size_t i = 0; i < batch.fds.size(); ++i) {
            const KeptKey& key = batch.message.keys[i];
            const std::size_t count_before = keys_.size();
            // They come in order.
            keys_.emplace_hint(keys_.end(), key, Since::join);
            if (keys_.size() == count_before) return corrupt(fmt::format("it gives {} twice", to_name(key)));
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
    const Deadline in_flight{in_flight_patience};
    for (;;) {
        const auto sent = stream_.send(packet, fds);
        if (!sent) return stream_.is_hung_up() ? ended() : sent.error();
        if (*sent == SendStatus::sent) return {};
        if (deadline.has_passed()) return late();
        if (*sent == SendStatus::would_block) {
            GM_TRY(wait_writable(stream_.view(), deadline));
        } else if (in_flight.has_passed()) {
            return Error{Errc::timed_out, ETOOMANYREFS,
                         fmt::format("too many descriptors of this user are under way (RLIMIT_NOFILE is {}): "
                                     "{} gets more when others have been read",
                                     descriptor_limit(), describe())};
        } else {
            std::this_thread::sleep_for(retry_time);
        }
    }
}

Result<KeeperLink::Incoming> KeeperLink::receive(const Deadline& deadline) {
    // What waits already is not asked for.
    auto incoming = GM_TRY(receive_now());
    if (incoming) return std::move(*incoming);
    if (!GM_TRY(wait_readable(stream_.view(), deadline))) return late();
    incoming = GM_TRY(receive_now());
    if (!incoming) return late();
    return std::move(*incoming);
}

Result<std::optional<KeeperLink::Incoming>> KeeperLink::receive_now() {
    std::array<std::byte, max_keeper_message_bytes + 1> buffer;
    auto received = stream_.receive(buffer);
    if (!received) return stream_.is_hung_up() ? ended() : std::move(received).error();
    if (!*received) return std::optional<Incoming>{};
    ReceivedPacket packet = std::move(**received);
    if (packet.count_bytes == 0) return ended();
    if (packet.has_lost_fds)
        return Error{Errc::exhausted, EMFILE,
                     fmt::format("{} gives more descriptors than this process can have: raise "
                                 "RLIMIT_NOFILE, which is {}",
                                 describe(), descriptor_limit())};
    if (packet.is_cut) return corrupt("a message is too long");
    KeeperMessage message = GM_TRY(decode_keeper_message(std::span{buffer}.first(packet.count_bytes)));
    const std::size_t count_wanted = message.has_fds() ? message.keys.size() : 0;
    if (packet.fds.size() != count_wanted)
        return corrupt(fmt::format("{} descriptors with {} keys", packet.fds.size(), count_wanted));
    return std::optional{Incoming{.message = std::move(message), .fds = std::move(packet.fds)}};
}

/// 0 wants no answer; four billion calls later the numbers begin again.
std::uint32_t KeeperLink::take_number() {
    last_number_ = std::max<std::uint32_t>(last_number_ + 1, 1);
    return last_number_;
}

Result<std::uint32_t> KeeperLink::read_answer(const Incoming& incoming) {
    const KeeperMessage& message = incoming.message;
    if (message.verb != KeeperVerb::done) return corrupt("an answer has another verb");
    // Whoever reads it: a call may come between the question and the look for its answer.
    if (probe_ != 0 && message.number == probe_) {
        probe_ = 0;
        is_probed_ = true;
    }
    // One that came too late for its call tells of that call's descriptors.
    if (message.status != 0)
        return Error::from_errno(static_cast<int>(message.status),
                                 fmt::format("{} could not keep a descriptor", describe()));
    return message.number;
}

Result<void> KeeperLink::ask(KeeperMessage message, std::span<const FdView> fds, const Deadline& deadline) {
    message.number = take_number();
    GM_TRY(send(message, fds, deadline));
    for (;;) {
        const Incoming answer = GM_TRY(receive(deadline));
        if (GM_TRY(read_answer(answer)) == message.number) return {};
    }
}

Result<bool> KeeperLink::is_answering() {
    if (std::exchange(is_probed_, false)) return true;
    if (probe_ == 0) {
        const KeeperMessage question{.verb = KeeperVerb::sync, .number = take_number()};
        const auto sent = stream_.send(encode(question));
        if (!sent) return stream_.is_hung_up() ? ended() : sent.error();
        if (*sent != SendStatus::sent) return false;
        probe_ = question.number;
    }
    while (probe_ != 0) {
        const auto incoming = GM_TRY(receive_now());
        if (!incoming) return false;
        static_cast<void>(GM_TRY(read_answer(*incoming)));
    }
    is_probed_ = false;
    return true;
}

Result<void> KeeperLink::check_room(std::size_t count) const {
    if (keys_.size() + count <= capacity_) return {};
    return Error{Errc::exhausted, ENOSPC,
                 fmt::format("{} holds {} descriptors of at most {}; {} more do not fit: raise the hard "
                             "RLIMIT_NOFILE that it is started with, or serve fewer slots and vectors",
                             describe(), keys_.size(), capacity_, count)};
}

Result<void> KeeperLink::keep(std::span<const KeepRequest> requests) {
    if (keys_.size() + requests.size() > capacity_) {
        std::set<KeptKey> others;
        for (const KeepRequest& request : requests)
            if (!keys_.contains(request.key)) others.insert(request.key);
        GM_TRY(check_room(others.size()));
    }
    const Deadline deadline{call_patience_};
    while (!requests.empty()) {
        const auto part = requests.first(std::min(requests.size(), max_keys_per_message));
        requests = requests.subspan(part.size());
        KeeperMessage message{.verb = KeeperVerb::keep};
        std::vector<FdView> fds;
        for (const KeepRequest& request : part) {
            message.keys.push_back(request.key);
            fds.push_back(request.fd);
        }
        // It may have them when the answer is late.
        for (const KeptKey& key : message.keys) keys_.insert_or_assign(key, Since::keep);
        if (requests.empty()) {
            GM_TRY(send(message, fds, deadline));
        } else {
            GM_TRY(ask(message, fds, deadline));
        }
    }
    return {};
}

Result<void> KeeperLink::forget(std::span<const KeptKey> keys) {
    const Deadline deadline{call_patience_};
    while (!keys.empty()) {
        const auto part = keys.first(std::min(keys.size(), max_keys_per_message));
        GM_TRY(send({.verb = KeeperVerb::forget, .keys = {part.begin(), part.end()}}, {}, deadline));
        for (const KeptKey& key : part) keys_.erase(key);
        keys = keys.subspan(part.size());
    }
    return {};
}

Result<void> KeeperLink::forget_rest() {
    std::vector<KeptKey> rest;
    for (const auto& [key, since] : keys_)
        if (since == Since::join) rest.push_back(key);
    return forget(rest);
}

Result<void> KeeperLink::sync() { return ask({.verb = KeeperVerb::sync}, {}, Deadline{patience_}); }

Result<void> KeeperLink::sync_soon() { return ask({.verb = KeeperVerb::sync}, {}, Deadline{call_patience_}); }

Result<void> KeeperLink::end() {
    auto answer = ask({.verb = KeeperVerb::end}, {}, Deadline{patience_});
    // One that has ended by itself holds nothing either.
    if (!answer && answer.error().code() == Errc::unavailable) return {};
    if (answer) keys_.clear();
    return answer;
}

Error KeeperLink::late() const {
    return Error{Errc::timed_out, ETIMEDOUT,
                 fmt::format("{} does not answer in time; is it stopped?", describe())};
}

Error KeeperLink::ended() const {
    return Error{Errc::unavailable, EPIPE, fmt::format("{} has ended the connection", describe())};
}

}  // namespace guestmem::share

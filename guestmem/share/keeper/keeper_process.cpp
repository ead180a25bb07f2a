// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_process.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "guestmem/share/keeper/keeper_wire.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/detached_process.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/privileges.hpp"
#include "guestmem/sys/signal_fd.hpp"

namespace guestmem::share {
namespace {

/// A service that sends without a pause does not keep others from being told that it is there.
constexpr int packets_per_turn = 64;
/// The kernel tells of a dead service's unread answers by one error before the packets that still wait.
constexpr int max_errors_in_a_row = 16;
/// What the kernel does not take at once (descriptors in flight, a full queue) is tried again.
constexpr std::chrono::milliseconds retry_time{5};
/// Own descriptors, and those of a message that has arrived and is not in the table.
constexpr std::uint64_t spare_descriptors = 64 + 256;

std::size_t affordable(std::size_t wanted) {
    const std::uint64_t limit = descriptor_limit();
    const std::uint64_t room = std::max(limit / 2, limit - std::min(limit, spare_descriptors));
    return static_cast<std::size_t>(std::min<std::uint64_t>(wanted, room));
}

class KeeperServer {
public:
    KeeperServer(SeqpacketListener listener, const KeeperProcessOptions& options, FdView stop)
        : options_(options),
          stop_(stop),
          table_(affordable(options.capacity)),
          listener_(std::move(listener)) {}

    void run();

private:
    struct Served {
        SeqpacketStream stream;
        std::int32_t process;
        KeeperSession session;
        Deadline deadline;
        KeeperReply unsent = {};
        bool is_deaf = false;  ///< nothing can be sent; what it has sent is still taken
        int count_errors = 0;
    };
    enum class Turn : std::uint8_t { more, idle, over };

    [[nodiscard]] int wait_time_ms() const;
    void accept_one();
    void welcome(SeqpacketStream stream, std::int32_t process);
    void serve();
    [[nodiscard]] Turn take_one();
    [[nodiscard]] Turn act_on(ReceivedPacket packet);
    void flush();
    void check_patience();
    [[nodiscard]] bool may_serve(std::uint32_t user) const;

    const KeeperProcessOptions& options_;
    FdView stop_;
    KeptTable table_;
    SeqpacketListener listener_;
    std::optional<Served> served_;
    std::array<std::byte, max_keeper_message_bytes + 1> buffer_{};
    bool is_ended_ = false;
};

void KeeperServer::run() {
    while (!is_ended_) {
        const std::array<FdView, 3> fds{stop_, listener_.view(), served_ ? served_->stream.view() : FdView{}};
        const auto ready = poll_readable(fds, wait_time_ms());
        if (!ready) {
            // The kernel is short of memory. To end would lose everything.
            std::this_thread::sleep_for(retry_time);
            continue;
        }
        if (std::ranges::find(*ready, std::size_t{0}) != ready->end()) return;
        serve();
        if (!is_ended_ && std::ranges::find(*ready, std::size_t{1}) != ready->end()) accept_one();
    }
}

int KeeperServer::wait_time_ms() const {
    if (!served_) return -1;
    if (served_->unsent.message) return static_cast<int>(retry_time.count());
    if (served_->session.is_handed_over()) return -1;
    return static_cast<int>(std::min<std::int64_t>(served_->deadline.left().count(), 60'000));
}

bool KeeperServer::may_serve(std::uint32_t user) const {
    return user == 0 || user == own_user() || std::ranges::find(options_.users, user) != options_.users.end();
}

void KeeperServer::accept_one() {
    auto accepted = listener_.accept();
    if (!accepted) {
        std::this_thread::sleep_for(retry_time);  // it waits on, and so would poll not
        return;
    }
    if (!*accepted) return;
    SeqpacketStream& stream = **accepted;
    const auto who = stream.peer();
    if (!who) return;
    // The dead one's last words come before its successor's first.
    while (served_ && served_->stream.is_hung_up()) serve();
    if (is_ended_) return;
    if (may_serve(who->uid) && !served_) {
        welcome(std::move(stream), who->pid);
        return;
    }
    KeeperMessage refusal{.verb = KeeperVerb::refused, .status = EACCES};
    if (may_serve(who->uid)) {
        refusal.status = EBUSY;
        refusal.values[0] = static_cast<std::uint32_t>(served_->process);
    }
    static_cast<void>(stream.send(encode(refusal)).has_value());
}

void KeeperServer::welcome(SeqpacketStream stream, std::int32_t process) {
    served_.emplace(Served{.stream = std::move(stream),
                           .process = process,
                           .session = KeeperSession{table_},
                           .deadline = Deadline{options_.patience}});
    served_->unsent.message = served_->session.welcome();
    flush();
}

void KeeperServer::serve() {
    for (int count = 0; served_ && !is_ended_ && count < packets_per_turn; ++count) {
        if (served_->unsent.message) flush();
        if (served_->unsent.message) break;
        const Turn turn = take_one();
        if (turn == Turn::over) served_.reset();
        if (turn == Turn::idle) break;
    }
    check_patience();
}

/// One packet; idle when none waits.
KeeperServer::Turn KeeperServer::take_one() {
    auto received = served_->stream.receive(buffer_);
    if (!received) return ++served_->count_errors < max_errors_in_a_row ? Turn::more : Turn::over;
    served_->count_errors = 0;
    if (!*received) return Turn::idle;
    return act_on(std::move(**received));
}

KeeperServer::Turn KeeperServer::act_on(ReceivedPacket packet) {
    if (packet.count_bytes == 0 || packet.is_cut) return Turn::over;
    const auto message = decode_keeper_message(std::span{buffer_}.first(packet.count_bytes));
    if (!message) return Turn::over;
    KeeperReply reply = served_->session.take(*message, std::move(packet.fds), packet.has_lost_fds);
    if (reply.is_over) return Turn::over;
    served_->deadline = Deadline{options_.patience};
    if (reply.is_end) {
        // First: who connects from here on finds nobody, and starts another.
        listener_ = SeqpacketListener{};
        is_ended_ = true;
    }
    if (reply.message && !served_->is_deaf) served_->unsent = std::move(reply);
    if (served_->unsent.message) flush();
    return Turn::more;
}

/// What cannot be sent, for whatever reason, is tried again until the service has gone, or patience is over.
void KeeperServer::flush() {
    const auto sent = served_->stream.send(encode(*served_->unsent.message), served_->unsent.fds);
    const bool is_sent = sent && *sent == SendStatus::sent;
    served_->is_deaf = !is_sent && served_->stream.is_hung_up();
    if (is_sent || served_->is_deaf) served_->unsent = {};
}

void KeeperServer::check_patience() {
    if (!served_ || !served_->deadline.has_passed()) return;
    if (served_->unsent.message || !served_->session.is_handed_over()) served_.reset();
}

}  // namespace

Result<void> run_keeper(SeqpacketListener listener, const KeeperProcessOptions& options, FdView stop) {
    KeeperServer{std::move(listener), options, stop}.run();
    return {};
}

Result<std::int32_t> start_keeper(const KeeperProcessOptions& options) {
    std::error_code failure;
    const std::string path = std::filesystem::absolute(options.path, failure).string();
    if (failure) return Error::from_errno(failure.value(), "keeper: the working folder");
    SeqpacketListener listener = GM_TRY_CONTEXT(SeqpacketListener::create(path), "keeper");
    const std::array kept{listener.view()};
    const auto live = [&](const std::function<void()>& announce_ready) {
        ignore_signals({SIGHUP});
        const auto stop = watch_signals({SIGTERM, SIGINT});
        raise_descriptor_limit();
        // What its starter still needs to make sockets is nothing to a keeper.
        if (options.drops_privileges && own_user() != 0 && !drop_privileges(std::to_string(own_user())))
            return 1;
        if (!stop || !listener.listen_as_this_process()) return 1;
        announce_ready();
        return run_keeper(std::move(listener), options, *stop) ? 0 : 1;
    };
    const std::int32_t process = GM_TRY(start_detached({.name = "guestmem-keeper", .kept = kept}, live));
    listener.leave_file();
    return process;
}

}  // namespace guestmem::share

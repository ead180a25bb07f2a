// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/reception.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

/// What one socket may hold unread: the kernel doubles the number and counts about 800 bytes for a message with
/// a descriptor, which makes this some ten descriptors in flight for a client that does not read.
constexpr int send_buffer_bytes = 4096;
/// As many as the kernel keeps waiting for us.
constexpr int accept_backlog = 128;
/// Beyond the slots: those that are being refused.
constexpr std::size_t spare_connections_per_door = 8;

/// On whose account a connection is buried: of its door, or of a tool's user.
std::string party_of(const std::string& door, std::uint32_t uid) {
    return door.empty() ? fmt::format("uid {}", uid) : door;
}

std::string errno_name(int os_error) {
    const char* const name = ::strerrorname_np(os_error);
    return name == nullptr ? std::to_string(os_error) : name;
}

}  // namespace

Result<std::unique_ptr<Reception>> Reception::create(ReceptionHost host) {
    std::unique_ptr<Reception> reception{new Reception{std::move(host)}};
    reception->undertaker_ = GM_TRY(Undertaker::create(reception->host_.loop));
    reception->reserve_ = GM_TRY(open_file("/dev/null", OpenMode::read));
    reception->is_exempt_ = is_exempt_from_inflight_limit();
    return reception;
}

Reception::Door* Reception::find(std::string_view path) {
    const auto found =
        std::ranges::find_if(doors_, [&](const Door& door) { return door.config.socket.path == path; });
    return found == doors_.end() ? nullptr : &*found;
}

bool Reception::has_door(std::string_view path) const {
    return std::ranges::any_of(doors_, [&](const Door& door) { return door.config.socket.path == path; });
}

std::size_t Reception::max_connections(const Door& door) const {
    return (door.config.slots.empty() ? host_.slots_of(door.config.share) : door.config.slots.size()) +
           spare_connections_per_door;
}

Result<void> Reception::open(const DoorConfig& config, std::optional<InheritedListener> inherited) {
    Door& door = doors_.emplace_back();
    door.config = config;
    const auto fill = [&]() -> Result<void> {
        if (inherited) {
            door.listener = std::move(inherited->listener);
            door.key = inherited->key;
            // Who may open a socket of socket activation is its unit's business.
            if (door.listener.is_owner()) GM_TRY(door.listener.set_access(config.socket));
        } else {
            door.listener = GM_TRY(UnixListener::create(config.socket));
            door.key = take_listener_key();
            host_.legacy.keep(*door.key, door.listener.view(), host_.loop.now_ms());
        }
        return listen(door);
    };
    auto filled = fill();
    if (!filled) {
        if (door.key) host_.legacy.forget(*door.key, host_.loop.now_ms());
        doors_.pop_back();
    }
    return filled;
}

Result<void> Reception::listen(Door& door) {
    door.accepting = GM_TRY(host_.loop.add_io(
        door.listener.view(), IoEvents::readable, [this, &door](IoEvents) { accept(door); }, Turn::late));
    return {};
}

Result<void> Reception::change(const DoorConfig& config) {
    Door* const door = find(config.socket.path);
    if (door == nullptr)
        return Error{Errc::not_found, fmt::format("socket {} is not open", config.socket.path)};
    if (door->listener.is_owner()) GM_TRY(door->listener.set_access(config.socket));
    door->config = config;
    return {};
}

void Reception::close(std::string_view path) {
    Door* const door = find(path);
    if (door == nullptr) return;
    door->accepting = EventSource{};
    dismiss_waiting(*door);
    if (door->key) host_.legacy.forget(*door->key, host_.loop.now_ms());
    doors_.remove_if([&](const Door& candidate) { return &candidate == door; });
}

/// One connection a turn, late: a client that closed before another one connected has left before it is admitted.
void Reception::accept(Door& door) {
    if (!undertaker_->has_room(door.config.socket.path)) {
        // Too many that came through it wait to be closed; the tick opens it again.
        door.accepting = EventSource{};
        return host_.on_work_left();
    }
    auto stream = door.listener.accept();
    if (!stream) return handle_accept_failure(door, stream.error());
    if (*stream) greet(door, std::move(**stream));
}

void Reception::handle_accept_failure(Door& door, const Error& error) {
    // Who does not read gives up what it holds before a newcomer is refused; the listener is still ready.
    const bool is_exhausted = error.code() == Errc::exhausted;
    if (is_exhausted && host_.shed_slowest()) return;
    say(LogLevel::error, fmt::format("{}; the newcomer is refused", error.message()));
    if (is_exhausted) {
        reserve_.reset();
        auto stream = door.listener.accept();
        if (stream && *stream) {
            dismiss(**stream, error.os_error());
            undertaker_->bury(std::move(**stream), door.config.socket.path);
        }
        auto reserve = open_file("/dev/null", OpenMode::read);
        if (reserve) {
            reserve_ = std::move(*reserve);
            return;
        }
    }
    // Nothing more can be done: look again at the next tick instead of spinning on a ready listener.
    door.accepting = EventSource{};
    host_.on_work_left();
}

Result<void> Reception::check_user(std::uint32_t uid) const {
    const auto found = connections_of_user_.find(uid);
    const std::uint32_t count = found == connections_of_user_.end() ? 0 : found->second;
    if (count < host_.limits.connections_per_uid) return {};
    return Error{Errc::exhausted, EUSERS,
                 fmt::format("uid {} has {} connections, and may have {}", uid, count,
                             host_.limits.connections_per_uid)};
}

void Reception::greet(Door& door, UnixStream stream) {
    const auto who = stream.peer();
    if (!who) {
        say(LogLevel::error, who.error().message());
        dismiss(stream, EIO);
        undertaker_->bury(std::move(stream), door.config.socket.path);
        return;
    }
    Entrant entrant{.stream = std::move(stream),
                    .who = *who,
                    .vm = door.config.vm,
                    .door = door.config.socket.path,
                    .wish = door.config.slots.empty() ? Wish::lowest : Wish::own,
                    .own_slots = door.config.slots};
    Result<void> has_room = check_user(who->uid);
    if (has_room && door.count_connections >= max_connections(door))
        has_room = Error{
            Errc::exhausted, EUSERS,
            fmt::format("{} has {} connections already", door.config.socket.path, door.count_connections)};
    if (has_room) has_room = host_.legacy.check_room(1);
    if (!has_room) {
        say(LogLevel::warning, fmt::format("share '{}': refused {}: {}", door.config.share, entrant.to_text(),
                                           has_room.error().message()));
        dismiss(entrant.stream, has_room.error().os_error());
        undertaker_->bury(std::move(entrant.stream), door.config.socket.path);
        return;
    }
    count(entrant);
    if (auto status = entrant.stream.set_send_buffer(send_buffer_bytes); !status) {
        say(LogLevel::error, status.error().message());
        dismiss(entrant.stream, EIO);
        return release(std::move(entrant));
    }
    enter_in_journal(entrant);
    auto admitted = host_.admit(door.config, entrant);
    if (admitted) return;
    const Error& error = admitted.error();
    refuse(std::move(entrant), error.os_error() != 0 ? error.os_error() : EIO, error.message());
}

void Reception::greet_again(Entrant entrant) {
    Door* const door = find(entrant.door);
    if (door == nullptr) return refuse(std::move(entrant), ESHUTDOWN, "its socket is not served any more");
    // The configuration may have given the door to another VM.
    entrant.vm = door->config.vm;
    if (entrant.record != nullptr) entrant.record->vm.set(entrant.vm);
    entrant.wish = door->config.slots.empty() ? Wish::lowest : Wish::own;
    entrant.own_slots = door->config.slots;
    auto admitted = host_.admit(door->config, entrant);
    if (admitted) return;
    const Error& error = admitted.error();
    refuse(std::move(entrant), error.os_error() != 0 ? error.os_error() : EIO, error.message());
}

Result<void> Reception::enter(Entrant& entrant) {
    GM_TRY(check_user(entrant.who.uid));
    GM_TRY(host_.legacy.check_room(entrant.bell ? 2 : 1));
    if (!undertaker_->has_room(party_of(entrant.door, entrant.who.uid)))
        return Error{
            Errc::exhausted, EUSERS,
            fmt::format("connections of uid {} take long to close; try again later", entrant.who.uid)};
    GM_TRY(entrant.stream.set_send_buffer(send_buffer_bytes));
    count(entrant);
    enter_in_journal(entrant);
    return {};
}

void Reception::count(const Entrant& entrant) {
    if (Door* const door = find(entrant.door)) ++door->count_connections;
    ++connections_of_user_[entrant.who.uid];
}

/// The keeper has it before the journal says so, and both before the client hears anything.
void Reception::enter_in_journal(Entrant& entrant) {
    ConnectionRecord* const record = host_.legacy.journal().add_connection();
    if (record == nullptr) {
        say(LogLevel::warning,
            fmt::format("{}: the journal is full: it would not survive this process", entrant.to_text()));
        return;
    }
    record->pid = entrant.who.pid;
    record->uid = entrant.who.uid;
    record->gid = entrant.who.gid;
    record->is_tool = entrant.is_tool ? 1 : 0;
    record->has_bell = 0;
    record->vm.set(entrant.vm);
    record->door.set(entrant.door);
    entrant.record = record;
    entrant.number = record->number;
    host_.legacy.keep({KeptKind::connection, 0, record->number}, entrant.stream.view(), host_.loop.now_ms());
    record->stage.store(ConnectionStage::greeted);
}

/// The version message with -errno, and no more waiting: for those beyond the bounds.
void Reception::dismiss(const UnixStream& stream, int os_error) {
    const IvshmemMessage message = encode_ivshmem(-os_error);
    // Who is gone already needs no answer.
    static_cast<void>(stream.send(message).has_value());
}

void Reception::refuse(Entrant entrant, int os_error, std::string_view why) {
    const Door* const door = find(entrant.door);
    say(LogLevel::warning,
        fmt::format("share '{}': refused {} at {}: {} ({})", door == nullptr ? "" : door->config.share,
                    entrant.to_text(), entrant.door, why, errno_name(os_error)));
    // What was told no is not asked again by the next instance.
    if (entrant.record != nullptr) host_.legacy.journal().remove(*entrant.record);
    entrant.record = nullptr;
    dismiss(entrant.stream, os_error);
    if (host_.limits.refusals_held == 0) return release(std::move(entrant));
    if (refusals_.size() >= host_.limits.refusals_held) end_refusal(refusals_.front());
    Refusal& refusal = refusals_.emplace_back();
    refusal.entrant = std::move(entrant);
    refusal.until_ms = host_.loop.now_ms() + host_.limits.refusal_hold_ms;
    auto source = host_.loop.add_io(refusal.entrant.stream.view(), IoEvents::readable,
                                    [this, &refusal](IoEvents) { serve_refusal(refusal); });
    if (!source) return end_refusal(refusal);
    refusal.source = std::move(*source);
    host_.on_work_left();
}

/// A refused client is waited for until it closes. One that sends something instead is not waited for: it has its
/// answer.
void Reception::serve_refusal(Refusal& refusal) {
    std::array<std::byte, 1> buffer;
    const auto seen = refusal.entrant.stream.peek(buffer);
    if (seen && !*seen) return;
    end_refusal(refusal);
}

void Reception::end_refusal(Refusal& refusal) {
    Entrant entrant = std::move(refusal.entrant);
    refusals_.remove_if([&](const Refusal& candidate) { return &candidate == &refusal; });
    release(std::move(entrant));
}

/// Closes a counted connection; it counts until it is closed. The keeper's descriptor of it goes first: the last one to
/// close a socket frees what is unread in it, and that may take as long as its sender likes.
void Reception::release(Entrant entrant) {
    const std::uint64_t now = host_.loop.now_ms();
    if (entrant.record != nullptr) host_.legacy.journal().remove(*entrant.record);
    if (entrant.number != 0 && host_.legacy.keeper() != nullptr) {
        entrant.stream.shut_down();
        std::array<KeptKey, 2> keys{KeptKey{KeptKind::connection, 0, entrant.number},
                                    KeptKey{KeptKind::bell, 0, entrant.number}};
        host_.legacy.forget(std::span{keys}.first(entrant.bell ? 2 : 1), now);
        std::array<std::byte, 1> buffer;
        const auto unread = entrant.stream.peek(buffer);
        if (unread && *unread && (*unread)->has_fds) host_.legacy.sync(now);
    }
    UnixStream stream = std::move(entrant.stream);
    undertaker_->bury(std::move(stream), party_of(entrant.door, entrant.who.uid),
                      [this, door = entrant.door, uid = entrant.who.uid] { forget(door, uid); });
}

/// A client that left with descriptors unread in its socket still weighs on this user's limit until it closes,
/// where that limit binds: its connection counts for so long, on its door and for its uid.
void Reception::depart(Entrant entrant) {
    const auto unread = entrant.stream.unread_by_peer();
    if (is_exempt_ || !unread || *unread == 0) return release(std::move(entrant));
    entrant.stream.shut_down();
    lingering_.push_back(std::move(entrant));
    host_.on_work_left();
}

void Reception::forget(const std::string& door_path, std::uint32_t uid) {
    if (Door* const door = find(door_path); door != nullptr && door->count_connections > 0)
        --door->count_connections;
    const auto user = connections_of_user_.find(uid);
    if (user != connections_of_user_.end() && --user->second == 0) connections_of_user_.erase(user);
}

bool Reception::tick(std::uint64_t now_ms) {
    while (!refusals_.empty() && now_ms >= refusals_.front().until_ms) end_refusal(refusals_.front());
    lingering_.remove_if([&](Entrant& entrant) {
        const auto unread = entrant.stream.unread_by_peer();
        if (unread && *unread != 0) return false;
        release(std::move(entrant));
        return true;
    });
    bool is_waiting = false;
    for (Door& door : doors_) {
        if (door.accepting.is_active()) continue;
        if (!reserve_.is_open())
            if (auto reserve = open_file("/dev/null", OpenMode::read)) reserve_ = std::move(*reserve);
        is_waiting = !listen(door) || is_waiting;
    }
    return is_waiting || !refusals_.empty() || !lingering_.empty();
}

/// Who has connected and was not accepted yet is told no: QEMU spins on a bare end in its handshake.
void Reception::dismiss_waiting(Door& door) {
    if (!door.listener.view().is_open()) return;
    for (int i = 0; i < accept_backlog; ++i) {
        auto stream = door.listener.accept();
        if (!stream || !*stream) break;
        dismiss(**stream, ESHUTDOWN);
        undertaker_->bury(std::move(**stream), door.config.socket.path);
    }
}

void Reception::close_all() {
    while (!doors_.empty()) close(doors_.front().config.socket.path);
}

void Reception::abandon() {
    for (Door& door : doors_) {
        door.accepting = EventSource{};
        door.listener.leave_file();
    }
}

void Reception::refill() {
    const std::uint64_t now = host_.loop.now_ms();
    for (const Door& door : doors_)
        if (door.key) host_.legacy.keep(*door.key, door.listener.view(), now);
}

}  // namespace guestmem::share

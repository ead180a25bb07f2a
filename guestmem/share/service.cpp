// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/service.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <map>
#include <optional>
#include <set>

#include "guestmem/control/server.hpp"
#include "guestmem/share/desk.hpp"
#include "guestmem/share/hall.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/undertaker.hpp"

namespace guestmem::share {
namespace {

constexpr std::uint64_t tick_ms = 50;
/// Lines a second about what peers do.
constexpr std::uint32_t log_burst = 50;
/// What one socket may hold unread: the kernel doubles the number and counts about 800 bytes for a message with
/// a descriptor, which makes this some ten descriptors in flight for a client that does not read.
constexpr int send_buffer_bytes = 4096;
constexpr std::uint64_t messages_in_flight = 11;
/// As many as the kernel keeps waiting for us.
constexpr int accept_backlog = 128;
/// Beyond the slots: those that are being refused.
constexpr std::size_t spare_connections_per_door = 8;
constexpr std::uint32_t spare_connections_per_uid = 64;
/// Standard streams, loop, timers, a few of our own and whatever libraries hold.
constexpr std::uint64_t spare_descriptors = 32;
/// What QEMU has open beside the doorbells, generously; and the soft limit that most programs start with.
constexpr std::uint64_t client_descriptors = 80;
constexpr std::uint64_t usual_descriptor_limit = 1024;

std::uint32_t count_slots(const ServiceConfig& config) {
    std::uint32_t count = 0;
    for (const ShareConfig& share : config.shares) count += share.slots;
    return count;
}

std::string errno_name(int os_error) {
    const char* const name = ::strerrorname_np(os_error);
    return name == nullptr ? std::to_string(os_error) : name;
}

struct Door {
    DoorConfig config;
    Hall* hall = nullptr;
    UnixListener listener;
    EventSource accepting;
    std::size_t count_connections = 0;

    [[nodiscard]] std::size_t max_connections() const {
        return (config.slots.empty() ? hall->share().config().slots : config.slots.size()) +
               spare_connections_per_door;
    }
};

/// A client that was told no, until it closes.
struct Refusal {
    Entrant entrant;
    std::uint64_t until_ms = 0;
    bool is_gone = false;
    EventSource source;
};

}  // namespace

std::uint64_t descriptors_needed(const ServiceConfig& config) {
    std::uint64_t count = spare_descriptors + control::max_connections + max_burials + config.doors.size() +
                          config.limits.refusals_held;
    for (const ShareConfig& share : config.shares)
        count += 1 + std::uint64_t{share.slots} * share.vectors + share.slots;
    return count;
}

class Service::State {
public:
    State(EventLoop& loop, Log& log, ServiceConfig config)
        : loop_(loop),
          log_(log),
          limiter_(log, log_burst),
          config_(std::move(config)),
          desk_(config_, halls_,
                [this](Hall& hall, Entrant entrant) { return admit_tool(hall, std::move(entrant)); }) {
        if (config_.limits.connections_per_uid == 0)
            config_.limits.connections_per_uid = count_slots(config_) + spare_connections_per_uid;
    }

    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    Result<void> start();
    [[nodiscard]] ServiceCounts counts() const;

private:
    Result<void> check_before_anything_is_touched() const;
    Result<void> check_descriptors() const;
    Result<void> open_door(const DoorConfig& config);
    void accept(Door& door);
    void greet(Door& door, UnixStream stream);
    void handle_accept_failure(Door& door, const Error& error);
    void refuse(Entrant entrant, int os_error, std::string_view why);
    void dismiss(const UnixStream& stream, int os_error);
    void serve_refusal(Refusal& refusal);
    void depart(Entrant entrant);
    void end_refusal(Refusal& refusal);
    void release(Entrant entrant);
    void forget(const std::string& door_path, std::uint32_t uid);
    [[nodiscard]] Result<void> check_user(std::uint32_t uid) const;
    [[nodiscard]] Result<std::uint32_t> admit_tool(Hall& hall, Entrant entrant);
    void wake_tick();
    void tick();
    void say(LogLevel level, std::string_view text) { limiter_.write(level, text, loop_.now_ms()); }

    EventLoop& loop_;
    Log& log_;
    LogLimiter limiter_;
    ServiceConfig config_;
    // Lists: handlers hold the addresses of their elements.
    std::list<Hall> halls_;
    std::optional<Ringer> ringer_;
    std::optional<Undertaker> undertaker_;
    Desk desk_;
    std::list<Door> doors_;
    std::list<Refusal> refusals_;
    std::list<Entrant> lingering_;
    std::map<std::uint32_t, std::uint32_t> connections_of_user_;
    /// Given up for a moment when descriptors run out, to tell a newcomer so.
    Fd reserve_;
    EventSource ticker_;
    bool is_ticking_ = false;
    /// No limit on descriptors in flight binds this process.
    bool is_exempt_ = is_exempt_from_inflight_limit();
    std::optional<control::Server> control_;
};

/// Who has connected and was not accepted yet is told no: QEMU spins on a bare end in its handshake.
Service::State::~State() {
    for (Door& door : doors_) {
        door.accepting = EventSource{};
        if (!door.listener.view().is_open()) continue;
        for (int i = 0; i < accept_backlog; ++i) {
            auto stream = door.listener.accept();
            if (!stream || !*stream) break;
            dismiss(**stream, ESHUTDOWN);
            undertaker_->bury(std::move(**stream));
        }
    }
}

Result<void> Service::State::check_before_anything_is_touched() const {
    std::set<std::string> paths{config_.control.socket.path};
    GM_TRY(check_socket_path(config_.control.socket.path));
    for (const DoorConfig& door : config_.doors) {
        if (!paths.insert(door.socket.path).second)
            return Error{
                Errc::invalid_argument,
                fmt::format("socket {}: two sockets of this service have this path; choose another for one",
                            door.socket.path)};
        GM_TRY(check_socket_path(door.socket.path));
    }
    return check_descriptors();
}

Result<void> Service::State::check_descriptors() const {
    const std::uint64_t needed = descriptors_needed(config_);
    const std::uint64_t limit = descriptor_limit();
    if (needed > limit)
        return Error{
            Errc::exhausted, EMFILE,
            fmt::format(
                "this configuration needs {} descriptors and the limit (RLIMIT_NOFILE) is {}: raise it "
                "with 'ulimit -n {}' or LimitNOFILE={}, or serve fewer slots and vectors",
                needed, limit, needed, needed)};
    for (const ShareConfig& share : config_.shares) {
        const std::uint64_t client_needs = std::uint64_t{share.slots} * share.vectors + client_descriptors;
        if (client_needs > usual_descriptor_limit)
            log_.write(LogLevel::warning,
                       fmt::format(
                           "share '{}': each client needs about {} descriptors, and most programs start with "
                           "{}: QEMU misreads what it cannot receive and may crash; start it with "
                           "'ulimit -n {}', or serve fewer slots and vectors",
                           share.name, client_needs, usual_descriptor_limit, client_needs));
    }
    const std::uint64_t in_flight = std::uint64_t{count_slots(config_)} * messages_in_flight;
    if (!is_exempt_ && in_flight > limit)
        log_.write(LogLevel::warning,
                   fmt::format(
                       "if all {} slots stopped reading at once, {} descriptors would be in flight, and this "
                       "user may have {} (RLIMIT_NOFILE): newcomers would wait until some are read",
                       count_slots(config_), in_flight, limit));
    return {};
}

Result<void> Service::State::start() {
    GM_TRY(check_before_anything_is_touched());
    ringer_ = GM_TRY(Ringer::create());
    undertaker_ = GM_TRY(Undertaker::create(loop_));
    for (const ShareConfig& share : config_.shares) {
        Share made = GM_TRY(Share::create(share));
        const auto owned = owned_slots(config_, share.name);
        halls_.emplace_back(HallHost{.loop = loop_,
                                     .log = limiter_,
                                     .limits = config_.limits,
                                     .ringer = *ringer_,
                                     .on_departed = [this](Entrant entrant) { depart(std::move(entrant)); },
                                     .on_work_left = [this] { wake_tick(); }},
                            std::move(made), owned);
    }
    reserve_ = GM_TRY(open_file("/dev/null", OpenMode::read));
    ticker_ = GM_TRY(loop_.add_timer(tick_ms, [this] { tick(); }));
    is_ticking_ = true;
    for (const DoorConfig& door : config_.doors) GM_TRY(open_door(door));
    control_ = GM_TRY(
        control::Server::create(loop_, {.socket = config_.control.socket},
                                [this](const PeerCredentials& caller, const control::Request& request) {
                                    return desk_.answer(caller, request);
                                }));
    return {};
}

Result<void> Service::State::open_door(const DoorConfig& config) {
    const auto hall = std::ranges::find_if(
        halls_, [&](const Hall& candidate) { return candidate.share().config().name == config.share; });
    if (hall == halls_.end())
        return Error{Errc::not_found,
                     fmt::format("socket {}: no share '{}'", config.socket.path, config.share)};
    Door& door = doors_.emplace_back();
    door.config = config;
    door.hall = &*hall;
    door.listener = GM_TRY(UnixListener::create(config.socket));
    door.accepting = GM_TRY(loop_.add_io(
        door.listener.view(), IoEvents::readable, [this, &door](IoEvents) { accept(door); }, Turn::late));
    return {};
}

/// One connection a turn, late: a client that closed before another one connected has left before it is admitted.
void Service::State::accept(Door& door) {
    if (undertaker_->is_full()) {
        // Too many closings wait already; the tick opens this door again.
        door.accepting = EventSource{};
        return wake_tick();
    }
    auto stream = door.listener.accept();
    if (!stream) return handle_accept_failure(door, stream.error());
    if (*stream) greet(door, std::move(**stream));
}

void Service::State::handle_accept_failure(Door& door, const Error& error) {
    // Who does not read gives up what it holds before a newcomer is refused; the listener is still ready.
    const bool is_exhausted = error.code() == Errc::exhausted;
    if (is_exhausted && std::ranges::any_of(halls_, [](Hall& hall) { return hall.shed_slowest(); })) return;
    say(LogLevel::error, fmt::format("{}; the newcomer is refused", error.message()));
    if (is_exhausted) {
        reserve_.reset();
        auto stream = door.listener.accept();
        if (stream && *stream) {
            dismiss(**stream, error.os_error());
            undertaker_->bury(std::move(**stream));
        }
        auto reserve = open_file("/dev/null", OpenMode::read);
        if (reserve) {
            reserve_ = std::move(*reserve);
            return;
        }
    }
    // Nothing more can be done now: look again at the next tick instead of spinning on a ready listener.
    door.accepting = EventSource{};
    wake_tick();
}

Result<void> Service::State::check_user(std::uint32_t uid) const {
    const auto found = connections_of_user_.find(uid);
    const std::uint32_t count = found == connections_of_user_.end() ? 0 : found->second;
    if (count < config_.limits.connections_per_uid) return {};
    return Error{Errc::exhausted, EUSERS,
                 fmt::format("uid {} has {} connections, and may have {}", uid, count,
                             config_.limits.connections_per_uid)};
}

void Service::State::greet(Door& door, UnixStream stream) {
    const auto who = stream.peer();
    if (!who) {
        say(LogLevel::error, who.error().message());
        dismiss(stream, EIO);
        return undertaker_->bury(std::move(stream));
    }
    Entrant entrant{.stream = std::move(stream),
                    .who = *who,
                    .vm = door.config.vm,
                    .door = door.config.socket.path,
                    .wish = door.config.slots.empty() ? Wish::lowest : Wish::own,
                    .own_slots = door.config.slots,
                    .is_tool = false};
    Result<void> has_room = check_user(who->uid);
    if (has_room && door.count_connections >= door.max_connections())
        has_room = Error{
            Errc::exhausted, EUSERS,
            fmt::format("{} has {} connections already", door.config.socket.path, door.count_connections)};
    if (!has_room) {
        say(LogLevel::warning, fmt::format("share '{}': refused {}: {}", door.config.share, entrant.to_text(),
                                           has_room.error().message()));
        dismiss(entrant.stream, EUSERS);
        return undertaker_->bury(std::move(entrant.stream));
    }
    ++door.count_connections;
    ++connections_of_user_[who->uid];
    if (auto status = entrant.stream.set_send_buffer(send_buffer_bytes); !status) {
        say(LogLevel::error, status.error().message());
        dismiss(entrant.stream, EIO);
        return release(std::move(entrant));
    }
    auto admitted = door.hall->admit(entrant);
    if (admitted) return;
    const Error& error = admitted.error();
    refuse(std::move(entrant), error.os_error() != 0 ? error.os_error() : EIO, error.message());
}

Result<std::uint32_t> Service::State::admit_tool(Hall& hall, Entrant entrant) {
    GM_TRY(check_user(entrant.who.uid));
    GM_TRY(entrant.stream.set_send_buffer(send_buffer_bytes));
    ++connections_of_user_[entrant.who.uid];
    auto admitted = hall.admit(entrant);
    // The stream is still the entrant's only when it was not admitted.
    if (!admitted) release(std::move(entrant));
    return admitted;
}

/// The version message with -errno, and no more waiting: for those beyond the bounds.
void Service::State::dismiss(const UnixStream& stream, int os_error) {
    const IvshmemMessage message = encode_ivshmem(-os_error);
    // Who is gone already needs no answer.
    static_cast<void>(stream.send(message).has_value());
}

void Service::State::refuse(Entrant entrant, int os_error, std::string_view why) {
    const std::string share = std::ranges::find(doors_, entrant.door, [](const Door& door) {
                                  return door.config.socket.path;
                              })->config.share;
    say(LogLevel::warning, fmt::format("share '{}': refused {} at {}: {} ({})", share, entrant.to_text(),
                                       entrant.door, why, errno_name(os_error)));
    dismiss(entrant.stream, os_error);
    if (config_.limits.refusals_held == 0) return release(std::move(entrant));
    if (refusals_.size() >= config_.limits.refusals_held) end_refusal(refusals_.front());
    Refusal& refusal = refusals_.emplace_back();
    refusal.entrant = std::move(entrant);
    refusal.until_ms = loop_.now_ms() + config_.limits.refusal_hold_ms;
    auto source = loop_.add_io(refusal.entrant.stream.view(), IoEvents::readable,
                               [this, &refusal](IoEvents) { serve_refusal(refusal); });
    if (!source) return end_refusal(refusal);
    refusal.source = std::move(*source);
    wake_tick();
}

/// A refused client is waited for until it closes. One that sends something instead is not waited for: it has its
/// answer.
void Service::State::serve_refusal(Refusal& refusal) {
    std::array<std::byte, 1> buffer;
    const auto seen = refusal.entrant.stream.peek(buffer);
    if (seen && !*seen) return;
    end_refusal(refusal);
}

void Service::State::end_refusal(Refusal& refusal) {
    Entrant entrant = std::move(refusal.entrant);
    refusals_.remove_if([&](const Refusal& candidate) { return &candidate == &refusal; });
    release(std::move(entrant));
}

/// Closes a counted connection; it counts until it is closed.
void Service::State::release(Entrant entrant) {
    UnixStream stream = std::move(entrant.stream);
    undertaker_->bury(std::move(stream),
                      [this, door = entrant.door, uid = entrant.who.uid] { forget(door, uid); });
}

/// A client that left with descriptors unread in its socket still weighs on this user's limit until it closes,
/// where that limit binds: its connection counts for so long, on its door and for its uid.
void Service::State::depart(Entrant entrant) {
    const auto unread = entrant.stream.unread_by_peer();
    if (is_exempt_ || !unread || *unread == 0) return release(std::move(entrant));
    entrant.stream.shut_down();
    lingering_.push_back(std::move(entrant));
    wake_tick();
}

void Service::State::forget(const std::string& door_path, std::uint32_t uid) {
    for (Door& door : doors_)
        if (door.config.socket.path == door_path) --door.count_connections;
    const auto user = connections_of_user_.find(uid);
    if (user != connections_of_user_.end() && --user->second == 0) connections_of_user_.erase(user);
}

void Service::State::wake_tick() {
    if (is_ticking_) return;
    is_ticking_ = ticker_.restart(tick_ms).has_value();
}

void Service::State::tick() {
    is_ticking_ = false;
    const std::uint64_t now = loop_.now_ms();
    bool is_waiting = false;
    for (Hall& hall : halls_) is_waiting = hall.tick(now) || is_waiting;

    while (!refusals_.empty() && now >= refusals_.front().until_ms) end_refusal(refusals_.front());
    lingering_.remove_if([&](Entrant& entrant) {
        const auto unread = entrant.stream.unread_by_peer();
        if (unread && *unread != 0) return false;
        release(std::move(entrant));
        return true;
    });
    for (Door& door : doors_) {
        if (door.accepting.is_active()) continue;
        if (!reserve_.is_open())
            if (auto reserve = open_file("/dev/null", OpenMode::read)) reserve_ = std::move(*reserve);
        auto source = loop_.add_io(
            door.listener.view(), IoEvents::readable, [this, &door](IoEvents) { accept(door); }, Turn::late);
        if (source) door.accepting = std::move(*source);
        is_waiting = is_waiting || !source;
    }
    if (is_waiting || !refusals_.empty() || !lingering_.empty()) wake_tick();
}

ServiceCounts Service::State::counts() const {
    ServiceCounts counts{.sessions = 0, .refusals = refusals_.size(), .lingering = lingering_.size()};
    for (const Hall& hall : halls_) counts.sessions += hall.peers().size();
    return counts;
}

Service::Service(std::unique_ptr<State> state) : state_(std::move(state)) {}
Service::Service(Service&&) noexcept = default;
Service& Service::operator=(Service&&) noexcept = default;
Service::~Service() = default;

ServiceCounts Service::counts() const { return state_->counts(); }

Result<Service> Service::create(EventLoop& loop, Log& log, ServiceConfig config) {
    auto state = std::make_unique<State>(loop, log, std::move(config));
    GM_TRY(state->start());
    return Service{std::move(state)};
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/service.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "guestmem/share/service_state.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

/// Lines a second about what peers do.
constexpr std::uint32_t log_burst = 50;
/// Unread messages with a descriptor of one client that does not read: see Reception.
constexpr std::uint64_t messages_in_flight = 11;
constexpr std::uint32_t spare_connections_per_uid = 64;
/// Standard streams, loop, timers, journal, keeper, a few of our own and whatever libraries hold.
constexpr std::uint64_t spare_descriptors = 36;
/// On a VM's own control socket.
constexpr std::size_t office_connections = 8;
/// What QEMU has open beside the doorbells, generously; and the soft limit that most programs start with.
constexpr std::uint64_t client_descriptors = 80;
constexpr std::uint64_t usual_descriptor_limit = 1024;

std::uint32_t count_slots(const ServiceConfig& config) {
    std::uint32_t count = 0;
    for (const ShareConfig& share : config.shares) count += share.slots;
    return count;
}

/// Messages that may wait for a peer of this VM beside its handshake.
std::uint32_t max_queued_of(const UsageLimits* limits) {
    if (limits == nullptr) return UINT32_MAX;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(limits->queued_messages, UINT32_MAX));
}

}  // namespace

void fill_in_limits(ServiceConfig& config) {
    if (config.limits.connections_per_uid == 0)
        config.limits.connections_per_uid = count_slots(config) + spare_connections_per_uid;
}

std::uint64_t descriptors_needed(const ServiceConfig& config) {
    std::uint64_t count = spare_descriptors + control::max_connections + max_burials +
                          2 * config.doors.size() + config.limits.refusals_held;
    for (const VmConfig& vm : config.vms)
        if (vm.socket) count += 1 + office_connections;
    for (const ShareConfig& share : config.shares) {
        // Memory and presence, each also read-only; the doorbells; for each slot a connection, a session's bell, and
        // its sender page.
        count += 4 + std::uint64_t{share.slots} * share.vectors + 2 * std::uint64_t{share.slots};
        if (share.ids == IdPolicy::stable && share.slots <= max_senders) count += 2 * share.slots;
        count += most_pair_bells(share);
    }
    return count;
}

/// A session's answer holds a slot, all others carry memory at most.
std::uint64_t descriptors_in_answers(const ServiceConfig& config) {
    constexpr std::uint64_t of_memory = 2;  // memory, presence
    std::uint64_t of_session = 3;           // stream, presence, bell
    std::uint64_t connections = control::max_connections;
    for (const VmConfig& vm : config.vms)
        if (vm.socket) connections += office_connections;
    std::uint64_t senders = 0;
    for (const ShareConfig& share : config.shares)
        if (share.ids == IdPolicy::stable && share.slots <= max_senders)
            senders = std::max<std::uint64_t>(senders, share.slots);
    of_session += senders;
    const std::uint64_t sessions = std::min<std::uint64_t>(connections, count_slots(config));
    return sessions * of_session + (connections - sessions) * of_memory;
}

Service::State::State(EventLoop& loop, Log& log, ServiceConfig config, ServiceOptions options)
    : loop_(loop),
      log_(log),
      limiter_(log, log_burst),
      config_(std::move(config)),
      options_(std::move(options)),
      policy_(config_) {
    fill_in_limits(config_);
}

Service::State::~State() {
    if (!reception_ || !registry_) return;
    // A start that failed leaves what an earlier instance left.
    if (!is_started_ && legacy_->journal().generation() > 1) abandon();
    if (is_retired_) return;
    reception_->close_all();
    offices_.clear();
    registry_->remove_names();
    if (legacy_->keeper() != nullptr)
        if (auto ended = legacy_->keeper()->end(); !ended) say(LogLevel::error, ended.error().message());
}

Result<void> Service::State::check_before_anything_is_touched() const {
    std::set<std::string> known;
    for (const NamedSocket& socket : options_.inheritance.activated)
        if (auto path = listening_path(socket.fd)) known.insert(*path);
    for (const KeptFd& kept : options_.inheritance.kept)
        if (kept.key.kind == KeptKind::listener)
            if (auto path = listening_path(kept.fd)) known.insert(*path);
    std::set<std::string> paths;
    const auto check = [&](const std::string& path) -> Result<void> {
        if (!paths.insert(path).second)
            return Error{
                Errc::invalid_argument,
                fmt::format("socket {}: two sockets of this service have this path; choose another for one",
                            path)};
        if (known.contains(path)) return {};
        return check_socket_path(path);
    };
    GM_TRY(check(config_.control.socket.path));
    for (const DoorConfig& door : config_.doors) GM_TRY(check(door.socket.path));
    for (const VmConfig& vm : config_.vms)
        if (vm.socket) GM_TRY(check(vm.socket->path));
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
    if (const std::uint64_t in_answers = descriptors_in_answers(config_); needed + in_answers > limit)
        log_.write(
            LogLevel::warning,
            fmt::format("if all callers of the control sockets stopped reading their answers at once, {} "
                        "descriptors would be open, and the limit (RLIMIT_NOFILE) is {}: newcomers would be "
                        "refused until some are read",
                        needed + in_answers, limit));
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
    if (!is_exempt_from_inflight_limit() && in_flight > limit)
        log_.write(LogLevel::warning,
                   fmt::format(
                       "if all {} slots stopped reading at once, {} descriptors would be in flight, and this "
                       "user may have {} (RLIMIT_NOFILE): newcomers would wait until some are read",
                       count_slots(config_), in_flight, limit));
    return {};
}

Result<void> Service::State::make_parts(Journal journal) {
    ringer_ = GM_TRY(Ringer::create_deferred());
    legacy_.emplace(std::move(journal), std::move(options_.inheritance.keeper), limiter_);
    ticker_ = GM_TRY(loop_.add_timer(service_tick_ms, [this] { tick(); }));
    is_ticking_ = true;
    legacy_->call_when_behind([this] { wake_tick(); });
    chores_ = GM_TRY(loop_.add_timer(0, [this] { do_chores(); }));
    reception_ = GM_TRY(Reception::create(
        {.loop = loop_,
         .log = limiter_,
         .limits = config_.limits,
         .legacy = *legacy_,
         .admit = [this](const DoorConfig& door, Entrant& entrant) { return admit(door, entrant); },
         .slots_of =
             [this](const std::string& share) {
                 const Hall* const hall = registry_->find(share);
                 return hall == nullptr ? std::size_t{0} : std::size_t{hall->share().config().slots};
             },
         .shed_slowest =
             [this] {
                 return std::ranges::any_of(registry_->halls(),
                                            [](Hall& hall) { return hall.shed_slowest(); });
             },
         .on_work_left = [this] { wake_tick(); }}));
    registry_.emplace(
        HallHost{.loop = loop_,
                 .log = limiter_,
                 .limits = config_.limits,
                 .ring = [this](const EventFd& bell) { return ringer_->ring(bell); },
                 .legacy = *legacy_,
                 .on_departed = [this](Entrant entrant) { reception_->depart(std::move(entrant)); },
                 .on_work_left = [this] { wake_tick(); },
                 .on_chores_left = [this] { wake_chores(); },
                 .spare_doorbells =
                     [this](const std::string& maker) {
                         return registry_->spare_vectors(maker, policy_.limits_of(maker), config_.totals);
                     }});
    desk_.emplace(DeskHost{
        .config = config_,
        .policy = policy_,
        .registry = *registry_,
        .legacy = *legacy_,
        .admit = [this](Hall& hall, Entrant entrant) { return admit_tool(hall, std::move(entrant)); },
        .hold = [this](Hall& hall, Entrant entrant) { return admit_holder(hall, std::move(entrant)); },
        .reload = [this] { return reload(); },
        .retire = [this]() -> Result<void> {
            GM_TRY(retire());
            if (options_.on_retired) options_.on_retired();
            return {};
        },
        .say = [this](LogLevel level, std::string_view text) { say(level, text); }});
    return {};
}

Result<void> Service::State::start() {
    GM_TRY(check_before_anything_is_touched());
    Heritage heritage{std::exchange(options_.inheritance.kept, {})};
    Journal journal = GM_TRY(take_journal(heritage));
    GM_TRY(make_parts(std::move(journal)));
    // One that came from the keeper is there: to give it again would take it away for a moment.
    if (legacy_->journal().generation() == 1)
        legacy_->keep({KeptKind::journal, 0, 0}, legacy_->journal().memory(), loop_.now_ms());
    take_listeners(heritage);
    take_over_shares(heritage);
    GM_TRY(open_everything(heritage));
    take_over_connections(heritage);
    forget_orphans(heritage);
    watch_keeper();
    warn_of_read_only_doors();
    is_started_ = true;
    return {};
}

Result<void> Service::State::open_everything(Heritage& heritage) {
    // Clients of an instance before do not wait for the pages of a share that they are not in.
    const Pages pages = legacy_->journal().generation() == 1 ? Pages::now : Pages::later;
    for (const ShareConfig& share : config_.shares) {
        const auto owned = owned_slots(config_, share.name);
        Hall* const hall = registry_->find(share.name);
        if (hall == nullptr && registry_->find_by_path(share) != nullptr) {
            say(LogLevel::error,
                fmt::format(
                    "share '{}': {} is the memory of share '{}', which has peers from before: it is made when "
                    "they have left and the configuration is read again",
                    share.name, share.path, registry_->find_by_path(share)->share().config().name));
        } else if (hall == nullptr) {
            static_cast<void>(GM_TRY(registry_->make(share, {}, pages, owned)));
        } else {
            hall->set_owned(owned);
        }
    }
    for (const DoorConfig& door : config_.doors)
        GM_TRY(reception_->open(door, heritage.take_listener(door.socket.path)));
    for (const VmConfig& vm : config_.vms)
        if (vm.socket) GM_TRY(open_office(vm.name, *vm.socket, heritage.take_listener(vm.socket->path)));
    return open_office({}, config_.control.socket, heritage.take_listener(config_.control.socket.path));
}

Result<void> Service::State::open_office(const std::string& vm, const ListenOptions& socket,
                                         std::optional<InheritedListener> inherited) {
    std::optional<KeptKey> key;
    UnixListener listener;
    if (inherited) {
        listener = std::move(inherited->listener);
        key = inherited->key;
        if (listener.is_owner()) GM_TRY(listener.set_access(socket));
    } else {
        listener = GM_TRY(UnixListener::create(socket));
        key = reception_->take_listener_key();
        legacy_->keep(*key, listener.view(), loop_.now_ms());
    }
    control::ServerOptions options{.socket = socket, .wants_cgroup = true};
    if (!vm.empty()) options.max_connections = office_connections;
    // The handler knows its office, whose VM a reload may change.
    Office& office = offices_.emplace_back();
    office.vm = vm;
    office.socket = socket;
    office.key = key;
    auto server = control::Server::create(
        loop_, options,
        [this, &office](const PeerCredentials& caller, const control::Request& request) {
            return answer(office, caller, request);
        },
        std::move(listener));
    if (!server) {
        if (key) legacy_->forget(*key, loop_.now_ms());
        offices_.pop_back();
        return std::move(server).error();
    }
    office.server = std::move(*server);
    return {};
}

void Service::State::close_office(const std::string& path) {
    const auto found =
        std::ranges::find(offices_, path, [](const Office& office) { return office.socket.path; });
    if (found == offices_.end()) return;
    if (found->key) legacy_->forget(*found->key, loop_.now_ms());
    offices_.erase(found);
}

Result<control::Outcome> Service::State::answer(const Office& office, const PeerCredentials& caller,
                                                const control::Request& request) {
    const std::string& vm = office.vm;
    if (vm.empty()) {
        const Principal who = policy_.of_caller(caller);
        // Without its control group it could be taken for another VM of the same user.
        if (who.is_host || caller.cgroup || !policy_.needs_cgroups())
            return desk_->answer(who, caller, request);
        say(LogLevel::warning,
            fmt::format("refused pid {}, uid {}: its control group cannot be told", caller.pid, caller.uid));
        return Error{Errc::permission_denied, EACCES,
                     "who this is cannot be told: ask from the process that has connected"};
    }
    const Principal who = policy_.of_vm(vm, caller);
    if (who.is_known()) return desk_->answer(who, caller, request);
    say(LogLevel::warning,
        fmt::format("refused pid {}, uid {} at the socket of vm '{}': its 'who' does not fit", caller.pid,
                    caller.uid, vm));
    return Error{Errc::permission_denied, EACCES, "this socket is for somebody else"};
}

Result<std::uint32_t> Service::State::admit(const DoorConfig& door, Entrant& entrant) {
    entrant.permissions = {
        .may_attach = true, .may_create = false, .may_notify = true, .is_read_only = false};
    if (!door.vm.empty()) {
        std::string why;
        auto granted = policy_.check({door.vm, false}, door.share, Wanted::attach, why);
        if (!granted) return Error{Errc::permission_denied, EACCES, why};
        entrant.permissions = *granted;
    }
    Hall* const hall = registry_->find(door.share);
    if (hall == nullptr)
        return Error{Errc::unavailable, ESHUTDOWN, "the configuration has this share no more"};
    const UsageLimits* const limits = policy_.limits_of(door.vm);
    GM_TRY(registry_->check_peer(door.vm, limits, config_.totals));
    entrant.max_queued = max_queued_of(limits);
    return hall->admit(entrant);
}

Result<std::uint32_t> Service::State::admit_tool(Hall& hall, Entrant entrant) {
    entrant.max_queued = max_queued_of(policy_.limits_of(entrant.vm));
    GM_TRY(reception_->enter(entrant));
    auto admitted = hall.admit(entrant);
    // The stream is still the entrant's only when it was not admitted.
    if (!admitted) reception_->release(std::move(entrant));
    return admitted;
}

Result<void> Service::State::admit_holder(Hall& hall, Entrant entrant) {
    GM_TRY(reception_->enter(entrant));
    auto held = hall.hold(entrant);
    if (!held) reception_->release(std::move(entrant));
    return held;
}

void Service::State::warn_of_read_only_doors() {
    for (const DoorConfig& door : config_.doors) {
        if (door.vm.empty()) continue;
        const Decision decision = policy_.decide({door.vm, false}, door.share);
        if (decision.is_allowed && decision.permissions.is_read_only)
            say(LogLevel::warning,
                fmt::format(
                    "socket {}: vm '{}' may only read share '{}', and QEMU's ivshmem-doorbell gives up on "
                    "memory that it cannot map writable; host programs can use it",
                    door.socket.path, door.vm, door.share));
    }
}

void Service::State::wake_tick() {
    if (is_ticking_) return;
    is_ticking_ = ticker_.restart(service_tick_ms).has_value();
}

void Service::State::tick() {
    is_ticking_ = false;
    const std::uint64_t now = loop_.now_ms();
    bool is_waiting = false;
    for (Hall& hall : registry_->halls()) is_waiting = hall.tick(now) || is_waiting;
    is_waiting = reception_->tick(now) || is_waiting;
    is_waiting = legacy_->catch_up(now, [this] { offer_everything(); }) || is_waiting;
    if (legacy_->has_failed() && options_.revive_keeper) {
        if (now >= next_revival_ms_) revive_keeper();
        is_waiting = is_waiting || legacy_->has_failed();
    }
    if (is_waiting) wake_tick();
}

void Service::State::wake_chores() {
    // Where no timer can be set the tick is late, and still comes.
    // Not at once: doors and control sockets have their turns when nothing else is ready.
    if (!chores_.restart(1)) wake_tick();
}

void Service::State::do_chores() {
    if (registry_->work()) wake_chores();
}

void Service::State::watch_keeper() {
    Keeper* const keeper = legacy_->keeper();
    keeper_gone_ = EventSource{};
    if (keeper == nullptr || !keeper->gone().is_open()) return;
    auto source = loop_.add_io(keeper->gone(), IoEvents::readable, [this](IoEvents) {
        keeper_gone_ = EventSource{};
        say(LogLevel::error,
            fmt::format("the {} is gone; another one takes its place", legacy_->keeper()->describe()));
        revive_keeper();
    });
    if (source) {
        keeper_gone_ = std::move(*source);
    } else {
        say(LogLevel::error, source.error().message());
    }
}

void Service::State::revive_keeper() {
    if (!options_.revive_keeper) return;
    keeper_gone_ = EventSource{};
    legacy_->let_go_of_keeper();
    revival_pause_ms_ = std::min(revival_pause_ms_ * 2, longest_revival_pause_ms);
    next_revival_ms_ = loop_.now_ms() + revival_pause_ms_;
    auto keeper = options_.revive_keeper();
    if (!keeper) {
        say(LogLevel::error, fmt::format("no keeper: {}", keeper.error().message()));
        return wake_tick();
    }
    legacy_->replace_keeper(std::move(*keeper), loop_.now_ms(), [this] { offer_everything(); });
    if (!legacy_->has_failed()) revival_pause_ms_ = first_revival_pause_ms;
    if (!legacy_->has_failed() && !legacy_->is_behind())
        say(LogLevel::info, fmt::format("the {} holds everything", legacy_->keeper()->describe()));
    watch_keeper();
}

void Service::State::offer_everything() {
    const std::uint64_t now = loop_.now_ms();
    legacy_->keep({KeptKind::journal, 0, 0}, legacy_->journal().memory(), now);
    registry_->refill();
    reception_->refill();
    for (const Office& office : offices_)
        if (office.key) legacy_->keep(*office.key, office.server->listener().view(), now);
}

Result<void> Service::State::retire() {
    if (legacy_->keeper() == nullptr)
        return Error{
            Errc::unavailable,
            "there is no keeper: nobody would hold what the next instance needs; start the service with "
            "--keeper, or under a service manager that stores descriptors"};
    if (legacy_->has_failed())
        return Error{Errc::unavailable,
                     fmt::format("the {} does not hold what it was given: clients would be lost",
                                 legacy_->keeper()->describe())};
    GM_TRY(legacy_->keeper()->sync());
    if (legacy_->catch_up(loop_.now_ms(), [this] { offer_everything(); }))
        return Error{
            Errc::busy, EBUSY,
            fmt::format("the {} does not hold everything yet; try again", legacy_->keeper()->describe())};
    abandon();
    return {};
}

/// Everything is the next instance's.
void Service::State::abandon() {
    is_retired_ = true;
    for (Hall& hall : registry_->halls()) hall.abandon();
    reception_->abandon();
    for (Office& office : offices_) office.server->leave_file();
    ticker_ = EventSource{};
    chores_ = EventSource{};
    keeper_gone_ = EventSource{};
}

ServiceCounts Service::State::counts() const {
    ServiceCounts counts{
        .sessions = 0, .refusals = reception_->count_refusals(), .lingering = reception_->count_lingering()};
    for (const Hall& hall : registry_->halls()) counts.sessions += hall.peers().size();
    return counts;
}

Service::Service(std::unique_ptr<State> state) : state_(std::move(state)) {}
Service::Service(Service&&) noexcept = default;
Service& Service::operator=(Service&&) noexcept = default;
Service::~Service() = default;

ServiceCounts Service::counts() const { return state_->counts(); }
Result<std::vector<std::string>> Service::reload() { return state_->reload(); }
Result<void> Service::retire() { return state_->retire(); }

Result<Service> Service::create(EventLoop& loop, Log& log, ServiceConfig config, ServiceOptions options) {
    auto state = std::make_unique<State>(loop, log, std::move(config), std::move(options));
    GM_TRY(state->start());
    return Service{std::move(state)};
}

}  // namespace guestmem::share

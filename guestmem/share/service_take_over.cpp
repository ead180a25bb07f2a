// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <iterator>
#include <utility>

#include "guestmem/share/service_state.hpp"
#include "guestmem/sys/socket_file.hpp"

namespace guestmem::share {
namespace {

/// What the keeper may hold of a share; doorbells of classic ids come with their connections.
std::vector<KeptKey> keys_of(const ShareConfig& config, std::uint32_t number) {
    std::vector<KeptKey> keys{{KeptKind::memory, number, 0}, {KeptKind::presence, number, 0}};
    if (config.ids == IdPolicy::classic) return keys;
    for (std::uint32_t slot = 0; slot < config.slots && config.slots <= max_senders; ++slot)
        keys.push_back({KeptKind::sender, number, slot});
    for (std::uint32_t bell = 0; bell < config.slots * config.vectors; ++bell)
        keys.push_back({KeptKind::doorbell, number, bell});
    return keys;
}

}  // namespace

Service::State::Heritage::Heritage(std::vector<KeptFd> kept) : kept_(std::move(kept)) {
    // A keeper gives them in this order already.
    if (!std::ranges::is_sorted(kept_, {}, &KeptFd::key)) std::ranges::sort(kept_, {}, &KeptFd::key);
}

Fd Service::State::Heritage::take(const KeptKey& key) {
    const auto found = std::ranges::lower_bound(kept_, key, {}, &KeptFd::key);
    if (found == kept_.end() || found->key != key) return {};
    return std::exchange(found->fd, Fd{});
}

std::optional<InheritedListener> Service::State::Heritage::take_listener(const std::string& path) {
    const auto found = listeners_.find(path);
    if (found == listeners_.end()) return std::nullopt;
    InheritedListener listener = std::move(found->second);
    listeners_.erase(found);
    return listener;
}

std::vector<KeptKey> Service::State::Heritage::rest() const {
    std::vector<KeptKey> keys = unwanted_;
    for (const KeptFd& one : kept_)
        if (one.fd.is_open()) keys.push_back(one.key);
    for (const auto& [path, inherited] : listeners_)
        if (inherited.key) keys.push_back(*inherited.key);
    return keys;
}

/// A journal that cannot be read ends the service's past, and not the service: it starts anew, and says so.
Result<Journal> Service::State::take_journal(Heritage& heritage) {
    Fd memory = heritage.take({KeptKind::journal, 0, 0});
    if (!memory.is_open()) return Journal::create();
    auto journal = Journal::adopt(std::move(memory));
    if (journal) return journal;
    say(LogLevel::error,
        fmt::format("nothing is taken over, and clients of the instance before are closed: {}",
                    journal.error().message()));
    // Their numbers are given again: what has them must go before anything new comes under them.
    std::vector<KeptKey> keys;
    for (const KeptFd& one : heritage.kept())
        if (one.key.kind != KeptKind::listener) keys.push_back(one.key);
    for (const KeptKey& key : keys) static_cast<void>(heritage.take(key));
    if (Keeper* const keeper = options_.inheritance.keeper.get())
        if (auto done = keeper->forget(keys); !done) say(LogLevel::error, done.error().message());
    return Journal::create();
}

void Service::State::take_listeners(Heritage& heritage) {
    const auto enter = [&](UnixListener listener, std::optional<KeptKey> key) {
        InheritedListener& known = heritage.listeners()[listener.path()];
        // Two that cannot be told apart: the file is the later one's.
        if (known.key) heritage.give_up(*known.key);
        known.listener.leave_file();
        known = InheritedListener{std::move(listener), key};
    };
    for (KeptFd& kept : heritage.kept()) {
        if (kept.key.kind != KeptKind::listener) continue;
        reception_->reserve_listener_key(kept.key);
        auto listener = take_listener(std::move(kept.fd));
        if (!listener) {
            heritage.give_up(kept.key);
            continue;
        }
        enter(std::move(*listener), kept.key);
    }
    for (NamedSocket& socket : options_.inheritance.activated) {
        auto listener = UnixListener::adopt(std::move(socket.fd), false);
        if (!listener) {
            say(LogLevel::error, fmt::format("socket '{}' of the service manager: {}", socket.name,
                                             listener.error().message()));
            continue;
        }
        enter(std::move(*listener), std::nullopt);
    }
    options_.inheritance.activated.clear();
}

std::optional<UnixListener> Service::State::take_listener(Fd fd) {
    auto listener = UnixListener::adopt(std::move(fd), true);
    if (!listener) {
        say(LogLevel::error, listener.error().message());
        return std::nullopt;
    }
    const auto file = look_at_socket_file(listener->view(), listener->path());
    if (!file) say(LogLevel::error, file.error().message());
    if (!file || *file == SocketFile::same) return std::move(*listener);
    say(LogLevel::warning,
        fmt::format("socket {}: {}; nobody could reach the one that the instance before has left: it is "
                    "closed, and made anew where the configuration has it",
                    listener->path(),
                    *file == SocketFile::gone ? "its file is gone" : "somebody has put another file there"));
    listener->leave_file();
    return std::nullopt;
}

void Service::State::take_over_shares(Heritage& heritage) {
    for (ShareRecord* const record : legacy_->journal().shares()) {
        const ShareConfig config = config_of(*record);
        // Nobody has heard of it.
        if (record->stage.load() == ShareStage::making) {
            Journal::remove(*record);
            continue;
        }
        const std::uint32_t number = record->number;
        Share::Parts parts;
        parts.memory = heritage.take({KeptKind::memory, number, 0});
        parts.presence = heritage.take({KeptKind::presence, number, 0});
        if (config.ids == IdPolicy::stable) {
            for (std::uint32_t bell = 0; bell < config.slots * config.vectors; ++bell)
                parts.doorbells.push_back(heritage.take({KeptKind::doorbell, number, bell}));
            for (std::uint32_t slot = 0; config.slots <= max_senders && slot < config.slots; ++slot)
                parts.senders.push_back(heritage.take({KeptKind::sender, number, slot}));
        }
        auto hall = registry_->adopt(*record, std::move(parts), owned_slots(config_, config.name));
        if (hall) continue;
        say(LogLevel::error, fmt::format("{}; it is lost with its peers", hall.error().message()));
        Journal::remove(*record);
        // Its parts were taken, and are closed here: the keeper's would stay for ever.
        for (const KeptKey& key : keys_of(config, number)) heritage.give_up(key);
    }
}

void Service::State::take_over_connections(Heritage& heritage) {
    std::size_t count_before = 0;
    GonePeers gone;
    for (ConnectionRecord* const record : legacy_->journal().connections()) {
        ++count_before;
        take_over_connection(heritage, *record, gone);
    }
    for (const auto& [hall, id] : gone) hall->tell_gone(id);
    // Those who left while nobody looked: their slots are free, and the pages say so.
    for (Hall& hall : registry_->halls()) hall.show_who_is_gone();
    fit_shares_to_configuration();
    std::vector<std::string> changes;
    review_rights(changes);
    for (const std::string& change : changes) say(LogLevel::warning, change);
    if (legacy_->journal().generation() > 1)
        say(LogLevel::info, fmt::format("instance {}: {} shares and {} of {} clients are taken over",
                                        legacy_->journal().generation(), registry_->halls().size(),
                                        counts().sessions, count_before));
    registry_->sweep();
}

/// The file may have been edited since the instance before has read it.
void Service::State::fit_shares_to_configuration() {
    std::vector<Hall*> replaced;
    for (Hall& hall : registry_->halls()) {
        const ShareConfig& config = hall.share().config();
        const auto wanted = std::ranges::find(config_.shares, config.name, &ShareConfig::name);
        const bool is_wanted = wanted != config_.shares.end();
        if (!config.is_dynamic && !is_wanted && !hall.is_retired()) {
            say(LogLevel::info, fmt::format("share '{}': the configuration has it no more", config.name));
            hall.retire();
        }
        if (is_wanted && !hall.is_retired() && !is_same_share(*wanted, config)) {
            if (hall.is_unused()) {
                replaced.push_back(&hall);
                continue;
            }
            say(LogLevel::error,
                fmt::format(
                    "share '{}': the configuration has changed it, and it has peers from before: it stays "
                    "as it was until the service ends",
                    config.name));
        }
        if (hall.is_inherited()) hall.settle_in();
    }
    for (Hall* const hall : replaced) {
        const ShareConfig wanted =
            *std::ranges::find(config_.shares, hall->share().config().name, &ShareConfig::name);
        registry_->remove(*hall);
        auto made = registry_->make(wanted, {}, Pages::later, owned_slots(config_, wanted.name));
        if (!made) say(LogLevel::error, made.error().message());
    }
}

/// Who has not been told everything is told nothing that its rights do not allow any more.
bool Service::State::has_less_right(const Entrant& entrant, const std::string& share) const {
    if (!entrant.is_tool && entrant.vm.empty()) return false;
    const Permissions granted = policy_.decide(principal_of(entrant), share).permissions;
    return !granted.may_attach || (granted.is_read_only && !entrant.permissions.is_read_only) ||
           (!granted.may_notify && entrant.permissions.may_notify);
}

void Service::State::take_over_connection(Heritage& heritage, ConnectionRecord& record, GonePeers& gone) {
    Entrant entrant = entrant_of(record);
    Hall* hall = nullptr;
    for (Hall& candidate : registry_->halls())
        if (candidate.share().number() == record.share) hall = &candidate;
    const bool is_admitted = record.stage.load() == ConnectionStage::admitted;
    const bool is_hold = is_admitted && record.is_tool == holding_tool;
    const std::uint32_t id = record.id;
    ConnectionBells bells;
    if (is_admitted && !is_hold && hall != nullptr) bells = take_bells(heritage, record, hall->share());
    if (record.has_bell != 0 && is_admitted)
        if (Fd bell = heritage.take({KeptKind::bell, 0, record.number}); bell.is_open())
            entrant.bell = EventFd::believe(std::move(bell));

    std::vector<KeptKey> keys = bells.keys;
    const auto lose = [&](std::string_view why) {
        say(LogLevel::warning,
            fmt::format("{} with id {} cannot be taken over and is closed: {}", entrant.to_text(), id, why));
        // Those who knew it are told when all of them are here.
        const bool is_classic = hall != nullptr && hall->share().config().ids == IdPolicy::classic;
        if (is_admitted && !is_hold && is_classic && record.announced.load() != 0)
            gone.emplace_back(hall, id);
        keys.push_back({KeptKind::connection, 0, entrant.number});
        keys.push_back({KeptKind::bell, 0, entrant.number});
        legacy_->forget(keys, loop_.now_ms());
        legacy_->journal().remove(record);
        entrant.record = nullptr;
        if (entrant.stream.is_open()) reception_->release(std::move(entrant));
    };
    Fd stream = heritage.take({KeptKind::connection, 0, record.number});
    if (!stream.is_open()) return lose("the keeper does not have it");
    auto adopted = UnixStream::adopt(std::move(stream));
    if (!adopted) return lose(adopted.error().message());
    entrant.stream = std::move(*adopted);
    reception_->count(entrant);
    if (!is_admitted) {
        // Tools come by way of a call whose answer died with the instance before.
        if (entrant.is_tool) return lose("nothing was promised to it");
        return reception_->greet_again(std::move(entrant));
    }
    if (hall == nullptr) return lose("its share is gone");
    const Result<void> resumed =
        is_hold ? hall->resume_hold(entrant) : resume(*hall, entrant, std::move(bells));
    if (!resumed) lose(resumed.error().message());
}

Entrant Service::State::entrant_of(ConnectionRecord& record) {
    Entrant entrant{.stream = {},
                    .who = {record.pid, record.uid, record.gid},
                    .vm = record.vm.get(),
                    .door = record.door.get(),
                    .own_slots = {}};
    entrant.is_tool = record.is_tool != 0;
    entrant.record = &record;
    entrant.number = record.number;
    entrant.permissions = {.may_attach = true,
                           .may_create = false,
                           .may_notify = record.may_notify != 0,
                           .is_read_only = record.is_read_only != 0};
    return entrant;
}

/// Of classic ids the connection's own, else those of its pairs.
Service::State::ConnectionBells Service::State::take_bells(Heritage& heritage, const ConnectionRecord& record,
                                                           const Share& share) {
    const ShareConfig& config = share.config();
    ConnectionBells bells;
    if (config.ids == IdPolicy::classic) {
        for (std::uint32_t vector = 0; vector < config.vectors; ++vector)
            bells.keys.push_back(share.doorbell_key(record.id, vector));
    } else if (can_have_pairs(config)) {
        bells.receivers = SenderSet{record.announced.load()};
        bells.keys = pair_bell_keys(config, share.number(), record.id, bells.receivers);
    }
    for (const KeptKey& key : bells.keys) bells.fds.push_back(heritage.take(key));
    return bells;
}

/// On success the entrant is the hall's.
Result<void> Service::State::resume(Hall& hall, Entrant& entrant, ConnectionBells bells) {
    const ConnectionRecord& record = *entrant.record;
    const ShareConfig& config = hall.share().config();
    if (record.is_told.load() == 0 && has_less_right(entrant, config.name))
        return Error{Errc::permission_denied, "it has lost its right in the midst of its handshake"};
    std::shared_ptr<const Doorbells> own;
    if (config.ids == IdPolicy::classic) {
        own = GM_TRY(adopt_doorbells(record.id, std::move(bells.fds)));
    } else {
        entrant.pairs = GM_TRY(PairBells::adopt(config, bells.receivers, std::move(bells.fds)));
        entrant.hears_senders = can_have_pairs(config) && record.has_bell == 2;
        // A session that has doorbells of its own did not count.
        entrant.counts_rings = bells.receivers.none() && record.has_bell != 0;
    }
    return hall.resume(entrant, std::move(own));
}

/// What has no record was on its way in or out when the instance before ended: nobody counts on it.
void Service::State::forget_orphans(Heritage& heritage) {
    for (const auto& [path, inherited] : heritage.listeners())
        say(LogLevel::info, fmt::format("socket {}: the configuration has it no more; closed", path));
    legacy_->forget(heritage.rest(), loop_.now_ms());
}

}  // namespace guestmem::share

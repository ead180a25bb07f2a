// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "guestmem/share/service_state.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

bool is_same_access(const ListenOptions& a, const ListenOptions& b) {
    return a.owner == b.owner && a.group == b.group && a.mode == b.mode;
}

bool is_same_door(const DoorConfig& a, const DoorConfig& b) {
    return a.share == b.share && a.vm == b.vm && a.slots == b.slots && is_same_access(a.socket, b.socket);
}

const DoorConfig* find_door(const ServiceConfig& config, const std::string& path) {
    const auto found =
        std::ranges::find(config.doors, path, [](const DoorConfig& door) { return door.socket.path; });
    return found == config.doors.end() ? nullptr : &*found;
}

}  // namespace

bool is_same_share(const ShareConfig& a, const ShareConfig& b) {
    return a.size_bytes == b.size_bytes && a.vectors == b.vectors && a.slots == b.slots && a.ids == b.ids &&
           a.huge_page_bytes == b.huge_page_bytes && a.backing == b.backing && a.path == b.path &&
           a.is_kept == b.is_kept && a.is_dynamic == b.is_dynamic;
}

/// What a running service cannot become.
Result<void> Service::State::check_reload(const ServiceConfig& next) {
    const auto refuse = [](std::string what) { return Error{Errc::busy, EBUSY, std::move(what)}; };
    if (next.control.socket.path != config_.control.socket.path)
        return refuse(
            fmt::format("the control socket is {}, and the file says {}: restart the service for that",
                        config_.control.socket.path, next.control.socket.path));
    if (next.user != config_.user) return refuse("'user' has changed: restart the service for that");
    for (const ShareConfig& share : next.shares) {
        const Hall* const hall = registry_->find(share.name);
        if (hall != nullptr && is_same_share(share, hall->share().config())) continue;
        // Two shares of one memory would clear it under each other's peers.
        if (const Hall* const other = registry_->find_by_path(share))
            return refuse(
                fmt::format("share '{}': {} is the memory of share '{}', which is served: take that one out "
                            "first, and bring this one with another reload when nobody is in it",
                            share.name, share.path, other->share().config().name));
        if (hall == nullptr) continue;
        if (hall->share().config().is_dynamic)
            return refuse(fmt::format(
                "share '{}' was made by a client, and the file has one of the same name", share.name));
        if (!hall->is_unused())
            return refuse(fmt::format(
                "share '{}': the file changes it, and peers are there ({}): only rights and sockets "
                "can change under them",
                share.name, hall->peers().size() + hall->holders().size()));
    }
    const std::uint64_t needed = descriptors_needed(next);
    if (needed > descriptor_limit())
        return Error{
            Errc::exhausted, EMFILE,
            fmt::format("this configuration needs {} descriptors and the limit (RLIMIT_NOFILE) is {}", needed,
                        descriptor_limit())};
    return {};
}

/// Everything that can fail, and can be undone.
Result<void> Service::State::make_what_is_new(const ServiceConfig& next, Undo& undo) {
    for (const ShareConfig& share : next.shares) {
        const Hall* const hall = registry_->find(share.name);
        if (hall != nullptr && is_same_share(share, hall->share().config())) continue;
        // That there is room is asked at once; the pages come between the others' turns.
        undo.made.push_back(GM_TRY(registry_->make(share, {}, Pages::later, owned_slots(next, share.name))));
    }
    for (const DoorConfig& door : next.doors) {
        const DoorConfig* const before = find_door(config_, door.socket.path);
        if (before == nullptr) {
            GM_TRY(reception_->open(door, std::nullopt));
            undo.opened.push_back(door.socket.path);
        } else if (!is_same_door(*before, door)) {
            undo.changed.push_back(*before);
            GM_TRY(reception_->change(door));
        }
    }
    const auto fit_office = [&](const std::string& vm, const ListenOptions& socket) -> Result<void> {
        const auto office =
            std::ranges::find(offices_, socket.path, [](const Office& open) { return open.socket.path; });
        if (office == offices_.end()) {
            GM_TRY(open_office(vm, socket, std::nullopt));
            undo.offices.push_back(socket.path);
        } else if (!is_same_access(office->socket, socket) && office->server->listener().is_owner()) {
            undo.accesses.push_back(office->socket);
            GM_TRY(office->server->listener().set_access(socket));
            office->socket = socket;
        }
        return {};
    };
    for (const VmConfig& vm : next.vms)
        if (vm.socket) GM_TRY(fit_office(vm.name, *vm.socket));
    GM_TRY(fit_office({}, next.control.socket));
    return {};
}

void Service::State::undo(const Undo& undo) {
    for (const std::string& path : undo.offices) close_office(path);
    for (const ListenOptions& socket : undo.accesses)
        for (Office& office : offices_)
            if (office.socket.path == socket.path) {
                office.socket = socket;
                if (auto done = office.server->listener().set_access(socket); !done)
                    say(LogLevel::error, done.error().message());
            }
    for (const std::string& path : undo.opened) reception_->close(path);
    for (const DoorConfig& door : undo.changed)
        if (auto done = reception_->change(door); !done) say(LogLevel::error, done.error().message());
    for (Hall* const hall : undo.made) registry_->remove(*hall);
}

void Service::State::drop_what_is_gone(const ServiceConfig& next, std::vector<std::string>& changes) {
    for (const DoorConfig& door : config_.doors) {
        const DoorConfig* const after = find_door(next, door.socket.path);
        if (after == nullptr) {
            reception_->close(door.socket.path);
            changes.push_back(fmt::format("socket {}: closed; who came through it stays", door.socket.path));
        } else if (!is_same_door(door, *after)) {
            changes.push_back(fmt::format("socket {}: changed", door.socket.path));
        }
    }
    std::vector<std::string> closed;
    for (Office& office : offices_) {
        if (office.vm.empty()) continue;
        const auto owner = std::ranges::find_if(
            next.vms, [&](const VmConfig& vm) { return vm.socket && vm.socket->path == office.socket.path; });
        if (owner == next.vms.end()) {
            closed.push_back(office.socket.path);
        } else if (owner->name != office.vm) {
            changes.push_back(
                fmt::format("socket {}: of vm '{}' from here on", office.socket.path, owner->name));
            office.vm = owner->name;
            // Who has connected did so at the other VM's socket.
            office.server->drop_connections();
        }
    }
    for (const std::string& path : closed) {
        close_office(path);
        changes.push_back(fmt::format("socket {}: closed", path));
    }
    std::vector<Hall*> replaced;
    for (Hall& hall : registry_->halls()) {
        const ShareConfig& config = hall.share().config();
        if (config.is_dynamic || hall.is_retired()) continue;
        const auto wanted = std::ranges::find(next.shares, config.name, &ShareConfig::name);
        if (wanted == next.shares.end()) {
            changes.push_back(fmt::format("share '{}': removed; gone with its last peer", config.name));
            hall.retire();
        } else if (!is_same_share(*wanted, config)) {
            changes.push_back(fmt::format("share '{}': replaced, nobody was in it", config.name));
            replaced.push_back(&hall);
        }
    }
    for (Hall* const hall : replaced) registry_->remove(*hall);
}

void Service::State::review_rights(std::vector<std::string>& changes) {
    for (Hall& hall : registry_->halls()) {
        const std::string name = hall.share().config().name;
        hall.set_owned(owned_slots(config_, name));
        hall.review(
            [&](const Entrant& entrant) -> std::optional<Permissions> {
                // Who came through an unnamed door: no rule holds there.
                if (!entrant.is_tool && entrant.vm.empty()) return Permissions{};
                const Decision decision = policy_.decide(principal_of(entrant), name);
                // Who made it for others holds it by that right.
                const bool is_holding_maker =
                    decision.permissions.may_create && hall.record().maker.get() == entrant.vm &&
                    std::ranges::any_of(hall.holders(),
                                        [&](const Holder& one) { return &one.entrant == &entrant; });
                if (!decision.is_allowed || (!decision.permissions.may_attach && !is_holding_maker))
                    return std::nullopt;
                return decision.permissions;
            },
            changes);
        hall.limit_queues([&](const Entrant& entrant) {
            const UsageLimits* const limits = policy_.limits_of(entrant.vm);
            return limits == nullptr ? std::uint64_t{UINT32_MAX} : limits->queued_messages;
        });
    }
}

Result<std::vector<std::string>> Service::State::reload() {
    if (!options_.reread)
        return Error{Errc::unsupported,
                     "this service has no configuration file: there is nothing to read again"};
    const auto fail = [&](Error error) {
        say(LogLevel::error, fmt::format("reload: nothing has changed: {}", error.message()));
        return error;
    };
    auto read = options_.reread();
    if (!read) return fail(std::move(read).error());
    ServiceConfig& next = *read;
    if (auto checked = check_reload(next); !checked) return fail(std::move(checked).error());
    Undo made;
    if (auto done = make_what_is_new(next, made); !done) {
        undo(made);
        return fail(std::move(done).error());
    }

    std::vector<std::string> changes;
    for (const Hall* const hall : made.made)
        changes.push_back(fmt::format("share '{}': made", hall->share().config().name));
    for (const std::string& path : made.opened) changes.push_back(fmt::format("socket {}: opened", path));
    for (const ListenOptions& socket : made.accesses)
        changes.push_back(fmt::format("socket {}: changed", socket.path));
    for (const std::string& path : made.offices) changes.push_back(fmt::format("socket {}: opened", path));
    drop_what_is_gone(next, changes);
    config_ = std::move(next);
    fill_in_limits(config_);
    policy_ = Policy{config_};
    review_rights(changes);
    registry_->sweep();
    warn_of_read_only_doors();
    for (const std::string& change : changes) say(LogLevel::info, fmt::format("reload: {}", change));
    if (changes.empty()) say(LogLevel::info, "reload: nothing is different");
    return changes;
}

}  // namespace guestmem::share

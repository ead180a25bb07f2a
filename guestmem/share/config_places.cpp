// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config_places.hpp"

#include <fmt/format.h>

#include <set>

#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

struct Words {
    std::string_view thing;
    std::string_view advice;
};

Words words_of(ConfigPlaces::Kind kind) {
    switch (kind) {
        case ConfigPlaces::Kind::share: return {"share", "choose another name"};
        case ConfigPlaces::Kind::vm: return {"VM", "choose another name"};
        case ConfigPlaces::Kind::socket: return {"socket", "choose another path"};
        case ConfigPlaces::Kind::path: return {"path", "choose another path"};
        case ConfigPlaces::Kind::who:
            return {"who", "let them differ in user, group or cgroup, or give one of both VMs a socket"};
    }
    return {"name", "choose another name"};
}

}  // namespace

void ConfigPlaces::note(Kind kind, const std::string& name, TextPosition here) {
    const auto [first, is_first] = names_.try_emplace({kind, name}, here);
    if (is_first) return;
    const auto [thing, advice] = words_of(kind);
    diagnostics_.add(here, fmt::format("{} '{}' stands already on line {}", thing, name, first->second.line),
                     std::string{advice});
}

const TextPosition* ConfigPlaces::find(Kind kind, const std::string& name) const {
    const auto found = names_.find({kind, name});
    return found == names_.end() ? nullptr : &found->second;
}

bool ConfigPlaces::take_slot(const ShareConfig& share, std::uint32_t slot, const std::string& vm,
                             TextPosition here) {
    const auto [first, is_free] = slots_.try_emplace({share.name, slot}, SlotOwner{vm, here});
    if (is_free) return true;
    // The advice looks at all slots: not for mistakes that are only counted.
    if (diagnostics_.found().size() == max_diagnostics) {
        diagnostics_.add(here, {});
        return false;
    }
    std::set<std::uint32_t> taken;
    for (const auto& [key, owner] : slots_)
        if (key.first == share.name) taken.insert(key.second);
    std::uint32_t free = 0;
    while (taken.contains(free)) ++free;
    diagnostics_.add(here,
                     fmt::format("slot {} of share '{}' belongs to vm '{}' already, on line {}", slot,
                                 share.name, first->second.vm, first->second.where.line),
                     free < share.slots ? fmt::format("slot {} is free", free) : "give the share more slots");
    return false;
}

ListenOptions read_socket(TableReader& table, const SocketKeys& keys, ListenOptions socket,
                          ConfigPlaces& places) {
    if (auto path = table.text(keys.path, "\"/run/guestmem/linux.sock\"")) {
        socket.path = *path;
        if (path->empty() || path->size() > max_socket_path_bytes) {
            table.complain(keys.path,
                           fmt::format("a socket path has 1 to {} bytes, this one has {}",
                                       max_socket_path_bytes, path->size()),
                           "choose a shorter path");
        } else if (parent_folder(*path) != runtime_folder() && !is_folder(parent_folder(*path))) {
            // The run-time folder is made by the service.
            table.complain(keys.path, fmt::format("folder {} does not exist", parent_folder(*path)),
                           fmt::format("make it first: mkdir -p {}", parent_folder(*path)));
        }
        if (!path->empty()) places.note(ConfigPlaces::Kind::socket, *path, table.where(keys.path));
    }
    if (const TomlNode* node = table.find(keys.owner)) {
        if (const auto id = table.identity(*node, &user_id)) socket.owner = id;
    }
    if (const TomlNode* node = table.find(keys.group)) {
        if (const auto id = table.identity(*node, &group_id)) socket.group = id;
    }
    if (const auto mode = table.file_mode(keys.mode)) socket.mode = *mode;
    return socket;
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/base/table_reader.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// Where the names of a share configuration were written, and its sockets: for mistakes that only show when two places
/// are compared. A part of config_file.hpp.
///
/// Contract: note() takes a name, and says as a mistake where it stands already.
/// Lifetime: the diagnostics outlive it.
/// Threads: one at a time.

namespace guestmem::share {

class ConfigPlaces {
public:
    explicit ConfigPlaces(Diagnostics& diagnostics) : diagnostics_(diagnostics) {}

    enum class Kind : std::uint8_t { share, vm, socket, path, who };
    void note(Kind kind, const std::string& name, TextPosition here);
    /// nullptr when nothing of this name was noted.
    [[nodiscard]] const TextPosition* find(Kind kind, const std::string& name) const;

    /// Gives a slot to a VM; false, and a mistake, when it is another's or given twice.
    [[nodiscard]] bool take_slot(const ShareConfig& share, std::uint32_t slot, const std::string& vm,
                                 TextPosition here);

private:
    struct SlotOwner {
        std::string vm;
        TextPosition where;
    };
    Diagnostics& diagnostics_;
    std::map<std::pair<Kind, std::string>, TextPosition> names_;
    std::map<std::pair<std::string, std::uint32_t>, SlotOwner> slots_;
};

/// Under which keys a table has a socket.
struct SocketKeys {
    std::string_view path = "socket";
    std::string_view owner = "owner";
    std::string_view group = "group";
    std::string_view mode = "mode";
};

/// What the table says of a socket, over what `socket` has; its path is noted when there is one.
[[nodiscard]] ListenOptions read_socket(TableReader& table, const SocketKeys& keys, ListenOptions socket,
                                        ConfigPlaces& places);

}  // namespace guestmem::share

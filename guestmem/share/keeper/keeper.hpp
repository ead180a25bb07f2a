// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Who holds the descriptors of a service, so that they outlive its process.
///
/// Concepts: a Keeper is the service manager's store (systemd_store.hpp), or a process of ours that does nothing else
/// (keeper_link.hpp). A KeptKey names a descriptor; the next instance of the service gets all of them with their
/// keys, in any order.
/// Contract: what was given to keep() is the next instance's, even if this process is killed right after; a key that
/// was kept before gets its new descriptor. forget() lets go; keys that are not kept are passed over. The
/// order of calls is kept. sync() returns when everything before it is done: what was forgotten is closed there. An
/// error of keep() says that some of these descriptors may not be kept, one of sync() that one given before is not.
/// An error (timed_out) ends nothing: the keeper does not take more for the moment, and the caller gives the same again
/// once is_answering(). Who makes something that has to be kept asks check_room() first: (exhausted), and nothing was
/// sent.
/// forget_rest() lets go of what a keeper held when it was joined and was not given to keep() since.
/// end() forgets everything and ends a keeper of our own: there is no next instance.
/// Threads: one at a time.
/// Cost: keep() of n descriptors is about n/250 messages to a keeper of ours, n to the service manager.

namespace guestmem::share {

enum class KeptKind : std::uint8_t {
    journal,
    listener,
    memory,
    presence,
    sender,
    doorbell,
    connection,
    bell
};

struct KeptKey {
    KeptKind kind = KeptKind::journal;
    std::uint32_t share = 0;  ///< number of the share, 0 where it is of none
    std::uint32_t index = 0;  ///< which one of its kind
    auto operator<=>(const KeptKey&) const = default;
};

/// A letter for the kind and two hexadecimal numbers, for lists that have to be short: "d3.1f". Only what to_name()
/// gives is a kept name; "x.socket", as a service manager names its sockets, is none.
inline constexpr std::size_t max_kept_name_bytes = 18;
[[nodiscard]] std::string to_name(const KeptKey& key);
[[nodiscard]] std::optional<KeptKey> parse_kept_name(std::string_view name);

struct KeepRequest {
    KeptKey key;
    FdView fd;
};

struct KeptFd {
    KeptKey key;
    Fd fd;
};

class Keeper {
public:
    Keeper() = default;
    Keeper(const Keeper&) = delete;
    Keeper& operator=(const Keeper&) = delete;
    virtual ~Keeper() = default;

    [[nodiscard]] virtual Result<void> keep(std::span<const KeepRequest> requests) = 0;
    [[nodiscard]] virtual Result<void> forget(std::span<const KeptKey> keys) = 0;
    [[nodiscard]] virtual Result<void> sync() = 0;
    /// The same for an event loop: it waits no longer than keep() does.
    [[nodiscard]] virtual Result<void> sync_soon() { return sync(); }
    [[nodiscard]] virtual Result<void> end() = 0;
    /// Whether so many keys more fit.
    [[nodiscard]] virtual Result<void> check_room(std::size_t count) const = 0;
    /// Never waits: asks the keeper at the first call, and looks for its answer at later ones.
    [[nodiscard]] virtual Result<bool> is_answering() = 0;
    [[nodiscard]] virtual Result<void> forget_rest() = 0;
    /// Readable when the keeper is gone and another one is needed; not open where that cannot happen.
    [[nodiscard]] virtual FdView gone() const = 0;
    /// "keeper (pid 812)", "service manager".
    [[nodiscard]] virtual std::string describe() const = 0;
};

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/client.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <span>

#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {
namespace {

/// From the first byte of a message to its last.
constexpr int message_timeout_ms = 1000;
/// As much as a session's first messages have together, where all are few.
constexpr std::size_t ahead_bytes = 512;
/// For the end behind what was not asked for: a server that floods holds nobody up.
constexpr int max_looks_for_end = 64;

}  // namespace

Result<Client> Client::connect(const std::string& path) { return Client{GM_TRY(UnixStream::connect(path))}; }

Result<Client> Client::adopt(Fd stream) { return Client{GM_TRY(UnixStream::adopt(std::move(stream)))}; }

Result<Notice> Client::take_ahead() {
    IvshmemMessage message{};
    std::copy_n(ahead_.begin(), message.size(), message.begin());
    ahead_.erase(ahead_.begin(), ahead_.begin() + static_cast<std::ptrdiff_t>(message.size()));
    std::optional<Fd> fd;
    if (table_.own_id() && !ahead_fds_.empty()) {
        fd = std::move(ahead_fds_.front());
        ahead_fds_.pop_front();
    }
    if (!has_more() && !ahead_fds_.empty())
        return Error{Errc::corrupt,
                     fmt::format("ivshmem: {} descriptors without a message", ahead_fds_.size())};
    return table_.take(decode_ivshmem(message), std::move(fd));
}

Result<std::optional<Notice>> Client::receive_ahead(int timeout_ms) {
    std::array<std::byte, ahead_bytes> buffer;
    while (!has_more()) {
        const bool is_within = !ahead_.empty();
        if (!GM_TRY(stream_.wait_readable(is_within ? message_timeout_ms : timeout_ms))) {
            if (!is_within) return std::optional<Notice>{};
            return Error{Errc::corrupt,
                         fmt::format("ivshmem: {} of 8 bytes came, and the rest did not within {} ms",
                                     ahead_.size(), message_timeout_ms)};
        }
        auto received = GM_TRY(stream_.receive(buffer));
        if (!received) continue;
        if (received->count_bytes == 0)
            return Error{Errc::unavailable, "the ivshmem server closed the connection"};
        if (received->has_lost_fds)
            return Error{Errc::exhausted,
                         "an ivshmem descriptor was lost: this process has too few; raise ulimit -n"};
        const auto bytes = std::span{buffer}.first(received->count_bytes);
        ahead_.insert(ahead_.end(), bytes.begin(), bytes.end());
        for (Fd& fd : received->fds) ahead_fds_.push_back(std::move(fd));
    }
    return std::optional{GM_TRY(take_ahead())};
}

Result<std::optional<Notice>> Client::receive(int timeout_ms) {
    if (!ahead_.empty()) return receive_ahead(timeout_ms);
    if (!GM_TRY(stream_.wait_readable(timeout_ms))) return std::optional<Notice>{};
    IvshmemMessage message{};
    std::span<std::byte> rest{message};
    std::vector<Fd> fds;
    while (!rest.empty()) {
        // A server that stops in the middle of a message is broken: the stream cannot be followed any further.
        if (!GM_TRY(stream_.wait_readable(message_timeout_ms)))
            return Error{Errc::corrupt,
                         fmt::format("ivshmem: {} of 8 bytes came, and the rest did not within {} ms",
                                     message.size() - rest.size(), message_timeout_ms)};
        auto received = GM_TRY(stream_.receive(rest));
        if (!received) continue;
        if (received->count_bytes == 0)
            return Error{Errc::unavailable, "the ivshmem server closed the connection"};
        if (received->has_lost_fds)
            return Error{Errc::exhausted,
                         "an ivshmem descriptor was lost: this process has too few; raise ulimit -n"};
        for (Fd& fd : received->fds) fds.push_back(std::move(fd));
        rest = rest.subspan(received->count_bytes);
    }
    if (fds.size() > 1)
        return Error{Errc::corrupt, fmt::format("ivshmem: {} descriptors in one message", fds.size())};
    std::optional<Fd> fd;
    if (!fds.empty()) fd = std::move(fds.front());
    return std::optional{GM_TRY(table_.take(decode_ivshmem(message), std::move(fd)))};
}

Result<void> Client::join(std::uint32_t vectors, int timeout_ms) {
    for (;;) {
        const auto* own = table_.own_id() ? table_.find(*table_.own_id()) : nullptr;
        if (own != nullptr && own->size() >= vectors) return {};
        if (!GM_TRY(receive(timeout_ms)))
            return Error{Errc::timed_out, fmt::format("the ivshmem handshake stopped for {} ms", timeout_ms)};
    }
}

Result<void> Client::ring(std::uint32_t peer, std::uint32_t vector) const {
    const auto* bells = table_.find(peer);
    if (bells == nullptr) return Error{Errc::not_found, fmt::format("no peer {} here", peer)};
    if (vector >= bells->size())
        return Error{Errc::out_of_range,
                     fmt::format("peer {} has vectors 0 to {}, not {}", peer, bells->size() - 1, vector)};
    return (*bells)[vector].kick();
}

Result<std::uint64_t> Client::wait(std::uint32_t vector, int timeout_ms) const {
    const auto* own = table_.own_id() ? table_.find(*table_.own_id()) : nullptr;
    if (own == nullptr || vector >= own->size())
        return Error{Errc::out_of_range, fmt::format("this client has no vector {}", vector)};
    return (*own)[vector].wait(timeout_ms);
}

Result<bool> Client::has_ended() const {
    std::array<std::byte, ahead_bytes> buffer;
    for (int look = 0; look < max_looks_for_end; ++look) {
        const auto seen = GM_TRY(stream_.peek(std::span{buffer}.first(1)));
        if (!seen || seen->count_bytes == 0) return seen.has_value();
        // Before an end that is behind them: a service that was killed may have left its last message twice.
        GM_TRY(stream_.receive(buffer));
    }
    return false;
}

Result<Mapping> Client::map(MapAccess access) const { return map_sealed(table_.memory(), access); }

Result<Mapping> map_sealed(FdView memory, MapAccess access) {
    if (!GM_TRY(is_size_sealed(memory)))
        return Error{
            Errc::permission_denied,
            "the share's memory is not sealed: whoever may write it could cut it short under this mapping"};
    const FileFacts facts = GM_TRY(file_facts(memory));
    return Mapping::create(memory, facts.size_bytes, access);
}

}  // namespace guestmem::share

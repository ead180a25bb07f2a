// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/peer_table.hpp"

#include <fmt/format.h>

#include <system_error>
#include <utility>

#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/share/sender_page.hpp"

namespace guestmem::share {
namespace {

Error unexpected(std::int64_t value, bool has_fd, const char* belongs) {
    return Error{Errc::corrupt, fmt::format("ivshmem: the server sent {} {} a descriptor where {} belongs",
                                            value, has_fd ? "with" : "without", belongs)};
}

bool is_id(std::int64_t value) { return value >= 0 && value <= std::int64_t{ivshmem_max_peer_id}; }

}  // namespace

const std::vector<EventFd>* PeerTable::find(std::uint32_t id) const {
    const auto found = doorbells_.find(id);
    return found == doorbells_.end() ? nullptr : &found->second;
}

Result<Notice> PeerTable::take(std::int64_t value, std::optional<Fd> fd) {
    if (!has_version_) return take_version(value, fd.has_value());
    if (!own_id_) return take_own_id(value, fd.has_value());
    if (!memory_.is_open()) return take_memory(value, std::move(fd));
    return take_peer(value, std::move(fd));
}

Result<Notice> PeerTable::take_version(std::int64_t value, bool has_fd) {
    // A refusal is -errno in the place of the version.
    if (!has_fd && value < 0 && value > -4096) {
        const int os_error = static_cast<int>(-value);
        return Error::from_errno(os_error, "the ivshmem server refused");
    }
    if (value != ivshmem_protocol_version || has_fd)
        return unexpected(value, has_fd, "version 0 without one");
    has_version_ = true;
    return Notice{.kind = NoticeKind::version, .id = 0, .vector = 0};
}

Result<Notice> PeerTable::take_own_id(std::int64_t value, bool has_fd) {
    if (!is_id(value) || has_fd) return unexpected(value, has_fd, "this client's id without one");
    own_id_ = static_cast<std::uint32_t>(value);
    return Notice{.kind = NoticeKind::own_id, .id = *own_id_, .vector = 0};
}

Result<Notice> PeerTable::take_memory(std::int64_t value, std::optional<Fd> fd) {
    if (value != ivshmem_memory_marker || !fd) return unexpected(value, fd.has_value(), "-1 with the memory");
    const FileFacts facts = GM_TRY(file_facts(*fd));
    if (!facts.is_regular || facts.size_bytes == 0)
        return Error{Errc::corrupt, "ivshmem: the server's memory is not a file with bytes"};
    memory_ = std::move(*fd);
    return Notice{.kind = NoticeKind::memory, .id = *own_id_, .vector = 0};
}

Result<EventFd> PeerTable::adopt_bell(Fd fd, std::uint32_t id) const {
    if (count_doorbells_ == max_table_doorbells)
        return Error{Errc::out_of_range,
                     fmt::format("ivshmem: the server sent more than {} doorbells", max_table_doorbells)};
    return GM_TRY_CONTEXT(EventFd::adopt(std::move(fd)), fmt::format("ivshmem: doorbell of id {}", id));
}

void PeerTable::end_caller(std::uint32_t id) {
    const auto found = callers_.find(id);
    if (found == callers_.end()) return;
    past_callers_.push_back({.id = id, .bells = std::move(found->second)});
    callers_.erase(found);
}

std::vector<PastCaller> PeerTable::take_past_callers() {
    for (const PastCaller& past : past_callers_) count_doorbells_ -= past.bells.size();
    return std::exchange(past_callers_, {});
}

Result<Notice> PeerTable::take_caller(std::int64_t value, std::optional<Fd> fd) {
    if (value == ivshmem_callers_over && !fd) {
        for (std::uint32_t id = 0; id < max_senders; ++id) end_caller(id);
        return Notice{.kind = NoticeKind::caller_over, .id = 0, .vector = 0};
    }
    const std::int64_t number = value - ivshmem_caller_mark;
    if (number < 0 || number >= std::int64_t{max_senders})
        return unexpected(value, fd.has_value(), "a message about a caller");
    const auto id = static_cast<std::uint32_t>(number);
    if (!fd) {
        end_caller(id);
        return Notice{.kind = NoticeKind::caller_over, .id = id, .vector = 0};
    }
    EventFd bell = GM_TRY(adopt_bell(std::move(*fd), id));
    std::vector<EventFd>& bells = callers_[id];
    bells.push_back(std::move(bell));
    ++count_doorbells_;
    return Notice{
        .kind = NoticeKind::caller, .id = id, .vector = static_cast<std::uint32_t>(bells.size() - 1)};
}

Result<Notice> PeerTable::take_peer(std::int64_t value, std::optional<Fd> fd) {
    if (has_callers_ && value >= ivshmem_caller_mark) return take_caller(value, std::move(fd));
    if (!is_id(value)) return unexpected(value, fd.has_value(), "a peer's id");
    const auto id = static_cast<std::uint32_t>(value);
    if (!fd) {
        const auto found = doorbells_.find(id);
        if (found == doorbells_.end() || id == *own_id_)
            return unexpected(value, false, "a doorbell, or the id of a peer that is here,");
        count_doorbells_ -= found->second.size();
        doorbells_.erase(found);
        return Notice{.kind = NoticeKind::gone, .id = id, .vector = 0};
    }
    EventFd bell = GM_TRY(adopt_bell(std::move(*fd), id));
    std::vector<EventFd>& bells = doorbells_[id];
    bells.push_back(std::move(bell));
    ++count_doorbells_;
    return Notice{
        .kind = NoticeKind::doorbell, .id = id, .vector = static_cast<std::uint32_t>(bells.size() - 1)};
}

}  // namespace guestmem::share

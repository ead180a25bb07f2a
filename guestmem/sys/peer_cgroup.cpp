// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/peer_cgroup.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

constexpr std::size_t max_proc_text_bytes = 64 * 1024;

/// The second number of a line of /proc/PID/status.
std::optional<std::uint32_t> effective_id(std::string_view text, std::string_view key) {
    const std::size_t line = text.find(key);
    if (line == std::string_view::npos) return std::nullopt;
    const std::size_t real = text.find_first_not_of('\t', line + key.size());
    const std::size_t begin = text.find_first_not_of('\t', text.find('\t', real));
    if (begin >= text.size()) return std::nullopt;
    std::uint32_t id = 0;
    const auto parsed = std::from_chars(text.data() + begin, text.data() + text.size(), id);
    return parsed.ec == std::errc{} ? std::optional{id} : std::nullopt;
}

/// The process that connected: SO_PEERPIDFD, which knows it by more than its number.
Result<Fd> open_peer(FdView socket, const PeerCredentials& who) {
    constexpr int peer_pidfd = 77;
    int number = -1;
    socklen_t length = sizeof number;
    const int status = checked_call(SysCall::getsockopt, [&] {
        return ::getsockopt(socket.number(), SOL_SOCKET, peer_pidfd, &number, &length);
    });
    if (status == 0) return Fd{number};
    if (errno != ENOPROTOOPT) return Error::from_errno(errno, fmt::format("process {} of a peer", who.pid));
    // Before Linux 6.5: whoever has the number.
    const long opened =
        checked_call(SysCall::pidfd_open, [&] { return ::syscall(SYS_pidfd_open, who.pid, 0); });
    if (opened < 0) return Error::from_errno(errno, fmt::format("process {} of a peer", who.pid));
    Fd process{static_cast<int>(opened)};
    const std::string text =
        GM_TRY(read_text_file(fmt::format("/proc/{}/status", who.pid), max_proc_text_bytes));
    const bool is_same = effective_id(text, "\nUid:") == who.uid && effective_id(text, "\nGid:") == who.gid;
    if (is_same) return process;
    return Error{Errc::not_found, ESRCH, fmt::format("process {} is not the peer any more", who.pid)};
}

}  // namespace

Result<std::string> peer_cgroup(FdView socket) {
    const PeerCredentials who = GM_TRY(credentials_of(socket));
    const Fd process = GM_TRY(open_peer(socket, who));
    const auto text = read_text_file(fmt::format("/proc/{}/cgroup", who.pid), max_proc_text_bytes);
    // A number is given again only when its process has ended: one that still runs is the one that was read about.
    if (GM_TRY(poll_readable(process.view(), 0)))
        return Error{Errc::not_found, ESRCH, fmt::format("process {} of a peer has ended", who.pid)};
    if (!text) return text;
    const std::size_t begin = text->starts_with("0::") ? 0 : text->find("\n0::");
    if (begin == std::string::npos) return std::string{};
    const std::size_t path = text->find("::", begin) + 2;
    return text->substr(path, text->find('\n', path) - path);
}

}  // namespace guestmem

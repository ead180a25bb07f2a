// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/socket_file.hpp"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// As the kernel's dev_t has it.
constexpr unsigned minor_bits = 20;

struct Question {
    nlmsghdr header;
    unix_diag_req request;
};

/// The file's number and device of an answer; nothing where it has none.
std::optional<unix_diag_vfs> find_file(std::span<const std::byte> answer) {
    nlmsghdr header{};
    if (answer.size() < sizeof header + sizeof(unix_diag_msg)) return std::nullopt;
    std::memcpy(&header, answer.data(), sizeof header);
    if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY || header.nlmsg_len > answer.size()) return std::nullopt;
    if (header.nlmsg_len < sizeof header + sizeof(unix_diag_msg)) return std::nullopt;
    auto rest = answer.first(header.nlmsg_len).subspan(sizeof header + sizeof(unix_diag_msg));
    while (rest.size() >= sizeof(rtattr)) {
        rtattr attribute{};
        std::memcpy(&attribute, rest.data(), sizeof attribute);
        if (attribute.rta_len < sizeof attribute || attribute.rta_len > rest.size()) return std::nullopt;
        unix_diag_vfs file{};
        if (attribute.rta_type == UNIX_DIAG_VFS && attribute.rta_len >= sizeof attribute + sizeof file) {
            std::memcpy(&file, rest.data() + sizeof attribute, sizeof file);
            return file;
        }
        rest = rest.subspan(std::min<std::size_t>(RTA_ALIGN(attribute.rta_len), rest.size()));
    }
    return std::nullopt;
}

/// What the socket with this number is bound to, where the kernel tells.
std::optional<unix_diag_vfs> ask_kernel(std::uint32_t number) {
    const Fd link{checked_call(SysCall::socket, [] {
        return ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);
    })};
    if (!link.is_open()) return std::nullopt;
    Question question{};
    question.header.nlmsg_len = sizeof question;
    question.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    question.header.nlmsg_flags = NLM_F_REQUEST;
    question.request.sdiag_family = AF_UNIX;
    question.request.udiag_states = ~0U;
    question.request.udiag_ino = number;
    question.request.udiag_show = UDIAG_SHOW_VFS;
    question.request.udiag_cookie[0] = question.request.udiag_cookie[1] = ~0U;
    const int fd = link.view().number();
    if (checked_call(SysCall::sendmsg, [&] { return ::send(fd, &question, sizeof question, MSG_NOSIGNAL); }) <
        0)
        return std::nullopt;
    // The answer is there when the question has been taken.
    alignas(nlmsghdr) std::array<std::byte, 4096> answer;
    const ssize_t count = checked_call(
        SysCall::recvmsg, [&] { return ::recv(fd, answer.data(), answer.size(), MSG_DONTWAIT); });
    if (count < 0) return std::nullopt;
    return find_file(std::span{answer}.first(static_cast<std::size_t>(count)));
}

}  // namespace

Result<SocketFile> look_at_socket_file(FdView socket, const std::string& path) {
    struct stat there{};
    if (checked_call(SysCall::stat, [&] { return ::lstat(path.c_str(), &there); }) < 0) {
        if (errno == ENOENT || errno == ENOTDIR) return SocketFile::gone;
        return Error::from_errno(errno, fmt::format("socket {}: look at its file", path));
    }
    if (!S_ISSOCK(there.st_mode)) return SocketFile::another;
    struct stat own{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(socket.number(), &own); }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: its number", path));
    const auto file = ask_kernel(static_cast<std::uint32_t>(own.st_ino));
    if (!file) return SocketFile::same;
    const auto device = static_cast<std::uint32_t>(major(there.st_dev) << minor_bits | minor(there.st_dev));
    const bool is_same =
        file->udiag_vfs_ino == static_cast<std::uint32_t>(there.st_ino) && file->udiag_vfs_dev == device;
    return is_same ? SocketFile::same : SocketFile::another;
}

}  // namespace guestmem

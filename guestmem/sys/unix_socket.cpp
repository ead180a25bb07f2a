// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/unix_socket.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string_view>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd_message.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem {
namespace {

constexpr int backlog = 128;

Result<sockaddr_un> to_address(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() > max_socket_path_bytes)
        return Error{Errc::out_of_range, fmt::format("socket path '{}' has {} bytes; it must have 1 to {}",
                                                     path, path.size(), max_socket_path_bytes)};
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

Result<Fd> make_socket(int type) {
    Fd fd{checked_call(SysCall::socket, [&] { return ::socket(AF_UNIX, type | SOCK_CLOEXEC, 0); })};
    if (!fd.is_open()) return Error::from_errno(errno, "make a socket");
    return fd;
}

int connect_to(const Fd& fd, const sockaddr_un& address) {
    return checked_call(SysCall::connect, [&] {
        return ::connect(fd.view().number(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    });
}

/// How long calls that send, and connect(2), wait; 0: for ever.
int set_send_timeout(const Fd& fd, std::int64_t timeout_ms) {
    constexpr std::int64_t ms_per_s = 1000;
    constexpr std::int64_t us_per_ms = 1000;
    const timeval timeout{.tv_sec = timeout_ms / ms_per_s, .tv_usec = timeout_ms % ms_per_s * us_per_ms};
    return checked_call(SysCall::setsockopt, [&] {
        return ::setsockopt(fd.view().number(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    });
}

/// One connect(2), which a signal can interrupt: it is made again with the time that is left. A socket that does not
/// block cannot be waited for here: on a full backlog it is told EAGAIN, and poll(2) says nothing.
int connect_until(const Fd& fd, const sockaddr_un& address, const Deadline& deadline) {
    const int status =
        ::connect(fd.view().number(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    if (status == 0 || errno != EINTR) return status;
    const std::int64_t left_ms = deadline.left().count();
    errno = EAGAIN;
    if (left_ms == 0 || set_send_timeout(fd, left_ms) < 0) return -1;
    errno = EINTR;
    return -1;
}

enum class Occupant { nobody, stale_socket };

/// Who sits at the path. A live server or a file of another kind is an error. The question is asked with a
/// datagram socket: the kernel answers EPROTOTYPE when a stream socket is alive there and ECONNREFUSED when none
/// is, and the server never notices. (A connection made and closed would occupy a slot, and ends the stock
/// ivshmem-server.)
Result<Occupant> occupant_of(const std::string& path, const sockaddr_un& address) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::lstat(path.c_str(), &status); }) < 0) {
        if (errno == ENOENT) return Occupant::nobody;
        return Error::from_errno(errno, fmt::format("socket {}", path));
    }
    if (!S_ISSOCK(status.st_mode))
        return Error{Errc::already_exists, EEXIST,
                     fmt::format("socket {}: a file that is not a socket is in the way; remove it or choose "
                                 "another path",
                                 path)};
    const Fd probe = GM_TRY(make_socket(SOCK_DGRAM));
    if (connect_to(probe, address) == 0 || errno == EPROTOTYPE)
        return Error{
            Errc::busy, EADDRINUSE,
            fmt::format("socket {}: another server is listening there; stop it or choose another path",
                        path)};
    if (errno == ECONNREFUSED || errno == ENOENT) return Occupant::stale_socket;
    return Error::from_errno(errno, fmt::format("socket {}: ask who listens there", path));
}

/// Holds the folder's advisory lock while a stale socket is replaced, so that two servers that start at the
/// same time do not remove each other's file. Where somebody else holds the lock for long (a shared folder
/// such as /tmp has other users) the start goes on without it after the wait.
Result<Fd> lock_folder(const std::string& path) {
    Fd folder = GM_TRY(open_file(parent_folder(path), OpenMode::read));
    constexpr int tries = 50;
    for (int turn = 0; turn < tries; ++turn) {
        const int status =
            checked_call(SysCall::flock, [&] { return ::flock(folder.view().number(), LOCK_EX | LOCK_NB); });
        if (status == 0) break;
        if (errno != EWOULDBLOCK)
            return Error::from_errno(errno, fmt::format("lock folder {}", parent_folder(path)));
        ::poll(nullptr, 0, 20);
    }
    return folder;
}

/// Whose a file is that this process makes in the folder of `path`.
Result<std::pair<uid_t, gid_t>> native_owner(const std::string& path) {
    struct stat folder{};
    if (checked_call(SysCall::stat, [&] { return ::stat(parent_folder(path).c_str(), &folder); }) < 0)
        return Error::from_errno(errno, fmt::format("folder {}", parent_folder(path)));
    const bool is_inherited = (folder.st_mode & S_ISGID) != 0;
    return std::pair{::geteuid(), is_inherited ? folder.st_gid : ::getegid()};
}

Result<void> dress(const ListenOptions& options) {
    const char* path = options.path.c_str();
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::lstat(path, &status); }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}", options.path));
    const auto [own_owner, own_group] = GM_TRY(native_owner(options.path));
    const uid_t owner = options.owner.value_or(own_owner);
    const gid_t group = options.group.value_or(own_group);
    if (status.st_uid != owner || status.st_gid != group) {
        if (checked_call(SysCall::chown, [&] { return ::lchown(path, owner, group); }) < 0)
            return Error::from_errno(errno,
                                     fmt::format("socket {}: give it to owner {} group {}", options.path,
                                                 static_cast<std::int64_t>(static_cast<int>(owner)),
                                                 static_cast<std::int64_t>(static_cast<int>(group))));
    }
    if (checked_call(SysCall::fchmod, [&] { return ::chmod(path, options.mode); }) < 0)
        return Error::from_errno(errno,
                                 fmt::format("socket {}: set mode {:04o}", options.path, options.mode));
    return {};
}

}  // namespace

Result<UnixStream> UnixStream::connect(const std::string& path) {
    const sockaddr_un address = GM_TRY(to_address(path));
    Fd fd = GM_TRY(make_socket(SOCK_STREAM));
    if (connect_to(fd, address) < 0) return Error::from_errno(errno, fmt::format("connect to {}", path));
    return UnixStream{std::move(fd)};
}

Result<UnixStream> UnixStream::connect(const std::string& path, const Deadline& deadline) {
    const sockaddr_un address = GM_TRY(to_address(path));
    Fd fd = GM_TRY(make_socket(SOCK_STREAM));
    const std::int64_t given_ms = deadline.left().count();
    if (set_send_timeout(fd, std::max<std::int64_t>(given_ms, 1)) < 0)
        return Error::from_errno(errno, fmt::format("connect to {}: set the time to wait", path));
    const int status = checked_call(SysCall::connect, [&] { return connect_until(fd, address, deadline); });
    if (status < 0) {
        if (errno == EAGAIN)
            return Error{Errc::timed_out, EAGAIN,
                         fmt::format("connect to {}: its server has not taken the connection within {} ms",
                                     path, given_ms)};
        return Error::from_errno(errno, fmt::format("connect to {}", path));
    }
    if (set_send_timeout(fd, 0) < 0)
        return Error::from_errno(errno, fmt::format("connect to {}: clear the time to wait", path));
    return UnixStream{std::move(fd)};
}

Result<std::pair<UnixStream, UnixStream>> UnixStream::pair() {
    std::array<int, 2> ends{-1, -1};
    if (checked_call(SysCall::socketpair,
                     [&] { return ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()); }) < 0)
        return Error::from_errno(errno, "make a pair of sockets");
    return std::pair{UnixStream{Fd{ends[0]}}, UnixStream{Fd{ends[1]}}};
}

Result<UnixStream> UnixStream::adopt(Fd fd) {
    const FileFacts facts = GM_TRY(file_facts(fd));
    if (!facts.is_socket) return Error{Errc::invalid_argument, "a received descriptor is not a socket"};
    return UnixStream{std::move(fd)};
}

Result<SendOutcome> UnixStream::send(std::span<const std::byte> bytes, std::span<const FdView> fds) const {
    GM_CHECK(fds.size() <= max_fds_per_message);
    // The buffer is what the kernel reads; sendmsg does not write through iov_base.
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    alignas(cmsghdr) std::array<unsigned char, CMSG_SPACE(sizeof(int) * max_fds_per_message)> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    put_fds(header, control, fds);
    const ssize_t count =
        checked_call(SysCall::sendmsg, [&] { return ::sendmsg(fd_.view().number(), &header, MSG_NOSIGNAL); });
    if (count >= 0) return SendOutcome{SendStatus::sent, static_cast<std::size_t>(count)};
    if (errno == EAGAIN) return SendOutcome{SendStatus::would_block, 0};
    if (errno == ETOOMANYREFS) return SendOutcome{SendStatus::too_many_in_flight, 0};
    return Error::from_errno(errno, "send on a socket");
}

Result<std::optional<Received>> UnixStream::receive(std::span<std::byte> buffer) const {
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) std::array<unsigned char, CMSG_SPACE(sizeof(int) * max_fds_per_message)> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t count = checked_call(
        SysCall::recvmsg, [&] { return ::recvmsg(fd_.view().number(), &header, MSG_CMSG_CLOEXEC); });
    if (count < 0) {
        if (errno == EAGAIN) return std::optional<Received>{};
        return Error::from_errno(errno, "receive on a socket");
    }
    Received received;
    received.count_bytes = static_cast<std::size_t>(count);
    take_fds(header, received.fds);
    received.has_lost_fds = (header.msg_flags & MSG_CTRUNC) != 0;
    return std::optional{std::move(received)};
}

Result<std::optional<Peeked>> UnixStream::peek(std::span<std::byte> buffer) const {
    iovec part{buffer.data(), buffer.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    const ssize_t count = checked_call(SysCall::recvmsg, [&] {
        return ::recvmsg(fd_.view().number(), &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    });
    if (count < 0) {
        if (errno == EAGAIN) return std::optional<Peeked>{};
        return Error::from_errno(errno, "look at a socket");
    }
    // Without room for them the kernel says that there are descriptors, and leaves them where they are.
    return std::optional{Peeked{.count_bytes = static_cast<std::size_t>(count),
                                .has_fds = (header.msg_flags & MSG_CTRUNC) != 0}};
}

Result<bool> UnixStream::wait_readable(int timeout_ms) const { return poll_readable(fd_.view(), timeout_ms); }

Result<PeerCredentials> credentials_of(FdView socket) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (checked_call(SysCall::getsockopt, [&] {
            return ::getsockopt(socket.number(), SOL_SOCKET, SO_PEERCRED, &credentials, &length);
        }) < 0)
        return Error::from_errno(errno, "credentials of a peer");
    return PeerCredentials{.pid = credentials.pid, .uid = credentials.uid, .gid = credentials.gid};
}

Result<PeerCredentials> UnixStream::peer() const { return credentials_of(fd_); }

Result<std::uint64_t> UnixStream::unread_by_peer() const {
    int count = 0;
    if (checked_call(SysCall::ioctl, [&] { return ::ioctl(fd_.view().number(), SIOCOUTQ, &count); }) < 0)
        return Error::from_errno(errno, "unread bytes of a socket");
    return static_cast<std::uint64_t>(count);
}

Result<void> UnixStream::set_nonblocking() const {
    const int number = fd_.view().number();
    if (checked_call(SysCall::setsockopt, [&] { return ::fcntl(number, F_SETFL, O_NONBLOCK); }) < 0)
        return Error::from_errno(errno, "make a socket non-blocking");
    return {};
}

Result<void> UnixStream::set_send_buffer(int size_bytes) const {
    if (checked_call(SysCall::setsockopt, [&] {
            return ::setsockopt(fd_.view().number(), SOL_SOCKET, SO_SNDBUF, &size_bytes, sizeof size_bytes);
        }) < 0)
        return Error::from_errno(errno, "set the send buffer of a socket");
    return {};
}

void UnixStream::shut_down() const noexcept { ::shutdown(fd_.view().number(), SHUT_RDWR); }

Result<void> check_socket_path(const std::string& path) {
    const sockaddr_un address = GM_TRY(to_address(path));
    if (!is_folder(parent_folder(path)))
        return Error{
            Errc::not_found, ENOENT,
            fmt::format("socket {}: folder {} does not exist; make it first", path, parent_folder(path))};
    GM_TRY(occupant_of(path, address));
    return {};
}

Result<UnixListener> UnixListener::create(const ListenOptions& options) {
    GM_TRY(check_socket_path(options.path));
    const sockaddr_un address = GM_TRY(to_address(options.path));
    const Fd lock = GM_TRY_CONTEXT(lock_folder(options.path), fmt::format("socket {}", options.path));
    if (GM_TRY(occupant_of(options.path, address)) == Occupant::stale_socket) ::unlink(options.path.c_str());

    Fd fd = GM_TRY_CONTEXT(make_socket(SOCK_STREAM | SOCK_NONBLOCK), fmt::format("socket {}", options.path));
    const int number = fd.view().number();
    if (checked_call(SysCall::bind, [&] {
            return ::bind(number, reinterpret_cast<const sockaddr*>(&address), sizeof address);
        }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: bind", options.path));

    // From here on the file is ours: the listener removes it on every way out.
    UnixListener listener{std::move(fd), options.path};
    listener.know_file();
    GM_TRY(dress(options));
    if (checked_call(SysCall::listen, [&] { return ::listen(number, backlog); }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: listen", options.path));
    return listener;
}

void UnixListener::know_file() {
    struct stat status{};
    if (::lstat(path_.c_str(), &status) != 0) return;
    device_ = status.st_dev;
    inode_ = status.st_ino;
}

Result<std::string> listening_path(FdView fd) {
    const int number = fd.number();
    int is_listening = 0;
    socklen_t length = sizeof is_listening;
    if (checked_call(SysCall::getsockopt, [&] {
            return ::getsockopt(number, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &length);
        }) < 0)
        return Error::from_errno(errno, "ask whether a descriptor listens");
    sockaddr_un address{};
    socklen_t size = sizeof address;
    if (checked_call(SysCall::getsockopt,
                     [&] { return ::getsockname(number, reinterpret_cast<sockaddr*>(&address), &size); }) < 0)
        return Error::from_errno(errno, "ask for the path of a listening socket");
    constexpr std::size_t before_path = offsetof(sockaddr_un, sun_path);
    const std::size_t path_size =
        size > before_path ? std::min<std::size_t>(size - before_path, sizeof address.sun_path) : 0;
    const std::string path{address.sun_path, ::strnlen(address.sun_path, path_size)};
    if (is_listening == 0 || address.sun_family != AF_UNIX || path.empty())
        return Error{Errc::invalid_argument, "a descriptor is no listening Unix socket with a path"};
    return path;
}

Result<UnixListener> UnixListener::adopt(Fd fd, bool is_owner) {
    std::string path = GM_TRY(listening_path(fd));
    const int number = fd.view().number();
    if (checked_call(SysCall::setsockopt, [&] { return ::fcntl(number, F_SETFL, O_NONBLOCK); }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: make it non-blocking", path));
    UnixListener listener{std::move(fd), std::move(path)};
    if (is_owner) listener.know_file();
    return listener;
}

Result<void> UnixListener::set_access(const ListenOptions& options) const {
    ListenOptions wanted = options;
    wanted.path = path_;
    return dress(wanted);
}

UnixListener& UnixListener::operator=(UnixListener&& other) noexcept {
    if (this != &other) {
        remove_file();
        fd_ = std::move(other.fd_);
        path_ = std::move(other.path_);
        device_ = other.device_;
        inode_ = other.inode_;
    }
    return *this;
}

UnixListener::~UnixListener() { remove_file(); }

void UnixListener::remove_file() noexcept {
    if (!fd_.is_open()) return;
    struct stat status{};
    if (inode_ != 0 && ::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ &&
        status.st_ino == inode_)
        ::unlink(path_.c_str());
}

Result<std::optional<UnixStream>> UnixListener::accept() const {
    Fd fd{checked_call(SysCall::accept, [&] {
        return ::accept4(fd_.view().number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    })};
    if (fd.is_open()) return std::optional{UnixStream{std::move(fd)}};
    if (errno == EAGAIN || errno == ECONNABORTED) return std::optional<UnixStream>{};
    return Error::from_errno(errno, fmt::format("accept on {}", path_));
}

}  // namespace guestmem

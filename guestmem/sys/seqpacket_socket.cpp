// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/seqpacket_socket.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd_message.hpp"
#include "guestmem/sys/file_lock.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

constexpr int backlog = 16;
/// What the kernel lets through at most, so that whatever is sent fits.
constexpr std::size_t max_received_fds = 253;

Result<sockaddr_un> to_address(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() > max_socket_path_bytes)
        return Error{Errc::out_of_range, fmt::format("socket path '{}' has {} bytes; it must have 1 to {}",
                                                     path, path.size(), max_socket_path_bytes)};
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

Result<Fd> make_socket() {
    Fd fd{checked_call(SysCall::socket,
                       [] { return ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); })};
    if (!fd.is_open()) return Error::from_errno(errno, "make a socket");
    return fd;
}

/// Against two processes that replace one stale file at the same time. Without it after a second: in a shared folder
/// others may hold its lock for as long as they like.
Result<std::optional<FileLock>> lock_folder(const std::string& path) {
    constexpr int tries = 50;
    for (int turn = 0; turn < tries; ++turn) {
        Fd folder = GM_TRY(open_file(parent_folder(path), OpenMode::read));
        auto lock = GM_TRY(FileLock::try_exclusive(std::move(folder)));
        if (lock) return lock;
        ::poll(nullptr, 0, 20);
    }
    return std::optional<FileLock>{};
}

}  // namespace

Result<SeqpacketStream> SeqpacketStream::connect(const std::string& path) {
    const sockaddr_un address = GM_TRY(to_address(path));
    Fd fd = GM_TRY(make_socket());
    const int status = checked_call(SysCall::connect, [&] {
        return ::connect(fd.view().number(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    });
    if (status < 0) return Error::from_errno(errno, fmt::format("connect to {}", path));
    return SeqpacketStream{std::move(fd)};
}

Result<std::pair<SeqpacketStream, SeqpacketStream>> SeqpacketStream::pair() {
    std::array<int, 2> ends{-1, -1};
    if (checked_call(SysCall::socketpair, [&] {
            return ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data());
        }) < 0)
        return Error::from_errno(errno, "make a pair of sockets");
    return std::pair{SeqpacketStream{Fd{ends[0]}}, SeqpacketStream{Fd{ends[1]}}};
}

Result<SendStatus> SeqpacketStream::send(std::span<const std::byte> bytes,
                                         std::span<const FdView> fds) const {
    GM_CHECK(!bytes.empty() && fds.size() <= max_fds_per_packet);
    // The buffer is what the kernel reads; sendmsg does not write through iov_base.
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    alignas(cmsghdr) std::array<unsigned char, CMSG_SPACE(sizeof(int) * max_fds_per_packet)> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    put_fds(header, control, fds);
    const ssize_t count = checked_call(SysCall::sendmsg, [&] {
        return ::sendmsg(fd_.view().number(), &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    });
    if (count >= 0) return SendStatus::sent;
    if (errno == EAGAIN) return SendStatus::would_block;
    if (errno == ETOOMANYREFS) return SendStatus::too_many_in_flight;
    return Error::from_errno(errno, "send a packet");
}

Result<std::optional<ReceivedPacket>> SeqpacketStream::receive(std::span<std::byte> buffer) const {
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) std::array<unsigned char, CMSG_SPACE(sizeof(int) * max_received_fds)> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t count = checked_call(SysCall::recvmsg, [&] {
        return ::recvmsg(fd_.view().number(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    });
    if (count < 0) {
        if (errno == EAGAIN) return std::optional<ReceivedPacket>{};
        return Error::from_errno(errno, "receive a packet");
    }
    ReceivedPacket packet;
    packet.count_bytes = static_cast<std::size_t>(count);
    take_fds(header, packet.fds);
    packet.is_cut = (header.msg_flags & MSG_TRUNC) != 0;
    packet.has_lost_fds = (header.msg_flags & MSG_CTRUNC) != 0;
    return std::optional{std::move(packet)};
}

Result<PeerCredentials> SeqpacketStream::peer() const { return credentials_of(fd_); }

Result<Fd> SeqpacketStream::watch_hangup() const {
    Fd watch{checked_call(SysCall::epoll, [] { return ::epoll_create1(EPOLL_CLOEXEC); })};
    if (!watch.is_open()) return Error::from_errno(errno, "make a watch of a socket");
    epoll_event event{};
    event.events = EPOLLRDHUP;  // the kernel adds EPOLLHUP and EPOLLERR
    if (checked_call(SysCall::epoll, [&] {
            return ::epoll_ctl(watch.view().number(), EPOLL_CTL_ADD, fd_.view().number(), &event);
        }) < 0)
        return Error::from_errno(errno, "watch a socket");
    return watch;
}

bool SeqpacketStream::is_hung_up() const {
    pollfd entry{.fd = fd_.view().number(), .events = POLLRDHUP, .revents = 0};
    return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

Result<SeqpacketListener> SeqpacketListener::create(const std::string& path) {
    GM_TRY(check_socket_path(path));
    const sockaddr_un address = GM_TRY(to_address(path));
    const auto lock = GM_TRY_CONTEXT(lock_folder(path), fmt::format("socket {}", path));
    GM_TRY(check_socket_path(path));
    ::unlink(path.c_str());  // a stale socket, or nothing

    Fd fd = GM_TRY_CONTEXT(make_socket(), fmt::format("socket {}", path));
    const int number = fd.view().number();
    if (checked_call(SysCall::bind, [&] {
            return ::bind(number, reinterpret_cast<const sockaddr*>(&address), sizeof address);
        }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: bind", path));

    // From here on the file is ours: the listener removes it on every way out.
    SeqpacketListener listener{std::move(fd), path};
    struct stat status{};
    if (::lstat(path.c_str(), &status) == 0) {
        listener.device_ = status.st_dev;
        listener.inode_ = status.st_ino;
    }
    if (checked_call(SysCall::fchmod, [&] { return ::chmod(path.c_str(), 0600); }) < 0)
        return Error::from_errno(errno, fmt::format("socket {}: set mode 0600", path));
    GM_TRY_CONTEXT(listener.listen_as_this_process(), fmt::format("socket {}", path));
    return listener;
}

Result<void> SeqpacketListener::listen_as_this_process() const {
    if (checked_call(SysCall::listen, [&] { return ::listen(fd_.view().number(), backlog); }) < 0)
        return Error::from_errno(errno, "listen");
    return {};
}

SeqpacketListener& SeqpacketListener::operator=(SeqpacketListener&& other) noexcept {
    if (this != &other) {
        remove_file();
        fd_ = std::move(other.fd_);
        path_ = std::move(other.path_);
        device_ = other.device_;
        inode_ = other.inode_;
    }
    return *this;
}

SeqpacketListener::~SeqpacketListener() { remove_file(); }

void SeqpacketListener::remove_file() noexcept {
    if (!fd_.is_open() || path_.empty()) return;
    struct stat status{};
    if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_)
        ::unlink(path_.c_str());
}

Result<std::optional<SeqpacketStream>> SeqpacketListener::accept() const {
    Fd fd{checked_call(SysCall::accept, [&] {
        return ::accept4(fd_.view().number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    })};
    if (fd.is_open()) return std::optional{SeqpacketStream{std::move(fd)}};
    if (errno == EAGAIN || errno == ECONNABORTED) return std::optional<SeqpacketStream>{};
    return Error::from_errno(errno, "accept a connection");
}

Result<std::string> bound_path(FdView socket) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (checked_call(SysCall::getsockopt, [&] {
            return ::getsockname(socket.number(), reinterpret_cast<sockaddr*>(&address), &length);
        }) < 0)
        return Error::from_errno(errno, fmt::format("address of socket {}", socket.number()));
    constexpr std::size_t before = offsetof(sockaddr_un, sun_path);
    if (address.ss_family != AF_UNIX || length <= before) return std::string{};
    const auto* const path = reinterpret_cast<const char*>(&address) + before;
    const std::size_t room_bytes = std::min<std::size_t>(length, sizeof(sockaddr_un)) - before;
    if (path[0] == '\0') return fmt::format("@{}", std::string_view{path + 1, room_bytes - 1});
    return std::string{path, ::strnlen(path, room_bytes)};
}

}  // namespace guestmem

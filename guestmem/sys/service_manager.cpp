// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/service_manager.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

constexpr int first_passed_fd = 3;

/// This room's calls say -1, with the reason in errno.
int refuse(int os_error) {
    errno = os_error;
    return -1;
}

/// One datagram to $NOTIFY_SOCKET: 1 when it is sent, 0 when there is no such socket.
int send_datagram(std::string_view state, const int* fds, std::size_t count) {
    const auto path = environment("NOTIFY_SOCKET");
    if (!path) return 0;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const bool is_abstract = path->front() == '@';
    if (!is_abstract && path->front() != '/') return refuse(EAFNOSUPPORT);
    // A file's name ends in a NUL; the kernel's name of one that is no file has its length instead.
    if (path->size() + (is_abstract ? 0 : 1) > sizeof address.sun_path) return refuse(E2BIG);
    std::memcpy(address.sun_path, path->data(), path->size());
    if (is_abstract) address.sun_path[0] = '\0';
    const std::size_t address_bytes = offsetof(sockaddr_un, sun_path) + path->size() + (is_abstract ? 0 : 1);

    const Fd socket{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    if (!socket.is_open()) return -1;
    iovec part{const_cast<char*>(state.data()), state.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_name = &address;
    message.msg_namelen = static_cast<socklen_t>(address_bytes);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (count != 0) {
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* const rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(rights), fds, sizeof(int));
    }
    for (;;) {
        if (::sendmsg(socket.view().number(), &message, MSG_NOSIGNAL) >= 0) return 1;
        if (errno != EINTR) return -1;
    }
}

/// The manager closes its copy of a pipe's end when it has worked on all that came before.
int wait_at_barrier(int timeout_ms) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) < 0) return -1;
    const Fd waiting{ends[0]};
    Fd passed{ends[1]};
    const int number = passed.view().number();
    if (const int sent = send_datagram("BARRIER=1", &number, 1); sent <= 0) return sent;
    passed = Fd{};
    pollfd entry{.fd = waiting.view().number(), .events = 0, .revents = 0};
    const Deadline deadline{std::chrono::milliseconds{timeout_ms}};
    for (;;) {
        // Interrupted, it waits for this barrier until the same moment: another one would begin anew.
        const int ready = ::poll(&entry, 1, static_cast<int>(deadline.left().count()));
        if (ready == 0) return refuse(ETIMEDOUT);
        if (ready > 0) return 1;
        if (errno != EINTR) return -1;
    }
}

/// A number that is the whole of a variable; nothing where that is not set.
std::optional<long> number_in(const char* name) {
    const auto text = environment(name);
    if (!text) return std::nullopt;
    long number = -1;
    const char* const past = text->data() + text->size();
    const auto [rest, status] = std::from_chars(text->data(), past, number);
    return status == std::errc{} && rest == past ? number : -1;
}

/// How many descriptors are passed to this process; 0: none, or they are another's. Those that are there are owned from
/// here on, whatever is wrong with the rest.
int take_passed(std::vector<Fd>& taken) {
    const auto process = number_in("LISTEN_PID");
    if (!process) return 0;
    if (*process <= 0) return refuse(EINVAL);
    if (*process != own_process()) return 0;
    const auto count = number_in("LISTEN_FDS");
    if (!count) return 0;
    if (*count <= 0 || *count > std::numeric_limits<int>::max() - first_passed_fd) return refuse(EINVAL);
    for (int fd = first_passed_fd; fd < first_passed_fd + *count; ++fd) {
        const int flags = ::fcntl(fd, F_GETFD);
        if (flags < 0) return -1;
        taken.emplace_back(fd);
        if (::fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0) return -1;
    }
    return static_cast<int>(*count);
}

/// The names stand between colons; without the variable all are "unknown".
int name_passed(std::vector<std::string>& names, int count) {
    if (count <= 0) return count;
    const auto text = environment("LISTEN_FDNAMES");
    names.assign(static_cast<std::size_t>(count), "unknown");
    if (!text) return count;
    std::string_view rest = *text;
    if (std::ranges::count(rest, ':') + 1 != count) return refuse(EINVAL);
    for (std::string& name : names) {
        name = rest.substr(0, rest.find(':'));
        rest.remove_prefix(std::min(rest.size(), name.size() + 1));
    }
    return count;
}

/// A descriptor in flight counts against this user's limit until the manager has taken it: it is given so many times
/// retry_ms, and no more, for the caller may be an event loop.
constexpr int in_flight_tries = 4;
constexpr int retry_ms = 5;

template <typename Function>
int try_in_flight(Function&& function) {
    for (int turn = 0;; ++turn) {
        const int status = checked_call(SysCall::notify, function);
        if (status >= 0 || errno != ETOOMANYREFS || turn == in_flight_tries) return status;
        ::poll(nullptr, 0, retry_ms);
    }
}

int notify(const std::string& state, const int* fds, std::size_t count) {
    return try_in_flight([&] { return send_datagram(state, fds, count); });
}

/// For a call that passed a descriptor.
Error passing_error(int os_error, const std::string& what) {
    if (os_error != ETOOMANYREFS) return Error::from_errno(os_error, what);
    return Error{Errc::timed_out, os_error,
                 what + ": too many descriptors of this user are under way (RLIMIT_NOFILE)"};
}

Error no_manager(const std::string& what) {
    return Error{Errc::unavailable,
                 fmt::format("{}: there is no service manager ($NOTIFY_SOCKET is not set)", what)};
}

}  // namespace

Result<std::vector<PassedFd>> take_passed_fds() {
    std::vector<std::string> names;
    std::vector<Fd> taken;
    const int count =
        checked_call(SysCall::passed_fds, [&] { return name_passed(names, take_passed(taken)); });
    const int reason = errno;
    for (const char* const name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
    if (count < 0)
        return Error::from_errno(reason, "take the descriptors of the service manager ($LISTEN_FDS)");
    std::vector<PassedFd> passed;
    passed.reserve(taken.size());
    for (std::size_t i = 0; i < taken.size(); ++i)
        passed.push_back({.name = std::move(names[i]), .fd = std::move(taken[i])});
    return passed;
}

bool has_service_manager() { return environment("NOTIFY_SOCKET").has_value(); }

std::optional<std::uint64_t> descriptor_store_limit() {
    const auto text = environment("FDSTORE");
    if (!text) return std::nullopt;
    std::uint64_t limit = 0;
    const char* const past = text->data() + text->size();
    const auto [rest, status] = std::from_chars(text->data(), past, limit);
    if (status != std::errc{} || rest != past) return std::nullopt;
    return limit;
}

Result<void> store_descriptor(const std::string& name, FdView fd) {
    const std::string what = fmt::format("store descriptor '{}' with the service manager", name);
    const int number = fd.number();
    const int status = notify(fmt::format("FDSTORE=1\nFDNAME={}\nFDPOLL=0", name), &number, 1);
    if (status < 0) return passing_error(errno, what);
    if (status == 0) return no_manager(what);
    return {};
}

Result<void> remove_stored_descriptors(const std::string& name) {
    const std::string what = fmt::format("remove descriptor '{}' from the service manager", name);
    const int status = notify(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name), nullptr, 0);
    if (status < 0) return Error::from_errno(errno, what);
    if (status == 0) return no_manager(what);
    return {};
}

Result<void> wait_for_manager(int timeout_ms) {
    const int status = try_in_flight([&] { return wait_at_barrier(timeout_ms); });
    if (status < 0) return passing_error(errno, "wait for the service manager");
    if (status == 0) return no_manager("wait for the service manager");
    return {};
}

Result<void> notify_ready(const std::string& status) {
    if (notify(fmt::format("READY=1\nSTATUS={}", status), nullptr, 0) < 0)
        return Error::from_errno(errno, "tell the service manager that the service is ready");
    return {};
}

void notify_stopping() { static_cast<void>(notify("STOPPING=1", nullptr, 0)); }

}  // namespace guestmem

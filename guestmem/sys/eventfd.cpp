// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/eventfd.hpp"

#include <fmt/format.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <charconv>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

constexpr std::string_view count_key = "eventfd-count:";

/// The counter that fdinfo shows, in hexadecimal; an error for what is no eventfd.
Result<std::uint64_t> count_in_fdinfo(FdView fd) {
    const std::string path = fmt::format("/proc/self/fdinfo/{}", fd.number());
    const std::string text = GM_TRY(read_text_file(path, 4096));
    std::size_t at = text.find(count_key);
    if (at == std::string::npos)
        return Error{Errc::invalid_argument, fmt::format("descriptor {} is not an eventfd", fd.number())};
    at = text.find_first_not_of(" \t", at + count_key.size());
    std::uint64_t count = 0;
    if (at == std::string::npos ||
        std::from_chars(text.data() + at, text.data() + text.size(), count, 16).ec != std::errc{})
        return Error{Errc::corrupt, fmt::format("{}: unreadable {}", path, count_key)};
    return count;
}

/// Asked by its name, which takes no right to open files: a path begins with a slash, and this does not.
Result<void> check_is_eventfd(FdView fd) {
    constexpr std::string_view name_of_eventfds = "anon_inode:[eventfd]";
    const std::string path = fmt::format("/proc/self/fd/{}", fd.number());
    std::array<char, 64> name{};
    const ssize_t size =
        checked_call(SysCall::readlink, [&] { return ::readlink(path.c_str(), name.data(), name.size()); });
    if (size < 0) return Error::from_errno(errno, fmt::format("ask what descriptor {} is", fd.number()));
    if (std::string_view{name.data(), static_cast<std::size_t>(size)} != name_of_eventfds)
        return Error{Errc::invalid_argument, fmt::format("descriptor {} is not an eventfd", fd.number())};
    return {};
}

}  // namespace

Result<EventFd> EventFd::create() {
    Fd fd{checked_call(SysCall::eventfd, [] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); })};
    if (!fd.is_open()) return Error::from_errno(errno, "eventfd");
    return EventFd{std::move(fd)};
}

Result<EventFd> EventFd::adopt(Fd fd) {
    GM_TRY(check_is_eventfd(fd));
    return EventFd{std::move(fd)};
}

Result<void> EventFd::ring() const {
    pollfd entry{.fd = fd_.view().number(), .events = POLLOUT, .revents = 0};
    if (checked_call(SysCall::poll, [&] { return ::poll(&entry, 1, 0); }) < 0)
        return Error::from_errno(errno, "look at an eventfd");
    if ((entry.revents & POLLOUT) == 0) return {};
    return kick();
}

Result<void> EventFd::kick() const {
    const std::uint64_t one = 1;
    const ssize_t count =
        checked_call(SysCall::write, [&] { return ::write(fd_.view().number(), &one, sizeof one); });
    if (count < 0 && errno != EAGAIN) return Error::from_errno(errno, "ring an eventfd");
    return {};
}

namespace {

/// read(2) that does not wait, also on an eventfd whose holder made it blocking. -1 with EAGAIN when it is empty.
ssize_t read_without_waiting(int number, std::uint64_t& value) {
    const iovec part{&value, sizeof value};
    const ssize_t count = ::preadv2(number, &part, 1, -1, RWF_NOWAIT);
    if (count >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS)) return count;
    // An emulator or a kernel without that flag: look first. Another reader between the two could make this wait.
    pollfd entry{.fd = number, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&entry, 1, 0);
    if (ready > 0) return ::read(number, &value, sizeof value);
    if (ready == 0) errno = EAGAIN;
    return -1;
}

}  // namespace

Result<std::uint64_t> EventFd::drain() const {
    std::uint64_t value = 0;
    const ssize_t count =
        checked_call(SysCall::read, [&] { return read_without_waiting(fd_.view().number(), value); });
    if (count < 0 && errno != EAGAIN) return Error::from_errno(errno, "drain an eventfd");
    return count < 0 ? 0 : value;
}

Result<std::uint64_t> EventFd::wait(int timeout_ms) const {
    if (timeout_ms == 0) return drain();
    pollfd entry{.fd = fd_.view().number(), .events = POLLIN, .revents = 0};
    const int ready = checked_call(SysCall::poll, [&] { return ::poll(&entry, 1, timeout_ms); });
    if (ready < 0) return Error::from_errno(errno, "wait for an eventfd");
    return ready == 0 ? Result<std::uint64_t>{0} : drain();
}

Result<std::uint64_t> EventFd::pending() const { return count_in_fdinfo(fd_.view()); }

Result<Ringer> Ringer::create() {
    Fd null = GM_TRY(open_file("/dev/null", OpenMode::read));
    aio_context_t context = 0;
    const long status = checked_call(SysCall::aio, [&] { return ::syscall(SYS_io_setup, 1, &context); });
    if (status < 0 && errno == EAGAIN)
        return Error::from_errno(errno, "prepare to ring eventfds: all of fs.aio-max-nr is in use, raise it");
    if (status < 0 && errno != ENOSYS && errno != EPERM)
        return Error::from_errno(errno, "prepare to ring eventfds");
    return Ringer{std::move(null), status < 0 ? 0 : context};
}

Ringer::~Ringer() {
    if (context_ != 0) ::syscall(SYS_io_destroy, context_);
}

Result<Ringer> Ringer::create_deferred() {
    Fd null = GM_TRY(open_file("/dev/null", OpenMode::read));
    Ringer ringer{std::move(null), 0};
    ringer.is_deferred_ = true;
    return ringer;
}

Result<void> Ringer::ring(const EventFd& bell) {
    if (is_deferred_) {
        is_deferred_ = false;
        aio_context_t context = 0;
        const long status = checked_call(SysCall::aio, [&] { return ::syscall(SYS_io_setup, 1, &context); });
        if (status == 0) context_ = context;
    }
    if (!is_certain()) return bell.ring();
    std::byte byte{};
    iocb request{};
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<std::uint32_t>(null_.view().number());
    request.aio_buf = reinterpret_cast<std::uintptr_t>(&byte);
    request.aio_nbytes = sizeof byte;
    request.aio_flags = IOCB_FLAG_RESFD;
    request.aio_resfd = static_cast<std::uint32_t>(bell.view().number());
    iocb* requests = &request;
    if (checked_call(SysCall::aio, [&] { return ::syscall(SYS_io_submit, context_, 1, &requests); }) != 1)
        return Error::from_errno(errno, "ring an eventfd");
    // The read of /dev/null is complete already: this takes its result off the queue and does not wait. There is
    // room for more than one, so that a result which a failed call left behind does not stay for ever.
    std::array<io_event, 4> events{};
    if (checked_call(SysCall::aio, [&] {
            return ::syscall(SYS_io_getevents, context_, 1, events.size(), events.data(), nullptr);
        }) < 1)
        return Error::from_errno(errno, "finish ringing an eventfd");
    return {};
}

}  // namespace guestmem

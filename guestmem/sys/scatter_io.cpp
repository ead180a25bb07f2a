// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/scatter_io.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <limits>
#include <string>
#include <type_traits>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

static_assert(sizeof(IoSlice) == sizeof(iovec));
static_assert(offsetof(IoSlice, data) == offsetof(iovec, iov_base));
static_assert(offsetof(IoSlice, size_bytes) == offsetof(iovec, iov_len));
static_assert(std::is_standard_layout_v<IoSlice> && max_io_slices <= UIO_MAXIOV);

/// The kernel's view of the slices; it reads iovecs and never keeps them.
std::span<const iovec> vectors_of(std::span<const IoSlice> slices) {
    const std::size_t count = std::min(slices.size(), max_io_slices);
    return {reinterpret_cast<const iovec*>(slices.data()), count};
}

Error io_error(std::string_view verb, FdView fd, std::size_t count_slices) {
    const int os_error = errno;
    Error error = Error::from_errno(
        os_error, fmt::format("{} {} pieces, descriptor {}", verb, count_slices, fd.number()));
    if (os_error == EAGAIN) return Error{Errc::unavailable, os_error, error.message()};
    return error;
}

Error offset_error(std::string_view verb, FdView fd, std::uint64_t offset_bytes) {
    return Error{Errc::out_of_range, fmt::format("{} descriptor {} at {}: no file reaches so far", verb,
                                                 fd.number(), offset_bytes)};
}

bool is_offset(std::uint64_t offset_bytes) {
    return offset_bytes <= static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
}

ssize_t write_vectors(FdView fd, std::span<const iovec> vectors) {
    return checked_call(SysCall::writev, [&] {
        return ::writev(fd.number(), vectors.data(), static_cast<int>(vectors.size()));
    });
}

ssize_t send_vectors(FdView fd, std::span<const iovec> vectors) {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(vectors.data());  // sendmsg(2) only reads them
    message.msg_iovlen = vectors.size();
    return checked_call(SysCall::sendmsg, [&] { return ::sendmsg(fd.number(), &message, MSG_NOSIGNAL); });
}

/// A signal blocked in this thread, for as long as it lives.
class SignalHeld {
public:
    explicit SignalHeld(int signal) {
        ::sigemptyset(&held_);
        ::sigaddset(&held_, signal);
        sigset_t pending;
        ::sigpending(&pending);
        // One that waits already is somebody else's, and a second one is merged with it.
        was_pending_ = ::sigismember(&pending, signal) == 1;
        ::pthread_sigmask(SIG_BLOCK, &held_, &before_);
    }
    SignalHeld(const SignalHeld&) = delete;
    SignalHeld& operator=(const SignalHeld&) = delete;
    ~SignalHeld() {
        const int os_error = errno;
        ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
        errno = os_error;
    }
    /// Takes back the one that a call of this thread has raised. The kernel gives a thread's own before the process's.
    void take_raised() const {
        const int os_error = errno;
        const timespec at_once{};
        if (!was_pending_)
            while (::sigtimedwait(&held_, nullptr, &at_once) < 0 && errno == EINTR) {
            }
        errno = os_error;
    }

private:
    sigset_t held_;
    sigset_t before_;
    bool was_pending_ = false;
};

/// Calls `write` without the signal that the kernel has raised when `was_raised(done)`. After any other outcome no
/// signal is taken: one that arrived meanwhile was sent by somebody to the process.
template <typename Write, typename WasRaised>
ssize_t without_signal(int signal, Write&& write, WasRaised&& was_raised) {
    const SignalHeld held{signal};
    const ssize_t done = write();
    if (was_raised(done)) held.take_raised();
    return done;
}

/// Whether a write to a pipe has raised SIGPIPE: when it failed, and when its reader went while it was under way, which
/// leaves it short and raises the signal all the same.
bool raised_pipe_signal(FdView fd, ssize_t done, std::span<const iovec> vectors) {
    if (done < 0) return errno == EPIPE;
    std::size_t wanted = 0;
    for (const iovec& vector : vectors) wanted += vector.iov_len;
    if (static_cast<std::size_t>(done) == wanted) return false;
    pollfd asked{.fd = fd.number(), .events = 0, .revents = 0};
    return ::poll(&asked, 1, 0) == 1 && (asked.revents & POLLERR) != 0;
}

/// Calls `write`, which writes to what may be a file. Where the process may not write files of any size, the kernel
/// raises SIGXFSZ at the limit; a guest can choose an offset beyond it.
template <typename Write>
ssize_t write_file(Write&& write) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) return write();
    return without_signal(SIGXFSZ, write, [](ssize_t done) { return done < 0 && errno == EFBIG; });
}

/// writev(2) that raises no signal. What raises one is asked for by its kind: sockets have a flag against SIGPIPE,
/// pipes have not.
ssize_t write_quietly(FdView fd, std::span<const iovec> vectors) {
    struct stat facts{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(fd.number(), &facts); }) < 0) return -1;
    if (S_ISSOCK(facts.st_mode)) return send_vectors(fd, vectors);
    const auto write = [&] { return write_vectors(fd, vectors); };
    const auto was_raised = [&](ssize_t done) { return raised_pipe_signal(fd, done, vectors); };
    if (S_ISFIFO(facts.st_mode)) return without_signal(SIGPIPE, write, was_raised);
    return S_ISREG(facts.st_mode) ? write_file(write) : write();
}

/// The same at an offset. A pipe or socket has none (ESPIPE): no SIGPIPE.
ssize_t write_quietly_at(FdView fd, std::span<const iovec> vectors, off_t offset_bytes) {
    return write_file([&] {
        return checked_call(SysCall::writev, [&] {
            return ::pwritev(fd.number(), vectors.data(), static_cast<int>(vectors.size()), offset_bytes);
        });
    });
}

}  // namespace

Result<std::size_t> read_scattered(FdView fd, std::span<const IoSlice> slices,
                                   std::optional<std::uint64_t> offset_bytes) {
    if (offset_bytes && !is_offset(*offset_bytes)) return offset_error("read", fd, *offset_bytes);
    const std::span<const iovec> vectors = vectors_of(slices);
    const int count = static_cast<int>(vectors.size());
    const ssize_t done = checked_call(SysCall::readv, [&] {
        return offset_bytes ? ::preadv(fd.number(), vectors.data(), count, static_cast<off_t>(*offset_bytes))
                            : ::readv(fd.number(), vectors.data(), count);
    });
    if (done < 0) return io_error("read into", fd, vectors.size());
    return static_cast<std::size_t>(done);
}

Result<std::size_t> write_scattered(FdView fd, std::span<const IoSlice> slices,
                                    std::optional<std::uint64_t> offset_bytes) {
    if (offset_bytes && !is_offset(*offset_bytes)) return offset_error("write", fd, *offset_bytes);
    const std::span<const iovec> vectors = vectors_of(slices);
    const ssize_t done = offset_bytes ? write_quietly_at(fd, vectors, static_cast<off_t>(*offset_bytes))
                                      : write_quietly(fd, vectors);
    if (done < 0) return io_error("write", fd, vectors.size());
    return static_cast<std::size_t>(done);
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/signal_fd.hpp"

#include <pthread.h>
#include <sys/signalfd.h>

#include <cerrno>
#include <csignal>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Result<Fd> watch_signals(std::initializer_list<int> signals) {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int signal : signals) ::sigaddset(&set, signal);
    Fd fd{checked_call(SysCall::signalfd, [&] { return ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK); })};
    if (!fd.is_open()) return Error::from_errno(errno, "watch signals");
    // After the descriptor exists: a failure leaves the signals as they were.
    const int status = checked_call(SysCall::sigmask, [&] {
        const int failure = ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
        if (failure == 0) return 0;
        errno = failure;
        return -1;
    });
    if (status < 0) return Error::from_errno(errno, "block signals");
    return fd;
}

void ignore_signals(std::initializer_list<int> signals) noexcept {
    struct sigaction ignore{};
    ignore.sa_handler = SIG_IGN;
    for (const int signal : signals) ::sigaction(signal, &ignore, nullptr);
}

}  // namespace guestmem

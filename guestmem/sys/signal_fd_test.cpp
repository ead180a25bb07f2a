// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/signal_fd.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

/// The mask and the dispositions belong to the process: each test has one of its own.
template <typename Function>
int in_child(Function&& function) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(function());
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(SignalFd, IsReadableOnceOneOfItsSignalsCame) {
    EXPECT_EQ(in_child([] {
                  const auto fd = watch_signals({SIGTERM, SIGINT});
                  if (!fd || poll_readable(fd->view(), 0).value()) return 1;
                  ::raise(SIGINT);
                  return poll_readable(fd->view(), 0).value() ? 0 : 2;
              }),
              0);
}

TEST(SignalFd, LeavesOtherSignalsAsTheyAre) {
    EXPECT_EQ(in_child([] {
                  const auto fd = watch_signals({SIGTERM});
                  ::raise(SIGINT);
                  return fd ? 0 : 1;
              }),
              -SIGINT);
}

TEST(SignalFd, AfterAFailureTheSignalsAreAsTheyWere) {
    EXPECT_EQ(in_child([] {
                  const FaultInjector injector{1};
                  const auto fd = watch_signals({SIGTERM});
                  if (fd || injector.failed_call() != SysCall::sigmask) return 1;
                  ::raise(SIGTERM);
                  return 2;
              }),
              -SIGTERM);
}

TEST(SignalFd, IgnoredSignalsDoNothing) {
    EXPECT_EQ(in_child([] {
                  ignore_signals({SIGHUP, SIGUSR1});
                  ::raise(SIGHUP);
                  ::raise(SIGUSR1);
                  return 0;
              }),
              0);
}

}  // namespace
}  // namespace guestmem

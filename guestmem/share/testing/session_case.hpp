// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include "guestmem/share/session.hpp"
#include "guestmem/share/testing/fake_service.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// Sessions with a fake service, for tests: beside the test in a thread, or in a process of its own.
///
/// Contract: the service goes before its loop. A ForkedService is made while the process has one thread, and is killed
/// (SIGKILL) and waited for when it goes.
/// Threads: one at a time.

namespace guestmem::share::testing {

inline constexpr int patience_ms = 20'000;

class SessionCase : public ::testing::Test {
protected:
    ~SessionCase() override {
        loop_.call([this](EventLoop&) { service_.reset(); });
    }
    void serve(FakeShare share = {}) {
        share.path = path();
        loop_.call([&](EventLoop& loop) { service_ = std::make_unique<FakeService>(loop, share); });
    }
    /// Calls `function` with the service, in the thread of its loop.
    template <typename Function>
    auto in_service(Function&& function) {
        return loop_.call([&](EventLoop&) { return function(*service_); });
    }
    void lie(FakeLies lies) {
        in_service([&](FakeService& service) { service.lies = std::move(lies); });
    }
    [[nodiscard]] std::string path() const { return folder_.path_of("control"); }
    [[nodiscard]] SessionOptions options() const {
        SessionOptions wanted{.control = path(), .share = "mailbox"};
        wanted.timeout_ms = patience_ms;
        return wanted;
    }
    [[nodiscard]] Result<Session> attach() const { return Session::attach(options()); }
    /// What an attach that is lied to says; tests that wait for the end of its time give it little.
    [[nodiscard]] Error refusal(SessionOptions wanted) const {
        auto session = Session::attach(wanted);
        return session ? Error{Errc::io, "it attached"} : std::move(session).error();
    }
    [[nodiscard]] Error refusal() const { return refusal(options()); }
    [[nodiscard]] static bool is_readable(FdView fd) { return poll_readable(fd, 0).value(); }

    guestmem::testing::TempFolder folder_;
    guestmem::testing::LoopThread loop_;
    std::unique_ptr<FakeService> service_;
};

/// A service in a process of its own: faults that are injected here do not reach it, and it can be killed.
class ForkedService {
public:
    explicit ForkedService(const FakeShare& share) : process_(::fork()) {
        if (process_ != 0) return;
        EventLoop loop = EventLoop::create().value();
        const FakeService service{loop, share};
        (void)loop.run();
        ::_exit(0);
    }
    ForkedService(const ForkedService&) = delete;
    ForkedService& operator=(const ForkedService&) = delete;
    ~ForkedService() {
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
    }

private:
    pid_t process_;
};

}  // namespace guestmem::share::testing

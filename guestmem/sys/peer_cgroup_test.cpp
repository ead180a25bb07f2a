// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/peer_cgroup.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <optional>
#include <string>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using testing::TempFolder;

/// A process that connects, stays until it is let go, and is reaped then.
class Visitor {
public:
    explicit Visitor(const std::string& path) : pid_(::fork()) {
        if (pid_ != 0) return;
        const auto stream = UnixStream::connect(path);
        for (;;) ::pause();
    }
    Visitor(const Visitor&) = delete;
    Visitor& operator=(const Visitor&) = delete;
    ~Visitor() { end(); }
    void end() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }
    [[nodiscard]] pid_t pid() const { return pid_; }

private:
    pid_t pid_;
};

UnixStream accept_one(const UnixListener& listener) {
    std::optional<UnixStream> stream;
    EXPECT_TRUE(testing::eventually([&] {
        auto accepted = listener.accept();
        if (accepted && *accepted) stream = std::move(**accepted);
        return stream.has_value();
    }));
    return stream ? std::move(*stream) : UnixStream{};
}

/// Asks the kernel for this number for the process that is made next; only root of the first namespace may.
bool recycles(pid_t pid) {
    const Fd last{::open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC)};
    const std::string text = std::to_string(pid - 1);
    return last.is_open() && ::write(last.view().number(), text.data(), text.size()) > 0;
}

TEST(PeerCgroup, IsThatOfTheProcess) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    const Visitor visitor{listener.path()};
    const UnixStream server = accept_one(listener);
    const auto cgroup = peer_cgroup(server.view());
    ASSERT_TRUE(cgroup) << cgroup.error().message();
    const std::string known = "\n" + read_text_file("/proc/self/cgroup", 65536).value();
    EXPECT_EQ(known.find("\n0::") != std::string::npos, !cgroup->empty());
    EXPECT_TRUE(cgroup->empty() || known.find("\n0::" + *cgroup + "\n") != std::string::npos) << *cgroup;
}

TEST(PeerCgroup, IsFoundWhereTheKernelOnlyKnowsTheNumber) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    Visitor visitor{listener.path()};
    const UnixStream server = accept_one(listener);
    const std::string cgroup = peer_cgroup(server.view()).value();
    const auto asked_of_an_old_kernel = [&] {
        // The second one: the first asks for the number.
        const FaultInjector injector{1, {.only = SysCall::getsockopt, .os_error = ENOPROTOOPT}};
        auto found = peer_cgroup(server.view());
        EXPECT_TRUE(injector.has_fired());
        return found;
    };
    EXPECT_EQ(asked_of_an_old_kernel().value(), cgroup);
    visitor.end();
    EXPECT_EQ(asked_of_an_old_kernel().error().os_error(), ESRCH);
}

TEST(PeerCgroup, ARecycledNumberIsAnErrorAndNotAnotherPeer) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    Visitor visitor{listener.path()};
    const UnixStream server = accept_one(listener);
    const pid_t pid = visitor.pid();
    visitor.end();
    EXPECT_FALSE(peer_cgroup(server.view())) << "of a process that has ended";
    for (int attempt = 0; attempt < 20; ++attempt) {
        if (!recycles(pid)) GTEST_SKIP() << "this process cannot choose a number for the next one";
        const Visitor other{folder.path_of("nowhere")};
        if (other.pid() != pid) continue;
        EXPECT_EQ(server.peer().value().pid, other.pid());
        EXPECT_FALSE(peer_cgroup(server.view())) << "of another process";
        return;
    }
    GTEST_SKIP() << "the number was not given again";
}

}  // namespace
}  // namespace guestmem

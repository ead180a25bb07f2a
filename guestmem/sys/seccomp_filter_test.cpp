// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/seccomp_filter.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"
#include "guestmem/sys/privileges.hpp"
#include "guestmem/sys/service_manager.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using testing::TempFolder;

/// Filters are for good, so each one is in a child. What waitpid() says of it.
int end_of_child(const std::function<bool()>& life) {
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit none{.rlim_cur = 0, .rlim_max = 0};
        ::setrlimit(RLIMIT_CORE, &none);
        ::_exit(life() ? 0 : 1);
    }
    int status = -1;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

bool ends_well(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
bool ends_by_filter(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS; }

bool expect(bool is_so, const char* what) {
    if (!is_so) fmt::print(stderr, "not so: {} (errno {})\n", what, errno);
    return is_so;
}

/// Whether there is a filter; where there cannot be one, the test says why.
#define SKIP_WITHOUT_FILTER() \
    if (const auto obstacle = find_filter_obstacle()) GTEST_SKIP() << "no filter in this build: " << *obstacle

struct Step {
    const char* what;
    std::function<bool()> works;
};

bool rings() {
    const auto bell = EventFd::create();
    auto ringer = Ringer::create();
    return bell && ringer && bell->ring() && ringer->ring(*bell) && *bell->pending() == 2 &&
           *bell->drain() == 2;
}

bool has_memory() {
    const auto memory = create_sealed_memory({.name = "filtered", .size_bytes = 1 << 20});
    if (!memory) return false;
    const auto mapping = Mapping::create(*memory, 1 << 20, MapAccess::read_write);
    if (!mapping || !reopen_read_only(*memory) || !punch_hole(*memory, 0, 1 << 20)) return false;
    mapping->bytes()[5] = std::byte{1};
    return allocate_file(*memory, 0, 1 << 20).has_value();
}

bool has_threads() {
    std::atomic<int> count{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&] { ++count; });
    for (std::thread& thread : threads) thread.join();
    return count == 3;
}

bool has_children() {
    return ends_well(end_of_child([] { return rings(); }));
}

bool has_sockets(const std::string& path) {
    const auto listener = UnixListener::create({.path = path, .owner = own_user(), .group = 0, .mode = 0660});
    if (!listener) return expect(false, listener.error().message().c_str());
    const auto client = UnixStream::connect(path);
    if (!client) return false;
    const auto server = listener->accept();
    if (!server || !*server) return false;
    const std::array byte{std::byte{7}};
    const std::array fds{client->view()};
    std::array<std::byte, 1> buffer{};
    return (*server)->set_send_buffer(4096) && (*server)->peer() && (*server)->send(byte, fds) &&
           (*server)->unread_by_peer() && client->peek(buffer) && client->receive(buffer) &&
           client->set_nonblocking();
}

bool has_a_loop() {
    auto loop = EventLoop::create();
    if (!loop || !block_signal(SIGUSR1)) return false;
    const auto on_signal = loop->add_signal(SIGUSR1, [&] { loop->stop(); });
    const auto bell = EventFd::create();
    if (!on_signal || !bell || !bell->ring()) return false;
    const auto on_bell = loop->add_io(bell->view(), IoEvents::readable, [&](IoEvents) {
        static_cast<void>(bell->drain());
        ::raise(SIGUSR1);
    });
    return on_bell && loop->run();
}

bool knows_the_host() {
    return available_memory_bytes() && count_open_descriptors() && user_id("nobody") && group_id("root") &&
           file_system_facts("/proc") && !runtime_folder().empty() && notify_ready("x");
}

TEST(ServiceFilter, LeavesWhatTheServiceDoes) {
    SKIP_WITHOUT_FILTER();
    const TempFolder folder;
    const std::vector<Step> steps{
        {"doorbells", rings},
        {"memory", has_memory},
        {"threads", has_threads},
        {"children", has_children},
        {"sockets", [&] { return has_sockets(folder.path_of("socket")); }},
        {"loop", has_a_loop},
        {"host", knows_the_host},
        {"files for reading", [] { return read_text_file("/proc/self/status", 1 << 20).has_value(); }},
        {"hardening", [] { return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0; }},
        {"waiting", [] { return std::this_thread::sleep_for(std::chrono::milliseconds{1}), true; }}};
    for (const Step& step : steps) {
        const int status =
            end_of_child([&] { return install_service_filter({}).has_value() && step.works(); });
        EXPECT_TRUE(ends_well(status)) << step.what << ", status " << status;
    }
}

TEST(ServiceFilter, LeavesThemToAnOrdinaryUser) {
    SKIP_WITHOUT_FILTER();
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    const int status = end_of_child([] {
        return drop_privileges("nobody") && install_service_filter({}) && rings() && has_memory() &&
               has_a_loop() && has_threads() && has_children() && knows_the_host();
    });
    EXPECT_TRUE(ends_well(status)) << status;
}

TEST(ServiceFilter, EndsAProcessThatDoesAnythingElse) {
    SKIP_WITHOUT_FILTER();
    const TempFolder folder;
    const std::string path = folder.path_of("made");
    const std::string there = folder.write("there", "x");
    const auto other = [](long number) { return [number] { return ::syscall(number, 0, 0, 0, 0, 0) != 7; }; };
    const auto opened = [](const std::string& name, int flags) {
        return [name, flags] { return ::open(name.c_str(), flags | O_CLOEXEC, 0600) != -7; };
    };
    const std::vector<Step> steps{
        {"execve", [] { return ::execl("/bin/true", "true", nullptr) != 7; }},
        {"execveat", other(SYS_execveat)},
        {"ptrace", [] { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 7; }},
        {"process_vm_readv", other(SYS_process_vm_readv)},
        {"mount", [] { return ::mount("none", "/", nullptr, MS_REMOUNT, nullptr) != 7; }},
        {"unshare", [] { return ::unshare(CLONE_NEWUSER) != 7; }},
        {"clone into a namespace",
         [] { return ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) != -7; }},
        {"bpf", other(SYS_bpf)},
        {"io_uring_setup", other(SYS_io_uring_setup)},
        {"keyctl", other(SYS_keyctl)},
        {"setuid", other(SYS_setuid)},
        {"userfaultfd", other(SYS_userfaultfd)},
        {"rename", [&] { return ::rename(there.c_str(), path.c_str()) != 7; }},
        {"link", [&] { return ::link(there.c_str(), path.c_str()) != 7; }},
        {"socket AF_INET", [] { return ::socket(AF_INET, SOCK_STREAM, 0) != -7; }},
        {"socket AF_INET6", [] { return ::socket(AF_INET6, SOCK_DGRAM, 0) != -7; }},
        {"socket AF_NETLINK", [] { return ::socket(AF_NETLINK, SOCK_RAW, 0) != -7; }},
        {"memory that is written and executed",
         [] {
             return ::mmap(nullptr, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
                    nullptr;
         }},
        {"a file that is made", opened(path, O_RDWR | O_CREAT | O_EXCL)},
        {"a file without a name", opened(folder.path(), O_RDWR | O_TMPFILE)},
        {"set-user-id", [&] { return ::chmod(there.c_str(), S_ISUID | 0700) != 7; }},
        {"a terminal's input", [] { return ::ioctl(0, TIOCSTI, "x") != 7; }},
        {"a signal to another process", [] { return ::kill(::getppid(), SIGCONT) != 7; }},
        {"the limits of another process",
         [] { return ::prlimit(::getppid(), RLIMIT_NOFILE, nullptr, nullptr) != 7; }},
        {"being dumpable", [] { return ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 7; }}};
    for (const Step& step : steps) {
        const int status =
            end_of_child([&] { return install_service_filter({}).has_value() && step.works(); });
        EXPECT_TRUE(ends_by_filter(status)) << step.what << ", status " << status;
    }
    EXPECT_THAT(folder.entries(), ::testing::ElementsAre("there"));
}

TEST(ServiceFilter, LetsNewFilesBeMadeWhereItIsToldSoAndOldOnesNotBeTaken) {
    SKIP_WITHOUT_FILTER();
    const TempFolder folder;
    const ServiceFilterOptions options{.may_make_files = true};
    EXPECT_TRUE(ends_well(end_of_child([&] {
        return install_service_filter(options) && open_memory_file(folder.path_of("memory"), 4096) &&
               open_memory_file(folder.path_of("memory"), 4096);
    })));
    EXPECT_TRUE(ends_by_filter(end_of_child([&] {
        return install_service_filter(options) &&
               ::open(folder.path_of("other").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600) >= 0;
    })));
    EXPECT_TRUE(ends_by_filter(end_of_child([&] {
        return install_service_filter(options) &&
               ::open(folder.path().c_str(), O_RDWR | O_TMPFILE | O_EXCL | O_CLOEXEC, 0600) >= 0;
    })));
}

TEST(ServiceFilter, CanRefuseInsteadOfEnding) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        if (!install_service_filter({.answer = FilterAnswer::refuse})) return false;
        const bool is_refused = ::socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EPERM;
        return is_refused && ::mount("none", "/", nullptr, MS_REMOUNT, nullptr) == -1 && errno == EPERM &&
               rings();
    })));
}

TEST(ServiceFilter, CanLogInsteadOfEnding) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        if (!install_service_filter({.answer = FilterAnswer::log})) return false;
        const Fd socket{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        return socket.is_open() || errno != EPERM;
    })));
}

TEST(ServiceFilter, HoldsForThreadsThatRanBeforeAndForChildren) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        const auto go = EventFd::create();
        if (!go) return false;
        bool is_refused = false;
        std::thread before{[&] {
            // Wakes when the filter is there.
            while (*go->drain() == 0) std::this_thread::yield();
            is_refused = ::socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EPERM;
        }};
        const bool is_there = install_service_filter({.answer = FilterAnswer::refuse}).has_value();
        const bool is_rung = go->ring().has_value();
        before.join();
        return is_there && is_rung && is_refused;
    })));
    EXPECT_TRUE(ends_well(end_of_child([] {
        if (!install_service_filter({})) return false;
        return ends_by_filter(end_of_child([] { return ::socket(AF_INET, SOCK_STREAM, 0) != -7; }));
    })));
}

TEST(ServiceFilter, IsThereUnlessTheBuildSaysWhyItCannotBe) {
    const auto obstacle = find_filter_obstacle();
    const int status = end_of_child([&] {
        const auto installed = install_service_filter({});
        if (!obstacle) return installed.has_value();
        return !installed && installed.error().code() == Errc::unsupported &&
               installed.error().message().contains(*obstacle);
    });
    EXPECT_TRUE(ends_well(status)) << obstacle.value_or("no obstacle");
}

TEST(ServiceFilter, ThatTheKernelRefusesIsAnError) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        FaultInjector injector{0, {.only = SysCall::seccomp}};
        const auto installed = install_service_filter({});
        if (installed || !installed.error().message().contains("hand it to the kernel")) return false;
        const Fd unhindered{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        return unhindered.is_open() || errno != EPERM;
    })));
}

}  // namespace
}  // namespace guestmem

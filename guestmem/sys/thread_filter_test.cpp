// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/thread_filter.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"
#include "guestmem/sys/testing/child_end.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using testing::end_of_child;
using testing::ends_by_filter;
using testing::ends_well;
using testing::TempFolder;

#define SKIP_WITHOUT_FILTER() \
    if (const auto obstacle = find_filter_obstacle()) GTEST_SKIP() << "no filter in this build: " << *obstacle

constexpr std::array all_kinds{ThreadKind::processor, ThreadKind::clock, ThreadKind::watch,
                               ThreadKind::service, ThreadKind::main};
static_assert(all_kinds.size() == count_thread_kinds);

/// What a kind does in a process where a listener, a descriptor pair and a memory file were made before.
struct World {
    std::string path;
    std::optional<UnixListener> listener;
    std::optional<EventLoop> loop;
    std::optional<Fd> memory;
    std::optional<Ringer> ringer;
};

bool make(World& world, const TempFolder& folder) {
    world.path = folder.path_of("socket");
    auto listener = UnixListener::create({.path = world.path, .owner = own_user(), .group = 0, .mode = 0600});
    auto loop = EventLoop::create();
    auto memory = create_sealed_memory({.name = "filtered", .size_bytes = 1 << 16});
    auto ringer = Ringer::create();
    if (!listener || !loop || !memory || !ringer) return false;
    world.listener = *std::move(listener);
    world.loop = *std::move(loop);
    world.memory = *std::move(memory);
    world.ringer.emplace(*std::move(ringer));
    return true;
}

struct Step {
    const char* what;
    std::function<bool(World&)> works;
};

bool passes_the_filter(unsigned long request) { return ::ioctl(-1, request, 0) == -1 && errno == EBADF; }

bool does_the_usual(World&) {
    const auto bell = EventFd::create();
    std::vector<std::byte> large(std::size_t{8} << 20, std::byte{1});
    large.resize(large.size() * 2);
    return bell && bell->ring() && *bell->drain() == 1 && large.back() == std::byte{0} &&
           ::syscall(SYS_clock_gettime, CLOCK_MONOTONIC, nullptr) == -1 && errno == EFAULT &&
           ::syscall(SYS_tgkill, ::getpid(), ::gettid(), 0) == 0;
}

bool rings(World& world) {
    const auto bell = EventFd::create();
    return bell && world.ringer->ring(*bell) && *bell->drain() == 1;
}

bool attaches(World& world) {
    const auto client = UnixStream::connect(world.path);
    const auto mapping = Mapping::create(*world.memory, 1 << 16, MapAccess::read_write);
    auto bell = EventFd::create();
    if (!client || !mapping || !bell || !client->peer()) return false;
    const std::array byte{std::byte{7}};
    const std::array fds{bell->view()};
    const auto adopted = EventFd::adopt(*bell->duplicate());
    mapping->bytes()[0] = std::byte{1};
    return adopted && client->send(byte, fds) && ::fcntl(world.memory->view().number(), F_GET_SEALS) > 0;
}

bool changes_devices(World&) {
    return passes_the_filter(KVM_SET_USER_MEMORY_REGION) && passes_the_filter(KVM_IRQFD) &&
           passes_the_filter(KVM_IOEVENTFD) && passes_the_filter(KVM_SIGNAL_MSI) &&
           passes_the_filter(_IOC(_IOC_WRITE, KVMIO, 0x6a, 8));
}

bool runs_guests(World&) { return passes_the_filter(KVM_RUN) && passes_the_filter(KVM_INTERRUPT); }

bool reads_files(World&) {
    return read_text_file("/proc/self/status", 1 << 20) && open_file("/dev/null", OpenMode::read);
}

bool makes_memory(World&) {
    const auto memory = create_sealed_memory({.name = "made", .size_bytes = 1 << 16});
    return memory && Mapping::create(*memory, 1 << 16, MapAccess::read_write) && reopen_read_only(*memory);
}

bool has_threads(World&) {
    bool has_run = false;
    std::thread{[&] { has_run = true; }}.join();
    return has_run;
}

bool runs_its_loop(World& world) {
    const auto bell = EventFd::create();
    if (!bell || !bell->ring()) return false;
    const auto on_timer = world.loop->add_timer(1, [&] { world.loop->stop(); });
    const auto on_bell = world.loop->add_io(bell->view(), IoEvents::readable,
                                            [&](IoEvents) { static_cast<void>(bell->drain()); });
    if (!on_timer || !on_bell || !world.loop->run()) return false;
    const auto client = UnixStream::connect(world.path);
    const auto server = world.listener->accept();
    return client && server && *server;
}

/// Runs a step of a kind as it will be: in a thread with its filter, which the whole process then is.
int end_as(ThreadKind kind, const std::function<bool(World&)>& step, FilterAnswer answer) {
    const TempFolder folder;
    return end_of_child([&] {
        World world;
        const auto program = make_thread_filter(kind, answer);
        if (!make(world, folder) || !program) return false;
        if (!program->install(FilterScope::thread)) return false;
        // Not by its destructors: the listener would remove its file, which most kinds may not.
        ::_exit(step(world) ? 0 : 1);
    });
}

TEST(ThreadFilter, LeavesToEachKindWhatItDoes) {
    SKIP_WITHOUT_FILTER();
    struct Duty {
        Step step;
        std::vector<ThreadKind> kinds;
    };
    const std::vector<Duty> duties{
        {{"the usual", does_the_usual}, {all_kinds.begin(), all_kinds.end()}},
        {{"attaching", attaches},
         {ThreadKind::processor, ThreadKind::watch, ThreadKind::service, ThreadKind::main}},
        {{"devices", changes_devices},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch, ThreadKind::main}},
        {{"guests", runs_guests}, {ThreadKind::processor}},
        {{"ringing", rings}, {ThreadKind::processor, ThreadKind::service, ThreadKind::main}},
        {{"loop", runs_its_loop}, {ThreadKind::main, ThreadKind::service}},
        {{"threads", has_threads}, {ThreadKind::main, ThreadKind::service}},
        {{"reading files", reads_files}, {ThreadKind::service}},
        {{"memory", makes_memory}, {ThreadKind::service}}};
    for (const auto& [step, kinds] : duties) {
        for (const ThreadKind kind : kinds) {
            const int status = end_as(kind, step.works, FilterAnswer::kill);
            EXPECT_TRUE(ends_well(status)) << step.what << " of " << to_string(kind) << ", status " << status;
        }
    }
}

bool calls(long number) { return ::syscall(number, 0, 0, 0, 0, 0, 0) != -7; }

/// What nobody does, whatever kind it is.
const std::vector<Step>& crimes() {
    static const std::vector<Step> all{
        {"execve", [](World&) { return ::execl("/bin/true", "true", nullptr) != 7; }},
        {"execveat", [](World&) { return calls(SYS_execveat); }},
        {"a child", [](World&) { return ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) != -7; }},
        {"ptrace", [](World&) { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 7; }},
        {"process_vm_readv", [](World&) { return calls(SYS_process_vm_readv); }},
        {"process_vm_writev", [](World&) { return calls(SYS_process_vm_writev); }},
        {"pidfd_getfd", [](World&) { return calls(SYS_pidfd_getfd); }},
        {"mount", [](World&) { return ::mount("none", "/", nullptr, MS_REMOUNT, nullptr) != 7; }},
        {"unshare", [](World&) { return ::unshare(CLONE_NEWUSER) != 7; }},
        {"bpf", [](World&) { return calls(SYS_bpf); }},
        {"io_uring_setup", [](World&) { return calls(SYS_io_uring_setup); }},
        {"keyctl", [](World&) { return calls(SYS_keyctl); }},
        {"setuid", [](World&) { return calls(SYS_setuid); }},
        {"userfaultfd", [](World&) { return calls(SYS_userfaultfd); }},
        {"AF_INET", [](World&) { return ::socket(AF_INET, SOCK_STREAM, 0) != -7; }},
        {"AF_INET6", [](World&) { return ::socket(AF_INET6, SOCK_DGRAM, 0) != -7; }},
        {"AF_NETLINK", [](World&) { return ::socket(AF_NETLINK, SOCK_RAW, 0) != -7; }},
        {"AF_VSOCK", [](World&) { return ::socket(AF_VSOCK, SOCK_STREAM, 0) != -7; }},
        {"writing to a file", [](World& world) { return ::open(world.path.c_str(), O_WRONLY) != -7; }},
        {"making a file",
         [](World& world) { return ::open((world.path + "x").c_str(), O_RDWR | O_CREAT, 0600) != -7; }},
        {"emptying a file",
         [](World& world) { return ::open(world.path.c_str(), O_RDONLY | O_TRUNC) != -7; }},
        {"renaming", [](World& world) { return ::rename(world.path.c_str(), "/tmp/never") != 7; }},
        {"executable memory",
         [](World&) {
             return ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
                    nullptr;
         }},
        {"memory that becomes executable",
         [](World&) { return ::mprotect(nullptr, 4096, PROT_READ | PROT_EXEC) != 7; }},
        {"a terminal's input", [](World&) { return ::ioctl(0, TIOCSTI, "x") != 7; }},
        {"a signal to another process", [](World&) { return ::kill(::getppid(), SIGCONT) != 7; }},
        {"a signal to another's thread",
         [](World&) { return ::syscall(SYS_tgkill, ::getppid(), ::getppid(), SIGCONT) != 7; }},
        {"being dumpable", [](World&) { return ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 7; }},
        {"another filter", [](World&) { return calls(SYS_seccomp); }},
        {"a machine", [](World&) { return ::ioctl(-1, KVM_CREATE_VM, 0) != 7; }},
        {"a processor", [](World&) { return ::ioctl(-1, KVM_CREATE_VCPU, 0) != 7; }},
        {"a device in the kernel", [](World&) { return ::ioctl(-1, KVM_CREATE_DEVICE, 0) != 7; }}};
    return all;
}

TEST(ThreadFilter, EndsAProcessOfWhichAnyKindDoesWhatNoneDoes) {
    SKIP_WITHOUT_FILTER();
    for (const ThreadKind kind : all_kinds) {
        for (const Step& step : crimes()) {
            const int status = end_as(kind, step.works, FilterAnswer::kill);
            EXPECT_TRUE(ends_by_filter(status))
                << step.what << " by " << to_string(kind) << ", status " << status;
        }
    }
}

TEST(ThreadFilter, EndsAKindThatDoesWhatIsLeftToAnother) {
    SKIP_WITHOUT_FILTER();
    struct Duty {
        Step step;
        std::vector<ThreadKind> kinds;
    };
    const std::vector<Duty> duties{
        {{"a socket", [](World&) { return ::socket(AF_UNIX, SOCK_STREAM, 0) != -7; }}, {ThreadKind::clock}},
        {{"reading a file", reads_files},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch, ThreadKind::main}},
        {{"a guest", [](World&) { return ::ioctl(-1, KVM_RUN, 0) != 7; }},
         {ThreadKind::clock, ThreadKind::watch, ThreadKind::service, ThreadKind::main}},
        {{"a memory slot", [](World&) { return ::ioctl(-1, KVM_SET_USER_MEMORY_REGION, 0) != 7; }},
         {ThreadKind::service}},
        {{"ringing", [](World& world) { return rings(world) || true; }},
         {ThreadKind::clock, ThreadKind::watch}},
        {{"a context for ringing", [](World&) { return calls(SYS_io_setup); }},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch}},
        {{"a thread", has_threads}, {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch}},
        {{"a listener", [](World&) { return ::listen(-1, 1) != 7; }},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch, ThreadKind::main}},
        {{"removing a file", [](World& world) { return ::unlink(world.path.c_str()) != 7; }},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch, ThreadKind::service}},
        {{"the terminal's mode", [](World&) { return ::ioctl(0, TCGETS, nullptr) != 7; }},
         {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch, ThreadKind::service}}};
    for (const auto& [step, kinds] : duties) {
        for (const ThreadKind kind : kinds) {
            const int status = end_as(kind, step.works, FilterAnswer::kill);
            EXPECT_TRUE(ends_by_filter(status))
                << step.what << " by " << to_string(kind) << ", status " << status;
        }
    }
}

TEST(ThreadFilter, CanRefuseInsteadOfEnding) {
    SKIP_WITHOUT_FILTER();
    for (const ThreadKind kind : all_kinds) {
        const int status = end_as(
            kind,
            [](World& world) {
                return ::socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EPERM && does_the_usual(world);
            },
            FilterAnswer::refuse);
        EXPECT_TRUE(ends_well(status)) << to_string(kind) << ", status " << status;
    }
}

TEST(ThreadFilter, OfAnInstrumentedBuildIsAnErrorThatNamesTheKind) {
    const auto program = make_thread_filter(ThreadKind::clock);
    ASSERT_EQ(program.has_value(), !find_filter_obstacle().has_value());
    if (program) return;
    EXPECT_TRUE(program.error().message().contains("clock"));
}

}  // namespace
}  // namespace guestmem

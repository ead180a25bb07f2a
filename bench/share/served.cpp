// SPDX-License-Identifier: Apache-2.0
#include "bench/share/served.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "guestmem/control/client.hpp"
#include "guestmem/share/keeper/keeper_process.hpp"

namespace guestmem::bench {
namespace {

constexpr int patience_ms = 60'000;
constexpr std::chrono::milliseconds look_again{1};

std::string text_of(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream{path}.rdbuf();
    return text.str();
}

/// In MiB, of a line "Name:   123 kB".
double memory_line(const std::string& text, std::string_view name) {
    const std::size_t at = text.find(name);
    return at == std::string::npos ? 0 : std::atof(text.c_str() + at + name.size()) / 1024;
}

/// A keeper outlives its starter by nature: a child of this process ends it when this process has ended, however it
/// did.
void watch_for(pid_t keeper, pid_t parent) {
    // What ends a whole group of processes has to leave this one.
    ::setsid();
    sigset_t awaited;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &awaited, nullptr);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
    int came = 0;
    if (::getppid() == parent) ::sigwait(&awaited, &came);
    ::kill(keeper, SIGTERM);
}

template <typename Predicate>
bool is_so_in_time(Predicate is_so) {
    for (int i = 0; i < patience_ms; ++i) {
        if (is_so()) return true;
        std::this_thread::sleep_for(look_again);
    }
    return false;
}

}  // namespace

void give_up(const std::string& why) {
    fmt::print(stderr, "share_works: {}\n", why);
    std::exit(1);
}

TemporaryFolder::TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path() / "guestmem-bench-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) give_up("no temporary folder");
    path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

Child::Child(const std::function<void()>& work) {
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) give_up("fork failed");
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    work();
    ::_exit(0);
}

Child::Child(std::vector<std::string> words, const std::string& errors_to) {
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    // The copy of a large table of descriptors is no part of a start.
    pid_ = ::vfork();
    if (pid_ < 0) give_up("vfork failed");
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int errors = ::open(errors_to.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(errors, STDOUT_FILENO);
    ::dup2(errors, STDERR_FILENO);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
}

void Child::end(int signal) {
    if (pid_ == 0) return;
    ::kill(pid_, signal);
    join();
}

void Child::join() {
    if (pid_ != 0) ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
}

Served::Served(std::string program, const std::vector<BenchShare>& shares, bool has_keeper)
    : program_(std::move(program)), config_(folder_.path_of("share.toml")) {
    std::ofstream file{config_};
    file << fmt::format("[control]\npath = \"{}\"\n[limits]\nhandshake_timeout_ms = 600000\n", control());
    for (const BenchShare& share : shares)
        file << fmt::format(
            "[[share]]\nname = \"{}\"\nsize = \"64K\"\nslots = {}\nvectors = {}\nsocket = \"{}\"\n",
            share.name, share.slots, share.vectors, socket_of(share.name));
    file.close();
    if (!has_keeper) return;
    auto started = share::start_keeper({.path = keeper()});
    if (!started) give_up(started.error().message());
    keeper_ = *started;
    watcher_ = std::make_unique<Child>([this, parent = ::getpid()] { watch_for(keeper_, parent); });
}

Served::~Served() {
    if (service_) service_->end(SIGTERM);
    // The service has ended it, unless it was not there to do so.
    if (keeper_ != 0) ::kill(keeper_, SIGTERM);
}

void Served::start() {
    std::vector<std::string> words{program_, "share", "serve", "--config", config_};
    if (keeper_ != 0) words.insert(words.end(), {"--keeper", keeper()});
    service_ = std::make_unique<Child>(std::move(words), folder_.path_of("log"));
}

void Served::wait_ready() const {
    const bool is_ready = is_so_in_time([&] {
        if (::waitpid(pid(), nullptr, WNOHANG) != 0)
            give_up("the service has ended:\n" + text_of(folder_.path_of("log")));
        auto client = control::Client::connect(control());
        return client && client->call("share.list", "{}").has_value();
    });
    if (!is_ready) give_up("the service does not answer:\n" + text_of(folder_.path_of("log")));
}

void Served::wait_until_empty() const {
    auto client = control::Client::connect(control());
    const bool is_empty = client && is_so_in_time([&] {
                              const auto answer = client->call("share.list", "{}");
                              if (!answer) give_up(answer.error().message());
                              constexpr std::string_view key = "\"peers\":";
                              std::size_t count = 0;
                              for (std::size_t at = 0;
                                   (at = answer->result.find(key, at)) != std::string::npos; at += key.size())
                                  if (answer->result[at + key.size()] != '0') ++count;
                              return count == 0;
                          });
    if (!is_empty) give_up("clients that have left are still there");
}

Memory memory_of(pid_t process) {
    return {.resident = memory_line(text_of(fmt::format("/proc/{}/smaps_rollup", process)), "Rss:"),
            .peak = memory_line(text_of(fmt::format("/proc/{}/status", process)), "VmHWM:")};
}

bool receive_one(int socket, int flags) {
    std::int64_t value = 0;
    iovec part{&value, sizeof value};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    if (::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | flags) != sizeof value) return false;
    if (const cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
        ::close(fd);
    }
    return true;
}

void receive_all(int socket, std::uint64_t messages) {
    for (std::uint64_t i = 0; i < messages; ++i)
        if (!receive_one(socket, 0)) give_up(fmt::format("message {} did not come", i));
}

void receive_crowd(const std::vector<UnixStream>& clients, std::uint64_t messages) {
    const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
    std::vector<std::uint64_t> left(clients.size(), messages);
    for (std::size_t i = 0; i < clients.size(); ++i) {
        epoll_event event{.events = EPOLLIN, .data = {.u64 = i}};
        if (::epoll_ctl(epoll.view().number(), EPOLL_CTL_ADD, clients[i].view().number(), &event) != 0)
            give_up("epoll_ctl failed");
    }
    std::size_t count_open = clients.size();
    while (count_open != 0) {
        epoll_event events[64];
        const int count = ::epoll_wait(epoll.view().number(), events, 64, patience_ms);
        if (count <= 0) give_up(fmt::format("{} clients still wait for messages", count_open));
        for (int i = 0; i < count; ++i) {
            std::uint64_t& rest = left[events[i].data.u64];
            const int socket = clients[events[i].data.u64].view().number();
            const std::uint64_t before = rest;
            while (rest != 0 && receive_one(socket, MSG_DONTWAIT)) --rest;
            if (before == rest) give_up("a client was closed");
            if (rest == 0) --count_open;
        }
    }
}

bool send_one(int socket, std::int64_t value, int fd, int flags) {
    iovec part{&value, sizeof value};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    return ::sendmsg(socket, &header, MSG_NOSIGNAL | flags) == sizeof value;
}

}  // namespace guestmem::bench

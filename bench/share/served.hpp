// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <sys/types.h>

#include <csignal>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// The real program as a process that a bench starts, kills and starts again, and the clients' side of it.
///
/// Contract: nothing that is started here outlives its object. What cannot be started ends the bench with a line that
/// says why.
/// Threads: one at a time.

namespace guestmem::bench {

class TemporaryFolder {
public:
    TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder();
    [[nodiscard]] std::string path_of(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

/// A child that runs a function of this program; killed at the end. With `words` another program.
class Child {
public:
    explicit Child(const std::function<void()>& work);
    Child(std::vector<std::string> words, const std::string& errors_to);
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() { end(SIGKILL); }

    [[nodiscard]] pid_t pid() const { return pid_; }
    /// Sends the signal and waits for the end.
    void end(int signal);
    /// Waits for the end that comes by itself.
    void join();

private:
    pid_t pid_ = 0;
};

/// A share of the service, with a socket of its own name.
struct BenchShare {
    std::string name;
    std::uint32_t slots = 1;
    std::uint32_t vectors = 1;

    [[nodiscard]] std::uint64_t doorbells() const { return std::uint64_t{slots} * vectors; }
    /// Version, id and memory come in front.
    [[nodiscard]] std::uint64_t messages() const { return doorbells() + 3; }
};

class Served {
public:
    /// With `has_keeper` a keeper is started, too.
    Served(std::string program, const std::vector<BenchShare>& shares, bool has_keeper);
    Served(const Served&) = delete;
    Served& operator=(const Served&) = delete;
    ~Served();

    /// Starts an instance; wait_ready() when it has to answer before anything else goes on.
    void start();
    void wait_ready() const;
    void kill() { service_.reset(); }
    [[nodiscard]] pid_t pid() const { return service_->pid(); }
    [[nodiscard]] pid_t keeper_pid() const { return keeper_; }

    [[nodiscard]] const std::string& config() const { return config_; }
    [[nodiscard]] std::string control() const { return folder_.path_of("control"); }
    [[nodiscard]] std::string keeper() const { return folder_.path_of("keeper"); }
    [[nodiscard]] std::string socket_of(const std::string& share) const { return folder_.path_of(share); }
    /// Until nobody is attached to any share.
    void wait_until_empty() const;

private:
    TemporaryFolder folder_;
    std::string program_;
    std::string config_;
    pid_t keeper_ = 0;
    std::unique_ptr<Child> watcher_;
    std::unique_ptr<Child> service_;
};

/// Resident memory of a process in MiB, and the most that it has had.
struct Memory {
    double resident = 0;
    double peak = 0;
};
[[nodiscard]] Memory memory_of(pid_t process);

/// One message of 8 bytes; its descriptor, if any, is closed at once. False when there is none or all is over.
bool receive_one(int socket, int flags);
void receive_all(int socket, std::uint64_t messages);
/// All of them in this thread, which reads whatever is there, until each has had `messages`.
void receive_crowd(const std::vector<UnixStream>& clients, std::uint64_t messages);
/// One message with a descriptor; false when the socket has no room.
bool send_one(int socket, std::int64_t value, int fd, int flags);

[[noreturn]] void give_up(const std::string& why);

/// A value that children of this process share with it.
template <typename T>
class Common {
public:
    Common() {
        void* const place =
            ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (place == MAP_FAILED) give_up("no memory for what processes share");
        value_ = new (place) T{};
    }
    Common(const Common&) = delete;
    Common& operator=(const Common&) = delete;
    ~Common() { ::munmap(value_, sizeof(T)); }
    [[nodiscard]] T* operator->() const { return value_; }

private:
    T* value_ = nullptr;
};

}  // namespace guestmem::bench

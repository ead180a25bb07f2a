// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/keeper/keeper_process.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// Keepers for tests, in a process or in a thread, and descriptors that can be told apart.
///
/// Contract: no keeper outlives its owner. A KeeperThread runs run_keeper() in this process, so that a sanitizer sees
/// it; a KeeperProcess is what start_keeper() makes.
/// Threads: the test's own.

namespace guestmem::testing {

class KeeperProcess {
public:
    explicit KeeperProcess(const std::string& path)
        : KeeperProcess(share::KeeperProcessOptions{.path = path}) {}
    explicit KeeperProcess(const share::KeeperProcessOptions& options)
        : number_(share::start_keeper(options).value()) {}
    KeeperProcess(const KeeperProcess&) = delete;
    KeeperProcess& operator=(const KeeperProcess&) = delete;
    ~KeeperProcess() { end(SIGKILL); }

    [[nodiscard]] std::int32_t number() const { return number_; }
    void signal(int number) const { ::kill(number_, number); }
    [[nodiscard]] bool is_alive() const {
        // A zombie that nobody reaps in a container counts as ended, once all of its threads have: the last one closes
        // what the process had open. A sanitizer has a thread of its own.
        const std::string folder = "/proc/" + std::to_string(number_);
        const auto text = read_text_file(folder + "/stat", 4096);
        if (!text) return false;
        std::error_code gone;
        std::size_t threads = 0;
        for (const auto& thread : std::filesystem::directory_iterator{folder + "/task", gone}) {
            threads += thread.path().empty() ? 0U : 1U;
        }
        return text->find(") Z ") == std::string::npos || threads > 1;
    }
    /// By a signal; whether it has ended.
    bool end(int number) {
        if (!is_alive()) return true;
        signal(number);
        return eventually([this] { return !is_alive(); });
    }

private:
    std::int32_t number_;
};

class KeeperThread {
public:
    explicit KeeperThread(share::KeeperProcessOptions options)
        : options_(std::move(options)),
          stop_(EventFd::create().value()),
          thread_([this, listener = SeqpacketListener::create(options_.path).value()]() mutable {
              EXPECT_TRUE(share::run_keeper(std::move(listener), options_, stop_.view()));
          }) {}
    KeeperThread(const KeeperThread&) = delete;
    KeeperThread& operator=(const KeeperThread&) = delete;
    ~KeeperThread() {
        EXPECT_TRUE(stop_.ring());
        thread_.join();
    }

private:
    share::KeeperProcessOptions options_;
    EventFd stop_;
    std::thread thread_;
};

/// Doorbells, of which each is known by its key.
class Bells {
public:
    explicit Bells(std::uint32_t count, std::uint32_t share = 3) {
        for (std::uint32_t index = 0; index < count; ++index) {
            keys_.push_back({.kind = share::KeptKind::doorbell, .share = share, .index = index});
            bells_.push_back(EventFd::create().value());
        }
    }
    [[nodiscard]] std::vector<share::KeepRequest> requests() const {
        std::vector<share::KeepRequest> all;
        for (std::size_t i = 0; i < keys_.size(); ++i)
            all.push_back({.key = keys_[i], .fd = bells_[i].view()});
        return all;
    }
    [[nodiscard]] const std::vector<share::KeptKey>& keys() const { return keys_; }
    [[nodiscard]] const EventFd& bell(std::size_t index) const { return bells_.at(index); }

    /// Whether these are all of them, each the open file that was given.
    [[nodiscard]] bool are(const std::vector<share::KeptFd>& kept) const {
        if (kept.size() != keys_.size()) return false;
        return std::ranges::all_of(kept, [this](const share::KeptFd& one) { return has(one); });
    }
    [[nodiscard]] bool has(const share::KeptFd& one) const {
        const auto at = std::ranges::find(keys_, one.key);
        if (at == keys_.end()) return false;
        const EventFd& own = bells_.at(static_cast<std::size_t>(at - keys_.begin()));
        const EventFd other = EventFd::adopt(one.fd.duplicate().value()).value();
        return other.ring() && own.drain().value() == 1;
    }

private:
    std::vector<share::KeptKey> keys_;
    std::vector<EventFd> bells_;
};

/// Runs a function in a child process, which ends behind it; its status, or minus the signal.
template <typename Function>
int in_child(Function&& function) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(function());
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace guestmem::testing

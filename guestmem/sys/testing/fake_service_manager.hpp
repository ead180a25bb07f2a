// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// A service manager's end of $NOTIFY_SOCKET, in a thread: it writes down what it is told, and holds no descriptor.
///
/// Contract: while it lives, $NOTIFY_SOCKET leads to it, and $FDSTORE is what it was made with ("": unset). A
/// barrier is answered when everything before it is written down. Its system calls pass fault injection by.
/// Threads: any; it changes the environment, which nobody else may read meanwhile.
/// Example:
///     const FakeServiceManager manager{"64"};
///     ...
///     EXPECT_THAT(manager.names(), ElementsAre("d3.1f"));

namespace guestmem::testing {

class FakeServiceManager {
public:
    explicit FakeServiceManager(const std::string& store_limit)
        : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)), stop_(EventFd::create().value()) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        const std::string path = folder_.path_of("notify");
        std::memcpy(address.sun_path, path.data(), path.size());
        GM_CHECK(::bind(socket_.view().number(), reinterpret_cast<const sockaddr*>(&address),
                        sizeof address) == 0);
        ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
        if (!store_limit.empty()) ::setenv("FDSTORE", store_limit.c_str(), 1);
        thread_ = std::thread{[this] { run(); }};
    }
    FakeServiceManager(const FakeServiceManager&) = delete;
    FakeServiceManager& operator=(const FakeServiceManager&) = delete;
    ~FakeServiceManager() {
        ::unsetenv("NOTIFY_SOCKET");
        ::unsetenv("FDSTORE");
        GM_CHECK(stop_.ring());
        thread_.join();
    }

    /// What was said, in order.
    [[nodiscard]] std::vector<std::string> messages() const {
        const std::scoped_lock lock{mutex_};
        return messages_;
    }
    /// Of what is stored.
    [[nodiscard]] std::vector<std::string> names() const {
        const std::scoped_lock lock{mutex_};
        return names_;
    }
    void forget_all() {
        const std::scoped_lock lock{mutex_};
        messages_.clear();
        names_.clear();
    }

private:
    void run() {
        for (;;) {
            std::array<pollfd, 2> entries{{{.fd = socket_.view().number(), .events = POLLIN, .revents = 0},
                                           {.fd = stop_.view().number(), .events = POLLIN, .revents = 0}}};
            ::poll(entries.data(), entries.size(), -1);
            if (entries[0].revents != 0) take_one();
            if (entries[1].revents != 0) return;
        }
    }
    void take_one() {
        std::array<char, 4096> text{};
        iovec part{text.data(), text.size()};
        msghdr header{};
        header.msg_iov = &part;
        header.msg_iovlen = 1;
        // Whom a barrier wakes finds it written down.
        const std::scoped_lock lock{mutex_};
        const ssize_t count = ::recvmsg(socket_.view().number(), &header, MSG_DONTWAIT);
        if (count <= 0) return;
        const bool has_fds = (header.msg_flags & MSG_CTRUNC) != 0;
        work_on(std::string{text.data(), static_cast<std::size_t>(count)}, has_fds);
    }
    void work_on(std::string text, bool has_fds) {
        const std::size_t at = text.find("FDNAME=");
        const std::string name =
            at == std::string::npos ? "" : text.substr(at + 7, text.find('\n', at) - at - 7);
        if (text.starts_with("FDSTOREREMOVE=1")) {
            std::erase(names_, name);
        } else if (text.starts_with("FDSTORE=1") && has_fds) {
            names_.push_back(name);
        }
        messages_.push_back(std::move(text));
    }

    TempFolder folder_;
    Fd socket_;
    EventFd stop_;
    mutable std::mutex mutex_;
    std::vector<std::string> messages_;
    std::vector<std::string> names_;
    std::thread thread_;
};

}  // namespace guestmem::testing

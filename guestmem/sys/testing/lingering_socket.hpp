// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <span>
#include <vector>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// A descriptor whose last close waits, as a hostile peer would send it.
///
/// Concepts: a TCP connection with SO_LINGER whose other end does not read: its last close waits for `time`, or until
/// the other end goes.
/// Contract: when give_to() returns, the copy in the message is the last one, so whoever frees the message waits.
/// Destroying this lets who still waits go on.
/// Threads: one at a time.
/// Example:
///     LingeringSocket slow;
///     slow.give_to(client, bytes);
///     ... whatever must not wait for it

namespace guestmem::testing {

class LingeringSocket {
public:
    static constexpr std::chrono::seconds time{6};

    LingeringSocket() {
        const Fd listener{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size_bytes = sizeof address;
        auto* const name = reinterpret_cast<sockaddr*>(&address);
        EXPECT_EQ(::bind(listener.view().number(), name, size_bytes), 0);
        EXPECT_EQ(::listen(listener.view().number(), 1), 0);
        EXPECT_EQ(::getsockname(listener.view().number(), name, &size_bytes), 0);
        slow_ = Fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        EXPECT_EQ(::connect(slow_.view().number(), name, size_bytes), 0);
        deaf_ = Fd{::accept4(listener.view().number(), nullptr, nullptr, SOCK_CLOEXEC)};
        const linger waits{.l_onoff = 1, .l_linger = static_cast<int>(time.count())};
        EXPECT_EQ(::setsockopt(slow_.view().number(), SOL_SOCKET, SO_LINGER, &waits, sizeof waits), 0);
        const std::vector<std::byte> bytes(std::size_t{1} << 16);
        while (::send(slow_.view().number(), bytes.data(), bytes.size(), MSG_DONTWAIT) > 0) {
        }
    }

    /// Sends it along with the bytes.
    void give_to(const UnixStream& stream, std::span<const std::byte> bytes) {
        const std::array fds{slow_.view()};
        EXPECT_TRUE(stream.send(bytes, fds));
        slow_.reset();
    }

private:
    Fd slow_;
    Fd deaf_;
};

}  // namespace guestmem::testing

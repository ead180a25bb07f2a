// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/control/wire.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// A caller's end of the control protocol: blocking calls, one at a time.
///
/// Contract: call() sends one request and waits for its answer, at most the timeout. The error of the service
/// arrives as the error of the call. Descriptors of an answer are owned by it; an answer whose descriptors do
/// not match what it announces is an error.
/// Threads: one at a time.
/// Example:
///     Client client = GM_TRY(Client::connect("/run/guestmem/share.control"));
///     ClientAnswer answer = GM_TRY(client.call("share.list", "{}"));

namespace guestmem::control {

struct ClientAnswer {
    std::string result;
    std::vector<Fd> fds;
};

class Client {
public:
    [[nodiscard]] static Result<Client> connect(const std::string& path, int timeout_ms = 10'000);
    [[nodiscard]] Result<ClientAnswer> call(const std::string& name, const std::string& arguments);

private:
    Client(UnixStream stream, std::string path, int timeout_ms)
        : stream_(std::move(stream)), path_(std::move(path)), timeout_ms_(timeout_ms) {}
    [[nodiscard]] Result<void> send_line(const std::string& line);
    [[nodiscard]] Result<std::string> receive_line(std::vector<Fd>& fds);

    UnixStream stream_;
    std::string path_;
    int timeout_ms_;
    std::uint64_t next_id_ = 1;
};

}  // namespace guestmem::control

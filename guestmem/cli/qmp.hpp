// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// QMP, the language of QEMU's monitor sockets: lines of JSON in both directions.
///
/// Contract: whoever listens may say anything: what breaks the protocol is an error, and so is a command that QEMU
/// refuses, with QEMU's sentence made printable. Events are passed over. A conversation in which something broke is
/// over: later answers may belong to earlier questions.
/// Limits: max_qmp_bytes in all that comes; a deadline, set_time().
/// Threads: one at a time.
/// Known holes: QEMU talks to one QMP client at a time: while another one is connected, there is no greeting.

namespace guestmem::cli {

inline constexpr int greeting_timeout_ms = 2000;
inline constexpr int conversation_timeout_ms = 5000;
inline constexpr std::size_t max_qmp_bytes = std::size_t{4} << 20;

/// A connection to whoever listens at the path, within the time of a greeting.
[[nodiscard]] Result<UnixStream> connect_soon(const std::string& path);

class QmpConversation {
public:
    /// A stream that does not block and lives for longer.
    explicit QmpConversation(const UnixStream& stream) : stream_(stream) {}

    /// All that follows is done within so many milliseconds from here.
    void set_time(int timeout_ms);
    /// Takes QEMU's greeting; false when it is none, or none comes in time.
    [[nodiscard]] bool take_greeting();
    [[nodiscard]] Result<nlohmann::json> ask(std::string_view command, const nlohmann::json& arguments = {},
                                             std::span<const FdView> fds = {});
    [[nodiscard]] Result<std::string> ask_human(std::string_view command);

private:
    [[nodiscard]] Result<std::string> line();
    /// Whether what comes can be a JSON object: a peer that speaks otherwise need not be waited for.
    [[nodiscard]] Result<bool> begins_with_brace();
    [[nodiscard]] Result<void> receive();

    const UnixStream& stream_;
    std::chrono::steady_clock::time_point deadline_;
    std::string text_;
    std::size_t searched_ = 0;
    std::size_t count_bytes_ = 0;
    std::uint64_t last_id_ = 0;
};

/// An error about what QEMU said.
[[nodiscard]] Error qmp_broken(std::string_view what);

}  // namespace guestmem::cli

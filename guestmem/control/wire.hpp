// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"

/// The envelope of the control protocol: one JSON object a line, with a version. docs/protocols/control.md is
/// the specification.
///
/// Concepts: a Request names a call and carries arguments; an Answer carries a result or an error, and says how
/// many descriptors came with it. Arguments and results stay JSON text here: each service knows its own.
/// Contract: decode_* take any bytes and never abort, throw or recurse on them. encode_* make exactly one line,
/// its newline included.
/// Limits: a request max_request_bytes, an answer max_answer_bytes, nesting max_nesting, a call's name
/// max_call_bytes; one past is an error.
/// Threads: any.

namespace guestmem::control {

inline constexpr std::uint64_t protocol_version = 1;
inline constexpr std::size_t max_request_bytes = 64 * 1024;
inline constexpr std::size_t max_answer_bytes = 1024 * 1024;
inline constexpr std::size_t max_nesting = 16;
inline constexpr std::size_t max_call_bytes = 64;
/// What one message of a Unix socket carries here (max_fds_per_message).
inline constexpr std::size_t max_answer_fds = 32;

struct Request {
    std::uint64_t id = 0;
    std::string call;              ///< "share.list"
    std::string arguments = "{}";  ///< a JSON object
};

struct Answer {
    std::uint64_t id = 0;
    std::optional<std::string> result;  ///< a JSON object; nothing when `error` is set
    std::optional<Error> error;
    std::uint32_t count_fds = 0;
};

[[nodiscard]] Result<Request> decode_request(std::string_view line);
[[nodiscard]] std::string encode_request(const Request& request);
[[nodiscard]] Result<Answer> decode_answer(std::string_view line);
[[nodiscard]] std::string encode_answer(const Answer& answer);

/// Whether brackets nest deeper than `limit`, seen without parsing; text inside of strings does not count.
[[nodiscard]] bool nests_deeper_than(std::string_view text, std::size_t limit);

}  // namespace guestmem::control

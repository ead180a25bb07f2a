// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Errors as values: a code, an errno and a sentence.
///
/// Concepts: the code says what the caller can do about it; the errno is the kernel's own word, 0 when the
/// kernel was not asked; the sentence says what failed, on what and why, with numbers.
/// Contract: context is added in front, once per level that knows something new ("share 'mailbox': ...").
/// Who handles an error logs it; nobody logs and returns it.
/// Threads: any; an Error is a plain value.
/// Example: `return Error{Errc::not_found, "share 'mail': no such share; there are: mailbox"};`

namespace guestmem {

/// What the caller can do. The names travel in the control protocol, so they are append-only.
enum class Errc : std::uint8_t {
    invalid_argument,   ///< say it differently
    not_found,          ///< name something that exists
    already_exists,     ///< choose another name or place
    busy,               ///< wait until its holder is gone
    permission_denied,  ///< ask somebody who may
    out_of_range,       ///< stay inside the limits that the message names
    exhausted,          ///< give the system more of it (descriptors, memory, slots)
    unavailable,        ///< start the other side, or try again
    timed_out,          ///< wait longer
    corrupt,            ///< the other side or the file breaks the format
    unsupported,        ///< this machine or this version cannot
    io,                 ///< the kernel refused for a reason of its own
};

/// The protocol's name of a code: "not_found".
[[nodiscard]] std::string_view to_string(Errc code);
/// The code with that name; nothing when there is none.
[[nodiscard]] std::optional<Errc> to_errc(std::string_view name);

class [[nodiscard]] Error {
public:
    Error(Errc code, std::string message) : Error(code, 0, std::move(message)) {}
    Error(Errc code, int os_error, std::string message)
        : code_(code), os_error_(os_error), message_(std::move(message)) {}

    /// From an errno: the code follows from it, and its text ends the message: "open /x: No such file".
    static Error from_errno(int os_error, std::string_view what);

    [[nodiscard]] Errc code() const { return code_; }
    [[nodiscard]] int os_error() const { return os_error_; }
    [[nodiscard]] const std::string& message() const { return message_; }

    /// The same error, "context: " in front of its sentence.
    [[nodiscard]] Error with_context(std::string_view context) &&;

private:
    Errc code_;
    int os_error_;
    std::string message_;
};

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Errors of the guest programs as values: one sentence that says what failed, on what, and why.
//
// Contract: a Result that nobody looks at is a compiler warning.
// Lifetime: a Failure owns its text.

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace guestmem::guest {

struct Failure {
    std::string text;
};

template <typename T>
class [[nodiscard]] Result : public std::expected<T, Failure> {
public:
    using std::expected<T, Failure>::expected;
};

// "what: where: why"
inline std::unexpected<Failure> failure(std::string_view what, std::string_view where, std::string_view why) {
    std::string text(what);
    text.append(": ").append(where).append(": ").append(why);
    return std::unexpected(Failure{std::move(text)});
}

// The same, with errno as the reason.
inline std::unexpected<Failure> system_failure(std::string_view what, std::string_view where) {
    const int code = errno;
    return failure(what, where, std::strerror(code));
}

}  // namespace guestmem::guest

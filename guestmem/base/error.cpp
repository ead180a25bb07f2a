// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/error.hpp"

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace guestmem {
namespace {

constexpr std::array<std::pair<Errc, std::string_view>, 12> names{{
    {Errc::invalid_argument, "invalid_argument"},
    {Errc::not_found, "not_found"},
    {Errc::already_exists, "already_exists"},
    {Errc::busy, "busy"},
    {Errc::permission_denied, "permission_denied"},
    {Errc::out_of_range, "out_of_range"},
    {Errc::exhausted, "exhausted"},
    {Errc::unavailable, "unavailable"},
    {Errc::timed_out, "timed_out"},
    {Errc::corrupt, "corrupt"},
    {Errc::unsupported, "unsupported"},
    {Errc::io, "io"},
}};

Errc code_of_errno(int os_error) {
    switch (os_error) {
        case EINVAL:
        case ENAMETOOLONG: return Errc::invalid_argument;
        case ENOENT:
        case ENXIO:
        case ENODEV: return Errc::not_found;
        case EEXIST:
        case EADDRINUSE: return Errc::already_exists;
        case EBUSY:
        case EWOULDBLOCK: return Errc::busy;
        case EACCES:
        case EPERM: return Errc::permission_denied;
        case ERANGE:
        case EFBIG: return Errc::out_of_range;
        case EMFILE:
        case ENFILE:
        case ENOMEM:
        case ENOSPC:
        case ENOBUFS:
        case ETOOMANYREFS: return Errc::exhausted;
        case ECONNREFUSED:
        case ECONNRESET:
        case EPIPE: return Errc::unavailable;
        case ETIMEDOUT: return Errc::timed_out;
        case EPROTO:
        case EBADMSG: return Errc::corrupt;
        case ENOSYS:
        case EOPNOTSUPP: return Errc::unsupported;
        default: return Errc::io;
    }
}

}  // namespace

std::string_view to_string(Errc code) {
    for (const auto& [value, name] : names)
        if (value == code) return name;
    return "io";
}

std::optional<Errc> to_errc(std::string_view name) {
    for (const auto& [value, text] : names)
        if (text == name) return value;
    return std::nullopt;
}

Error Error::from_errno(int os_error, std::string_view what) {
    // generic_category().message() is thread safe, strerror is not.
    std::string message{what};
    message += ": ";
    message += std::generic_category().message(os_error);
    return Error{code_of_errno(os_error), os_error, std::move(message)};
}

Error Error::with_context(std::string_view context) && {
    std::string message{context};
    message += ": ";
    message += message_;
    return Error{code_, os_error_, std::move(message)};
}

}  // namespace guestmem

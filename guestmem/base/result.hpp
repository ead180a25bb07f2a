// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <expected>
#include <string_view>
#include <type_traits>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/base/error.hpp"

/// Result<T>: a value or an Error, and the compiler warns whoever drops one.
///
/// Contract: asking a failed Result for its value, or a good one for its error, is our own bug (GM_CHECK).
/// GM_TRY(expression) yields the value or returns the error from the function around it;
/// GM_TRY_CONTEXT(expression, context) adds "context: " in front of the sentence first.
/// Threads: any; a plain value.
/// Cost: an Error allocates its sentence; the good path allocates nothing.
/// Example:
///     Result<Fd> open_log(const std::string& path) {
///         Fd fd = GM_TRY(open_file(path, OpenMode::read));
///         return fd;
///     }
/// Known holes: GM_TRY is a GNU statement expression: not for constant expressions, nor for default arguments. In a
/// braced list it comes first, or behind plain numbers: g++ 12 does not destroy the members before it.

namespace guestmem {

template <typename T>
class [[nodiscard]] Result {
    static_assert(!std::same_as<T, Error>, "a Result<Error> cannot tell its value from its failure");

public:
    using value_type = T;

    // A value and an Error become a Result by themselves: that is what `return fd;` and `return error;` are.
    // NOLINTBEGIN(google-explicit-constructor)
    template <typename U = T>
        requires(std::constructible_from<T, U &&> && !std::same_as<std::remove_cvref_t<U>, Result> &&
                 !std::same_as<std::remove_cvref_t<U>, Error>)
    Result(U&& value) : state_(std::in_place, std::forward<U>(value)) {}
    Result(Error error) : state_(std::unexpect, std::move(error)) {}
    // NOLINTEND(google-explicit-constructor)

    [[nodiscard]] bool has_value() const noexcept { return state_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }

    [[nodiscard]] T& value() & {
        GM_CHECK(has_value());
        return *state_;
    }
    [[nodiscard]] const T& value() const& {
        GM_CHECK(has_value());
        return *state_;
    }
    [[nodiscard]] T&& value() && {
        GM_CHECK(has_value());
        return *std::move(state_);
    }
    [[nodiscard]] T& operator*() & { return value(); }
    [[nodiscard]] const T& operator*() const& { return value(); }
    [[nodiscard]] T&& operator*() && { return std::move(*this).value(); }
    [[nodiscard]] T* operator->() { return &value(); }
    [[nodiscard]] const T* operator->() const { return &value(); }

    [[nodiscard]] const Error& error() const& {
        GM_CHECK(!has_value());
        return state_.error();
    }
    [[nodiscard]] Error&& error() && {
        GM_CHECK(!has_value());
        return std::move(state_).error();
    }

private:
    std::expected<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
public:
    using value_type = void;

    Result() = default;
    // NOLINTNEXTLINE(google-explicit-constructor): `return error;`
    Result(Error error) : state_(std::unexpect, std::move(error)) {}

    [[nodiscard]] bool has_value() const noexcept { return state_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const { GM_CHECK(has_value()); }

    [[nodiscard]] const Error& error() const& {
        GM_CHECK(!has_value());
        return state_.error();
    }
    [[nodiscard]] Error&& error() && {
        GM_CHECK(!has_value());
        return std::move(state_).error();
    }

private:
    std::expected<void, Error> state_;
};

/// What GM_TRY hands on: the value itself, by move.
template <typename T>
T take_value(Result<T>&& result) {
    return std::move(result).value();
}
inline void take_value(Result<void>&& result) { result.value(); }

}  // namespace guestmem

#define GM_CONCAT_(a, b) a##b
#define GM_CONCAT(a, b) GM_CONCAT_(a, b)

#define GM_TRY_(name, expression)                \
    __extension__({                              \
        auto name = (expression);                \
        if (!name) [[unlikely]]                  \
            return std::move(name).error();      \
        ::guestmem::take_value(std::move(name)); \
    })
#define GM_TRY(expression) GM_TRY_(GM_CONCAT(gm_try_, __COUNTER__), expression)

#define GM_TRY_CONTEXT_(name, expression, context)                \
    __extension__({                                               \
        auto name = (expression);                                 \
        if (!name) [[unlikely]]                                   \
            return std::move(name).error().with_context(context); \
        ::guestmem::take_value(std::move(name));                  \
    })
#define GM_TRY_CONTEXT(expression, context) \
    GM_TRY_CONTEXT_(GM_CONCAT(gm_try_, __COUNTER__), expression, context)

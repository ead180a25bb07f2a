// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// What is wrong with a backend before it is made.
///
/// Contract: a refusal says that it cannot be made, or that the program would be killed for it later; a warning that it
/// will do something that few would expect. The code names the rule, for programs; the message says what, with
/// numbers; the advice what to write instead, or is empty.
/// Threads: any; plain values.

namespace guestmem {

enum class Severity : std::uint8_t { refusal, warning };

struct Problem {
    Severity severity = Severity::refusal;
    std::string_view code;
    std::string message;
    std::string advice;
};

class Problems {
public:
    void refuse(std::string_view code, std::string message, std::string advice = {}) {
        found_.push_back({Severity::refusal, code, std::move(message), std::move(advice)});
    }
    void warn(std::string_view code, std::string message, std::string advice = {}) {
        found_.push_back({Severity::warning, code, std::move(message), std::move(advice)});
    }
    void append(const Problems& more) { found_.insert(found_.end(), more.found_.begin(), more.found_.end()); }
    [[nodiscard]] std::span<const Problem> all() const& { return found_; }
    /// In a loop over all() of a temporary they would be gone.
    std::span<const Problem> all() && = delete;
    [[nodiscard]] bool has_refusal() const {
        return std::ranges::any_of(found_,
                                   [](const Problem& one) { return one.severity == Severity::refusal; });
    }

private:
    std::vector<Problem> found_;
};

}  // namespace guestmem

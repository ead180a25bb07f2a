// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"

/// An allow list of system calls, made into a program that the kernel runs before each call.
///
/// Concepts: a plan names calls, some of them with a condition on an argument; a program is made of it once, and
/// installed by each thread that it is for. What is not in the plan gets the plan's answer.
/// Contract: a filter holds for good, and for all that the thread starts later: another one on top of it can only take
/// more away. clone3, whose argument a filter cannot see, says that it does not exist; the C library takes clone then.
/// Calls of another architecture end the process whatever the answer is.
/// Threads: create() any; a program may be installed by several at once.
/// Limits: builds whose instruments make system calls of their own cannot have it: find_filter_obstacle(). What a
/// pointer points to (a path, a structure) is out of sight.
/// Cost: create() some 20 us, without a system call; install() two calls, some 0.1 ms. A call costs some 120 ns more.
/// Example:
///     const auto program = GM_TRY(FilterProgram::create({.calls = {"read write", "exit_group"}}));
///     GM_TRY(program.install(FilterScope::thread));

namespace guestmem {

/// What a call that is not in the list gets.
enum class FilterAnswer : std::uint8_t {
    kill,    ///< SIGSYS, to the whole process
    refuse,  ///< EPERM
    log,     ///< it is done, and the kernel's audit log has a line
};

/// The call is allowed where (argument & mask) == value; always without a mask. Several rules of one call: any of them.
struct CallRule {
    const char* call = "";
    unsigned argument = 0;
    std::uint64_t mask = 0;
    std::uint64_t value = 0;
};

/// The mask for arguments of which the kernel looks at 32 bits.
inline constexpr std::uint64_t whole_int = 0xffffffff;

struct FilterPlan {
    /// Allowed whatever the arguments are: names with spaces between them. Those that this architecture has not got are
    /// passed over; a name that call_numbers.hpp does not know is an error.
    std::vector<std::string_view> calls = {};
    std::vector<CallRule> rules = {};
    /// The call that is made most often, looked at first. The others are a tree: all take about as long.
    std::string_view first = {};
    FilterAnswer answer = FilterAnswer::kill;
};

enum class FilterScope : std::uint8_t {
    thread,   ///< the calling one
    process,  ///< all that run
};

class FilterProgram {
public:
    [[nodiscard]] static Result<FilterProgram> create(const FilterPlan& plan);

    [[nodiscard]] Result<void> install(FilterScope scope) const;

    [[nodiscard]] std::size_t count_instructions() const { return instructions_.size(); }

private:
    explicit FilterProgram(std::vector<std::uint64_t> instructions)
        : instructions_(std::move(instructions)) {}

    std::vector<std::uint64_t> instructions_;  ///< struct sock_filter each
};

/// Why this build cannot have a filter ("it is instrumented by AddressSanitizer ..."), or nothing.
[[nodiscard]] std::optional<std::string> find_filter_obstacle();

}  // namespace guestmem

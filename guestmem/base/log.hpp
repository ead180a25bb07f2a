// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

/// Where a service says what an operator wants to know. The program decides where it goes; a test listens.
///
/// Contract: one call is one line. debug is for whoever works on the service, info and above for operators.
/// Threads: one at a time, unless the implementation says otherwise.

namespace guestmem {

enum class LogLevel : std::uint8_t { debug, info, warning, error };

class Log {
public:
    virtual ~Log() = default;
    virtual void write(LogLevel level, std::string_view text) = 0;
};

/// At most `burst` lines a second of events that peers cause; what is left out is counted and said.
class LogLimiter {
public:
    LogLimiter(Log& log, std::uint32_t burst) : log_(log), burst_(burst) {}
    void write(LogLevel level, std::string_view text, std::uint64_t now_ms);

private:
    Log& log_;
    std::uint32_t burst_;
    std::uint64_t second_ = 0;
    std::uint32_t count_ = 0;
    std::uint64_t left_out_ = 0;
};

}  // namespace guestmem

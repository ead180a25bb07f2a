// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A terminal whose keys go to a guest one by one: no line editing, no echo, no signals from keys.
///
/// Contract: the terminal is as it was when the RawTerminal goes, and also when a signal that ends the program arrives
/// whose handler calls restore(). What is no terminal is left alone, and is_terminal() says so.
/// Threads: one at a time; restore() any, and in signal handlers.
/// Known holes: SIGKILL leaves the terminal raw: `reset` or `stty sane` mends it.

namespace guestmem {

class RawTerminal {
public:
    [[nodiscard]] static Result<RawTerminal> create(FdView terminal);
    RawTerminal(RawTerminal&&) noexcept;
    RawTerminal& operator=(RawTerminal&&) noexcept;
    ~RawTerminal();

    [[nodiscard]] bool is_terminal() const { return state_ != nullptr; }
    void restore() noexcept;

private:
    struct State;
    explicit RawTerminal(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

[[nodiscard]] bool is_terminal(FdView fd);

/// Writes what a terminal, pipe or file takes at once, and says how many bytes that were; 0 when it takes none now. The
/// descriptor is left blocking, as other programs may share it.
[[nodiscard]] Result<std::size_t> write_without_waiting(FdView fd, std::span<const std::byte> bytes);

}  // namespace guestmem

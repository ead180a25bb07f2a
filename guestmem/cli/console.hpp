// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/terminal.hpp"

/// A guest's serial port on the program's standard input and output.
///
/// Concepts: what the guest sends is written at once while the output takes it, else kept, and written by the loop.
/// Keys go to the guest; on a terminal Ctrl-A is for the console itself: x ends, p pauses or goes on, Ctrl-A sends
/// itself.
/// Contract: the guest never waits for the output. Of what nobody reads max_kept_bytes are kept, then the oldest
/// are lost, and counted. Input that the guest does not take waits.
/// Threads: send() and wake() any; everything else the loop's.

namespace guestmem::cli {

class Console {
public:
    static constexpr std::size_t max_kept_bytes = 1 << 20;

    struct Handlers {
        /// Bytes for the guest; says how many it took. Empty: the input is left alone.
        std::function<std::size_t(std::span<const std::byte>)> receive;
        std::function<void()> quit;  ///< empty: all keys are the guest's
        std::function<void()> toggle_pause;
    };
    [[nodiscard]] static Result<std::unique_ptr<Console>> create(EventLoop& loop, FdView input,
                                                                 FdView output);
    Console(const Console&) = delete;
    Console& operator=(const Console&) = delete;

    /// Keys are heard from here on; the terminal becomes raw.
    [[nodiscard]] Result<void> listen(Handlers handlers);
    void send(std::byte byte);
    void send(std::string_view text);
    /// The guest takes input again.
    void wake();
    /// Everything that is kept, as far as the output takes it within the time.
    void flush(int timeout_ms);
    [[nodiscard]] std::uint64_t count_lost() const;

private:
    Console(EventLoop& loop, FdView input, FdView output, EventFd wakeup)
        : loop_(loop), input_(input), output_(output), wakeup_(std::move(wakeup)) {}
    void fill();
    void give();
    void take_keys(std::span<const std::byte> bytes);
    void offer();
    /// With the mutex held.
    void write_kept();

    EventLoop& loop_;
    FdView input_;
    FdView output_;
    EventFd wakeup_;
    Handlers handlers_;
    std::optional<RawTerminal> terminal_;
    EventSource input_source_;
    EventSource wakeup_source_;
    EventSource retry_;
    std::vector<std::byte> waiting_;  ///< input that the guest has not taken
    bool is_after_prefix_ = false;
    bool is_input_at_end_ = false;

    mutable std::mutex mutex_;
    std::vector<std::byte> kept_;
    std::uint64_t lost_ = 0;
    bool is_broken_ = false;
};

}  // namespace guestmem::cli

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/terminal.hpp"

#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

struct RawTerminal::State {
    FdView terminal;
    termios before = {};
};

bool is_terminal(FdView fd) { return ::isatty(fd.number()) == 1; }

Result<std::size_t> write_without_waiting(FdView fd, std::span<const std::byte> bytes) {
    // What a pipe that is writable takes as one piece; a terminal that is writable takes some hundred.
    constexpr std::size_t piece_bytes = 128;
    std::size_t done = 0;
    while (done < bytes.size()) {
        pollfd entry{.fd = fd.number(), .events = POLLOUT, .revents = 0};
        const int ready = checked_call(SysCall::poll, [&] { return ::poll(&entry, 1, 0); });
        if (ready < 0) return Error::from_errno(errno, "ask whether output has room");
        if (ready == 0) break;
        const auto piece = bytes.subspan(done, std::min(piece_bytes, bytes.size() - done));
        const ssize_t count =
            checked_call(SysCall::write, [&] { return ::write(fd.number(), piece.data(), piece.size()); });
        if (count < 0 && errno == EAGAIN) break;
        if (count < 0) return Error::from_errno(errno, "write output");
        done += static_cast<std::size_t>(count);
    }
    return done;
}

RawTerminal::RawTerminal(std::unique_ptr<State> state) : state_(std::move(state)) {}
RawTerminal::RawTerminal(RawTerminal&&) noexcept = default;
RawTerminal& RawTerminal::operator=(RawTerminal&& other) noexcept {
    if (this != &other) {
        restore();
        state_ = std::move(other.state_);
    }
    return *this;
}
RawTerminal::~RawTerminal() { restore(); }

Result<RawTerminal> RawTerminal::create(FdView terminal) {
    if (!guestmem::is_terminal(terminal)) return RawTerminal{nullptr};
    auto state = std::make_unique<State>();
    state->terminal = terminal;
    if (checked_call(SysCall::ioctl, [&] { return ::tcgetattr(terminal.number(), &state->before); }) != 0) {
        return Error::from_errno(errno, "ask how the terminal is set");
    }
    termios raw = state->before;
    raw.c_iflag &= ~static_cast<tcflag_t>(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    raw.c_lflag &= ~static_cast<tcflag_t>(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    raw.c_cflag &= ~static_cast<tcflag_t>(CSIZE | PARENB);
    raw.c_cflag |= CS8;
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    if (checked_call(SysCall::ioctl, [&] { return ::tcsetattr(terminal.number(), TCSANOW, &raw); }) != 0) {
        return Error::from_errno(errno, "give the terminal's keys to the guest");
    }
    return RawTerminal{std::move(state)};
}

void RawTerminal::restore() noexcept {
    if (state_ == nullptr) return;
    static_cast<void>(::tcsetattr(state_->terminal.number(), TCSANOW, &state_->before));
}

}  // namespace guestmem

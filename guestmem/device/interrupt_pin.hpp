// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "guestmem/device/interrupt.hpp"

/// A level pin that several devices share: it is up while any of its inputs is.
///
/// Concepts: who shares the pin makes an input of its own, and sees an InterruptLine like any other.
/// Contract: the output hears of changes only, in their order. An input that is destroyed is down.
/// Threads: any; the output is set under a mutex of the pin, so the output must not call back into an input.
/// Lifetime: inputs hold the pin's state and its output; the pin itself may go first.
/// Limits: as many inputs as devices ask for; a guest makes none.
/// Example:
///     InterruptPin pin{line};
///     device.connect(pin.make_input());

namespace guestmem {

class InterruptPin {
public:
    explicit InterruptPin(std::shared_ptr<InterruptLine> output);
    /// An input that is down.
    [[nodiscard]] std::shared_ptr<InterruptLine> make_input() const;

private:
    struct State;
    class Input;
    std::shared_ptr<State> state_;
};

}  // namespace guestmem

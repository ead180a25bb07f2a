// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/interrupt_pin.hpp"

#include <cstddef>
#include <mutex>
#include <utility>

namespace guestmem {

struct InterruptPin::State {
    std::mutex mutex;
    std::size_t count_up = 0;
    std::shared_ptr<InterruptLine> output;
};

class InterruptPin::Input final : public InterruptLine {
public:
    explicit Input(std::shared_ptr<State> state) : state_(std::move(state)) {}
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;
    ~Input() override { change(false); }

    void set(bool is_up) override { change(is_up); }

private:
    // The output is set inside the mutex: two inputs that change at once must not reach it in the other order.
    void change(bool is_up) {
        const std::scoped_lock lock{state_->mutex};
        if (is_up == is_up_) return;
        is_up_ = is_up;
        if (is_up && state_->count_up++ == 0) state_->output->set(true);
        if (!is_up && --state_->count_up == 0) state_->output->set(false);
    }

    std::shared_ptr<State> state_;
    bool is_up_ = false;
};

InterruptPin::InterruptPin(std::shared_ptr<InterruptLine> output) : state_(std::make_shared<State>()) {
    state_->output = std::move(output);
}

std::shared_ptr<InterruptLine> InterruptPin::make_input() const { return std::make_shared<Input>(state_); }

}  // namespace guestmem

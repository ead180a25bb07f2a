// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/intx_pin.hpp"

#include <utility>

namespace guestmem::pci {

void IntxPin::set(bool is_up) {
    const std::scoped_lock lock{mutex_};
    is_up_ = is_up;
    drive();
}

void IntxPin::connect(std::shared_ptr<InterruptLine> line) {
    const std::scoped_lock lock{mutex_};
    if (line_ && is_driven_) line_->set(false);
    is_driven_ = false;
    line_ = std::move(line);
    drive();
}

void IntxPin::set_gate(bool is_open) {
    const std::scoped_lock lock{mutex_};
    is_gate_open_ = is_open;
    drive();
}

bool IntxPin::is_up() const {
    const std::scoped_lock lock{mutex_};
    return is_up_;
}

void IntxPin::drive() {
    const bool is_wanted = is_up_ && is_gate_open_;
    if (!line_ || is_wanted == is_driven_) return;
    is_driven_ = is_wanted;
    line_->set(is_wanted);
}

}  // namespace guestmem::pci

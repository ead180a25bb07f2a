// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/wiring.hpp"

#include <utility>

namespace guestmem::vmm {

class Wiring::Wire final : public InterruptLine {
public:
    Wire(InterruptLine& pin, InterruptLine* input) : pin_(pin), input_(input) {}
    void set(bool is_up) override {
        pin_.set(is_up);
        if (input_ != nullptr) input_->set(is_up);
    }

private:
    InterruptLine& pin_;
    InterruptLine* input_;
};

Wiring::Wiring(KvmInterrupts& interrupts, std::function<void()> notice)
    : interrupts_(interrupts),
      notice_(std::move(notice)),
      io_apic_(std::make_shared<IoApic>(*this)),
      pic_(std::make_shared<Pic>(*this)) {
    for (std::uint32_t pin = 0; pin < IoApic::pin_count; ++pin) {
        InterruptLine* const input = pin < Pic::input_count ? &pic_->line(pin) : nullptr;
        pins_.emplace_back(std::make_shared<Wire>(io_apic_->line(pin), input));
    }
}

std::shared_ptr<InterruptLine> Wiring::wire(std::uint32_t pin) { return pins_[pin].make_input(); }

bool Wiring::route(std::uint32_t pin, std::optional<MsiMessage> message) {
    return interrupts_.route_pin(pin, message);
}
void Wiring::fire(std::uint32_t pin) { interrupts_.fire_pin(pin); }
void Wiring::set(bool is_up) {
    if (is_up) notice_();
}

}  // namespace guestmem::vmm

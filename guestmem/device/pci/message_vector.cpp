// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/message_vector.hpp"

#include <utility>

#include "guestmem/sys/poll.hpp"

namespace guestmem::pci {

Result<void> MessageVector::give(MsiConnector& connector, FdView eventfd) {
    std::unique_ptr<MsiInterrupt> interrupt = GM_TRY(connector.connect(eventfd));
    interrupt_ = std::move(interrupt);
    eventfd_ = eventfd;
    others_.clear();
    live_.reset();
    return want(wanted_);
}

void MessageVector::take_back() {
    interrupt_.reset();
    eventfd_ = {};
    others_.clear();
    live_.reset();
}

Result<void> MessageVector::add(FdView eventfd) {
    if (!interrupt_) return Error{Errc::not_found, "an eventfd beside none: give the vector its first one"};
    GM_TRY(interrupt_->add(eventfd));
    others_.push_back(eventfd);
    return {};
}

void MessageVector::remove(FdView eventfd) {
    const auto is_meant = [&](FdView other) { return other.number() == eventfd.number(); };
    if (std::erase_if(others_, is_meant) != 0) interrupt_->remove(eventfd);
}

void MessageVector::expect(const std::optional<MsiMessage>& message) const {
    if (interrupt_ && message && live_ != message) interrupt_->expect(*message);
}

Result<void> MessageVector::want(const std::optional<MsiMessage>& message) {
    wanted_ = message;
    if (!interrupt_ || live_ == wanted_) return {};
    if (!wanted_) {
        GM_TRY(interrupt_->mask());
        live_.reset();
        return {};
    }
    // A message that cannot be replaced must not go on as what it was: the guest may have given that to another device.
    if (auto done = interrupt_->unmask(*wanted_); !done) {
        if (live_ && interrupt_->mask()) live_.reset();
        return done;
    }
    live_ = wanted_;
    return {};
}

bool MessageVector::is_pending() const {
    if (!interrupt_ || live_) return false;
    std::vector<FdView> all = others_;
    all.push_back(eventfd_);
    const auto kicked = poll_readable(all, 0);
    return kicked && !kicked->empty();
}

}  // namespace guestmem::pci

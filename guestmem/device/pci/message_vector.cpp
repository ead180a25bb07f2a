// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/message_vector.hpp"

#include <utility>

#include "guestmem/sys/poll.hpp"

namespace guestmem::pci {

Result<void> MessageVector::give(MsiConnector& connector, FdView eventfd) {
    std::unique_ptr<MsiInterrupt> interrupt = GM_TRY(connector.connect(eventfd));
    interrupt_ = std::move(interrupt);
    eventfd_ = eventfd;
    live_.reset();
    return want(wanted_);
}

void MessageVector::take_back() {
    interrupt_.reset();
    eventfd_ = {};
    live_.reset();
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
    const auto is_kicked = poll_readable(eventfd_, 0);
    return is_kicked && *is_kicked;
}

}  // namespace guestmem::pci

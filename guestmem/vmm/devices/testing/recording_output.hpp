// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/io_apic.hpp"

/// The machine behind an I/O APIC, without a machine: remembers routes, and what each kick became.
///
/// Contract: a route that changes nothing, or a kick of a pin without a route, ends the test: the chip promises
/// neither.
/// Threads: called with the chip's mutex held; read when nobody uses the chip.

namespace guestmem::vmm::testing {

class RecordingOutput final : public IoApicOutput {
public:
    std::array<std::optional<MsiMessage>, IoApic::pin_count> routes;
    std::vector<MsiMessage> delivered;
    std::uint64_t route_count = 0;
    bool is_refusing = false;  ///< no route changes

    bool route(std::uint32_t pin, std::optional<MsiMessage> message) override {
        GM_CHECK(routes.at(pin) != message);
        if (is_refusing) return false;
        routes.at(pin) = message;
        ++route_count;
        return true;
    }
    void fire(std::uint32_t pin) override {
        GM_CHECK(routes.at(pin).has_value());
        // What a guest did not take for long is not worth keeping.
        if (delivered.size() < 10'000) delivered.push_back(*routes.at(pin));
    }
};

}  // namespace guestmem::vmm::testing

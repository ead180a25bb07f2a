// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <utility>

#include "guestmem/base/error.hpp"

/// Where a PCI device says what the guest made go wrong.
///
/// Contract: a guest can repeat whatever it does as often as it likes, so a thing is said once in its life: the first
/// time. The callback may be empty.
/// Threads: any; the callback is called in the guest's processor threads with locks of the device held, and must not
/// call back into it.

namespace guestmem::pci {

using Report = std::function<void(const Error&)>;

class ReportOnce {
public:
    ReportOnce() = default;
    explicit ReportOnce(Report report) : report_(std::move(report)) {}
    void say(const Error& error) {
        if (!is_said_.exchange(true) && report_) report_(error);
    }

private:
    Report report_;
    std::atomic<bool> is_said_{false};
};

}  // namespace guestmem::pci

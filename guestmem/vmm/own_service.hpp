// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"

/// The share service of one machine: for regions where no service of the host is there.
///
/// Concepts: the same service as `guestmem share serve`, in a thread of the machine, with a control socket that
/// only this user opens. Host programs find it there; other machines are told its path if they are to share.
/// Contract: create() listens; the regions end with the machine.
/// Threads: any.

namespace guestmem::vmm {

class OwnService {
public:
    /// `log` is called from the service's thread and outlives it; `begin` is what that thread does first. All shares
    /// together have at most `max_bytes`.
    [[nodiscard]] static Result<std::unique_ptr<OwnService>> create(
        const std::string& control, Log& log, std::uint64_t max_bytes = share::max_size_bytes,
        std::function<Result<void>()> begin = {});
    OwnService(const OwnService&) = delete;
    OwnService& operator=(const OwnService&) = delete;
    ~OwnService();

    [[nodiscard]] const std::string& control() const { return control_; }

private:
    OwnService(std::string control, EventLoop loop, EventFd ending)
        : control_(std::move(control)), loop_(std::move(loop)), ending_(std::move(ending)) {}

    std::string control_;
    EventLoop loop_;
    EventFd ending_;
    EventSource ending_source_;
    std::unique_ptr<share::Service> service_;
    std::thread thread_;
};

}  // namespace guestmem::vmm

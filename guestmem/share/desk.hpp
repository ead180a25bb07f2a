// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <list>
#include <span>

#include "guestmem/control/server.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/hall.hpp"

/// The share service's answers to control calls.
///
/// Contract: whoever may open the control socket may list and stat. Memory, attaching and ringing are for
/// operators: root, the service's own user, and those that the configuration names. An unknown share is told to
/// operators and others alike, since list shows the names anyway.
/// Threads: the owner's loop.

namespace guestmem::share {

class Desk {
public:
    /// Brings a host tool into a hall, within the bounds that hold for every connection.
    using AdmitTool = std::function<Result<std::uint32_t>(Hall& hall, Entrant entrant)>;

    Desk(const ServiceConfig& config, std::list<Hall>& halls, AdmitTool admit_tool)
        : config_(config), halls_(halls), admit_tool_(std::move(admit_tool)) {}

    [[nodiscard]] Result<control::Outcome> answer(const PeerCredentials& caller,
                                                  const control::Request& request);

private:
    [[nodiscard]] bool is_operator(const PeerCredentials& caller) const;
    [[nodiscard]] Result<Hall*> find_hall(const std::string& name);
    [[nodiscard]] Result<control::Outcome> list() const;
    [[nodiscard]] Result<control::Outcome> stat(Hall& hall) const;
    [[nodiscard]] Result<control::Outcome> memory(Hall& hall) const;
    [[nodiscard]] Result<control::Outcome> attach(const PeerCredentials& caller, Hall& hall);
    [[nodiscard]] Result<control::Outcome> ring(const control::Request& request);

    const ServiceConfig& config_;
    std::list<Hall>& halls_;
    AdmitTool admit_tool_;
};

}  // namespace guestmem::share

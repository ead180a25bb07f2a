// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/control/server.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/legacy.hpp"
#include "guestmem/share/policy.hpp"
#include "guestmem/share/registry.hpp"

/// The answers to control calls: what the host's tools and the VMs' programs ask of the service.
///
/// Concepts: who asks is a Principal. The host may do everything. A VM attaches to what its rules allow, makes what
/// they allow within its limits, and sees nothing else. Whoever else may open the common socket may list and stat.
/// Contract: a refusal tells the caller no more than it may know: the same text whether a share exists or not; the log
/// has the rule, with its place. Whatever a call makes is gone again when the call fails.
/// Lifetime: what DeskHost names outlives it.
/// Threads: the owner's loop.

namespace guestmem::share {

struct DeskHost {
    const ServiceConfig& config;
    const Policy& policy;
    Registry& registry;
    Legacy& legacy;
    /// Brings a host tool into a hall, within the bounds that hold for every connection.
    std::function<Result<std::uint32_t>(Hall& hall, Entrant entrant)> admit;
    /// The same for who holds the hall's share and gets no place in it.
    std::function<Result<void>(Hall& hall, Entrant entrant)> hold;
    std::function<Result<std::vector<std::string>>()> reload;
    std::function<Result<void>()> retire;
    std::function<void(LogLevel level, std::string_view text)> say;
};

class Desk {
public:
    explicit Desk(DeskHost host) : host_(std::move(host)) {}

    [[nodiscard]] Result<control::Outcome> answer(const Principal& who, const PeerCredentials& caller,
                                                  const control::Request& request);

private:
    [[nodiscard]] bool may_see(const Principal& who, std::string_view share) const;
    [[nodiscard]] Result<Hall*> find_hall(const Principal& who, const std::string& name);
    [[nodiscard]] Result<control::Outcome> list(const Principal& who) const;
    [[nodiscard]] Result<control::Outcome> stat(Hall& hall) const;
    [[nodiscard]] Result<control::Outcome> memory(const NamedCall& call, Hall& hall) const;
    [[nodiscard]] Result<control::Outcome> attach(const Principal& who, const PeerCredentials& caller,
                                                  const AttachCall& call);
    [[nodiscard]] Result<control::Outcome> hold(const Principal& who, const PeerCredentials& caller,
                                                const HoldCall& call);
    [[nodiscard]] Result<Permissions> check(const Principal& who, const PeerCredentials& caller,
                                            const std::string& share, Wanted wanted);
    [[nodiscard]] Result<Hall*> make_share(const Principal& who, const PeerCredentials& caller,
                                           const AttachCall& call);
    void choose_slot(const Principal& who, const AttachCall& call, const Hall& hall, Entrant& entrant) const;
    [[nodiscard]] Result<control::Outcome> ring(const Principal& who, const RingCall& call);

    DeskHost host_;
};

}  // namespace guestmem::share

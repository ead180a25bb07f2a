// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// Who a connection is, and what it may do: the configuration's VMs with their rights.
///
/// Concepts: a principal is the host (root, the service's user, its operators), a named VM, or nobody known. It comes
/// from the socket and from what the kernel says of the other end; nothing in a message says it.
/// Contract: check() answers for attaching and creating. Its error is for the caller and says no more than the caller
/// may know: the same whether a share of that name exists or not. `why` is for the log and names the rule.
/// Lifetime: does not need the configuration it was made of.
/// Threads: one at a time.

namespace guestmem::share {

struct Principal {
    std::string vm;  ///< empty: the host, or nobody known
    bool is_host = false;
    [[nodiscard]] bool is_known() const { return is_host || !vm.empty(); }
    [[nodiscard]] std::string to_text() const;
};

enum class Wanted : std::uint8_t { attach, create };

class Policy {
public:
    explicit Policy(const ServiceConfig& config);

    /// On the common control socket. A control group that could not be told fits no pattern.
    [[nodiscard]] Principal of_caller(const PeerCredentials& caller) const;
    /// On a VM's own socket: nobody known where its `who` does not fit.
    [[nodiscard]] Principal of_vm(const std::string& name, const PeerCredentials& caller) const;
    /// Who somebody is from here on that was let in as this VM (empty: as the host) by a control socket; nobody known
    /// where it is not that VM any more. A control group that is not known any more is passed over: it was asked for
    /// when it came.
    [[nodiscard]] Principal of_guest(const std::string& vm, const PeerCredentials& who) const;
    /// Whether any VM is known by its control group, so that it has to be asked for.
    [[nodiscard]] bool needs_cgroups() const { return needs_cgroups_; }

    /// What the rules say, whatever is wanted.
    [[nodiscard]] Decision decide(const Principal& who, std::string_view share) const;
    /// A grant, or the refusal; `why` is set in both cases.
    [[nodiscard]] Result<Permissions> check(const Principal& who, std::string_view share, Wanted wanted,
                                            std::string& why) const;
    [[nodiscard]] const UsageLimits* limits_of(std::string_view vm) const;

private:
    struct Known {
        VmConfig config;
        Rights rights;
    };
    [[nodiscard]] const Known* find(std::string_view vm) const;
    [[nodiscard]] std::string describe(const Known& known, const Decision& decision) const;

    std::vector<Known> vms_;
    std::vector<std::uint32_t> operators_;
    std::string file_;
    bool needs_cgroups_ = false;
};

}  // namespace guestmem::share

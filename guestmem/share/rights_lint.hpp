// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"

/// Reads the rights of a configuration as a whole: what in them cannot be meant, and what one VM meets at one share.
///
/// Concepts: a finding is correct configuration that does less, or more, than its lines seem to say. A VM's ways are
/// its doors and, when it has a socket or `who`, the control protocol; only those with the latter reach what has no
/// door. root, the service's own user and the operators are the host and reach everything: that is no finding, a VM
/// that runs as one of them is.
/// Contract: `service_user` is whom the service runs as. Findings come in the order of their lines.
/// Limits: a rule is compared with at most max_cover_attempts earlier ones that fit its sample names.
/// Threads: any.
/// Cost: 16384 rules of one VM in about a second.
/// Known holes: a rule that only several earlier ones together leave nothing to is not found.

namespace guestmem::share {

inline constexpr std::size_t max_cover_attempts = 64;

enum class LintKind : std::uint8_t {
    dead_rule,           ///< it never decides
    reaches_everything,  ///< a VM that may reach every name, or every name but a few
    is_host,             ///< a VM whose user is the host's: no rule holds for it
    unreachable_share,   ///< of the file, by no VM
    useless_door,        ///< of a VM whose rules deny the share, or give it read-only
    open_read_only,      ///< read-only rights that the VM's user can get around
};
[[nodiscard]] std::string_view to_string(LintKind kind);

struct LintFinding {
    LintKind kind = LintKind::dead_rule;
    std::uint32_t line = 0;
    std::string what;
    std::string why;
    std::string advice;
};

[[nodiscard]] std::vector<LintFinding> lint_rights(const ServiceConfig& config, std::uint32_t service_user);

/// What stands against read-only rights of a VM. They rest on the memory's mode, 0600, and its owner, the service.
struct ReadOnlyDoubts {
    std::vector<std::string> broken;   ///< it does not hold: why
    std::vector<std::string> unknown;  ///< the configuration does not tell who it is
};
[[nodiscard]] ReadOnlyDoubts doubt_read_only(const ServiceConfig& config, const VmConfig& vm,
                                             std::uint32_t service_user);

struct AccessQuestion {
    std::string vm;
    std::string share;
    bool is_create = false;
    std::uint32_t service_user = 0;
};

struct AccessAnswer {
    bool is_allowed = false;
    Decision decision = {};
    std::string rule = {};              ///< as Rights::describe()
    std::optional<std::uint32_t> line;  ///< of the rule
    bool is_in_file = false;            ///< the share
    bool has_control = false;           ///< the VM can ask for it by the control protocol
    std::vector<DoorConfig> doors;      ///< of the VM, to this share
    std::vector<std::string> refusals;  ///< why not
    std::vector<std::string> remarks;   ///< what else to know
};

/// Error (not_found) when the file has no such VM, (invalid_argument) when no share can have this name.
[[nodiscard]] Result<AccessAnswer> explain_access(const ServiceConfig& config,
                                                  const AccessQuestion& question);

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/policy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

bool fits_user(const CredentialMatch& match, const PeerCredentials& caller) {
    if (match.user && *match.user != caller.uid) return false;
    return !match.group || *match.group == caller.gid;
}

bool fits(const CredentialMatch& match, const PeerCredentials& caller) {
    if (!fits_user(match, caller)) return false;
    return match.cgroup.empty() || (caller.cgroup && matches(match.cgroup, *caller.cgroup));
}

}  // namespace

std::string Principal::to_text() const {
    if (is_host) return "the host";
    return vm.empty() ? "a client that no VM's 'who' fits" : fmt::format("vm '{}'", vm);
}

Policy::Policy(const ServiceConfig& config) : operators_(config.control.operators), file_(config.file) {
    for (const VmConfig& vm : config.vms) {
        vms_.push_back({vm, Rights{vm.rules}});
        needs_cgroups_ = needs_cgroups_ || !vm.match.cgroup.empty();
    }
}

const Policy::Known* Policy::find(std::string_view vm) const {
    const auto found =
        std::ranges::find_if(vms_, [&](const Known& known) { return known.config.name == vm; });
    return found == vms_.end() ? nullptr : &*found;
}

Principal Policy::of_caller(const PeerCredentials& caller) const {
    const bool is_host =
        caller.uid == 0 || caller.uid == own_user() || std::ranges::count(operators_, caller.uid) != 0;
    if (is_host) return {{}, true};
    for (const Known& known : vms_) {
        const bool is_met_here = !known.config.socket && !known.config.match.is_empty();
        if (is_met_here && fits(known.config.match, caller)) return {known.config.name, false};
    }
    return {};
}

Principal Policy::of_vm(const std::string& name, const PeerCredentials& caller) const {
    const Known* const known = find(name);
    if (known == nullptr || !fits(known->config.match, caller)) return {};
    return {name, false};
}

Principal Policy::of_guest(const std::string& vm, const PeerCredentials& who) const {
    if (vm.empty()) return of_caller(who);
    const Known* const known = find(vm);
    const bool is_it_still =
        known != nullptr && (known->config.socket || !known->config.match.is_empty()) &&
        (who.cgroup ? fits(known->config.match, who) : fits_user(known->config.match, who));
    return is_it_still ? Principal{vm, false} : Principal{};
}

Decision Policy::decide(const Principal& who, std::string_view share) const {
    static constexpr Permissions nothing{
        .may_attach = false, .may_create = false, .may_notify = false, .is_read_only = false};
    if (who.is_host) return {};
    const Known* const known = find(who.vm);
    if (known == nullptr) return {.is_allowed = false, .permissions = nothing, .rule = {}};
    return known->rights.decide(share);
}

/// The implicit end has no line of its own: that of its VM.
std::string Policy::describe(const Known& known, const Decision& decision) const {
    std::string text = known.rights.describe(decision, file_);
    if (!decision.rule && known.config.line != 0)
        text += fmt::format(" of vm '{}' ({}:{})", known.config.name, file_, known.config.line);
    return text;
}

Result<Permissions> Policy::check(const Principal& who, std::string_view share, Wanted wanted,
                                  std::string& why) const {
    const Decision decision = decide(who, share);
    const Known* const known = find(who.vm);
    why = who.is_host        ? "the host may do everything"
          : known == nullptr ? "the configuration has no VM that this is"
                             : describe(*known, decision);
    const Permissions& granted = decision.permissions;
    const bool is_granted =
        decision.is_allowed && (wanted == Wanted::attach ? granted.may_attach : granted.may_create);
    if (is_granted) return granted;
    return Error{Errc::permission_denied, EACCES,
                 fmt::format("{} may not {} share '{}'", who.to_text(),
                             wanted == Wanted::attach ? "attach to" : "create", share)};
}

const UsageLimits* Policy::limits_of(std::string_view vm) const {
    const Known* const known = vm.empty() ? nullptr : find(vm);
    return known == nullptr ? nullptr : &known->config.limits;
}

}  // namespace guestmem::share

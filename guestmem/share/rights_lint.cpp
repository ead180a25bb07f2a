// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/rights_lint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/share/wildcard.hpp"

namespace guestmem::share {
namespace {

constexpr std::string_view doorbell_needs_writing =
    "QEMU's ivshmem-doorbell maps the memory writable, and fails with \"unable to map backing store for guest RAM\"";

std::string place_of(const ServiceConfig& config, std::uint32_t line) {
    return config.file.empty() || line == 0 ? fmt::format("line {}", line)
                                            : fmt::format("{}:{}", config.file, line);
}

bool speaks_control(const VmConfig& vm) { return vm.socket || !vm.match.is_empty(); }

bool may_attach(const Rights& rights, std::string_view share) {
    const Decision decision = rights.decide(share);
    return decision.is_allowed && decision.permissions.may_attach;
}

/// What the host's users are called; nothing for all others.
std::optional<std::string> host_user(const ServiceConfig& config, std::uint32_t user,
                                     std::uint32_t service_user) {
    if (user == 0) return "root";
    if (user == service_user) return "the service's own user";
    if (std::ranges::find(config.control.operators, user) != config.control.operators.end())
        return "an operator";
    return std::nullopt;
}

class Linter {
public:
    Linter(const ServiceConfig& config, std::uint32_t service_user)
        : config_(config), service_user_(service_user) {}

    std::vector<LintFinding> find() {
        for (const VmConfig& vm : config_.vms) {
            vms_.push_back({&vm, Rights{vm.rules}});
            find_dead_rules(vms_.back());
            find_reach(vms_.back());
            find_host(vm);
            find_useless_doors(vms_.back());
            find_open_read_only(vm);
        }
        for (const ShareConfig& share : config_.shares) find_unreachable(share);
        // In the order of the lines; those of one line as they were found.
        std::multimap<std::uint32_t, LintFinding> by_line;
        for (LintFinding& finding : found_) by_line.emplace(finding.line, std::move(finding));
        std::vector<LintFinding> sorted;
        sorted.reserve(by_line.size());
        for (auto& [line, finding] : by_line) sorted.push_back(std::move(finding));
        return sorted;
    }

private:
    struct Vm {
        const VmConfig* config;
        Rights rights;
    };

    std::string describe(const Vm& vm, std::size_t rule) const {
        return vm.rights.describe({.is_allowed = true, .permissions = {}, .rule = rule}, config_.file);
    }

    void find_dead_rules(const Vm& vm) {
        const std::vector<Rule>& rules = vm.rights.rules();
        std::vector<std::optional<Wildcard>> wildcards;
        for (std::size_t i = 0; i < rules.size(); ++i) {
            auto wildcard = Wildcard::parse(rules[i].pattern);
            wildcards.push_back(wildcard ? std::optional{*std::move(wildcard)} : std::nullopt);
            const auto complain = [&](std::string why, std::string advice) {
                found_.push_back(
                    {.kind = LintKind::dead_rule,
                     .line = rules[i].line,
                     .what = fmt::format("vm '{}': {} can never match", vm.config->name, describe(vm, i)),
                     .why = std::move(why),
                     .advice = std::move(advice)});
            };
            if (auto problem = find_pattern_problem(rules[i].pattern)) {
                complain(*std::move(problem), "mend the pattern, or take the rule out");
            } else if (!wildcards[i]->can_match_name()) {
                complain(fmt::format(
                             "a name is 1 to {} bytes of printable ASCII without '/', and no such name fits",
                             max_name_bytes),
                         "mend the pattern, or take the rule out");
            } else if (const auto covering = find_covering(vm.rights, wildcards, i)) {
                complain(
                    fmt::format("{} comes first and fits every name that this fits", describe(vm, *covering)),
                    rules[*covering].verdict == rules[i].verdict &&
                            rules[*covering].permissions == rules[i].permissions
                        ? "take it out: the earlier rule says the same"
                        : "put it before the other, or take it out");
            }
        }
    }

    static std::optional<std::size_t> find_covering(const Rights& rights,
                                                    const std::vector<std::optional<Wildcard>>& wildcards,
                                                    std::size_t rule) {
        const std::vector<std::string> samples = wildcards[rule]->sample_names();
        if (samples.empty()) return std::nullopt;
        std::size_t count_attempts = 0;
        for (const std::size_t earlier : rights.rules_that_match(samples.front())) {
            if (earlier >= rule || count_attempts == max_cover_attempts) return std::nullopt;
            const Wildcard& outer = *wildcards[earlier];
            if (!std::ranges::all_of(samples, [&](const std::string& name) { return outer.matches(name); }))
                continue;
            ++count_attempts;
            if (outer.covers(*wildcards[rule])) return earlier;
        }
        return std::nullopt;
    }

    void find_reach(const Vm& vm) {
        if (!speaks_control(*vm.config)) return;
        const std::vector<Rule>& rules = vm.rights.rules();
        const auto complain = [&](std::uint32_t line, bool is_all, std::string why, std::string advice) {
            found_.push_back({.kind = LintKind::reaches_everything,
                              .line = line,
                              .what = fmt::format("vm '{}' may reach every share{}", vm.config->name,
                                                  is_all ? "" : " but those denied"),
                              .why = std::move(why),
                              .advice = std::move(advice)});
        };
        if (rules.empty())
            return complain(vm.config->line, true, "it has no rules, which allows everything",
                            "write rules = [{ allow = \"mail*\" }] with the names that it needs");
        for (std::size_t i = 0; i < rules.size(); ++i) {
            if (!covers(rules[i].pattern, "*")) continue;
            if (rules[i].verdict == Verdict::allow)
                complain(rules[i].line, i == 0,
                         i == 0 ? fmt::format("{} comes first", describe(vm, i))
                                : fmt::format("{} takes what the rules before it leave", describe(vm, i)),
                         "allow the names that it needs; the list then ends in deny by itself");
            return;
        }
        const bool has_allow =
            std::ranges::any_of(rules, [](const Rule& rule) { return rule.verdict == Verdict::allow; });
        if (!has_allow)
            complain(vm.config->line, false, "its rules only deny: such a list ends in 'allow *'",
                     "allow the names that it needs instead; the list then ends in deny by itself");
    }

    void find_host(const VmConfig& vm) {
        if (!vm.match.user) return;
        const auto who = host_user(config_, *vm.match.user, service_user_);
        if (!who) return;
        found_.push_back({.kind = LintKind::is_host,
                          .line = vm.line,
                          .what = fmt::format("no rule holds for vm '{}'", vm.name),
                          .why = fmt::format("its user {} is {}, who has every right on the control socket",
                                             *vm.match.user, *who),
                          .advice = "run the VM as a user of its own"});
    }

    void find_useless_doors(const Vm& vm) {
        for (const DoorConfig& door : config_.doors) {
            if (door.vm != vm.config->name) continue;
            const Decision decision = vm.rights.decide(door.share);
            const std::string rule = vm.rights.describe(decision, config_.file);
            LintFinding finding{
                .kind = LintKind::useless_door, .line = door.line, .what = {}, .why = {}, .advice = {}};
            if (!may_attach(vm.rights, door.share)) {
                finding.what = fmt::format("the door of vm '{}' to share '{}' refuses everybody",
                                           vm.config->name, door.share);
                finding.why = fmt::format(
                    "{} {}", rule, decision.is_allowed ? "does not let it attach" : "denies the share");
                finding.advice = fmt::format("allow '{}' to the VM, or take the door out", door.share);
            } else if (decision.permissions.is_read_only) {
                finding.what = fmt::format("QEMU cannot use the door of vm '{}' to share '{}'",
                                           vm.config->name, door.share);
                finding.why = fmt::format("{} gives it read-only; {}", rule, doorbell_needs_writing);
                finding.advice =
                    "leave it to programs that speak ivshmem and map it read-only, or take read_only out";
            } else {
                continue;
            }
            found_.push_back(std::move(finding));
        }
    }

    void find_open_read_only(const VmConfig& vm) {
        const auto rule = std::ranges::find_if(vm.rules, [](const Rule& one) {
            return one.verdict == Verdict::allow && one.permissions.is_read_only;
        });
        if (rule == vm.rules.end()) return;
        const ReadOnlyDoubts doubts = doubt_read_only(config_, vm, service_user_);
        if (doubts.broken.empty()) return;
        found_.push_back({.kind = LintKind::open_read_only,
                          .line = rule->line,
                          .what = fmt::format("read-only does not hold for vm '{}'", vm.name),
                          .why = fmt::format("{}", fmt::join(doubts.broken, "; ")),
                          .advice = "run the VM as a user of its own, without CAP_DAC_OVERRIDE"});
    }

    void find_unreachable(const ShareConfig& share) {
        const auto is_open_door = [&](const DoorConfig& door) {
            return door.share == share.name && door.vm.empty();
        };
        if (std::ranges::any_of(config_.doors, is_open_door)) return;
        for (const Vm& vm : vms_) {
            const auto is_its_door = [&](const DoorConfig& door) {
                return door.share == share.name && door.vm == vm.config->name;
            };
            const bool has_way =
                speaks_control(*vm.config) || std::ranges::any_of(config_.doors, is_its_door);
            if (has_way && may_attach(vm.rights, share.name)) return;
        }
        found_.push_back(
            {.kind = LintKind::unreachable_share,
             .line = share.line,
             .what = fmt::format("no VM can reach share '{}'", share.name),
             .why = "it has no socket, no [[vm.attach]] leads there that the VM's rules allow, and no VM "
                    "that speaks the control protocol may attach",
             .advice = "write [[vm.attach]] or allow its name, or take the share out"});
    }

    const ServiceConfig& config_;
    std::uint32_t service_user_;
    std::vector<Vm> vms_;
    std::vector<LintFinding> found_;
};

/// Who may open a socket, by its owner, group and mode.
void doubt_socket(const ListenOptions& socket, std::uint32_t service_user, std::set<std::uint32_t>& users,
                  ReadOnlyDoubts& doubts) {
    constexpr std::uint32_t owner_writes = 0200;
    constexpr std::uint32_t group_writes = 0020;
    constexpr std::uint32_t others_write = 0002;
    if ((socket.mode & owner_writes) != 0) users.insert(socket.owner.value_or(service_user));
    if ((socket.mode & others_write) != 0) {
        doubts.unknown.push_back(fmt::format("everybody may open {}", socket.path));
    } else if ((socket.mode & group_writes) != 0) {
        doubts.unknown.push_back(fmt::format("a whole group may open {}", socket.path));
    }
}

void explain_ways(const ServiceConfig& config, const VmConfig& vm, const AccessQuestion& question,
                  AccessAnswer& answer) {
    answer.has_control = speaks_control(vm);
    answer.is_in_file =
        std::ranges::find(config.shares, question.share, &ShareConfig::name) != config.shares.end();
    for (const DoorConfig& door : config.doors) {
        if (door.share != question.share) continue;
        if (door.vm == vm.name) answer.doors.push_back(door);
        if (door.vm.empty())
            answer.remarks.push_back(
                fmt::format("whoever may open {} attaches and notifies, whatever the rules of VMs say ({})",
                            door.socket.path, place_of(config, door.line)));
    }
    if (question.is_create && !answer.has_control)
        answer.refusals.push_back("a door does not create: the VM has no socket and no 'who' to ask by");
    if (!answer.has_control && answer.doors.empty())
        answer.refusals.push_back(fmt::format(
            "vm '{}' has no door to share '{}', and no socket or 'who' to ask by", vm.name, question.share));
    if (answer.is_in_file && question.is_create)
        answer.remarks.push_back("the file has this share: there is nothing to create");
    if (!answer.is_in_file && !question.is_create)
        answer.remarks.push_back("the file has no such share: somebody has to create it first");
}

}  // namespace

std::string_view to_string(LintKind kind) {
    switch (kind) {
        case LintKind::dead_rule: return "dead_rule";
        case LintKind::reaches_everything: return "reaches_everything";
        case LintKind::is_host: return "is_host";
        case LintKind::unreachable_share: return "unreachable_share";
        case LintKind::useless_door: return "useless_door";
        case LintKind::open_read_only: return "open_read_only";
    }
    return "unknown";
}

std::vector<LintFinding> lint_rights(const ServiceConfig& config, std::uint32_t service_user) {
    return Linter{config, service_user}.find();
}

ReadOnlyDoubts doubt_read_only(const ServiceConfig& config, const VmConfig& vm, std::uint32_t service_user) {
    ReadOnlyDoubts doubts;
    std::set<std::uint32_t> users;
    if (vm.match.user) {
        users.insert(*vm.match.user);
    } else {
        if (vm.socket) doubt_socket(*vm.socket, service_user, users, doubts);
        for (const DoorConfig& door : config.doors)
            if (door.vm == vm.name) doubt_socket(door.socket, service_user, users, doubts);
        if (!vm.match.is_empty() && !vm.socket) doubts.unknown.emplace_back("'who' names no user");
    }
    for (const std::uint32_t user : users) {
        if (user == 0)
            doubts.broken.emplace_back(
                "it runs as root, who opens the memory again for writing, whatever its mode");
        else if (user == service_user)
            doubts.broken.push_back(fmt::format(
                "it runs as user {}, as the service does: whoever owns the memory opens it again for writing",
                user));
    }
    return doubts;
}

Result<AccessAnswer> explain_access(const ServiceConfig& config, const AccessQuestion& question) {
    const auto vm = std::ranges::find(config.vms, question.vm, &VmConfig::name);
    if (vm == config.vms.end()) {
        std::vector<std::string_view> names;
        for (const VmConfig& one : config.vms) names.push_back(one.name);
        const std::string_view meant = closest_word(question.vm, names);
        return Error{Errc::not_found,
                     fmt::format("no vm '{}' in {}; {}", question.vm, config.file,
                                 names.empty()   ? std::string{"it has none"}
                                 : meant.empty() ? fmt::format("VMs there: {}", fmt::join(names, ", "))
                                                 : fmt::format("did you mean '{}'?", meant))};
    }
    if (const auto problem = find_name_problem(question.share))
        return Error{Errc::invalid_argument,
                     fmt::format("share '{}': {}; {}", question.share, problem->what, problem->advice)};
    const Rights rights{vm->rules};
    AccessAnswer answer;
    answer.decision = rights.decide(question.share);
    answer.rule = rights.describe(answer.decision, config.file);
    if (answer.decision.rule) answer.line = vm->rules[*answer.decision.rule].line;
    explain_ways(config, *vm, question, answer);

    const Permissions& permissions = answer.decision.permissions;
    if (!answer.decision.is_allowed) {
        answer.refusals.insert(answer.refusals.begin(), answer.rule);
    } else {
        if (!permissions.may_attach)
            answer.refusals.push_back(fmt::format("{} does not let it attach", answer.rule));
        if (question.is_create && !permissions.may_create)
            answer.refusals.push_back(fmt::format("{} does not let it create", answer.rule));
    }
    if (permissions.is_read_only) {
        const ReadOnlyDoubts doubts = doubt_read_only(config, *vm, question.service_user);
        for (const std::string& reason : doubts.broken)
            answer.remarks.push_back("read-only does not hold: " + reason);
        for (const std::string& reason : doubts.unknown)
            answer.remarks.push_back("whether read-only holds is not known: " + reason +
                                     "; it does not for root and the service's own user");
        answer.remarks.push_back(
            fmt::format("{}: only programs that map it read-only can use it", doorbell_needs_writing));
    }
    if (vm->match.user)
        if (const auto who = host_user(config, *vm->match.user, question.service_user))
            answer.remarks.push_back(
                fmt::format("user {} is {}: the control socket gives it every right", *vm->match.user, *who));
    answer.is_allowed = answer.refusals.empty();
    return answer;
}

}  // namespace guestmem::share

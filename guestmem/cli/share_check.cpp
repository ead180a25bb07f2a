// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/share/config_file.hpp"
#include "guestmem/share/rights_lint.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

using share::AccessAnswer;
using share::LintFinding;
using share::ServiceConfig;

/// Whom the service runs as: whom the file names, else who asks.
Result<std::uint32_t> service_user(const ServiceConfig& config) {
    if (config.user.empty()) return own_user();
    return user_id(config.user);
}

std::string dump(const nlohmann::json& json) {
    // A path may have bytes that are no UTF-8.
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

int lint(const ServiceConfig& config, std::uint32_t user, bool is_json) {
    const std::vector<LintFinding> findings = share::lint_rights(config, user);
    if (is_json) {
        nlohmann::json list = nlohmann::json::array();
        for (const LintFinding& finding : findings)
            list.push_back({{"kind", to_string(finding.kind)},
                            {"file", config.file},
                            {"line", finding.line},
                            {"what", finding.what},
                            {"why", finding.why},
                            {"advice", finding.advice}});
        print(dump({{"findings", std::move(list)}}));
    } else {
        for (const LintFinding& finding : findings)
            print(fmt::format("{}:{}: {}\n  {}\n  = {}\n", to_printable(config.file), finding.line,
                              to_printable(finding.what), to_printable(finding.why), finding.advice));
        if (findings.empty()) print(to_printable(config.file) + ": nothing to say about its rights\n");
    }
    return findings.empty() ? exit_ok : exit_failed;
}

std::string_view yes_or_no(bool is_yes) { return is_yes ? "yes" : "no"; }

std::string slots_of(const share::DoorConfig& door) {
    if (door.slots.empty()) return "the lowest free slot";
    return fmt::format("slot {}", fmt::join(door.slots, ", "));
}

std::string text_of(const AccessAnswer& answer, const CheckOptions& options, const std::string& file) {
    const share::Permissions& may = answer.decision.permissions;
    std::string text =
        fmt::format("vm '{}' {} {} share '{}'\n", options.vm, answer.is_allowed ? "may" : "may not",
                    options.is_create ? "create" : "attach to", options.share);
    const auto row = [&](std::string_view name, std::string_view value) {
        text += fmt::format("  {:<9} {}\n", name, to_printable(value));
    };
    for (const std::string& refusal : answer.refusals) row("refused", refusal);
    row("rule", answer.rule);
    row("attach", yes_or_no(may.may_attach));
    row("create", yes_or_no(may.may_create));
    row("notify", yes_or_no(may.may_notify));
    row("access", !answer.decision.is_allowed ? "none" : may.is_read_only ? "read only" : "read and write");
    for (const share::DoorConfig& door : answer.doors)
        row("door", fmt::format("{}, {} ({}:{})", door.socket.path, slots_of(door), file, door.line));
    if (answer.has_control) row("control", "the VM's programs can ask for it");
    for (const std::string& remark : answer.remarks) row("note", remark);
    return text;
}

nlohmann::json json_of(const AccessAnswer& answer, const CheckOptions& options, const std::string& file) {
    const share::Permissions& may = answer.decision.permissions;
    nlohmann::json doors = nlohmann::json::array();
    for (const share::DoorConfig& door : answer.doors)
        doors.push_back({{"socket", door.socket.path}, {"slots", door.slots}, {"line", door.line}});
    nlohmann::json json{{"vm", options.vm},
                        {"share", options.share},
                        {"create", options.is_create},
                        {"is_allowed", answer.is_allowed},
                        {"rule", answer.rule},
                        {"file", file},
                        {"line", nullptr},
                        {"may_attach", may.may_attach},
                        {"may_create", may.may_create},
                        {"may_notify", may.may_notify},
                        {"is_read_only", may.is_read_only},
                        {"is_in_file", answer.is_in_file},
                        {"has_control", answer.has_control},
                        {"doors", std::move(doors)},
                        {"refusals", answer.refusals},
                        {"remarks", answer.remarks}};
    if (answer.line) json["line"] = *answer.line;
    return json;
}

int explain(const ServiceConfig& config, std::uint32_t user, const CheckOptions& options) {
    const auto answer = share::explain_access(
        config,
        {.vm = options.vm, .share = options.share, .is_create = options.is_create, .service_user = user});
    if (!answer) {
        report(answer.error());
        return exit_usage;
    }
    print(options.json ? dump(json_of(*answer, options, config.file))
                       : text_of(*answer, options, config.file));
    return answer->is_allowed ? exit_ok : exit_failed;
}

}  // namespace

int share_check(const CheckOptions& options) {
    const auto config = share::read_config_file(options.config);
    if (!config) {
        // What is wrong in a file begins with its name; everything else with the program's.
        const bool has_place = config.error().code() == Errc::invalid_argument;
        fmt::print(stderr, "{}{}\n", has_place ? "" : "guestmem: ", config.error().message());
        return exit_usage;
    }
    const auto user = service_user(*config);
    if (!user) {
        report(user.error());
        return exit_usage;
    }
    const bool is_lint = options.vm.empty() && options.share.empty();
    return is_lint ? lint(*config, *user, options.json) : explain(*config, *user, options);
}

}  // namespace guestmem::cli

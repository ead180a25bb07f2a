// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config_vm.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

using Word = std::string_view;

std::uint32_t line_of(TextPosition position) { return static_cast<std::uint32_t>(position.line); }

class VmReader {
public:
    VmReader(const TomlNode& node, ServiceConfig& config, ConfigPlaces& places, Diagnostics& diagnostics)
        : table_(node, "[[vm]]", known, diagnostics),
          config_(config),
          places_(places),
          diagnostics_(diagnostics) {}

    void read() {
        vm_.line = line_of(table_.start());
        vm_.name = table_.required_text("name", "\"linux\"");
        if (table_.has("name")) {
            if (const auto problem = find_name_problem(vm_.name))
                table_.complain("name", problem->what, problem->advice);
            places_.note(ConfigPlaces::Kind::vm, vm_.name, table_.where("name"));
        }
        if (!table_.has("attach") && !table_.has("socket") && !table_.has("who"))
            diagnostics_.add(
                table_.start(), fmt::format("VM '{}' attaches to nothing", vm_.name),
                "write [[vm.attach]] with share, slot and socket, or give the VM a socket or who");
        read_own_socket();
        table_.for_each_table("who", 1, one, [&](const TomlNode& node) { read_who(node); });
        table_.for_each_table("rules", max_rules, "let one wildcard stand for some of them",
                              [&](const TomlNode& node) { read_rule(node); });
        table_.for_each_table("limits", 1, one, [&](const TomlNode& node) { read_limits(node); });
        table_.for_each_table("attach", max_shares, "use a second service",
                              [&](const TomlNode& node) { read_attach(node); });
        config_.vms.push_back(std::move(vm_));
    }

private:
    static constexpr std::array<Word, 9> known{"name", "socket", "owner",  "group", "mode",
                                               "who",  "rules",  "limits", "attach"};
    static constexpr Word one = "a VM has one";

    void read_own_socket() {
        if (table_.has("socket")) {
            vm_.socket = read_socket(table_, {}, {}, places_);
            return;
        }
        for (const Word key : {"owner", "group", "mode"})
            if (table_.has(key))
                table_.complain(
                    key, fmt::format("'{}' without 'socket'", key),
                    "write socket = \"/run/guestmem/linux.control\"; those of a door stand in [[vm.attach]]");
    }

    void read_who(const TomlNode& node) {
        static constexpr std::array<Word, 3> keys{"user", "group", "cgroup"};
        TableReader who{node, "who", keys, diagnostics_};
        CredentialMatch& match = vm_.match;
        if (const TomlNode* user = who.find("user")) match.user = who.identity(*user, &user_id);
        if (const TomlNode* group = who.find("group")) match.group = who.identity(*group, &group_id);
        if (const auto cgroup = who.text("cgroup", "\"/machine.slice/linux*\"")) {
            match.cgroup = *cgroup;
            if (const auto problem = find_cgroup_problem(*cgroup))
                who.complain("cgroup", problem->what, problem->advice);
        }
        if (!who.has("user") && !who.has("group") && !who.has("cgroup"))
            diagnostics_.add(who.start(), "'who' names nobody", "write who = { user = \"qemu-linux\" }");
        // The control socket could not tell them apart.
        if (!match.is_empty() && !table_.has("socket"))
            places_.note(ConfigPlaces::Kind::who, describe(match), who.start());
    }

    static std::string describe(const CredentialMatch& match) {
        std::vector<std::string> parts;
        if (match.user) parts.push_back(fmt::format("user {}", *match.user));
        if (match.group) parts.push_back(fmt::format("group {}", *match.group));
        if (!match.cgroup.empty()) parts.push_back(fmt::format("cgroup {}", match.cgroup));
        return fmt::format("{}", fmt::join(parts, ", "));
    }

    void read_rule(const TomlNode& node) {
        static constexpr std::array<Word, 4> keys{"allow", "deny", "may", "read_only"};
        TableReader rule{node, "a rule", keys, diagnostics_};
        const bool is_allow = rule.has("allow");
        // A misspelled key is complained of already; what it meant is not missing.
        const bool has_unknown = std::ranges::any_of(node.children, [](const TomlNode& child) {
            return std::ranges::find(keys, Word{child.key}) == keys.end();
        });
        if (!is_allow && !rule.has("deny") && has_unknown) return;
        if (is_allow == rule.has("deny"))
            return diagnostics_.add(
                rule.start(),
                is_allow ? "both 'allow' and 'deny' in one rule" : "a rule has 'allow' or 'deny'",
                "write { allow = \"mail*\" } or { deny = \"*\" }");
        Rule made{.verdict = is_allow ? Verdict::allow : Verdict::deny,
                  .pattern = {},
                  .permissions = {},
                  .line = line_of(rule.start())};
        const Word key = is_allow ? "allow" : "deny";
        const auto pattern = rule.text(key, "\"mail*\"");
        if (is_allow) {
            read_may(rule, made.permissions);
            made.permissions.is_read_only = rule.boolean("read_only", "true").value_or(false);
        } else {
            for (const Word other : {"may", "read_only"})
                if (rule.has(other))
                    rule.complain(other, fmt::format("'{}' in a rule that denies", other),
                                  "it belongs to an allow; leave it out");
        }
        if (!pattern) return;
        made.pattern = *pattern;
        if (const auto problem = find_rule_problem(made)) {
            const bool is_about_may = !find_pattern_problem(*pattern);
            rule.complain(is_about_may ? Word{"may"} : key, problem->what, problem->advice);
        }
        vm_.rules.push_back(std::move(made));
    }

    void read_may(TableReader& rule, Permissions& permissions) {
        static constexpr std::array<Word, 3> words{"attach", "create", "notify"};
        if (!rule.has("may")) return;
        permissions = {.may_attach = false, .may_create = false, .may_notify = false, .is_read_only = false};
        rule.for_each("may", "[\"attach\", \"notify\"]", [&](const TomlNode& node) {
            if (node.kind != TomlKind::text)
                return diagnostics_.add(node.where,
                                        fmt::format("{} where a word belongs", to_string(node.kind)),
                                        "write may = [\"attach\", \"notify\"]");
            if (node.text == "attach") permissions.may_attach = true;
            if (node.text == "create") permissions.may_create = true;
            if (node.text == "notify") permissions.may_notify = true;
            if (std::ranges::find(words, node.text) != words.end()) return;
            const Word meant = closest_word(node.text, words);
            diagnostics_.add(node.where, fmt::format("unknown right '{}'", node.text),
                             meant.empty() ? fmt::format("rights are \"{}\"", fmt::join(words, "\", \""))
                                           : fmt::format("did you mean '{}'?", meant));
            // One mistake is enough: it is not an allow of nothing, too.
            permissions.may_attach = true;
        });
    }

    void read_limits(const TomlNode& node) {
        static constexpr std::array<Word, 5> keys{"shares", "bytes", "peers", "vectors", "queued_messages"};
        TableReader limits{node, "limits", keys, diagnostics_};
        read_usage_limits(limits, vm_.limits);
        if (const auto messages =
                limits.number_within("queued_messages", least_queued_messages, max_queued_messages, "1000"))
            vm_.limits.queued_messages = *messages;
    }

    void read_attach(const TomlNode& node) {
        static constexpr std::array<Word, 7> keys{"share", "slot",  "slots", "socket",
                                                  "owner", "group", "mode"};
        TableReader attach{node, "[[vm.attach]]", keys, diagnostics_};
        DoorConfig door{.share = attach.required_text("share", "\"mailbox\""),
                        .vm = vm_.name,
                        .slots = {},
                        .socket = {},
                        .line = line_of(attach.start())};
        if (attach.has("socket")) {
            door.socket = read_socket(attach, {}, {}, places_);
        } else {
            diagnostics_.add(attach.start(), "'socket' is missing",
                             "write socket = \"/run/guestmem/linux.sock\"");
        }
        const auto share = std::ranges::find(config_.shares, door.share, &ShareConfig::name);
        if (share == config_.shares.end()) {
            if (attach.has("share")) complain_unknown_share(attach, door.share);
            return;
        }
        read_slots(attach, *share, door);
        config_.doors.push_back(std::move(door));
    }

    void complain_unknown_share(TableReader& attach, const std::string& name) {
        std::vector<Word> names;
        names.reserve(config_.shares.size());
        for (const ShareConfig& share : config_.shares) names.push_back(share.name);
        const Word meant = closest_word(name, names);
        attach.complain("share", fmt::format("no share '{}' in this file", name),
                        meant.empty() ? fmt::format("shares here: {}", fmt::join(names, ", "))
                                      : fmt::format("did you mean '{}'?", meant));
    }

    void read_slots(TableReader& attach, const ShareConfig& share, DoorConfig& door) {
        const TomlNode* slot = attach.find("slot");
        const TomlNode* slots = attach.find("slots");
        if (share.ids == IdPolicy::classic) {
            if (slot != nullptr || slots != nullptr)
                attach.complain(
                    slot != nullptr ? "slot" : "slots",
                    fmt::format("share '{}' has classic ids: they follow the order of arrival", share.name),
                    "leave the slot out, or write ids = \"stable\" in the share");
            return;
        }
        if ((slot == nullptr) == (slots == nullptr))
            return diagnostics_.add(slot == nullptr ? attach.start() : attach.where("slots"),
                                    slot == nullptr ? "'slot' is missing" : "both 'slot' and 'slots'",
                                    "write slot = 0, or slots = [0, 1]");
        if (slot != nullptr) return take_slot(*slot, share, door);
        if (slots->kind != TomlKind::list || slots->children.empty())
            return attach.complain("slots", "'slots' is not a list of numbers", "write slots = [0, 1]");
        for (const TomlNode& node : slots->children) take_slot(node, share, door);
    }

    void take_slot(const TomlNode& node, const ShareConfig& share, DoorConfig& door) {
        if (node.kind != TomlKind::number)
            return diagnostics_.add(node.where,
                                    fmt::format("'slot' is {} where a number belongs", to_string(node.kind)),
                                    "write slot = 0");
        if (node.number < 0 || node.number >= std::int64_t{share.slots})
            return diagnostics_.add(
                node.where,
                fmt::format("slot {}: share '{}' has {} slots", node.number, share.name, share.slots),
                fmt::format("write a number from 0 to {}, or more slots in the share", share.slots - 1));
        const auto slot = static_cast<std::uint32_t>(node.number);
        if (places_.take_slot(share, slot, door.vm, node.where)) door.slots.push_back(slot);
    }

    TableReader table_;
    ServiceConfig& config_;
    ConfigPlaces& places_;
    Diagnostics& diagnostics_;
    VmConfig vm_;
};

}  // namespace

void read_vm(const TomlNode& node, ServiceConfig& config, ConfigPlaces& places, Diagnostics& diagnostics) {
    VmReader{node, config, places, diagnostics}.read();
}

void read_usage_limits(TableReader& table, UsageLimits& limits) {
    const auto read = [&](Word key, std::uint64_t& value, std::uint64_t least, std::uint64_t most,
                          Word example) {
        if (const auto number = table.number_within(key, least, most, example)) value = *number;
    };
    // Without peers nobody could come; who may make nothing can still attach.
    read("shares", limits.shares, 0, max_shares, "4");
    read("peers", limits.peers, 1, max_peers, "8");
    read("vectors", limits.vectors, 0, max_total_vectors, "64");
    const auto bytes = table.size("bytes", "\"1G\"");
    if (!bytes) return;
    if (*bytes > max_total_bytes)
        return table.complain(
            "bytes", fmt::format("{} bytes are beyond the limit of {}", *bytes, format_size(max_total_bytes)),
            fmt::format("write at most \"{}\"", format_size(max_total_bytes)));
    limits.bytes = *bytes;
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config_file.hpp"

#include <fmt/format.h>

#include <array>
#include <optional>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/base/table_reader.hpp"
#include "guestmem/base/toml_tree.hpp"
#include "guestmem/share/config_places.hpp"
#include "guestmem/share/config_vm.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

using Word = std::string_view;
using Kind = ConfigPlaces::Kind;

constexpr Word one_service = "use a second service";

void complain(TableReader& table, Word key, const Problem& problem) {
    table.complain(key, problem.what, problem.advice);
}

class ConfigReader {
public:
    ConfigReader(const TomlNode& root, Diagnostics& diagnostics)
        : root_(root), diagnostics_(diagnostics), places_(diagnostics) {}

    ServiceConfig read() {
        static constexpr std::array<Word, 5> known{"user", "control", "limits", "share", "vm"};
        TableReader table{root_, "the file", known, diagnostics_};
        read_user(table);
        table.for_each_table("control", 1, one_service, [&](const TomlNode& node) { read_control(node); });
        table.for_each_table("limits", 1, one_service, [&](const TomlNode& node) { read_limits(node); });
        table.for_each_table("share", max_shares, one_service,
                             [&](const TomlNode& node) { read_share(node); });
        table.for_each_table("vm", max_vms, one_service,
                             [&](const TomlNode& node) { read_vm(node, config_, places_, diagnostics_); });
        finish_control();
        if (config_.shares.empty() && diagnostics_.is_empty())
            diagnostics_.add({1, 1}, "no share", "write [[share]], name = \"mailbox\" and size = \"4M\"");
        return std::move(config_);
    }

private:
    void read_user(TableReader& table) {
        const TomlNode* user = table.find("user");
        if (user != nullptr && table.identity(*user, &user_id))
            config_.user = user->kind == TomlKind::text ? user->text : std::to_string(user->number);
    }

    void read_control(const TomlNode& node) {
        static constexpr std::array<Word, 5> known{"path", "owner", "group", "mode", "operators"};
        TableReader table{node, "[control]", known, diagnostics_};
        config_.control.socket = read_socket(table, {.path = "path"}, {}, places_);
        has_control_path_ = table.has("path");
        table.for_each("operators", "[\"alice\", 1000]", [&](const TomlNode& entry) {
            if (const auto id = table.identity(entry, &user_id)) config_.control.operators.push_back(*id);
        });
    }

    void finish_control() {
        if (has_control_path_) return;
        std::string& path = config_.control.socket.path;
        path = default_control_path();
        if (const TextPosition* clash = places_.find(Kind::socket, path))
            diagnostics_.add(*clash, fmt::format("socket '{}' is the control socket's path", path),
                             "choose another path, or write one for [control]");
    }

    void read_limits(const TomlNode& node) {
        static constexpr std::array<Word, 9> known{"handshake_timeout_ms",
                                                   "refusal_hold_ms",
                                                   "refusals_held",
                                                   "queued_messages",
                                                   "connections_per_uid",
                                                   "shares",
                                                   "bytes",
                                                   "peers",
                                                   "vectors"};
        TableReader table{node, "[limits]", known, diagnostics_};
        const auto read = [&](Word key, auto& value, std::uint64_t least, std::uint64_t most) {
            if (const auto number = table.number_within(key, least, most, std::to_string(value)))
                value = static_cast<std::remove_reference_t<decltype(value)>>(*number);
        };
        Limits& limits = config_.limits;
        read("handshake_timeout_ms", limits.handshake_timeout_ms, 100, 600'000);
        read("refusal_hold_ms", limits.refusal_hold_ms, 0, 600'000);
        read("refusals_held", limits.refusals_held, 0, 1024);
        read("queued_messages", limits.queued_messages, least_queued_messages, max_queued_messages);
        read("connections_per_uid", limits.connections_per_uid, 1, 65'536);
        read_usage_limits(table, config_.totals);
    }

    void read_share(const TomlNode& node) {
        static constexpr std::array<Word, 13> known{
            "name", "size", "vectors", "slots",        "ids",          "backing",    "huge_pages",
            "path", "keep", "socket",  "socket_owner", "socket_group", "socket_mode"};
        TableReader table{node, "[[share]]", known, diagnostics_};
        ShareConfig share;
        share.line = static_cast<std::uint32_t>(table.start().line);
        share.name = table.required_text("name", "\"mailbox\"");
        if (table.has("name")) {
            if (const auto problem = find_name_problem(share.name)) complain(table, "name", *problem);
            places_.note(Kind::share, share.name, table.where("name"));
        }
        const auto size = table.required_size("size", "\"4M\"");
        if (size) {
            share.size_bytes = *size;
            if (const auto problem = find_size_problem(*size)) complain(table, "size", *problem);
        }
        read_doorbells(table, share);
        if (const auto ids = table.word("ids", std::array<Word, 2>{"stable", "classic"}))
            share.ids = *ids == "classic" ? IdPolicy::classic : IdPolicy::stable;
        read_backing(table, share, size && !find_size_problem(*size));
        if (table.has("socket")) {
            DoorConfig door{.share = share.name, .vm = {}, .slots = {}, .socket = {}, .line = share.line};
            door.socket =
                read_socket(table, {"socket", "socket_owner", "socket_group", "socket_mode"}, {}, places_);
            config_.doors.push_back(std::move(door));
        }
        config_.shares.push_back(std::move(share));
    }

    static void read_doorbells(TableReader& table, ShareConfig& share) {
        const std::uint64_t vectors = table.number("vectors", "2").value_or(share.vectors);
        const std::uint64_t slots = table.number("slots", "4").value_or(share.slots);
        const auto vectors_problem = find_vectors_problem(vectors);
        // The number of slots alone, and their product with the vectors when those are right.
        const auto slots_problem = find_slots_problem(slots, vectors_problem ? 1 : vectors);
        if (vectors_problem) complain(table, "vectors", *vectors_problem);
        if (slots_problem) complain(table, "slots", *slots_problem);
        if (vectors_problem || slots_problem) return;
        share.vectors = static_cast<std::uint32_t>(vectors);
        share.slots = static_cast<std::uint32_t>(slots);
    }

    void read_backing(TableReader& table, ShareConfig& share, bool is_size_right) {
        const auto word = table.word("backing", std::array<Word, 3>{"memfd", "file", "shm"});
        if (word && *word == "file") share.backing = BackingKind::file;
        if (word && *word == "shm") share.backing = BackingKind::shm;
        share.is_kept = table.boolean("keep", "true").value_or(false);

        if (const auto bytes = table.size("huge_pages", "\"2M\"")) {
            share.huge_page_bytes = *bytes;
            const auto problem = find_huge_pages_problem(*bytes, is_size_right ? share.size_bytes : 0);
            if (share.backing != BackingKind::memfd) {
                table.complain("huge_pages", "only a memfd can have huge pages",
                               "leave huge_pages out, or write backing = \"memfd\"");
            } else if (*bytes == 0) {
                table.complain("huge_pages", "huge pages of 0", "write huge_pages = \"2M\", or leave it out");
            } else if (problem) {
                complain(table, "huge_pages", *problem);
            }
        }
        // With an unknown backing nobody knows what the path should be.
        if (table.has("backing") && (!word || *word != to_string(share.backing))) return;
        read_path(table, share);
    }

    void read_path(TableReader& table, ShareConfig& share) {
        const Word example =
            share.backing == BackingKind::shm ? "\"/mailbox\"" : "\"/var/lib/guestmem/mailbox\"";
        if (!table.has("path")) {
            if (share.backing != BackingKind::memfd)
                diagnostics_.add(
                    table.start(),
                    fmt::format("'path' is missing: backing \"{}\" needs one", to_string(share.backing)),
                    fmt::format("write path = {}", example));
            return;
        }
        const auto path = table.text("path", example);
        if (!path) return;
        share.path = *path;
        if (const auto problem = find_path_problem(share.backing, *path))
            return complain(table, "path", *problem);
        if (path->empty()) return table.complain("path", "an empty path", "leave path out");
        if (share.backing == BackingKind::file && !is_folder(parent_folder(*path)))
            table.complain("path", fmt::format("folder {} does not exist", parent_folder(*path)),
                           fmt::format("make it first: mkdir -p {}", parent_folder(*path)));
        places_.note(Kind::path, share.backing == BackingKind::shm ? "/dev/shm" + *path : *path,
                     table.where("path"));
    }

    const TomlNode& root_;
    Diagnostics& diagnostics_;
    ConfigPlaces places_;
    ServiceConfig config_;
    bool has_control_path_ = false;
};

}  // namespace

Result<ServiceConfig> parse_config(std::string_view text, const std::string& file_name) {
    Diagnostics diagnostics{file_name, std::string{text}};
    const auto root = parse_toml(text, diagnostics);
    if (!root) return diagnostics.to_error();
    ServiceConfig config = ConfigReader{*root, diagnostics}.read();
    if (!diagnostics.is_empty()) return diagnostics.to_error();
    config.file = file_name;
    return config;
}

Result<ServiceConfig> read_config_file(const std::string& path) {
    const std::string text = GM_TRY(read_text_file(path, max_config_bytes));
    return parse_config(text, path);
}

}  // namespace guestmem::share

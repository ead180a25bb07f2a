// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::size_t max_entries = 100'000;

Result<std::vector<FolderEntry>> entries_of(const std::string& store) {
    if (!GM_TRY(path_facts(store)).exists) return std::vector<FolderEntry>{};
    return list_folder(store, max_entries);
}

/// Nothing when it is no template, or none any more. What could not be read may be a difference: that is an error.
Result<std::optional<Manifest>> manifest_of(const std::string& path) {
    const auto read = [&]() -> Result<Manifest> {
        const Fd folder = GM_TRY(open_folder(path));
        // No link, and no pipe that would let us wait.
        const Fd file = GM_TRY_CONTEXT(open_in(folder, template_manifest_file), path);
        const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), path);
        if (facts.size_bytes > max_manifest_bytes)
            return Error{Errc::corrupt, fmt::format("{}: its manifest is too large", path)};
        std::string text(facts.size_bytes, '\0');
        GM_TRY_CONTEXT(read_at(file, 0, std::as_writable_bytes(std::span{text})), path);
        return parse_manifest(text);
    };
    auto manifest = read();
    if (manifest) return std::optional{*std::move(manifest)};
    const Errc reason = manifest.error().code();
    if (reason == Errc::corrupt || reason == Errc::unsupported || reason == Errc::not_found)
        return std::optional<Manifest>{};
    return std::move(manifest).error();
}

}  // namespace

Result<std::vector<std::string>> list_templates(const std::string& store) {
    const std::vector<FolderEntry> entries = GM_TRY(entries_of(store));
    std::vector<std::string> names;
    for (const FolderEntry& entry : entries) {
        if (entry.kind != FileKind::folder || !is_template_name(entry.name)) continue;
        const std::string manifest = fmt::format("{}/{}/{}", store, entry.name, template_manifest_file);
        if (GM_TRY(path_facts(manifest)).exists) names.push_back(entry.name);
    }
    return names;
}

Result<std::vector<std::string>> differences_to(const std::string& folder) {
    std::vector<std::string> found;
    const auto own = GM_TRY(manifest_of(folder));
    // Nothing can be a difference to what is no template.
    if (!own) return found;
    const std::string store = parent_folder(folder);
    const std::vector<std::string> names = GM_TRY(list_templates(store));
    for (const std::string& name : names) {
        const auto manifest = GM_TRY(manifest_of(fmt::format("{}/{}", store, name)));
        if (manifest && manifest->parent && manifest->parent->id == own->id) found.push_back(name);
    }
    return found;
}

namespace {

Result<void> check_no_difference(const std::string& folder) {
    const std::vector<std::string> differences = GM_TRY(differences_to(folder));
    if (differences.empty()) return {};
    const bool is_one = differences.size() == 1;
    return Error{
        Errc::busy,
        fmt::format("{}: {} {} to it; flatten or remove {} first", folder, fmt::join(differences, ", "),
                    is_one ? "is a difference" : "are differences", is_one ? "it" : "them")};
}

}  // namespace

Result<void> remove_template(const std::string& folder) {
    // Before the lock, under which nobody can fork: most refusals need none.
    GM_TRY(check_no_difference(folder));
    const auto lock = GM_TRY_CONTEXT(try_retire(folder), folder);
    // This removes what dead processes left, too.
    const std::vector<Tenant> tenants = GM_TRY(tenants_of(folder));
    if (!lock) {
        std::string pids;
        for (const Tenant& tenant : tenants)
            pids += fmt::format("{}{}", pids.empty() ? "" : ", ", tenant.pid);
        const std::string whose = pids.empty() ? "(processes whose starter is gone: see /proc/locks)"
                                               : fmt::format("(processes {})", pids);
        return Error{Errc::busy, fmt::format("{}: it has forks alive {}; end them first", folder, whose)};
    }
    // Who makes a difference holds a lease until the difference has its name: there can be no more of them.
    GM_TRY(check_no_difference(folder));
    // As a leftover it is this process's until all of it is gone.
    Fd opened = GM_TRY(open_folder(folder));
    const auto own = GM_TRY(FileLock::try_exclusive(std::move(opened)));
    if (!own) return Error{Errc::busy, fmt::format("{}: somebody else is removing it", folder)};
    const std::string gone =
        fmt::format("{}/{}{}", parent_folder(folder), retired_prefix, GM_TRY(random_hex(8)));
    GM_TRY(rename_new(folder, gone));
    GM_TRY(sync_folder(parent_folder(folder)));
    return remove_tree(gone);
}

Result<void> remove_leftovers(const std::string& store) {
    const std::vector<FolderEntry> entries = GM_TRY(entries_of(store));
    for (const FolderEntry& entry : entries) {
        const bool is_left = entry.name.starts_with(making_prefix) || entry.name.starts_with(retired_prefix);
        if (entry.kind != FileKind::folder || !is_left) continue;
        const std::string path = fmt::format("{}/{}", store, entry.name);
        auto opened = open_folder(path);
        // Finished or removed since it was listed.
        if (!opened) continue;
        // Held until the folder is gone: a maker that has not locked its new folder yet makes another one.
        const auto lock = GM_TRY(FileLock::try_exclusive(*std::move(opened)));
        if (lock) static_cast<void>(remove_tree(path));
    }
    return {};
}

}  // namespace guestmem

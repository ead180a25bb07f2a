// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/lease.hpp"

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <ranges>
#include <span>
#include <string_view>
#include <utility>

#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/kernel_text.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::size_t max_leases = 100'000;

std::string forks_folder(const std::string& folder) { return folder + "/" + forks_folder_name; }

Result<Fd> open_manifest(const std::string& folder) {
    const Fd opened = GM_TRY(open_folder(folder));
    return open_in(opened, template_manifest_file);
}

/// "fork GENERATION PID NANOSECONDS"; nothing for other lines, and for one that is being written.
std::optional<ForkNote> parse_note(std::string_view line) {
    constexpr std::string_view begin = "fork ";
    constexpr std::size_t id_digits = 32;
    if (!line.starts_with(begin) || line.size() < begin.size() + id_digits + 1) return std::nullopt;
    const std::string_view generation = line.substr(begin.size(), id_digits);
    const std::string_view rest = line.substr(begin.size() + id_digits + 1);
    const std::size_t blank = rest.find(' ');
    if (blank == std::string_view::npos || !is_template_id(generation)) return std::nullopt;
    const auto pid = parse_kernel_number(rest.substr(0, blank));
    const auto time = parse_kernel_number(rest.substr(blank + 1));
    if (!pid || !time || !std::in_range<std::int32_t>(*pid)) return std::nullopt;
    return ForkNote{std::string{generation}, static_cast<std::int32_t>(*pid), *time};
}

std::optional<Tenant> parse_tenant(std::string_view text) {
    const auto pid = value_of_line(text, "pid");
    const auto since = value_of_line(text, "since");
    const auto pid_number = pid ? parse_kernel_number(*pid) : std::nullopt;
    const auto since_number = since ? parse_kernel_number(*since) : std::nullopt;
    if (!pid_number || !since_number || !std::in_range<std::int32_t>(*pid_number)) return std::nullopt;
    Tenant tenant{.pid = static_cast<std::int32_t>(*pid_number), .since_s = *since_number};
    for (const auto line : std::views::split(text, '\n'))
        if (auto note = parse_note({line.begin(), line.end()})) tenant.forks.push_back(*std::move(note));
    return tenant;
}

/// A file that did not get its name yet, or whose process was killed before it did.
Result<void> remove_if_left(Fd file, const std::string& path) {
    constexpr std::int64_t enough_ns = 60'000'000'000;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const Ownership facts = GM_TRY(ownership_of(file));
    if (std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() - facts.modified_ns < enough_ns)
        return {};
    if (GM_TRY(FileLock::try_exclusive(std::move(file)))) static_cast<void>(remove_file(path));
    return {};
}

}  // namespace

Lease::Lease(FileLock in_use, FileLock own, std::string path, std::uint64_t written_bytes)
    : in_use_(std::move(in_use)),
      own_(std::move(own)),
      path_(std::move(path)),
      written_bytes_(written_bytes) {}

Lease::~Lease() {
    // A file that stays is found to be of nobody.
    static_cast<void>(remove_file(path_));
}

Result<std::shared_ptr<const Lease>> Lease::take(const std::string& folder, FdView manifest) {
    Fd opened = GM_TRY(open_manifest(folder));
    auto in_use = GM_TRY(FileLock::try_shared(std::move(opened)));
    if (!in_use) return Error{Errc::busy, fmt::format("{}: it is being removed", folder)};
    // Under the lock its name stays what it is.
    const FileFacts expected = GM_TRY(file_facts(manifest));
    const PathFacts named = GM_TRY(path_facts(fmt::format("{}/{}", folder, template_manifest_file)));
    const FileFacts locked = GM_TRY(file_facts(in_use->file()));
    const auto is_it = [&](const auto& facts) {
        return facts.device == expected.device && facts.inode == expected.inode;
    };
    if (!is_it(named) || !is_it(locked))
        return Error{Errc::unavailable,
                     fmt::format("{}: it was replaced since it was opened; open it again", folder)};
    const std::string forks = forks_folder(folder);
    if (auto made = make_folder(forks, 0700); !made && made.error().code() != Errc::already_exists)
        return std::move(made).error();
    const std::string name = GM_TRY(random_hex(8));
    // It gets its name when it is locked: one without a lock is taken for a dead process's.
    const std::string hidden = fmt::format("{}/.{}", forks, name);
    const std::string path = fmt::format("{}/{}", forks, name);
    Fd file = GM_TRY(create_file(hidden, 0600));
    const std::string text = fmt::format("pid {}\nsince {}\n", own_process(), seconds_since_1970());
    auto written = write_at(file, 0, std::as_bytes(std::span{text}));
    auto own =
        written ? FileLock::try_exclusive(std::move(file)) : Result<std::optional<FileLock>>{written.error()};
    auto renamed = own && *own ? rename_new(hidden, path) : Result<void>{};
    if (!own || !*own || !renamed) {
        static_cast<void>(remove_file(hidden));
        if (!own) return std::move(own).error();
        if (!renamed) return std::move(renamed).error();
        return Error{Errc::busy, fmt::format("{}: somebody has locked a file that was just made", hidden)};
    }
    return std::shared_ptr<const Lease>{new Lease{*std::move(in_use), *std::move(*own), path, text.size()}};
}

Result<void> Lease::note(const ForkNote& fork) const {
    if (!is_template_id(fork.generation))
        return Error{Errc::invalid_argument, "a fork's generation is 32 hexadecimal digits"};
    const std::string line =
        fmt::format("fork {} {} {}\n", fork.generation, fork.pid, fork.first_instruction_ns);
    const std::scoped_lock lock{mutex_};
    if (written_bytes_ + line.size() > max_lease_bytes)
        return Error{Errc::out_of_range, fmt::format("{}: it has {} bytes of notes, and at most {} are kept",
                                                     path_, written_bytes_, max_lease_bytes)};
    GM_TRY_CONTEXT(write_at(own_.file(), written_bytes_, std::as_bytes(std::span{line})), path_);
    written_bytes_ += line.size();
    return {};
}

Result<std::vector<Tenant>> tenants_of(const std::string& folder) {
    std::vector<Tenant> tenants;
    const std::string forks = forks_folder(folder);
    const auto entries = list_folder(forks, max_leases);
    if (!entries && entries.error().code() == Errc::not_found) return tenants;
    if (!entries) return entries.error();
    const Fd opened = GM_TRY(open_folder(forks));
    for (const FolderEntry& entry : *entries) {
        auto file = open_in(opened, entry.name);
        // Gone since it was listed.
        if (!file) continue;
        const std::string path = fmt::format("{}/{}", forks, entry.name);
        if (entry.name.starts_with('.')) {
            GM_TRY(remove_if_left(*std::move(file), path));
            continue;
        }
        auto lock = GM_TRY(FileLock::try_exclusive(*std::move(file)));
        if (lock) {
            static_cast<void>(remove_file(path));
            continue;
        }
        const auto text = read_text_file(path, max_lease_bytes);
        if (const auto tenant = text ? parse_tenant(*text) : std::nullopt) tenants.push_back(*tenant);
    }
    return tenants;
}

Result<std::optional<FileLock>> try_retire(const std::string& folder) {
    Fd manifest = GM_TRY(open_manifest(folder));
    auto lock = GM_TRY(FileLock::try_exclusive(std::move(manifest)));
    if (!lock) return lock;
    // Another remover may have been faster, and another maker: then the name is that of a template with forks, maybe.
    const PathFacts named = GM_TRY(path_facts(fmt::format("{}/{}", folder, template_manifest_file)));
    const FileFacts locked = GM_TRY(file_facts(lock->file()));
    if (!named.exists || named.device != locked.device || named.inode != locked.inode)
        return Error{Errc::unavailable, fmt::format("{}: it was removed or replaced meanwhile", folder)};
    return lock;
}

}  // namespace guestmem

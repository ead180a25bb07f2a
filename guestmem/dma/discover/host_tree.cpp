// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/host_tree.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_tree.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem::dma {
namespace {

constexpr int max_links_on_a_path = 40;
constexpr int max_parts_on_a_path = 512;

class FolderTree final : public HostTree {
public:
    FolderTree(FileTree files, bool is_live) : files_(std::move(files)), is_live_(is_live) {}

    Result<std::optional<std::string>> read(std::string_view path, std::size_t limit_bytes) override {
        return files_.read(path, limit_bytes);
    }
    Result<std::optional<std::string>> link_target(std::string_view path) override {
        return files_.link_target(path);
    }
    Result<std::vector<std::string>> list(std::string_view folder, std::size_t limit) override {
        return files_.list(folder, limit);
    }
    Result<bool> exists(std::string_view path) override { return files_.exists(path); }
    [[nodiscard]] bool is_live() const override { return is_live_; }

private:
    FileTree files_;
    bool is_live_;
};

struct SplitPath {
    std::string_view folder;
    std::string_view name;
};

SplitPath split(std::string_view path) {
    while (path.starts_with('/')) path.remove_prefix(1);
    while (path.ends_with('/')) path.remove_suffix(1);
    const std::size_t slash = path.rfind('/');
    if (slash == std::string_view::npos) return {.folder = {}, .name = path};
    return {.folder = path.substr(0, slash), .name = path.substr(slash + 1)};
}

class TarTree final : public HostTree {
public:
    explicit TarTree(TarArchive archive) : archive_(std::move(archive)) {}

    Result<std::optional<std::string>> read(std::string_view path, std::size_t limit_bytes) override {
        const TarEntry* entry = GM_TRY(look(path));
        if (entry == nullptr || entry->kind == TarEntry::Kind::link) {
            const std::string resolved = GM_TRY(resolve(path));
            entry = archive_.find(resolved);
            if (entry == nullptr && !below(resolved).empty())
                return Error{Errc::corrupt, fmt::format("{}: no ordinary file", printable_name(path))};
        }
        if (entry == nullptr) return std::optional<std::string>{};
        if (entry->content.size() > limit_bytes)
            return Error{Errc::out_of_range, fmt::format("{}: larger than the limit of {} bytes",
                                                         printable_name(path), limit_bytes)};
        return std::optional<std::string>{std::string{entry->content}};
    }

    Result<std::optional<std::string>> link_target(std::string_view path) override {
        const TarEntry* entry = GM_TRY(look(path));
        if (entry == nullptr || entry->kind != TarEntry::Kind::link) return std::optional<std::string>{};
        return std::optional<std::string>{std::string{entry->content}};
    }

    Result<std::vector<std::string>> list(std::string_view folder, std::size_t limit) override {
        const std::string resolved = GM_TRY(resolve_folder(folder));
        const std::size_t prefix_bytes = resolved.empty() ? 0 : resolved.size() + 1;
        std::vector<std::string> names;
        for (const TarEntry& entry : below(resolved)) {
            const std::string_view rest = entry.path.substr(prefix_bytes);
            const std::string_view name = rest.substr(0, rest.find('/'));
            if (names.empty() || names.back() != name) names.emplace_back(name);
        }
        // "a", "a-b/c", "a/d" is an order of paths: a folder's entries need not stand together.
        std::ranges::sort(names);
        names.erase(std::ranges::unique(names).begin(), names.end());
        if (names.size() > limit)
            return Error{Errc::out_of_range,
                         fmt::format("list {}: more than {} names", printable_name(folder), limit)};
        return names;
    }

    Result<bool> exists(std::string_view path) override {
        const std::string resolved = GM_TRY(resolve(path));
        return archive_.find(resolved) != nullptr || !below(resolved).empty();
    }

private:
    using Entries = std::span<const TarEntry>;

    /// All entries below a folder, whose path has no links in it.
    [[nodiscard]] Entries below(const std::string& folder) const {
        const Entries all = archive_.entries();
        if (folder.empty()) return all;
        const auto at = [&](char last) {
            return std::ranges::lower_bound(all, folder + last, {}, &TarEntry::path) - all.begin();
        };
        const auto first = static_cast<std::size_t>(at('/'));
        return all.subspan(first, static_cast<std::size_t>(at('/' + 1)) - first);
    }

    /// The path without links, "." and "..": what is there need not be.
    [[nodiscard]] Result<std::string> resolve(std::string_view path) const {
        std::string done;
        std::string rest{path};
        int count_links = 0;
        int count_parts = 0;
        while (!rest.empty()) {
            if (++count_parts > max_parts_on_a_path || rest.size() > 2 * max_tree_path_bytes)
                return Error{Errc::corrupt, fmt::format("{}: too long with its links", printable_name(path))};
            const std::size_t slash = std::min(rest.find('/'), rest.size());
            const std::string part = rest.substr(0, slash);
            rest.erase(0, slash + 1);
            if (part.empty() || part == ".") continue;
            const std::size_t parent_bytes = done.contains('/') ? done.rfind('/') : 0;
            if (part == "..") {
                done.resize(parent_bytes);
                continue;
            }
            const std::string candidate = done.empty() ? part : fmt::format("{}/{}", done, part);
            const TarEntry* entry = archive_.find(candidate);
            if (entry == nullptr || entry->kind != TarEntry::Kind::link) {
                done = candidate;
                continue;
            }
            if (++count_links > max_links_on_a_path)
                return Error{Errc::corrupt, fmt::format("{}: its links do not end", printable_name(path))};
            if (entry->content.starts_with('/')) done.clear();
            rest = fmt::format("{}/{}", entry->content, rest);
        }
        return done;
    }

    /// What an entry's name begins with has no links in it, and needs no walk: no entry is below a link.
    [[nodiscard]] Result<std::string> resolve_folder(std::string_view folder) const {
        std::string plain{folder};
        if (!plain.empty() && !below(plain).empty()) return plain;
        return resolve(folder);
    }

    /// The entry itself, also when it is a link; links on the way are followed.
    [[nodiscard]] Result<const TarEntry*> look(std::string_view path) {
        const auto [folder, name] = split(path);
        if (name.empty() || name == "." || name == "..") return nullptr;
        if (!has_folder_ || folder_name_ != folder) {
            has_folder_ = false;
            folder_path_ = GM_TRY(resolve_folder(folder));
            folder_name_ = folder;
            folder_ = below(folder_path_);
            has_folder_ = true;
        }
        const std::size_t prefix_bytes = folder_path_.empty() ? 0 : folder_path_.size() + 1;
        const auto rest = [&](const TarEntry& entry) { return entry.path.substr(prefix_bytes); };
        const auto at = std::ranges::lower_bound(folder_, name, {}, rest);
        return at != folder_.end() && rest(*at) == name ? &*at : nullptr;
    }

    TarArchive archive_;
    bool has_folder_ = false;
    std::string folder_name_;  ///< as it was asked for
    std::string folder_path_;
    Entries folder_;
};

/// What unpacks a file that begins like this; nothing when it is not compressed.
std::optional<std::string_view> unpacker_of(std::string_view bytes) {
    if (bytes.starts_with("\x1f\x8b")) return "gunzip";
    if (bytes.starts_with("\x28\xb5\x2f\xfd")) return "unzstd";
    if (bytes.starts_with("\xfd\x37zXZ")) return "unxz";
    if (bytes.starts_with("BZh")) return "bunzip2";
    return std::nullopt;
}

Result<std::string> read_archive(const std::string& path) {
    const Fd file = GM_TRY(open_file(path, OpenMode::read));
    const FileFacts facts = GM_TRY(file_facts(file));
    if (!facts.is_regular) return Error{Errc::invalid_argument, "neither a folder nor a file"};
    if (facts.size_bytes > max_host_archive_bytes)
        return Error{Errc::out_of_range, fmt::format("{} bytes are more than the limit of {}",
                                                     facts.size_bytes, max_host_archive_bytes)};
    std::string bytes;
    // All of it is written below: zeros first would double the time.
    bytes.resize_and_overwrite(facts.size_bytes, [](char*, std::size_t size_bytes) { return size_bytes; });
    GM_TRY(read_at(file, 0, std::as_writable_bytes(std::span{bytes})));
    return bytes;
}

}  // namespace

std::unique_ptr<HostTree> host_tree_of(TarArchive archive) {
    return std::make_unique<TarTree>(std::move(archive));
}

Result<std::unique_ptr<HostTree>> open_host_tree(const std::string& root) {
    const std::string what = fmt::format("captured machine '{}'", root);
    if (is_folder(root)) {
        FileTree files = GM_TRY_CONTEXT(FileTree::open(root), what);
        return std::unique_ptr<HostTree>{std::make_unique<FolderTree>(std::move(files), root == "/")};
    }
    std::string bytes = GM_TRY_CONTEXT(read_archive(root), what);
    if (const auto unpacker = unpacker_of(bytes))
        return Error{Errc::invalid_argument,
                     fmt::format("{}: it is compressed: unpack it with {} first", what, *unpacker)};
    TarArchive archive = GM_TRY_CONTEXT(TarArchive::read(std::move(bytes)), what);
    return host_tree_of(std::move(archive));
}

}  // namespace guestmem::dma

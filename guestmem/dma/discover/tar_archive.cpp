// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/tar_archive.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

namespace guestmem::dma {
namespace {

constexpr std::size_t block_bytes = 512;

/// A field of the header; POSIX.1-1988, table 10-1.
struct Field {
    std::size_t offset;
    std::size_t size_bytes;
};
constexpr Field name_field{0, 100};
constexpr Field mode_field{100, 8};
constexpr Field user_field{108, 8};
constexpr Field group_field{116, 8};
constexpr Field size_field{124, 12};
constexpr Field time_field{136, 12};
constexpr Field sum_field{148, 8};
constexpr std::size_t type_offset = 156;
constexpr Field target_field{157, 100};
constexpr Field magic_field{257, 8};
constexpr Field prefix_field{345, 155};

/// Eleven octal digits.
constexpr std::size_t largest_size_bytes = (std::size_t{1} << 33) - 1;
constexpr std::string_view ustar_magic{"ustar\00000", 8};

std::string_view field_of(std::string_view block, Field field) {
    return block.substr(field.offset, field.size_bytes);
}

std::string_view text_of(std::string_view block, Field field) {
    const std::string_view text = field_of(block, field);
    return text.substr(0, text.find('\0'));
}

/// Octal digits with blanks or zero bytes around them, or with the first bit set a number of 256 as its base.
std::optional<std::uint64_t> number_of(std::string_view text) {
    std::uint64_t value = 0;
    if ((static_cast<unsigned char>(text.front()) & 0x80) != 0) {
        for (std::size_t i = 0; i < text.size(); ++i) {
            const auto byte = static_cast<unsigned char>(text[i]);
            if (value >> 55 != 0) return std::nullopt;
            value = value << 8 | (i == 0 ? byte & 0x7f : byte);
        }
        return value;
    }
    while (text.starts_with(' ')) text.remove_prefix(1);
    while (text.ends_with(' ') || text.ends_with('\0')) text.remove_suffix(1);
    if (text.empty()) return 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
    if (error != std::errc{} || stop != text.data() + text.size()) return std::nullopt;
    return value;
}

std::uint64_t sum_of(std::string_view block) {
    std::uint64_t sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    // The sum's own field counts as blanks.
    for (const char c : field_of(block, sum_field)) sum += ' ' - std::uint64_t{static_cast<unsigned char>(c)};
    return sum;
}

/// Why a path is none of a file below the root; nothing when it is one.
std::optional<std::string_view> path_problem(std::string_view path) {
    if (path.empty()) return "no name";
    if (path.size() > max_tar_name_bytes) return "a name that is too long";
    if (path.front() == '/') return "an absolute name";
    if (path.contains('\0')) return "a zero byte in a name";
    for (std::size_t at = 0; at <= path.size();) {
        const std::size_t slash = std::min(path.find('/', at), path.size());
        const std::string_view part = path.substr(at, slash - at);
        if (part == "..") return "a name that leads outside";
        if (part.empty() || part == ".") return "a name with an empty part";
        at = slash + 1;
    }
    return std::nullopt;
}

/// Where a path is cut so that its parts fit prefix and name; nothing when they do not.
std::optional<std::size_t> split_of(std::string_view path) {
    for (std::size_t at = path.find('/'); at != std::string_view::npos; at = path.find('/', at + 1)) {
        if (at > prefix_field.size_bytes) return std::nullopt;
        if (at > 0 && path.size() - at - 1 <= name_field.size_bytes) return at;
    }
    return std::nullopt;
}

constexpr std::size_t padding_of(std::size_t size_bytes) {
    return (block_bytes - size_bytes % block_bytes) % block_bytes;
}

}  // namespace

std::string printable_name(std::string_view name) {
    constexpr std::size_t most_bytes = 60;
    std::string text{name.substr(0, most_bytes)};
    for (char& c : text)
        if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
    return name.size() > most_bytes ? text + "..." : text;
}

/// Goes through the blocks.
class TarReader {
public:
    explicit TarReader(std::string bytes) {
        archive_.bytes_ = std::make_unique<std::string>(std::move(bytes));
    }

    Result<TarArchive> run() {
        while (GM_TRY(read_entry())) {
        }
        GM_TRY(check_tree());
        return std::move(archive_);
    }

private:
    Error broken(std::string_view what) const {
        return {Errc::corrupt, fmt::format("archive, offset {:#x}: {}", header_at_, what)};
    }

    /// The next bytes; an error when the archive ends before.
    Result<std::string_view> take(std::size_t size_bytes) {
        const std::string_view rest = std::string_view{*archive_.bytes_}.substr(at_);
        if (size_bytes > rest.size())
            return broken(fmt::format("{} bytes are said to follow, and {} do", size_bytes, rest.size()));
        // The last padding may be cut off: nothing is in it.
        at_ += size_bytes + std::min(padding_of(size_bytes), rest.size() - size_bytes);
        return rest.substr(0, size_bytes);
    }

    /// False at the end.
    Result<bool> read_entry() {
        header_at_ = at_;
        if (at_ == archive_.bytes_->size()) {
            if (at_ == 0) return broken("it is empty");
            return broken("it ends without the block of zeros that ends an archive: the rest of it is missing");
        }
        const std::string_view block = GM_TRY(take(block_bytes));
        if (std::ranges::all_of(block, [](char c) { return c == '\0'; })) {
            if (header_at_ == 0) return broken("it has no entries");
            return false;
        }
        const auto sum = number_of(field_of(block, sum_field));
        if (!sum || *sum != sum_of(block))
            return broken("this is no header of a tar archive: its sum is wrong");
        const auto header_size = number_of(field_of(block, size_field));
        if (!header_size) return broken("its size is no number");
        const char type = block[type_offset];
        const bool has_content = type == '0' || type == '\0' || type == '7';
        const std::uint64_t size_bytes = has_content ? size_.value_or(*header_size) : *header_size;
        // Links and folders have none, whatever their size says.
        const bool is_bare = type == '1' || type == '2' || type == '5';
        const std::string_view content = GM_TRY(take(is_bare ? 0 : size_bytes));
        switch (type) {
            case 'L': return set_long(long_name_, content);
            case 'K': return set_long(long_target_, content);
            case 'x': return read_pax(content);
            case 'g': return true;
            case '5': break;
            case '2': GM_TRY(add(block, TarEntry::Kind::link, {})); break;
            case '0':
            case '\0':
            case '7': GM_TRY(add(block, TarEntry::Kind::file, content)); break;
            case '1': return broken("a hard link: only files and symbolic links are taken");
            default:
                return broken(fmt::format("an entry of type {:#04x}: only files and symbolic links are taken",
                                          static_cast<unsigned char>(type)));
        }
        long_name_.reset();
        long_target_.reset();
        size_.reset();
        return true;
    }

    Result<bool> set_long(std::optional<std::string_view>& text, std::string_view content) {
        text = content.substr(0, content.find('\0'));
        if (text->size() > max_tar_name_bytes) return broken("a name that is too long");
        return true;
    }

    /// "LENGTH KEY=VALUE\n" again and again.
    Result<bool> read_pax(std::string_view records) {
        while (!records.empty()) {
            std::size_t length = 0;
            const auto [stop, error] =
                std::from_chars(records.data(), records.data() + records.size(), length, 10);
            const auto digits = static_cast<std::size_t>(stop - records.data());
            if (error != std::errc{} || length > records.size() || length < digits + 3 ||
                records[digits] != ' ' || records[length - 1] != '\n')
                return broken("an extended header that is none");
            const std::string_view pair = records.substr(digits + 1, length - digits - 2);
            const std::size_t equals = pair.find('=');
            if (equals == std::string_view::npos) return broken("an extended header without a value");
            GM_TRY(set_pax(pair.substr(0, equals), pair.substr(equals + 1)));
            records.remove_prefix(length);
        }
        return true;
    }

    Result<void> set_pax(std::string_view key, std::string_view value) {
        if (key.starts_with("GNU.sparse")) return broken("a file with holes: it is not taken");
        if (key == "path" || key == "linkpath") {
            if (value.size() > max_tar_name_bytes) return broken("a name that is too long");
            (key == "path" ? long_name_ : long_target_) = value;
        }
        if (key == "size") {
            std::uint64_t size_bytes = 0;
            const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), size_bytes);
            if (error != std::errc{} || stop != value.data() + value.size())
                return broken("a size that is no number");
            size_ = size_bytes;
        }
        return {};
    }

    std::string_view name_of(std::string_view block) {
        if (long_name_) return *long_name_;
        const std::string_view name = text_of(block, name_field);
        // GNU tar's own magic has other fields where POSIX has the prefix.
        const bool is_posix = field_of(block, magic_field).substr(0, 6) == ustar_magic.substr(0, 6);
        const std::string_view prefix = is_posix ? text_of(block, prefix_field) : std::string_view{};
        if (prefix.empty()) return name;
        archive_.joined_names_.push_back(std::make_unique<std::string>(fmt::format("{}/{}", prefix, name)));
        return *archive_.joined_names_.back();
    }

    Result<void> add(std::string_view block, TarEntry::Kind kind, std::string_view content) {
        if (archive_.entries_.size() == max_tar_entries)
            return Error{Errc::out_of_range, fmt::format("archive: more than {} entries", max_tar_entries)};
        std::string_view path = name_of(block);
        while (path.starts_with("./")) path.remove_prefix(2);
        if (const auto problem = path_problem(path))
            return broken(fmt::format("{}: '{}'", *problem, printable_name(path)));
        if (kind == TarEntry::Kind::link) {
            content = long_target_.value_or(text_of(block, target_field));
            if (content.empty() || content.contains('\0')) return broken("a link without a target");
        }
        archive_.entries_.push_back({.path = path, .content = content, .kind = kind});
        return {};
    }

    /// Each name once, and none below a file or a link.
    Result<void> check_tree() {
        auto& entries = archive_.entries_;
        if (!std::ranges::is_sorted(entries, {}, &TarEntry::path))
            std::ranges::sort(entries, {}, &TarEntry::path);
        const auto twice = std::ranges::adjacent_find(entries, {}, &TarEntry::path);
        if (twice != entries.end())
            return Error{Errc::corrupt,
                         fmt::format("archive: '{}' is in it twice", printable_name(twice->path))};
        // The entries around this one's folders: a stack of those whose name the next one could begin with.
        std::vector<std::string_view> above;
        for (const TarEntry& entry : entries) {
            while (!above.empty() && !entry.path.starts_with(above.back())) above.pop_back();
            for (const std::string_view name : above)
                if (entry.path[name.size()] == '/')
                    return Error{Errc::corrupt, fmt::format("archive: '{}' is below a file or link",
                                                            printable_name(entry.path))};
            above.push_back(entry.path);
        }
        return {};
    }

    TarArchive archive_;
    std::size_t at_ = 0;
    std::size_t header_at_ = 0;
    std::optional<std::string_view> long_name_;
    std::optional<std::string_view> long_target_;
    std::optional<std::uint64_t> size_;
};

Result<TarArchive> TarArchive::read(std::string bytes) { return TarReader{std::move(bytes)}.run(); }

const TarEntry* TarArchive::find(std::string_view path) const {
    const auto at = std::ranges::lower_bound(entries_, path, {}, &TarEntry::path);
    return at != entries_.end() && at->path == path ? &*at : nullptr;
}

Result<void> TarWriter::add_file(std::string_view path, std::string_view content) {
    if (const auto problem = path_problem(path))
        return Error{Errc::invalid_argument, fmt::format("{}: '{}'", *problem, printable_name(path))};
    if (content.size() > largest_size_bytes)
        return Error{Errc::invalid_argument, fmt::format("'{}': {} bytes are too many for tar",
                                                         printable_name(path), content.size())};
    add_header(path, {}, '0', content.size());
    add_content(content);
    return {};
}

Result<void> TarWriter::add_link(std::string_view path, std::string_view target) {
    if (const auto problem = path_problem(path))
        return Error{Errc::invalid_argument, fmt::format("{}: '{}'", *problem, printable_name(path))};
    if (target.empty() || target.size() > max_tar_name_bytes || target.contains('\0'))
        return Error{Errc::invalid_argument,
                     fmt::format("the target of link '{}': {} bytes", printable_name(path), target.size())};
    add_header(path, target, '2', 0);
    return {};
}

std::string TarWriter::finish() && {
    bytes_.append(2 * block_bytes, '\0');
    return std::move(bytes_);
}

void TarWriter::add_long_text(char type, std::string_view text) {
    add_header("././@LongLink", {}, type, text.size() + 1);
    std::string terminated{text};
    terminated.push_back('\0');
    add_content(terminated);
}

void TarWriter::add_header(std::string_view path, std::string_view target, char type,
                           std::uint64_t size_bytes) {
    std::string_view name = path;
    std::string_view prefix;
    if (name.size() > name_field.size_bytes) {
        if (const auto at = split_of(path)) {
            prefix = path.substr(0, *at);
            name = path.substr(*at + 1);
        } else {
            add_long_text('L', path);
            name = path.substr(0, name_field.size_bytes);
        }
    }
    if (target.size() > target_field.size_bytes) {
        add_long_text('K', target);
        target = target.substr(0, target_field.size_bytes);
    }
    std::array<char, block_bytes> block{};
    const auto set = [&](Field field, std::string_view text) {
        std::ranges::copy(text, block.begin() + static_cast<std::ptrdiff_t>(field.offset));
    };
    set(name_field, name);
    set(mode_field, type == '2' ? "0000777" : "0000644");
    set(user_field, "0000000");
    set(group_field, "0000000");
    set(size_field, fmt::format("{:011o}", size_bytes));
    set(time_field, "00000000000");
    block[type_offset] = type;
    set(target_field, target);
    set(magic_field, ustar_magic);
    set(prefix_field, prefix);
    set(sum_field, fmt::format("{:06o}", sum_of({block.data(), block.size()})));
    block[sum_field.offset + 7] = ' ';
    bytes_.append(block.data(), block.size());
}

void TarWriter::add_content(std::string_view content) {
    bytes_.append(content);
    bytes_.append(padding_of(content.size()), '\0');
}

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/process_memory.hpp"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cerrno>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/kernel_text.hpp"

namespace guestmem {
namespace {

constexpr std::string_view deleted_mark = " (deleted)";

/// A line of an entry: "Rss:    12 kB".
struct Line {
    std::string_view key;
    std::uint64_t ProcessMapping::* member;
};
constexpr std::size_t count_required = 2;  ///< the first ones: each kernel with a smaps has them
constexpr std::array<Line, 15> lines{{{"Rss", &ProcessMapping::resident_bytes},
                                      {"Pss", &ProcessMapping::proportional_bytes},
                                      {"KernelPageSize", &ProcessMapping::page_bytes},
                                      {"Shared_Clean", &ProcessMapping::shared_clean_bytes},
                                      {"Shared_Dirty", &ProcessMapping::shared_dirty_bytes},
                                      {"Private_Clean", &ProcessMapping::private_clean_bytes},
                                      {"Private_Dirty", &ProcessMapping::private_dirty_bytes},
                                      {"Anonymous", &ProcessMapping::anonymous_bytes},
                                      {"AnonHugePages", &ProcessMapping::anonymous_huge_bytes},
                                      {"ShmemPmdMapped", &ProcessMapping::shmem_huge_bytes},
                                      {"FilePmdMapped", &ProcessMapping::file_huge_bytes},
                                      {"Shared_Hugetlb", &ProcessMapping::shared_hugetlb_bytes},
                                      {"Private_Hugetlb", &ProcessMapping::private_hugetlb_bytes},
                                      {"Swap", &ProcessMapping::swapped_bytes},
                                      {"SwapPss", &ProcessMapping::swapped_proportional_bytes}}};

/// The letters up to `separator`, which is taken away too; nothing when it is not there.
std::optional<std::string_view> take_until(std::string_view& text, char separator) {
    const std::size_t at = text.find(separator);
    if (at == std::string_view::npos) return std::nullopt;
    const std::string_view taken = text.substr(0, at);
    text.remove_prefix(at + 1);
    return taken;
}

template <typename Number>
bool read_number(std::optional<std::string_view> digits, int base, Number& number) {
    if (!digits) return false;
    const char* const stop = digits->data() + digits->size();
    const auto [rest, status] = std::from_chars(digits->data(), stop, number, base);
    return status == std::errc{} && rest == stop;
}

bool read_permissions(std::optional<std::string_view> letters, ProcessMapping& mapping) {
    if (!letters || letters->size() != 4) return false;
    const auto is_one_of = [&](std::size_t at, std::string_view both) {
        return both.contains((*letters)[at]);
    };
    if (!is_one_of(0, "r-") || !is_one_of(1, "w-") || !is_one_of(2, "x-") || !is_one_of(3, "sp"))
        return false;
    mapping.is_readable = (*letters)[0] == 'r';
    mapping.is_writable = (*letters)[1] == 'w';
    mapping.is_executable = (*letters)[2] == 'x';
    mapping.sharing = (*letters)[3] == 's' ? MapSharing::shared : MapSharing::private_copy;
    return true;
}

/// The kernel writes a line end in a file's name as \012, and nothing else in another way.
std::string unescaped(std::string_view text) {
    constexpr std::string_view escape = "\\012";
    std::string plain;
    for (std::size_t at = text.find(escape); at != std::string_view::npos; at = text.find(escape)) {
        plain += text.substr(0, at);
        plain += '\n';
        text.remove_prefix(at + escape.size());
    }
    return plain.append(text);
}

/// See proc_pid_maps(5): "55d0-55d1 r-xp 00001000 fe:00 1234      /bin/cat".
std::optional<ProcessMapping> read_head(std::string_view line) {
    ProcessMapping mapping;
    std::uint64_t behind = 0;  // the first address behind it
    if (!read_number(take_until(line, '-'), 16, mapping.base) ||
        !read_number(take_until(line, ' '), 16, behind) || behind <= mapping.base)
        return std::nullopt;
    mapping.size_bytes = behind - mapping.base;
    if (!read_permissions(take_until(line, ' '), mapping) ||
        !read_number(take_until(line, ' '), 16, mapping.offset_bytes) ||
        !read_number(take_until(line, ':'), 16, mapping.device_major) ||
        !read_number(take_until(line, ' '), 16, mapping.device_minor))
        return std::nullopt;
    // A kernel writes a blank behind the number also where no name follows.
    const std::size_t digits = line.find(' ');
    if (!read_number(line.substr(0, digits), 10, mapping.inode)) return std::nullopt;
    line.remove_prefix(digits == std::string_view::npos ? line.size() : digits);
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    mapping.is_deleted = mapping.has_file() && line.ends_with(deleted_mark);
    if (mapping.is_deleted) line.remove_suffix(deleted_mark.size());
    mapping.name = unescaped(line);
    return mapping;
}

/// Whether it begins like an address range; keys begin with an upper-case letter.
bool is_head(std::string_view line) {
    return !line.empty() && ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f'));
}

std::string_view trimmed(std::string_view text) {
    const std::size_t first = text.find_first_not_of(' ');
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

/// "   12 kB" -> 12288.
std::optional<std::uint64_t> read_kib(std::string_view text) {
    constexpr std::string_view unit = " kB";
    if (!text.ends_with(unit)) return std::nullopt;
    const auto kib = parse_kernel_number(text.substr(0, text.size() - unit.size()));
    if (!kib || *kib > std::numeric_limits<std::uint64_t>::max() / 1024) return std::nullopt;
    return *kib * 1024;
}

/// Gathers entries line by line.
class Reader {
public:
    explicit Reader(const std::string& path) : path_(path) {}

    Result<void> take(std::string_view line) {
        if (is_head(line)) {
            GM_TRY(finish());
            auto head = read_head(line);
            if (!head)
                return unexpected_text(path_, line, "a mapping (ADDRESS-ADDRESS rwxp OFFSET DEV INODE)");
            current_ = *std::move(head);
            return {};
        }
        const std::size_t colon = line.find(':');
        if (colon == std::string_view::npos || !current_)
            return unexpected_text(path_, line, current_ ? "a line 'KEY: VALUE'" : "the begin of a mapping");
        return take_value(line.substr(0, colon), line.substr(colon + 1), line);
    }

    Result<std::vector<ProcessMapping>> done() {
        GM_TRY(finish());
        return std::move(mappings_);
    }

private:
    Result<void> take_value(std::string_view key, std::string_view value, std::string_view line) {
        if (key == "VmFlags") {
            current_->flags = trimmed(value);
            return {};
        }
        if (key == "Size") {
            if (read_kib(value) != current_->size_bytes)
                return unexpected_text(
                    path_, line, fmt::format("the size of a mapping of {} bytes", current_->size_bytes));
            has_size_ = true;
            return {};
        }
        for (std::size_t at = 0; at < lines.size(); ++at) {
            if (lines[at].key != key) continue;
            const auto bytes = read_kib(value);
            if (!bytes || seen_[at])
                return unexpected_text(path_, line, fmt::format("the one '{}: NUMBER kB'", key));
            seen_[at] = true;
            (*current_).*lines[at].member = *bytes;
            return {};
        }
        return {};
    }

    /// The entry is whole: into the list.
    Result<void> finish() {
        if (!current_) return {};
        std::string_view missing = has_size_ ? "" : "Size";
        for (std::size_t at = 0; at < count_required; ++at)
            if (!seen_[at] && missing.empty()) missing = lines[at].key;
        if (!missing.empty())
            return Error{Errc::corrupt, fmt::format("{}: the mapping at {:#x} has no line '{}: NUMBER kB'",
                                                    path_, current_->base, missing)};
        while (!mappings_.empty() && mappings_.back().last() >= current_->base) mappings_.pop_back();
        mappings_.push_back(*std::exchange(current_, std::nullopt));
        seen_.reset();
        has_size_ = false;
        return {};
    }

    const std::string& path_;
    std::vector<ProcessMapping> mappings_;
    std::optional<ProcessMapping> current_;
    std::bitset<lines.size()> seen_;
    bool has_size_ = false;
};

/// Why a process' file could not be read, in words of the process.
Error refuse(std::int32_t pid, const Error& error) {
    switch (error.os_error()) {
        case ENOENT:
            return Error{Errc::not_found, ENOENT, fmt::format("process {}: there is no such process", pid)};
        case ESRCH:
            return Error{Errc::unavailable, ESRCH,
                         fmt::format("process {}: it ended while it was looked at", pid)};
        case EACCES:
        case EPERM:
            return Error{Errc::permission_denied, error.os_error(),
                         fmt::format("process {}: its memory is not shown to this user; be its user or root "
                                     "(CAP_SYS_PTRACE): {}",
                                     pid, error.message())};
        default: return Error{error}.with_context(fmt::format("process {}", pid));
    }
}

}  // namespace

bool ProcessMapping::has_flag(std::string_view flag) const {
    std::string_view rest = flags;
    while (!rest.empty()) {
        const std::string_view word = rest.substr(0, rest.find(' '));
        if (word == flag) return true;
        rest.remove_prefix(std::min(word.size() + 1, rest.size()));
    }
    return false;
}

Result<std::vector<ProcessMapping>> parse_smaps(std::string_view text, const std::string& path) {
    Reader reader{path};
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find('\n'));
        GM_TRY(reader.take(line));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
    }
    return reader.done();
}

Result<std::vector<ProcessMapping>> process_mappings(std::int32_t pid, const std::string& proc) {
    if (pid <= 0) return Error{Errc::invalid_argument, fmt::format("{} is no number of a process", pid)};
    const std::string path = fmt::format("{}/{}/smaps", proc, pid);
    const auto text = read_text_file(path, max_smaps_bytes);
    if (!text) return refuse(pid, text.error());
    // The text of a process that ends meanwhile stops between two mappings, and nothing in it says so.
    const auto sizes = read_text_file(fmt::format("{}/{}/statm", proc, pid), max_kernel_number_bytes);
    if (!sizes && sizes.error().os_error() != ENOENT) return refuse(pid, sizes.error());
    if (!sizes || sizes->starts_with("0 ") || text->empty())
        return Error{
            Errc::unavailable,
            fmt::format("process {}: it has no memory: it ended, or is a thread of the kernel", pid)};
    return parse_smaps(*text, path);
}

bool shows_file(const ProcessMapping& mapping, const FileFacts& file, std::string_view path) {
    if (!mapping.has_file() || mapping.inode != file.inode) return false;
    return (mapping.device_major == ::gnu_dev_major(file.device) &&
            mapping.device_minor == ::gnu_dev_minor(file.device)) ||
           mapping.name == path;
}

Result<ProcessFaults> process_faults(std::int32_t pid, const std::string& proc) {
    const std::string path = fmt::format("{}/{}/stat", proc, pid);
    const auto text = read_text_file(path, max_kernel_number_bytes);
    if (!text) return refuse(pid, text.error());
    // The second field is a name in parentheses, with whatever its process likes in it; the third follows the last one.
    constexpr std::size_t minor_field = 10;
    constexpr std::size_t major_field = 12;
    std::size_t at = text->rfind(')');
    ProcessFaults faults;
    for (std::size_t field = 3; field <= major_field; ++field) {
        const std::size_t begin = at == std::string::npos ? at : text->find_first_not_of(' ', at + 1);
        if (begin == std::string::npos)
            return Error{Errc::corrupt, fmt::format("{}: it ends before field {}", path, field)};
        at = text->find(' ', begin);
        if (field != minor_field && field != major_field) continue;
        const auto number = parse_kernel_number(std::string_view{*text}.substr(begin, at - begin));
        if (!number) return Error{Errc::corrupt, fmt::format("{}: field {} is no number", path, field)};
        (field == minor_field ? faults.minor : faults.major) = *number;
        if (at != std::string::npos) --at;
    }
    return faults;
}

Result<std::vector<ProcessMapping>> own_mappings() {
    const std::string path = "/proc/self/smaps";
    return parse_smaps(GM_TRY(read_text_file(path, max_smaps_bytes)), path);
}

}  // namespace guestmem

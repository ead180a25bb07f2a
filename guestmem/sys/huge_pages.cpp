// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/huge_pages.hpp"

#include <dirent.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <limits>
#include <memory>
#include <string_view>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/kernel_text.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t no_end = std::numeric_limits<std::uint64_t>::max();

std::uint64_t minus_or_zero(std::uint64_t from, std::uint64_t what) { return from - std::min(from, what); }

/// "hugepages-2048kB" -> 2097152; nothing for any other name.
std::optional<std::uint64_t> page_bytes_of(std::string_view name) {
    constexpr std::string_view before = "hugepages-";
    constexpr std::string_view unit = "kB";
    if (!name.starts_with(before) || !name.ends_with(unit)) return std::nullopt;
    name.remove_prefix(before.size());
    name.remove_suffix(std::min(unit.size(), name.size()));
    const auto kib = parse_kernel_number(name);
    if (!kib || !std::has_single_bit(*kib) || *kib > no_end / 1024) return std::nullopt;
    return *kib * 1024;
}

/// The names in a folder; none when it is not there.
Result<std::vector<std::string>> names_in(const std::string& path) {
    DIR* opened = nullptr;
    const int status = checked_call(SysCall::open, [&] {
        opened = ::opendir(path.c_str());
        return opened == nullptr ? -1 : 0;
    });
    std::vector<std::string> names;
    if (status < 0 && errno == ENOENT) return names;
    if (status < 0) return Error::from_errno(errno, fmt::format("open folder {}", path));
    const std::unique_ptr<DIR, int (*)(DIR*)> folder{opened, &::closedir};
    for (;;) {
        const dirent* entry = nullptr;
        errno = 0;  // the end of the folder leaves it so
        const int error = checked_call(SysCall::read, [&] {
            entry = ::readdir(folder.get());
            return entry == nullptr && errno != 0 ? -1 : 0;
        });
        if (error < 0) return Error::from_errno(errno, fmt::format("read folder {}", path));
        if (entry == nullptr) return names;
        names.emplace_back(entry->d_name);
    }
}

}  // namespace

std::uint64_t HugePagePool::available_pages() const {
    const std::uint64_t there = minus_or_zero(count_free, count_reserved);
    const std::uint64_t surplus = minus_or_zero(count_overcommit, count_surplus);
    return surplus > no_end - there ? no_end : there + surplus;
}

Result<std::vector<HugePagePool>> huge_page_pools(const std::string& root) {
    std::vector<HugePagePool> pools;
    for (const std::string& name : GM_TRY(names_in(root))) {
        const auto page_bytes = page_bytes_of(name);
        if (!page_bytes) continue;
        const std::string pool = fmt::format("{}/{}", root, name);
        pools.push_back({.page_bytes = *page_bytes,
                         .count_total = GM_TRY(read_kernel_number(pool + "/nr_hugepages")),
                         .count_free = GM_TRY(read_kernel_number(pool + "/free_hugepages")),
                         .count_reserved = GM_TRY(read_kernel_number(pool + "/resv_hugepages")),
                         .count_surplus = GM_TRY(read_kernel_number(pool + "/surplus_hugepages")),
                         .count_overcommit = GM_TRY(read_kernel_number(pool + "/nr_overcommit_hugepages"))});
    }
    std::ranges::sort(pools, {}, &HugePagePool::page_bytes);
    return pools;
}

std::optional<std::uint64_t> default_huge_page_bytes(const std::string& meminfo) {
    constexpr std::size_t limit_bytes = 64 * 1024;
    const auto text = read_text_file(meminfo, limit_bytes);
    if (!text) return std::nullopt;
    const auto page_bytes = meminfo_bytes(*text, "Hugepagesize:");
    if (!page_bytes || !std::has_single_bit(*page_bytes)) return std::nullopt;
    return page_bytes;
}

}  // namespace guestmem

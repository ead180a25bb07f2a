// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/mapping.hpp"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

std::uint64_t page_bytes() { return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)); }

/// The page size of mappings of this file: huge ones have pages of their own.
Result<std::uint64_t> page_bytes_of(FdView fd) {
    struct statfs facts{};
    if (checked_call(SysCall::stat, [&] { return ::fstatfs(fd.number(), &facts); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for the file system of descriptor {}", fd.number()));
    if (facts.f_type != HUGETLBFS_MAGIC) return page_bytes();
    return static_cast<std::uint64_t>(facts.f_bsize);
}

/// mmap(2), through the injector.
Result<std::byte*> map_pages(void* at, std::uint64_t size_bytes, int protection, int flags, int fd,
                             std::uint64_t offset_bytes, const std::string& what) {
    void* mapped = MAP_FAILED;
    const int status = checked_call(SysCall::mmap, [&] {
        mapped = ::mmap(at, size_bytes, protection, flags, fd, static_cast<off_t>(offset_bytes));
        return mapped == MAP_FAILED ? -1 : 0;
    });
    if (status < 0) return Error::from_errno(errno, what);
    return static_cast<std::byte*>(mapped);
}

int flags_of(MapSharing sharing, MapReserve reserve, bool is_usual) {
    const bool is_reserved = reserve == MapReserve::usual ? is_usual : reserve == MapReserve::now;
    return (sharing == MapSharing::shared ? MAP_SHARED : MAP_PRIVATE) | (is_reserved ? 0 : MAP_NORESERVE);
}

/// `size` rounded up to a multiple of `unit`, a power of two; 0 when that is more than fits.
std::uint64_t round_up(std::uint64_t size, std::uint64_t unit) { return (size + unit - 1) & ~(unit - 1); }

}  // namespace

/// What to map, once it has been checked.
struct Mapping::Plan {
    int fd = -1;
    std::uint64_t size_bytes = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t guard_bytes = 0;
    std::uint64_t page_bytes = 0;
    std::uint64_t align_bytes = 0;
    int protection = 0;
    int flags = 0;
    std::string what;
};

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    if (this != &other) {
        reset();
        bytes_ = std::exchange(other.bytes_, {});
        whole_ = std::exchange(other.whole_, {});
        protection_ = other.protection_;
    }
    return *this;
}

void Mapping::reset() noexcept {
    if (!whole_.empty()) ::munmap(whole_.data(), whole_.size());
    bytes_ = {};
    whole_ = {};
}

Result<Mapping> Mapping::map(const Plan& plan) {
    // More than this is no address space of ours; all sums below stay far from 2^64.
    constexpr std::uint64_t limit = std::uint64_t{1} << 56;
    if (plan.size_bytes == 0 || plan.size_bytes > limit || plan.guard_bytes > limit)
        return Error{
            Errc::out_of_range,
            fmt::format("{}: a mapping has 1 to {} bytes and a guard at most as many", plan.what, limit)};
    if (plan.align_bytes > limit || (plan.align_bytes & (plan.align_bytes - 1)) != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: alignment {} is not a power of two, at most {}",
                                                         plan.what, plan.align_bytes, limit)};
    const std::uint64_t align = std::max(plan.align_bytes, plan.page_bytes);
    const std::uint64_t shown = round_up(plan.size_bytes, plan.page_bytes);
    const std::uint64_t guard = round_up(plan.guard_bytes, plan.page_bytes);
    if (guard == 0 && align == plan.page_bytes) {
        std::byte* at = GM_TRY(
            map_pages(nullptr, shown, plan.protection, plan.flags, plan.fd, plan.offset_bytes, plan.what));
        return Mapping{std::span{at, plan.size_bytes}, std::span{at, shown}, plan.protection};
    }
    // Room for the whole, nothing accessible; then the bytes take the place of its middle.
    const std::uint64_t room = guard + shown + guard + (align - page_bytes());
    std::byte* reserved =
        GM_TRY(map_pages(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
                         plan.what + ": reserve room for it and its guards"));
    Mapping mapping{{}, std::span{reserved, room}, plan.protection};
    const std::uint64_t start = round_up(reinterpret_cast<std::uintptr_t>(reserved) + guard, align) -
                                reinterpret_cast<std::uintptr_t>(reserved);
    std::byte* at = GM_TRY(map_pages(reserved + start, shown, plan.protection, plan.flags | MAP_FIXED,
                                     plan.fd, plan.offset_bytes, plan.what));
    mapping.bytes_ = std::span{at, plan.size_bytes};
    return mapping;
}

Result<Mapping> Mapping::create(FdView fd, std::uint64_t size_bytes, MapAccess access) {
    return create(fd, MappingOptions{.size_bytes = size_bytes, .access = access});
}

Result<Mapping> Mapping::create(FdView fd, const MappingOptions& options) {
    KnownFile facts = options.known;
    if (facts.size_bytes == 0) {
        facts.size_bytes = GM_TRY_CONTEXT(file_facts(fd), "map").size_bytes;
        facts.page_bytes = GM_TRY_CONTEXT(page_bytes_of(fd), "map");
    }
    const std::uint64_t page = facts.page_bytes;
    std::string what = fmt::format("map {} bytes at {} of descriptor {}", options.size_bytes,
                                   options.offset_bytes, fd.number());
    if (options.offset_bytes % page != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: the offset is not a multiple of the page size {}", what, page)};
    if (options.offset_bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max()))
        return Error{Errc::out_of_range, fmt::format("{}: no file reaches so far", what)};
    const std::uint64_t there =
        options.offset_bytes < facts.size_bytes ? facts.size_bytes - options.offset_bytes : 0;
    if (options.size_bytes == 0 || (options.size_bytes > there && !options.may_exceed_file))
        return Error{Errc::out_of_range, fmt::format("{}: the file has {} bytes", what, facts.size_bytes)};
    Plan plan{.fd = fd.number(),
              .size_bytes = options.size_bytes,
              .offset_bytes = options.offset_bytes,
              .guard_bytes = options.guard_bytes,
              .page_bytes = page,
              .align_bytes = options.align_bytes,
              .protection = options.access == MapAccess::read_only ? PROT_READ : PROT_READ | PROT_WRITE,
              .flags = flags_of(options.sharing, options.reserve, options.sharing == MapSharing::shared),
              .what = std::move(what)};
    return map(plan);
}

Result<Mapping> Mapping::create_anonymous(const AnonymousOptions& options) {
    return map({.fd = -1,
                .size_bytes = options.size_bytes,
                .offset_bytes = 0,
                .guard_bytes = options.guard_bytes,
                .page_bytes = page_bytes(),
                .align_bytes = options.align_bytes,
                .protection = PROT_READ | PROT_WRITE,
                .flags = MAP_ANONYMOUS | flags_of(options.sharing, options.reserve, false),
                .what = fmt::format("map {} bytes of anonymous memory", options.size_bytes)});
}

Result<void> Mapping::show_file(std::uint64_t offset_in_mapping, std::uint64_t size_bytes, FdView file,
                                std::uint64_t file_offset_bytes) {
    const std::string what =
        fmt::format("show {} bytes at {} of descriptor {} at {} of a mapping of {} bytes", size_bytes,
                    file_offset_bytes, file.number(), offset_in_mapping, bytes_.size());
    if (size_bytes == 0 || offset_in_mapping > bytes_.size() ||
        size_bytes > bytes_.size() - offset_in_mapping)
        return Error{Errc::out_of_range, fmt::format("{}: they are not within it", what)};
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), what);
    // Huge pages come as a whole; a mapping of usual ones cannot hold a part of them.
    const std::uint64_t page = std::max(GM_TRY_CONTEXT(page_bytes_of(file), what), page_bytes());
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data()) + offset_in_mapping;
    if (address % page != 0 || size_bytes % page != 0 || file_offset_bytes % page != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: not all of it is in multiples of the page size {}", what, page)};
    if (file_offset_bytes > facts.size_bytes || size_bytes > facts.size_bytes - file_offset_bytes)
        return Error{Errc::out_of_range, fmt::format("{}: the file has {} bytes", what, facts.size_bytes)};
    GM_TRY(map_pages(bytes_.data() + offset_in_mapping, size_bytes, protection_,
                     MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, file.number(), file_offset_bytes, what));
    return {};
}

Result<void> make_unreachable(std::span<std::byte> pages) {
    if (pages.empty()) return {};
    const int status =
        checked_call(SysCall::mprotect, [&] { return ::mprotect(pages.data(), pages.size(), PROT_NONE); });
    if (status == 0) return {};
    return Error::from_errno(
        errno, fmt::format("make {} bytes at {} unreachable", pages.size(), fmt::ptr(pages.data())));
}

void copy_to_shared(std::span<std::byte> to, std::span<const std::byte> from) {
    GM_CHECK(from.size() <= to.size());
    for (std::size_t i = 0; i < from.size(); ++i)
        std::atomic_ref{to[i]}.store(from[i], std::memory_order_relaxed);
}

void copy_from_shared(std::span<std::byte> to, std::span<const std::byte> from) {
    GM_CHECK(from.size() <= to.size());
    for (std::size_t i = 0; i < from.size(); ++i)
        // atomic_ref of a const type is C++26; the load writes nothing.
        to[i] = std::atomic_ref{const_cast<std::byte&>(from[i])}.load(std::memory_order_relaxed);
}

}  // namespace guestmem

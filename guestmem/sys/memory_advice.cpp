// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_advice.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

struct Verb {
    int advice;
    std::string_view name;
    bool is_destructive = false;
};

Verb verb_of(Advice advice) {
    switch (advice) {
        case Advice::mergeable: return {.advice = MADV_MERGEABLE, .name = "let equal pages be merged"};
        case Advice::unmergeable: return {.advice = MADV_UNMERGEABLE, .name = "keep equal pages apart"};
        case Advice::dont_dump: return {.advice = MADV_DONTDUMP, .name = "leave out of core dumps"};
        case Advice::do_dump: return {.advice = MADV_DODUMP, .name = "put into core dumps"};
        case Advice::dont_fork: return {.advice = MADV_DONTFORK, .name = "keep from children"};
        case Advice::huge_pages: return {.advice = MADV_HUGEPAGE, .name = "ask for huge pages"};
        case Advice::no_huge_pages: return {.advice = MADV_NOHUGEPAGE, .name = "ask for no huge pages"};
    }
    return {};
}

/// The kernel checks whether it knows an advice before it looks at the range: an empty one asks just that.
bool is_known(int advice) {
    return checked_call(SysCall::madvise, [&] { return ::madvise(nullptr, 0, advice); }) == 0;
}

Result<void> call(std::span<std::byte> bytes, const Verb& verb) {
    if (bytes.empty()) return {};
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::string what =
        fmt::format("{}: {} bytes at {}", verb.name, bytes.size(), fmt::ptr(bytes.data()));
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % page != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: begins within a page of {}", what, page)};
    if (verb.is_destructive && bytes.size() % page != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: ends within a page of {}", what, page)};
    const int status =
        checked_call(SysCall::madvise, [&] { return ::madvise(bytes.data(), bytes.size(), verb.advice); });
    if (status == 0) return {};
    const int os_error = errno;
    if (os_error == EINVAL && !is_known(verb.advice))
        return Error{Errc::unsupported, EINVAL, fmt::format("{}: this kernel cannot", what)};
    return Error::from_errno(os_error, what);
}

}  // namespace

Result<void> advise(std::span<std::byte> bytes, Advice advice) { return call(bytes, verb_of(advice)); }

Result<void> populate_write(std::span<std::byte> bytes) {
    return call(bytes, {.advice = MADV_POPULATE_WRITE, .name = "populate for writing"});
}

Result<void> populate_read(std::span<std::byte> bytes) {
    return call(bytes, {.advice = MADV_POPULATE_READ, .name = "populate for reading"});
}

void unlock_pages(std::span<std::byte> bytes) noexcept {
    if (!bytes.empty()) static_cast<void>(::munlock(bytes.data(), bytes.size()));
}

Result<void> discard_pages(std::span<std::byte> bytes) {
    return call(bytes, {.advice = MADV_DONTNEED, .name = "discard pages", .is_destructive = true});
}

Result<void> remove_pages(std::span<std::byte> bytes) {
    return call(bytes, {.advice = MADV_REMOVE, .name = "remove pages", .is_destructive = true});
}

}  // namespace guestmem

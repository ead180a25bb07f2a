// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memfd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

/// MFD_HUGE_SHIFT of <linux/memfd.h>, which glibc's <sys/mman.h> leaves out.
constexpr unsigned huge_page_shift = 26;

struct SealName {
    int bit;
    const char* name;
};
constexpr std::array<SealName, 5> seal_names{{{F_SEAL_SEAL, "seal"},
                                              {F_SEAL_SHRINK, "shrink"},
                                              {F_SEAL_GROW, "grow"},
                                              {F_SEAL_WRITE, "write"},
                                              {F_SEAL_FUTURE_WRITE, "future_write"}}};

/// -1 for a file that has no seals at all.
Result<int> seal_bits(FdView fd) {
    const int bits = checked_call(SysCall::get_seals, [&] { return ::fcntl(fd.number(), F_GET_SEALS); });
    if (bits >= 0) return bits;
    if (errno == EINVAL) return -1;
    return Error::from_errno(errno, fmt::format("seals of descriptor {}", fd.number()));
}

enum class Pages : std::uint8_t { now, later };

std::string name_of(const SealedMemoryOptions& options) {
    return fmt::format("memory '{}' of {} bytes", options.name, options.size_bytes);
}

Error step_error(const SealedMemoryOptions& options, std::string_view step) {
    return Error::from_errno(errno, fmt::format("{}: {}", name_of(options), step));
}

Result<unsigned> memfd_flags(const SealedMemoryOptions& options) {
    if (options.size_bytes == 0 || options.size_bytes % page_size_bytes != 0 ||
        options.size_bytes > (std::uint64_t{1} << 62))
        return Error{Errc::invalid_argument,
                     fmt::format("{}: the size is not whole pages", name_of(options))};
    constexpr unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (options.huge_page_bytes == 0) return flags;
    if (!std::has_single_bit(options.huge_page_bytes) || options.size_bytes % options.huge_page_bytes != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: the size is not whole huge pages of {} bytes",
                                                         name_of(options), options.huge_page_bytes)};
    return flags | MFD_HUGETLB |
           (static_cast<unsigned>(std::countr_zero(options.huge_page_bytes)) << huge_page_shift);
}

Result<Fd> create_memory(const SealedMemoryOptions& options, Pages pages, Sealing sealing) {
    const unsigned flags = GM_TRY(memfd_flags(options));
    Fd memory{
        checked_call(SysCall::memfd_create, [&] { return ::memfd_create(options.name.c_str(), flags); })};
    if (!memory.is_open()) return step_error(options, "memfd_create");
    const int number = memory.view().number();
    if (checked_call(SysCall::fchmod, [&] { return ::fchmod(number, 0600); }) < 0)
        return step_error(options, "set mode 0600");
    const auto size = static_cast<off_t>(options.size_bytes);
    if (checked_call(SysCall::ftruncate, [&] { return ::ftruncate(number, size); }) < 0)
        return step_error(options, "set the size");
    if (pages == Pages::now &&
        checked_call(SysCall::fallocate, [&] { return ::fallocate(number, 0, 0, size); }) < 0)
        return step_error(options, "allocate its pages");
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (sealing == Sealing::size &&
        checked_call(SysCall::add_seals, [&] { return ::fcntl(number, F_ADD_SEALS, seals); }) < 0)
        return step_error(options, "seal");
    return memory;
}

}  // namespace

Result<Fd> create_sealed_memory(const SealedMemoryOptions& options) {
    static_cast<void>(GM_TRY(memfd_flags(options)));
    if (options.huge_page_bytes == 0) {
        const std::uint64_t available = GM_TRY_CONTEXT(available_memory_bytes(), name_of(options));
        if (options.size_bytes > available)
            return Error{Errc::exhausted, ENOMEM,
                         fmt::format("{}: the host has {} bytes available; make it smaller or free memory",
                                     name_of(options), available)};
    }
    return create_memory(options, Pages::now, Sealing::size);
}

Result<Fd> create_sparse_memory(const SealedMemoryOptions& options, Sealing sealing) {
    return create_memory(options, Pages::later, sealing);
}

Result<std::vector<std::string>> seals_of(FdView fd) {
    const int bits = GM_TRY(seal_bits(fd));
    std::vector<std::string> names;
    if (bits < 0) return names;
    for (const SealName& seal : seal_names)
        if ((bits & seal.bit) != 0) names.emplace_back(seal.name);
    return names;
}

Result<void> seal_content(FdView fd) {
    constexpr int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (checked_call(SysCall::add_seals, [&] { return ::fcntl(fd.number(), F_ADD_SEALS, seals); }) < 0)
        return Error::from_errno(errno, "seal the content of a memory object");
    return {};
}

Result<bool> is_size_sealed(FdView fd) {
    const int bits = GM_TRY(seal_bits(fd));
    constexpr int needed = F_SEAL_SHRINK | F_SEAL_GROW;
    return bits >= 0 && (bits & needed) == needed;
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/sys/numa.hpp"

/// What a memory backend is asked to be, in QEMU's properties.
///
/// Concepts: each field is the property of that name of QEMU's memory-backend-ram, -memfd, -shm and -file; -physical is
/// ours. Properties that a kind has not keep their defaults.
/// Contract: a plain value; nothing is opened or asked. Whether it makes sense on this machine, plan.hpp says.
/// Threads: any.
/// Example:
///     const BackendOptions ram{.kind = BackendKind::file, .id = "ram0", .size_bytes = 2ULL << 30,
///                              .mem_path = "/var/lib/vm/a.ram", .is_readonly = true, .rom = Rom::off};

namespace guestmem {

enum class BackendKind : std::uint8_t { ram, memfd, shm, file, physical };

/// Whether the guest gets ROM. automatic: when it is readonly.
enum class Rom : std::uint8_t { automatic, on, off };

/// Where the kernel takes the pages from, among host_nodes.
using HostPolicy = NumaPolicy;

struct BackendOptions {
    BackendKind kind = BackendKind::ram;
    std::string id = {};
    std::uint64_t size_bytes = 0;
    std::optional<bool> is_shared = std::nullopt;  ///< nothing said: as is_shared_by_default()
    std::string mem_path = {};                     ///< file, physical
    bool is_readonly = false;                      ///< file, physical
    Rom rom = Rom::automatic;                      ///< file, physical
    std::uint64_t offset_bytes = 0;                ///< file, physical
    std::uint64_t align_bytes = 0;                 ///< file; 0: the page size of what is mapped
    bool is_discarded = false;                     ///< file: discard-data
    bool is_persistent = false;                    ///< file: pmem
    bool is_sealed = true;                         ///< memfd
    bool is_huge = false;                          ///< memfd: hugetlb
    std::uint64_t huge_page_bytes = 0;             ///< memfd: hugetlbsize; 0: the default size
    bool is_prealloc = false;
    std::uint64_t prealloc_threads = 0;  ///< 0: nothing said
    bool is_reserved = true;
    bool is_mergeable = true;
    bool is_dumped = true;
    std::vector<std::uint16_t> host_nodes = {};  ///< ascending, each once
    HostPolicy policy = HostPolicy::standard;

    friend bool operator==(const BackendOptions&, const BackendOptions&) = default;
};

/// The list of kinds, in QEMU's words.
struct BackendKindRow {
    BackendKind kind;
    std::string_view name;
    bool is_shared_by_default;
    std::string_view summary;
};
inline constexpr std::array<BackendKindRow, 5> backend_kinds{{
    {BackendKind::ram, "memory-backend-ram", false, "anonymous memory"},
    {BackendKind::memfd, "memory-backend-memfd", true, "an anonymous file, sealed; ordinary or huge pages"},
    {BackendKind::shm, "memory-backend-shm", true, "a POSIX shared memory object without a name"},
    {BackendKind::file, "memory-backend-file", false, "a file; on hugetlbfs of huge pages"},
    {BackendKind::physical, "memory-backend-physical", true,
     "a range of /dev/mem or of another device's memory"},
}};

[[nodiscard]] constexpr const BackendKindRow& row_of(BackendKind kind) {
    return backend_kinds[static_cast<std::size_t>(kind)];
}
[[nodiscard]] constexpr bool is_shared(const BackendOptions& options) {
    return options.is_shared.value_or(row_of(options.kind).is_shared_by_default);
}

}  // namespace guestmem

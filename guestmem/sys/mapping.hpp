// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A piece of our own address space that shows a file's bytes, or memory that is nobody's file.
///
/// Concepts: guard pages are pages on both sides that nobody may touch: an access that runs over an edge faults
/// instead of hitting what happens to lie there.
/// Contract: unmapped on destruction, guards included; valid for as long as it lives, also after the descriptor is
/// closed. The file's size is asked of the kernel before the bytes are mapped, unless the caller has just done that: a
/// mapping reaches past its end only when the caller says so. Whole pages are mapped, the bytes asked for are shown:
/// those between the last one and the end of its page are there, and behind them begins the guard.
/// Threads: the object one at a time; the bytes any, with the usual rules for memory that others write.
/// Limits: private memory is not reserved (MAP_NORESERVE) unless it is asked for: a shortage shows when it is written.
/// Example:
///     const Mapping ram = GM_TRY(Mapping::create_anonymous({.size_bytes = 64 << 20, .guard_bytes = 4096}));
/// Known holes: a file that can shrink under the mapping raises SIGBUS: map only sealed memory that comes from
/// others (memfd.hpp tells seals), or reach it by guarded.hpp. A private copy shows later writes of the file's
/// owner in pages that were not written here.

namespace guestmem {

enum class MapAccess : std::uint8_t { read_only, read_write };

/// Whether others see what is written here.
enum class MapSharing : std::uint8_t { shared, private_copy };

/// Whether the kernel counts the memory when it is mapped, and refuses what it cannot give, or when it is written.
/// usual: shared files now, all else later.
enum class MapReserve : std::uint8_t { usual, now, later };

/// What the caller knows of a file, so that the kernel need not be asked.
struct KnownFile {
    std::uint64_t size_bytes = 0;  ///< 0: not known
    std::uint64_t page_bytes = 0;  ///< of its mappings
};

struct MappingOptions {
    std::uint64_t size_bytes = 0;
    std::uint64_t offset_bytes = 0;  ///< where in the file; a multiple of the page size
    MapAccess access = MapAccess::read_write;
    MapSharing sharing = MapSharing::shared;
    std::uint64_t guard_bytes = 0;  ///< on each side; rounded up to pages
    std::uint64_t align_bytes = 0;  ///< of the first byte's address; a power of two, or 0: as pages are
    MapReserve reserve = MapReserve::usual;
    bool may_exceed_file = false;  ///< pages past the file's end raise SIGBUS until the file grows
    KnownFile known = {};
};

struct AnonymousOptions {
    std::uint64_t size_bytes = 0;
    std::uint64_t guard_bytes = 0;
    MapSharing sharing = MapSharing::private_copy;  ///< shared: with the children of a fork
    std::uint64_t align_bytes = 0;                  ///< as MappingOptions
    MapReserve reserve = MapReserve::usual;
};

class Mapping {
public:
    Mapping() = default;
    Mapping(Mapping&& other) noexcept
        : bytes_(std::exchange(other.bytes_, {})),
          whole_(std::exchange(other.whole_, {})),
          protection_(other.protection_) {}
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { reset(); }

    /// The first `size_bytes` of `fd`, shared.
    [[nodiscard]] static Result<Mapping> create(FdView fd, std::uint64_t size_bytes, MapAccess access);
    [[nodiscard]] static Result<Mapping> create(FdView fd, const MappingOptions& options);
    /// Zeros, readable and writable.
    [[nodiscard]] static Result<Mapping> create_anonymous(const AnonymousOptions& options);

    /// Puts a private copy of a file's bytes in the place of some of these, whole pages: what stood there is gone. They
    /// have the access of the mapping; the file has to reach to their end. After an error of mmap(2) itself the place
    /// may be empty.
    [[nodiscard]] Result<void> show_file(std::uint64_t offset_in_mapping, std::uint64_t size_bytes,
                                         FdView file, std::uint64_t file_offset_bytes);

    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

private:
    Mapping(std::span<std::byte> bytes, std::span<std::byte> whole, int protection)
        : bytes_(bytes), whole_(whole), protection_(protection) {}
    void reset() noexcept;

    struct Plan;
    static Result<Mapping> map(const Plan& plan);

    std::span<std::byte> bytes_;
    std::span<std::byte> whole_;  ///< guards and all: what is unmapped
    int protection_ = 0;          ///< of bytes_, as mmap(2) takes it
};

/// Makes pages fault for whoever touches them (PROT_NONE), because their bytes cannot be had: guarded accesses are
/// values, others die of SIGSEGV. Whole pages of our own mappings; what they held stays behind the door.
[[nodiscard]] Result<void> make_unreachable(std::span<std::byte> pages);

/// Copies into memory that others may read or write at the same time: byte by byte in address order, each byte
/// a relaxed atomic store, so that the compiler neither tears, repeats nor drops a store.
void copy_to_shared(std::span<std::byte> to, std::span<const std::byte> from);
/// The same the other way: each byte is read once.
void copy_from_shared(std::span<std::byte> to, std::span<const std::byte> from);

}  // namespace guestmem

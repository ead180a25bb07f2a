// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// Bytes of ours that a region shows to a guest: a mapping with what it shows, or memory that somebody else maps.
///
/// Concepts: the file behind it is kept open, since exporters (a vhost-user table) hand it on and since its size is
/// what tells a file that was cut short. Guard pages stand on both sides of what is mapped here: an access that runs
/// off either end faults instead of reaching a neighbor.
/// Contract: the memory never moves and stays mapped for as long as anybody holds it.
/// Threads: any.
/// Lifetime: shared; a region holds it, a map holds the region.
/// Cost: a mapping is one system call, guards one more; nothing is touched.
/// Known holes: memory that is borrowed has the guards and the file size that its owner gave it. Where its address
/// and the guest's differ modulo 8, accesses are aligned for one of them only, and no promise of whole words holds.

namespace guestmem {

/// Where in which file the bytes stand.
struct FileBacking {
    FdView fd;
    std::uint64_t offset_bytes = 0;
};

struct AnonymousMemoryOptions {
    std::uint64_t size_bytes = 0;
    std::uint64_t guard_bytes = page_size_bytes;
    MapSharing sharing = MapSharing::private_copy;
    std::uint64_t align_bytes = 0;  ///< as MappingOptions
    MapReserve reserve = MapReserve::usual;
};

struct FileMemoryOptions {
    std::uint64_t size_bytes = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t guard_bytes = page_size_bytes;
    MapAccess access = MapAccess::read_write;
    MapSharing sharing = MapSharing::shared;
    std::uint64_t align_bytes = 0;
    MapReserve reserve = MapReserve::usual;
    bool may_exceed_file = false;
    KnownFile known = {};  ///< as MappingOptions
};

class HostMemory {
public:
    /// Zeroed memory without a file.
    [[nodiscard]] static Result<std::shared_ptr<const HostMemory>> create_anonymous(
        const AnonymousMemoryOptions& options);
    /// A file's bytes. A file that is shorter than that is an error.
    [[nodiscard]] static Result<std::shared_ptr<const HostMemory>> create_from_file(
        Fd file, const FileMemoryOptions& options);
    /// Memory that `owner` keeps mapped, at least until it is destroyed.
    [[nodiscard]] static Result<std::shared_ptr<const HostMemory>> borrow(
        std::span<std::byte> bytes, MapAccess access, std::shared_ptr<const void> owner,
        MapSharing sharing = MapSharing::shared);

    /// For those who build regions and exporters; who accesses goes through a view.
    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
    [[nodiscard]] MapAccess access() const { return access_; }
    [[nodiscard]] MapSharing sharing() const { return sharing_; }
    /// Memory of this process alone that was zeros when it was made: a page that nobody touched still is.
    [[nodiscard]] bool is_private_anonymous() const { return is_private_anonymous_; }
    /// The file; nothing for anonymous and borrowed memory.
    [[nodiscard]] std::optional<FileBacking> file() const;

    /// Whether the file still reaches to the end of the bytes; what has no file is always whole. Without the fault
    /// guard this is the only way to notice a file that was cut short.
    [[nodiscard]] Result<void> check_whole() const;

private:
    HostMemory() = default;

    Fd file_;
    std::uint64_t file_offset_bytes_ = 0;
    Mapping mapping_;
    std::shared_ptr<const void> owner_;
    std::span<std::byte> bytes_;
    MapAccess access_ = MapAccess::read_write;
    MapSharing sharing_ = MapSharing::private_copy;
    bool is_private_anonymous_ = false;
};

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A piece of our own address space that shows a file's bytes.
///
/// Contract: unmapped on destruction; valid for as long as it lives, also after the descriptor is closed. The
/// file's size is asked of the kernel before the bytes are mapped: a mapping never reaches past its end.
/// Threads: the object one at a time; the bytes any, with the usual rules for memory that others write.
/// Known holes: a file that can shrink under the mapping raises SIGBUS; map only sealed memory that comes from
/// others (memfd.hpp tells seals).

namespace guestmem {

enum class MapAccess : std::uint8_t { read_only, read_write };

class Mapping {
public:
    Mapping() = default;
    Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { reset(); }

    /// The first `size_bytes` of `fd`, shared.
    [[nodiscard]] static Result<Mapping> create(FdView fd, std::uint64_t size_bytes, MapAccess access);

    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

private:
    explicit Mapping(std::span<std::byte> bytes) : bytes_(bytes) {}
    void reset() noexcept;

    std::span<std::byte> bytes_;
};

/// Copies into memory that others may read or write at the same time: byte by byte in address order, each byte
/// a relaxed atomic store, so that the compiler neither tears, repeats nor drops a store.
void copy_to_shared(std::span<std::byte> to, std::span<const std::byte> from);
/// The same the other way: each byte is read once.
void copy_from_shared(std::span<std::byte> to, std::span<const std::byte> from);

}  // namespace guestmem

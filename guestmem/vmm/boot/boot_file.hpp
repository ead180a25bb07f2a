// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/access.hpp"

/// A file that a guest is started from, as bytes that are there or as a function that reads them.
///
/// Concepts: loaders look at a few headers (read) and then move the bulk to where the guest wants it (copy_to): from
/// bytes by one copy, from a function straight into the guest's memory, so that a pread has no copy at all.
/// Contract: a range that leaves the file is Errc::corrupt, since it comes from the file's own headers; errors begin
/// with the file's name. The function fills all of its span or fails.
/// Threads: one at a time; who calls keeps the file unchanged. Bytes that change meanwhile give a guest other contents,
/// nothing else: each header is read once.
/// Lifetime: the bytes outlive it.
/// Known holes: a mapped file that is cut short while it is read ends the program by SIGBUS; give a function that
/// calls pread for files that somebody else may change.
/// Example:
///     const BootFile kernel{path, size, [&](std::uint64_t offset, std::span<std::byte> to) {
///         return read_at(fd, offset, to);
///     }};

namespace guestmem::vmm {

/// Any view of guest physical memory.
using BootMemory = ByteAccess<GuestPhysicalSpace>;

class BootFile {
public:
    using ReadFunction = std::function<Result<void>(std::uint64_t offset, std::span<std::byte> to)>;

    BootFile(std::string name, std::span<const std::byte> bytes)
        : name_(std::move(name)), size_bytes_(bytes.size()), bytes_(bytes) {}
    BootFile(std::string name, std::uint64_t size_bytes, ReadFunction function)
        : name_(std::move(name)), size_bytes_(size_bytes), read_(std::move(function)) {}

    /// For errors: the path, in most cases.
    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }

    [[nodiscard]] Result<void> read(std::uint64_t offset, std::span<std::byte> to) const;
    /// What there is of the first `max_bytes` bytes.
    [[nodiscard]] Result<std::vector<std::byte>> read_head(std::size_t max_bytes) const;
    [[nodiscard]] Result<void> copy_to(BootMemory& memory, GuestAddress address, std::uint64_t offset,
                                       std::uint64_t size_bytes) const;

    /// An error about this file: "path: text".
    [[nodiscard]] Error wrong(Errc code, std::string_view text) const;

private:
    [[nodiscard]] Result<void> check(std::uint64_t offset, std::uint64_t size_bytes) const;

    std::string name_;
    std::uint64_t size_bytes_ = 0;
    std::span<const std::byte> bytes_;
    ReadFunction read_;
};

}  // namespace guestmem::vmm

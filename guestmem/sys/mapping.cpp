// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/mapping.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <atomic>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    if (this != &other) {
        reset();
        bytes_ = std::exchange(other.bytes_, {});
    }
    return *this;
}

void Mapping::reset() noexcept {
    if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
    bytes_ = {};
}

Result<Mapping> Mapping::create(FdView fd, std::uint64_t size_bytes, MapAccess access) {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(fd), "map");
    if (size_bytes == 0 || size_bytes > facts.size_bytes)
        return Error{Errc::out_of_range, fmt::format("map {} bytes of descriptor {}: the file has {} bytes",
                                                     size_bytes, fd.number(), facts.size_bytes)};
    const int protection = access == MapAccess::read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    void* mapped = MAP_FAILED;
    const int status = checked_call(SysCall::mmap, [&] {
        mapped = ::mmap(nullptr, size_bytes, protection, MAP_SHARED, fd.number(), 0);
        return mapped == MAP_FAILED ? -1 : 0;
    });
    if (status < 0)
        return Error::from_errno(errno,
                                 fmt::format("map {} bytes of descriptor {}", size_bytes, fd.number()));
    return Mapping{std::span{static_cast<std::byte*>(mapped), size_bytes}};
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

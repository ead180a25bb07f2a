// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/boot_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "guestmem/mem/pointer_guard.hpp"

namespace guestmem::vmm {

Error BootFile::wrong(Errc code, std::string_view text) const {
    return Error{code, fmt::format("{}: {}", name_, text)};
}

Result<void> BootFile::check(std::uint64_t offset, std::uint64_t size_bytes) const {
    if (offset <= size_bytes_ && size_bytes <= size_bytes_ - offset) return {};
    return wrong(
        Errc::corrupt,
        fmt::format("{} bytes are expected at offset {:#x}, and the file has {}: it is cut short, or "
                    "its headers are wrong",
                    size_bytes, offset, size_bytes_));
}

Result<void> BootFile::read(std::uint64_t offset, std::span<std::byte> to) const {
    GM_TRY(check(offset, to.size()));
    if (to.empty()) return {};
    if (read_) {
        GM_TRY_CONTEXT(read_(offset, to), name_);
    } else {
        std::memcpy(to.data(), bytes_.data() + offset, to.size());
    }
    return {};
}

Result<std::vector<std::byte>> BootFile::read_head(std::size_t max_bytes) const {
    std::vector<std::byte> head(static_cast<std::size_t>(std::min<std::uint64_t>(max_bytes, size_bytes_)));
    GM_TRY(read(0, head));
    return head;
}

Result<void> BootFile::copy_to(BootMemory& memory, GuestAddress address, std::uint64_t offset,
                               std::uint64_t size_bytes) const {
    GM_TRY(check(offset, size_bytes));
    if (size_bytes == 0) return {};
    if (!read_) {
        const auto done = memory.write_bytes(address, bytes_.subspan(offset, size_bytes));
        if (!done) return done.error().to_error(name_);
        return {};
    }
    if (const auto allowed = memory.check_range(address, size_bytes, Access::write); !allowed)
        return allowed.error().to_error(name_);
    for (std::uint64_t done = 0; done < size_bytes;) {
        // check_range() has seen the whole range: the sum does not wrap.
        const GuestAddress at{address.value() + done};
        const auto held = memory.hold_piece(at, Access::write);
        if (!held) return held.error().to_error(name_);
        const std::uint64_t count = std::min(size_bytes - done, held->piece.size_bytes);
        auto pointer = WritePointer::create(memory, at, count, name_);
        if (!pointer) return pointer.error().to_error(name_);
        GM_TRY_CONTEXT(read_(offset + done, pointer->bytes()), name_);
        done += count;
    }
    return {};
}

}  // namespace guestmem::vmm

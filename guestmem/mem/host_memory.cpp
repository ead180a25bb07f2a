// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/host_memory.hpp"

#include <fmt/format.h>

#include <utility>

namespace guestmem {

Result<std::shared_ptr<const HostMemory>> HostMemory::create_anonymous(
    const AnonymousMemoryOptions& options) {
    const std::shared_ptr<HostMemory> memory{new HostMemory};
    memory->mapping_ = GM_TRY(Mapping::create_anonymous({.size_bytes = options.size_bytes,
                                                         .guard_bytes = options.guard_bytes,
                                                         .sharing = options.sharing,
                                                         .align_bytes = options.align_bytes,
                                                         .reserve = options.reserve}));
    memory->bytes_ = memory->mapping_.bytes();
    memory->sharing_ = options.sharing;
    memory->is_private_anonymous_ = options.sharing == MapSharing::private_copy;
    return std::shared_ptr<const HostMemory>{memory};
}

Result<std::shared_ptr<const HostMemory>> HostMemory::create_from_file(Fd file,
                                                                       const FileMemoryOptions& options) {
    const std::shared_ptr<HostMemory> memory{new HostMemory};
    memory->mapping_ = GM_TRY(Mapping::create(file, {.size_bytes = options.size_bytes,
                                                     .offset_bytes = options.offset_bytes,
                                                     .access = options.access,
                                                     .sharing = options.sharing,
                                                     .guard_bytes = options.guard_bytes,
                                                     .align_bytes = options.align_bytes,
                                                     .reserve = options.reserve,
                                                     .may_exceed_file = options.may_exceed_file,
                                                     .known = options.known}));
    memory->bytes_ = memory->mapping_.bytes();
    memory->file_ = std::move(file);
    memory->file_offset_bytes_ = options.offset_bytes;
    memory->access_ = options.access;
    memory->sharing_ = options.sharing;
    return std::shared_ptr<const HostMemory>{memory};
}

Result<std::shared_ptr<const HostMemory>> HostMemory::borrow(std::span<std::byte> bytes, MapAccess access,
                                                             std::shared_ptr<const void> owner,
                                                             MapSharing sharing) {
    if (bytes.empty())
        return Error{Errc::invalid_argument, "borrow host memory: there are 0 bytes, give at least one"};
    const std::shared_ptr<HostMemory> memory{new HostMemory};
    memory->bytes_ = bytes;
    memory->owner_ = std::move(owner);
    memory->access_ = access;
    memory->sharing_ = sharing;
    return std::shared_ptr<const HostMemory>{memory};
}

std::optional<FileBacking> HostMemory::file() const {
    if (!file_.is_open()) return std::nullopt;
    return FileBacking{file_.view(), file_offset_bytes_};
}

Result<void> HostMemory::check_whole() const {
    if (!file_.is_open()) return {};
    const FileFacts facts = GM_TRY(file_facts(file_));
    // The mapping was made when the file was long enough, so the sum does not wrap.
    const std::uint64_t needed_bytes = file_offset_bytes_ + bytes_.size();
    if (facts.size_bytes < needed_bytes)
        return Error{Errc::corrupt,
                     fmt::format("the file of this memory was cut short: it has {} bytes, and {} "
                                 "are mapped; restore it, or stop its user",
                                 facts.size_bytes, needed_bytes)};
    return {};
}

}  // namespace guestmem

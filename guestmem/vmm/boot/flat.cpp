// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/flat.hpp"

#include <fmt/format.h>

#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {

Result<void> load_flat(const BootFile& file, GuestAddress address, BootSpace& space, BootMemory& memory) {
    if (file.size_bytes() == 0) return file.wrong(Errc::corrupt, "an empty file: there is nothing to start");
    const auto range = GuestRange::create(address, file.size_bytes());
    if (!range)
        return file.wrong(Errc::out_of_range, fmt::format("{} bytes at {:#x} wrap around 2^64",
                                                          file.size_bytes(), address.value()));
    GM_TRY(space.claim(file.name(), *range));
    return file.copy_to(memory, address, 0, file.size_bytes());
}

EntryState make_payload_entry(EntryMode mode, GuestAddress entry) {
    EntryState state = make_entry_state(mode, entry);
    state.rbx = low_memory::start_info.base;
    state.rdi = low_memory::start_info.base;
    state.rsp = low_memory::stack.base + low_memory::stack.size_bytes;
    static_assert((low_memory::stack.base + low_memory::stack.size_bytes) % 16 == 0);
    return state;
}

}  // namespace guestmem::vmm

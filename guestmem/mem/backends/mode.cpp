// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/mode.hpp"

namespace guestmem {

Result<BackendMode> mode_of(const BackendOptions& options) {
    const bool shares = is_shared(options);
    if (options.rom == Rom::on && !options.is_readonly)
        return Error{
            Errc::invalid_argument,
            "rom=on needs readonly=on: what is mapped writable is no ROM; add readonly=on, or leave rom=on out"};
    if (options.rom == Rom::off && options.is_readonly && shares)
        return Error{
            Errc::invalid_argument,
            "rom=off cannot go with readonly=on and share=on: writes of the guest would have to reach a file that "
            "is read-only; use share=off, and writes stay in the VM, or rom=on"};
    const bool is_rom = options.is_readonly && options.rom != Rom::off;
    return BackendMode{.file = options.is_readonly ? OpenMode::read : OpenMode::read_write,
                       .access = is_rom ? MapAccess::read_only : MapAccess::read_write,
                       .sharing = shares ? MapSharing::shared : MapSharing::private_copy,
                       .kind = is_rom ? RegionKind::rom : RegionKind::ram};
}

}  // namespace guestmem

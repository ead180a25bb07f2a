// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/options.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// What share, readonly and rom mean together: how a backend is opened and mapped, and what the guest sees.
///
/// Contract: QEMU's table. readonly alone gives ROM, as it always did; rom=off beside it gives writable memory that is
/// private to the VM, over a file that needs no permission to write: a clone of a template. Three cells are refused:
///
///     share  readonly  rom        file        mapped               guest sees
///     off    off       auto, off  read-write  writable, private    RAM, writes stay in the VM
///     off    on        auto, on   read        read-only, private   ROM
///     off    on        off        read        writable, private    RAM, writes stay in the VM
///     on     off       auto, off  read-write  writable, shared     RAM, writes reach the file
///     on     on        auto, on   read        read-only, shared    ROM
///     any    off       on         refused: ROM that the file's owner could write through this mapping
///     on     on        off        refused: writes would have to reach a file that is read-only
/// Threads: any.

namespace guestmem {

struct BackendMode {
    OpenMode file = OpenMode::read_write;
    MapAccess access = MapAccess::read_write;
    MapSharing sharing = MapSharing::private_copy;
    RegionKind kind = RegionKind::ram;

    friend bool operator==(const BackendMode&, const BackendMode&) = default;
};

[[nodiscard]] Result<BackendMode> mode_of(const BackendOptions& options);

}  // namespace guestmem

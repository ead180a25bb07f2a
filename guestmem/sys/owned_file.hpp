// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Files whose owner matters: who may write them, when they were written, and opening them by a folder's descriptor.
///
/// Concepts: a folder that only its owner writes is opened once; what is in it is opened relative to that descriptor,
/// so that a path which is changed meanwhile leads nowhere else.
/// Contract: open_in() follows no link, and gives only ordinary files.
/// Threads: any.
/// Example:
///     const Fd folder = GM_TRY(open_folder(path));
///     const Fd image = GM_TRY(open_in(folder, "image"));
///     if (GM_TRY(ownership_of(image)).permissions & 0222) ...

namespace guestmem {

struct Ownership {
    std::uint32_t owner = 0;
    std::uint32_t group = 0;
    std::uint32_t permissions = 0;  ///< the nine bits
    std::int64_t modified_ns = 0;   ///< since 1970: the last write
    std::uint64_t size_bytes = 0;
};
[[nodiscard]] Result<Ownership> ownership_of(FdView fd);

/// For reading. `name` is one part of a path.
[[nodiscard]] Result<Fd> open_in(FdView folder, const std::string& name);

}  // namespace guestmem

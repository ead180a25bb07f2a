// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "guestmem/base/result.hpp"

/// A fence around the files of this host, for a thread that needs none of them: Landlock.
///
/// Contract: from restrict_files() on the calling thread, and those that it begins, open no file but for reading, and
/// only the files that are named and what is below the folders that are; a name that leads nowhere is passed over.
/// They make, link, cut short and run none. Descriptors that are open stay as they are, memory files are no files of
/// the host, and sockets are not concerned. Fences add up: another one takes more away, for good. False where the
/// kernel has no such fence (before Linux 5.13, or switched off): nothing holds then.
/// Threads: each for itself.
/// Limits: names may still be removed, and looked at (stat); who also has a filter of system calls has less.
/// Example:
///     const bool is_fenced = GM_TRY(restrict_files(std::array{std::string{"/proc"}}));

namespace guestmem {

[[nodiscard]] Result<bool> restrict_files(std::span<const std::string> readable);

}  // namespace guestmem

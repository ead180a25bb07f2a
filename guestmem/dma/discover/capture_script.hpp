// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

/// The capture (capture.hpp) as a POSIX shell program, for a machine without guestmem.
///
/// Contract: the program is called `sh capture.sh OUT.tar [ROOT]`. It takes what capture_patterns() says under the same
/// rules, so that both archives hold the same files and links. It needs cat, mkdir, mktemp, ln, readlink, rm, sed, tar,
/// od, awk and dd, which busybox has. Its status is 0 when the archive is written; what it could not read is named on
/// standard error.
/// Threads: any.
/// Known holes: a shell cannot blank properties in a device tree: the tree is left out, with a line that says so,
/// unless DEVICE_TREE=1 is in the environment; then it is taken with serial numbers and MAC addresses. Archives of a
/// tar without --numeric-owner name the user who ran it.

namespace guestmem::dma {

[[nodiscard]] std::string capture_script();

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/vmm/config/arguments.hpp"
#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/config/vm_config.hpp"

/// The words of a `vdev` context, each of which puts its argument into the device.
///
/// Contract: the word is one that the device's kind has. False when the argument is none that it can have: Findings
/// has been told what is wrong, and the device is as it was, or has a value that no device can have.
/// Threads: any.

namespace guestmem::vmm {

[[nodiscard]] bool read_vdev_word(Word word, const Piece& piece, Vdev& vdev, Findings& findings);

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"

/// What kind of file a guest is to be started from, by what the file begins with.
///
/// Concepts: `load FILE` names only a file. "HdrS" at 0x202 is a Linux kernel; 7f 45 4c 46 is ELF; eb 7e ff 00 is the
/// startup header of a QNX image file system (0x00ff7eeb, little-endian); everything else is flat.
/// Contract: a QNX image is found at the file's beginning, or at a multiple of 4 in the first ifs_search_bytes, where
/// mkifs puts it behind a boot prefix. QNX documents no way to enter it from outside of its own boot prefixes, so
/// explain_ifs() says what the header tells and what would work instead. An image that mkifs wrote as an ELF file
/// begins as one, and is loaded as one.
/// Threads: any.
/// Known holes: the fields behind the startup header's signature are read as QNX 7 writes them.

namespace guestmem::vmm {

enum class ImageKind : std::uint8_t { linux_kernel, elf, qnx_ifs, flat };

[[nodiscard]] std::string_view to_string(ImageKind kind);

inline constexpr std::size_t ifs_search_bytes = 4096;

[[nodiscard]] Result<ImageKind> find_image_kind(const BootFile& file);

/// Why a file of kind qnx_ifs cannot be started.
[[nodiscard]] Error explain_ifs(const BootFile& file);

}  // namespace guestmem::vmm

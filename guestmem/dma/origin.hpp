// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// Where a fact about the machine comes from.
///
/// Concepts: each fact of an inventory names the source that said it, the place in that source, and what it
/// replaced when the user's words overrode the firmware's: "from: board.smmu:7, overrides DMAR".
/// Contract: a place is "table offset 0x48" of a firmware table, "/pcie@10000000" of a device tree, "file:line" of
/// the user's words, a path of sysfs.
/// Threads: any; a plain value.

namespace guestmem::dma {

enum class Source : std::uint8_t { dmar, ivrs, iort, viot, device_tree, kernel, user };
/// "DMAR", "IVRS", "IORT", "VIOT", "device tree", "kernel", "user".
[[nodiscard]] std::string_view to_string(Source source);

struct Origin {
    Source source = Source::kernel;
    std::string place = {};      ///< of the user's words the file and line; may be empty for the others
    std::string overrides = {};  ///< what it replaced: "DMAR"; empty when nothing

    friend bool operator==(const Origin&, const Origin&) = default;
};

/// "DMAR offset 0x30", "board.smmu:7, overrides DMAR".
[[nodiscard]] std::string to_string(const Origin& origin);

}  // namespace guestmem::dma

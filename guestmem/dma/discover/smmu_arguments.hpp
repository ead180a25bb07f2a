// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/discover/smmu_lexer.hpp"
#include "guestmem/dma/discover/smmu_numbers.hpp"
#include "guestmem/dma/discover/smmu_words.hpp"

/// The arguments of smmuman's options: what stands between the commas of a token, as values.
///
/// Contract: each reader gives a value, or nothing and has told the sources what is wrong, where and what to write.
/// A device is `pci:BUS:DEVICE.FUNCTION`, with `SEGMENT:` before the bus or without, or `mem:ADDRESS`.
/// Lifetime: a piece refers to its token.
/// Threads: any.

namespace guestmem::dma {

inline constexpr std::size_t max_smmu_name_bytes = 64;

struct SmmuPiece {
    std::string_view text = {};
    SmmuPlace place = {};
};

[[nodiscard]] inline SmmuPiece whole(const SmmuToken& token) { return {token.text, token.place}; }
/// At least one piece; they may be empty.
[[nodiscard]] std::vector<SmmuPiece> split_at(const SmmuPiece& piece, char separator);
[[nodiscard]] SmmuPiece without_prefix(const SmmuPiece& piece, std::size_t count);

[[nodiscard]] std::optional<std::uint64_t> read_smmu_number(const SmmuPiece& piece, NumberStyle style,
                                                            std::string_view what, std::uint64_t most,
                                                            SmmuSources& sources);
/// A physical address that is not 0.
[[nodiscard]] std::optional<std::uint64_t> read_registers(const SmmuPiece& piece, SmmuSources& sources);
[[nodiscard]] std::optional<PciAddress> read_pci_function(const SmmuPiece& piece, SmmuSources& sources);
/// A PciRange of one function or an MmioDevice.
[[nodiscard]] std::optional<Selector> read_device(const SmmuPiece& piece, SmmuSources& sources);
/// START,LENGTH[,PERMISSIONS]
[[nodiscard]] std::optional<AllowedRange> read_range(const SmmuPiece& piece, SmmuSources& sources);
/// Of a unit or a set: a letter or '_' first, then also digits and "-.@:", at most max_smmu_name_bytes.
[[nodiscard]] bool is_smmu_name(const SmmuPiece& piece, std::string_view what, SmmuSources& sources);

/// "pci:0:18.0", "pci:1:0:18.0", "mem:0xfe000000": what read_device() reads.
[[nodiscard]] std::string to_smmu_device(const Selector& device);
[[nodiscard]] std::string to_smmu_device(PciAddress function);

}  // namespace guestmem::dma

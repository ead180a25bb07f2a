// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "guestmem/vmm/config/lexer.hpp"
#include "guestmem/vmm/config/vm_config.hpp"

/// The arguments of words: what stands between the commas of a token, as values.
///
/// Contract: each reader gives a value with its place, or nothing and has told Findings what is wrong, where and what
/// to write. A Piece refers to its token.
/// Threads: any.

namespace guestmem::vmm {

struct Piece {
    std::string_view text;
    Place place;
};

[[nodiscard]] Piece whole(const Token& token);
[[nodiscard]] std::vector<Piece> split_at_commas(const Piece& piece);
/// Before and behind the first `separator`; nothing when there is none.
[[nodiscard]] std::optional<std::pair<Piece, Piece>> split_at_first(const Piece& piece, char separator);
[[nodiscard]] std::optional<std::pair<Piece, Piece>> split_at_last(const Piece& piece, char separator);

[[nodiscard]] std::optional<Placed<std::uint64_t>> read_number_within(const Piece& piece,
                                                                      std::string_view what,
                                                                      std::uint64_t least, std::uint64_t most,
                                                                      Findings& findings);
/// A multiple of 4096 below guest_address_limit.
[[nodiscard]] std::optional<Placed<std::uint64_t>> read_address(const Piece& piece, std::string_view what,
                                                                Findings& findings);
/// A multiple of 4096 that is not 0.
[[nodiscard]] std::optional<Placed<std::uint64_t>> read_length(const Piece& piece, Findings& findings);
[[nodiscard]] std::optional<Placed<Sched>> read_sched(const Piece& piece, Findings& findings);
[[nodiscard]] std::optional<Placed<Interrupt>> read_interrupt(const Piece& piece, Findings& findings);
/// yes, no, on, off, true, false, 1 and 0.
[[nodiscard]] std::optional<bool> read_boolean(std::string_view text);

/// Of a VM: it becomes part of a path. False, and told, when it is none.
[[nodiscard]] bool is_system_name(const Piece& piece, Findings& findings);
/// Of a vdev: visible ASCII without '/', at most max_name_bytes.
[[nodiscard]] bool is_vdev_name(const Piece& piece, Findings& findings);
/// Of a share: find_name_problem() of guestmem/share/config.hpp.
[[nodiscard]] bool is_share_name(const Piece& piece, Findings& findings);
[[nodiscard]] bool is_share_size(const Piece& piece, std::uint64_t size_bytes, Findings& findings);
[[nodiscard]] bool is_pattern(const Piece& piece, Findings& findings);

}  // namespace guestmem::vmm

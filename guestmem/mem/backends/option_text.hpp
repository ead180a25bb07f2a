// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/options.hpp"

/// QEMU's option language for memory backends: text to BackendOptions and back.
///
/// Concepts: `memory-backend-file,id=ram0,size=2G,mem-path=/var/lib/vm/a.ram,share=off,readonly=on,rom=off`: the type,
/// then property=value in any order. A comma inside of a value is written twice.
/// Contract: as QEMU reads `-object`. Sizes are bytes or have a unit (B, K, M, G, T, P, E; powers of 1024) and may then
/// have a fraction; they may be hexadecimal, without a unit. Yes is on, yes, true or y; no is off, no, false or n; a
/// property of this kind that stands alone is on, and with `no` in front of it off. host-nodes takes numbers and
/// ranges, as often as wanted. All mistakes are told at once, each with its place.
/// to_text() says what is not the default, in one order; parsing it gives the same options.
/// Where QEMU takes the last of two values that contradict each other, this is an error.
/// Threads: any.
/// Limits: max_backend_text_bytes; host nodes below max_host_nodes.
/// Example:
///     const BackendOptions options = GM_TRY(parse_backend("memory-backend-ram,id=ram0,size=2G"));

namespace guestmem {

inline constexpr std::size_t max_backend_text_bytes = 16 * 1024;
inline constexpr std::uint64_t max_host_nodes = max_bound_nodes;

[[nodiscard]] Result<BackendOptions> parse_backend(std::string_view text);
[[nodiscard]] std::string to_text(const BackendOptions& options);

}  // namespace guestmem

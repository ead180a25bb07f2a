// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"

/// Memory nodes of the host: which there are, and which one gives the pages of a piece of our address space.
///
/// Contract: bind_memory() holds for pages that are given later, and moves those that are there and are ours alone;
/// one that cannot be moved is an error (EIO), and the policy is set all the same. The policy `standard` takes no
/// node, the others at least one. `preferred` with several nodes means all of them on Linux 5.15 and above, and the
/// first of the list before.
/// Threads: any.
/// Limits: nodes are below max_bound_nodes; a node that the host does not have is the kernel's refusal (EINVAL). Bytes
/// begin at a page; the last page is taken whole.
/// Example:
///     const std::uint16_t nodes[] = {0, 1};
///     GM_TRY(bind_memory(bytes, NumaPolicy::interleave, nodes));
/// Known holes: a container's filter may forbid mbind(2): that is permission_denied. On huge pages the kernel takes
/// whole huge pages.

namespace guestmem {

inline constexpr std::uint16_t max_bound_nodes = 128;

struct NumaNodes {
    std::vector<std::uint16_t> online;  ///< ascending
};

/// A kernel that knows no nodes has one, node 0. A list that is no ascending list of nodes is an error (corrupt).
[[nodiscard]] Result<NumaNodes> numa_nodes(const std::string& root = "/sys/devices/system/node");

/// What a node can give: free pages, and the cache that the kernel takes back. Nothing where it does not say.
[[nodiscard]] Result<std::optional<std::uint64_t>> node_available_bytes(
    std::uint16_t node, const std::string& root = "/sys/devices/system/node");

enum class NumaPolicy : std::uint8_t {
    standard,    ///< the process's own
    preferred,   ///< these, others when they are full
    bind,        ///< these or none
    interleave,  ///< these in turn, page by page
};

[[nodiscard]] Result<void> bind_memory(std::span<std::byte> bytes, NumaPolicy policy,
                                       std::span<const std::uint16_t> nodes);

/// The node that the page of this byte is on. A page that is not there is given first, as a read would: of anonymous
/// memory that is the kernel's page of zeros, on whatever node it is.
[[nodiscard]] Result<std::uint16_t> node_of(const std::byte* at);

}  // namespace guestmem

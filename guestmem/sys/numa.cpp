// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/numa.hpp"

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/kernel_text.hpp"

namespace guestmem {
namespace {

constexpr std::size_t bits_per_word = std::numeric_limits<unsigned long>::digits;
using NodeMask = std::array<unsigned long, max_bound_nodes / bits_per_word>;

/// The number that `text` begins with, which is cut off.
std::optional<std::uint16_t> take_node(std::string_view& text) {
    std::uint16_t node = 0;
    const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), node);
    if (status != std::errc{}) return std::nullopt;
    text.remove_prefix(static_cast<std::size_t>(rest - text.data()));
    return node;
}

bool take(std::string_view& text, char letter) {
    if (!text.starts_with(letter)) return false;
    text.remove_prefix(1);
    return true;
}

/// "0-1,4" -> 0, 1, 4; nothing when the text is anything else. Ascending, so that its length is bounded.
std::optional<std::vector<std::uint16_t>> parse_nodes(std::string_view text) {
    std::vector<std::uint16_t> nodes;
    do {
        const auto first = take_node(text);
        if (!first || (!nodes.empty() && *first <= nodes.back())) return std::nullopt;
        const auto last = take(text, '-') ? take_node(text) : first;
        if (!last || *last < *first) return std::nullopt;
        for (std::uint32_t node = *first; node <= *last; ++node)
            nodes.push_back(static_cast<std::uint16_t>(node));
    } while (take(text, ','));
    take(text, '\n');
    if (!text.empty()) return std::nullopt;
    return nodes;
}

int mode_of(NumaPolicy policy, std::size_t count_nodes) {
    switch (policy) {
        case NumaPolicy::standard: return MPOL_DEFAULT;
        case NumaPolicy::preferred: return count_nodes > 1 ? MPOL_PREFERRED_MANY : MPOL_PREFERRED;
        case NumaPolicy::bind: return MPOL_BIND;
        case NumaPolicy::interleave: return MPOL_INTERLEAVE;
    }
    return MPOL_DEFAULT;
}

NodeMask mask_of(std::span<const std::uint16_t> nodes) {
    NodeMask mask{};
    for (const std::uint16_t node : nodes) mask.at(node / bits_per_word) |= 1UL << (node % bits_per_word);
    return mask;
}

long set_policy(std::span<std::byte> bytes, int mode, const NodeMask& mask) {
    // The kernel reads one bit less than it is told.
    const unsigned long count_bits = mode == MPOL_DEFAULT ? 0 : max_bound_nodes + 1;
    const unsigned long* words = mode == MPOL_DEFAULT ? nullptr : mask.data();
    return checked_call(SysCall::mbind, [&] {
        return ::syscall(SYS_mbind, bytes.data(), bytes.size(), mode, words, count_bits,
                         MPOL_MF_STRICT | MPOL_MF_MOVE);
    });
}

}  // namespace

Result<NumaNodes> numa_nodes(const std::string& root) {
    constexpr std::size_t limit_bytes = 64 * 1024;
    const std::string path = root + "/online";
    const auto text = GM_TRY(read_if_there(path, limit_bytes));
    if (!text) return NumaNodes{.online = {0}};
    auto nodes = parse_nodes(*text);
    if (!nodes) return unexpected_text(path, *text, "an ascending list of nodes");
    return NumaNodes{.online = std::move(*nodes)};
}

Result<std::optional<std::uint64_t>> node_available_bytes(std::uint16_t node, const std::string& root) {
    constexpr std::size_t limit_bytes = 16 * 1024;
    const auto text = GM_TRY(read_if_there(fmt::format("{}/node{}/meminfo", root, node), limit_bytes));
    if (!text) return std::optional<std::uint64_t>{};
    const auto line = [&](std::string_view key) {
        return meminfo_bytes(*text, fmt::format("Node {} {}", node, key));
    };
    const auto free_bytes = line("MemFree:");
    const auto active_bytes = line("Active(file):");
    const auto inactive_bytes = line("Inactive(file):");
    if (!free_bytes || !active_bytes || !inactive_bytes) return std::optional<std::uint64_t>{};
    return std::optional{*free_bytes + *active_bytes + *inactive_bytes + line("SReclaimable:").value_or(0)};
}

Result<void> bind_memory(std::span<std::byte> bytes, NumaPolicy policy,
                         std::span<const std::uint16_t> nodes) {
    std::string what = fmt::format("bind {} bytes at {} to nodes", bytes.size(), fmt::ptr(bytes.data()));
    if (nodes.size() > max_bound_nodes)
        return Error{Errc::out_of_range,
                     fmt::format("{}: {} of them, at most {}", what, nodes.size(), max_bound_nodes)};
    for (const std::uint16_t node : nodes) what += fmt::format(" {}", node);
    for (const std::uint16_t node : nodes)
        if (node >= max_bound_nodes)
            return Error{Errc::out_of_range, fmt::format("{}: nodes end at {}", what, max_bound_nodes - 1)};
    if (policy == NumaPolicy::standard && !nodes.empty())
        return Error{Errc::invalid_argument, fmt::format("{}: the standard policy takes none", what)};
    if (policy != NumaPolicy::standard && nodes.empty())
        return Error{Errc::invalid_argument, fmt::format("{}: this policy takes at least one", what)};
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % page != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: begins within a page of {}", what, page)};
    if (bytes.empty()) return {};

    const int mode = mode_of(policy, nodes.size());
    long status = set_policy(bytes, mode, mask_of(nodes));
    if (status < 0 && errno == EINVAL && mode == MPOL_PREFERRED_MANY)
        status = set_policy(bytes, MPOL_PREFERRED, mask_of(nodes.first(1)));
    if (status < 0) return Error::from_errno(errno, what);
    return {};
}

Result<std::uint16_t> node_of(const std::byte* at) {
    int node = 0;
    const long status = checked_call(SysCall::get_mempolicy, [&] {
        return ::syscall(SYS_get_mempolicy, &node, nullptr, 0UL, at, MPOL_F_NODE | MPOL_F_ADDR);
    });
    if (status < 0) return Error::from_errno(errno, fmt::format("ask for the node of {}", fmt::ptr(at)));
    return static_cast<std::uint16_t>(node);
}

}  // namespace guestmem

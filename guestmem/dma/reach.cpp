// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/reach.hpp"

#include <algorithm>
#include <array>
#include <bit>

namespace guestmem::dma {
namespace {

constexpr std::size_t count_kinds = 4;  // permissions as a number: bit 0 read, bit 1 write

std::size_t kind_of(Permission permission) {
    return (permission.can_read ? 1U : 0U) | (permission.can_write ? 2U : 0U);
}

/// Bytes, both ends included: a range may end with the last address there is.
struct Piece {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::size_t kind = 0;
    std::size_t memory = 0;
};

struct Edge {
    std::uint64_t at = 0;
    bool is_start = false;
    std::size_t kind = 0;
    std::size_t memory = 0;
};

struct Sweep {
    std::vector<Piece> pieces = {};
    std::optional<std::uint64_t> first_conflict = {};
};

/// Pieces that do not overlap any more, with the permissions of all that covered them.
Sweep sweep(std::span<const Piece> pieces) {
    std::vector<Edge> edges;
    edges.reserve(2 * pieces.size());
    for (const Piece& piece : pieces) {
        edges.push_back({piece.first, true, piece.kind, piece.memory});
        edges.push_back({piece.last, false, piece.kind, piece.memory});
    }
    // An end is at the last byte: at one place starts come before it.
    std::ranges::sort(edges, [](const Edge& one, const Edge& other) {
        return one.at != other.at ? one.at < other.at : one.is_start && !other.is_start;
    });
    Sweep result;
    std::array<std::size_t, count_kinds> open{};
    std::uint64_t from = 0;
    bool is_over = false;
    const auto close = [&](std::uint64_t last, std::size_t memory) {
        const std::size_t kind =
            (open[1] != 0 || open[3] != 0 ? 1U : 0U) | (open[2] != 0 || open[3] != 0 ? 2U : 0U);
        auto& done = result.pieces;
        if (!done.empty() && done.back().kind == kind && done.back().memory == memory &&
            done.back().last + 1 == from)
            done.back().last = last;
        else
            done.push_back({from, last, kind, memory});
    };
    const auto is_open = [&] { return open[1] + open[2] + open[3] != 0; };
    for (const Edge& edge : edges) {
        if (edge.is_start) {
            if (is_open() && from < edge.at) close(edge.at - 1, edge.memory);
            from = is_open() ? std::max(from, edge.at) : edge.at;
            ++open[edge.kind];
            const bool is_mixed = (open[1] != 0) + (open[2] != 0) + (open[3] != 0) > 1;
            if (is_mixed && !result.first_conflict) result.first_conflict = edge.at;
        } else {
            if (from <= edge.at && !is_over) close(edge.at, edge.memory);
            --open[edge.kind];
            // Behind the last address there is nothing.
            is_over = edge.at == UINT64_MAX;
            from = edge.at + 1;
        }
    }
    return result;
}

std::uint64_t count_bytes(std::span<const Piece> pieces) {
    std::uint64_t sum = 0;
    for (const Piece& piece : pieces) sum += piece.last - piece.first + 1;
    return sum;
}

std::vector<Piece> pieces_of(std::span<const VmMemory> memory, const GrantedDevice& device) {
    std::vector<Piece> pieces;
    if (device.reaches_all) {
        pieces.reserve(memory.size());
        for (std::size_t i = 0; i < memory.size(); ++i) {
            const Permission permission{true, memory[i].is_writable};
            pieces.push_back(
                {memory[i].at, memory[i].at + (memory[i].size_bytes - 1), kind_of(permission), i});
        }
        return pieces;
    }
    pieces.reserve(device.ranges.size());
    for (const GrantedRange& range : device.ranges) {
        if (range.size_bytes == 0 || kind_of(range.permission) == 0) continue;
        const std::uint64_t first = memory[range.memory].at + range.offset_bytes;
        pieces.push_back({first, first + (range.size_bytes - 1), kind_of(range.permission), range.memory});
    }
    return pieces;
}

}  // namespace

Reach reach_of(std::span<const VmMemory> memory, const GrantedDevice& device, std::uint64_t granule) {
    Reach reach;
    std::vector<Piece> pieces = pieces_of(memory, device);
    const Sweep asked = sweep(pieces);
    reach.first_conflict = asked.first_conflict;
    const std::uint64_t mask = granule - 1;
    std::vector<Piece> grown;
    grown.reserve(pieces.size());
    for (const Piece& piece : pieces) {
        const VmMemory& in = memory[piece.memory];
        const std::uint64_t memory_last = in.at + (in.size_bytes - 1);
        Piece whole{piece.first & ~mask, piece.last | mask, piece.kind, piece.memory};
        if (whole.first < in.at || whole.last > memory_last) {
            if (!reach.ragged_memory) reach.ragged_memory = piece.memory;
            // Whole granules inside of the memory; none may be left.
            if (whole.first < in.at) whole.first += granule;
            if (whole.last > memory_last) whole.last -= granule;
            if (whole.first > whole.last || whole.first < in.at || whole.last > memory_last) continue;
        }
        grown.push_back(whole);
    }
    const Sweep mapped = sweep(grown);
    if (!asked.first_conflict) reach.first_grown_conflict = mapped.first_conflict;
    const std::uint64_t asked_bytes = count_bytes(asked.pieces);
    const std::uint64_t mapped_bytes = count_bytes(mapped.pieces);
    reach.grown_bytes = mapped_bytes > asked_bytes ? mapped_bytes - asked_bytes : 0;
    reach.mappings.reserve(mapped.pieces.size());
    for (const Piece& piece : mapped.pieces) {
        const Permission permission{(piece.kind & 1) != 0, (piece.kind & 2) != 0};
        reach.mappings.push_back({piece.first, piece.last - piece.first + 1, permission, piece.memory});
    }
    return reach;
}

std::uint64_t count_page_entries(std::uint64_t iova, std::uint64_t size_bytes, std::uint64_t page_sizes,
                                 std::uint64_t backing_page_bytes) {
    std::uint64_t count = 0;
    // What is left in front of, and behind, the part that larger pages have taken.
    std::uint64_t front = size_bytes;
    std::uint64_t back = 0;
    bool is_split = false;
    for (std::uint64_t page = backing_page_bytes; page != 0; page >>= 1) {
        if ((page_sizes & page) == 0) continue;
        const std::uint64_t lead = std::min((~iova + 1) & (page - 1), front);
        if (!is_split) {
            const std::uint64_t whole = (front - lead) / page * page;
            if (whole == 0) continue;
            is_split = true;
            count += whole / page;
            back = front - lead - whole;
            front = lead;
        } else {
            count += (front - lead) / page + back / page;
            front = lead;
            back %= page;
        }
    }
    return count;
}

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/iort_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>

#include "guestmem/dma/discover/cover_pieces.hpp"

namespace guestmem::dma {
namespace {

IortPiece piece_of(const IortMapping& mapping, std::uint32_t first, std::uint32_t last) {
    return {.first = first,
            .last = last,
            .output_base =
                mapping.is_single ? mapping.output_base : mapping.output_base + (first - mapping.input_base),
            .output_node = mapping.output_node,
            .offset = static_cast<std::uint32_t>(mapping.offset),
            .is_shared = mapping.is_single};
}

void complain_of_seam(TableFacts& facts, std::size_t offset, std::uint32_t id) {
    facts.complain(offset, [&] {
        return fmt::format(
            "this ID mapping has the id {:#x}, with which another one begins: its count is the number "
            "of ids, not that minus 1; the other one counts",
            id);
    });
}

/// What can be used of them.
std::vector<IortMapping> usable(const std::vector<IortMapping>& mappings, SingleMapping single,
                                TableFacts& facts) {
    std::vector<IortMapping> good;
    good.reserve(mappings.size());
    for (const IortMapping& mapping : mappings) {
        if (mapping.output_node == 0) {
            facts.complain(mapping.offset, "this ID mapping leads to no node (reference 0): it is not used");
        } else if (mapping.is_single && single == SingleMapping::is_an_error) {
            facts.complain(mapping.offset,
                           "an ID mapping of this kind of node cannot be single: it is not used");
        } else if (!mapping.is_single && mapping.is_past_the_end()) {
            facts.complain(mapping.offset, [&] {
                return fmt::format(
                    "this ID mapping of {:#x} + 1 ids from {:#x} goes past 32 bits: it is not used",
                    mapping.count_minus_1, mapping.input_base);
            });
        } else {
            good.push_back(mapping);
        }
    }
    return good;
}

/// Each begins behind the one before, or with its last id, which the count error explains.
bool are_ordered(const std::vector<IortMapping>& mappings) {
    for (std::size_t i = 0; i < mappings.size(); ++i) {
        if (mappings[i].is_single) return false;
        if (i == 0 || mappings[i].input_base > mappings[i - 1].last()) continue;
        if (mappings[i].input_base < mappings[i - 1].last() || mappings[i - 1].count_minus_1 == 0)
            return false;
    }
    return true;
}

std::vector<IortPiece> pieces_of_ordered(const std::vector<IortMapping>& mappings, TableFacts& facts) {
    std::vector<IortPiece> pieces;
    pieces.reserve(mappings.size());
    for (const IortMapping& mapping : mappings) {
        if (!pieces.empty() && pieces.back().last == mapping.input_base) {
            complain_of_seam(facts, pieces.back().offset, mapping.input_base);
            --pieces.back().last;
        }
        pieces.push_back(piece_of(mapping, mapping.input_base, mapping.last()));
    }
    return pieces;
}

class UnorderedPieces {
public:
    explicit UnorderedPieces(TableFacts& facts) : facts_(facts) {}

    void add(const IortMapping& mapping);
    std::vector<IortPiece> take();

private:
    void take_over(const IortMapping& mapping, std::uint32_t id, std::size_t from);
    void add_single(const IortMapping& mapping);

    TableFacts& facts_;
    Claims claims_;
    std::vector<IortPiece> pieces_;
    std::map<std::uint32_t, std::size_t> provisional_;  // last id of a mapping, to its piece
};

void UnorderedPieces::take_over(const IortMapping& mapping, std::uint32_t id, std::size_t from) {
    IortPiece& loser = pieces_[from];
    if (loser.first == loser.last) {
        loser = piece_of(mapping, id, id);
    } else {
        --loser.last;
        pieces_.push_back(piece_of(mapping, id, id));
    }
}

void UnorderedPieces::add_single(const IortMapping& mapping) {
    for (const auto& [id, from] : provisional_) take_over(mapping, id, from);
    provisional_.clear();
    for (const Piece& rest : claims_.claim({0, std::numeric_limits<std::uint32_t>::max()}))
        pieces_.push_back(piece_of(mapping, rest.first, rest.last));
}

void UnorderedPieces::add(const IortMapping& mapping) {
    if (mapping.is_single) return add_single(mapping);
    const auto seam = provisional_.find(mapping.input_base);
    std::uint64_t count_taken = 0;
    if (seam != provisional_.end()) {
        complain_of_seam(facts_, pieces_[seam->second].offset, mapping.input_base);
        take_over(mapping, mapping.input_base, seam->second);
        provisional_.erase(seam);
        count_taken = 1;
    }
    for (const Piece& piece : claims_.claim({mapping.input_base, mapping.last()})) {
        count_taken += std::uint64_t{piece.last} - piece.first + 1;
        pieces_.push_back(piece_of(mapping, piece.first, piece.last));
        if (piece.last == mapping.last() && mapping.count_minus_1 > 0)
            provisional_.emplace(piece.last, pieces_.size() - 1);
    }
    if (count_taken != std::uint64_t{mapping.count_minus_1} + 1)
        facts_.complain(mapping.offset, [&] {
            return fmt::format("this ID mapping of {:#x}-{:#x} overlaps one before it, which counts",
                               mapping.input_base, mapping.last());
        });
}

std::vector<IortPiece> UnorderedPieces::take() {
    std::ranges::sort(pieces_, {}, &IortPiece::first);
    return std::move(pieces_);
}

}  // namespace

IortMapping read_iort_mapping(const TableBytes& node, std::size_t at) {
    return {.offset = node.offset() + at,
            .input_base = node.get<std::uint32_t>(at),
            .count_minus_1 = node.get<std::uint32_t>(at + 4),
            .output_base = node.get<std::uint32_t>(at + 8),
            .output_node = node.get<std::uint32_t>(at + 12),
            .is_single = (node.get<std::uint32_t>(at + 16) & 1) != 0};
}

std::vector<IortPiece> iort_pieces(const std::vector<IortMapping>& mappings, SingleMapping single,
                                   std::size_t& unordered_left, TableFacts& facts) {
    const std::vector<IortMapping> good = usable(mappings, single, facts);
    if (are_ordered(good)) return pieces_of_ordered(good, facts);
    if (good.size() > unordered_left) {
        facts.complain(good[0].offset, "too many ID mappings in no order: those of this node are not used");
        return {};
    }
    unordered_left -= good.size();
    UnorderedPieces pieces{facts};
    for (const IortMapping& mapping : good) pieces.add(mapping);
    return pieces.take();
}

}  // namespace guestmem::dma

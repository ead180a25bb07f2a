// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/cover_pieces.hpp"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>

namespace guestmem::dma {
namespace {

bool add_part(TableFacts& facts, const CoverFact& cover, std::uint32_t first, std::uint32_t last) {
    const PciRange& whole = std::get<PciRange>(cover.which);
    if (first > last) return true;
    CoverFact part = cover;
    part.which = PciRange{whole.segment, static_cast<std::uint16_t>(first), static_cast<std::uint16_t>(last)};
    if (part.identity.first_id && !part.identity.is_shared)
        part.identity.first_id = *part.identity.first_id + (first - whole.first_rid);
    return facts.add(std::move(part));
}

}  // namespace

std::vector<IdBlock> id_blocks(std::uint32_t first, std::uint32_t last) {
    std::vector<IdBlock> blocks;
    std::uint64_t at = first;
    while (at <= last) {
        const std::uint64_t room = std::bit_floor(std::uint64_t{last} - at + 1);
        const std::uint64_t aligned = at == 0 ? room : std::uint64_t{1} << std::countr_zero(at);
        const std::uint64_t size = std::min(room, aligned);
        blocks.push_back({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(size - 1)});
        at += size;
    }
    return blocks;
}

std::vector<Piece> Claims::claim(Piece range) {
    std::vector<Piece> pieces;
    if (range.first > range.last) return pieces;
    constexpr std::uint32_t most = std::numeric_limits<std::uint32_t>::max();
    Piece merged = range;
    auto at = claimed_.upper_bound(range.first);
    if (at != claimed_.begin()) {
        const auto before = std::prev(at);
        // Touching ranges become one: their number stays small where firmware lists function after function.
        if (before->second >= range.first || before->second + 1 == range.first) at = before;
    }
    std::uint64_t free_from = range.first;
    while (at != claimed_.end() && (at->first <= range.last || at->first - 1 == range.last)) {
        if (at->first > free_from)
            pieces.push_back({static_cast<std::uint32_t>(free_from), std::min(at->first - 1, range.last)});
        free_from = std::max<std::uint64_t>(free_from, std::uint64_t{at->second} + 1);
        merged.first = std::min(merged.first, at->first);
        merged.last = std::max(merged.last, at->second);
        at = claimed_.erase(at);
    }
    if (free_from <= range.last && free_from <= most)
        pieces.push_back({static_cast<std::uint32_t>(free_from), range.last});
    claimed_.emplace_hint(at, merged.first, merged.last);
    return pieces;
}

bool add_range_cover(TableFacts& facts, const CoverFact& cover, std::optional<PciAddress> self) {
    const PciRange& range = std::get<PciRange>(cover.which);
    const bool has_self = self && self->segment == range.segment && self->rid >= range.first_rid &&
                          self->rid <= range.last_rid && cover.identity.rid_mask == 0xffff;
    if (!has_self) return facts.add(cover);
    return (self->rid == range.first_rid || add_part(facts, cover, range.first_rid, self->rid - 1U)) &&
           add_part(facts, cover, self->rid + 1U, range.last_rid);
}

}  // namespace guestmem::dma

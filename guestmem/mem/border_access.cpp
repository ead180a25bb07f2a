// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/border_access.hpp"

#include <algorithm>
#include <array>
#include <bit>

#include "guestmem/sys/guarded.hpp"

namespace guestmem {

namespace {

/// How many bytes of the region there are from the address on, when 1 to 7 and up to a multiple of 8; else 0. At other
/// borders the pieces would not be aligned.
std::size_t count_up_to_border(const LookupEntry& low, std::uint64_t address) {
    if constexpr (std::endian::native != std::endian::little) return 0;
    const std::uint64_t past_room = address - low.base - low.room;
    if (past_room >= 7 || low.room == 0 || ((low.base + low.room + 7) & 7) != 0) return 0;
    return 7 - past_room;
}

/// The region that begins at this address, if 8 bytes fit there.
const LookupEntry* region_at(const MemoryMap& map, std::uint64_t address) {
    const LookupEntry& entry = map.index().find(address);
    return entry.base == address && entry.room != 0 && address != 0 ? &entry : nullptr;
}

/// Stores a piece of a word in its place, or, when the count lacks that bit, somewhere that nobody reads: which pieces
/// a border needs is as random as its address, and a wrong guess costs more than a store. After a fault nothing more
/// is stored.
class PieceStore {
public:
    /// `skip` is the place of the piece in the word.
    template <typename T>
    [[gnu::always_inline]] void store(std::byte* at, std::uint64_t word, std::size_t skip, bool is_wanted) {
        if (!is_good_) return;
        // Modulo 64: a piece that is not wanted may have its place behind the word.
        const auto piece = static_cast<T>(word >> (8 * skip % 64));
        if (try_store(is_wanted ? at : waste_.data(), piece)) [[likely]]
            return;
        is_good_ = false;
        count_done_ = skip;
    }
    [[nodiscard]] bool is_good() const { return is_good_; }
    /// The bytes of the word before the fault.
    [[nodiscard]] std::size_t count_done() const { return count_done_; }

private:
    alignas(8) std::array<std::byte, 8> waste_;
    bool is_good_ = true;
    std::size_t count_done_ = 0;
};

}  // namespace

bool read_across_border(const MemoryMap& map, const LookupEntry& low, std::uint64_t address,
                        std::size_t size_bytes, std::uint64_t& word) {
    const std::size_t count_low = count_up_to_border(low, address);
    if (count_low == 0) return false;
    // The last 8 bytes of the region, without those before the address.
    std::uint64_t last = 0;
    if (!try_load(low.host + (low.room - 1), last)) return false;
    word = last >> (64 - 8 * count_low);
    if (count_low >= size_bytes) return true;
    const LookupEntry* const high = region_at(map, address + count_low);
    std::uint64_t first = 0;
    if (high == nullptr || !try_load(high->host, first)) return false;
    word |= first << (8 * count_low);
    return true;
}

bool write_across_border(const MemoryMap& map, const LookupEntry& low, std::uint64_t address,
                         std::size_t size_bytes, std::uint64_t word) {
    const std::size_t count_low = count_up_to_border(low, address);
    if (count_low == 0 || count_low >= size_bytes || !low.is_writable()) return false;
    const LookupEntry* const high = region_at(map, address + count_low);
    if (high == nullptr || !high->is_writable()) return false;

    // Up to the border 1, 2, 4 bytes, after it 4, 2, 1: each piece is aligned.
    const std::size_t count_high = size_bytes - count_low;
    const std::uint64_t offset = address - low.base;
    std::byte* const at = low.host + offset;
    const std::size_t low_2 = count_low & 1;
    const std::size_t low_4 = count_low & 3;
    const std::size_t high_2 = count_high & 4;
    const std::size_t high_1 = count_high & 6;
    PieceStore pieces;
    pieces.store<std::uint8_t>(at, word, 0, (count_low & 1) != 0);
    pieces.store<std::uint16_t>(at + low_2, word, low_2, (count_low & 2) != 0);
    pieces.store<std::uint32_t>(at + low_4, word, low_4, (count_low & 4) != 0);
    pieces.store<std::uint32_t>(high->host, word, count_low, (count_high & 4) != 0);
    pieces.store<std::uint16_t>(high->host + high_2, word, count_low + high_2, (count_high & 2) != 0);
    pieces.store<std::uint8_t>(high->host + high_1, word, count_low + high_1, (count_high & 1) != 0);
    const std::size_t done = pieces.is_good() ? size_bytes : pieces.count_done();
    low.tracker()->mark_written(offset, std::min(done, count_low));
    high->tracker()->mark_written(0, done - std::min(done, count_low));
    return pieces.is_good();
}

}  // namespace guestmem

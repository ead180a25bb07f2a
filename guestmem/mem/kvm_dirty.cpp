// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/kvm_dirty.hpp"

#include <fmt/format.h>

#include <bit>

namespace guestmem {
namespace {

static_assert(std::endian::native == std::endian::little, "KVM's bitmaps are read as words of this host");

bool fits(const KvmSlotPlace& place) {
    return std::has_single_bit(place.page_bytes) && place.slot_bytes % place.page_bytes == 0 &&
           place.region_offset <= place.tracker.size_bytes() &&
           place.slot_bytes <= place.tracker.size_bytes() - place.region_offset;
}

}  // namespace

Result<void> merge_kvm_bitmap(std::span<const std::uint64_t> words, const KvmSlotPlace& place) {
    if (!fits(place))
        return Error{
            Errc::out_of_range,
            fmt::format(
                "dirty bitmap of a memory slot: {} bytes in pages of {} at offset {} do not fit into a "
                "region of {} bytes",
                place.slot_bytes, place.page_bytes, place.region_offset, place.tracker.size_bytes())};
    const std::uint64_t count_pages = place.slot_bytes / place.page_bytes;
    const std::uint64_t count_words = count_pages / 64 + (count_pages % 64 != 0 ? 1 : 0);
    if (words.size() < count_words)
        return Error{Errc::invalid_argument,
                     fmt::format("dirty bitmap of a memory slot: {} pages need {} words, there are {}",
                                 count_pages, count_words, words.size())};
    DirtyLog* const log = place.tracker.log();
    if (log == nullptr)
        return Error{Errc::invalid_argument,
                     "dirty bitmap of a memory slot: tracking of its region is off; start it"};
    for_each_bit_run(words, count_pages, [&](std::uint64_t page, std::uint64_t count) {
        log->mark_range(place.region_offset + page * place.page_bytes, count * place.page_bytes);
    });
    return {};
}

Result<KvmDirtyRing> KvmDirtyRing::create(std::span<KvmDirtyGfn> entries, std::uint32_t next) {
    if (!std::has_single_bit(entries.size()) || entries.size() > max_kvm_dirty_ring_entries)
        return Error{Errc::invalid_argument,
                     fmt::format("a KVM dirty ring of {} entries: give a power of two up to {}",
                                 entries.size(), max_kvm_dirty_ring_entries)};
    return KvmDirtyRing{entries, next};
}

std::optional<KvmStrayReason> KvmDirtyRing::mark_page(const KvmSlotPlace& place, std::uint64_t page) {
    if (!fits(place) || page >= place.slot_bytes / place.page_bytes) return KvmStrayReason::outside_of_slot;
    DirtyLog* const log = place.tracker.log();
    if (log == nullptr) return KvmStrayReason::tracking_is_off;
    log->mark(place.region_offset + page * place.page_bytes, place.page_bytes);
    return std::nullopt;
}

}  // namespace guestmem

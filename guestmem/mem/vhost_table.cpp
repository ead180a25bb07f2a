// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/vhost_table.hpp"

#include <fmt/format.h>

#include <cstring>
#include <optional>
#include <utility>

#include "guestmem/base/sizes.hpp"

namespace guestmem {
namespace {

Error region_error(const Region& region, Errc code, std::string_view why) {
    return Error{code, fmt::format("vhost table: region '{}' ({:#x} to {:#x}): {}", region.name(),
                                   region.range().base().value(), region.range().last().value(), why)};
}

/// Why no back end of this kind gets the region; nothing when it does.
std::optional<VhostOmissionReason> omission_of(const Region& region, VhostBackEnd back_end) {
    if (!region.is_memory()) return VhostOmissionReason::device;
    if (!region.is_writable()) return VhostOmissionReason::not_writable;
    if (back_end == VhostBackEnd::kernel) return std::nullopt;
    if (!region.memory()->file()) return VhostOmissionReason::no_file;
    if (region.memory()->sharing() != MapSharing::shared) return VhostOmissionReason::private_copy;
    return std::nullopt;
}

std::string_view advice_for(VhostOmissionReason reason) {
    if (reason == VhostOmissionReason::no_file)
        return "it has no file that a back end could map; make it of a memfd, or leave it out";
    return "it is a private copy of its file, whose bytes a back end would not see; map it shared, or leave it out";
}

/// The entry of one region by itself.
VhostEntry entry_of(const std::shared_ptr<const Region>& region, VhostBackEnd back_end) {
    VhostEntry entry;
    entry.region = {.guest_phys_addr = region->range().base().value(),
                    .memory_size = region->range().size_bytes(),
                    .userspace_addr = reinterpret_cast<std::uintptr_t>(region->host_base()),
                    .mmap_offset = 0};
    entry.parts.push_back(region);
    if (back_end == VhostBackEnd::kernel) return entry;
    const FileBacking file = *region->memory()->file();
    entry.fd = file.fd;
    // The bytes are mapped, so the file reaches that far: no overflow.
    entry.region.mmap_offset = file.offset_bytes + region->memory_offset_bytes();
    return entry;
}

/// Whether a back end can map at the entry's offset; that is 0 for the kernel, which maps nothing.
Result<void> check_offset(const VhostEntry& entry) {
    if (entry.region.mmap_offset % page_size_bytes == 0) return {};
    return region_error(
        *entry.parts.front(), Errc::invalid_argument,
        fmt::format("its bytes begin at {:#x} of the file; a back end maps at multiples of {}",
                    entry.region.mmap_offset, page_size_bytes));
}

/// Whether the bytes of `next` follow those of `entry`, for the guest and for the back end.
bool continues(const VhostEntry& entry, const VhostEntry& next, VhostBackEnd back_end) {
    const Region& last = *entry.parts.back();
    const Region& first = *next.parts.front();
    // One mapping of one file: its offsets follow each other where its host addresses do.
    const bool has_same_file = back_end == VhostBackEnd::kernel || last.memory() == first.memory();
    const bool has_size = next.region.memory_size <= UINT64_MAX - entry.region.memory_size;
    return has_same_file && has_size && last.range().is_followed_by(first.range()) &&
           entry.region.userspace_addr + entry.region.memory_size == next.region.userspace_addr;
}

template <typename T>
void append(std::vector<std::byte>& bytes, const T& value) {
    // Not insert(): g++ 12 takes its moves for overflows.
    const std::size_t end = bytes.size();
    bytes.resize(end + sizeof value);
    std::memcpy(bytes.data() + end, &value, sizeof value);
}

}  // namespace

std::string_view to_string(VhostOmissionReason reason) {
    switch (reason) {
        case VhostOmissionReason::device: return "belongs to a device";
        case VhostOmissionReason::not_writable: return "must not be written";
        case VhostOmissionReason::no_file: return "has no file";
        case VhostOmissionReason::private_copy: return "is a private copy of its file";
    }
    return "unknown";
}

Result<VhostTable> VhostTable::create(const MemoryMap& map, const VhostTableOptions& options) {
    VhostTable table;
    for (const auto& region : map.regions()) {
        if (const auto reason = omission_of(*region, options.back_end)) {
            const bool is_ram = region->is_writable();
            if (is_ram && options.unmappable == VhostUnmappable::is_error)
                return region_error(*region, Errc::unsupported, advice_for(*reason));
            table.left_out_.push_back({region, *reason});
            continue;
        }
        VhostEntry entry = entry_of(region, options.back_end);
        if (!table.entries_.empty() && continues(table.entries_.back(), entry, options.back_end)) {
            table.entries_.back().region.memory_size += entry.region.memory_size;
            table.entries_.back().parts.push_back(region);
        } else {
            GM_TRY(check_offset(entry));
            table.entries_.push_back(std::move(entry));
        }
    }
    std::size_t max_regions = options.max_regions;
    if (max_regions == 0)
        max_regions =
            options.back_end == VhostBackEnd::kernel ? max_vhost_kernel_regions : max_vhost_user_regions;
    if (table.entries_.size() > max_regions)
        return Error{
            Errc::exhausted,
            fmt::format("vhost table: the map has {} regions of RAM that do not continue each other, and "
                        "the back end takes {}",
                        table.entries_.size(), max_regions)};
    return table;
}

std::vector<FdView> VhostTable::fds() const {
    std::vector<FdView> fds;
    for (const VhostEntry& entry : entries_)
        if (entry.fd.is_open()) fds.push_back(entry.fd);
    return fds;
}

std::vector<std::byte> VhostTable::encode() const {
    std::vector<std::byte> bytes;
    append(bytes, static_cast<std::uint32_t>(entries_.size()));
    append(bytes, std::uint32_t{0});
    for (const VhostEntry& entry : entries_) append(bytes, entry.region);
    return bytes;
}

std::vector<std::byte> VhostTable::encode_single(const VhostRegion& region) {
    std::vector<std::byte> bytes;
    append(bytes, std::uint64_t{0});
    append(bytes, region);
    return bytes;
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "guestmem/mem/address.hpp"

/// A range of addresses: a base and a size, never empty, never past the end of the space.
///
/// Contract: `last()` is inclusive, so a range may end at 2^64 - 1, the last address there is. What is empty or
/// would wrap cannot be built. Ranges order by base, then by size.
/// Limits: the range of all 2^64 bytes cannot be built, since its size has no 64-bit number; who means "everything"
/// builds it in two halves, as vhost does.
/// Threads: any; plain values.
/// Example: `GuestRange::create(GuestAddress{0x1000}, 0x2000)->last()` is 0x2fff.

namespace guestmem {

template <typename Space>
class AddressRange {
public:
    /// Nothing when `size_bytes` is 0 or the range would wrap.
    [[nodiscard]] static constexpr std::optional<AddressRange> create(Address<Space> base,
                                                                      std::uint64_t size_bytes) {
        if (size_bytes == 0 || !base.checked_add(size_bytes - 1)) return std::nullopt;
        return AddressRange{base, size_bytes};
    }
    /// From `first` to `last`, both inside; nothing when last < first, or for the whole space.
    [[nodiscard]] static constexpr std::optional<AddressRange> from_first_last(Address<Space> first,
                                                                               Address<Space> last) {
        const auto distance = last.checked_offset_from(first);
        if (!distance || *distance == Address<Space>::max().value()) return std::nullopt;
        return AddressRange{first, *distance + 1};
    }

    [[nodiscard]] constexpr Address<Space> base() const { return base_; }
    [[nodiscard]] constexpr Address<Space> last() const {
        return Address<Space>{base_.value() + (size_bytes_ - 1)};
    }
    [[nodiscard]] constexpr std::uint64_t size_bytes() const { return size_bytes_; }

    [[nodiscard]] constexpr bool contains(Address<Space> address) const {
        return address.value() - base_.value() < size_bytes_;
    }
    [[nodiscard]] constexpr bool contains(const AddressRange& other) const {
        return contains(other.base_) &&
               other.size_bytes_ <= size_bytes_ - (other.base_.value() - base_.value());
    }
    [[nodiscard]] constexpr bool overlaps(const AddressRange& other) const {
        return base_ <= other.last() && other.base_ <= last();
    }
    /// Whether `other` begins right after the last address of this one.
    [[nodiscard]] constexpr bool is_followed_by(const AddressRange& other) const {
        return last() != Address<Space>::max() && other.base_.value() == last().value() + 1;
    }
    /// What both have.
    [[nodiscard]] constexpr std::optional<AddressRange> intersection(const AddressRange& other) const {
        if (!overlaps(other)) return std::nullopt;
        const auto first = base_ < other.base_ ? other.base_ : base_;
        const auto end = last() < other.last() ? last() : other.last();
        return from_first_last(first, end);
    }

    friend constexpr auto operator<=>(const AddressRange&, const AddressRange&) = default;

private:
    constexpr AddressRange(Address<Space> base, std::uint64_t size_bytes)
        : base_(base), size_bytes_(size_bytes) {}

    Address<Space> base_;
    std::uint64_t size_bytes_;
};

using GuestRange = AddressRange<GuestPhysicalSpace>;
using IoRange = AddressRange<IoVirtualSpace>;

}  // namespace guestmem

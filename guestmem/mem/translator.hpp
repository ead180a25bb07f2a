// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "guestmem/mem/access_error.hpp"
#include "guestmem/mem/range.hpp"

/// Who knows where an I/O virtual address leads: an IOMMU of a guest, a vhost-user front end, a table.
///
/// Concepts: a device behind an IOMMU says I/O virtual addresses (IOVA). A Translation is one answer: a range of IOVA
/// leads to as many guest physical addresses in a row, with permissions. An IoSpace (translated_memory.hpp) asks its
/// Translator for what its IOTLB does not have.
/// Contract: a Translation cannot wrap, neither the range nor where it leads; what would wrap cannot be built. Nothing
/// else about an answer is believed: a guest or another process may have written it. An answer without the address
/// that was asked for is taken as translator_failed, one without the permission as denied, and where it leads is
/// looked up in the map like any guest address.
/// Threads: translate() any, several at once. No lock is held and no access is under way while it runs, so it may
/// block, and it may wait for an invalidation of the same IoSpace.
/// Example:
///     class Identity : public Translator {
///         AccessResult<Translation> translate(IoAddress address, Access access) override {
///             const auto page = IoRange::create(IoAddress{address.value() & ~0xfffULL}, 0x1000);
///             const auto same = Translation::create(*page, GuestAddress{page->base().value()}, Permissions::read);
///             if (!same) return AccessError{AccessReason::untranslated, access, address.value(), 0};
///             return *same;
///         }
///     };

namespace guestmem {

enum class Permissions : std::uint8_t { none = 0, read = 1, write = 2, read_write = 3 };

[[nodiscard]] constexpr Permissions permission_for(Access access) {
    return access == Access::read ? Permissions::read : Permissions::write;
}
[[nodiscard]] constexpr Permissions operator|(Permissions a, Permissions b) {
    return static_cast<Permissions>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}
[[nodiscard]] constexpr Permissions operator&(Permissions a, Permissions b) {
    return static_cast<Permissions>(static_cast<unsigned>(a) & static_cast<unsigned>(b));
}
[[nodiscard]] constexpr bool allows(Permissions permissions, Access access) {
    return (permissions & permission_for(access)) != Permissions::none;
}

class Translation {
public:
    /// Nothing when the guest addresses would wrap. Bits of `permissions` that mean nothing are dropped.
    [[nodiscard]] static constexpr std::optional<Translation> create(const IoRange& from, GuestAddress to,
                                                                     Permissions permissions) {
        if (!to.checked_add(from.size_bytes() - 1)) return std::nullopt;
        return Translation{from, to, permissions & Permissions::read_write};
    }

    [[nodiscard]] constexpr const IoRange& from() const { return from_; }
    /// Where the first address of from() leads.
    [[nodiscard]] constexpr GuestAddress to() const { return to_; }
    [[nodiscard]] constexpr Permissions permissions() const { return permissions_; }

    /// Where an address leads; nothing for one that is not in from().
    [[nodiscard]] constexpr std::optional<GuestAddress> guest_address_of(IoAddress address) const {
        if (!from_.contains(address)) return std::nullopt;
        return GuestAddress{to_.value() + (address.value() - from_.base().value())};
    }
    /// What this translation says about a range; nothing when it says nothing.
    [[nodiscard]] constexpr std::optional<Translation> within(const IoRange& range) const {
        const auto both = from_.intersection(range);
        if (!both) return std::nullopt;
        return Translation{*both, *guest_address_of(both->base()), permissions_};
    }
    /// Both as one, when `next` goes on where this ends, on both sides and with the same permissions.
    [[nodiscard]] constexpr std::optional<Translation> joined_with(const Translation& next) const {
        const std::uint64_t last_to = to_.value() + (from_.size_bytes() - 1);
        const bool continues = from_.is_followed_by(next.from_) && next.to_.value() - last_to == 1 &&
                               next.to_ > to_ && next.permissions_ == permissions_;
        const auto both = IoRange::from_first_last(from_.base(), next.from_.last());
        if (!continues || !both) return std::nullopt;
        return Translation{*both, to_, permissions_};
    }

    friend constexpr bool operator==(const Translation&, const Translation&) = default;

private:
    constexpr Translation(const IoRange& from, GuestAddress to, Permissions permissions)
        : from_(from), to_(to), permissions_(permissions) {}

    IoRange from_;
    GuestAddress to_;
    Permissions permissions_;
};

class Translator {
public:
    Translator() = default;
    Translator(const Translator&) = delete;
    Translator& operator=(const Translator&) = delete;
    virtual ~Translator() = default;

    /// A translation that has the address and permits the access; the larger its range, the fewer questions follow.
    /// Otherwise the reason: `untranslated` when the address has no mapping, `denied` when its mapping does not permit
    /// the access, `translator_failed` when whoever knows is gone or makes no sense. Other reasons count as the last.
    [[nodiscard]] virtual AccessResult<Translation> translate(IoAddress address, Access access) = 0;
};

}  // namespace guestmem

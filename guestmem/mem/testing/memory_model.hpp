// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/mem/access_error.hpp"
#include "guestmem/mem/region.hpp"

/// What a view has to do, said in the plainest way: byte by byte, each found by looking at every region.
///
/// Concepts: a test does everything twice, through a view and here, and compares results, errors, bytes and dirty
/// pages. Nothing here knows of indexes, runs, chunks or wide copies.
/// Contract: each verb gives nothing when it succeeds, or the AccessError that a view has to give.
/// Threads: one at a time.
/// Example:
///     const auto expected = model.write(address, bytes);
///     const auto result = view.write_bytes(address, bytes);
///     EXPECT_EQ(result ? std::nullopt : std::optional{result.error()}, expected);

namespace guestmem::testing {

struct ModelRegion {
    std::uint64_t base = 0;
    std::uint64_t size_bytes = 0;
    RegionKind kind = RegionKind::ram;
    std::size_t distance = 0;      ///< of its host bytes from the guest's addresses, modulo 8
    std::vector<std::byte> bytes;  ///< none for a device
    std::set<std::uint64_t> dirty_pages;

    [[nodiscard]] bool contains(std::uint64_t address) const {
        return address >= base && address - base <= size_bytes - 1;
    }
};

class MemoryModel {
public:
    using Refused = std::optional<AccessError>;

    MemoryModel(std::vector<ModelRegion> regions, std::uint64_t page_bytes)
        : regions_(std::move(regions)), page_bytes_(page_bytes) {}

    [[nodiscard]] std::vector<ModelRegion>& regions() { return regions_; }

    [[nodiscard]] Refused check(std::uint64_t address, std::uint64_t size_bytes, Access access) const {
        if (wraps(address, size_bytes)) return AccessError{AccessReason::overflow, access, address, 0};
        for (std::uint64_t i = 0; i < size_bytes;) {
            if (const auto reason = reason_at(address + i, access); reason != AccessReason::none)
                return AccessError{reason, access, address + i, 0};
            // The rest of a region is as its first byte; a range may have 2^63 bytes of a device.
            const ModelRegion& region = *find(address + i);
            i += std::min(region.size_bytes - (address + i - region.base), size_bytes - i);
        }
        return {};
    }

    Refused read(std::uint64_t address, std::span<std::byte> to) const {
        if (wraps(address, to.size())) return AccessError{AccessReason::overflow, Access::read, address, 0};
        for (std::size_t i = 0; i < to.size(); ++i) {
            if (const auto reason = reason_at(address + i, Access::read); reason != AccessReason::none)
                return AccessError{reason, Access::read, address + i, i};
            to[i] = byte_at(address + i);
        }
        return {};
    }
    Refused write(std::uint64_t address, std::span<const std::byte> from) {
        if (const auto refused = check(address, from.size(), Access::write)) return refused;
        for (std::size_t i = 0; i < from.size(); ++i) put(address + i, from[i]);
        return {};
    }
    /// As many bytes as there are; `count` says how many.
    Refused read_some(std::uint64_t address, std::span<std::byte> to, std::size_t& count) const {
        count = count_in_a_row(address, to.size(), Access::read);
        for (std::size_t i = 0; i < count; ++i) to[i] = byte_at(address + i);
        if (count != 0 || to.empty()) return {};
        return AccessError{reason_at(address, Access::read), Access::read, address, 0};
    }
    Refused write_some(std::uint64_t address, std::span<const std::byte> from, std::size_t& count) {
        count = count_in_a_row(address, from.size(), Access::write);
        for (std::size_t i = 0; i < count; ++i) put(address + i, from[i]);
        if (count != 0 || from.empty()) return {};
        return AccessError{reason_at(address, Access::write), Access::write, address, 0};
    }
    Refused fill(std::uint64_t address, std::byte value, std::uint64_t size_bytes) {
        if (const auto refused = check(address, size_bytes, Access::write)) return refused;
        for (std::uint64_t i = 0; i < size_bytes; ++i) put(address + i, value);
        return {};
    }
    Refused copy(std::uint64_t to, std::uint64_t from, std::uint64_t size_bytes) {
        if (const auto refused = check(from, size_bytes, Access::read)) return refused;
        if (const auto refused = check(to, size_bytes, Access::write)) return refused;
        std::vector<std::byte> bytes(size_bytes);
        for (std::uint64_t i = 0; i < size_bytes; ++i) bytes[i] = byte_at(from + i);
        for (std::uint64_t i = 0; i < size_bytes; ++i) put(to + i, bytes[i]);
        return {};
    }
    Refused compare(std::uint64_t address, std::span<const std::byte> other,
                    std::strong_ordering& order) const {
        if (const auto refused = check(address, other.size(), Access::read)) return refused;
        order = std::strong_ordering::equal;
        for (std::size_t i = 0; i < other.size() && order == std::strong_ordering::equal; ++i)
            order = byte_at(address + i) <=> other[i];
        return {};
    }
    Refused read_string(std::uint64_t address, std::size_t max_bytes, std::string& text) const {
        text.clear();
        for (std::size_t i = 0; i < max_bytes; ++i) {
            if (wraps(address, i + 1)) return AccessError{AccessReason::overflow, Access::read, address, i};
            if (const auto reason = reason_at(address + i, Access::read); reason != AccessReason::none)
                return AccessError{reason, Access::read, address + i, i};
            if (byte_at(address + i) == std::byte{0}) return {};
            text.push_back(static_cast<char>(byte_at(address + i)));
        }
        return AccessError{AccessReason::unterminated, Access::read, address, max_bytes};
    }

    /// Whether an atomic access of that size is one.
    [[nodiscard]] Refused check_atomic(std::uint64_t address, std::size_t size_bytes, Access access) const {
        if (address % size_bytes != 0) return AccessError{AccessReason::misaligned, access, address, 0};
        if (const auto refused = check(address, size_bytes, access)) return refused;
        const ModelRegion* const region = find(address);
        if (!region->contains(address + (size_bytes - 1)))
            return AccessError{AccessReason::crosses_border, access, address, 0};
        if (region->distance % size_bytes != 0)
            return AccessError{AccessReason::misaligned, access, address, 0};
        return {};
    }

    /// For bytes that were checked.
    [[nodiscard]] std::byte byte_at(std::uint64_t address) const {
        const ModelRegion* const region = find(address);
        return region->bytes[address - region->base];
    }
    void put(std::uint64_t address, std::byte value) {
        auto* const region = const_cast<ModelRegion*>(find(address));
        region->bytes[address - region->base] = value;
        region->dirty_pages.insert((address - region->base) / page_bytes_);
    }
    [[nodiscard]] const ModelRegion* find(std::uint64_t address) const {
        for (const ModelRegion& region : regions_)
            if (region.contains(address)) return &region;
        return nullptr;
    }
    /// The bytes from an address on that one region has; 0 when they may not be accessed.
    [[nodiscard]] std::uint64_t count_in_region(std::uint64_t address, Access access) const {
        if (reason_at(address, access) != AccessReason::none) return 0;
        const ModelRegion* const region = find(address);
        return region->size_bytes - (address - region->base);
    }

    [[nodiscard]] AccessReason reason_at(std::uint64_t address, Access access) const {
        if (const ModelRegion* const region = find(address)) {
            if (region->kind == RegionKind::device) return AccessReason::device;
            const bool is_refused = access == Access::write && region->kind != RegionKind::ram;
            return is_refused ? AccessReason::read_only : AccessReason::none;
        }
        const bool is_last =
            std::ranges::none_of(regions_, [&](const ModelRegion& region) { return region.base > address; });
        return is_last ? AccessReason::out_of_range : AccessReason::hole;
    }

private:
    static bool wraps(std::uint64_t address, std::uint64_t size_bytes) {
        return size_bytes != 0 && size_bytes - 1 > ~address;
    }
    [[nodiscard]] std::size_t count_in_a_row(std::uint64_t address, std::size_t limit, Access access) const {
        std::size_t count = 0;
        while (count < limit && !wraps(address, count + 1) &&
               reason_at(address + count, access) == AccessReason::none)
            ++count;
        return count;
    }

    std::vector<ModelRegion> regions_;
    std::uint64_t page_bytes_;
};

/// How often each reason was the right answer, in this process; at `none`: success. A model test whose operations
/// all end alike proves little.
inline std::array<std::uint64_t, 16> count_outcomes{};

/// What is wrong with a result, when the model says `expected`; nothing when nothing is.
template <typename T>
std::string difference(const MemoryModel::Refused& expected, const AccessResult<T>& result) {
    const auto text = [](const MemoryModel::Refused& refused) {
        return refused ? refused->to_error("it").message() : std::string{"it succeeds"};
    };
    ++count_outcomes.at(static_cast<std::size_t>(expected ? expected->reason() : AccessReason::none));
    const MemoryModel::Refused found = result ? std::nullopt : std::optional{result.error()};
    return found == expected ? "" : text(found) + "; expected: " + text(expected);
}

}  // namespace guestmem::testing

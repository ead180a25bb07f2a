// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/boot_space.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <ranges>
#include <utility>

#include "guestmem/base/sizes.hpp"

namespace guestmem::vmm {

namespace {

constexpr std::size_t max_shown_ranges = 6;

}  // namespace

std::string to_text(const GuestRange& range) {
    return fmt::format("{:#x} to {:#x}", range.base().value(), range.last().value());
}

BootSpace::BootSpace(std::span<const GuestRange> ram) {
    std::vector<GuestRange> sorted{ram.begin(), ram.end()};
    std::ranges::sort(sorted);
    for (const GuestRange& range : sorted) {
        if (!ram_.empty() && (ram_.back().overlaps(range) || ram_.back().is_followed_by(range))) {
            const GuestAddress last = std::max(ram_.back().last(), range.last());
            // Nothing for all of 2^64 bytes, which no machine has: the first part stays as it is.
            if (const auto joined = GuestRange::from_first_last(ram_.back().base(), last))
                ram_.back() = *joined;
        } else {
            ram_.push_back(range);
        }
    }
}

std::string BootSpace::ram_text() const {
    if (ram_.empty()) return "there is no RAM";
    std::string text = "RAM is ";
    for (std::size_t i = 0; i < ram_.size() && i < max_shown_ranges; ++i)
        text += (i == 0 ? "" : ", ") + to_text(ram_[i]);
    if (ram_.size() > max_shown_ranges) text += ", ...";
    return text;
}

bool BootSpace::is_ram(const GuestRange& range) const {
    return std::ranges::any_of(ram_, [&](const GuestRange& ram) { return ram.contains(range); });
}

const Claim* BootSpace::find_overlap(const GuestRange& range) const {
    for (const Claim& claim : claims_)
        if (claim.range.overlaps(range)) return &claim;
    return nullptr;
}

Result<void> BootSpace::claim(std::string name, const GuestRange& range) {
    if (!is_ram(range))
        return Error{Errc::out_of_range,
                     fmt::format("{}: {} is not in RAM as a whole; {}", name, to_text(range), ram_text())};
    if (const Claim* const other = find_overlap(range); other != nullptr)
        return Error{Errc::already_exists, fmt::format("{}: {} overlaps {}, {}", name, to_text(range),
                                                       other->name, to_text(other->range))};
    claims_.push_back({std::move(name), range});
    return {};
}

void BootSpace::block(std::string name, const GuestRange& range) {
    claims_.push_back({std::move(name), range});
}

Result<GuestRange> BootSpace::claim_high(std::string name, std::uint64_t size_bytes,
                                         GuestAddress last_allowed) {
    for (const GuestRange& ram : std::views::reverse(ram_)) {
        std::optional<GuestAddress> last = std::min(ram.last(), last_allowed);
        while (size_bytes != 0 && last && *last >= ram.base() &&
               size_bytes - 1 <= last->value() - ram.base().value()) {
            const std::uint64_t base = (last->value() - (size_bytes - 1)) & ~(page_size_bytes - 1);
            const auto range = GuestRange::create(GuestAddress{base}, size_bytes);
            if (base < ram.base().value() || !range) break;
            const Claim* const other = find_overlap(*range);
            if (other == nullptr) {
                claims_.push_back({std::move(name), *range});
                return *range;
            }
            last = other->range.base().checked_sub(1);
        }
    }
    return Error{Errc::exhausted,
                 fmt::format("{}: no room for {} bytes below {:#x} beside what is there already; {}", name,
                             size_bytes, last_allowed.value(), ram_text())};
}

Result<GuestRange> BootSpace::claim_low(std::string name, std::uint64_t size_bytes,
                                        GuestAddress first_allowed, std::uint64_t alignment) {
    for (const GuestRange& ram : ram_) {
        auto first = std::max(ram.base(), first_allowed).checked_align_up(alignment);
        while (first && *first <= ram.last()) {
            const auto range = GuestRange::create(*first, size_bytes);
            if (!range || !ram.contains(*range)) break;
            const Claim* const other = find_overlap(*range);
            if (other == nullptr) {
                claims_.push_back({std::move(name), *range});
                return *range;
            }
            first = other->range.last().checked_add(1);
            if (first) first = first->checked_align_up(alignment);
        }
    }
    return Error{Errc::exhausted,
                 fmt::format("{}: no room for {} bytes at a multiple of {:#x} from {:#x} on; {}", name,
                             size_bytes, alignment, first_allowed.value(), ram_text())};
}

}  // namespace guestmem::vmm

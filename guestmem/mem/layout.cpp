// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "guestmem/base/check.hpp"

namespace guestmem {

namespace {

using Regions = std::vector<std::shared_ptr<const Region>>;

bool is_in_order(const Regions& regions) {
    for (std::size_t i = 1; i < regions.size(); ++i)
        if (regions[i]->range().base() < regions[i - 1]->range().base()) return false;
    return true;
}

/// By address; those with the same one, which is an error, as they were added.
void sort(Regions& regions) {
    // Keys side by side: comparing through the pointers would fetch each region ten times.
    std::vector<std::pair<std::uint64_t, std::size_t>> keys;
    keys.reserve(regions.size());
    for (std::size_t i = 0; i < regions.size(); ++i) keys.emplace_back(regions[i]->range().base().value(), i);
    std::ranges::sort(keys);
    Regions sorted;
    sorted.reserve(regions.size());
    for (const auto& [base, number] : keys) sorted.push_back(std::move(regions[number]));
    regions = std::move(sorted);
}

std::string describe(const Region& region) {
    return fmt::format("'{}' ({:#x} to {:#x})", region.name(), region.range().base().value(),
                       region.range().last().value());
}

/// Collects problems; a layout with thousands of them is told by its first ones.
class Problems {
public:
    void add(const std::string& problem) {
        if (++count_ > max_said) return;
        if (!text_.empty()) text_ += '\n';
        text_ += problem;
    }
    [[nodiscard]] Result<void> to_result(Errc code) const {
        if (count_ == 0) return {};
        if (count_ <= max_said) return Error{code, text_};
        return Error{code, fmt::format("{}\nand {} more", text_, count_ - max_said)};
    }

private:
    static constexpr std::size_t max_said = 16;
    std::size_t count_ = 0;
    std::string text_;
};

}  // namespace

Layout Layout::from(const MemoryMap& map) {
    Layout layout{{.granule_bytes = map.granule_bytes()}};
    layout.regions_.assign(map.regions().begin(), map.regions().end());
    return layout;
}

Layout& Layout::add(std::shared_ptr<const Region> region) {
    GM_CHECK(region != nullptr);
    regions_.push_back(std::move(region));
    return *this;
}

Result<void> Layout::check() const {
    if (!std::has_single_bit(options_.granule_bytes))
        return Error{Errc::invalid_argument,
                     fmt::format("layout: the granule {} is not a power of two; give 1, or {}",
                                 options_.granule_bytes, page_size_bytes)};
    if (regions_.size() > LookupIndex::max_regions)
        return Error{Errc::exhausted, fmt::format("layout: {} regions; a map has at most {}", regions_.size(),
                                                  LookupIndex::max_regions)};
    Problems problems;
    for (const auto& region : regions_) {
        const GuestRange range = region->range();
        if (!range.base().is_aligned(options_.granule_bytes))
            problems.add(fmt::format("layout: region {}: its base is not a multiple of {}", describe(*region),
                                     options_.granule_bytes));
        if ((range.size_bytes() & (options_.granule_bytes - 1)) != 0)
            problems.add(fmt::format("layout: region {}: its size {} is not a multiple of {}",
                                     describe(*region), range.size_bytes(), options_.granule_bytes));
    }
    const Region* highest = nullptr;  // of those so far, the one that reaches furthest
    for (const auto& region : regions_) {
        if (highest != nullptr && highest->range().overlaps(region->range())) {
            const GuestRange both = *highest->range().intersection(region->range());
            problems.add(fmt::format("layout: regions {} and {} overlap from {:#x} to {:#x}",
                                     describe(*highest), describe(*region), both.base().value(),
                                     both.last().value()));
        }
        if (highest == nullptr || region->range().last() > highest->range().last()) highest = region.get();
    }
    return problems.to_result(Errc::invalid_argument);
}

Result<std::shared_ptr<const MemoryMap>> Layout::freeze() && {
    if (!is_in_order(regions_)) sort(regions_);
    GM_TRY(check());
    return std::shared_ptr<const MemoryMap>{
        std::make_shared<MemoryMap>(MemoryMap::Token{}, std::move(regions_), options_.granule_bytes)};
}

}  // namespace guestmem

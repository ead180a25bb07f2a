// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/memory_model.hpp"
#include "guestmem/mem/testing/test_map.hpp"

/// A random guest's memory twice: as a map of regions, and as a MemoryModel of the same bytes.
///
/// Concepts: regions are small, so that borders are met all the time; they touch each other or leave holes, begin and
/// end anywhere, also at 2^64 - 1, lie at host addresses that suit the guest's or do not, and are RAM, read-only, ROM
/// or a device's. All are tracked.
/// Contract: differences() says in words where the two differ, also in what was written outside of all regions.
/// Threads: one at a time.
/// Example:
///     ModelMemory memory{choices};
///     MapView view{*memory.map()};
///     ... the same to `view` and to memory.model() ...
///     EXPECT_EQ(memory.differences(), "");

namespace guestmem::testing {

class ModelMemory {
public:
    static constexpr std::uint64_t max_regions = 8;

    explicit ModelMemory(Choices& choices) : model_(plan(choices), dirty_page_bytes) {
        for (ModelRegion& region : model_.regions()) {
            RegionOptions options{.name = "region " + std::to_string(buffers_.size()),
                                  .base = GuestAddress{region.base},
                                  .size_bytes = region.size_bytes,
                                  .kind = region.kind};
            buffers_.push_back(nullptr);
            if (region.kind != RegionKind::device) {
                buffers_.back() =
                    std::make_shared<GuardedBytes>(region.size_bytes, (region.base + region.distance) % 8);
                choices.fill(std::span{region.bytes}.first(std::min<std::size_t>(region.bytes.size(), 16)));
                std::ranges::copy(region.bytes, buffers_.back()->bytes().begin());
                options.memory =
                    HostMemory::borrow(buffers_.back()->bytes(), MapAccess::read_write, buffers_.back())
                        .value();
            }
            map_.add(std::move(options));
        }
        map_.start_tracking();
    }

    [[nodiscard]] MemoryModel& model() { return model_; }
    [[nodiscard]] const std::shared_ptr<const MemoryMap>& map() { return map_.map(); }

    /// Somewhere near the edge of a region, inside of one, or anywhere.
    [[nodiscard]] std::uint64_t any_address(Choices& choices) {
        const ModelRegion& region = model_.regions()[choices.below(model_.regions().size())];
        const std::uint64_t near = choices.below(41) - 20;
        switch (choices.below(8)) {
            case 0:
            case 1: return region.base + near;
            case 2:
            case 3: return region.base + region.size_bytes + near;
            case 4: return choices.any();
            case 5: return std::uint64_t{0} - 1 - choices.below(24);
            default: return region.base + choices.below(region.size_bytes);
        }
    }
    /// Mostly few bytes, sometimes more than a region has.
    [[nodiscard]] static std::size_t any_size(Choices& choices) {
        constexpr std::array<std::uint64_t, 8> limits{1, 9, 17, 17, 70, 300, 1400, 9000};
        return choices.below(limits[choices.below(limits.size())]);
    }

    [[nodiscard]] std::string differences() {
        for (std::size_t i = 0; i < buffers_.size(); ++i)
            if (auto found = difference_in(i); !found.empty())
                return "region " + std::to_string(i) + ": " + found;
        return {};
    }
    /// Takes all marks, which have to be those that differences() looks at.
    [[nodiscard]] std::string harvest() {
        for (std::size_t i = 0; i < buffers_.size(); ++i) {
            if (model_.regions()[i].kind == RegionKind::device) continue;
            std::set<std::uint64_t>& expected = model_.regions()[i].dirty_pages;
            const std::vector<std::uint64_t> dirty = map_.take_dirty(i);
            if (!std::ranges::equal(dirty, expected))
                return "region " + std::to_string(i) + ": harvest: other pages are dirty";
            expected.clear();
        }
        return {};
    }

    /// What the layout is, for whoever reads a failed test.
    [[nodiscard]] std::string description() {
        std::string text;
        for (const ModelRegion& region : model_.regions())
            text += std::to_string(region.base) + " + " + std::to_string(region.size_bytes) + " " +
                    std::string{to_string(region.kind)} + ", distance " + std::to_string(region.distance) +
                    "\n";
        return text;
    }

private:
    static std::uint64_t any_region_size(Choices& choices) {
        switch (choices.below(6)) {
            case 0: return 1 + choices.below(16);
            case 1: return 4090 + choices.below(16);
            case 2: return 8 * (1 + choices.below(40));
            default: return 1 + choices.below(600);
        }
    }
    static std::vector<ModelRegion> plan(Choices& choices) {
        std::vector<ModelRegion> regions(1 + choices.below(max_regions));
        std::uint64_t end = 0;
        for (ModelRegion& region : regions) {
            constexpr std::array kinds{RegionKind::ram, RegionKind::ram,       RegionKind::ram,
                                       RegionKind::rom, RegionKind::read_only, RegionKind::device};
            region.kind = kinds[choices.below(kinds.size())];
            if (choices.one_in(2)) end += choices.one_in(3) ? choices.below(1ULL << 40) : choices.below(64);
            region.base = end;
            region.size_bytes = any_region_size(choices);
            if (region.kind == RegionKind::device) {
                if (choices.one_in(4)) region.size_bytes += choices.below(1ULL << 40);
            } else {
                if (choices.one_in(4)) region.distance = choices.below(8);
                region.bytes.resize(region.size_bytes);
            }
            end += region.size_bytes;
        }
        std::uint64_t start = 0;
        switch (choices.below(4)) {
            case 0: break;
            case 1: start = choices.below(4096); break;
            case 2: start = 0 - end; break;  // the last region ends at 2^64 - 1
            default: start = 0 - end - choices.below(64); break;
        }
        for (ModelRegion& region : regions) region.base += start;
        return regions;
    }

    [[nodiscard]] std::string difference_in(std::size_t number) {
        const ModelRegion& region = model_.regions()[number];
        if (region.kind == RegionKind::device) return {};
        const auto bytes = buffers_[number]->bytes();
        const auto [expected, found] = std::ranges::mismatch(region.bytes, bytes);
        if (found != bytes.end())
            return "byte " + std::to_string(found - bytes.begin()) + " is " +
                   std::to_string(std::to_integer<int>(*found)) + ", not " +
                   std::to_string(std::to_integer<int>(*expected));
        if (!buffers_[number]->has_intact_fences()) return "bytes outside of it were written";
        const DirtyLog& log = *map_.region(number).dirty().log();
        for (std::uint64_t page = 0; page < log.count_pages(); ++page)
            if (log.is_marked(page * dirty_page_bytes) != region.dirty_pages.contains(page))
                return "page " + std::to_string(page) + " is " +
                       (region.dirty_pages.contains(page) ? "not marked" : "marked");
        return {};
    }

    MemoryModel model_;
    TestMap map_;
    std::vector<std::shared_ptr<GuardedBytes>> buffers_;  ///< null for a device
};

}  // namespace guestmem::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/access.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/region.hpp"

/// Guest memory for tests: maps of any regions, what their bytes are, and which pages became dirty.
///
/// Concepts: a TestMap gathers regions of any size and place (granule 1) and freezes on first use; the test then
/// looks at a region's host bytes behind the library's back. GuardedBytes are host bytes at a chosen distance from a
/// multiple of 8, between fences that show what ran over an edge.
/// Contract: what cannot be built aborts the test program.
/// Threads: one at a time.
/// Example:
///     TestMap memory;
///     memory.ram(0x1000, 16).rom(0x1010, 16);
///     MapView view{*memory.map()};
///     EXPECT_TRUE(view.write<std::uint64_t>(GuestAddress{0x1008}, 1));
///     EXPECT_EQ(memory.bytes(0)[8], std::byte{1});

namespace guestmem::testing {

/// The smallest page that a dirty log takes.
inline constexpr std::uint64_t dirty_page_bytes = min_dirty_page_bytes;

/// 0, 1, 2 ... as bytes, modulo 251, which no power of two divides: a shifted copy is seen.
inline std::vector<std::byte> counted_bytes(std::size_t count, std::size_t first = 0) {
    std::vector<std::byte> bytes(count);
    for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((first + i) % 251);
    return bytes;
}

/// Whether all bytes have that value.
inline bool is_all(std::span<const std::byte> bytes, std::byte value) {
    return std::ranges::all_of(bytes, [&](std::byte byte) { return byte == value; });
}

class GuardedBytes {
public:
    static constexpr std::size_t fence_bytes = 128;

    GuardedBytes(std::size_t size_bytes, std::size_t distance)
        : words_((size_bytes + distance + 2 * fence_bytes) / 8 + 1),
          bytes_(reinterpret_cast<std::byte*>(words_.data()) + fence_bytes + distance, size_bytes) {
        std::ranges::fill(whole(), fence);
        std::ranges::fill(bytes_, std::byte{0});
    }
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    ~GuardedBytes() = default;

    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
    /// Whether nothing outside of the bytes was written.
    [[nodiscard]] bool has_intact_fences() const {
        const auto* const first = reinterpret_cast<const std::byte*>(words_.data());
        const auto below = static_cast<std::size_t>(bytes_.data() - first);
        const std::size_t above = words_.size() * 8 - below - bytes_.size();
        return is_all({first, below}, fence) && is_all({bytes_.data() + bytes_.size(), above}, fence);
    }

private:
    static constexpr std::byte fence{0xa5};
    [[nodiscard]] std::span<std::byte> whole() {
        return {reinterpret_cast<std::byte*>(words_.data()), words_.size() * 8};
    }

    std::vector<std::uint64_t> words_;
    std::span<std::byte> bytes_;
};

class TestMap {
public:
    TestMap& ram(std::uint64_t base, std::uint64_t size_bytes, std::string name = "ram") {
        return add({.name = std::move(name), .base = GuestAddress{base}, .memory = anonymous(size_bytes)});
    }
    TestMap& rom(std::uint64_t base, std::uint64_t size_bytes) {
        return add({.name = "rom",
                    .base = GuestAddress{base},
                    .kind = RegionKind::rom,
                    .memory = anonymous(size_bytes)});
    }
    TestMap& read_only(std::uint64_t base, std::uint64_t size_bytes) {
        return add({.name = "read-only",
                    .base = GuestAddress{base},
                    .kind = RegionKind::read_only,
                    .memory = anonymous(size_bytes)});
    }
    TestMap& device(std::uint64_t base, std::uint64_t size_bytes) {
        return add({.name = "device",
                    .base = GuestAddress{base},
                    .size_bytes = size_bytes,
                    .kind = RegionKind::device});
    }
    /// RAM at host addresses that differ from the guest's by `distance` modulo 8 (base and distance added).
    TestMap& shifted_ram(std::uint64_t base, std::uint64_t size_bytes, std::size_t distance) {
        const auto bytes = std::make_shared<GuardedBytes>(size_bytes, (base + distance) % 8);
        return add({.name = "shifted",
                    .base = GuestAddress{base},
                    .memory = HostMemory::borrow(bytes->bytes(), MapAccess::read_write, bytes).value()});
    }
    TestMap& add(RegionOptions options) { return add(Region::create(std::move(options)).value()); }
    TestMap& add(std::shared_ptr<const Region> region) {
        GM_CHECK(!map_);
        regions_.push_back(std::move(region));
        return *this;
    }

    /// The map of all of them.
    [[nodiscard]] const std::shared_ptr<const MemoryMap>& map() {
        if (!map_) {
            Layout layout{{.granule_bytes = 1}};
            for (const auto& region : regions_) layout.add(region);
            map_ = std::move(layout).freeze().value();
        }
        return map_;
    }

    /// The same, for an owner who is to be the only one.
    [[nodiscard]] std::shared_ptr<const MemoryMap> take_map() {
        static_cast<void>(map());
        return std::exchange(map_, nullptr);
    }

    /// The regions in the order in which they were added.
    [[nodiscard]] const Region& region(std::size_t number) const { return *regions_.at(number); }
    [[nodiscard]] std::shared_ptr<const Region> shared_region(std::size_t number) const {
        return regions_.at(number);
    }
    [[nodiscard]] std::span<std::byte> bytes(std::size_t number) const {
        return {region(number).host_base(), region(number).range().size_bytes()};
    }
    /// counted_bytes() in all regions that are memory, going on from one region to the next.
    TestMap& count_up() {
        std::size_t first = 0;
        for (const auto& region : regions_) {
            if (!region->is_memory()) continue;
            const auto counted = counted_bytes(region->range().size_bytes(), first);
            std::memcpy(region->host_base(), counted.data(), counted.size());
            first += counted.size();
        }
        return *this;
    }

    /// For all regions that are memory: a device has nothing to mark, and may be as large as it likes.
    TestMap& start_tracking() {
        for (const auto& region : regions_)
            if (region->is_memory()) GM_CHECK(region->dirty().start(dirty_page_bytes));
        return *this;
    }
    /// The dirty pages of one region since the last time, by number.
    [[nodiscard]] std::vector<std::uint64_t> take_dirty(std::size_t number) const {
        const DirtyPages pages = region(number).dirty().harvest().value();
        std::vector<std::uint64_t> numbers;
        for (std::uint64_t page = 0; page < pages.count_pages(); ++page)
            if (pages.is_dirty(page * dirty_page_bytes)) numbers.push_back(page);
        return numbers;
    }

private:
    static std::shared_ptr<const HostMemory> anonymous(std::uint64_t size_bytes) {
        return HostMemory::create_anonymous({.size_bytes = size_bytes}).value();
    }

    std::vector<std::shared_ptr<const Region>> regions_;
    std::shared_ptr<const MemoryMap> map_;
};

/// One view of a map, of each kind that there is; for typed tests.
class MapViewOfMap {
public:
    explicit MapViewOfMap(const std::shared_ptr<const MemoryMap>& map) : map_(map), view_(*map_) {}
    [[nodiscard]] MapView& operator*() { return view_; }

private:
    std::shared_ptr<const MemoryMap> map_;
    MapView view_;
};

class GuestMemoryOfMap {
public:
    explicit GuestMemoryOfMap(const std::shared_ptr<const MemoryMap>& map) : view_(map) {}
    [[nodiscard]] GuestMemory& operator*() { return view_; }

private:
    GuestMemory view_;
};

class MapReaderOfMap {
public:
    explicit MapReaderOfMap(const std::shared_ptr<const MemoryMap>& map)
        : live_(map), reader_(live_.make_reader("test").value()) {}
    [[nodiscard]] GuestMemory& operator*() { return reader_.memory(); }

private:
    LiveMap live_;
    MapReader reader_;
};

}  // namespace guestmem::testing

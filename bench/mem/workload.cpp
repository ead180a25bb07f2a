// SPDX-License-Identifier: Apache-2.0
#include "bench/mem/workload.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "guestmem/base/check.hpp"

namespace guestmem::bench {
namespace {

constexpr std::uint64_t layout_seed = 7;
constexpr std::uint64_t address_seed = 11;
constexpr std::uint64_t half_page = page_bytes / 2;
constexpr std::uint64_t one = 1;

std::vector<RegionPlace> adjacent(std::uint64_t count, std::uint64_t share) {
    std::vector<RegionPlace> regions;
    for (std::uint64_t i = 0; i < count; ++i) regions.push_back({.base = i * share, .size_bytes = share});
    return regions;
}

std::vector<RegionPlace> few(std::uint64_t count, std::uint64_t share) {
    if (count == 1) return {{.base = 0, .size_bytes = share}};
    const std::uint64_t bases[] = {0, one * 3 << 30, one * 4 << 30, one * 64 << 30};
    const std::uint64_t sizes[] = {share + page_bytes, page_bytes, share + 4 * page_bytes, page_bytes};
    std::vector<RegionPlace> regions;
    for (std::uint64_t i = 0; i < count; ++i) regions.push_back({.base = bases[i], .size_bytes = sizes[i]});
    return regions;
}

std::vector<RegionPlace> sparse(std::uint64_t count, std::uint64_t share) {
    Random random{layout_seed};
    std::vector<RegionPlace> regions;
    while (regions.size() < count) {
        const std::uint64_t top = one << (16 + random.below(32));
        const std::uint64_t base = (top | (random.next() & (top - 1))) & ~(page_bytes - 1);
        const std::uint64_t size = page_bytes * (1 + 2 * random.below(share / page_bytes));
        const auto is_apart = [&](const RegionPlace& other) {
            return base >= other.base + other.size_bytes || other.base >= base + size;
        };
        if (std::ranges::all_of(regions, is_apart)) regions.push_back({.base = base, .size_bytes = size});
    }
    return regions;
}

std::vector<RegionPlace> clusters(std::uint64_t count) {
    const std::uint64_t groups[] = {0, one * 4 << 30, one << 40, one * 255 << 40};
    const std::uint64_t each = std::max<std::uint64_t>(1, count / 4);
    std::vector<RegionPlace> regions;
    for (std::uint64_t i = 0; i < count; ++i)
        regions.push_back(
            {.base = groups[i / each] + i % each * 3 * page_bytes, .size_bytes = page_bytes * (1 + i % 3)});
    return regions;
}

}  // namespace

std::uint64_t Random::next() {
    state_ += 0x9e37'79b9'7f4a'7c15;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
}

std::string_view to_string(LayoutKind kind) {
    switch (kind) {
        case LayoutKind::adjacent: return "adjacent";
        case LayoutKind::sparse48: return "sparse48";
        case LayoutKind::clusters: return "clusters";
    }
    return "?";
}

std::string_view to_string(Pattern pattern) { return pattern == Pattern::runs ? "runs" : "jumps"; }

std::vector<RegionPlace> regions_of(LayoutKind kind, std::uint64_t count) {
    const std::uint64_t share = std::max(page_bytes, working_set_bytes / count / page_bytes * page_bytes);
    std::vector<RegionPlace> regions;
    switch (kind) {
        case LayoutKind::adjacent: regions = adjacent(count, share); break;
        case LayoutKind::sparse48: regions = count <= 4 ? few(count, share) : sparse(count, share); break;
        case LayoutKind::clusters: regions = clusters(count); break;
    }
    std::ranges::sort(regions, {}, &RegionPlace::base);
    std::uint64_t offset = 0;
    for (RegionPlace& region : regions) {
        region.offset = offset;
        offset += region.size_bytes;
    }
    return regions;
}

std::vector<Place> places_in(std::span<const RegionPlace> regions, const PlacesOptions& options) {
    const std::size_t run = options.pattern == Pattern::runs ? run_length : 1;
    Random random{address_seed};
    std::size_t at = 0;
    std::vector<Place> places;
    for (std::size_t i = 0; i < options.count; ++i) {
        if (i % run == 0 && regions.size() > 1)
            at = (at + 1 + random.below(regions.size() - 1)) % regions.size();
        const RegionPlace& region = regions[at];
        const std::uint64_t spots = (region.size_bytes - options.size_bytes) / options.alignment + 1;
        const std::uint64_t inside = random.below(spots) * options.alignment;
        places.push_back({.guest = region.base + inside, .offset = region.offset + inside});
    }
    return places;
}

std::vector<Place> straddling_places_in(std::span<const RegionPlace> regions, std::size_t count) {
    Random random{address_seed};
    std::vector<Place> places;
    for (std::size_t i = 0; i < count; ++i) {
        const RegionPlace& upper = regions[1 + random.below(regions.size() - 1)];
        const std::uint64_t before = 1 + random.below(7);
        places.push_back({.guest = upper.base - before, .offset = upper.offset - before});
    }
    return places;
}

std::vector<Place> lower_halves(std::span<const Place> places) {
    std::vector<Place> halves;
    for (const Place& place : places)
        halves.push_back({.guest = place.guest & ~half_page, .offset = place.offset & ~half_page});
    return halves;
}

std::vector<Place> upper_halves(std::span<const Place> places) {
    std::vector<Place> halves;
    for (const Place& place : places)
        halves.push_back({.guest = place.guest | half_page, .offset = place.offset | half_page});
    return halves;
}

std::uint64_t digest_of(std::span<const Place> places) {
    std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
    for (const Place& place : places) {
        hash = (hash ^ place.guest) * 0x100'0000'01b3;
        hash = (hash ^ place.offset) * 0x100'0000'01b3;
    }
    return hash;
}

Arena::Arena(std::span<const RegionPlace> regions) {
    std::size_t size = 0;
    for (const RegionPlace& region : regions) size += region.size_bytes;
    const int fd = ::memfd_create("arena", MFD_CLOEXEC);
    GM_CHECK(fd >= 0);
    GM_CHECK(::ftruncate(fd, static_cast<off_t>(size)) == 0);
    void* const base = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    GM_CHECK(base != MAP_FAILED);
    ::close(fd);
    bytes_ = {static_cast<std::byte*>(base), size};
}

Arena::~Arena() { ::munmap(bytes_.data(), bytes_.size()); }

std::vector<std::byte*> Arena::hosts_of(std::span<const Place> places) const {
    std::vector<std::byte*> hosts;
    for (const Place& place : places) {
        GM_CHECK(place.offset < bytes_.size());
        hosts.push_back(bytes_.data() + place.offset);
    }
    return hosts;
}

}  // namespace guestmem::bench

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

/// What is measured: layouts, addresses and host memory, the same on both sides of the comparison.
///
/// Concepts: everything comes from splitmix64 with fixed seeds. bench/peers/vm-memory/src/workload.rs makes the
/// same; both programs print a digest of each list of places, and compare.py refuses to compare what differs.
/// bench/mem/README.md defines the layouts and patterns in words.
/// Contract: regions come in the order of their addresses; bases and sizes are whole pages.
/// Threads: one at a time.

namespace guestmem::bench {

inline constexpr std::uint64_t page_bytes = 4096;
inline constexpr std::uint64_t working_set_bytes = 4 * 1024 * 1024;
/// Accesses of one pass.
inline constexpr std::size_t count_accesses = 65536;
/// Accesses in a row that stay in one region, in the pattern "runs".
inline constexpr std::size_t run_length = 64;

/// splitmix64
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next();
    std::uint64_t below(std::uint64_t bound) { return next() % bound; }

private:
    std::uint64_t state_;
};

enum class LayoutKind : std::uint8_t { adjacent, sparse48, clusters };
inline constexpr LayoutKind all_layouts[] = {LayoutKind::adjacent, LayoutKind::sparse48,
                                             LayoutKind::clusters};
[[nodiscard]] std::string_view to_string(LayoutKind kind);

enum class Pattern : std::uint8_t { runs, jumps };
[[nodiscard]] std::string_view to_string(Pattern pattern);

/// Guest addresses, and where their bytes begin in the arena of the layout.
struct Place {
    std::uint64_t guest = 0;
    std::uint64_t offset = 0;
};
struct RegionPlace {
    std::uint64_t base = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t offset = 0;
};

[[nodiscard]] std::vector<RegionPlace> regions_of(LayoutKind kind, std::uint64_t count);

struct PlacesOptions {
    std::size_t count = count_accesses;
    Pattern pattern = Pattern::runs;
    std::uint64_t size_bytes = 8;  ///< of one access, which lies in one region
    std::uint64_t alignment = 8;   ///< of the offset into the region
};
[[nodiscard]] std::vector<Place> places_in(std::span<const RegionPlace> regions,
                                           const PlacesOptions& options);
/// Where u64 begin that lie in two neighboring regions of an adjacent layout.
[[nodiscard]] std::vector<Place> straddling_places_in(std::span<const RegionPlace> regions,
                                                      std::size_t count);
/// The same pages, in the lower or in the upper half of each.
[[nodiscard]] std::vector<Place> lower_halves(std::span<const Place> places);
[[nodiscard]] std::vector<Place> upper_halves(std::span<const Place> places);

/// Tells two lists of places apart.
[[nodiscard]] std::uint64_t digest_of(std::span<const Place> places);

/// The bytes of all regions of a layout, one after the other: one shared, populated mapping of a memfd, zeroed.
class Arena {
public:
    explicit Arena(std::span<const RegionPlace> regions);
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();

    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
    [[nodiscard]] std::vector<std::byte*> hosts_of(std::span<const Place> places) const;

private:
    std::span<std::byte> bytes_;
};

}  // namespace guestmem::bench

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"

/// Which pages a machine touched first, in order: what to fetch ahead for the next one of the same template.
///
/// Concepts: a Pager that records gives the pages, a Pager that starts takes them. The file names the template that it
/// belongs to; it is a hint, so that a wrong one costs time and never a byte of memory.
/// Contract: what parses has an id of 32 digits 0-9a-f, page numbers below image_pages, each once, and is the same
/// after it was written and read. Everything else is an error (corrupt), whatever the bytes are.
/// Threads: any; plain values.
/// Limits: max_working_set_bytes, 8 Mi pages.
/// Cost: parsing sorts a copy of the numbers.
/// The bytes, integers little-endian: "GMWSET" and two zeros; version, u32, 1; zero, u32; image pages, u64; count of
/// pages, u64; id, 32 characters; then each page number, u64. Nothing behind.

namespace guestmem {

inline constexpr std::size_t max_working_set_bytes = std::size_t{64} << 20;

struct WorkingSet {
    std::string template_id;
    std::uint64_t image_pages = 0;
    std::vector<std::uint64_t> pages;  ///< of the image, in the order of their first touch

    friend bool operator==(const WorkingSet&, const WorkingSet&) = default;
};

[[nodiscard]] Result<WorkingSet> parse_working_set(std::span<const std::byte> bytes);
/// An error for what parse_working_set() would refuse.
[[nodiscard]] Result<std::vector<std::byte>> to_bytes(const WorkingSet& set);

}  // namespace guestmem

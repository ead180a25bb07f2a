// SPDX-License-Identifier: Apache-2.0
/// Fuzzes iort.hpp: any bytes as a table IORT.
///
/// The input is read as it is, and again with the signature and length that a table has, so that bytes behind a header
/// of rubbish are read, too.
/// Asserts: what testing/fact_rules.hpp says; no function is in two covers; read again, it is the same. An error is one
/// line that can be printed.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/dma/discover/iort.hpp"
#include "guestmem/dma/discover/testing/fact_rules.hpp"

namespace guestmem::dma {
namespace {

/// No function of PCI is in two covers.
void check_disjoint(const SourceFacts& facts) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges;
    for (const CoverFact& cover : facts.covers)
        if (const auto* const range = std::get_if<PciRange>(&cover.which)) {
            const std::uint32_t high = std::uint32_t{range->segment} << 16;
            ranges.emplace_back(high | range->first_rid, high | range->last_rid);
        }
    std::ranges::sort(ranges);
    for (std::size_t i = 1; i < ranges.size(); ++i) GM_CHECK(ranges[i - 1].second < ranges[i].first);
}

void check_reading(std::span<const std::byte> bytes) {
    const auto facts = read_iort(bytes);
    const auto again = read_iort(bytes);
    GM_CHECK(facts.has_value() == again.has_value());
    if (!facts) {
        GM_CHECK(testing::is_printable(facts.error().message()));
        return;
    }
    testing::check_facts(*facts, Source::iort, bytes.size());
    GM_CHECK(facts->covers.size() == again->covers.size() &&
             facts->reserved.size() == again->reserved.size() &&
             facts->complaints.size() == again->complaints.size());
    check_disjoint(*facts);
}

void attack(std::span<const std::byte> input) {
    check_reading(input);
    if (input.size() < acpi_header_bytes) return;
    std::vector<std::byte> table{input.begin(), input.end()};
    for (std::size_t at = 0; at < 4; ++at) table[at] = static_cast<std::byte>("IORT"[at]);
    store_little<std::uint32_t>(std::span{table}.subspan<4, 4>(), static_cast<std::uint32_t>(table.size()));
    check_reading(table);
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::dma::attack(std::as_bytes(std::span{data, size}));
    return 0;
}

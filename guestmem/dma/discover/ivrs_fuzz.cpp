// SPDX-License-Identifier: Apache-2.0
/// Fuzzes ivrs.hpp: any bytes as a table IVRS.
///
/// The input is read as it is, and again with the signature, length and checksum that a table has, so that bytes
/// behind a header of rubbish are read, too.
/// Asserts: what testing/fact_rules.hpp says; a cover has a unit, and an identity of 16 bits; read
/// again, it is the same; a table with a good header has no complaint of its header. An error is one line that can be
/// printed.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/dma/discover/ivrs.hpp"
#include "guestmem/dma/discover/testing/fact_rules.hpp"

namespace guestmem::dma {
namespace {

void check_reading(std::span<const std::byte> table) {
    const auto facts = read_ivrs(table);
    const auto again = read_ivrs(table);
    GM_CHECK(facts.has_value() == again.has_value());
    if (!facts) {
        GM_CHECK(testing::is_printable(facts.error().message()) &&
                 facts.error().message() == again.error().message());
        return;
    }
    testing::check_facts(*facts, Source::ivrs, table.size());
    GM_CHECK(facts->units.size() <= max_ivrs_units);
    GM_CHECK(facts->covers.size() == again->covers.size() &&
             facts->complaints.size() == again->complaints.size());
    for (const CoverFact& cover : facts->covers) {
        GM_CHECK(!cover.unit.empty());
        GM_CHECK(cover.identity.is_shared == cover.identity.first_id.has_value());
        GM_CHECK(!cover.identity.first_id || *cover.identity.first_id <= 0xffff);
    }
}

void attack(std::span<const std::byte> input) {
    check_reading(input);
    if (input.size() < acpi_header_bytes) return;
    std::vector<std::byte> table{input.begin(), input.end()};
    for (std::size_t at = 0; at < 4; ++at) table[at] = static_cast<std::byte>("IVRS"[at]);
    store_little<std::uint32_t>(std::span{table}.subspan<4, 4>(), static_cast<std::uint32_t>(table.size()));
    table[9] = std::byte{0};
    unsigned sum = 0;
    for (const std::byte byte : table) sum += std::to_integer<unsigned>(byte);
    table[9] = static_cast<std::byte>(0x100 - (sum & 0xff));
    check_reading(table);
    if (const auto facts = read_ivrs(table); facts && !facts->complaints.empty()) {
        const std::string& place = facts->complaints.front().origin.place;
        GM_CHECK(place != "offset 0x4" && place != "offset 0x9");
    }
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::dma::attack(std::as_bytes(std::span{data, size}));
    return 0;
}

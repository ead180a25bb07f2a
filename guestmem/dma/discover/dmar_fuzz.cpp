// SPDX-License-Identifier: Apache-2.0
/// Fuzzes dmar.hpp: any bytes as a table DMAR.
///
/// The input is read as it is, and again with the signature, length and checksum that a table has, so that bytes
/// behind a header of rubbish are read, too.
/// Asserts: what testing/fact_rules.hpp says; a range is for a device, never for all by accident; read
/// again, it is the same; a table with a good header has no complaint of its header. An error is one line that can be
/// printed.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/dma/discover/dmar.hpp"
#include "guestmem/dma/discover/testing/fact_rules.hpp"

namespace guestmem::dma {
namespace {

void check_reading(std::span<const std::byte> table) {
    const auto facts = read_dmar(table);
    const auto again = read_dmar(table);
    GM_CHECK(facts.has_value() == again.has_value());
    if (!facts) {
        GM_CHECK(testing::is_printable(facts.error().message()) &&
                 facts.error().message() == again.error().message());
        return;
    }
    testing::check_facts(*facts, Source::dmar, table.size());
    GM_CHECK(facts->units.size() <= max_dmar_units);
    GM_CHECK(facts->covers.size() == again->covers.size() &&
             facts->complaints.size() == again->complaints.size());
    for (const ReservedFact& range : facts->reserved) GM_CHECK(!range.who.empty());
    for (const CoverFact& cover : facts->covers)
        GM_CHECK(cover.identity.is_shared == std::holds_alternative<NamedDevice>(cover.which));
}

void attack(std::span<const std::byte> input) {
    check_reading(input);
    if (input.size() < acpi_header_bytes) return;
    std::vector<std::byte> table{input.begin(), input.end()};
    for (std::size_t at = 0; at < 4; ++at) table[at] = static_cast<std::byte>("DMAR"[at]);
    store_little<std::uint32_t>(std::span{table}.subspan<4, 4>(), static_cast<std::uint32_t>(table.size()));
    table[9] = std::byte{0};
    unsigned sum = 0;
    for (const std::byte byte : table) sum += std::to_integer<unsigned>(byte);
    table[9] = static_cast<std::byte>(0x100 - (sum & 0xff));
    check_reading(table);
    if (const auto facts = read_dmar(table); facts && !facts->complaints.empty()) {
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

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes device_tree.hpp: any bytes as a flattened device tree.
///
/// The input is read as it is, and at an address that is not aligned.
/// Asserts: what testing/fact_rules.hpp says; covers of devices have ids; read again, it is the same. An error is one
/// line that can be printed.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/device_tree.hpp"
#include "guestmem/dma/discover/testing/fact_rules.hpp"

namespace guestmem::dma {
namespace {

void check_reading(std::span<const std::byte> bytes) {
    const auto facts = read_device_tree(bytes);
    const auto again = read_device_tree(bytes);
    GM_CHECK(facts.has_value() == again.has_value());
    if (!facts) {
        GM_CHECK(testing::is_printable(facts.error().message()));
        return;
    }
    testing::check_facts(*facts, Source::device_tree, bytes.size());
    GM_CHECK(facts->covers.size() == again->covers.size() &&
             facts->reserved.size() == again->reserved.size() &&
             facts->complaints.size() == again->complaints.size());
    for (const CoverFact& cover : facts->covers) GM_CHECK(!cover.unit.empty() && cover.identity.first_id);
    for (const ReservedFact& range : facts->reserved) GM_CHECK(range.who.size() == 1);
}

void attack(std::span<const std::byte> input) {
    check_reading(input);
    std::vector<std::byte> moved(input.size() + 1);
    std::ranges::copy(input, moved.begin() + 1);
    check_reading(std::span{moved}.subspan(1));
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::dma::attack(std::as_bytes(std::span{data, size}));
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes pci_config.hpp: any bytes as configuration space.
///
/// Asserts: an error only below the header's size; nothing is told of what was not among the bytes; blanking changes
/// nothing of the header.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/pci_config.hpp"

namespace guestmem::dma {
namespace {

void check_same(const PciFunction& one, const PciFunction& other) {
    GM_CHECK(one.vendor == other.vendor && one.class_code == other.class_code);
    GM_CHECK(one.header_type == other.header_type && one.secondary_bus == other.secondary_bus);
    GM_CHECK(one.first_register == other.first_register);
}

void attack(std::span<const std::byte> bytes) {
    PciFunction function;
    const auto notes = read_pci_config(bytes, function);
    GM_CHECK(notes.has_value() == (bytes.size() >= config_header_bytes));
    if (!notes) return;
    const bool has_lists = (std::to_integer<unsigned>(bytes[6]) & 0x10) != 0;
    if (bytes.size() < config_conventional_bytes && has_lists) {
        GM_CHECK(!function.has_msi && !function.access_control && !function.has_address_services);
        GM_CHECK(function.port == PortType::conventional);
    }
    if (bytes.size() < config_bytes && function.port != PortType::conventional)
        GM_CHECK(notes->is_cut && !function.access_control);
    GM_CHECK(function.header_type < 0x80 && function.class_code < 1U << 24);

    std::vector<std::byte> blanked{bytes.begin(), bytes.end()};
    blank_serial_numbers(blanked);
    GM_CHECK(std::equal(bytes.begin(), bytes.begin() + config_header_bytes, blanked.begin()));
    PciFunction again;
    GM_CHECK(read_pci_config(blanked, again));
    check_same(function, again);
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::dma::attack(std::as_bytes(std::span{data, size}));
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes a PCI bus: a guest that does anything to configuration, BARs, MSI and MSI-X, by ports, ECAM and BARs.
///
/// Input: numbers for mem/testing/choices.hpp: whether BARs are assigned, then operations of testing/pci_session.hpp.
/// Asserts: what the session asserts after each operation, and that nothing is left on the buses at the end.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "guestmem/base/check.hpp"
#include "guestmem/device/pci/host_bridge.hpp"
#include "guestmem/device/pci/testing/pci_session.hpp"
#include "guestmem/mem/testing/choices.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    constexpr int max_operations = 300;
    guestmem::testing::Choices choices{std::span{data, size}};
    guestmem::testing::PciSession session{choices};
    for (int i = 0; i < max_operations && !choices.is_over(); ++i) {
        const std::string wrong = session.step();
        if (!wrong.empty()) std::fprintf(stderr, "operation %d: %s\n", i, wrong.c_str());
        GM_CHECK(wrong.empty());
    }
    return 0;
}

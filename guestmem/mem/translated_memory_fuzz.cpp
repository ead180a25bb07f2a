// SPDX-License-Identifier: Apache-2.0
/// Fuzzes memory behind an IOMMU: mappings, invalidations and accesses that a device chooses, against a model.
///
/// Input: numbers for testing/choices.hpp: the guest's memory, its page table, then operations.
/// Asserts: each operation gives what the model gives, whatever the translator answered before.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/io_session.hpp"
#include "guestmem/mem/translated_memory.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    constexpr int max_operations = 200;
    guestmem::testing::Choices choices{std::span{data, size}};
    guestmem::testing::IoSession session{choices};
    for (int i = 0; i < max_operations && !choices.is_over(); ++i) {
        const std::string wrong = session.step();
        if (!wrong.empty()) std::fprintf(stderr, "operation %d: %s\n", i, wrong.c_str());
        GM_CHECK(wrong.empty());
    }
    return 0;
}

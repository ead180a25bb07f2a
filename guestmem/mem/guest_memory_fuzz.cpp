// SPDX-License-Identifier: Apache-2.0
/// Fuzzes guest memory: a layout, and operations on it that a guest chooses, against a model of bytes.
///
/// Input: numbers for testing/choices.hpp: first the layout (regions of all kinds, holes, borders), then operations,
/// with their addresses, sizes and values, by three views in turn.
/// Asserts: each operation gives what the model gives (bytes, reason, address, count), and leaves the same bytes and
/// the same dirty pages.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/model_session.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    constexpr int max_operations = 200;
    guestmem::testing::Choices choices{std::span{data, size}};
    guestmem::testing::ModelSession session{choices};
    for (int i = 0; i < max_operations && !choices.is_over(); ++i) {
        const std::string wrong = session.step();
        if (!wrong.empty()) std::fprintf(stderr, "operation %d: %s\n", i, wrong.c_str());
        GM_CHECK(wrong.empty());
    }
    return 0;
}

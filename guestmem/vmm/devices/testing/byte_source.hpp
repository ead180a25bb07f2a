// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

/// A fuzzer's bytes as the decisions of a guest, zeros when they are used up.
///
/// Threads: one at a time.

namespace guestmem::vmm::testing {

class ByteSource {
public:
    explicit ByteSource(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

    [[nodiscard]] bool is_empty() const { return bytes_.empty(); }
    std::uint8_t next() {
        if (bytes_.empty()) return 0;
        const std::uint8_t byte = bytes_.front();
        bytes_ = bytes_.subspan(1);
        return byte;
    }
    std::uint32_t next32() {
        std::uint32_t value = 0;
        for (int i = 0; i < 4; ++i) value = value << 8U | next();
        return value;
    }

private:
    std::span<const std::uint8_t> bytes_;
};

}  // namespace guestmem::vmm::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/dma/discover/pci_config.hpp"

/// Configuration space that a test fills.
///
/// Contract: begins as an endpoint 8086:10d3 without capabilities. The first capability that is put becomes the head
/// of the list. Offsets outside are the test's mistake (std::out_of_range).
/// Threads: one at a time.
/// Example:
///     ConfigSpace{}.express(0x40, 4).extended(0x100, 0x000d, 0).put16(0x104, 0x1f)

namespace guestmem::dma::testing {

class ConfigSpace {
public:
    explicit ConfigSpace(std::size_t size_bytes = config_bytes) : bytes_(size_bytes) {
        put16(0x00, 0x8086);
        put16(0x02, 0x10d3);
    }
    ConfigSpace& put8(std::size_t at, unsigned value) {
        bytes_.at(at) = static_cast<std::byte>(value);
        return *this;
    }
    ConfigSpace& put16(std::size_t at, unsigned value) {
        return put8(at, value & 0xff).put8(at + 1, value >> 8);
    }
    ConfigSpace& put32(std::size_t at, std::uint32_t value) {
        return put16(at, value & 0xffff).put16(at + 2, value >> 16);
    }
    /// The first one also says that there are capabilities.
    ConfigSpace& capability(std::size_t at, unsigned id, unsigned next) {
        if (bytes_[0x34] == std::byte{0}) put8(0x34, static_cast<unsigned>(at)).put16(0x06, 1 << 4);
        return put8(at, id).put8(at + 1, next);
    }
    ConfigSpace& express(std::size_t at, unsigned type, unsigned next = 0, bool has_slot = false) {
        return capability(at, 0x10, next).put16(at + 2, 2U | type << 4 | (has_slot ? 1U << 8 : 0U));
    }
    ConfigSpace& extended(std::size_t at, unsigned id, unsigned next) {
        return put32(at, id | 1U << 16 | static_cast<std::uint32_t>(next) << 20);
    }
    [[nodiscard]] std::vector<std::byte>& bytes() { return bytes_; }
    [[nodiscard]] std::string text() const {
        return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
    }

private:
    std::vector<std::byte> bytes_;
};

}  // namespace guestmem::dma::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "guestmem/dma/discover/testing/acpi_builder.hpp"

/// Writes VIOT tables for tests, node by node.
///
/// Contract: each function that writes a node gives its offset, which is what others refer to. What it is told is
/// written, right or wrong; table() is for changes to what was written.
/// Threads: one at a time.
/// Example:
///     ViotBuilder viot;
///     const auto unit = viot.pci_unit(0, 0x10);
///     viot.range(0, {0, 0}, {0, 0xff}, unit);
///     read_viot(viot.done());

namespace guestmem::dma::testing {

class ViotBuilder {
public:
    struct Ends {
        std::uint32_t first = 0;
        std::uint32_t last = 0;
    };

    ViotBuilder() { table_.u16(0).u16(48).zeros(8); }

    std::size_t range(std::uint32_t endpoint, Ends segments, Ends functions, std::size_t unit) {
        const std::size_t at = begin(1);
        table_.u32(endpoint).u16(segments.first).u16(segments.last);
        table_.u16(functions.first).u16(functions.last).u16(unit).zeros(6);
        return end(at);
    }
    std::size_t endpoint(std::uint32_t endpoint, std::uint64_t base, std::size_t unit) {
        const std::size_t at = begin(2);
        table_.u32(endpoint).u64(base).u16(unit).zeros(6);
        return end(at);
    }
    std::size_t pci_unit(std::uint32_t segment, std::uint32_t rid) {
        const std::size_t at = begin(3);
        table_.u16(segment).u16(rid).zeros(8);
        return end(at);
    }
    std::size_t mmio_unit(std::uint64_t base) {
        const std::size_t at = begin(4);
        table_.zeros(4).u64(base);
        return end(at);
    }
    /// Any other node.
    std::size_t node(unsigned type, std::size_t size_bytes) {
        const std::size_t at = begin(type);
        table_.zeros(size_bytes - 4);
        return end(at);
    }

    [[nodiscard]] AcpiBuilder& table() { return table_; }
    [[nodiscard]] std::size_t size_bytes() const { return table_.begin(); }
    const std::vector<std::byte>& done() {
        table_.set(36, count_);
        return table_.done();
    }

private:
    std::size_t begin(unsigned type) {
        const std::size_t at = table_.begin();
        table_.u8(type).u8(0).u16(0);
        return at;
    }
    std::size_t end(std::size_t at) {
        table_.end_u16(at, 2);
        ++count_;
        return at;
    }

    AcpiBuilder table_{"VIOT"};
    std::uint16_t count_ = 0;
};

}  // namespace guestmem::dma::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "guestmem/dma/discover/testing/acpi_builder.hpp"

/// Writes IORT tables for tests, node by node.
///
/// Contract: each function that writes a node gives its offset, which is what mappings of others refer to. What it is
/// told is written, right or wrong; table() is for changes to what was written.
/// Threads: one at a time.
/// Example:
///     IortBuilder iort;
///     const auto smmu = iort.smmu_v3(0x9050000);
///     iort.root_complex(0, {{0, 0xffff, 0, smmu}});
///     read_iort(iort.done());

namespace guestmem::dma::testing {

struct IortMap {
    std::uint64_t input = 0;
    std::uint64_t count_minus_1 = 0;
    std::uint64_t output = 0;
    std::uint64_t node = 0;
    std::uint64_t flags = 0;
};

class IortBuilder {
public:
    using Maps = std::vector<IortMap>;

    IortBuilder() { table_.u32(0).u32(48).u32(0); }

    std::size_t its() {
        const std::size_t at = begin(0);
        table_.u32(1).u32(0);
        return end(at, {});
    }
    std::size_t component(std::string_view path, const Maps& maps) {
        const std::size_t at = begin(1);
        table_.u32(0).u64(0).u8(40).text(path).zeros(8 - (29 + path.size()) % 4);  // iasl 20200925 stops at no padding
        return end(at, maps);
    }
    std::size_t root_complex(std::uint32_t segment, const Maps& maps) {
        const std::size_t at = begin(2);
        table_.u64(0).u32(0).u32(segment).u8(40).zeros(3);
        return end(at, maps);
    }
    std::size_t smmu_v2(std::uint64_t base, std::uint32_t model = 1) {
        const std::size_t at = begin(3);
        table_.u64(base).u64(0x10000).u32(model).u32(0).u32(60).u32(0).u32(60).u32(0).u32(60).zeros(16);
        return end(at, {});
    }
    std::size_t smmu_v3(std::uint64_t base, const Maps& maps = {}, std::uint32_t flags = 0) {
        const std::size_t at = begin(4);
        table_.u64(base).u32(flags).u32(0).u64(0).u32(0).zeros(16).u32(0).u32(0);
        return end(at, maps);
    }
    std::size_t counters(std::uint64_t base, std::uint64_t node) {
        const std::size_t at = begin(5);
        table_.u64(base).u32(0).u32(node).u64(base + 0x10000);
        return end(at, {});
    }
    struct Range {
        std::uint64_t base = 0;
        std::uint64_t size = 0;
    };
    std::size_t reserved(std::uint32_t flags, const std::vector<Range>& ranges, const Maps& maps) {
        const std::size_t at = begin(6);
        table_.u32(flags).u32(ranges.size()).u32(28);
        for (const Range& range : ranges) table_.u64(range.base).u64(range.size).u32(0);
        return end(at, maps);
    }
    /// Any other node.
    std::size_t node(unsigned type, std::size_t body_bytes, const Maps& maps) {
        const std::size_t at = begin(type);
        table_.zeros(body_bytes);
        return end(at, maps);
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
        table_.u8(type).u16(0).u8(0).u32(count_).u32(0).u32(0);
        return at;
    }
    std::size_t end(std::size_t at, const Maps& maps) {
        table_.set(at + 8, static_cast<std::uint32_t>(maps.size()));
        table_.set(at + 12, static_cast<std::uint32_t>(maps.empty() ? 0 : table_.begin() - at));
        for (const IortMap& map : maps)
            table_.u32(map.input).u32(map.count_minus_1).u32(map.output).u32(map.node).u32(map.flags);
        table_.end_u16(at, 1);
        ++count_;
        return at;
    }

    AcpiBuilder table_{"IORT", 5};
    std::uint32_t count_ = 0;
};

}  // namespace guestmem::dma::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Writes flattened device trees for tests, also such as no compiler writes.
///
/// Contract: the root is open from the start and closed by done(). Nodes and properties are written as they are told:
/// names with any characters, phandles twice, properties behind children.
/// Threads: one at a time.
/// Example:
///     TreeBuilder tree;
///     tree.begin("iommu@1000").cells("#iommu-cells", {1}).cells("phandle", {7}).end();
///     read_device_tree(tree.done());

namespace guestmem::dma::testing {

class TreeBuilder {
public:
    TreeBuilder() { begin(""); }

    TreeBuilder& begin(std::string_view name) {
        word(1);
        return bytes(name, 1);
    }
    TreeBuilder& end() { return word(2); }
    TreeBuilder& nop() { return word(4); }
    TreeBuilder& cells(std::string_view name, const std::vector<std::uint32_t>& values) {
        property(name, values.size() * 4);
        for (const std::uint32_t value : values) word(value);
        return *this;
    }
    TreeBuilder& text(std::string_view name, std::string_view value) {
        property(name, value.size() + 1);
        return bytes(value, 1);
    }
    [[nodiscard]] std::size_t size_bytes() const { return words_.size() * 4; }

    std::vector<std::byte> done() {
        end();
        word(9);
        constexpr std::uint32_t header = 40;
        constexpr std::uint32_t reservations = 16;
        const auto structure = static_cast<std::uint32_t>(words_.size() * 4);
        const auto strings = static_cast<std::uint32_t>(strings_.size());
        const std::uint32_t start = header + reservations;
        std::vector<std::byte> blob;
        for (const std::uint32_t field : {0xd00dfeedU, start + structure + strings, start, start + structure,
                                          header, 17U, 16U, 0U, strings, structure, 0U, 0U, 0U, 0U})
            put(blob, field);
        for (const std::uint32_t one : words_) put(blob, one);
        for (const char c : strings_) blob.push_back(static_cast<std::byte>(c));
        return blob;
    }

private:
    static void put(std::vector<std::byte>& blob, std::uint32_t value) {
        for (int shift = 24; shift >= 0; shift -= 8) blob.push_back(static_cast<std::byte>(value >> shift));
    }
    TreeBuilder& word(std::uint32_t value) {
        words_.push_back(value);
        return *this;
    }
    TreeBuilder& bytes(std::string_view text, std::size_t zeros) {
        std::string padded{text};
        padded.append(zeros, '\0');
        padded.resize((padded.size() + 3) / 4 * 4);
        for (std::size_t at = 0; at < padded.size(); at += 4) {
            std::uint32_t value = 0;
            for (std::size_t i = 0; i < 4; ++i)
                value = value << 8 | static_cast<unsigned char>(padded[at + i]);
            word(value);
        }
        return *this;
    }
    void property(std::string_view name, std::size_t size) {
        std::string with_end{name};
        with_end += '\0';
        std::size_t at = strings_.find(with_end);
        if (at == std::string::npos) {
            at = strings_.size();
            strings_ += with_end;
        }
        word(3).word(static_cast<std::uint32_t>(size)).word(static_cast<std::uint32_t>(at));
    }

    std::vector<std::uint32_t> words_;
    std::string strings_;
};

}  // namespace guestmem::dma::testing

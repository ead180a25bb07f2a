// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "guestmem/base/endian.hpp"

/// Writes ACPI tables for tests: a header, fields one behind the other, structures whose length is set at their end.
///
/// Contract: the builder writes what it is told, right or wrong; done() sets the table's length and checksum. A field
/// can be changed afterwards with set(), before or after done(); mend() makes the checksum right again.
/// Threads: one at a time.
/// Example:
///     AcpiBuilder table{"DMAR"};
///     table.u8(38).u8(1).zeros(10);
///     const auto drhd = table.begin();
///     table.u16(0).u16(0).u8(1).u8(0).u16(0).u64(0xfed90000);
///     table.end_u16(drhd, 2);  // its length into the u16 at offset 2
///     read_dmar(table.done());

namespace guestmem::dma::testing {

class AcpiBuilder {
public:
    explicit AcpiBuilder(std::string_view signature, unsigned revision = 1) {
        text(signature.substr(0, 4)).zeros(4 - signature.substr(0, 4).size());
        u32(0).u8(revision).u8(0).text("GUESTM").text("GUESTMEM").u32(1).text("TEST").u32(1);
    }

    AcpiBuilder& u8(std::uint64_t value) { return put(static_cast<std::uint8_t>(value)); }
    AcpiBuilder& u16(std::uint64_t value) { return put(static_cast<std::uint16_t>(value)); }
    AcpiBuilder& u32(std::uint64_t value) { return put(static_cast<std::uint32_t>(value)); }
    AcpiBuilder& u64(std::uint64_t value) { return put(value); }
    AcpiBuilder& text(std::string_view text) {
        for (const char c : text) u8(static_cast<unsigned char>(c));
        return *this;
    }
    AcpiBuilder& zeros(std::size_t count) {
        bytes_.resize(bytes_.size() + count);
        return *this;
    }

    /// Where the next field goes.
    [[nodiscard]] std::size_t begin() const { return bytes_.size(); }
    /// The length of what began at `start`, into the u16 at start + at.
    AcpiBuilder& end_u16(std::size_t start, std::size_t at) {
        return set(start + at, static_cast<std::uint16_t>(bytes_.size() - start));
    }
    /// The same into a u8: device scopes.
    AcpiBuilder& end_u8(std::size_t start, std::size_t at) {
        return set(start + at, static_cast<std::uint8_t>(bytes_.size() - start));
    }

    template <std::unsigned_integral T>
    AcpiBuilder& set(std::size_t at, T value) {
        store_little<T>(std::span{bytes_}.subspan(at).template first<sizeof(T)>(), value);
        return *this;
    }
    AcpiBuilder& mend() {
        bytes_.at(9) = std::byte{0};
        unsigned sum = 0;
        for (const std::byte byte : bytes_) sum += std::to_integer<unsigned>(byte);
        bytes_[9] = static_cast<std::byte>(0x100 - (sum & 0xff));
        return *this;
    }
    /// With length and checksum.
    const std::vector<std::byte>& done() {
        set(4, static_cast<std::uint32_t>(bytes_.size()));
        return mend().bytes_;
    }
    /// As it is.
    [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

private:
    template <std::unsigned_integral T>
    AcpiBuilder& put(T value) {
        const std::size_t at = bytes_.size();
        bytes_.resize(at + sizeof(T));
        return set(at, value);
    }

    std::vector<std::byte> bytes_;
};

}  // namespace guestmem::dma::testing

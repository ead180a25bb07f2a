// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/aml.hpp"

#include <algorithm>
#include <array>

#include "guestmem/base/check.hpp"

namespace guestmem::vmm {

namespace {

// ACPI 6.5, 20.3.
constexpr std::uint8_t op_zero = 0x00;
constexpr std::uint8_t op_one = 0x01;
constexpr std::uint8_t op_name = 0x08;
constexpr std::uint8_t op_byte = 0x0a;
constexpr std::uint8_t op_word = 0x0b;
constexpr std::uint8_t op_dword = 0x0c;
constexpr std::uint8_t op_text = 0x0d;
constexpr std::uint8_t op_qword = 0x0e;
constexpr std::uint8_t op_buffer = 0x11;
constexpr std::uint8_t prefix_two_segments = 0x2e;
constexpr std::uint8_t prefix_many_segments = 0x2f;

constexpr std::size_t segment_characters = 4;
constexpr std::size_t max_package_bytes = (std::size_t{1} << 28) - 1;

constexpr unsigned hex_digit(char character) {
    if (character >= '0' && character <= '9') return static_cast<unsigned>(character - '0');
    return static_cast<unsigned>(character - 'A') + 10;
}

}  // namespace

void Aml::little(std::uint64_t value, unsigned count_bytes) {
    for (unsigned i = 0; i < count_bytes; ++i) byte(static_cast<std::uint8_t>(value >> 8 * i));
}

void Aml::path(std::string_view text) {
    if (text.starts_with('\\')) {
        byte('\\');
        text.remove_prefix(1);
    }
    const auto count = static_cast<std::size_t>(std::ranges::count(text, '.')) + 1;
    GM_CHECK(count <= 255);
    if (count == 2) {
        byte(prefix_two_segments);
    } else if (count > 2) {
        byte(prefix_many_segments);
        byte(static_cast<std::uint8_t>(count));
    }
    for (std::size_t i = 0; i < count; ++i) {
        const std::string_view segment = text.substr(0, text.find('.'));
        GM_CHECK(!segment.empty() && segment.size() <= segment_characters);
        for (const char character : segment) byte(static_cast<std::uint8_t>(character));
        for (std::size_t k = segment.size(); k < segment_characters; ++k) byte('_');
        text.remove_prefix(std::min(text.size(), segment.size() + 1));
    }
}

Aml& Aml::named(std::string_view path_text) {
    byte(op_name);
    path(path_text);
    return *this;
}

void Aml::integer(std::uint64_t value) {
    if (value == 0) return byte(op_zero);
    if (value == 1) return byte(op_one);
    if (value <= 0xff) return byte(op_byte), little(value, 1);
    if (value <= 0xffff) return byte(op_word), little(value, 2);
    if (value <= 0xffffffff) return byte(op_dword), little(value, 4);
    byte(op_qword);
    little(value, 8);
}

void Aml::text(std::string_view value) {
    byte(op_text);
    for (const char character : value) byte(static_cast<std::uint8_t>(character));
    byte(0);
}

void Aml::eisa_id(std::string_view id) {
    GM_CHECK(id.size() == 7);
    // Three letters of 5 bits, four digits of 4 bits; the most significant byte comes first (ACPI 6.5, 19.3.4).
    unsigned value = 0;
    for (const char letter : id.substr(0, 3)) value = value << 5 | (static_cast<unsigned>(letter) & 0x1f);
    for (const char digit : id.substr(3)) value = value << 4 | hex_digit(digit);
    byte(op_dword);
    for (unsigned shift = 32; shift != 0;) byte(static_cast<std::uint8_t>(value >> (shift -= 8)));
}

void Aml::buffer(std::span<const std::byte> content) {
    byte(op_buffer);
    const std::size_t begin = bytes_.size();
    integer(content.size());
    bytes_.insert(bytes_.end(), content.begin(), content.end());
    insert_length(begin);
}

void Aml::insert_length(std::size_t begin) {
    const std::size_t size = bytes_.size() - begin;
    std::array<std::byte, 4> length{};
    std::size_t count = 1;
    // The length counts itself; one byte holds 6 bits, each further one 8 more beside 4 in the first.
    if (size + 1 >= 0x40) {
        count = 2;
        while (size + count >= std::size_t{1} << (8 * count - 4)) ++count;
    }
    const std::size_t total = size + count;
    GM_CHECK(total <= max_package_bytes && count <= length.size());
    if (count == 1) {
        length[0] = static_cast<std::byte>(total);
    } else {
        length[0] = static_cast<std::byte>((count - 1) << 6 | (total & 0xf));
        for (std::size_t i = 1; i < count; ++i) length[i] = static_cast<std::byte>(total >> (8 * i - 4));
    }
    bytes_.insert(bytes_.begin() + static_cast<std::ptrdiff_t>(begin), length.begin(),
                  length.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace guestmem::vmm

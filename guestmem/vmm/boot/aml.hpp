// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

/// A writer of AML, the byte code of ACPI's definition blocks, as far as a table without methods needs it.
///
/// Concepts: each call appends one object (ACPI 6.5, 20.2). What contains others takes a function that writes them; the
/// length in front of them, whose own size depends on it, is put in afterwards.
/// Contract: names() and paths are the program's own constants: a segment has 1 to 4 characters (filled up with '_'),
/// a path begins with a backslash or does not. A bad one is our own bug (GM_CHECK).
/// Limits: 2^28 - 1 bytes in one object, 255 elements in a package.
/// Threads: one at a time.
/// Example:
///     Aml aml;
///     aml.scope("\\_SB", [&] {
///         aml.device("COM1", [&] { aml.named("_HID").eisa_id("PNP0501"); });
///     });

namespace guestmem::vmm {

class Aml {
public:
    [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

    /// Name(path, ...): the next object is its value.
    Aml& named(std::string_view path);
    void integer(std::uint64_t value);
    void text(std::string_view value);
    /// "PNP0501" as the number that it is abbreviated to.
    void eisa_id(std::string_view id);
    void buffer(std::span<const std::byte> content);

    template <typename Body>
    void scope(std::string_view path, Body&& body) {
        block(op_scope, path, std::forward<Body>(body));
    }
    template <typename Body>
    void device(std::string_view path, Body&& body) {
        byte(op_extended);
        block(op_device, path, std::forward<Body>(body));
    }
    template <typename Body>
    void package(std::uint8_t count_elements, Body&& body) {
        byte(op_package);
        const std::size_t begin = bytes_.size();
        byte(count_elements);
        std::forward<Body>(body)();
        insert_length(begin);
    }

private:
    static constexpr std::uint8_t op_scope = 0x10;
    static constexpr std::uint8_t op_package = 0x12;
    static constexpr std::uint8_t op_extended = 0x5b;
    static constexpr std::uint8_t op_device = 0x82;

    template <typename Body>
    void block(std::uint8_t op, std::string_view path_text, Body&& body) {
        byte(op);
        const std::size_t begin = bytes_.size();
        path(path_text);
        std::forward<Body>(body)();
        insert_length(begin);
    }
    void byte(std::uint8_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
    void little(std::uint64_t value, unsigned count_bytes);
    void path(std::string_view text);
    /// PkgLength in front of the bytes from `begin` on.
    void insert_length(std::size_t begin);

    std::vector<std::byte> bytes_;
};

}  // namespace guestmem::vmm

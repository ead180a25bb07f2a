// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/base/result.hpp"

/// The 256 bytes of configuration of one PCI function: a type 0 header and a list of capabilities.
///
/// Concepts: each bit is the guest's to write or not; what a write means is found out afterwards, by looking at what
/// the bytes say. The layout is that of PCI Local Bus Specification 3.0, chapter 6.1 and figure 6-1.
/// Contract: read() and write() take every offset and every length: what is beyond the 256 bytes reads as ones and
/// takes no write (there is no extended space), and an access across registers is one of each of its bytes. get(),
/// set() and allow_write() are for the device: their offsets are ours, and checked.
/// Threads: one at a time.
/// Limits: capabilities fill 0x40 to 0xff, each at a multiple of 4 (6.7).
/// Example:
///     ConfigSpace space{{.vendor = 0x1af4, .device = 0x1110, .class_code = 0x0500}};
///     const std::uint8_t offset = GM_TRY(space.add_capability(msi.image()));

namespace guestmem::pci {

inline constexpr std::size_t config_size_bytes = 256;

// Registers of a type 0 header (6.1, 6.2).
inline constexpr std::size_t vendor_register = 0x00;
inline constexpr std::size_t device_register = 0x02;
inline constexpr std::size_t command_register = 0x04;
inline constexpr std::size_t status_register = 0x06;
inline constexpr std::size_t revision_register = 0x08;
inline constexpr std::size_t interface_register = 0x09;
inline constexpr std::size_t class_register = 0x0a;
inline constexpr std::size_t header_type_register = 0x0e;
inline constexpr std::size_t first_bar_register = 0x10;
inline constexpr std::size_t subsystem_vendor_register = 0x2c;
inline constexpr std::size_t subsystem_register = 0x2e;
inline constexpr std::size_t capabilities_register = 0x34;
inline constexpr std::size_t interrupt_line_register = 0x3c;
inline constexpr std::size_t interrupt_pin_register = 0x3d;
inline constexpr std::size_t first_capability = 0x40;

// Bits of the command register (table 6-1) and of the status register (table 6-2).
inline constexpr std::uint16_t command_io = 1 << 0;
inline constexpr std::uint16_t command_memory = 1 << 1;
inline constexpr std::uint16_t command_bus_master = 1 << 2;
inline constexpr std::uint16_t command_interrupt_disable = 1 << 10;
inline constexpr std::uint16_t status_interrupt = 1 << 3;
inline constexpr std::uint16_t status_capabilities = 1 << 4;

/// Who a function is.
struct Identity {
    std::uint16_t vendor = 0;
    std::uint16_t device = 0;
    std::uint8_t revision = 0;
    std::uint16_t class_code = 0;  ///< base class and subclass: 0x0500 is RAM
    std::uint8_t interface = 0;
    std::uint16_t subsystem_vendor = 0;
    std::uint16_t subsystem = 0;
    friend bool operator==(const Identity&, const Identity&) = default;
};

/// A capability as it is born. Its first two bytes, id and next, are filled in by who adds it.
struct CapabilityImage {
    std::uint8_t id = 0;
    std::vector<std::byte> bytes;     ///< all of it, with the two
    std::vector<std::byte> writable;  ///< as long: one bits are the guest's to write
};

class ConfigSpace {
public:
    explicit ConfigSpace(const Identity& identity);

    template <std::unsigned_integral T>
    [[nodiscard]] T get(std::size_t offset) const {
        GM_CHECK(offset <= config_size_bytes - sizeof(T));
        return load_little<T>(std::span<const std::byte, sizeof(T)>{bytes_.data() + offset, sizeof(T)});
    }
    template <std::unsigned_integral T>
    void set(std::size_t offset, T value) {
        GM_CHECK(offset <= config_size_bytes - sizeof(T));
        store_little<T>(std::span<std::byte, sizeof(T)>{bytes_.data() + offset, sizeof(T)}, value);
    }
    /// The guest may write the bits that `mask` has, besides those that it may already.
    template <std::unsigned_integral T>
    void allow_write(std::size_t offset, T mask) {
        GM_CHECK(offset <= config_size_bytes - sizeof(T));
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            writable_[offset + i] |= static_cast<std::byte>(mask & 0xff);
            mask = static_cast<T>(static_cast<std::uint64_t>(mask) >> 8);
        }
    }
    /// Appends it to the list and says where it is; refused when it does not fit behind the others.
    [[nodiscard]] Result<std::uint8_t> add_capability(const CapabilityImage& image);

    /// Bytes of ours, such as a capability's.
    [[nodiscard]] std::span<std::byte> bytes(std::size_t offset, std::size_t size_bytes) {
        return std::span{bytes_}.subspan(offset, size_bytes);
    }

    void read(std::uint64_t offset, std::span<std::byte> data) const;
    void write(std::uint64_t offset, std::span<const std::byte> data);

private:
    std::array<std::byte, config_size_bytes> bytes_{};
    std::array<std::byte, config_size_bytes> writable_{};
    std::size_t last_link_ = capabilities_register;  ///< the byte that points to the next capability
    std::size_t next_free_ = first_capability;
};

}  // namespace guestmem::pci

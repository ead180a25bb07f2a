// SPDX-License-Identifier: Apache-2.0
#pragma once

// The guest's side of `vdev shmem`: the factory page, which makes connections, and a control page per connection.
//
// Concepts: writing `size` creates a region of the name written before, or attaches to the one that exists; then
//   `status` says how it went, `size` how large the region really is in pages of 4 KiB, and `shmem` where the
//   control page is, which the data pages follow.
// Contract: each register is accessed with its own width; names go byte by byte. Reading `status` of a control page
//   clears its lower half (who has notified) and lowers the line.
// Example: FactoryPage factory{bar.address}; factory.write_name("TEST1"); factory.request(16);

#include <cstdint>

#include "guests/payload/lib/console.hpp"
#include "guests/payload/lib/cpu.hpp"

namespace guestmem::payload {

inline constexpr std::uint64_t factory_signature = 0x4d534732474d5651;
inline constexpr unsigned shmem_name_bytes = 32;
inline constexpr unsigned shmem_max_clients = 16;
inline constexpr std::uint64_t shmem_page_bytes = 4096;

namespace shmem_status {
inline constexpr std::uint32_t ok = 0;
inline constexpr std::uint32_t unknown_failure = 1;
inline constexpr std::uint32_t no_memory = 2;
inline constexpr std::uint32_t too_many_clients = 3;
inline constexpr std::uint32_t illegal_name = 4;
inline constexpr std::uint32_t no_permission = 5;
inline constexpr std::uint32_t does_not_exist = 6;
}  // namespace shmem_status

struct FactoryPage {
    std::uint64_t address;

    std::uint64_t signature() const { return read_device<std::uint64_t>(address + 0x00); }
    std::uint64_t shmem() const { return read_device<std::uint64_t>(address + 0x08); }
    std::uint32_t vector() const { return read_device<std::uint32_t>(address + 0x10); }
    std::uint32_t status() const { return read_device<std::uint32_t>(address + 0x14); }
    std::uint32_t size() const { return read_device<std::uint32_t>(address + 0x18); }
    // All 32 bytes are written: the text, then NULs; a text of 32 bytes has no NUL.
    void write_name(Text name) const {
        for (unsigned i = 0; i < shmem_name_bytes; ++i)
            write_device<std::uint8_t>(address + 0x1c + i, i < name.size
                                                               ? static_cast<std::uint8_t>(name.data[i])
                                                               : std::uint8_t{0});
    }
    bool has_name(Text name) const {
        for (unsigned i = 0; i < name.size; ++i)
            if (read_device<std::uint8_t>(address + 0x1c + i) != static_cast<std::uint8_t>(name.data[i]))
                return false;
        return name.size == shmem_name_bytes || read_device<std::uint8_t>(address + 0x1c + name.size) == 0;
    }
    // Create or attach; the status.
    std::uint32_t request(std::uint32_t pages) const {
        write_device<std::uint32_t>(address + 0x18, pages);
        return status();
    }
    std::uint32_t find(std::uint32_t number) const {
        write_device<std::uint32_t>(address + 0x3c, number);
        return status();
    }
};

struct ControlPage {
    std::uint64_t address;

    std::uint64_t data() const { return address + shmem_page_bytes; }
    std::uint32_t status() const { return read_device<std::uint32_t>(address + 0x00); }
    std::uint32_t idx() const { return read_device<std::uint32_t>(address + 0x04); }
    void notify(std::uint32_t slots) const { write_device<std::uint32_t>(address + 0x08, slots); }
    void detach() const { write_device<std::uint32_t>(address + 0x0c, 1); }
};

inline constexpr std::uint32_t notify_all = 0xffff;
inline constexpr std::uint32_t notify_all_but_me = 0xffffffff;

}  // namespace guestmem::payload

// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/paging.hpp"

extern "C" std::uint64_t payload_pdpt[512];

namespace guestmem::payload {

namespace {

constexpr std::uint64_t large_page = 2 << 20;
constexpr std::uint64_t mapped_at_start = std::uint64_t{4} << 30;
constexpr std::uint64_t reachable = std::uint64_t{512} << 30;
constexpr std::uint64_t table_entry = 0x7;  // present, writable, user
constexpr std::uint64_t page_entry = 0x87;  // and large

alignas(4096) constinit std::uint64_t directories[max_high_gib][512] = {};
constinit std::size_t directories_used = 0;

}  // namespace

bool reach(std::uint64_t address, std::uint64_t size_bytes) {
    if (address >= reachable || size_bytes > reachable - address) return false;
    std::uint64_t page = address & ~(large_page - 1);
    if (page < mapped_at_start) page = mapped_at_start;
    for (; page < address + size_bytes; page += large_page) {
        std::uint64_t& upper = payload_pdpt[page >> 30];
        if (!upper) {
            if (directories_used == max_high_gib) return false;
            upper = reinterpret_cast<std::uint64_t>(directories[directories_used++]) | table_entry;
        }
        auto* directory = reinterpret_cast<volatile std::uint64_t*>(upper & ~std::uint64_t{0xfff});
        directory[page >> 21 & 511] = page | page_entry;
    }
    asm volatile("" : : : "memory");  // an entry that was not present is in no translation cache
    return true;
}

}  // namespace guestmem::payload

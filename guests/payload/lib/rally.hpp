// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ping-pong between two parties that share memory and can kick each other, however they do it.
//
// Concepts: a *court* is the shared memory with a way to kick. *ping* serves: it writes a number and kicks, *pong*
//   writes the same number back and kicks. Either may be a host program; 32-bit little-endian words at these
//   offsets of the memory are all it needs:
//   0x00 ping's number, 0x40 pong's number, 0x80 pong's slot + 1, 0xc0 ping's slot + 1 (0: not there).
// Contract: the numbers run from 1 to `rounds`, then pong leaves, then ping does. Either may start first. A kick
//   that got lost (the other's doorbell was not yet connected) is sent again after 200 ms and counted. With
//   interrupts, a round counts only when a kick was seen. What was found is said by check().
// Example: ping(Court{base, own_slot, has_kicks, count, kick}, 1000);

#include <cstdint>

namespace guestmem::payload {

struct Court {
    std::uint64_t memory;
    std::uint32_t own_slot;
    bool has_kicks;                  // false: numbers are polled for
    std::uint64_t (*count_kicks)();  // that have been taken so far; asked with interrupts off
    void (*kick)(std::uint32_t slot);
};

bool ping(const Court& court, std::uint32_t rounds);
bool pong(const Court& court, std::uint32_t rounds);

}  // namespace guestmem::payload

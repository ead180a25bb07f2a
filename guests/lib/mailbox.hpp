// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the guest programs and the tests keep in the shared memory.
//
// Concepts: a *message* is text that ends at the first NUL; a *record* is what one slot and the host tell
//   each other. All numbers are unsigned 64-bit little endian, naturally aligned; each has one writer.
//
//   offset  size  content
//   0x000   2048  the message
//   0x800   2048  16 records of 128 bytes, one for each of the slots 0 to 15
//
//   record  writer  content
//   +0      guest   ready: 0, or a random number that this start of the guest chose after MSI-X was enabled
//   +8      host    command: 0 go on, 1 stop
//   +16     host    vector 0: sequence number, increased before each kick
//   +24     guest   vector 0: the sequence number that was found after the last interrupt
//   +32     guest   vector 0: interrupts since ready
//   +40     ...     the same three for vectors 1, 2 and 3
//
// Contract: peers are not trusted: what they can change is copied once, bounded, and shown escaped.
// Limits: 16 slots and 4 vectors have records; the memory has at least 4096 bytes.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guests/lib/result.hpp"

namespace guestmem::guest {

inline constexpr std::size_t message_size = 0x800;
inline constexpr std::size_t records_offset = 0x800;
inline constexpr std::size_t record_size = 128;
inline constexpr std::uint32_t max_record_slots = 16;
inline constexpr std::uint32_t max_record_vectors = 4;
inline constexpr std::size_t mailbox_size = records_offset + max_record_slots * record_size;
static_assert(mailbox_size == 4096);

enum class Command : std::uint64_t { go_on = 0, stop = 1 };

class Mailbox {
public:
    static Result<Mailbox> create(std::byte* memory, std::size_t size, std::uint32_t slot);

    // Copies the message out; bytes beyond the message area are never looked at.
    std::string message() const;
    void clear_message() const;
    // Text that does not fit with its NUL is cut.
    void set_message(std::string_view text) const;

    void set_ready(std::uint64_t start) const;
    Command command() const;
    std::uint64_t sequence(std::uint32_t vector) const;
    void set_seen(std::uint32_t vector, std::uint64_t sequence, std::uint64_t interrupts) const;

private:
    Mailbox(std::byte* memory, std::uint32_t slot)
        : memory_(memory), record_(records_offset + slot * record_size) {}

    std::uint64_t load(std::size_t offset) const;
    void store(std::size_t offset, std::uint64_t value) const;

    std::byte* memory_;
    std::size_t record_;
};

// Printable ASCII as it is; everything else, and the backslash, as \xNN.
std::string escaped(std::string_view text);

}  // namespace guestmem::guest

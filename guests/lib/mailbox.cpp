// SPDX-License-Identifier: Apache-2.0
#include "guests/lib/mailbox.hpp"

#include <atomic>
#include <bit>

namespace guestmem::guest {
namespace {

static_assert(std::endian::native == std::endian::little, "the mailbox is little endian");

constexpr std::size_t ready_field = 0;
constexpr std::size_t command_field = 8;
constexpr std::size_t vector_fields = 16;
constexpr std::size_t vector_stride = 24;
constexpr std::size_t seen_field = 8;
constexpr std::size_t interrupts_field = 16;

constexpr std::size_t vector_offset(std::uint32_t vector) { return vector_fields + vector * vector_stride; }
static_assert(vector_offset(max_record_vectors) <= record_size);

}  // namespace

Result<Mailbox> Mailbox::create(std::byte* memory, std::size_t size, std::uint32_t slot) {
    if (size < mailbox_size) {
        return failure("use the shared memory", "mailbox",
                       "size " + std::to_string(size) + " is less than " + std::to_string(mailbox_size));
    }
    if (slot >= max_record_slots) {
        return failure("use the shared memory", "mailbox",
                       "slot " + std::to_string(slot) + " has no record, only 0 to " +
                           std::to_string(max_record_slots - 1) + " have");
    }
    return Mailbox(memory, slot);
}

std::string Mailbox::message() const {
    std::string text;
    for (std::size_t i = 0; i < message_size; ++i) {
        const std::byte value = std::atomic_ref(memory_[i]).load(std::memory_order_relaxed);
        if (value == std::byte{0}) {
            break;
        }
        text.push_back(static_cast<char>(value));
    }
    return text;
}

void Mailbox::clear_message() const { set_message({}); }

void Mailbox::set_message(std::string_view text) const {
    text = text.substr(0, message_size - 1);
    for (std::size_t i = 0; i < message_size; ++i) {
        const auto value = i < text.size() ? static_cast<std::byte>(text[i]) : std::byte{0};
        std::atomic_ref(memory_[i]).store(value, std::memory_order_relaxed);
    }
}

void Mailbox::set_ready(std::uint64_t start) const { store(ready_field, start); }

Command Mailbox::command() const {
    return load(command_field) == static_cast<std::uint64_t>(Command::stop) ? Command::stop : Command::go_on;
}

std::uint64_t Mailbox::sequence(std::uint32_t vector) const { return load(vector_offset(vector)); }

void Mailbox::set_seen(std::uint32_t vector, std::uint64_t sequence, std::uint64_t interrupts) const {
    // The host looks at the sequence number first: the count is in place by then.
    store(vector_offset(vector) + interrupts_field, interrupts);
    store(vector_offset(vector) + seen_field, sequence);
}

std::uint64_t Mailbox::load(std::size_t offset) const {
    auto* field = reinterpret_cast<std::uint64_t*>(memory_ + record_ + offset);
    return std::atomic_ref(*field).load(std::memory_order_acquire);
}

void Mailbox::store(std::size_t offset, std::uint64_t value) const {
    auto* field = reinterpret_cast<std::uint64_t*>(memory_ + record_ + offset);
    std::atomic_ref(*field).store(value, std::memory_order_release);
}

std::string escaped(std::string_view text) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string shown;
    for (const char character : text) {
        const auto code = static_cast<unsigned char>(character);
        if (code >= 0x20 && code < 0x7f && character != '\\') {
            shown.push_back(character);
        } else {
            shown.append("\\x").append(1, digits[code >> 4U]).append(1, digits[code & 15U]);
        }
    }
    return shown;
}

}  // namespace guestmem::guest

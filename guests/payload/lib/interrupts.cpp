// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/interrupts.hpp"

#include "guests/payload/lib/start_info.hpp"

// Both are used by the stubs.
extern "C" {
volatile std::uint64_t payload_interrupt_counts[256] = {};
guestmem::payload::InterruptHandler payload_interrupt_handlers[256] = {};
}

namespace guestmem::payload {

namespace {

constexpr std::uint64_t local_apic = 0xfee00000;
constexpr std::uint64_t task_priority = local_apic + 0x80;
constexpr std::uint64_t spurious_vector = local_apic + 0xf0;
constexpr std::uint64_t timer_entry = local_apic + 0x320;
constexpr std::uint64_t lint0_entry = local_apic + 0x350;
constexpr std::uint64_t timer_count = local_apic + 0x380;
constexpr std::uint64_t timer_left = local_apic + 0x390;
constexpr std::uint64_t timer_divisor = local_apic + 0x3e0;
constexpr std::uint32_t timer_is_periodic = 1 << 17;
constexpr std::uint32_t divide_by_16 = 3;
constexpr std::uint32_t counts_per_ms = 1000000 / 16;
constexpr std::uint32_t calibration_counts = 20 * counts_per_ms;
constexpr unsigned max_reads = 10000000;  // of a timer that stands still

constinit std::uint64_t io_apic = default_io_apic;
constinit std::uint64_t stamps_per_ms = 0;

struct Moment {
    std::uint64_t stamp;
    std::uint32_t left;
};

// Of several pairs the one whose two values were read closest to each other.
Moment take_moment() {
    Moment best = {};
    std::uint64_t smallest_gap = ~std::uint64_t{0};
    for (int i = 0; i < 20; ++i) {
        const std::uint64_t before = read_time_stamp();
        const auto left = read_device<std::uint32_t>(timer_left);
        const std::uint64_t gap = read_time_stamp() - before;
        if (gap >= smallest_gap) continue;
        smallest_gap = gap;
        best = {before + gap / 2, left};
    }
    return best;
}

void start_tick() {
    write_device<std::uint32_t>(timer_entry, timer_is_periodic | tick_vector);
    write_device<std::uint32_t>(timer_count, tick_ms * counts_per_ms);
}

}  // namespace

void start_interrupts() {
    io_apic = number_option("ioapic", default_io_apic);
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    write_device<std::uint32_t>(lint0_entry, entry_is_masked);
    write_device<std::uint32_t>(spurious_vector, 0x1ff);  // enabled
    write_device<std::uint32_t>(task_priority, 0);
    write_device<std::uint32_t>(timer_divisor, divide_by_16);
    start_tick();
}

std::uint64_t count_interrupts(std::uint8_t vector) { return payload_interrupt_counts[vector]; }

void set_handler(std::uint8_t vector, InterruptHandler handler) {
    payload_interrupt_handlers[vector] = handler;
}

std::uint64_t io_apic_address() { return io_apic; }

std::uint32_t read_io_apic(unsigned index) {
    write_device<std::uint32_t>(io_apic, index);
    return read_device<std::uint32_t>(io_apic + 0x10);
}

void write_io_apic(unsigned index, std::uint32_t value) {
    write_device<std::uint32_t>(io_apic, index);
    write_device<std::uint32_t>(io_apic + 0x10, value);
}

void route(unsigned pin, std::uint8_t vector, Trigger trigger) {
    write_io_apic(io_apic_entry(pin), entry_is_masked);
    write_io_apic(io_apic_entry(pin) + 1, 0);  // to processor 0
    write_io_apic(io_apic_entry(pin), vector | (trigger == Trigger::level ? entry_is_level : 0));
}

void mask_pin(unsigned pin) { write_io_apic(io_apic_entry(pin), entry_is_masked); }

std::uint64_t time_stamps_per_ms() {
    if (stamps_per_ms) return stamps_per_ms;
    // The timer runs down once, without a reload that a processor which is not scheduled would miss.
    write_device<std::uint32_t>(timer_entry, entry_is_masked | tick_vector);
    write_device<std::uint32_t>(timer_count, 0xffffffff);
    const Moment first = take_moment();
    Moment last = first;
    for (unsigned i = 0; i < max_reads && first.left - last.left < calibration_counts; ++i)
        last.left = read_device<std::uint32_t>(timer_left);
    last = take_moment();
    start_tick();
    const std::uint32_t counts = first.left - last.left;
    stamps_per_ms = counts ? (last.stamp - first.stamp) * counts_per_ms / counts : 1;
    if (!stamps_per_ms) stamps_per_ms = 1;
    return stamps_per_ms;
}

}  // namespace guestmem::payload

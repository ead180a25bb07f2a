// SPDX-License-Identifier: Apache-2.0
// The chips of a PC, one after another: I/O APIC, PIC, serial port, interval timer, clock, keyboard controller.
//
// Options: `ioapic` (address), `serial`, `pit`, `rtc` (their pins: 4, 0, 8), `skip` (names that are left out, with
// commas between them: ioapic, pic, serial, pit, speaker for the timer's channel 2, rtc, keyboard), `timeout` (5000:
// how many ms an interrupt may take), `end=reset` (the keyboard controller resets the machine at the end).

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/payload.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint16_t serial = 0x3f8;
constexpr std::uint8_t serial_vector = first_free_vector;
constexpr std::uint8_t pit_vector = first_free_vector + 0x10;
constexpr std::uint8_t rtc_vector = first_free_vector + 0x20;
constinit std::uint64_t patience_ms = 5000;
constexpr std::uint64_t settle_ms = 50;

bool is_skipped(Text name) {
    const Text skipped = option("skip");
    for (std::size_t first = 0; first < skipped.size;) {
        std::size_t size = 0;
        while (first + size < skipped.size && skipped.data[first + size] != ',') ++size;
        if (Text(skipped.data + first, size) == name) return true;
        first += size + 1;
    }
    return false;
}

unsigned pin_of(Text chip, unsigned otherwise) {
    return static_cast<unsigned>(number_option(chip, otherwise));
}

bool comes(std::uint8_t vector, std::uint64_t count) {
    return wait_until([=] { return count_interrupts(vector) >= count; }, patience_ms);
}

void check_io_apic() {
    const std::uint32_t version = read_io_apic(io_apic_version);
    check_in("ioapic: version", 0x11, 0x2f, version & 0xff);
    check_equal("ioapic: 24 pins", 23, version >> 16 & 0xff);
    write_io_apic(io_apic_id, 0x05000000);
    check_equal("ioapic: the id keeps four bits", 0x05000000, read_io_apic(io_apic_id) & 0x0f000000);
    write_io_apic(io_apic_id, 0);
    check_equal("ioapic: the index reads back", io_apic_id,
                read_device<std::uint32_t>(io_apic_address()) & 0xff);
    constexpr unsigned pin = 23;
    write_io_apic(io_apic_entry(pin) + 1, 0x0f000000);
    write_io_apic(io_apic_entry(pin), entry_is_masked | entry_is_level | 0x2000 | 0x900 | 0x7e);
    check_equal("ioapic: an entry keeps its destination", 0x0f000000, read_io_apic(io_apic_entry(pin) + 1));
    check_equal("ioapic: an entry keeps mask, trigger, polarity, mode and vector", 0x1a97e,
                read_io_apic(io_apic_entry(pin)));
    write_io_apic(io_apic_entry(pin), entry_is_masked | entry_has_remote_irr | 0x1000);
    check_equal("ioapic: status bits cannot be written", entry_is_masked, read_io_apic(io_apic_entry(pin)));
    write_io_apic(io_apic_entry(pin) + 1, 0);
}

void check_pic_mask(Text name, std::uint16_t port) {
    out8(port, 0xa5);
    const std::uint8_t mask = in8(port);
    out8(port, 0xff);
    check_equal(name, 0xa5, mask);
}

// While the port loops back nothing is printed: results first, lines afterwards.
void check_serial_registers() {
    out8(serial + 7, 0x5a);
    const std::uint8_t scratch = in8(serial + 7);
    out8(serial + 3, 0x83);  // the divisor is in sight
    const std::uint8_t old_low = in8(serial);
    const std::uint8_t old_high = in8(serial + 1);
    out8(serial, 0x0c);
    out8(serial + 1, 0x01);
    const unsigned divisor = in8(serial) | static_cast<unsigned>(in8(serial + 1)) << 8;
    out8(serial, old_low);
    out8(serial + 1, old_high);
    out8(serial + 3, 0x03);
    const std::uint8_t line_control = in8(serial + 3);
    check_equal("serial: scratch keeps a byte", 0x5a, scratch);
    check_equal("serial: the divisor is kept", 0x10c, divisor);
    check_equal("serial: line control is kept", 0x03, line_control);
    check_equal("serial: idle and empty", 0x60, in8(serial + 5) & 0x60);
}

void check_serial_loopback() {
    while (in8(serial + 5) & 1) in8(serial);
    out8(serial + 4, 0x10);
    const std::uint8_t lines_off = in8(serial + 6) & 0xf0;
    out8(serial + 4, 0x1f);
    const std::uint8_t lines_on = in8(serial + 6) & 0xf0;
    out8(serial + 4, 0x10);
    out8(serial + 1, 0x01);  // an interrupt per byte
    out8(serial, 0x5a);
    for (int i = 0; i < 100000 && !(in8(serial + 5) & 1); ++i) relax();
    const std::uint8_t line_status = in8(serial + 5);
    const std::uint8_t cause = in8(serial + 2) & 0x0f;
    const std::uint8_t byte = in8(serial);
    const std::uint8_t empty_status = in8(serial + 5);
    const std::uint8_t no_cause = in8(serial + 2) & 0x0f;
    out8(serial + 1, 0x00);
    out8(serial + 4, 0x03);
    check_equal("serial: loopback with all outputs off", 0x00, lines_off);
    check_equal("serial: loopback connects outputs to inputs", 0xf0, lines_on);
    check_equal("serial: loopback says that a byte is there", 1, line_status & 1);
    check_equal("serial: the cause is a byte", 4, cause);
    check_equal("serial: loopback returns the byte", 0x5a, byte);
    check_equal("serial: the byte is taken", 0, empty_status & 1);
    check_equal("serial: no cause is left", 1, no_cause);
}

// The transmitter's interrupt holds its line until the cause is read, which makes the port a line to play with.
constinit unsigned serial_stays_high = 0;

void on_serial() {
    if (serial_stays_high > 0) --serial_stays_high;
    if (serial_stays_high > 0) return;
    in8(serial + 2);
    out8(serial + 1, 0);
}

void raise_serial_line() {
    out8(serial + 4, 0x0b);  // OUT2 lets interrupts out
    out8(serial + 1, 0x02);
}

void lower_serial_line() {
    in8(serial + 2);
    out8(serial + 1, 0);
}

void check_serial_interrupts() {
    const unsigned pin = pin_of("serial", 4);
    lower_serial_line();
    route(pin, serial_vector, Trigger::edge);
    raise_serial_line();
    const bool has_come = comes(serial_vector, 1);
    wait_ms(settle_ms);
    const std::uint64_t while_high = count_interrupts(serial_vector);
    const std::uint8_t cause = in8(serial + 2) & 0x0f;
    const std::uint8_t no_cause = in8(serial + 2) & 0x0f;
    out8(serial + 1, 0);
    mask_pin(pin);
    check("serial: an empty transmitter interrupts", has_come);
    check_equal("ioapic: an edge is one interrupt while the line stays high", 1, while_high);
    check_equal("serial: the cause is the transmitter", 2, cause);
    check_equal("serial: reading the cause clears it", 1, no_cause);

    constexpr std::uint8_t level_vector = serial_vector + 1;
    constexpr unsigned repeats = 3;
    set_handler(level_vector, on_serial);
    route(pin, level_vector, Trigger::level);
    serial_stays_high = repeats;
    raise_serial_line();
    comes(level_vector, repeats);
    wait_ms(settle_ms);
    const std::uint64_t repeated = count_interrupts(level_vector);
    const std::uint32_t entry = read_io_apic(io_apic_entry(pin));
    check_equal("ioapic: a level line interrupts until it is lowered", repeats, repeated);
    check_equal("ioapic: remote IRR is clear when all is over", 0, entry & entry_has_remote_irr);

    constexpr std::uint8_t masked_vector = serial_vector + 2;
    set_handler(masked_vector, on_serial);
    route(pin, masked_vector, Trigger::level);
    write_io_apic(io_apic_entry(pin), masked_vector | entry_is_level | entry_is_masked);
    raise_serial_line();
    wait_ms(settle_ms);
    const std::uint64_t while_masked = count_interrupts(masked_vector);
    write_io_apic(io_apic_entry(pin), masked_vector | entry_is_level);
    const bool comes_late = comes(masked_vector, 1);
    lower_serial_line();
    mask_pin(pin);
    reset_console();
    check_equal("ioapic: a masked pin is silent", 0, while_masked);
    check("ioapic: a level line is heard when its pin is unmasked", comes_late);
}

constexpr std::uint16_t pit_control = 0x43;
constexpr std::uint32_t pit_hertz = 1193182;

void load_pit(unsigned channel, unsigned mode, unsigned count) {
    out8(pit_control, static_cast<std::uint8_t>(channel << 6 | 0x30 | mode << 1));
    out8(static_cast<std::uint16_t>(0x40 + channel), static_cast<std::uint8_t>(count));
    out8(static_cast<std::uint16_t>(0x40 + channel), static_cast<std::uint8_t>(count >> 8));
}

unsigned latched_count(unsigned channel) {
    out8(pit_control, static_cast<std::uint8_t>(channel << 6));
    const unsigned low = in8(static_cast<std::uint16_t>(0x40 + channel));
    return low | static_cast<unsigned>(in8(static_cast<std::uint16_t>(0x40 + channel))) << 8;
}

void check_pit_channel_2() {
    const std::uint8_t speaker = in8(0x61) & 0x0c;
    out8(0x61, speaker);
    load_pit(2, 0, 0xffff);
    wait_ms(20);
    check_equal("pit: channel 2 stands while its gate is low", 0, in8(0x61) & 0x20);
    load_pit(2, 0, pit_hertz / 50);
    out8(0x61, speaker | 1);
    const std::uint64_t first = read_time_stamp();
    const unsigned start = latched_count(2);
    bool is_out = false;
    const std::uint64_t limit = patience_ms * time_stamps_per_ms();
    out8(0x61, speaker);
    load_pit(2, 0, pit_hertz / 50);
    out8(0x61, speaker | 1);
    while (!is_out && read_time_stamp() - first < limit) is_out = in8(0x61) & 0x20;
    out8(0x61, speaker);
    check_in("pit: channel 2 counts down from its count", 1, pit_hertz / 50, start);
    check("pit: channel 2's output goes up at the end", is_out);
}

void check_pit_channel_0() {
    const unsigned pin = pin_of("pit", 0);
    route(pin, pit_vector, Trigger::edge);
    load_pit(0, 0, pit_hertz / 200);
    check("pit: a count of channel 0 ends with an interrupt", comes(pit_vector, 1));
    wait_ms(settle_ms);
    check_equal("pit: mode 0 interrupts once", 1, count_interrupts(pit_vector));

    set_handler(pit_vector, nullptr);
    const std::uint64_t before = count_interrupts(pit_vector);
    load_pit(0, 2, pit_hertz / 250);
    const bool has_come = comes(pit_vector, before + 10);
    check("pit: mode 2 interrupts again and again", has_come);
    out8(pit_control, 0xe2);  // status of channel 0
    check_equal("pit: the status names mode 2", 0x34, in8(0x40) & 0x3e);
    load_pit(0, 0, 0);  // one last time in 55 ms
    mask_pin(pin);
}

std::uint8_t read_clock(std::uint8_t index) {
    out8(0x70, index);
    return in8(0x71);
}

void write_clock(std::uint8_t index, std::uint8_t value) {
    out8(0x70, index);
    out8(0x71, value);
}

void check_clock() {
    constexpr std::uint8_t register_a = 10;
    constexpr std::uint8_t register_b = 11;
    constexpr std::uint8_t register_c = 12;
    constexpr std::uint8_t register_d = 13;
    const std::uint8_t old_a = read_clock(register_a);
    const std::uint8_t old_b = read_clock(register_b);
    check_equal("rtc: the divider runs", 0x20, old_a & 0x70);
    check_equal("rtc: the memory is valid", 0x80, read_clock(register_d) & 0x80);
    const bool is_binary = old_b & 4;
    check_in("rtc: seconds", 0, is_binary ? 59 : 0x59, read_clock(0));
    check_in("rtc: day of the month", 1, is_binary ? 31 : 0x31, read_clock(7));
    const std::uint8_t kept = read_clock(0x7f);
    write_clock(0x7f, static_cast<std::uint8_t>(~kept));
    check_equal("rtc: a byte is kept", static_cast<std::uint8_t>(~kept), read_clock(0x7f));
    write_clock(0x7f, kept);

    const unsigned pin = pin_of("rtc", 8);
    write_clock(register_a, 0x29);  // 128 Hz
    read_clock(register_c);
    route(pin, rtc_vector, Trigger::edge);
    write_clock(register_b, static_cast<std::uint8_t>((old_b & 0x0f) | 0x40));
    check("rtc: the periodic interrupt comes", comes(rtc_vector, 1));
    check_equal("rtc: register C names the cause", 0xc0, read_clock(register_c) & 0xc0);
    const std::uint64_t before = count_interrupts(rtc_vector);
    check("rtc: it comes again", comes(rtc_vector, before + 1));
    write_clock(register_b, static_cast<std::uint8_t>(old_b & 0x0f));
    read_clock(register_c);
    check_equal("rtc: reading register C clears it", 0, read_clock(register_c) & 0xf0);
    write_clock(register_a, old_a);
    mask_pin(pin);
}

constexpr std::uint16_t keyboard_data = 0x60;
constexpr std::uint16_t keyboard_status = 0x64;

bool keyboard_is(std::uint8_t bits, std::uint8_t value) {
    return wait_until([=] { return (in8(keyboard_status) & bits) == value; }, patience_ms);
}

std::uint8_t ask_keyboard(std::uint8_t command) {
    keyboard_is(0x02, 0);
    out8(keyboard_status, command);
    return keyboard_is(0x01, 1) ? in8(keyboard_data) : 0xee;
}

void check_keyboard() {
    for (int i = 0; i < 64 && in8(keyboard_status) & 1; ++i) in8(keyboard_data);
    check_equal("keyboard: the self test passes", 0x55, ask_keyboard(0xaa));
    check_equal("keyboard: the port test passes", 0x00, ask_keyboard(0xab));
    const std::uint8_t command_byte = ask_keyboard(0x20);
    check_equal("keyboard: nothing is left to read", 0, in8(keyboard_status) & 1);
    keyboard_is(0x02, 0);
    out8(keyboard_status, 0x60);
    out8(keyboard_data, command_byte);
    check_equal("keyboard: the command byte is kept", command_byte, ask_keyboard(0x20));
}

}  // namespace

void run() {
    patience_ms = number_option("timeout", patience_ms);
    start_interrupts();
    if (!is_skipped("ioapic")) check_io_apic();
    if (!is_skipped("pic")) {
        check_pic_mask("pic: the first keeps its mask", 0x21);
        check_pic_mask("pic: the second keeps its mask", 0xa1);
    }
    if (!is_skipped("serial")) {
        check_serial_registers();
        check_serial_loopback();
        check_serial_interrupts();
    }
    if (!is_skipped("pit")) {
        if (!is_skipped("speaker")) check_pit_channel_2();
        check_pit_channel_0();
    }
    if (!is_skipped("rtc")) check_clock();
    if (!is_skipped("keyboard")) check_keyboard();
    if (option("end") == Text("reset")) {
        print_line(Text("reset"));
        out8(keyboard_status, 0xfe);
        for (;;) halt_until_interrupt();
    }
}

}  // namespace guestmem::payload

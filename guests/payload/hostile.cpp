// SPDX-License-Identifier: Apache-2.0
// Nonsense everywhere a guest can write: ports, PCI configuration, BARs, the factory page, control pages, the I/O
// APIC, memory holes. What is written follows from the seed alone, and what is printed says that the machine lives.
//
// Options: `seed` (1), `count` (10000) of accesses, `parts` (ports,pci,bars,shmem,ioapic,holes: all), `loc` (the
// factory page of the MMIO form), `holes=ADDRESS:SIZE,...` (besides 3 to 4 GiB), `aligned=1` (nothing straddles:
// QEMU 7.2 aborts on a word read from the last port of a serial port).
//
// Left alone is what ends a machine by design: the exit port, the reset by ports 0x64, 0x92 and 0xcf9, what falls on
// the local APIC, and interrupts that are delivered as INIT or SMI (an I/O APIC's entry keeps mode "fixed").
// A device that is told to write anywhere may hit the payload's own memory: that is the guest's affair.

#include "guests/payload/lib/factory_page.hpp"
#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/paging.hpp"
#include "guests/payload/lib/payload.hpp"
#include "guests/payload/lib/pci.hpp"

namespace guestmem::payload {

namespace {

constinit std::uint64_t state = 1;
constinit bool is_aligned = false;
constinit std::uint64_t seen = 0;  // what was read, mixed: a compiler leaves no read out

struct Range {
    std::uint64_t address;
    std::uint64_t size_bytes;
};
constexpr unsigned max_ranges = 64;

struct Ranges {
    Range items[max_ranges];
    unsigned count;

    void add(std::uint64_t address, std::uint64_t size_bytes) {
        if (count < max_ranges && address && size_bytes >= 8) items[count++] = {address, size_bytes};
    }
};

constinit Ranges bars = {};
constinit Ranges factories = {};
constinit Ranges holes = {};

// xorshift64* (Vigna): the same on every compiler.
std::uint64_t random() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

std::uint64_t below(std::uint64_t limit) { return random() % limit; }

// Numbers that devices trip over are as likely as any others.
std::uint64_t random_value() {
    switch (below(6)) {
        case 0: return 0;
        case 1: return ~std::uint64_t{0};
        case 2: return std::uint64_t{1} << below(64);
        case 3: return below(64);
        default: return random();
    }
}

// Whether an access of this width ends or silences the machine.
bool is_left_alone(std::uint32_t port, unsigned width, std::uint64_t value, bool is_write) {
    auto touches = [&](std::uint32_t first, std::uint32_t last) {
        return port <= last && port + width > first;
    };
    if (touches(0xf4, 0xf7)) return true;
    if (!is_write) return false;
    if (touches(0x92, 0x92)) return true;
    if (touches(0xcf9, 0xcf9)) return port != 0xcf8 || width != 4;
    if (touches(0x60, 0x64)) return width != 1 || (port == 0x64 && (value & 0xff) >= 0xd0) || port == 0x60;
    return port + width > 0x10000;
}

void touch_port() {
    // Most ports are nobody's: half of the accesses go to the first 4 KiB.
    const unsigned width = 1u << below(3);
    auto port = static_cast<std::uint16_t>(below(2) ? below(0x1000) : below(0x10000));
    if (is_aligned) port = static_cast<std::uint16_t>(port & ~(width - 1));
    const std::uint64_t value = random_value();
    const bool is_write = below(2);
    if (is_left_alone(port, width, value, is_write)) return;
    if (is_write) {
        if (width == 1) out8(port, static_cast<std::uint8_t>(value));
        if (width == 2) out16(port, static_cast<std::uint16_t>(value));
        if (width == 4) out32(port, static_cast<std::uint32_t>(value));
    } else {
        seen += width == 1 ? in8(port) : width == 2 ? in16(port) : in32(port);
    }
}

void touch_pci() {
    const PciFunction function(static_cast<unsigned>(below(32)), static_cast<unsigned>(below(8)));
    const auto offset = static_cast<unsigned>(below(256));
    const std::uint64_t value = random_value();
    switch (below(6)) {
        case 0: function.write8(offset, static_cast<std::uint8_t>(value)); break;
        case 1: function.write16(offset, static_cast<std::uint16_t>(value)); break;
        case 2: function.write32(offset, static_cast<std::uint32_t>(value)); break;
        case 3: seen += function.read8(offset); break;
        case 4: seen += function.read16(offset); break;
        default: seen += function.read32(offset); break;
    }
}

// One in eight accesses does not lie on its own width.
void touch_memory(const Ranges& ranges) {
    if (!ranges.count) return;
    const Range range = ranges.items[below(ranges.count)];
    const unsigned width = 1u << below(4);
    std::uint64_t address = range.address + below(range.size_bytes - 7);
    if (is_aligned || below(8)) address &= ~std::uint64_t{width - 1};
    const std::uint64_t value = random_value();
    if (below(2)) {
        if (width == 1) write_device(address, static_cast<std::uint8_t>(value));
        if (width == 2) write_device(address, static_cast<std::uint16_t>(value));
        if (width == 4) write_device(address, static_cast<std::uint32_t>(value));
        if (width == 8) write_device(address, value);
    } else {
        if (width == 1) seen += read_device<std::uint8_t>(address);
        if (width == 2) seen += read_device<std::uint16_t>(address);
        if (width == 4) seen += read_device<std::uint32_t>(address);
        if (width == 8) seen += read_device<std::uint64_t>(address);
    }
}

void touch_io_apic() {
    const auto index = static_cast<unsigned>(below(4) ? below(0x40) : below(0x100));
    if (below(3) == 0) {
        seen += read_io_apic(index);
    } else if (below(2)) {
        write_io_apic(index, static_cast<std::uint32_t>(random_value()) & ~std::uint32_t{0x700});
    } else {
        write_device<std::uint32_t>(io_apic_address() + 4 * (1 + below(3)),
                                    static_cast<std::uint32_t>(random_value()));
    }
}

// Half of the time a connection is made or used as it should be: nonsense alone never gets beyond the first check.
void touch_shmem() {
    if (!factories.count) return;
    if (below(2)) return touch_memory(factories);
    const FactoryPage factory{factories.items[0].address};
    const std::uint64_t address = factory.shmem();
    switch (below(6)) {
        case 0: {
            char name[2] = {static_cast<char>('a' + below(4)), 0};
            factory.write_name({name, 1});
            break;
        }
        case 1: factory.request(static_cast<std::uint32_t>(below(8))); break;
        case 2: factory.find(static_cast<std::uint32_t>(below(20))); break;
        case 3: factory.request(static_cast<std::uint32_t>(random_value())); break;
        default: {
            const std::uint32_t pages = factory.size();
            if (factory.status() || !address || pages > 0x10000) break;
            if (!reach(address, (pages + std::uint64_t{1}) * shmem_page_bytes)) break;
            // The control page, and what is behind the last page.
            Ranges region = {};
            region.add(address, below(2) ? 0x20 : (pages + std::uint64_t{2}) * shmem_page_bytes);
            for (int i = 0; i < 4; ++i) touch_memory(region);
            break;
        }
    }
}

void find_bars() {
    for (unsigned slot = 0; slot < 32; ++slot) {
        const PciFunction function(slot, 0);
        if (!function.exists() || (function.read8(pci::header_type) & 0x7f) != 0) continue;
        const bool is_shmem = function.read32(0) == 0x00011c05;
        for (unsigned i = 0; i < 6; ++i) {
            const PciBar bar = function.bar(i);
            if (bar.is_port || !bar.size_bytes) continue;
            (is_shmem ? factories : bars).add(bar.address, bar.size_bytes);
            if (bar.is_64_bit) ++i;
        }
        function.enable();
    }
}

void find_holes() {
    for (Text option_text = option("holes"); option_text.size;) {
        const std::uint64_t address = take_number(option_text);
        const std::uint64_t size_bytes = take_number(option_text);
        if (reach(address, size_bytes)) holes.add(address, size_bytes);
    }
    // Up to the I/O APIC, between it and the local one, and behind that.
    holes.add(0xc0000000, 0x3ec00000 - 0x1000);
    holes.add(0xfec01000, 0x1ff000 - 0x1000);
    holes.add(0xfef00000, 0x100000);
}

bool has_part(Text name) {
    const Text parts = option("parts", "ports,pci,bars,shmem,ioapic,holes");
    for (std::size_t i = 0; i + name.size <= parts.size; ++i)
        if (Text(parts.data + i, name.size) == name) return true;
    return false;
}

}  // namespace

void run() {
    const std::uint64_t seed = number_option("seed", 1);
    const std::uint64_t count = number_option("count", 10000);
    state = seed * 0x9e3779b97f4a7c15 | 1;
    is_aligned = number_option("aligned", 0);
    start_interrupts();
    find_holes();
    if (has_part("bars") || has_part("shmem")) find_bars();
    const std::uint64_t loc = number_option("loc", 0);
    if (loc && reach(loc, shmem_page_bytes)) factories.add(loc, shmem_page_bytes);
    using Touch = void (*)();
    Touch touches[6] = {};
    unsigned parts = 0;
    if (has_part("ports")) touches[parts++] = touch_port;
    if (has_part("pci")) touches[parts++] = touch_pci;
    if (has_part("bars")) touches[parts++] = [] { touch_memory(bars); };
    if (has_part("shmem")) touches[parts++] = touch_shmem;
    if (has_part("ioapic")) touches[parts++] = touch_io_apic;
    if (has_part("holes")) touches[parts++] = [] { touch_memory(holes); };
    print_line(Text("hostile seed "), seed, Text(" count "), count, Text(" parts "), std::uint64_t{parts});
    if (parts)
        for (std::uint64_t i = 0; i < count; ++i) touches[below(parts)]();
    reset_console();
    print_line(Text("\nhostile is done, checksum "), Hex{seen});
    check("hostile: the machine lives", true);
}

}  // namespace guestmem::payload

// SPDX-License-Identifier: Apache-2.0
// What an exit costs: lines `measure NAME best_ns B mean_ns M`, and the time stamp of the first instruction.
//
// Options: `count` (1000) of each, `port` (0x80), `mmio` (the I/O APIC's window), `name` and `pages` of the region
// that is attached to; the options of lib/shmem_device.hpp with `shmem=1`, which measures a `vdev shmem`.
// An ivshmem device is measured where there is one: a ring of the own doorbell to its interrupt, taken in HLT.
// Kicks between two guests are measured by the rally of the payloads ivshmem and shmem.

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/ivshmem_device.hpp"
#include "guests/payload/lib/payload.hpp"
#include "guests/payload/lib/shmem_device.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint64_t patience_ms = 5000;

// The shortest and the mean of some times.
struct Times {
    std::uint64_t best = ~std::uint64_t{0};
    std::uint64_t total = 0;
    std::uint64_t count = 0;

    void add(std::uint64_t taken) {
        if (taken < best) best = taken;
        total += taken;
        ++count;
    }
    void print(Text name) const {
        const std::uint64_t stamps = time_stamps_per_ms();
        print_line(Text("measure "), name, Text(" best_ns "), best * 1000000 / stamps, Text(" mean_ns "),
                   total / count * 1000000 / stamps);
    }
};

template <typename Act>
void measure(Text name, std::uint64_t count, Act act) {
    Times times;
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t begin = read_time_stamp();
        act();
        times.add(read_time_stamp() - begin);
    }
    times.print(name);
}

void measure_shmem(std::uint64_t count) {
    ShmemDevice device = {};
    if (!open_shmem(device)) return;
    const Text name = option("name", "measure");
    const auto pages = static_cast<std::uint32_t>(number_option("pages", 256));
    std::uint32_t status = 0;
    Connection* keeper = attach(device, name, pages, status);
    if (!check_equal("measure: attached", shmem_status::ok, status) || !keeper) return;
    const FactoryPage factory = device.factory;
    measure("factory_read", count, [&] { factory.status(); });
    // The name is in the page; from the write of `size` to the first word of data, and the way back.
    constexpr std::uint64_t attaches = 100;
    std::uint64_t address = 0;
    const std::uint64_t rounds = count < attaches ? count : attaches;
    // The place is the same each time: it is mapped ahead, outside of what is measured.
    Connection* first = attach(device, name, pages, status);
    if (!check_equal("measure: attached twice", shmem_status::ok, status) || !first) return;
    detach(*first);
    Times attaching;
    Times detaching;
    for (std::uint64_t i = 0; i < rounds; ++i) {
        const std::uint64_t begin = read_time_stamp();
        factory.request(pages);
        address = factory.shmem();
        read_device<std::uint32_t>(address + shmem_page_bytes);
        const std::uint64_t used = read_time_stamp();
        ControlPage{address}.detach();
        attaching.add(used - begin);
        detaching.add(read_time_stamp() - used);
    }
    attaching.print("attach_to_data");
    detaching.print("detach");
    measure("notify_nobody", count, [&] { keeper->control.notify(0); });
    bool are_all_taken = true;
    measure("notify_to_interrupt", count, [&] {
        const std::uint64_t before = keeper->kicks;
        keeper->control.notify(1u << keeper->idx);
        are_all_taken = wait_until([&] { return keeper->kicks != before; }, patience_ms) && are_all_taken;
    });
    check("measure: every notice was taken", are_all_taken);
    detach(*keeper);
}

void measure_ivshmem(std::uint64_t count) {
    IvshmemDevice device = {};
    if (!open_ivshmem(0, first_free_vector, device)) return;
    measure("ivshmem_register_read", count, [&] { device.position(); });
    if (!device.vectors) return;
    const std::uint16_t own = device.position();
    measure("doorbell_to_nobody", count, [&] { device.ring(0xfffe, 0); });
    bool are_all_taken = true;
    measure("doorbell_to_interrupt", count, [&] {
        const std::uint64_t before = count_interrupts(first_free_vector);
        device.ring(own, 0);
        auto has_come = [&] { return count_interrupts(first_free_vector) != before; };
        are_all_taken = wait_until(has_come, patience_ms) && are_all_taken;
    });
    check("measure: every ring was taken", are_all_taken);
}

}  // namespace

void run() {
    const std::uint64_t count = number_option("count", 1000);
    const auto port = static_cast<std::uint16_t>(number_option("port", 0x80));
    start_interrupts();
    const std::uint64_t mmio = number_option("mmio", io_apic_address());
    const std::uint64_t stamps = time_stamps_per_ms();
    check("measure: time stamps run", stamps > 1);
    print_line(Text("measure stamps_per_ms "), stamps);
    print_line(Text("measure entry_stamp "), time_stamp_at_start());
    measure("nothing", count, [] {});
    measure("port_write", count, [=] { out8(port, 0); });
    measure("port_read", count, [=] { in8(port); });
    measure("mmio_write", count, [=] { write_device<std::uint32_t>(mmio, 1); });
    measure("mmio_read", count, [=] { read_device<std::uint32_t>(mmio); });
    if (number_option("shmem", 0)) measure_shmem(count);
    measure_ivshmem(count);
}

}  // namespace guestmem::payload

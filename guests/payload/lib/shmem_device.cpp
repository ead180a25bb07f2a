// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/shmem_device.hpp"

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/paging.hpp"
#include "guests/payload/lib/report.hpp"
#include "guests/payload/lib/start_info.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint8_t shmem_vector = first_free_vector + 0x40;
constexpr unsigned max_pins = 24;

constinit Connection connections[shmem_max_clients] = {};
/// Behind these none is attached. kvm-pvm emulates the handler one instruction after the other: each place that is
/// looked at in vain is a few microseconds of every kick.
constinit std::uint32_t count_places = 0;

void take_status(Connection& connection) {
    const std::uint32_t status = connection.control.status();
    if (status & 0xffff) ++connection.kicks;
    connection.notified |= status & 0xffff;
    if (status >> 16 != connection.active) ++connection.changes;
    connection.active = status >> 16;
}

void on_interrupt() {
    for (std::uint32_t place = 0; place < count_places; ++place)
        if (connections[place].is_attached) take_status(connections[place]);
}

bool find_device(ShmemDevice& device) {
    const std::uint64_t loc = number_option("loc", 0);
    device.is_pci = !loc;
    device.factory.address = loc;
    if (loc) return check("shmem: the address can be reached", reach(loc, shmem_page_bytes));
    if (!check("shmem: a PCI device 1c05:0001 is there", find_pci(0x1c05, 0x0001, 0, device.function)))
        return false;
    device.factory.address = device.function.bar(0).address;
    device.function.enable();
    return check("shmem: BAR0 has an address", device.factory.address != 0);
}

}  // namespace

bool open_shmem(ShmemDevice& device) {
    if (!find_device(device)) return false;
    if (!check_equal("shmem: the signature", factory_signature, device.factory.signature())) return false;
    set_handler(shmem_vector, on_interrupt);
    device.uses_msi = device.is_pci && number_option("msi", 0);
    if (device.uses_msi) return check("shmem: MSI is there", device.function.use_msi(shmem_vector));
    device.pin = static_cast<std::uint32_t>(number_option("intr", device.factory.vector()));
    if (!check_in("shmem: its interrupt is a pin", 0, max_pins - 1, device.pin)) return false;
    route(device.pin, shmem_vector, Trigger::level);
    return true;
}

std::uint64_t count_shmem_interrupts() { return count_interrupts(shmem_vector); }

Connection* attach(const ShmemDevice& device, Text name, std::uint32_t pages, std::uint32_t& status) {
    Connection* free = nullptr;
    for (Connection& connection : connections)
        if (!free && !connection.is_attached) free = &connection;
    device.factory.write_name(name);
    status = device.factory.request(pages);
    if (status != shmem_status::ok || !free) return nullptr;
    const std::uint32_t real_pages = device.factory.size();
    const std::uint64_t address = device.factory.shmem();
    if (!reach(address, (real_pages + std::uint64_t{1}) * shmem_page_bytes)) return nullptr;
    *free = Connection{true, ControlPage{address}, real_pages, 0, 0, 0, 0, 0};
    free->idx = free->control.idx();
    free->active = 1u << (free->idx & 15);
    take_status(*free);
    const auto place = static_cast<std::uint32_t>(free - connections);
    if (place >= count_places) count_places = place + 1;
    return free;
}

void detach(Connection& connection) {
    connection.is_attached = false;
    while (count_places && !connections[count_places - 1].is_attached) --count_places;
    connection.control.detach();
}

}  // namespace guestmem::payload

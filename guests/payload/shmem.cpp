// SPDX-License-Identifier: Apache-2.0
// `vdev shmem`, step by step as its guests are told to use it, over PCI or MMIO.
//
// Options: `loc`, `intr`, `msi` (lib/shmem_device.hpp); `role=single|ping|pong|watch`; `name` (payload), `pages` (16),
// `rounds` (100), `timeout` in ms, `denied` (a name that the VM may not use), `full` (one with 16 clients),
// `existing` (a region that somebody else has made, of `existing_pages` pages), `events` (10: how many changes watch
// waits for). single wants its region for itself. Ping and pong follow lib/rally.hpp, in the first data page.

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/payload.hpp"
#include "guests/payload/lib/rally.hpp"
#include "guests/payload/lib/shmem_device.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint64_t patience_ms = 5000;
constexpr std::uint64_t settle_ms = 50;

constinit ShmemDevice device = {};
constinit Connection* player = nullptr;

std::uint32_t request(Text name, std::uint32_t pages) {
    device.factory.write_name(name);
    return device.factory.request(pages);
}

std::uint32_t bit(const Connection& connection) { return 1u << connection.idx; }

void check_pci() {
    const PciFunction function = device.function;
    check_equal("shmem: class memory", 0x0500, function.read32(pci::revision_and_class) >> 16);
    const PciBar bar = function.bar(0);
    check_equal("shmem: BAR0 has 4 KiB", shmem_page_bytes, bar.size_bytes);
    check("shmem: BAR0 is 32-bit memory", !bar.is_port && !bar.is_64_bit && !bar.is_prefetchable);
    for (unsigned i = 1; i < 6; ++i) check_equal("shmem: no other BAR", 0, function.bar(i).size_bytes);
    check_equal("shmem: INTA", 1, function.read8(pci::interrupt_pin));
    check_equal("shmem: the interrupt line is the vector register", device.factory.vector(),
                function.read8(pci::interrupt_line));
}

void check_factory_registers() {
    const FactoryPage factory = device.factory;
    check_equal("shmem: the signature's lower half", 0x474d5651, read_device<std::uint32_t>(factory.address));
    check_equal("shmem: the signature's upper half", 0x4d534732,
                read_device<std::uint32_t>(factory.address + 4));
    check_equal("shmem: the signature's first byte", 'Q', read_device<std::uint8_t>(factory.address));
    if (!device.is_pci) check_equal("shmem: the vector register is intr", device.pin, factory.vector());
    const std::uint32_t vector = factory.vector();
    write_device<std::uint64_t>(factory.address, 0);
    write_device<std::uint64_t>(factory.address + 0x08, 0x1000);
    write_device<std::uint32_t>(factory.address + 0x10, ~vector);
    check_equal("shmem: the signature cannot be written", factory_signature, factory.signature());
    check("shmem: the address cannot be written", factory.shmem() != 0x1000);
    check_equal("shmem: the vector cannot be written", vector, factory.vector());
    factory.write_name("abcdefghijklmnopqrstuvwxyz12345");
    check("shmem: the name reads back", factory.has_name("abcdefghijklmnopqrstuvwxyz12345"));
    check_equal("shmem: the name reads back in words", 0x64636261,
                read_device<std::uint32_t>(factory.address + 0x1c));
}

void check_names() {
    constexpr std::uint32_t illegal = shmem_status::illegal_name;
    check_equal("shmem: no name is illegal", illegal, request("", 1));
    check_equal("shmem: 32 bytes without a NUL are illegal", illegal,
                request("abcdefghijklmnopqrstuvwxyz123456", 1));
    check_equal("shmem: a slash is illegal", illegal, request("a/b", 1));
    check_equal("shmem: a control character is illegal", illegal, request("a\x07z", 1));
    check_equal("shmem: a byte beyond ASCII is illegal", illegal, request("a\x80z", 1));
    std::uint32_t status = 0;
    Connection* longest = attach(device, "abcdefghijklmnopqrstuvwxyz12345", 1, status);
    check_equal("shmem: 31 bytes are a name", shmem_status::ok, status);
    if (longest) detach(*longest);
    Connection* printable = attach(device, "a b!~", 1, status);
    check_equal("shmem: printable ASCII is a name", shmem_status::ok, status);
    if (printable) detach(*printable);
}

void check_refusals() {
    check("shmem: no pages are refused", request("nothing", 0) != shmem_status::ok);
    check("shmem: 16 TiB are refused", request("everything", 0xffffffff) != shmem_status::ok);
    check_equal("shmem: 8 TiB are too much memory", shmem_status::no_memory, request("half", 0x80000000));
    check_equal("shmem: no connection to find", shmem_status::does_not_exist, device.factory.find(0));
    const Text denied = option("denied");
    if (denied.size) check_equal("shmem: a denied name", shmem_status::no_permission, request(denied, 1));
    const Text full = option("full");
    if (full.size) check_equal("shmem: client 17", shmem_status::too_many_clients, request(full, 1));
}

void check_region(const Connection& one, std::uint32_t pages) {
    check_equal("shmem: the size that was asked for", pages, one.pages);
    check("shmem: the address is aligned to a page", one.control.address && !(one.control.address & 0xfff));
    check_in("shmem: an index", 0, shmem_max_clients - 1, one.idx);
    check("shmem: the active set has the own bit", one.active & bit(one));
    const std::uint64_t last = one.control.data() + pages * shmem_page_bytes - 8;
    std::uint64_t found = 0;
    for (std::uint64_t at = one.control.data(); at <= last; at += shmem_page_bytes)
        found |= read_device<std::uint64_t>(at) | read_device<std::uint64_t>(at + 0xff8);
    check_equal("shmem: a region is born zero", 0, found);
    write_device<std::uint64_t>(one.control.data(), 0x1111222233334444);
    write_device<std::uint64_t>(last, 0x5555666677778888);
    check_equal("shmem: the first word is kept", 0x1111222233334444,
                read_device<std::uint64_t>(one.control.data()));
    check_equal("shmem: the last word is kept", 0x5555666677778888, read_device<std::uint64_t>(last));
    const std::uint32_t idx = one.control.idx();
    write_device<std::uint32_t>(one.control.address + 4, idx + 1);
    check_equal("shmem: the index cannot be written", idx, one.control.idx());
}

bool comes(Connection& to, std::uint32_t bits) {
    return wait_until([&] { return (to.notified & bits) == bits; }, patience_ms);
}

void check_notify(Connection& one) {
    one.notified = 0;
    const std::uint64_t before = count_shmem_interrupts();
    one.control.notify(notify_all);
    check("shmem: 0xffff notifies the writer, too", comes(one, bit(one)));
    check("shmem: by an interrupt", count_shmem_interrupts() > before);
    check_equal("shmem: reading the status clears who notified", 0, one.control.status() & 0xffff);
    wait_ms(settle_ms);
    const std::uint64_t quiet = count_shmem_interrupts();
    wait_ms(settle_ms);
    check_equal("shmem: the line is low after that", quiet, count_shmem_interrupts());
    one.notified = 0;
    one.control.notify(notify_all_but_me);
    wait_ms(settle_ms);
    check_equal("shmem: all ones leave the writer out", 0, one.notified & bit(one));
    one.control.notify(bit(one));
    check("shmem: the own bit notifies oneself", comes(one, bit(one)));
    one.notified = 0;
    one.control.notify(0);
    one.control.notify(0xffff & ~one.active);
    wait_ms(settle_ms);
    check_equal("shmem: a notice to nobody reaches nobody", 0, one.notified);
}

void check_second(Connection& one, Text name) {
    std::uint32_t status = 0;
    wait_ms(settle_ms);
    Connection* other = attach(device, name, one.pages + 5, status);
    check_equal("shmem: a second connection to the same name", shmem_status::ok, status);
    if (!other) return;
    check_equal("shmem: the first creator has fixed the size", one.pages, other->pages);
    check("shmem: it has an index of its own", other->idx != one.idx);
    check("shmem: it has a control page of its own", other->control.address != one.control.address);
    check_equal("shmem: it has the same data", 0x1111222233334444,
                read_device<std::uint64_t>(other->control.data()));
    check("shmem: the first is told that it came",
          wait_until([&] { return one.active & bit(*other); }, patience_ms));
    check("shmem: the second sees both", (other->active & bit(one)) && (other->active & bit(*other)));
    one.notified = 0;
    other->notified = 0;
    other->control.notify(bit(one));
    check("shmem: the second notifies the first", comes(one, bit(*other)));
    one.control.notify(notify_all_but_me);
    check("shmem: all but me reaches the second", comes(*other, bit(one)));
    check_equal("shmem: and not the writer", 0, one.notified & bit(one));

    check_equal("shmem: find 1 is the second", shmem_status::ok, device.factory.find(1));
    check_equal("shmem: find tells the address", other->control.address, device.factory.shmem());
    check_equal("shmem: find tells the size", one.pages, device.factory.size());
    check("shmem: find tells the name", device.factory.has_name(name));
    check_equal("shmem: find 0 is the first", shmem_status::ok, device.factory.find(0));
    check_equal("shmem: the first's address", one.control.address, device.factory.shmem());
    check_equal("shmem: there is no third", shmem_status::does_not_exist, device.factory.find(2));
    const std::uint32_t gone = bit(*other);
    wait_ms(
        settle_ms);  // an interrupt that is still on its way would read the status for the one that is due
    detach(*other);
    check("shmem: the first is told that the second went",
          wait_until([&] { return !(one.active & gone); }, patience_ms));
    check_equal("shmem: find 1 is gone", shmem_status::does_not_exist, device.factory.find(1));
}

void check_seventeen(Connection& one, Text name) {
    Connection* others[shmem_max_clients] = {};
    std::uint32_t status = 0;
    unsigned count = 0;
    while (count < shmem_max_clients - 1 && (others[count] = attach(device, name, 1, status))) ++count;
    check_equal("shmem: sixteen clients", shmem_max_clients - 1, count);
    check_equal("shmem: client 17 is one too many", shmem_status::too_many_clients, request(name, 1));
    check("shmem: all sixteen are active", wait_until([&] { return one.active == 0xffff; }, patience_ms));
    const std::uint32_t all_others = 0xffff & ~bit(one);
    one.control.notify(notify_all_but_me);
    check("shmem: all sixteen hear", wait_until(
                                         [&] {
                                             std::uint32_t heard = 0;
                                             for (unsigned i = 0; i < count; ++i)
                                                 if (others[i]->notified & bit(one)) heard |= bit(*others[i]);
                                             return heard == all_others;
                                         },
                                         patience_ms));
    for (unsigned i = 0; i < count; ++i) detach(*others[i]);
    check("shmem: and all are gone", wait_until([&] { return one.active == bit(one); }, patience_ms));
}

void check_existing() {
    const Text name = option("existing");
    if (!name.size) return;
    std::uint32_t status = 0;
    Connection* existing = attach(device, name, 1, status);
    check_equal("shmem: a region that exists", shmem_status::ok, status);
    if (!existing) return;
    check_equal("shmem: its size", number_option("existing_pages", existing->pages), existing->pages);
    detach(*existing);
}

void check_single(Text name, std::uint32_t pages) {
    if (device.is_pci) check_pci();
    check_factory_registers();
    check_refusals();
    check_names();
    std::uint32_t status = 0;
    Connection* one = attach(device, name, pages, status);
    check_equal("shmem: a region is made", shmem_status::ok, status);
    if (!one) return;
    check_equal("shmem: the own connection is the only one", bit(*one), one->active);
    check_region(*one, pages);
    check_notify(*one);
    check_second(*one, name);
    check_seventeen(*one, name);
    detach(*one);
    check_equal("shmem: nothing is left to find", shmem_status::does_not_exist, device.factory.find(0));
    one = attach(device, name, pages + 1, status);
    check_equal("shmem: the name can be used again", shmem_status::ok, status);
    if (!one) return;
    check_region(*one, pages + 1);
    detach(*one);
    check_existing();
}

std::uint64_t count_kicks() { return player->kicks; }
void kick(std::uint32_t slot) { player->control.notify(1u << (slot & 15)); }

void watch(Connection& connection) {
    const std::uint64_t wanted = number_option("events", 10);
    const std::uint64_t timeout_ms = number_option("timeout", 20000);
    std::uint64_t seen = 0;
    for (; seen < wanted; ++seen) {
        const std::uint64_t before = connection.kicks + connection.changes;
        // What came while the last line was printed waits for the next wait, which lets interrupts in.
        if (!wait_until([&] { return connection.kicks + connection.changes != before; }, timeout_ms)) break;
        print_line(Text("event notified "), Hex{connection.notified}, Text(" active "),
                   Hex{connection.active});
        connection.notified = 0;
    }
    check_equal("shmem: every event was seen", wanted, seen);
}

}  // namespace

void run() {
    start_interrupts();
    if (!open_shmem(device)) return;
    const Text name = option("name", "payload");
    const auto pages = static_cast<std::uint32_t>(number_option("pages", 16));
    const Text role = option("role", "single");
    if (role == Text("single")) {
        check_single(name, pages);
        return;
    }
    std::uint32_t status = 0;
    player = attach(device, name, pages, status);
    check_equal("shmem: attached", shmem_status::ok, status);
    if (!player) return;
    print_line(Text("shmem idx "), std::uint64_t{player->idx}, Text(" active "), Hex{player->active},
               Text(" pages "), std::uint64_t{player->pages});
    const auto rounds = static_cast<std::uint32_t>(number_option("rounds", 100));
    const Court court{player->control.data(), player->idx, true, count_kicks, kick};
    if (role == Text("ping")) ping(court, rounds);
    if (role == Text("pong")) pong(court, rounds);
    if (role == Text("watch")) watch(*player);
    detach(*player);
}

}  // namespace guestmem::payload

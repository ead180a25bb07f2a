// SPDX-License-Identifier: Apache-2.0
// The ivshmem device, revision 1 (1af4:1110), plain or with doorbells.
//
// Options: `role=single|ping|pong`, `rounds` (100), `vector` (0: the one that is rung), `mode=interrupt|poll`,
// `offset` (of the rally in the shared memory: 0), `timeout` in ms. Ping and pong follow lib/rally.hpp.
// A device without MSI-X is plain: single checks its memory only, and the rally is polled with `slot`.

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/ivshmem_device.hpp"
#include "guests/payload/lib/payload.hpp"
#include "guests/payload/lib/rally.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint64_t patience_ms = 5000;

constinit IvshmemDevice device = {};
constinit std::uint16_t vector = 0;

void kick(std::uint32_t slot) {
    if (device.vectors) device.ring(static_cast<std::uint16_t>(slot), vector);
}

std::uint64_t count_kicks() {
    return count_interrupts(static_cast<std::uint8_t>(first_free_vector + vector));
}

void check_memory() {
    const std::uint64_t last = device.memory + device.memory_bytes - 8;
    write_device<std::uint64_t>(last, 0x0123456789abcdef);
    check_equal("ivshmem: the last word is kept", 0x0123456789abcdef, read_device<std::uint64_t>(last));
    check_equal("ivshmem: a byte of it", 0xab, read_device<std::uint8_t>(last + 2));
    write_device<std::uint64_t>(last, 0);
}

void check_device() {
    const PciFunction function = device.function;
    check_equal("ivshmem: revision 1, class memory", 0x05000001, function.read32(pci::revision_and_class));
    check_equal("ivshmem: no INTx", 0, function.read8(pci::interrupt_pin));
    const PciBar registers = function.bar(0);
    check_equal("ivshmem: BAR0 has 256 bytes", 256, registers.size_bytes);
    check("ivshmem: BAR0 is 32-bit memory",
          !registers.is_64_bit && !registers.is_port && !registers.is_prefetchable);
    const PciBar memory = function.bar(2);
    check("ivshmem: BAR2 is 64-bit prefetchable memory", memory.is_64_bit && memory.is_prefetchable);
    check_equal("ivshmem: BAR2's size is a power of two", 0, memory.size_bytes & (memory.size_bytes - 1));
    check_memory();
}

// Everybody may ring himself.
void check_own_doorbell() {
    const auto vectors = static_cast<std::uint16_t>(device.vectors);
    for (std::uint16_t i = 0; i < vectors; ++i) {
        const auto own = static_cast<std::uint8_t>(first_free_vector + i);
        const std::uint64_t before = count_interrupts(own);
        device.ring(device.position(), i);
        check("ivshmem: a ring of the own doorbell comes back",
              wait_until([=] { return count_interrupts(own) > before; }, patience_ms));
    }
    const std::uint64_t before = count_kicks();
    device.ring(device.position(), vectors);
    device.ring(0xfffe, 0);
    wait_ms(50);
    check_equal("ivshmem: rings for nobody are ignored", before, count_kicks());
}

}  // namespace

void run() {
    start_interrupts();
    if (!check("ivshmem: a device is there", open_ivshmem(0, first_free_vector, device))) return;
    vector = static_cast<std::uint16_t>(number_option("vector", 0));
    const auto slot = static_cast<std::uint32_t>(number_option("slot", device.position()));
    print_line(Text("ivshmem slot "), std::uint64_t{slot}, Text(" vectors "), std::uint64_t{device.vectors},
               Text(" memory "), Hex{device.memory}, Text(" size "), Hex{device.memory_bytes});
    const Text role = option("role", "single");
    const auto rounds = static_cast<std::uint32_t>(number_option("rounds", 100));
    const bool has_kicks = device.vectors && option("mode", "interrupt") == Text("interrupt");
    const Court court{device.memory + number_option("offset", 0), slot, has_kicks, count_kicks, kick};
    if (role == Text("ping")) {
        ping(court, rounds);
    } else if (role == Text("pong")) {
        pong(court, rounds);
    } else {
        check_device();
        if (device.vectors) check_own_doorbell();
    }
}

}  // namespace guestmem::payload

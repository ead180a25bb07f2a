// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/dsdt.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "guestmem/vmm/boot/acpi_resources.hpp"
#include "guestmem/vmm/boot/aml.hpp"

namespace guestmem::vmm {

namespace {

constexpr std::uint16_t configuration_port = 0xcf8;
constexpr std::uint64_t ecam_bytes_of_bus = std::uint64_t{1} << 20;
constexpr std::size_t interrupts_of_package = 255;  // what the length of a package says

void add_device(Aml& aml, std::string_view name, std::string_view id, AcpiResources& resources) {
    aml.device(name, [&] {
        aml.named("_HID").eisa_id(id);
        aml.named("_CRS").buffer(resources.take());
    });
}

void add_processors(Aml& aml, const AcpiPlan& plan) {
    for (std::size_t i = 0; i < plan.apic_ids.size(); ++i) {
        aml.device(fmt::format("C{:03X}", i), [&] {
            aml.named("_HID").text("ACPI0007");
            aml.named("_UID").integer(i);
        });
    }
}

void add_interrupts(Aml& aml, const PciPlan& pci) {
    const std::size_t count = std::min(pci.interrupts.size(), interrupts_of_package);
    aml.named("_PRT").package(static_cast<std::uint8_t>(count), [&] {
        for (std::size_t i = 0; i < count; ++i) {
            const PciInterrupt& interrupt = pci.interrupts[i];
            aml.package(4, [&] {
                aml.integer(std::uint64_t{interrupt.slot} << 16 | 0xffff);
                aml.integer(interrupt.pin);
                aml.integer(0);  // no link device: a pin of the I/O APIC
                aml.integer(interrupt.gsi);
            });
        }
    });
}

void add_pci(Aml& aml, const PciPlan& pci) {
    AcpiResources resources;
    resources.bus_window(pci.first_bus, pci.last_bus).ports(configuration_port, 8);
    for (const PortWindow& window : pci.port_windows) resources.port_window(window.first, window.last);
    for (const GuestRange& window : pci.memory_windows_32) resources.memory_window_32(window);
    for (const GuestRange& window : pci.memory_windows_64) resources.memory_window_64(window);
    aml.device("PCI0", [&] {
        aml.named("_HID").eisa_id(pci.ecam ? "PNP0A08" : "PNP0A03");
        if (pci.ecam) aml.named("_CID").eisa_id("PNP0A03");
        aml.named("_UID").integer(0);
        aml.named("_SEG").integer(0);
        aml.named("_BBN").integer(pci.first_bus);
        aml.named("_CRS").buffer(resources.take());
        add_interrupts(aml, pci);
    });
}

void add_isa_devices(Aml& aml, const AcpiPlan& plan) {
    AcpiResources resources;
    if (plan.has_pic) add_device(aml, "PIC", "PNP0000", resources.ports(0x20, 2).ports(0xa0, 2).interrupt(2));
    if (plan.timer_gsi) add_device(aml, "TIMR", "PNP0100", resources.ports(0x40, 4).interrupt(0));
    if (plan.clock_gsi) add_device(aml, "RTC", "PNP0B00", resources.ports(0x70, 2).interrupt(8));
    if (plan.keyboard_gsi)
        add_device(aml, "KBD", "PNP0303", resources.ports(0x60, 1).ports(0x64, 1).interrupt(1));
    for (std::size_t i = 0; i < plan.serial.size(); ++i) {
        const SerialPlan& serial = plan.serial[i];
        aml.device(fmt::format("COM{}", i + 1), [&] {
            aml.named("_HID").eisa_id("PNP0501");
            aml.named("_UID").integer(i + 1);
            aml.named("_CRS").buffer(resources.ports(serial.port, 8).interrupt(serial.gsi).take());
        });
    }
}

/// Linux believes MCFG only when a device of the board, or the memory map, has its addresses.
void add_board(Aml& aml, const AcpiPlan& plan) {
    AcpiResources resources;
    const PowerPlan& power = plan.power;
    if (power.event_port != 0) resources.ports(power.event_port, 4);
    if (power.control_port != 0) resources.ports(power.control_port, 2);
    if (power.timer_port != 0) resources.ports(power.timer_port, 4);
    if (plan.pci && plan.pci->ecam) {
        const std::uint64_t count_buses = std::uint64_t{plan.pci->last_bus} - plan.pci->first_bus + 1;
        if (const auto range = GuestRange::create(*plan.pci->ecam, count_buses * ecam_bytes_of_bus))
            resources.fixed_memory(*range);
    }
    add_device(aml, "MBRD", "PNP0C02", resources);
}

}  // namespace

std::vector<std::byte> make_dsdt_body(const AcpiPlan& plan) {
    Aml aml;
    aml.scope("\\_SB", [&] {
        add_processors(aml, plan);
        if (plan.pci) add_pci(aml, *plan.pci);
        add_isa_devices(aml, plan);
        add_board(aml, plan);
    });
    if (plan.power.control_port != 0) {
        aml.named("\\_S5").package(4, [&] {
            aml.integer(plan.power.sleep_type_s5);
            aml.integer(plan.power.sleep_type_s5);  // of PM1b, which is not there
            aml.integer(0);
            aml.integer(0);
        });
    }
    return aml.bytes();
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/guest_start.hpp"

#include <fmt/format.h>

#include <list>
#include <utility>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/vmm/boot/acpi_tables.hpp"

namespace guestmem::vmm {
namespace {

/// All tables together have the spot of low_memory::acpi.
constexpr std::size_t max_acpi_table_bytes = 64UL * 1024;

std::optional<std::uint32_t> gsi_of(const Vdev& vdev) {
    return vdev.intr ? vdev.intr->value.pin : std::nullopt;
}

/// The files of a configuration while they are loaded.
class BootFiles {
public:
    Result<const BootFile*> open(const Load& load) {
        const std::string& path = load.file.value;
        fds_.push_back(GM_TRY(open_file(path, OpenMode::read)));
        const FileFacts facts = GM_TRY(file_facts(fds_.back()));
        const FdView fd = fds_.back().view();
        files_.emplace_back(path, facts.size_bytes, [fd](std::uint64_t offset, std::span<std::byte> to) {
            return read_at(fd, offset, to);
        });
        return &files_.back();
    }

private:
    std::list<Fd> fds_;
    std::list<BootFile> files_;
};

Result<void> add_file(const Load& load, BootFiles& files, GuestBootPlan& boot, AcpiPlan& acpi) {
    const BootFile* const file = GM_TRY(files.open(load));
    switch (load.kind) {
        case LoadKind::kernel:
            boot.image = file;
            if (load.address) boot.address = load.address->value;
            return {};
        case LoadKind::initrd: boot.initrd = file; return {};
        case LoadKind::acpi:
            if (file->size_bytes() > max_acpi_table_bytes) {
                return Error{Errc::out_of_range, fmt::format("an ACPI table of {} bytes: at most {} fit",
                                                             file->size_bytes(), max_acpi_table_bytes)};
            }
            acpi.extra_tables.push_back(GM_TRY(file->read_head(max_acpi_table_bytes)));
            return {};
        case LoadKind::data: break;
    }
    if (!load.address) return Error{Errc::invalid_argument, "data needs an address: data load ADDRESS,FILE"};
    boot.data.push_back({.file = file, .address = load.address->value});
    return {};
}

MemoryMapPlan plan_memory_map(const BoardPlan& plan) {
    MemoryMapPlan map{.ram = {}, .reserved = legacy_reservations()};
    for (const PlannedMemory& memory : plan.memory) {
        if (memory.is_rom) continue;
        map.ram.insert(map.ram.end(), memory.ranges.begin(), memory.ranges.end());
    }
    if (plan.ecam_base) {
        const auto ecam = GuestRange::create(GuestAddress{*plan.ecam_base}, pci_window_bytes);
        if (ecam) map.reserved.push_back({.range = *ecam});
    }
    return map;
}

}  // namespace

AcpiPlan plan_acpi(const BoardPlan& plan) {
    AcpiPlan acpi;
    acpi.apic_ids.clear();
    for (std::uint32_t id = 0; id < plan.config().cpus.size(); ++id) acpi.apic_ids.push_back(id);
    acpi.io_apic = std::nullopt;
    if (plan.ioapic_base) acpi.io_apic = IoApicPlan{.address = GuestAddress{*plan.ioapic_base}};
    for (const Vdev& vdev : plan.config().vdevs) {
        const auto gsi = gsi_of(vdev);
        if (vdev.kind == VdevKind::timer8254) acpi.timer_gsi = gsi.value_or(0);
        if (vdev.kind == VdevKind::mc146818) acpi.clock_gsi = gsi.value_or(8);
        if (vdev.kind == VdevKind::pckeyboard) acpi.keyboard_gsi = gsi.value_or(1);
        if (vdev.kind == VdevKind::ser8250 && acpi.serial.size() < max_acpi_serial_ports) {
            acpi.serial.push_back({.port = static_cast<std::uint16_t>(vdev.loc ? vdev.loc->value : 0x3f8),
                                   .gsi = gsi.value_or(4)});
        }
    }
    acpi.power = {.event_port = ports::power,
                  .control_port = ports::power + 4,
                  .timer_port = ports::power + 8,
                  .has_32_bit_timer = true,
                  .sci_gsi = sci_gsi};
    if (plan.has_pci) {
        PciPlan pci;
        const auto to_range = [](const pci::AddressWindow& window) {
            return *GuestRange::from_first_last(GuestAddress{window.first}, GuestAddress{window.last});
        };
        pci.port_windows = {{.first = static_cast<std::uint16_t>(plan.pci_windows.ports->first),
                             .last = static_cast<std::uint16_t>(plan.pci_windows.ports->last)}};
        pci.memory_windows_32 = {to_range(*plan.pci_windows.memory32)};
        pci.memory_windows_64 = {to_range(*plan.pci_windows.memory64)};
        if (plan.ecam_base) pci.ecam = GuestAddress{*plan.ecam_base};
        pci.interrupts = make_turning_interrupts(pci_gsis);
        acpi.pci = std::move(pci);
    }
    return acpi;
}

Result<LoadedGuest> load_files(const BoardPlan& plan, BootMemory& memory) {
    BootFiles files;
    GuestBootPlan boot;
    boot.memory = plan_memory_map(plan);
    AcpiPlan acpi = plan_acpi(plan);
    if (plan.config().cmdline) boot.command_line = plan.config().cmdline->value;
    for (const Load& load : plan.config().loads) {
        if (const auto added = add_file(load, files, boot, acpi); !added) {
            Findings findings{plan.read.sources};
            findings.add(load.place, added.error().message());
            return findings.to_error();
        }
    }
    if (plan.ioapic_base) {
        const AcpiTables tables = GM_TRY(make_acpi_tables(acpi));
        GM_TRY(write_acpi_tables(tables, memory));
        boot.rsdp = tables.rsdp;
    }
    return load_guest(boot, memory);
}

}  // namespace guestmem::vmm

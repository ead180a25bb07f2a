// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/acpi_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <span>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/vmm/boot/dsdt.hpp"

namespace guestmem::vmm {

namespace {

constexpr std::string_view oem_id = "GUESTM";
constexpr std::string_view oem_table_id = "GUESTMEM";
constexpr std::string_view creator_id = "GMEM";
constexpr std::size_t header_bytes = 36;
constexpr std::size_t at_checksum = 9;
constexpr std::uint64_t table_alignment = 64;  // what FACS needs; the others need none
constexpr std::uint64_t last_32_bit_address = 0xffffffff;
constexpr std::size_t max_pci_interrupts = 255;
constexpr std::uint32_t max_gsi = 255;
constexpr std::uint64_t ecam_bytes_of_bus = std::uint64_t{1} << 20;

/// Bytes of a table, in the order in which its definition has them.
class TableBytes {
public:
    /// With the common header; the length and the checksum come at the end.
    static TableBytes with_header(std::string_view signature, std::uint8_t revision) {
        TableBytes table;
        table.text(signature).le<std::uint32_t>(0).le<std::uint8_t>(revision).le<std::uint8_t>(0);
        table.text(oem_id).text(oem_table_id).le<std::uint32_t>(1).text(creator_id).le<std::uint32_t>(1);
        GM_CHECK(table.bytes_.size() == header_bytes);
        return table;
    }

    template <std::unsigned_integral T>
    TableBytes& le(T value) {
        for (unsigned i = 0; i < sizeof(T); ++i)
            bytes_.push_back(static_cast<std::byte>(std::uint64_t{value} >> 8 * i));
        return *this;
    }
    TableBytes& text(std::string_view value) {
        for (const char character : value) bytes_.push_back(static_cast<std::byte>(character));
        return *this;
    }
    TableBytes& zeros(std::size_t count) {
        bytes_.insert(bytes_.end(), count, std::byte{0});
        return *this;
    }
    TableBytes& append(std::span<const std::byte> more) {
        bytes_.insert(bytes_.end(), more.begin(), more.end());
        return *this;
    }
    /// A generic address of an I/O port; zeros for port 0.
    TableBytes& port(std::uint16_t number, std::uint8_t bits, std::uint8_t access_size) {
        if (number == 0) return zeros(12);
        return le<std::uint8_t>(1).le(bits).le<std::uint8_t>(0).le(access_size).le<std::uint64_t>(number);
    }
    [[nodiscard]] std::size_t size() const { return bytes_.size(); }

    [[nodiscard]] std::vector<std::byte> take_with_length() {
        store_little(std::span{bytes_}.subspan<4, 4>(), static_cast<std::uint32_t>(bytes_.size()));
        set_sum(at_checksum, bytes_.size());
        return std::move(bytes_);
    }
    /// The byte at `at` makes the sum of the first `count` bytes 0.
    void set_sum(std::size_t at, std::size_t count) {
        unsigned sum = 0;
        for (const std::byte byte : std::span{bytes_}.first(count)) sum += std::to_integer<unsigned>(byte);
        bytes_[at] = static_cast<std::byte>(std::to_integer<unsigned>(bytes_[at]) - sum);
    }
    [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

private:
    std::vector<std::byte> bytes_;
};

Error wrong(std::string_view text) {
    return Error{Errc::invalid_argument, fmt::format("ACPI tables: {}", text)};
}

std::vector<std::byte> make_facs() {
    TableBytes table;
    table.text("FACS").le<std::uint32_t>(64).zeros(24).le<std::uint8_t>(2).zeros(31);
    GM_CHECK(table.size() == 64);
    return table.take();
}

std::uint32_t fadt_flags(const AcpiPlan& plan) {
    std::uint32_t flags = 1 << 0 | 1 << 2;              // WBINVD works, C1 on all processors
    if (!plan.power.has_power_button) flags |= 1 << 4;  // no fixed one
    flags |= 1 << 5 | 1 << 6;                           // no fixed sleep button, no fixed wake by the clock
    if (plan.power.has_32_bit_timer) flags |= 1 << 8;
    if (plan.power.reset_port != 0) flags |= 1 << 10;
    return flags;
}

std::uint16_t boot_architecture(const AcpiPlan& plan) {
    std::uint16_t flags = 1 << 2;  // no VGA
    if (!plan.serial.empty() || plan.keyboard_gsi) flags |= 1 << 0;
    if (plan.keyboard_gsi) flags |= 1 << 1;
    if (!plan.clock_gsi) flags |= 1 << 5;
    return flags;
}

/// Revision 4, as in ACPI 4.0: the last one without fields that this machine has nothing for.
std::vector<std::byte> make_fadt(const AcpiPlan& plan, GuestAddress facs, GuestAddress dsdt) {
    const PowerPlan& power = plan.power;
    const auto is_there = [](std::uint16_t port, std::uint8_t count) {
        return port == 0 ? std::uint8_t{0} : count;
    };
    TableBytes table = TableBytes::with_header("FACP", 4);
    table.le(static_cast<std::uint32_t>(facs.value())).le(static_cast<std::uint32_t>(dsdt.value()));
    table.le<std::uint8_t>(0).le<std::uint8_t>(0).le<std::uint16_t>(power.sci_gsi);
    table.zeros(8);  // no SMI command: always in ACPI mode
    table.le<std::uint32_t>(power.event_port).zeros(4);
    table.le<std::uint32_t>(power.control_port).zeros(8);
    table.le<std::uint32_t>(power.timer_port).zeros(8);
    GM_CHECK(table.size() == 88);
    table.le(is_there(power.event_port, 4)).le(is_there(power.control_port, 2)).le<std::uint8_t>(0);
    table.le(is_there(power.timer_port, 4)).zeros(4);
    table.le<std::uint16_t>(0xfff).le<std::uint16_t>(0xfff);  // neither C2 nor C3
    table.zeros(9).le(boot_architecture(plan)).le<std::uint8_t>(0).le(fadt_flags(plan));
    GM_CHECK(table.size() == 116);
    table.port(power.reset_port, 8, 1).le(power.reset_value).zeros(3);
    table.le<std::uint64_t>(0).le(dsdt.value());
    table.port(power.event_port, 32, 2).zeros(12);
    table.port(power.control_port, 16, 2).zeros(24);
    table.port(power.timer_port, 32, 3).zeros(24);
    GM_CHECK(table.size() == 244);
    return table.take_with_length();
}

void add_override(TableBytes& table, std::uint8_t source, std::uint32_t gsi, std::uint16_t flags) {
    table.le<std::uint8_t>(2).le<std::uint8_t>(10).le<std::uint8_t>(0).le(source).le(gsi).le(flags);
}

std::vector<std::byte> make_madt(const AcpiPlan& plan) {
    constexpr std::uint16_t as_the_bus = 0;
    constexpr std::uint16_t level_high = 0x0d;
    TableBytes table = TableBytes::with_header("APIC", 4);
    table.le(static_cast<std::uint32_t>(plan.local_apic.value())).le<std::uint32_t>(plan.has_pic ? 1 : 0);
    for (std::uint32_t i = 0; i < plan.apic_ids.size(); ++i) {
        const std::uint32_t id = plan.apic_ids[i];
        if (id < 255 && i < 255) {
            table.le<std::uint8_t>(0).le<std::uint8_t>(8).le(static_cast<std::uint8_t>(i));
            table.le(static_cast<std::uint8_t>(id)).le<std::uint32_t>(1);
        } else {
            table.le<std::uint8_t>(9).le<std::uint8_t>(16).zeros(2).le(id).le<std::uint32_t>(1).le(i);
        }
    }
    if (plan.io_apic) {
        table.le<std::uint8_t>(1).le<std::uint8_t>(12).le(plan.io_apic->id).le<std::uint8_t>(0);
        table.le(static_cast<std::uint32_t>(plan.io_apic->address.value())).le(plan.io_apic->first_gsi);
        if (plan.timer_gsi && *plan.timer_gsi != 0) add_override(table, 0, *plan.timer_gsi, as_the_bus);
        if (plan.keyboard_gsi && *plan.keyboard_gsi != 1)
            add_override(table, 1, *plan.keyboard_gsi, as_the_bus);
        if (plan.clock_gsi && *plan.clock_gsi != 8) add_override(table, 8, *plan.clock_gsi, as_the_bus);
        add_override(table, plan.power.sci_gsi, plan.power.sci_gsi, level_high);
    }
    // LINT1 of all processors is the NMI.
    table.le<std::uint8_t>(4)
        .le<std::uint8_t>(6)
        .le<std::uint8_t>(0xff)
        .le<std::uint16_t>(0)
        .le<std::uint8_t>(1);
    return table.take_with_length();
}

std::vector<std::byte> make_mcfg(const PciPlan& pci, GuestAddress ecam) {
    TableBytes table = TableBytes::with_header("MCFG", 1);
    // The address is that of bus 0, be it there or not.
    const std::uint64_t base = ecam.value() - pci.first_bus * ecam_bytes_of_bus;
    table.zeros(8).le(base).le<std::uint16_t>(0).le(pci.first_bus).le(pci.last_bus).zeros(4);
    return table.take_with_length();
}

std::vector<std::byte> make_list(std::string_view signature, std::span<const AcpiTable> tables) {
    TableBytes list = TableBytes::with_header(signature, 1);
    for (const AcpiTable& table : tables) {
        if (table.signature == "FACS" || table.signature == "DSDT") continue;  // the FADT has their addresses
        if (signature == "XSDT")
            list.le(table.address.value());
        else
            list.le(static_cast<std::uint32_t>(table.address.value()));
    }
    return list.take_with_length();
}

std::vector<std::byte> make_rsdp(GuestAddress rsdt, GuestAddress xsdt) {
    TableBytes table;
    table.text("RSD PTR ").le<std::uint8_t>(0).text(oem_id).le<std::uint8_t>(2);
    table.le(static_cast<std::uint32_t>(rsdt.value())).le<std::uint32_t>(36).le(xsdt.value()).zeros(4);
    GM_CHECK(table.size() == 36);
    table.set_sum(8, 20);  // of the part that revision 0 had
    table.set_sum(32, 36);
    return table.take();
}

/// Gives tables their addresses, one after another.
class Placement {
public:
    explicit Placement(const AcpiPlan& plan) : next_(plan.tables.value()), room_bytes_(plan.room_bytes) {}

    Result<GuestAddress> reserve(std::size_t size_bytes) {
        const std::uint64_t padded = (size_bytes + table_alignment - 1) / table_alignment * table_alignment;
        if (padded > room_bytes_)
            return Error{Errc::exhausted,
                         fmt::format("ACPI tables: a table of {} bytes does not fit any more; "
                                     "give them more room, or have fewer processors",
                                     size_bytes)};
        room_bytes_ -= padded;
        return GuestAddress{std::exchange(next_, next_ + padded)};
    }
    Result<void> add(AcpiTables& to, std::string signature, std::vector<std::byte> bytes) {
        const GuestAddress address = GM_TRY(reserve(bytes.size()));
        to.tables.push_back({std::move(signature), address, std::move(bytes)});
        return {};
    }

private:
    std::uint64_t next_;
    std::uint64_t room_bytes_;
};

Result<void> check_pci(const PciPlan& pci) {
    if (pci.last_bus < pci.first_bus)
        return wrong(fmt::format("PCI buses {} to {}: none", pci.first_bus, pci.last_bus));
    for (const PortWindow& window : pci.port_windows)
        if (window.last < window.first)
            return wrong(fmt::format("PCI ports {:#x} to {:#x}: none", window.first, window.last));
    for (const GuestRange& window : pci.memory_windows_32)
        if (window.last().value() > last_32_bit_address)
            return wrong(fmt::format("the 32-bit PCI window at {:#x} ends at {:#x}, above 4 GiB",
                                     window.base().value(), window.last().value()));
    if (pci.interrupts.size() > max_pci_interrupts)
        return wrong(fmt::format("{} PCI interrupts; at most {}", pci.interrupts.size(), max_pci_interrupts));
    for (const PciInterrupt& interrupt : pci.interrupts)
        if (interrupt.slot > 31 || interrupt.pin > 3 || interrupt.gsi > max_gsi)
            return wrong(
                fmt::format("PCI interrupt of slot {}, pin {}, GSI {}: slots go to 31, pins to 3, GSIs "
                            "to {}",
                            interrupt.slot, interrupt.pin, interrupt.gsi, max_gsi));
    if (!pci.ecam) return {};
    const std::uint64_t count_buses = std::uint64_t{pci.last_bus} - pci.first_bus + 1;
    const bool is_placed = pci.ecam->is_aligned(ecam_bytes_of_bus) &&
                           pci.ecam->value() >= pci.first_bus * ecam_bytes_of_bus &&
                           GuestRange::create(*pci.ecam, count_buses * ecam_bytes_of_bus).has_value();
    if (!is_placed)
        return wrong(
            fmt::format("the PCI configuration window at {:#x} has no room for buses {} to {} of 1 MiB "
                        "each",
                        pci.ecam->value(), pci.first_bus, pci.last_bus));
    return {};
}

/// The signature of a table that came from outside, which has to be whole.
Result<std::string> signature_of_extra(std::span<const std::byte> table) {
    constexpr std::size_t length_at = 4;
    if (table.size() < header_bytes) {
        return Error{Errc::corrupt,
                     fmt::format("an ACPI table has a header of {} bytes, this one has {} in all",
                                 header_bytes, table.size())};
    }
    std::uint32_t length = 0;
    for (std::size_t at = 0; at < 4; ++at) {
        length |= std::to_integer<std::uint32_t>(table[length_at + at]) << (8 * at);
    }
    if (length != table.size()) {
        return Error{Errc::corrupt, fmt::format("the ACPI table says that it has {} bytes, and has {}",
                                                length, table.size())};
    }
    std::uint32_t sum = 0;
    for (const std::byte byte : table) sum += std::to_integer<std::uint32_t>(byte);
    if ((sum & 0xff) != 0) return Error{Errc::corrupt, "the ACPI table's checksum is wrong"};
    std::string signature;
    for (const std::byte byte : table.first(4)) {
        const char letter = static_cast<char>(byte);
        if (letter < '0' || letter > 'Z')
            return Error{Errc::corrupt, "the ACPI table's signature is no word"};
        signature.push_back(letter);
    }
    for (const char* const own : {"FACS", "DSDT", "FACP", "APIC", "MCFG", "RSDT", "XSDT"}) {
        if (signature != own) continue;
        return Error{Errc::already_exists,
                     fmt::format("the machine makes its own {}: leave this one out", own)};
    }
    return signature;
}

}  // namespace

std::vector<PciInterrupt> make_turning_interrupts(const std::array<std::uint32_t, 4>& gsis) {
    std::vector<PciInterrupt> interrupts;
    for (std::uint8_t slot = 1; slot < 32; ++slot)
        for (std::uint8_t pin = 0; pin < 4; ++pin)
            interrupts.push_back({slot, pin, gsis[(slot + pin) % gsis.size()]});
    return interrupts;
}

const AcpiTable* AcpiTables::find(std::string_view signature) const {
    const auto found = std::ranges::find(tables, signature, &AcpiTable::signature);
    return found == tables.end() ? nullptr : &*found;
}

Result<void> check_acpi_plan(const AcpiPlan& plan) {
    const auto room = GuestRange::create(plan.tables, plan.room_bytes);
    if (!room || !plan.tables.is_aligned(table_alignment) || room->last().value() > last_32_bit_address)
        return wrong(fmt::format("{:#x} with {} bytes is no place: a multiple of {} below 4 GiB is one",
                                 plan.tables.value(), plan.room_bytes, table_alignment));
    if (plan.apic_ids.empty() || plan.apic_ids.size() > max_acpi_processors)
        return wrong(
            fmt::format("{} processors; 1 to {} can be told", plan.apic_ids.size(), max_acpi_processors));
    std::vector<std::uint32_t> ids = plan.apic_ids;
    std::ranges::sort(ids);
    if (const auto twice = std::ranges::adjacent_find(ids); twice != ids.end())
        return wrong(fmt::format("two processors with the local APIC id {}", *twice));
    if (plan.local_apic.value() > last_32_bit_address)
        return wrong(fmt::format("local APICs at {:#x}, above 4 GiB", plan.local_apic.value()));
    if (plan.io_apic && plan.io_apic->address.value() > last_32_bit_address)
        return wrong(fmt::format("an I/O APIC at {:#x}, above 4 GiB", plan.io_apic->address.value()));
    for (const auto& gsi : {plan.timer_gsi, plan.clock_gsi, plan.keyboard_gsi})
        if (gsi && *gsi > max_gsi) return wrong(fmt::format("GSI {}; they go to {}", *gsi, max_gsi));
    if (plan.serial.size() > max_acpi_serial_ports)
        return wrong(fmt::format("{} serial ports; at most {}", plan.serial.size(), max_acpi_serial_ports));
    for (const SerialPlan& serial : plan.serial)
        if (serial.gsi > max_gsi) return wrong(fmt::format("GSI {}; they go to {}", serial.gsi, max_gsi));
    if (plan.power.sleep_type_s5 > 7)
        return wrong(fmt::format("sleep type {}; there are 0 to 7", plan.power.sleep_type_s5));
    if (plan.pci) GM_TRY(check_pci(*plan.pci));
    return {};
}

Result<AcpiTables> make_acpi_tables(const AcpiPlan& plan) {
    constexpr std::size_t rsdp_bytes = 36;
    GM_TRY(check_acpi_plan(plan));
    AcpiTables all;
    Placement placement{plan};
    all.rsdp = GM_TRY(placement.reserve(rsdp_bytes));
    GM_TRY(placement.add(all, "FACS", make_facs()));
    TableBytes dsdt = TableBytes::with_header("DSDT", 2);
    dsdt.append(make_dsdt_body(plan));
    GM_TRY(placement.add(all, "DSDT", dsdt.take_with_length()));
    const GuestAddress facs_address = all.tables[0].address;
    const GuestAddress dsdt_address = all.tables[1].address;
    GM_TRY(placement.add(all, "FACP", make_fadt(plan, facs_address, dsdt_address)));
    GM_TRY(placement.add(all, "APIC", make_madt(plan)));
    if (plan.pci && plan.pci->ecam) GM_TRY(placement.add(all, "MCFG", make_mcfg(*plan.pci, *plan.pci->ecam)));
    for (const std::vector<std::byte>& table : plan.extra_tables) {
        GM_TRY(placement.add(all, GM_TRY(signature_of_extra(table)), table));
    }
    auto rsdt = make_list("RSDT", all.tables);
    auto xsdt = make_list("XSDT", all.tables);
    GM_TRY(placement.add(all, "RSDT", std::move(rsdt)));
    GM_TRY(placement.add(all, "XSDT", std::move(xsdt)));
    const GuestAddress rsdt_address = all.tables[all.tables.size() - 2].address;
    const GuestAddress xsdt_address = all.tables.back().address;
    all.tables.insert(all.tables.begin(), {"RSD PTR ", all.rsdp, make_rsdp(rsdt_address, xsdt_address)});
    return all;
}

Result<void> write_acpi_tables(const AcpiTables& tables, BootMemory& memory) {
    for (const AcpiTable& table : tables.tables)
        if (const auto done = memory.write_bytes(table.address, table.bytes); !done)
            return done.error().to_error(fmt::format("ACPI table {}", table.signature));
    return {};
}

}  // namespace guestmem::vmm

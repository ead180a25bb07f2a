// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/acpi_tables.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "guestmem/base/endian.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/boot/memory_map_table.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::TempFolder;
using ::guestmem::testing::TestMap;
using ::testing::HasSubstr;
using ::testing::Not;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

AcpiPlan full_plan() {
    AcpiPlan plan;
    plan.apic_ids = {0, 1, 2, 3};
    plan.io_apic = IoApicPlan{.id = 4, .address = GuestAddress{0xf8000000}};
    plan.timer_gsi = 2;
    plan.clock_gsi = 8;
    plan.keyboard_gsi = 1;
    plan.serial = {{.port = 0x3f8, .gsi = 4}, {.port = 0x2f8, .gsi = 20}};
    plan.pci = PciPlan{.first_bus = 0,
                       .last_bus = 15,
                       .port_windows = {{0x0, 0xcf7}, {0xd00, 0xffff}},
                       .memory_windows_32 = {range(0xc0000000, 0x20000000)},
                       .memory_windows_64 = {range(0x4000000000, 0x4000000000)},
                       .ecam = GuestAddress{0xe0000000},
                       .interrupts = make_turning_interrupts({16, 17, 18, 19})};
    return plan;
}

std::uint32_t word_at(const AcpiTable& table, std::size_t at) {
    return load_little<std::uint32_t>(std::span{table.bytes}.subspan(at).first<4>());
}
unsigned sum_of(std::span<const std::byte> bytes) {
    unsigned sum = 0;
    for (const std::byte byte : bytes) sum += std::to_integer<unsigned>(byte);
    return sum & 0xff;
}

TEST(AcpiTables, EachTableSumsToZeroAndPointsToTheOthers) {
    const AcpiTables all = make_acpi_tables(full_plan()).value();
    const AcpiTable& rsdp = *all.find("RSD PTR ");
    EXPECT_EQ(rsdp.address, all.rsdp);
    EXPECT_EQ(sum_of(std::span{rsdp.bytes}.first(20)), 0U);
    EXPECT_EQ(sum_of(rsdp.bytes), 0U);
    EXPECT_EQ(word_at(rsdp, 16), all.find("RSDT")->address.value());
    EXPECT_EQ(word_at(rsdp, 24), all.find("XSDT")->address.value());
    for (const AcpiTable& table : all.tables) {
        if (table.signature == "RSD PTR " || table.signature == "FACS") continue;
        EXPECT_EQ(sum_of(table.bytes), 0U) << table.signature;
        EXPECT_EQ(word_at(table, 4), table.bytes.size()) << table.signature;
    }
    const AcpiTable& fadt = *all.find("FACP");
    EXPECT_EQ(word_at(fadt, 36), all.find("FACS")->address.value());
    EXPECT_EQ(word_at(fadt, 40), all.find("DSDT")->address.value());
    EXPECT_EQ(all.find("FACS")->address.value() % 64, 0U);
    const AcpiTable& xsdt = *all.find("XSDT");
    ASSERT_EQ(xsdt.bytes.size(), 36U + 3 * 8);
    EXPECT_EQ(word_at(xsdt, 36), fadt.address.value());
    EXPECT_EQ(word_at(xsdt, 44), all.find("APIC")->address.value());
    EXPECT_EQ(word_at(xsdt, 52), all.find("MCFG")->address.value());
}

TEST(AcpiTables, NeitherOverlapNorLeaveTheirRoom) {
    AcpiPlan plan = full_plan();
    plan.apic_ids.resize(max_acpi_processors);
    std::iota(plan.apic_ids.begin(), plan.apic_ids.end(), 0U);
    const AcpiTables all = make_acpi_tables(plan).value();
    std::uint64_t next = plan.tables.value();
    for (const AcpiTable& table : all.tables) {
        EXPECT_GE(table.address.value(), next) << table.signature;
        next = table.address.value() + table.bytes.size();
    }
    EXPECT_LE(next, plan.tables.value() + plan.room_bytes);
}

TEST(AcpiTables, WhatStaysInUseIsNotInReusableMemory) {
    const AcpiTables all = make_acpi_tables(full_plan()).value();
    const auto map =
        make_memory_map({.ram = {range(0, 0x8000000)}, .reserved = legacy_reservations()}).value();
    const auto kind_of = [&](const AcpiTable& table) {
        for (const MemoryMapEntry& entry : map)
            if (entry.range.contains(range(table.address.value(), table.bytes.size()))) return entry.kind;
        return MapEntryKind::ram;
    };
    EXPECT_EQ(kind_of(*all.find("FACS")), MapEntryKind::reserved);
    for (const AcpiTable& table : all.tables) EXPECT_NE(kind_of(table), MapEntryKind::ram) << table.signature;
}

TEST(AcpiTables, AreWrittenWhereTheySayThatTheyAre) {
    TestMap map;
    map.ram(0, 0x100000);
    MapView view{*map.map()};
    const AcpiTables all = make_acpi_tables(full_plan()).value();
    ASSERT_TRUE(write_acpi_tables(all, view));
    for (const AcpiTable& table : all.tables)
        EXPECT_TRUE(view.compare(table.address, table.bytes).value() == 0) << table.signature;
    TestMap none;
    none.ram(0, 0x1000);
    MapView small{*none.map()};
    EXPECT_FALSE(write_acpi_tables(all, small));
}

TEST(AcpiTables, APlanThatCannotBeIsRefusedByItsField) {
    struct Wrong {
        std::function<void(AcpiPlan&)> spoil;
        const char* message;
    };
    const std::vector<Wrong> table{
        {[](AcpiPlan& p) { p.apic_ids.clear(); }, "0 processors"},
        {[](AcpiPlan& p) { p.apic_ids.resize(max_acpi_processors + 1); }, "1025 processors"},
        {[](AcpiPlan& p) { p.apic_ids = {1, 2, 1}; }, "local APIC id 1"},
        {[](AcpiPlan& p) { p.tables = GuestAddress{0xe0010}; }, "is no place"},
        {[](AcpiPlan& p) { p.tables = GuestAddress{0x100000000}; }, "is no place"},
        {[](AcpiPlan& p) { p.room_bytes = 0; }, "is no place"},
        {[](AcpiPlan& p) { p.room_bytes = 1024; }, "does not fit"},
        {[](AcpiPlan& p) { p.local_apic = GuestAddress{1ull << 32}; }, "local APICs at"},
        {[](AcpiPlan& p) { p.io_apic->address = GuestAddress{1ull << 32}; }, "I/O APIC at"},
        {[](AcpiPlan& p) { p.timer_gsi = 256; }, "GSI 256"},
        {[](AcpiPlan& p) { p.serial.resize(5); }, "5 serial ports"},
        {[](AcpiPlan& p) { p.power.sleep_type_s5 = 8; }, "sleep type 8"},
        {[](AcpiPlan& p) { p.pci->first_bus = 16; }, "PCI buses 16 to 15"},
        {[](AcpiPlan& p) { p.pci->port_windows = {{2, 1}}; }, "PCI ports 0x2 to 0x1"},
        {[](AcpiPlan& p) { p.pci->memory_windows_32 = {range(0xfffff000, 0x2000)}; }, "above 4 GiB"},
        {[](AcpiPlan& p) { p.pci->interrupts.push_back({32, 0, 16}); }, "slot 32"},
        {[](AcpiPlan& p) { p.pci->interrupts.resize(256); }, "256 PCI interrupts"},
        {[](AcpiPlan& p) { p.pci->ecam = GuestAddress{0xe0001000}; }, "configuration window"},
        {[](AcpiPlan& p) { p.pci->ecam = GuestAddress{~0ull - 0xfffff}; }, "configuration window"},
    };
    for (const Wrong& wrong : table) {
        AcpiPlan plan = full_plan();
        wrong.spoil(plan);
        const auto result = make_acpi_tables(plan);
        ASSERT_FALSE(result) << wrong.message;
        EXPECT_THAT(result.error().message(), HasSubstr(wrong.message));
    }
}

/// The tables' source text as ACPICA's disassembler sees it; each has to compile again without an error.
class Disassembly {
public:
    explicit Disassembly(const AcpiTables& all) {
        for (const AcpiTable& table : all.tables) {
            if (table.signature == "RSD PTR ") continue;  // iasl takes tables, which that is not
            const std::string bytes{reinterpret_cast<const char*>(table.bytes.data()), table.bytes.size()};
            folder_.write(table.signature + ".dat", bytes);
            if (!run("iasl -d " + table.signature + ".dat")) return;
            texts_[table.signature] = folder_.read(table.signature + ".dsl");
            // What iasl finds odd in an unpacked table stands in its text.
            EXPECT_THAT(texts_[table.signature], Not(HasSubstr("Incorrect checksum")));
            EXPECT_THAT(texts_[table.signature], Not(HasSubstr("Invalid")));
            EXPECT_TRUE(run("iasl -p again " + table.signature + ".dsl")) << table.signature;
        }
    }
    /// Its lines with every run of blanks made one.
    [[nodiscard]] std::string of(const std::string& signature) const {
        std::string text;
        for (const char character : texts_.at(signature)) {
            const bool is_blank = character == ' ' || character == '\n';
            if (!is_blank || (!text.empty() && text.back() != ' ')) text += is_blank ? ' ' : character;
        }
        return text;
    }
    static bool has_compiler() { return std::system("iasl -v >/dev/null 2>&1") == 0; }

private:
    bool run(const std::string& command) {
        const int status = std::system(("cd " + folder_.path() + " && " + command + " >log 2>&1").c_str());
        const bool is_good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        EXPECT_TRUE(is_good) << command << "\n" << folder_.read("log");
        return is_good;
    }

    TempFolder folder_;
    std::map<std::string, std::string> texts_;
};

TEST(AcpiTables, TablesOfTheUsersOwnStandBesideTheMachines) {
    std::vector<std::byte> table(40);
    const auto put = [&](std::size_t at, unsigned value) { table[at] = static_cast<std::byte>(value); };
    const auto sum_up = [&] {
        table[9] = std::byte{0};
        unsigned sum = 0;
        for (const std::byte byte : table) sum += std::to_integer<unsigned>(byte);
        put(9, 256 - (sum & 0xff));
    };
    for (std::size_t at = 0; at < 4; ++at) put(at, static_cast<unsigned char>("SSDT"[at]));
    put(4, 40);
    sum_up();
    AcpiPlan plan = full_plan();
    plan.extra_tables = {table};
    const auto tables = make_acpi_tables(plan);
    ASSERT_TRUE(tables) << tables.error().message();
    const AcpiTable* const found = tables->find("SSDT");
    ASSERT_NE(found, nullptr);
    EXPECT_EQ(found->bytes, table);

    const auto refused = [&](const char* why) {
        plan.extra_tables = {table};
        const auto made = make_acpi_tables(plan);
        ASSERT_FALSE(made) << why;
        EXPECT_THAT(made.error().message(), HasSubstr(why));
    };
    put(20, 7);
    refused("checksum");
    put(0, 0x07);
    sum_up();
    refused("signature");
    for (std::size_t at = 0; at < 4; ++at) put(at, static_cast<unsigned char>("FACP"[at]));
    sum_up();
    refused("its own FACP");
    put(5, 1);
    sum_up();
    refused("says that it has");
    table.resize(35);
    refused("a header of 36");
}

TEST(AcpiTables, AnotherCompilerReadsWhatThePlanSays) {
    if (!Disassembly::has_compiler()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    const Disassembly text{make_acpi_tables(full_plan()).value()};
    ASSERT_FALSE(HasFailure());

    const std::string fadt = text.of("FACP");
    for (const char* item : {"Oem ID : \"GUESTM\"", "SCI Interrupt : 0009", "SMI Command Port : 00000000",
                             "PM1A Event Block Address : 00000600", "PM1A Control Block Address : 00000604",
                             "PM Timer Block Address : 00000608", "Reset Register Supported (V2) : 1",
                             "Value to cause reset : 06", "32-bit PM Timer (V1) : 1",
                             "Hardware Reduced (V5) : 0", "Control Method Power Button (V1) : 0",
                             "8042 Present on ports 60/64 (V2) : 1", "CMOS RTC Not Present (V5) : 0"})
        EXPECT_THAT(fadt, HasSubstr(item));

    const std::string madt = text.of("APIC");
    for (const char* item : {"Local Apic Address : FEE00000", "PC-AT Compatibility : 1", "Local Apic ID : 03",
                             "I/O Apic ID : 04", "Address : F8000000", "Source : 00", "Interrupt : 00000002",
                             "Source : 09", "Polarity : 1", "Trigger Mode : 3", "Interrupt Input LINT : 01"})
        EXPECT_THAT(madt, HasSubstr(item));

    const std::string mcfg = text.of("MCFG");
    for (const char* item :
         {"Base Address : 00000000E0000000", "Start Bus Number : 00", "End Bus Number : 0F"})
        EXPECT_THAT(mcfg, HasSubstr(item));

    const std::string dsdt = text.of("DSDT");
    for (const char* item :
         {"Device (C003)",
          "Name (_HID, \"ACPI0007\" /* Processor Device */)",
          "Device (PCI0)",
          "EisaId (\"PNP0A08\")",
          "Name (_CID, EisaId (\"PNP0A03\")",
          "WordBusNumber (ResourceProducer, MinFixed",
          "0x000F, // Range Maximum",
          "0x00000CF7, // Range Maximum",
          "0x0000FFFF, // Range Maximum",
          "0xDFFFFFFF, // Range Maximum",
          "0x0000007FFFFFFFFF, // Range Maximum",
          "IO (Decode16, 0x0CF8,",
          "Device (COM1)",
          "EisaId (\"PNP0501\")",
          "IRQNoFlags () {4}",
          "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000014, }",
          "Device (RTC)",
          "EisaId (\"PNP0B00\")",
          "Device (KBD)",
          "EisaId (\"PNP0303\")",
          "EisaId (\"PNP0100\")",
          "EisaId (\"PNP0000\")",
          "EisaId (\"PNP0C02\")",
          "0x00000000E0000000, // Range Minimum",
          "Package (0x04) { 0x0001FFFF, Zero, Zero, 0x11 }",
          "Package (0x04) { 0x001FFFFF, 0x03, Zero, 0x12 }",
          "Name (\\_S5, Package (0x04) // _S5_: S5 System State { 0x05, 0x05, Zero, Zero })"})
        EXPECT_THAT(dsdt, HasSubstr(item));
}

TEST(AcpiTables, AnotherCompilerReadsTheSmallestAndTheLargestMachine) {
    if (!Disassembly::has_compiler()) GTEST_SKIP() << "iasl is not installed (acpica-tools; ./dev setup)";
    AcpiPlan smallest;
    smallest.io_apic.reset();
    smallest.has_pic = false;
    smallest.power = {.event_port = 0, .control_port = 0, .timer_port = 0, .reset_port = 0};
    const Disassembly small{make_acpi_tables(smallest).value()};
    EXPECT_THAT(small.of("DSDT"), Not(HasSubstr("_S5")));
    EXPECT_THAT(small.of("FACP"), HasSubstr("Reset Register Supported (V2) : 0"));

    AcpiPlan largest = full_plan();
    largest.apic_ids.resize(max_acpi_processors);
    std::iota(largest.apic_ids.begin(), largest.apic_ids.end(), 0U);
    const Disassembly large{make_acpi_tables(largest).value()};
    EXPECT_THAT(large.of("APIC"), HasSubstr("Processor x2Apic ID : 000003FF"));
    EXPECT_THAT(large.of("APIC"), HasSubstr("Local Apic ID : FE"));
    EXPECT_THAT(large.of("APIC"), Not(HasSubstr("Local Apic ID : FF")));
    EXPECT_THAT(large.of("DSDT"), HasSubstr("Device (C3FF)"));
}

}  // namespace
}  // namespace guestmem::vmm

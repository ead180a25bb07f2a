// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/firmware_tables.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <libfdt.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::dma {
namespace {

using guestmem::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

enum class Nodes { chosen, machine };

std::string device_tree(Nodes nodes) {
    std::string blob(8192, '\0');
    EXPECT_EQ(fdt_create_empty_tree(blob.data(), static_cast<int>(blob.size())), 0);
    EXPECT_EQ(fdt_setprop_string(blob.data(), 0, "serial-number", "SN1234"), 0);
    const int chosen = fdt_add_subnode(blob.data(), 0, "chosen");
    EXPECT_EQ(fdt_setprop_string(blob.data(), chosen, "bootargs", "root=UUID=77"), 0);
    if (nodes == Nodes::machine) {
        const int net = fdt_add_subnode(blob.data(), 0, "ethernet@10");
        EXPECT_EQ(fdt_setprop(blob.data(), net, "local-mac-address", "\x52\x54\x01\x02\x03\x04", 6), 0);
        EXPECT_EQ(fdt_setprop_u32(blob.data(), net, "iommus", 7), 0);
    }
    EXPECT_EQ(fdt_pack(blob.data()), 0);
    blob.resize(fdt_totalsize(blob.data()));
    return blob;
}

std::vector<std::string> names_in(const std::vector<std::pair<std::string, std::string>>& files) {
    TarWriter writer;
    for (const auto& [path, content] : files) EXPECT_TRUE(writer.add_file(path, content));
    const auto tree = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    const FirmwareTables found = firmware_tables(*tree).value();
    EXPECT_THAT(found.complaints, IsEmpty());
    std::vector<std::string> names;
    for (const FirmwareTable& table : found.tables) names.push_back(table.name);
    return names;
}

TEST(FirmwareTables, AllInstancesAreFoundInTheirOrder) {
    const std::string folder = "sys/firmware/acpi/tables/";
    std::vector<std::pair<std::string, std::string>> files;
    for (const char* name : {"VIOT", "DMAR10", "DMAR", "DMAR2", "DMARX", "APIC", "data/DMAR", "IVRS"})
        files.emplace_back(folder + name, "x");
    EXPECT_THAT(names_in(files), ElementsAre("DMAR", "DMAR2", "DMAR10", "IVRS", "VIOT"));
}

TEST(FirmwareTables, TheDeviceTreeCountsOnlyWhereItDescribesTheMachine) {
    const std::string path = "sys/firmware/fdt";
    EXPECT_THAT(names_in({{path, device_tree(Nodes::machine)}}), ElementsAre("fdt"));
    EXPECT_THAT(names_in({{path, device_tree(Nodes::chosen)}}), IsEmpty());
    EXPECT_THAT(names_in({{path, device_tree(Nodes::machine)}, {"sys/firmware/acpi/tables/IORT", ""}}),
                ElementsAre("IORT"));
    EXPECT_THAT(names_in({{path, device_tree(Nodes::machine)}, {"sys/firmware/acpi/tables/VIOT", ""}}),
                ElementsAre("VIOT", "fdt"));
    EXPECT_THAT(names_in({{path, "no device tree"}}), IsEmpty());
    EXPECT_THAT(names_in({{"proc/cmdline", ""}}), IsEmpty());
    std::string cut = device_tree(Nodes::machine);
    cut.resize(cut.size() - 10);
    EXPECT_FALSE(is_machine_description(cut));
    EXPECT_FALSE(is_machine_description(""));
}

TEST(FirmwareTables, TablesThatMayNotBeReadAreOneComplaint) {
    const TempFolder folder;
    std::filesystem::create_directories(folder.path_of("sys/firmware/acpi/tables"));
    folder.write("sys/firmware/acpi/tables/DMAR", "x");
    folder.write("sys/firmware/acpi/tables/DMAR1", "x");
    const auto tree = open_host_tree(folder.path()).value();
    // The folder, and then both files.
    const FaultInjector injector{1, {.only = SysCall::open, .os_error = EACCES, .repeat = 2}};
    const FirmwareTables found = firmware_tables(*tree).value();
    EXPECT_THAT(found.tables, IsEmpty());
    ASSERT_EQ(found.complaints.size(), 1U);
    EXPECT_THAT(found.complaints[0].text, HasSubstr("not readable: DMAR, DMAR1: run as root"));
}

TEST(FirmwareTables, ATableBeyondTheLimitIsAComplaint) {
    TarWriter writer;
    const std::string path = "sys/firmware/acpi/tables/";
    ASSERT_TRUE(writer.add_file(path + "DMAR", std::string(max_firmware_table_bytes + 1, 'x')));
    ASSERT_TRUE(writer.add_file(path + "IVRS", std::string(max_firmware_table_bytes, 'x')));
    const auto tree = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    const FirmwareTables found = firmware_tables(*tree).value();
    ASSERT_EQ(found.tables.size(), 1U);
    EXPECT_EQ(found.tables[0].source, Source::ivrs);
    ASSERT_EQ(found.complaints.size(), 1U);
    EXPECT_THAT(found.complaints[0].text, HasSubstr("larger than the limit"));
}

TEST(FirmwareTables, TablesAreCountedUpToTheLimit) {
    TarWriter writer;
    for (std::size_t i = 0; i < max_firmware_tables; ++i)
        ASSERT_TRUE(writer.add_file("sys/firmware/acpi/tables/DMAR" + std::to_string(i + 1), "x"));
    TarWriter larger = writer;
    ASSERT_TRUE(larger.add_file("sys/firmware/acpi/tables/DMAR", "x"));
    const auto full = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    const auto over = host_tree_of(TarArchive::read(std::move(larger).finish()).value());
    EXPECT_FALSE(firmware_tables(*over));
    EXPECT_EQ(firmware_tables(*full).value().tables.size(), max_firmware_tables);
}

TEST(FirmwareTables, PrivatePropertiesAreBlankedAndTheTreeStaysSound) {
    std::string blob = device_tree(Nodes::machine) + "behind";
    blank_private_properties(blob);
    EXPECT_THAT(blob, Not(HasSubstr("SN1234")));
    EXPECT_THAT(blob, Not(HasSubstr("UUID=77")));
    EXPECT_THAT(blob, Not(HasSubstr("\x52\x54\x01\x02")));
    EXPECT_THAT(blob, Not(HasSubstr("behind")));
    EXPECT_TRUE(is_machine_description(blob));
    const int net = fdt_path_offset(blob.data(), "/ethernet@10");
    int length = 0;
    ASSERT_NE(fdt_getprop(blob.data(), net, "local-mac-address", &length), nullptr);
    EXPECT_EQ(length, 6);
    EXPECT_EQ(fdt32_ld(static_cast<const fdt32_t*>(fdt_getprop(blob.data(), net, "iommus", &length))), 7U);
    std::string roomy(blob.size() + 65536, '\0');
    ASSERT_EQ(fdt_open_into(blob.data(), roomy.data(), static_cast<int>(roomy.size())), 0);
    blank_private_properties(roomy);
    EXPECT_LE(roomy.size(), blob.size()) << "room that firmware left is not taken";
    EXPECT_TRUE(is_machine_description(roomy));
    std::string broken = "no tree with SN1234";
    blank_private_properties(broken);
    EXPECT_EQ(broken, "");
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>

#include "guestmem/dma/discover/testing/machine_tree.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem::dma {
namespace {

using testing::ConfigSpace;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::MachineTree;
using ::testing::Not;

class CaptureTest : public ::testing::Test {
protected:
    void SetUp() override {
        machine_.add_function("0000:00:02.0", ConfigSpace{}
                                                  .express(0x40, 0)
                                                  .extended(0x100, 0x0003, 0)
                                                  .put32(0x104, 0x64636261)
                                                  .put32(0x108, 0x68676665)
                                                  .text());
        machine_.set_driver("0000:00:02.0", "e1000e");
        machine_.set_group("0000:00:02.0", 7);
        machine_.put("sys/firmware/acpi/tables/DMAR", "table");
        machine_.put("sys/firmware/acpi/tables/DMAR1", "second");
        machine_.put("sys/firmware/acpi/tables/MSDM", "license key");
        machine_.put("proc/cmdline", "root=UUID=11 intel_iommu=on user=alice\n");
        machine_.put("proc/meminfo", "MemTotal:  1024 kB\nMemFree: 1 kB\n");
        machine_.put("sys/class/dmi/id/product_serial", "SERIAL");
    }
    Capture captured() {
        const auto tree = open_host_tree(machine_.path()).value();
        return capture(*tree).value();
    }

    MachineTree machine_;
};

TEST_F(CaptureTest, TakesTheListAndNothingElse) {
    const Capture result = captured();
    EXPECT_THAT(result.unreadable, IsEmpty());
    const TarArchive archive = TarArchive::read(result.archive).value();
    EXPECT_EQ(archive.entries().size(), result.count_entries);
    std::set<std::string> paths;
    for (const TarEntry& entry : archive.entries()) paths.emplace(entry.path);
    const std::string device = "sys/bus/pci/devices/0000:00:02.0/";
    const std::string group = "sys/kernel/iommu_groups/7/";
    EXPECT_THAT(paths, ElementsAre("proc/cmdline", "proc/meminfo", device + "class", device + "config",
                                   device + "device", device + "driver", device + "iommu_group",
                                   device + "resource", device + "vendor", "sys/firmware/acpi/tables/DMAR",
                                   "sys/firmware/acpi/tables/DMAR1", group + "devices/0000:00:02.0",
                                   group + "reserved_regions", group + "type"));
    EXPECT_EQ(archive.find(device + "driver")->content, "bus/pci/drivers/e1000e");
    EXPECT_EQ(archive.find("proc/cmdline")->content, "intel_iommu=on\n");
    EXPECT_EQ(archive.find("proc/meminfo")->content, "MemTotal: 1024 kB\n");
}

TEST_F(CaptureTest, NothingPrivateIsInIt) {
    const std::string bytes = captured().archive;
    for (const char* secret : {"UUID", "alice", "abcdefgh", "SERIAL", "license key", "MemFree"})
        EXPECT_THAT(bytes, Not(HasSubstr(secret)));
}

TEST_F(CaptureTest, ACapturedMachineIsCapturedAgainAsTheSame) {
    const Capture first = captured();
    const auto tree = host_tree_of(TarArchive::read(first.archive).value());
    EXPECT_EQ(capture(*tree).value().archive, first.archive);
    EXPECT_EQ(captured().archive, first.archive) << "neither time nor order is in it";
}

TEST_F(CaptureTest, WhatCannotBeReadIsNamedAndLeftOut) {
    const auto tree = open_host_tree(machine_.path()).value();
    // The list of tables, and then the table.
    const FaultInjector injector{1, {.only = SysCall::open, .os_error = EACCES}};
    const Capture result = capture(*tree).value();
    EXPECT_THAT(result.unreadable, ElementsAre("sys/firmware/acpi/tables/DMAR"));
    EXPECT_EQ(TarArchive::read(result.archive).value().find("sys/firmware/acpi/tables/DMAR"), nullptr);
}

TEST_F(CaptureTest, TheLiveMachineIsCapturedWithItsPageSize) {
    const auto tree = open_host_tree("/").value();
    const auto result = capture(*tree);
    ASSERT_TRUE(result) << result.error().message();
    const TarArchive archive = TarArchive::read(result->archive).value();
    ASSERT_NE(archive.find("capture/page_bytes"), nullptr);
    EXPECT_NE(archive.find("proc/sys/kernel/osrelease"), nullptr);
}

TEST(Capture, NamesBeyondTheLimitAreAnError) {
    TarWriter writer;
    for (std::size_t i = 0; i <= max_captured_names; ++i)
        ASSERT_TRUE(writer.add_file("sys/firmware/acpi/tables/DMAR" + std::to_string(i), ""));
    const auto tree = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    EXPECT_EQ(capture(*tree).error().code(), Errc::out_of_range);
}

TEST(Capture, EachPatternHasItsReasonAndCannotLeaveTheTree) {
    std::set<std::string_view> paths;
    for (const CapturePattern& pattern : capture_patterns()) {
        EXPECT_FALSE(pattern.path.empty() || pattern.why.empty());
        EXPECT_FALSE(pattern.path.starts_with('/') || pattern.path.contains("..")) << pattern.path;
        EXPECT_FALSE(pattern.path.contains(' ') || pattern.path.contains('\'')) << "a shell reads it, too";
        EXPECT_TRUE(paths.insert(pattern.path).second) << pattern.path << " is there twice";
    }
}

}  // namespace
}  // namespace guestmem::dma

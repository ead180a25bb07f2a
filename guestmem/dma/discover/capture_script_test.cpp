// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture_script.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/testing/machine_tree.hpp"

namespace guestmem::dma {
namespace {

using guestmem::testing::TempFolder;
using testing::ConfigSpace;
using ::testing::HasSubstr;
using testing::MachineTree;

using Contents = std::map<std::string, std::string>;

Contents contents_of(std::string bytes) {
    Contents contents;
    const auto archive = TarArchive::read(std::move(bytes));
    EXPECT_TRUE(archive) << archive.error().message();
    if (!archive) return contents;
    for (const TarEntry& entry : archive->entries())
        contents[std::string{entry.path}] =
            (entry.kind == TarEntry::Kind::link ? "link " : "file ") + std::string{entry.content};
    return contents;
}

void fill(MachineTree& machine) {
    ConfigSpace serial;
    serial.capability(0x40, 0x01, 0x60).capability(0x60, 0x03, 0x80).put32(0x64, 0x12345678).express(0x80, 0);
    serial.extended(0x100, 0x0001, 0x150).extended(0x150, 0x0003, 0x1b0).extended(0x1b0, 0x000d, 0);
    serial.put32(0x154, 0x01020304).put32(0x158, 0x05060708).put16(0x1b4, 0x1f);
    machine.add_function("0000:00:02.0", serial.text());
    machine.add_function("0000:00:03.0", ConfigSpace{256}.capability(0x40, 3, 0x40).put32(0x44, 1).text());
    machine.add_function("0000:00:04.0", ConfigSpace{64}.capability(0x34, 3, 0).text());
    ConfigSpace circle;
    circle.express(0x40, 0).extended(0x100, 1, 0x200).extended(0x200, 3, 0x100).put32(0x204, 0xffffffff);
    machine.add_function("0000:00:05.0", circle.text());
    ConfigSpace late;
    late.express(0x40, 0).extended(0x100, 1, 0xffc).extended(0xffc, 3, 0);
    machine.add_function("0000:00:06.0", late.text());
    machine.add_function("0000:00:07.0",
                         ConfigSpace{}.put8(0x0e, 2).put8(0x14, 0x50).put8(0x50, 3).put32(0x54, 7).text());
    machine.set_driver("0000:00:02.0", "e1000e");
    machine.set_group("0000:00:02.0", 7);
    machine.put("sys/kernel/iommu_groups/8/name", "vfio-noiommu\n");
    machine.add_unit("dmar0", "fed90000");
    machine.set_unit("0000:00:02.0", "dmar0");
    machine.put("sys/devices/pci0000:00/0000:00:02.0/removable", "removable\n");
    machine.put("sys/devices/acpi/device:01/path", "\\_SB_.PCI0.GFX0\n");
    machine.link("sys/devices/pci0000:00/0000:00:02.0/firmware_node", "../../acpi/device:01");
    machine.put("sys/devices/platform/9000000.dma/uevent", "");
    machine.link("sys/devices/platform/9000000.dma/of_node", "../../../firmware/devicetree/base/dma@9000000");
    machine.link("sys/bus/platform/devices/9000000.dma", "../../../devices/platform/9000000.dma");
    machine.put("sys/firmware/acpi/tables/DMAR", std::string("\0\1\xff\n table", 10));
    machine.put("sys/firmware/acpi/tables/DMAR1", "");
    machine.put("sys/firmware/acpi/tables/FACP", "x");
    machine.put("sys/bus/thunderbolt/devices/domain0/security", "user\n");
    machine.put(
        "proc/cmdline",
        "root=UUID=1 *  intel_iommu=on\tiommu=pt pci=* quiet nointremap \"intremap=off\" -- iommu=off\n");
    machine.put("proc/meminfo", "MemTotal:       1024 kB\nMemFree: 1 kB\n");
    machine.put("proc/sys/kernel/osrelease", "6.1.0-amd64\n");
    machine.put("capture/page_bytes", "16384\n");
}

/// The status of `shell script OUT.tar ROOT`; standard error goes to the file "said".
int run(const std::string& shell, const TempFolder& folder, const std::string& root,
        const std::string& environment = "") {
    folder.write("capture.sh", capture_script());
    // With busybox all programs are busybox's.
    const bool is_busybox = shell.starts_with("busybox");
    const std::string programs =
        is_busybox ? "mkdir -p bin && busybox --install -s bin && PATH=$PWD/bin && export PATH && " : "";
    return std::system(fmt::format("cd {0} && {4} {3} {1} capture.sh out.tar '{2}' 2> said", folder.path(),
                                   shell, root, environment, programs)
                           .c_str());
}

class CaptureScript : public ::testing::TestWithParam<const char*> {
protected:
    void SetUp() override {
        if (std::system(fmt::format("{} -c true > /dev/null 2>&1", GetParam()).c_str()) != 0)
            GTEST_SKIP() << GetParam() << " is not installed";
    }
};

INSTANTIATE_TEST_SUITE_P(Shells, CaptureScript, ::testing::Values("sh", "busybox sh"), [](const auto& one) {
    return std::string{one.param} == "sh" ? "System" : "Busybox";
});

TEST_P(CaptureScript, TakesWhatTheProgramTakes) {
    MachineTree machine;
    fill(machine);
    const TempFolder folder;
    ASSERT_EQ(run(GetParam(), folder, machine.path()), 0) << folder.read("said");
    const auto tree = open_host_tree(machine.path()).value();
    const Contents wanted = contents_of(capture(*tree).value().archive);
    const Contents taken = contents_of(folder.read("out.tar"));
    EXPECT_EQ(folder.read("said"), "");
    ASSERT_EQ(wanted.size(), taken.size());
    for (const auto& [path, content] : wanted) {
        ASSERT_TRUE(taken.contains(path)) << path;
        EXPECT_TRUE(taken.at(path) == content) << path;
    }
    EXPECT_THAT(taken.at("proc/cmdline"), "file intel_iommu=on iommu=pt pci=* nointremap \"intremap=off\"\n");
}

TEST_P(CaptureScript, TheDeviceTreeIsLeftOutUnlessItIsAskedFor) {
    MachineTree machine;
    machine.put("sys/firmware/fdt", "tree");
    machine.put("proc/cmdline", "quiet\n");
    const TempFolder folder;
    ASSERT_EQ(run(GetParam(), folder, machine.path()), 0);
    EXPECT_FALSE(contents_of(folder.read("out.tar")).contains("sys/firmware/fdt"));
    EXPECT_THAT(folder.read("said"), HasSubstr("left out"));
    ASSERT_EQ(run(GetParam(), folder, machine.path(), "DEVICE_TREE=1"), 0);
    EXPECT_EQ(contents_of(folder.read("out.tar")).at("sys/firmware/fdt"), "file tree");
}

TEST_P(CaptureScript, TheLiveMachineIsCaptured) {
    const TempFolder folder;
    ASSERT_EQ(run(GetParam(), folder, "/"), 0) << folder.read("said");
    const Contents taken = contents_of(folder.read("out.tar"));
    EXPECT_TRUE(taken.contains("capture/page_bytes"));
    EXPECT_TRUE(taken.contains("proc/sys/kernel/osrelease"));
}

TEST_P(CaptureScript, WithoutAnArchiveItSaysHowItIsCalled) {
    const TempFolder folder;
    folder.write("capture.sh", capture_script());
    EXPECT_NE(std::system(fmt::format("cd {} && {} capture.sh 2> said", folder.path(), GetParam()).c_str()),
              0);
    EXPECT_THAT(folder.read("said"), HasSubstr("usage: sh capture.sh OUT.tar"));
}

}  // namespace
}  // namespace guestmem::dma

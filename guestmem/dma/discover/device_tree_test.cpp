// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/device_tree.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/device_tree_walk.hpp"
#include "guestmem/dma/discover/testing/fact_texts.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"
#include "guestmem/dma/discover/testing/tree_builder.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::dma {
namespace {

using ::guestmem::testing::TempFolder;
using testing::complaint_texts;
using testing::cover_texts;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TreeBuilder;

std::vector<std::byte> bytes_of_file(const std::string& path) {
    std::ifstream file{path, std::ios::binary};
    const std::vector<char> text{std::istreambuf_iterator<char>{file}, {}};
    const auto bytes = std::as_bytes(std::span{text});
    return {bytes.begin(), bytes.end()};
}

std::string table_path(const std::string& name) {
    return std::string{GUESTMEM_SOURCE} + "/guestmem/dma/discover/testing/tables/" + name;
}

bool has_compiler() { return std::system("dtc --version >/dev/null 2>&1") == 0; }

/// What dtc makes of a text.
std::vector<std::byte> compiled(const std::string& text) {
    const TempFolder folder;
    const std::string source = folder.write("x.dts", "/dts-v1/;\n" + text);
    const std::string blob = folder.path_of("x.dtb");
    const std::string command = fmt::format("dtc -q -I dts -O dtb -o {} {} 2>&1", blob, source);
    EXPECT_EQ(std::system(command.c_str()), 0);
    return bytes_of_file(blob);
}

/// What fdtget says a property of the tree is, in hexadecimal cells.
std::string told_by_fdtget(const std::string& file, const std::string& node, const std::string& property) {
    const TempFolder folder;
    const std::string out = folder.path_of("out");
    const std::string command = fmt::format("fdtget -t x {} {} '{}' > {}", file, node, property, out);
    if (std::system(command.c_str()) != 0) return {};
    std::string text = folder.read("out");
    while (text.ends_with('\n')) text.pop_back();
    return text;
}

SourceFacts read_text(const std::string& text) {
    auto facts = read_device_tree(compiled(text));
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *facts : SourceFacts{};
}

class DeviceTreeText : public ::testing::Test {
protected:
    void SetUp() override {
        if (!has_compiler()) GTEST_SKIP() << "dtc is not installed (device-tree-compiler; ./dev setup)";
    }
};

TEST(DeviceTreeTest, QemusSmmuHasAllOfTheBus) {
    const auto read = read_device_tree(bytes_of_file(table_path("virt-smmuv3.dtb")));
    ASSERT_TRUE(read) << read.error().message();
    ASSERT_EQ(read->units.size(), 1U);
    const UnitFact& unit = read->units[0];
    EXPECT_EQ(unit.name, "smmuv3@9050000");
    EXPECT_EQ(unit.kind, UnitKind::smmu_v3);
    EXPECT_EQ(unit.registers, 0x9050000U);
    EXPECT_EQ(unit.registers_bytes, 0x20000U);
    EXPECT_EQ(to_string(unit.origin), "device tree /smmuv3@9050000");
    EXPECT_THAT(cover_texts(*read), ElementsAre("0000:00:00.0-0000:ff:1f.7 -> smmuv3@9050000 0x0"));
    EXPECT_EQ(to_string(read->covers[0].origin), "device tree /pcie@10000000");
    EXPECT_THAT(complaint_texts(*read), IsEmpty());
}

TEST(DeviceTreeTest, QemusVirtioIommuIsNotBehindItself) {
    const auto read = read_device_tree(bytes_of_file(table_path("virt-viommu.dtb")));
    ASSERT_TRUE(read) << read.error().message();
    ASSERT_EQ(read->units.size(), 1U);
    EXPECT_EQ(read->units[0].name, "virtio-iommu@0000:00:01.0");
    EXPECT_EQ(read->units[0].function, pci_address(0, 0, 1, 0));
    EXPECT_FALSE(read->units[0].registers);
    EXPECT_THAT(cover_texts(*read),
                ElementsAre("0000:00:00.0-0000:00:00.7 -> virtio-iommu@0000:00:01.0 0x0",
                            "0000:00:01.1-0000:ff:1f.7 -> virtio-iommu@0000:00:01.0 0x9"));
    EXPECT_THAT(complaint_texts(*read), IsEmpty());
}

TEST_F(DeviceTreeText, FdtgetSaysTheSameOfTheSamples) {
    EXPECT_EQ(told_by_fdtget(table_path("virt-smmuv3.dtb"), "/pcie@10000000", "iommu-map"), "0 8004 0 10000");
    EXPECT_EQ(told_by_fdtget(table_path("virt-smmuv3.dtb"), "/smmuv3@9050000", "phandle"), "8004");
    EXPECT_EQ(told_by_fdtget(table_path("virt-smmuv3.dtb"), "/smmuv3@9050000", "reg"), "0 9050000 0 20000");
    EXPECT_EQ(told_by_fdtget(table_path("virt-viommu.dtb"), "/pcie@10000000", "iommu-map"),
              "0 8005 0 8 9 8005 9 fff7");
}

TEST_F(DeviceTreeText, CellsOfAnIommuSayHowLongTheWordsOfItsDevicesAre) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        none: iommu@1000 { compatible = "rockchip,iommu"; reg = <0x1000 0x100>; #iommu-cells = <0>; };
        one: iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; };
        two: iommu@3000 { compatible = "qcom,sm8250-smmu-500", "arm,mmu-500"; reg = <0x3000 0x100>;
            #iommu-cells = <2>; };
        a@1 { iommus = <&none>; };
        b@2 { iommus = <&two 0x40 0x7>, <&none>, <&one 0x123>, <&one 0x124>; };
    };)");
    ASSERT_EQ(facts.units.size(), 3U);
    EXPECT_EQ(facts.units[0].name, "iommu@1000");
    EXPECT_EQ(facts.units[1].name, "smmuv3@2000");
    EXPECT_EQ(facts.units[2].name, "smmuv2@3000");
    EXPECT_THAT(cover_texts(facts),
                ElementsAre("/a@1 -> iommu@1000 0x0 shared", "/b@2 -> smmuv2@3000 0x40 shared ~0x7",
                            "/b@2 -> iommu@1000 0x0 shared", "/b@2 -> smmuv3@2000 0x123 shared",
                            "/b@2 -> smmuv3@2000 0x124 shared"));
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST_F(DeviceTreeText, EachKindOfIommuIsKnownByItsName) {
    const std::pair<const char*, UnitKind> kinds[] = {
        {"arm,smmu-v3", UnitKind::smmu_v3},
        {"arm,smmu-v1", UnitKind::smmu_v2},
        {"arm,smmu-v2", UnitKind::smmu_v2},
        {"arm,mmu-400", UnitKind::smmu_v2},
        {"arm,mmu-401", UnitKind::smmu_v2},
        {"arm,mmu-500", UnitKind::smmu_v2},
        {"qcom,sdm845-smmu-500", UnitKind::smmu_v2},
        {"nvidia,smmu-500", UnitKind::smmu_v2},
        {"marvell,ap806-smmu-500", UnitKind::smmu_v2},
        {"cavium,smmu-v2", UnitKind::smmu_v2},
        {"virtio,pci-iommu", UnitKind::virtio_iommu},
        {"virtio,mmio", UnitKind::virtio_iommu},
        {"rockchip,iommu", UnitKind::other},
        {"apple,t8103-dart", UnitKind::other},
        {"renesas,ipmmu-vmsa", UnitKind::other},
        {"samsung,exynos-sysmmu", UnitKind::other},
        {"mediatek,mt8173-m4u", UnitKind::other},
        {"nvidia,tegra30-mc-smmu", UnitKind::other},
    };
    for (const auto& [name, kind] : kinds) {
        const SourceFacts facts = read_text(fmt::format(
            "/ {{ iommu@1000 {{ compatible = \"{}\"; reg = <0 0x1000 0x100>; #iommu-cells = <1>; }}; }};",
            name));
        ASSERT_EQ(facts.units.size(), 1U) << name;
        EXPECT_EQ(facts.units[0].kind, kind) << name;
        EXPECT_EQ(facts.units[0].name, unit_name(kind, 0x1000)) << name;
    }
}

TEST_F(DeviceTreeText, MapsAreTrueCountsAndTheMaskIsApplied) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        s: iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; };
        pcie@1 { device_type = "pci"; iommu-map = <0x0 &s 0x100 0x100 0x100 &s 0x8000 0x1>; };
        pcie@2 { device_type = "pci"; iommu-map = <0x8 &s 0x0 0x10>; iommu-map-mask = <0xfff8>; };
        pcie@3 { device_type = "pci"; iommu-map = <0x0 &s 0x0 0x1>; iommu-map-mask = <0x0>; };
    };)");
    EXPECT_THAT(cover_texts(facts), ElementsAre("0000:00:00.0-0000:00:1f.7 -> smmuv3@2000 0x100",
                                                "0000:01:00.0 -> smmuv3@2000 0x8000",
                                                "0001:00:01.0-0001:00:02.7 -> smmuv3@2000 0x0 rid&0xfff8",
                                                "0002:00:00.0-0002:ff:1f.7 -> smmuv3@2000 0x0 rid&0x0"));
    EXPECT_THAT(complaint_texts(facts), IsEmpty());
}

TEST_F(DeviceTreeText, TheFirstOfOverlappingRowsCounts) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        s: iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; };
        pcie@1 { device_type = "pci"; iommu-map = <0x10 &s 0x500 0x8>, <0x0 &s 0x0 0x100>; };
    };)");
    EXPECT_THAT(cover_texts(facts), ElementsAre("0000:00:02.0-0000:00:02.7 -> smmuv3@2000 0x500",
                                                "0000:00:00.0-0000:00:01.7 -> smmuv3@2000 0x0",
                                                "0000:00:03.0-0000:00:1f.7 -> smmuv3@2000 0x18"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("/pcie@1: iommu-map: the row 0x0 overlaps")));
}

TEST_F(DeviceTreeText, AVirtioIommuInsideItsOwnRangeIsCutOut) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        pcie@1 { device_type = "pci"; #address-cells = <3>; #size-cells = <2>; linux,pci-domain = <5>;
            iommu-map = <0x0 &v 0x0 0x10000>;
            v: iommu@1,0 { compatible = "virtio,pci-iommu"; reg = <0x800 0 0 0 0>; #iommu-cells = <1>; }; };
    };)");
    EXPECT_EQ(facts.units.at(0).name, "virtio-iommu@0005:00:01.0");
    EXPECT_EQ(facts.units.at(0).segment, 5);
    EXPECT_THAT(cover_texts(facts),
                ElementsAre("0005:00:00.0-0005:00:00.7 -> virtio-iommu@0005:00:01.0 0x0",
                            "0005:00:01.1-0005:ff:1f.7 -> virtio-iommu@0005:00:01.0 0x9"));
}

TEST_F(DeviceTreeText, RegistersAreWhereTheRangesAbovePutThem) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <2>; #size-cells = <2>;
        soc { #address-cells = <1>; #size-cells = <1>; ranges = <0x0 0x1 0x0 0x1000>, <0x1000 0x2 0x0 0x1000>;
            same { #address-cells = <1>; #size-cells = <1>; ranges;
                a: iommu@1800 { compatible = "arm,smmu-v3"; reg = <0x1800 0x100>; #iommu-cells = <1>; };
                iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; };
            };
            closed { #address-cells = <1>; #size-cells = <1>;
                iommu@10 { compatible = "arm,smmu-v3"; reg = <0x10 0x100>; #iommu-cells = <1>; }; };
        }; };)");
    ASSERT_EQ(facts.units.size(), 3U);
    EXPECT_EQ(facts.units[0].name, "smmuv3@200000800");
    EXPECT_EQ(facts.units[1].name, "/soc/same/iommu@2000");
    EXPECT_EQ(facts.units[2].name, "/soc/closed/iommu@10");
    EXPECT_THAT(complaint_texts(facts),
                ElementsAre(HasSubstr("/soc/same/iommu@2000: this IOMMU has no registers"),
                            HasSubstr("/soc/closed/iommu@10: this IOMMU has no registers")));
}

TEST_F(DeviceTreeText, WhatIsSwitchedOffIsNotThere) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        off: iommu@1000 { compatible = "arm,smmu-v3"; reg = <0x1000 0x100>; #iommu-cells = <1>; status = "disabled"; };
        on: iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; status = "okay"; };
        a@1 { iommus = <&on 1>; status = "disabled"; };
        b@2 { iommus = <&off 2 &on 3>; status = "ok"; };
        bus@3 { status = "reserved"; c@4 { iommus = <&on 4>; }; pcie@1 { device_type = "pci"; }; };
        pcie@5 { device_type = "pci"; iommu-map = <0 &off 0 0x10000>; };
        pcie@6 { device_type = "pci"; iommu-map = <0 &on 0 1>; };
    };)");
    ASSERT_EQ(facts.units.size(), 1U);
    EXPECT_THAT(cover_texts(facts),
                ElementsAre("/b@2 -> smmuv3@2000 0x3 shared", "0001:00:00.0 -> smmuv3@2000 0x0"));
    EXPECT_THAT(complaint_texts(facts),
                ElementsAre(HasSubstr("/b@2: iommus names an IOMMU that is switched off"),
                            HasSubstr("/pcie@5: iommu-map names")));
}

TEST_F(DeviceTreeText, ReservedMemoryOfADeviceIsDirectWhereItIsItsOwnMemory) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <2>; #size-cells = <2>;
        reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
            fb@80000000 { reg = <0 0x80000000 0 0x1000000>; iommu-addresses = <&d 0 0x80000000 0 0x1000000>; };
            moved@90000000 { reg = <0 0x90000000 0 0x1000>; iommu-addresses = <&d 0 0x70000000 0 0x1000>; };
            hole { iommu-addresses = <&d 0xff 0 0xffffff00 0xffffffff>, <&e 0x1000 0x100>, <&e 0 0>; };
            plain@a0000000 { reg = <0 0xa0000000 0 0x1000>; };
        };
        d: display@1 { };
        bus { #address-cells = <1>; #size-cells = <1>; e: dma@2 { }; };
    };)");
    ASSERT_EQ(facts.reserved.size(), 4U);
    const auto text = [&](std::size_t i) {
        const ReservedFact& fact = facts.reserved[i];
        return fmt::format("{} {:#x}-{:#x} {} {}", to_string(fact.who.at(0)), fact.first, fact.last,
                           to_string(fact.kind), fact.origin.place);
    };
    EXPECT_EQ(text(0), "/display@1 0x80000000-0x80ffffff direct /reserved-memory/fb@80000000");
    EXPECT_EQ(text(1), "/display@1 0x70000000-0x70000fff reserved /reserved-memory/moved@90000000");
    EXPECT_EQ(text(2), "/display@1 0xff00000000-0xfffffffffffffffe reserved /reserved-memory/hole");
    EXPECT_EQ(text(3), "/bus/dma@2 0x1000-0x10ff reserved /reserved-memory/hole");
    EXPECT_THAT(complaint_texts(facts),
                ElementsAre(HasSubstr("it is a reservation, not a mapping"), HasSubstr("0x0 bytes at 0x0")));
}

TEST_F(DeviceTreeText, WrongWordsAreComplaintsAndTheRestIsRead) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        s: iommu@2000 { compatible = "arm,smmu-v3"; reg = <0x2000 0x100>; #iommu-cells = <1>; };
        n: nothing { };
        huge: iommu@3000 { reg = <0x3000 0x100>; #iommu-cells = <1000>; };
        a { iommus = <&s>; };  b { iommus = <0x77 1>; };  c { iommus = <&n 1>; };  d { iommus = <&huge 1>; };
        e { iommus = [00 00 01]; };
        p1 { device_type = "pci"; iommu-map = <0 &s 0>; };
        p2 { device_type = "pci"; iommu-map = <0 &s 0 0>, <0x20000 &s 0 1>, <0xffffffff &s 0 2>, <8 &s 8 8>; };
        p3 { device_type = "pci"; iommu-map = <9 &s 0 1>, <8 &s 8 8>; iommu-map-mask = <0xfff8>; };
        p4 { device_type = "pci"; iommu-map = <0 0x77 0 8>, <8 &s 8 0x20000>; };
        good { iommus = <&s 1>; };
    };)");
    EXPECT_EQ(facts.units.size(), 2U);
    EXPECT_THAT(cover_texts(facts), ElementsAre("0001:00:01.0-0001:00:01.7 -> smmuv3@2000 0x8",
                                                "0003:00:01.0-0003:ff:1f.7 -> smmuv3@2000 0x8",
                                                "/good -> smmuv3@2000 0x1 shared"));
    EXPECT_EQ(facts.complaints.size(), 11U) << ::testing::PrintToString(complaint_texts(facts));
}

TEST_F(DeviceTreeText, StreamMatchMaskIsOfAllDevicesOfTheUnit) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <1>; #size-cells = <1>;
        s: iommu@2000 { compatible = "arm,mmu-500"; reg = <0x2000 0x100>; #iommu-cells = <1>;
            stream-match-mask = <0x7c00>; };
        old: iommu@3000 { compatible = "arm,mmu-500"; reg = <0x3000 0x100>; mmu-masters = <1 2>; };
        a { iommus = <&s 0x20>; };
        bus { iommu-map = <0x17 &s 0x17 3>; };
    };)");
    EXPECT_EQ(facts.units.size(), 2U);
    EXPECT_THAT(cover_texts(facts), ElementsAre("/a -> smmuv2@2000 0x20 shared ~0x7c00",
                                                "/bus -> smmuv2@2000 0x17 shared ~0x7c00",
                                                "/bus -> smmuv2@2000 0x18 shared ~0x7c01"));
    EXPECT_THAT(complaint_texts(facts), ElementsAre(HasSubstr("mmu-masters")));
}

TEST_F(DeviceTreeText, WhatUefiLeavesOnAMachineWithAcpiIsNoFactsAndNoComplaints) {
    const SourceFacts facts = read_text(R"(/ { #address-cells = <2>; #size-cells = <1>;
        chosen { bootargs = "console=ttyAMA0"; linux,uefi-system-table = <0 0xbf6e0018>; }; };)");
    EXPECT_THAT(facts.units, IsEmpty());
    EXPECT_THAT(facts.covers, IsEmpty());
    EXPECT_THAT(facts.reserved, IsEmpty());
    EXPECT_THAT(facts.complaints, IsEmpty());
}

TEST(DeviceTreeTest, ABlobAtAnyAddressReadsTheSame) {
    const std::vector<std::byte> blob = bytes_of_file(table_path("virt-smmuv3.dtb"));
    for (std::size_t shift = 0; shift < 9; ++shift) {
        std::vector<std::byte> moved(blob.size() + shift);
        std::ranges::copy(blob, moved.begin() + static_cast<std::ptrdiff_t>(shift));
        const auto read = read_device_tree(std::span{moved}.subspan(shift));
        ASSERT_TRUE(read) << shift;
        EXPECT_EQ(read->covers.size(), 1U);
    }
}

TEST(DeviceTreeTest, EachShorterBlobIsRefused) {
    const std::vector<std::byte> blob = bytes_of_file(table_path("virt-smmuv3.dtb"));
    for (std::size_t size = 0; size < blob.size(); size += size < 64 ? 1 : 97) {
        // Of exactly that size, so that a sanitizer sees what reads behind it.
        const std::vector<std::byte> part(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(size));
        const auto read = read_device_tree(part);
        ASSERT_FALSE(read) << size;
        EXPECT_THAT(read.error().message(), HasSubstr("device tree"));
    }
}

TEST(DeviceTreeTest, ATreeOfMoreThanTheLimitIsRefused) {
    const std::vector<std::byte> huge(max_tree_bytes + 1);
    const auto read = read_device_tree(huge);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code(), Errc::out_of_range);
}

TEST(DeviceTreeTest, TwoNodesWithOnePhandleAreAComplaintAndTheFirstCounts) {
    TreeBuilder tree;
    for (const std::uint32_t base : {0x1000U, 0x2000U}) {
        tree.begin(fmt::format("iommu@{:x}", base))
            .text("compatible", "arm,smmu-v3")
            .cells("reg", {0, base, 0x100});
        tree.cells("#iommu-cells", {1}).cells("phandle", {7}).end();
    }
    tree.begin("dma").cells("iommus", {7, 3}).end();
    const auto read = read_device_tree(tree.done());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_THAT(cover_texts(*read), ElementsAre("/dma -> smmuv3@1000 0x3 shared"));
    EXPECT_THAT(complaint_texts(*read), ElementsAre(HasSubstr("two nodes have the phandle 0x7")));
}

TEST(DeviceTreeTest, TwoNodesOfOneIommuAreOneUnit) {
    TreeBuilder tree;
    for (const std::uint32_t phandle : {1U, 2U})
        tree.begin("iommu")
            .cells("reg", {0, 0x1000, 1})
            .cells("#iommu-cells", {1})
            .cells("phandle", {phandle})
            .end();
    tree.begin("dma").cells("iommus", {2, 3}).end();
    const auto read = read_device_tree(tree.done());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->units.size(), 1U);
    EXPECT_THAT(cover_texts(*read), ElementsAre("/dma -> iommu@1000 0x3 shared"));
    EXPECT_THAT(complaint_texts(*read), ElementsAre(HasSubstr("they are one")));
}

TEST(DeviceTreeTest, DeepAndLongPathsAreBounded) {
    TreeBuilder tree;
    tree.begin("iommu").cells("#iommu-cells", {0}).cells("phandle", {1}).end();
    for (std::size_t depth = 1; depth < max_tree_depth + 2; ++depth) tree.begin("n").cells("iommus", {1});
    for (std::size_t depth = 1; depth < max_tree_depth + 2; ++depth) tree.end();
    tree.begin(std::string(max_tree_path_bytes - 1, 'x')).cells("iommus", {1}).end();
    tree.begin(std::string(max_tree_path_bytes, 'x')).cells("iommus", {1}).end();
    const auto read = read_device_tree(tree.done());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->covers.size(), max_tree_depth - 1 + 1);
    EXPECT_THAT(complaint_texts(*read),
                ElementsAre(HasSubstr("no registers"), HasSubstr("2 nodes are deeper"),
                            HasSubstr("path is too long")));
    for (const std::string& text : complaint_texts(*read)) EXPECT_LT(text.size(), max_tree_path_bytes + 200);
}

// What a pass over all of it would make quadratic, and what takes the most memory for its bytes.
TEST(DeviceTreeTest, WorstTreesOfAMebibyteStayInTheirMemory) {
    const std::function<void(TreeBuilder&, std::uint32_t)> works[] = {
        [](TreeBuilder& tree, std::uint32_t) { tree.begin("u").cells("#iommu-cells", {1}).end(); },
        [](TreeBuilder& tree, std::uint32_t i) {
            tree.begin("u").cells("reg", {0xffff0000, i, 1}).cells("#iommu-cells", {1}).end();
        },
        [](TreeBuilder& tree, std::uint32_t i) {
            tree.begin("d").cells("iommus", {1}).cells("phandle", {i + 2}).end();
        },
        [](TreeBuilder& tree, std::uint32_t) {
            tree.begin("d").cells("iommus", std::vector<std::uint32_t>(2000, 1)).end();
        },
        [](TreeBuilder& tree, std::uint32_t) {
            tree.begin("d").cells("iommu-map", {1, 1, 1, 0xfffffffe}).end();
        },
    };
    for (const std::size_t name_bytes : {1U, 400U}) {
        for (const auto& work : works) {
            TreeBuilder tree;
            tree.begin("i").cells("#iommu-cells", {0}).cells("phandle", {1}).end();
            tree.begin(std::string(name_bytes, 'x'));
            for (std::uint32_t i = 0; tree.size_bytes() < (1 << 20) - 16384; ++i) work(tree, i);
            const std::vector<std::byte> blob = tree.end().done();
            const auto facts = read_device_tree(blob);
            if (!facts) {
                EXPECT_EQ(facts.error().code(), Errc::out_of_range) << facts.error().message();
                continue;
            }
            EXPECT_LE(testing::bytes_of(*facts),
                      blob.size() * memory_per_table_byte + memory_beside_table_bytes);
            EXPECT_LE(testing::count_of(*facts), max_facts);
        }
    }
}

TEST(DeviceTreeTest, NamesThatAreNoNamesReachNoTerminal) {
    TreeBuilder tree;
    tree.begin("iommu").cells("#iommu-cells", {0}).cells("phandle", {1}).end();
    tree.begin("a\x1b[2J\n").cells("iommus", {1, 99}).end();
    const auto read = read_device_tree(tree.done());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_THAT(cover_texts(*read), ElementsAre("/a?[2J? -> /iommu 0x0 shared"));
    for (const std::string& text : complaint_texts(*read))
        EXPECT_EQ(text.find_first_of("\x1b\n"), std::string::npos);
}

TEST(DeviceTreeTest, MoreFactsThanThereMayBeAreRefused) {
    TreeBuilder tree;
    tree.begin("iommu").cells("#iommu-cells", {0}).cells("phandle", {1}).end();
    tree.begin("dma").cells("iommus", std::vector<std::uint32_t>(200'000, 1)).end();
    const auto read = read_device_tree(tree.done());
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code(), Errc::out_of_range);
}

TEST(DeviceTreeTest, RowsInNoOrderAreReadUpToTheirLimit) {
    for (const std::size_t rows : {max_unordered_rows, max_unordered_rows + 1}) {
        TreeBuilder tree;
        tree.begin("iommu").cells("#iommu-cells", {1}).cells("phandle", {1}).end();
        std::vector<std::uint32_t> map;
        for (std::size_t i = rows; i > 0; --i) {
            const auto id = static_cast<std::uint32_t>(i * 2);
            map.insert(map.end(), {id, 1, id, 1});
        }
        tree.begin("pcie").text("device_type", "pci").cells("iommu-map", map).end();
        const auto read = read_device_tree(tree.done());
        ASSERT_TRUE(read) << read.error().message();
        EXPECT_EQ(read->covers.size(), rows <= max_unordered_rows ? rows : 0);
    }
}

}  // namespace
}  // namespace guestmem::dma

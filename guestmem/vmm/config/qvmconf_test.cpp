// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/qvmconf.hpp"

#include <gmock/gmock.h>

#include <random>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using testing::complaint_of;
using testing::complaint_of_words;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::loader_of;
using testing::plan_of;
using ::testing::SizeIs;

constexpr std::string_view cluster = R"(system cluster
ram 1024M
cpu
cpu
load /emmc/QNX_cluster.ifs
vdev ioapic
    loc 0xf8000000
    intr apic
    name myioapic
vdev ser8250
    intr myioapic:4
vdev timer8254
    intr myioapic:0
vdev mc146818
vdev shmem
vdev pckeyboard
)";

TEST(Qvmconf, AClusterIsReadAsItIsWritten) {
    const VmConfig config = plan_of(cluster);
    EXPECT_EQ(config.system.value, "cluster");
    ASSERT_THAT(config.memory, SizeIs(1));
    EXPECT_EQ(config.memory[0].ranges.at(0), *GuestRange::create(GuestAddress{0}, std::uint64_t{1} << 30));
    EXPECT_THAT(config.cpus, SizeIs(2));
    ASSERT_THAT(config.loads, SizeIs(1));
    EXPECT_EQ(config.loads[0].kind, LoadKind::kernel);
    EXPECT_EQ(config.loads[0].file.value, "/emmc/QNX_cluster.ifs");
    ASSERT_THAT(config.vdevs, SizeIs(6));
    EXPECT_EQ(config.vdevs[0].kind, VdevKind::ioapic);
    EXPECT_EQ(config.vdevs[0].loc->value, 0xf8000000U);
    EXPECT_EQ(config.vdevs[0].intr->value, (Interrupt{"apic", std::nullopt}));
    EXPECT_EQ(config.vdevs[0].name->value, "myioapic");
    EXPECT_EQ(config.vdevs[1].kind, VdevKind::ser8250);
    EXPECT_EQ(config.vdevs[1].loc->value, 0x3f8U);
    EXPECT_EQ(config.vdevs[1].intr->value, (Interrupt{"myioapic", 4}));
    EXPECT_EQ(config.vdevs[2].intr->value, (Interrupt{"myioapic", 0}));
    EXPECT_EQ(config.vdevs[3].kind, VdevKind::mc146818);
    EXPECT_EQ(config.vdevs[4].kind, VdevKind::shmem);
    EXPECT_FALSE(config.vdevs[4].loc || config.vdevs[4].intr);
    EXPECT_THAT(config.vdevs[4].shmem.rules, IsEmpty());
    EXPECT_EQ(config.vdevs[5].kind, VdevKind::pckeyboard);
    EXPECT_EQ(config.vdevs[5].place.line, 16U);
}

TEST(Qvmconf, AShmemWithAFactoryPageIsReadAsItIsWritten) {
    std::string text{cluster};
    text.replace(text.find("1024M"), 5, "192M");
    text.replace(text.find("vdev shmem\n"), 11,
                 "vdev shmem\n    create TEST1,0xf0000\n    loc 0x10000000\n    intr myioapic:10\n"
                 "    allow TEST*\n    deny secret\n");
    const VmConfig config = plan_of(text);
    ASSERT_THAT(config.vdevs, SizeIs(6));
    const Vdev& shmem = config.vdevs[4];
    EXPECT_EQ(shmem.loc->value, 0x10000000U);
    EXPECT_EQ(shmem.intr->value, (Interrupt{"myioapic", 10}));
    EXPECT_EQ(shmem.shmem.creates.at(0).size_bytes.value, 0xf0000U);
    ASSERT_THAT(shmem.shmem.rules, SizeIs(2));
    EXPECT_TRUE(shmem.shmem.rules[0].is_allowed);
    EXPECT_EQ(shmem.shmem.rules[1].pattern.value, "secret");
    text.replace(text.find("192M"), 4, "1024M");
    EXPECT_THAT(complaint_of(text),
                HasSubstr("vm.qvmconf:17:9: error: vdev shmem loc 0x10000000 lies inside ram 1G "
                          "(line 2)\n  17 |     loc 0x10000000\n     |         ^\n"));
}

TEST(Qvmconf, AFileAndACommandLineAreOneConfiguration) {
    const std::vector<std::string> words{"@cluster", "ram",     "64M",   "cmdline", "console=ttyS0 quiet",
                                         "vdev",     "ivshmem", "share", "mail"};
    const auto read = read_words(words, loader_of({{"cluster", std::string{cluster}}}));
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_THAT(read->config.memory, SizeIs(2));
    EXPECT_EQ(read->config.cmdline->value, "console=ttyS0 quiet");
    EXPECT_THAT(read->config.vdevs, SizeIs(7));
    EXPECT_EQ(read->sources.describe(read->config.vdevs[6].place), "command line, word 6");
    EXPECT_EQ(complaint_of_words({"@cluster", "ram", "64Q", "shmem"}, {{"cluster", std::string{cluster}}}),
              "command line, word 3: error: length: '64Q' is no number\n"
              "   3 | 64Q\n"
              "     | ^\n"
              "     = write a number such as 4096, 0x1000, 64K or 192M\n"
              "command line, word 4: error: unknown word 'shmem' in vdev pckeyboard (line 16)\n"
              "   4 | shmem\n"
              "     | ^");
}

TEST(Qvmconf, OverlapsAcrossFilesNameBothFiles) {
    EXPECT_EQ(
        complaint_of("system vm ram 1024M load k @devices", {{"devices", "vdev ioapic\n  loc 0x10000000\n"}}),
        "devices:2:7: error: vdev ioapic loc 0x10000000 lies inside ram 1G (vm.qvmconf:1:11)\n"
        "   2 |   loc 0x10000000\n"
        "     |       ^\n"
        "     = vdev ioapic loc 0x10000000 takes 0x10000000-0x10000fff, ram 1G 0x0-0x3fffffff\n"
        "devices: included at vm.qvmconf:1:28");
}

TEST(Qvmconf, ALaterMistakeCanNameTheLineOfAPlan) {
    const auto read = read_text(cluster, "vm.qvmconf", {});
    ASSERT_TRUE(read);
    Findings findings{read->sources};
    findings.add(read->config.loads[0].file.place, "open /emmc/QNX_cluster.ifs: No such file or directory");
    EXPECT_EQ(findings.to_text(),
              "vm.qvmconf:5:6: error: open /emmc/QNX_cluster.ifs: No such file or directory\n"
              "   5 | load /emmc/QNX_cluster.ifs\n"
              "     |      ^");
}

TEST(Qvmconf, FilesAreReadByTheLoaderOfSys) {
    const guestmem::testing::TempFolder folder;
    ASSERT_TRUE(write_text_file(folder.path_of("vm.qvmconf"), "system vm @memory load k"));
    ASSERT_TRUE(write_text_file(folder.path_of("memory"), "ram 1M"));
    const std::vector<std::string> words{"@" + folder.path_of("vm.qvmconf")};
    const auto read = read_words(words, &read_text_file);
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->config.memory.at(0).size_bytes.value, 1024U * 1024);
    const std::vector<std::string> none{"@" + folder.path_of("none")};
    EXPECT_THAT(read_words(none, &read_text_file).error().message(), HasSubstr("No such file"));
}

TEST(Qvmconf, MoreMistakesThanAPersonReadsAreCounted) {
    std::string text{cluster};
    for (int i = 0; i < 60; ++i) text += "qqqqqq\n";
    EXPECT_THAT(complaint_of(text), HasSubstr("\nand 10 more"));
}

TEST(Qvmconf, LargeInputEndsSoon) {
    EXPECT_THAT(complaint_of(std::string(max_source_bytes, '"')), HasSubstr("error"));
    EXPECT_THAT(complaint_of(std::string(max_source_bytes, '\xff')), HasSubstr("no UTF-8"));
    EXPECT_THAT(complaint_of(std::string(max_source_bytes, '@')), HasSubstr("error"));
    std::string text;
    while (text.size() < max_source_bytes - 64) text += "vdev shmem create a,4K rom 0,4K cpu\n";
    EXPECT_THAT(complaint_of(text), HasSubstr("more"));
    std::string unknown;
    while (unknown.size() < max_source_bytes - 64) unknown += std::string(60, 'q') + "\n";
    EXPECT_THAT(complaint_of(unknown), HasSubstr("more"));
    std::string masks = "cpu runmask 0";
    while (masks.size() < max_source_bytes - 64) masks += " runmask 1,2,3,4,5,6,7,8,9,10";
    EXPECT_THAT(complaint_of(masks), HasSubstr("more"));
}

TEST(Qvmconf, WhatIsCutOrChangedAnywhereGivesAPlanOrAnError) {
    std::mt19937 random{7};
    for (int round = 0; round < 3000; ++round) {
        std::string text{cluster};
        for (int change = 0; change < 1 + round % 4; ++change) {
            const std::size_t at = random() % text.size();
            if (random() % 2 == 0) {
                text[at] = static_cast<char>(random() % 256);
            } else {
                text.erase(at, 1 + random() % 8);
            }
            if (text.empty()) text = "x";
        }
        const auto read = read_text(text, "vm.qvmconf", {});
        if (!read) {
            EXPECT_THAT(read.error().message(), HasSubstr("vm.qvmconf")) << "round " << round;
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm

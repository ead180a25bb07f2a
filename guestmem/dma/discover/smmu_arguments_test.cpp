// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_arguments.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;

/// One word of a command line, of which a reader is asked.
struct Word {
    explicit Word(std::string_view text) {
        piece = {text,
                 {.source = sources.add({.name = "w", .text = std::string{text}}), .line = 1, .column = 1}};
    }
    [[nodiscard]] std::string findings() const {
        return sources.has_findings() ? sources.to_error().message() : std::string{};
    }
    SmmuSources sources = {};
    SmmuPiece piece = {};
};

std::string device_or_finding(std::string_view text) {
    Word word{text};
    const auto device = read_device(word.piece, word.sources);
    EXPECT_EQ(device.has_value(), !word.sources.has_findings()) << text;
    return device ? to_string(*device) : word.findings();
}

TEST(SmmuArguments, NumbersOfAPciAddressAreDecimal) {
    EXPECT_EQ(device_or_finding("pci:0:18.0"), "0000:00:12.0");
    EXPECT_EQ(device_or_finding("pci:255:31.7"), "0000:ff:1f.7");
    EXPECT_EQ(device_or_finding("pci:65535:16:2.1"), "ffff:10:02.1");
    EXPECT_EQ(device_or_finding("mem:fe000000"), "mem:0xfe000000");
}

TEST(SmmuArguments, AnAddressOfLspciIsToldInDecimalNumbers) {
    EXPECT_THAT(device_or_finding("pci:00:1f.3"), HasSubstr("lspci's 0000:00:1f.3 is pci:0:31.3 here"));
    EXPECT_THAT(device_or_finding("0000:0a:02.0"), HasSubstr("lspci's 0000:0a:02.0 is pci:10:2.0 here"));
}

TEST(SmmuArguments, EachPartOfAPciAddressHasItsLimit) {
    EXPECT_THAT(device_or_finding("pci:256:0.0"), HasSubstr("bus 256: at most 255"));
    EXPECT_THAT(device_or_finding("pci:0:32.0"), HasSubstr("device 32: at most 31"));
    EXPECT_THAT(device_or_finding("pci:0:0.8"), HasSubstr("function 8: at most 7"));
    EXPECT_THAT(device_or_finding("pci:65536:0:0.0"), HasSubstr("segment 65536: at most 65535"));
}

TEST(SmmuArguments, WhatIsNoDeviceIsToldSo) {
    for (const char* text : {"pci:", "pci:0", "pci:0:0", "pci:0:0.0.0", "pci:1:2:3:4.0", "pci::0.0",
                             "mem:", "mem:0", "mem:xyz", "mmio:1000", "eth0", "pci:0:-1.0"})
        EXPECT_THAT(device_or_finding(text), HasSubstr("error:")) << text;
}

TEST(SmmuArguments, ADeviceIsWrittenAsItIsRead) {
    for (const char* text : {"pci:0:18.0", "pci:1:0:18.0", "mem:0xfe000000"}) {
        Word word{text};
        const auto device = read_device(word.piece, word.sources);
        ASSERT_TRUE(device);
        EXPECT_EQ(to_smmu_device(*device), text);
    }
}

TEST(SmmuArguments, ARangeStartsHexadecimalAndHasADecimalLength) {
    Word word{"80000000,16M"};
    const auto range = read_range(word.piece, word.sources);
    ASSERT_TRUE(range) << word.findings();
    EXPECT_EQ(range->first, 0x80000000U);
    EXPECT_EQ(range->last, 0x80ffffffU);
    EXPECT_TRUE(range->can_read && range->can_write && !range->can_execute);
}

TEST(SmmuArguments, PermissionsAreLettersOnceEach) {
    Word word{"0,1,rx"};
    const auto range = read_range(word.piece, word.sources);
    ASSERT_TRUE(range);
    EXPECT_TRUE(range->can_read && !range->can_write && range->can_execute);
    for (const char* text : {"0,1,", "0,1,rr", "0,1,x", "0,1,q", "0,1,R"}) {
        Word bad{text};
        EXPECT_FALSE(read_range(bad.piece, bad.sources)) << text;
        EXPECT_TRUE(bad.sources.has_findings()) << text;
    }
}

TEST(SmmuArguments, ARangeEndsAtTheLastAddressAndNotBehindIt) {
    Word last{"ffffffffffffffff,1"};
    ASSERT_TRUE(read_range(last.piece, last.sources));
    for (const char* text : {"ffffffffffffffff,2", "0,0", "0", "0,1,r,w", "1,ffff", ",1", "1,"}) {
        Word bad{text};
        EXPECT_FALSE(read_range(bad.piece, bad.sources)) << text;
        EXPECT_TRUE(bad.sources.has_findings()) << text;
    }
}

TEST(SmmuArguments, ANameBeginsWithALetterAndIsBounded) {
    const auto is_name = [](const std::string& text) {
        Word word{text};
        return is_smmu_name(word.piece, "a unit", word.sources);
    };
    EXPECT_TRUE(is_name("vtd@fed90000"));
    EXPECT_TRUE(is_name("amdvi@0000:00:00.2"));
    EXPECT_TRUE(is_name("_x"));
    EXPECT_TRUE(is_name(std::string(max_smmu_name_bytes, 'x')));
    EXPECT_FALSE(is_name(std::string(max_smmu_name_bytes + 1, 'x')));
    EXPECT_FALSE(is_name(""));
    EXPECT_FALSE(is_name("1x"));
    EXPECT_FALSE(is_name("a,b"));
}

}  // namespace
}  // namespace guestmem::dma

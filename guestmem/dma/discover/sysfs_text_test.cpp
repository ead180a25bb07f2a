// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/sysfs_text.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace guestmem::dma {
namespace {

TEST(SysfsText, HexadecimalNumbersAreReadWholeOrNotAtAll) {
    EXPECT_EQ(parse_hexadecimal("fed90000\n"), 0xfed90000U);
    EXPECT_EQ(parse_hexadecimal(" 0xFFffFFffFFffFFff "), ~std::uint64_t{0});
    for (const char* text : {"", "\n", "0x", "1ffffffffffffffff", "12 34", "-1", "xyz", "0x12g"})
        EXPECT_EQ(parse_hexadecimal(text), std::nullopt) << text;
}

TEST(SysfsText, NamesComeWithoutControlCharactersAndBounded) {
    EXPECT_EQ(plain_line("  DMA-FQ\nsecond"), "DMA-FQ");
    EXPECT_EQ(plain_line("\033[2J"), "?[2J");
    EXPECT_EQ(plain_line(std::string(300, 'x')).size(), 255U);
    EXPECT_EQ(last_part("../../../bus/pci/drivers/e1000e"), "e1000e");
    EXPECT_EQ(last_part("e1000e"), "e1000e");
    EXPECT_EQ(last_part("a/b/"), "b");
    EXPECT_EQ(last_part("a/\033b"), "?b");
    EXPECT_EQ(last_part(""), "");
}

TEST(SysfsText, DeviceTreePathsBeginBehindTheTreesBase) {
    EXPECT_EQ(device_tree_path("../../../firmware/devicetree/base/soc/dma@9000000"), "/soc/dma@9000000");
    EXPECT_EQ(device_tree_path("firmware/devicetree/base"), "/");
    EXPECT_EQ(device_tree_path("firmware/devicetree/basement"), "");
    EXPECT_EQ(device_tree_path("../elsewhere"), "");
}

TEST(SysfsText, ReservedRegionsAreLinesOfTwoAddressesAndAKind) {
    const auto regions = parse_reserved_regions(
        "0x0000000000000000 0x0000000000ffffff direct-relaxable\n"
        "0x00000000fee00000 0x00000000feefffff msi\n\n"
        "0x000000fd00000000 0xffffffffffffffff reserved");
    ASSERT_TRUE(regions);
    ASSERT_EQ(regions->size(), 3U);
    EXPECT_EQ((*regions)[0].kind, ReservedKind::direct_relaxable);
    EXPECT_EQ((*regions)[1].first, 0xfee00000U);
    EXPECT_EQ((*regions)[1].last, 0xfeefffffU);
    EXPECT_EQ((*regions)[1].kind, ReservedKind::msi);
    EXPECT_EQ((*regions)[2].last, ~std::uint64_t{0});
    EXPECT_TRUE(parse_reserved_regions("")->empty());
    for (const char* text : {"0x0 0x1", "0x0 0x1 other", "0x2 0x1 msi", "x 0x1 msi", "0x0 0x1 msi\nrubbish"})
        EXPECT_FALSE(parse_reserved_regions(text)) << text;
}

TEST(SysfsText, TheFirstRegionOfMemoryHasAnAddress) {
    const std::string empty = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    const std::string port = "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n";
    const std::string memory = "0x0000003800000000 0x00000038000fffff 0x000000000014220c\n";
    EXPECT_EQ(first_memory_region(empty + port + memory), 0x38'0000'0000U);
    EXPECT_EQ(first_memory_region(empty + port), std::nullopt);
    EXPECT_EQ(first_memory_region("rubbish\n"), std::nullopt);
}

TEST(SysfsText, ComplaintsOfOneKindAreOneWithTheirNumber) {
    ComplaintBook book;
    for (const char* place : {"a", "b", "c"}) book.note("kind", std::string{"text of "} + place, place);
    book.note("other", "alone", "d\n");
    const auto complaints = book.complaints();
    ASSERT_EQ(complaints.size(), 2U);
    EXPECT_EQ(complaints[0].text, "text of a (and 2 more)");
    EXPECT_EQ(complaints[0].origin.place, "a");
    EXPECT_EQ(complaints[1].text, "alone");
    EXPECT_EQ(complaints[1].origin.place, "d?");
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/boot_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::counted_bytes;
using ::guestmem::testing::TestMap;
using ::testing::HasSubstr;

TEST(BootFile, RefusesARangeThatLeavesTheFileByOneByte) {
    const auto bytes = counted_bytes(16);
    const BootFile file{"image", bytes};
    std::vector<std::byte> to(8);
    EXPECT_TRUE(file.read(8, to));
    EXPECT_EQ(to, counted_bytes(8, 8));
    const auto refused = file.read(9, to);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::corrupt);
    EXPECT_THAT(refused.error().message(), HasSubstr("image: 8 bytes are expected at offset 0x9"));
    EXPECT_FALSE(file.read(~std::uint64_t{0}, to));
    EXPECT_FALSE(file.read(17, std::span<std::byte>{}));
    EXPECT_TRUE(file.read(16, std::span<std::byte>{}));
}

TEST(BootFile, ReadsTheHeadOfAFileThatIsShorterThanAsked) {
    const auto bytes = counted_bytes(5);
    EXPECT_EQ(BootFile("image", bytes).read_head(64).value(), bytes);
}

TEST(BootFile, AFunctionReadsStraightIntoGuestMemoryAcrossRegions) {
    TestMap map;
    map.ram(0x1000, 16).ram(0x1010, 16);
    map.start_tracking();
    MapView view{*map.map()};
    const auto bytes = counted_bytes(32);
    std::vector<std::byte*> places;
    const BootFile file{"image", bytes.size(), [&](std::uint64_t offset, std::span<std::byte> to) {
                            places.push_back(to.data());
                            std::memcpy(to.data(), bytes.data() + offset, to.size());
                            return Result<void>{};
                        }};
    ASSERT_TRUE(file.copy_to(view, GuestAddress{0x1004}, 3, 20));
    EXPECT_THAT(places, ::testing::ElementsAre(map.bytes(0).data() + 4, map.bytes(1).data()));
    std::vector<std::byte> found(20);
    ASSERT_TRUE(view.read_bytes(GuestAddress{0x1004}, found));
    EXPECT_EQ(found, counted_bytes(20, 3));
    EXPECT_FALSE(map.take_dirty(1).empty());
}

TEST(BootFile, CallsNoFunctionWhenThePlaceIsNotAllMemory) {
    TestMap map;
    map.ram(0x1000, 16);
    MapView view{*map.map()};
    bool is_called = false;
    const BootFile file{"image", 100, [&](std::uint64_t, std::span<std::byte>) {
                            is_called = true;
                            return Result<void>{};
                        }};
    EXPECT_FALSE(file.copy_to(view, GuestAddress{0x1000}, 0, 17));
    EXPECT_FALSE(file.copy_to(view, GuestAddress::max(), 0, 17));
    EXPECT_FALSE(is_called);
}

TEST(BootFile, AnErrorOfTheFunctionNamesTheFile) {
    TestMap map;
    map.ram(0x1000, 16);
    MapView view{*map.map()};
    const BootFile file{"image", 100, [&](std::uint64_t, std::span<std::byte>) -> Result<void> {
                            return Error{Errc::io, "the disk is gone"};
                        }};
    const auto failed = file.copy_to(view, GuestAddress{0x1000}, 0, 16);
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().message(), "image: the disk is gone");
}

}  // namespace
}  // namespace guestmem::vmm

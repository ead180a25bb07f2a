// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/config_space.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace guestmem::pci {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr Identity ivshmem{.vendor = 0x1af4,
                           .device = 0x1110,
                           .revision = 1,
                           .class_code = 0x0500,
                           .interface = 2,
                           .subsystem_vendor = 0x1234,
                           .subsystem = 0x5678};

CapabilityImage capability(std::uint8_t id, std::size_t size_bytes) {
    return {.id = id,
            .bytes = std::vector<std::byte>(size_bytes, std::byte{0x5a}),
            .writable = std::vector<std::byte>(size_bytes)};
}

TEST(ConfigSpace, HasTheHeaderOfItsIdentity) {
    const ConfigSpace space{ivshmem};
    EXPECT_EQ(space.get<std::uint32_t>(0x00), 0x1110'1af4U);
    EXPECT_EQ(space.get<std::uint32_t>(0x08), 0x0500'0201U);
    EXPECT_EQ(space.get<std::uint32_t>(0x2c), 0x5678'1234U);
    EXPECT_EQ(space.get<std::uint32_t>(0x0c), 0U) << "a type 0 header of a device with one function";
    EXPECT_EQ(space.get<std::uint32_t>(0x04), 0U);
    EXPECT_EQ(space.get<std::uint8_t>(0x34), 0U);
}

TEST(ConfigSpace, TakesTheBitsThatMayBeWrittenAndNoOthers) {
    ConfigSpace space{ivshmem};
    space.set(0x40, std::uint32_t{0x8000'0001});
    space.allow_write(0x40, std::uint32_t{0x00ff'ff00});
    const std::array<std::byte, 4> ones{std::byte{0xff}, std::byte{0xff}, std::byte{0xff}, std::byte{0xff}};
    space.write(0x40, ones);
    EXPECT_EQ(space.get<std::uint32_t>(0x40), 0x80ff'ff01U);
    space.write(0x41, std::array<std::byte, 1>{});
    EXPECT_EQ(space.get<std::uint32_t>(0x40), 0x80ff'0001U);
}

TEST(ConfigSpace, CapabilitiesAreAListInTheOrderInWhichTheyWereAdded) {
    ConfigSpace space{ivshmem};
    EXPECT_EQ(space.add_capability(capability(5, 0x0e)).value(), 0x40);
    EXPECT_EQ(space.add_capability(capability(0x11, 0x0c)).value(), 0x50);
    EXPECT_EQ(space.get<std::uint16_t>(status_register) & status_capabilities, status_capabilities);
    EXPECT_EQ(space.get<std::uint8_t>(capabilities_register), 0x40);
    EXPECT_EQ(space.get<std::uint16_t>(0x40), 0x5005);
    EXPECT_EQ(space.get<std::uint16_t>(0x50), 0x0011);
    EXPECT_EQ(space.get<std::uint16_t>(0x52), 0x5a5a);
}

TEST(ConfigSpace, ACapabilityMayEndAtTheLastByteAndNoneBehindIt) {
    ConfigSpace space{ivshmem};
    EXPECT_TRUE(space.add_capability(capability(9, 0xbc)));
    const auto refused = space.add_capability(capability(9, 5));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::exhausted);
    EXPECT_THAT(refused.error().message(), HasSubstr("4 are free"));
    EXPECT_EQ(space.get<std::uint8_t>(0x41), 0) << "what is refused is not in the list";
    EXPECT_TRUE(space.add_capability(capability(9, 4)));
    EXPECT_FALSE(space.add_capability(capability(9, 2)));
}

TEST(ConfigSpace, EveryOffsetAndLengthAgreesWithBytes) {
    std::random_device device;
    const auto seed = device();
    SCOPED_TRACE(seed);
    std::mt19937_64 random{seed};
    ConfigSpace space{ivshmem};
    std::array<std::uint8_t, 256> bytes{};
    std::array<std::uint8_t, 256> masks{};
    for (std::size_t i = 0x40; i < 256; ++i) {
        masks[i] = static_cast<std::uint8_t>(random());
        space.allow_write(i, masks[i]);
    }
    for (std::size_t i = 0; i < 256; ++i) bytes[i] = space.get<std::uint8_t>(i);
    for (std::uint64_t offset = 0; offset < 300; ++offset) {
        for (std::size_t size = 0; size <= 9; ++size) {
            std::vector<std::byte> data(size);
            for (std::byte& byte : data) byte = static_cast<std::byte>(random());
            space.write(offset, data);
            for (std::size_t i = 0; i < size && offset + i < 256; ++i) {
                std::uint8_t& byte = bytes[offset + i];
                byte = static_cast<std::uint8_t>((byte & ~masks[offset + i]) |
                                                 (static_cast<std::uint8_t>(data[i]) & masks[offset + i]));
            }
            space.read(offset, data);
            for (std::size_t i = 0; i < size; ++i)
                ASSERT_EQ(static_cast<std::uint8_t>(data[i]), offset + i < 256 ? bytes[offset + i] : 0xff);
        }
    }
    std::vector<std::byte> far(8);
    space.read(~std::uint64_t{0}, far);
    EXPECT_THAT(far, Each(std::byte{0xff}));
    space.write(~std::uint64_t{0} - 3, far);
    EXPECT_EQ(space.get<std::uint32_t>(0), 0x1110'1af4U);
}

}  // namespace
}  // namespace guestmem::pci

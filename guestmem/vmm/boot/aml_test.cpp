// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/aml.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace guestmem::vmm {
namespace {

using ::testing::ElementsAre;

std::vector<unsigned> numbers(const Aml& aml) {
    std::vector<unsigned> found;
    for (const std::byte byte : aml.bytes()) found.push_back(std::to_integer<unsigned>(byte));
    return found;
}

TEST(Aml, IntegersTakeTheShortestForm) {
    Aml aml;
    for (const std::uint64_t value : {0ull, 1ull, 2ull, 0xffull, 0x100ull, 0x10000ull, 0x100000000ull})
        aml.integer(value);
    EXPECT_THAT(numbers(aml), ElementsAre(0x00, 0x01, 0x0a, 2, 0x0a, 0xff, 0x0b, 0, 1, 0x0c, 0, 0, 1, 0,  //
                                          0x0e, 0, 0, 0, 0, 1, 0, 0, 0));
}

TEST(Aml, NamesAreFilledUpAndPathsHaveTheirPrefixes) {
    Aml aml;
    aml.named("\\_S5").integer(0);
    aml.named("_SB.PCI0").integer(0);
    aml.named("A.B.C").integer(0);
    EXPECT_THAT(numbers(aml),
                ElementsAre(8, '\\', '_', 'S', '5', '_', 0,                      //
                            8, 0x2e, '_', 'S', 'B', '_', 'P', 'C', 'I', '0', 0,  //
                            8, 0x2f, 3, 'A', '_', '_', '_', 'B', '_', '_', '_', 'C', '_', '_', '_', 0));
}

TEST(Aml, AnEisaIdIsTheNumberThatTheCompilerMakes) {
    Aml aml;
    aml.eisa_id("PNP0A08");
    EXPECT_THAT(numbers(aml), ElementsAre(0x0c, 0x41, 0xd0, 0x0a, 0x08));
}

/// The length that the object of `size` content bytes says, and how many bytes say it.
std::pair<std::size_t, std::size_t> length_of_buffer(std::size_t size) {
    Aml aml;
    aml.buffer(std::vector<std::byte>(size));
    const std::vector<unsigned> found = numbers(aml);
    const std::size_t more = found[1] >> 6;
    std::size_t length = more == 0 ? found[1] & 0x3f : found[1] & 0xf;
    for (std::size_t i = 0; i < more; ++i) length |= std::size_t{found[2 + i]} << (4 + 8 * i);
    EXPECT_EQ(length, found.size() - 1) << "of " << size;
    return {length, more + 1};
}

TEST(Aml, ALengthCountsItselfAtEveryBorder) {
    // A buffer of 2 to 255 bytes has 2 bytes for its size, one up to 65535 has 3, a larger one 5.
    EXPECT_EQ(length_of_buffer(60), std::pair(std::size_t{0x3f}, std::size_t{1}));
    EXPECT_EQ(length_of_buffer(61), std::pair(std::size_t{0x41}, std::size_t{2}));
    EXPECT_EQ(length_of_buffer(0xfff - 5), std::pair(std::size_t{0xfff}, std::size_t{2}));
    EXPECT_EQ(length_of_buffer(0xfff - 4), std::pair(std::size_t{0x1001}, std::size_t{3}));
    EXPECT_EQ(length_of_buffer(0xfffff - 8), std::pair(std::size_t{0xfffff}, std::size_t{3}));
    EXPECT_EQ(length_of_buffer(0xfffff - 7), std::pair(std::size_t{0x100001}, std::size_t{4}));
}

TEST(Aml, WhatContainsOthersHasTheLengthOfAllOfThem) {
    Aml aml;
    aml.scope("\\_SB", [&] {
        aml.device("D", [&] {
            aml.package(2, [&] {
                aml.integer(0);
                aml.integer(1);
            });
        });
    });
    EXPECT_THAT(numbers(aml), ElementsAre(0x10, 18, '\\', '_', 'S', 'B', '_',  //
                                          0x5b, 0x82, 10, 'D', '_', '_', '_',  //
                                          0x12, 4, 2, 0, 1));
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/boot_space.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <vector>

namespace guestmem::vmm {
namespace {

using ::testing::HasSubstr;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

TEST(BootSpace, RamRangesThatFollowEachOtherTakeOneClaim) {
    const std::vector ram{range(0x10000, 0x1000), range(0xf000, 0x1000)};
    BootSpace space{ram};
    EXPECT_TRUE(space.claim("kernel", range(0xf800, 0x1000)));
}

TEST(BootSpace, NamesBothClaimsThatOverlap) {
    const std::vector ram{range(0, 0x10000)};
    BootSpace space{ram};
    ASSERT_TRUE(space.claim("kernel", range(0x1000, 0x1000)));
    const auto refused = space.claim("data", range(0x1fff, 1));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().message(), "data: 0x1fff to 0x1fff overlaps kernel, 0x1000 to 0x1fff");
    EXPECT_TRUE(space.claim("data", range(0x2000, 1)));
}

TEST(BootSpace, RefusesWhatIsOneByteOutsideOfRam) {
    const std::vector ram{range(0x1000, 0x1000)};
    BootSpace space{ram};
    EXPECT_FALSE(space.claim("low", range(0xfff, 2)));
    const auto refused = space.claim("high", range(0x1fff, 2));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("RAM is 0x1000 to 0x1fff"));
    EXPECT_TRUE(space.claims().empty());
}

TEST(BootSpace, ClaimsAsHighAsItFitsAtAPage) {
    const std::vector ram{range(0, 0x10000), range(0x20000, 0x2000)};
    BootSpace space{ram};
    EXPECT_EQ(space.claim_high("a", 0x1001, GuestAddress{~std::uint64_t{0}}).value(), range(0x20000, 0x1001));
    EXPECT_EQ(space.claim_high("b", 0x1001, GuestAddress{~std::uint64_t{0}}).value(), range(0xe000, 0x1001));
    EXPECT_EQ(space.claim_high("c", 1, GuestAddress{0x4fff}).value(), range(0x4000, 1));
    EXPECT_FALSE(space.claim_high("d", 0x10000, GuestAddress{0xffff}));
    EXPECT_FALSE(space.claim_high("e", 0, GuestAddress{0xffff}));
    EXPECT_FALSE(space.claim_high("f", ~std::uint64_t{0}, GuestAddress{0xffff}));
}

TEST(BootSpace, ClaimsAsLowAsItFitsAtTheAlignment) {
    const std::vector ram{range(0, 0x100000)};
    BootSpace space{ram};
    space.block("tables", range(0x10000, 1));
    EXPECT_EQ(space.claim_low("a", 0x8000, GuestAddress{0x9000}, 0x10000).value(), range(0x20000, 0x8000));
    EXPECT_FALSE(space.claim_low("b", 0x8000, GuestAddress{0}, 3));
    EXPECT_FALSE(space.claim_low("c", 0x200000, GuestAddress{0}, 0x1000));
}

TEST(BootSpace, FindsARoomExactlyWhenThereIsOne) {
    std::mt19937_64 random{7};
    for (int round = 0; round < 300; ++round) {
        constexpr std::uint64_t pages = 16;
        const std::vector ram{range(0, pages * 4096)};
        BootSpace space{ram};
        std::vector<bool> is_taken(pages);
        for (std::uint64_t i = 0; i < pages; ++i) {
            is_taken[i] = random() % 3 == 0;
            if (is_taken[i]) space.block("taken", range(i * 4096, 4096));
        }
        const std::uint64_t wanted = 1 + random() % 4;
        std::optional<std::uint64_t> highest;
        for (std::uint64_t first = 0; first + wanted <= pages; ++first) {
            bool is_free = true;
            for (std::uint64_t i = first; i < first + wanted; ++i) is_free = is_free && !is_taken[i];
            if (is_free) highest = first;
        }
        const auto found = space.claim_high("x", wanted * 4096, GuestAddress::max());
        ASSERT_EQ(found.has_value(), highest.has_value()) << "round " << round;
        if (!found) continue;
        ASSERT_EQ(found->base().value(), *highest * 4096) << "round " << round;
    }
}

}  // namespace
}  // namespace guestmem::vmm

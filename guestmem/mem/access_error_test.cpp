// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/access_error.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

#include "guestmem/base/result.hpp"

namespace guestmem {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t max_count = AccessError::max_count_done;

static_assert(sizeof(AccessError) <= 16);
static_assert(std::is_trivially_copyable_v<AccessError>);
static_assert(sizeof(AccessResult<std::uint64_t>) <= 24);

constexpr AccessReason all_reasons[] = {
    AccessReason::hole,
    AccessReason::out_of_range,
    AccessReason::misaligned,
    AccessReason::crosses_border,
    AccessReason::overflow,
    AccessReason::read_only,
    AccessReason::device,
    AccessReason::fault,
    AccessReason::untranslated,
    AccessReason::denied,
    AccessReason::translator_failed,
    AccessReason::unterminated,
    AccessReason::list_full,
};

TEST(AccessError, KeepsWhatItWasMadeOf) {
    for (const AccessReason reason : all_reasons) {
        for (const Access access : {Access::read, Access::write}) {
            for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1} << 63, last_address}) {
                for (const std::uint64_t count :
                     {std::uint64_t{0}, std::uint64_t{1}, max_count - 1, max_count}) {
                    const AccessError error{reason, access, address, count};
                    EXPECT_EQ(error.reason(), reason);
                    EXPECT_EQ(error.access(), access);
                    EXPECT_EQ(error.address(), address);
                    EXPECT_EQ(error.count_done(), count);
                }
            }
        }
    }
}

TEST(AccessError, SaysMoreBytesThanItCanKeepAsTheMostItCan) {
    for (const std::uint64_t count : {max_count + 1, std::uint64_t{1} << 63, last_address}) {
        const AccessError error{AccessReason::fault, Access::write, 7, count};
        EXPECT_EQ(error.count_done(), max_count);
        EXPECT_EQ(error.reason(), AccessReason::fault);
        EXPECT_EQ(error.access(), Access::write);
    }
}

TEST(AccessError, AddsTheBytesDoneBefore) {
    const AccessError error{AccessReason::hole, Access::write, 0x1005, 5};
    EXPECT_EQ(error.after(0), error);
    EXPECT_EQ(error.after(11), (AccessError{AccessReason::hole, Access::write, 0x1005, 16}));
    EXPECT_EQ(error.after(max_count).count_done(), max_count);
    EXPECT_EQ(error.after(last_address).count_done(), max_count);
    EXPECT_EQ(error.after(last_address).after(last_address).reason(), AccessReason::hole);
}

TEST(AccessError, ComparesAllItsParts) {
    const AccessError error{AccessReason::hole, Access::read, 16, 2};
    EXPECT_NE(error, (AccessError{AccessReason::device, Access::read, 16, 2}));
    EXPECT_NE(error, (AccessError{AccessReason::hole, Access::write, 16, 2}));
    EXPECT_NE(error, (AccessError{AccessReason::hole, Access::read, 17, 2}));
    EXPECT_NE(error, (AccessError{AccessReason::hole, Access::read, 16, 3}));
    EXPECT_EQ(error, (AccessError{AccessReason::hole, Access::read, 16, 2}));
}

TEST(AccessError, HasANameAndASentenceOfItsOwnForEachReason) {
    std::set<std::string> names{std::string{to_string(AccessReason::none)}};
    std::set<std::string> sentences;
    for (const AccessReason reason : all_reasons) {
        EXPECT_TRUE(names.emplace(to_string(reason)).second) << to_string(reason);
        const AccessError error{reason, Access::read, 0, 0};
        EXPECT_TRUE(sentences.emplace(error.to_error("x").message()).second) << to_string(reason);
    }
}

TEST(AccessError, TellsWhatWhereWhyAndHowMuch) {
    const Error read = AccessError{AccessReason::hole, Access::read, 0xdeadb000, 42}.to_error("descriptor 3");
    EXPECT_THAT(read.message(), HasSubstr("descriptor 3: "));
    EXPECT_THAT(read.message(), HasSubstr("read at address 0xdeadb000"));
    EXPECT_THAT(read.message(), HasSubstr("hole"));
    EXPECT_THAT(read.message(), HasSubstr("42 bytes done"));
    EXPECT_EQ(read.code(), Errc::out_of_range);

    const Error write = AccessError{AccessReason::read_only, Access::write, last_address, 0}.to_error("ring");
    EXPECT_THAT(write.message(), HasSubstr("write at address 0xffffffffffffffff"));
    EXPECT_EQ(write.code(), Errc::permission_denied);
    EXPECT_EQ((AccessError{AccessReason::fault, Access::read, 0, 0}.to_error("x").code()), Errc::io);
}

TEST(AccessResult, HoldsAValueOrAnError) {
    const AccessResult<int> good = 7;
    ASSERT_TRUE(good);
    EXPECT_EQ(*good, 7);
    EXPECT_EQ(good.value_or(9), 7);

    const AccessResult<int> bad = AccessError{AccessReason::device, Access::read, 1, 0};
    ASSERT_FALSE(bad);
    EXPECT_FALSE(bad.has_value());
    EXPECT_EQ(bad.error().reason(), AccessReason::device);
    EXPECT_EQ(bad.value_or(9), 9);

    EXPECT_TRUE(AccessResult<void>{}.has_value());
    EXPECT_EQ((AccessResult<void>{AccessError{AccessReason::hole, Access::read, 1, 0}}.error().address()),
              1U);
}

TEST(AccessResult, GivesItsValueByMove) {
    AccessResult<std::unique_ptr<int>> result = std::make_unique<int>(5);
    EXPECT_EQ(**result, 5);
    const std::unique_ptr<int> taken = std::move(result).value();
    EXPECT_EQ(*taken, 5);

    AccessResult<std::string> text = std::string{"text"};
    EXPECT_EQ(text->size(), 4U);
    text->push_back('!');
    EXPECT_EQ(*std::move(text), "text!");
}

AccessResult<int> half_of(AccessResult<int> number) {
    const int value = GM_TRY(number);
    return value / 2;
}
AccessResult<void> check_even(const AccessResult<void>& before, AccessResult<int> number) {
    GM_TRY(before);
    if (GM_TRY(number) % 2 != 0) return AccessError{AccessReason::misaligned, Access::read, 0, 0};
    return {};
}

TEST(AccessResult, IsHandedOnByTry) {
    const AccessError error{AccessReason::overflow, Access::write, 3, 1};
    EXPECT_EQ(*half_of(8), 4);
    EXPECT_EQ(half_of(error).error(), error);
    EXPECT_TRUE(check_even({}, 8));
    EXPECT_EQ(check_even({}, 7).error().reason(), AccessReason::misaligned);
    EXPECT_EQ(check_even(error, 8).error(), error);
}

TEST(AccessResultDeathTest, AbortsWhenAskedForWhatItHasNot) {
    const AccessError error{AccessReason::hole, Access::read, 0, 0};
    EXPECT_DEATH(static_cast<void>(AccessResult<int>{error}.value()), "has_value");
    EXPECT_DEATH(static_cast<void>(AccessResult<int>{1}.error()), "has_value");
    EXPECT_DEATH(AccessResult<void>{error}.value(), "has_value");
    EXPECT_DEATH(static_cast<void>(AccessResult<void>{}.error()), "has_value");
}

}  // namespace
}  // namespace guestmem

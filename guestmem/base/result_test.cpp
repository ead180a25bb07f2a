// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/result.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace guestmem {
namespace {

Error some_error() { return Error{Errc::busy, 16, "taken"}; }

Result<int> half_of(int number) {
    if (number % 2 != 0) return Error{Errc::invalid_argument, "odd"};
    return number / 2;
}

Result<int> quarter_of(int number) {
    const int half = GM_TRY(half_of(number));
    return GM_TRY_CONTEXT(half_of(half), "second half");
}

Result<void> check_even(int number) {
    GM_TRY(half_of(number));
    return {};
}

Result<std::string> name_of_even(int number) {
    GM_TRY(check_even(number));
    return "even";
}

Result<std::unique_ptr<int>> box(int number) { return std::make_unique<int>(number); }

TEST(Result, HoldsAValueOrAnError) {
    const Result<int> good = 7;
    const Result<int> bad = some_error();

    EXPECT_TRUE(good.has_value());
    EXPECT_EQ(*good, 7);
    EXPECT_FALSE(bad.has_value());
    EXPECT_EQ(bad.error().message(), "taken");
}

TEST(Result, OfNothingIsGoodByDefault) {
    const Result<void> good;
    const Result<void> bad = some_error();

    EXPECT_TRUE(good);
    EXPECT_FALSE(bad);
    EXPECT_EQ(bad.error().code(), Errc::busy);
}

TEST(Result, ConvertsFromWhatItsValueIsMadeOf) {
    const Result<std::string> text = "letters";
    const Result<std::optional<int>> nothing = std::optional<int>{};

    EXPECT_EQ(text->size(), 7U);
    EXPECT_TRUE(nothing);
    EXPECT_FALSE(nothing->has_value());
}

TEST(Result, HandsAMoveOnlyValueOut) {
    auto boxed = box(5);

    const std::unique_ptr<int> out = std::move(*boxed);

    EXPECT_EQ(*out, 5);
}

TEST(Result, OfABoolIsTrueWhenItHasAValue) {
    const Result<bool> said_no = false;

    EXPECT_TRUE(said_no);
    EXPECT_FALSE(*said_no);
}

TEST(GmTry, YieldsTheValue) {
    EXPECT_EQ(*quarter_of(12), 3);
    EXPECT_EQ(*name_of_even(2), "even");
}

TEST(GmTry, ReturnsTheErrorOfTheFirstFailure) {
    EXPECT_EQ(quarter_of(3).error().message(), "odd");
    EXPECT_EQ(name_of_even(1).error().code(), Errc::invalid_argument);
}

TEST(GmTry, WithContextPutsItInFront) { EXPECT_EQ(quarter_of(6).error().message(), "second half: odd"); }

TEST(GmTry, EvaluatesItsExpressionOnce) {
    int count_calls = 0;
    const auto count = [&]() -> Result<int> { return ++count_calls; };
    const auto ask = [&]() -> Result<int> { return GM_TRY(count()); };

    EXPECT_EQ(*ask(), 1);
    EXPECT_EQ(count_calls, 1);
}

TEST(GmTry, PassesAMoveOnlyValueOn) {
    const auto rebox = []() -> Result<std::unique_ptr<int>> {
        std::unique_ptr<int> taken = GM_TRY(box(9));
        return taken;
    };

    EXPECT_EQ(**rebox(), 9);
}

TEST(ResultDeathTest, AskingAFailedOneForItsValueAborts) {
    const Result<int> bad = some_error();
    const Result<void> nothing = some_error();

    EXPECT_DEATH(static_cast<void>(*bad), "result.hpp:[0-9]+: check failed: has_value");
    EXPECT_DEATH(nothing.value(), "check failed: has_value");
}

TEST(ResultDeathTest, AskingAGoodOneForItsErrorAborts) {
    const Result<int> good = 1;
    const Result<void> nothing;

    EXPECT_DEATH(static_cast<void>(good.error()), "check failed: !has_value");
    EXPECT_DEATH(static_cast<void>(nothing.error()), "check failed: !has_value");
}

}  // namespace
}  // namespace guestmem

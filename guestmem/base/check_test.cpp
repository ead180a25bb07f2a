// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/check.hpp"

#include <gtest/gtest.h>

#include <csignal>

namespace guestmem {
namespace {

TEST(GmCheck, LetsAGoodConditionPassAndEvaluatesItOnce) {
    int count = 0;

    // NOLINTNEXTLINE(bugprone-assert-side-effect): that it happens, once, is what is tested
    GM_CHECK(++count > 0);

    EXPECT_EQ(count, 1);
}

TEST(GmCheckDeathTest, SaysConditionAndPlaceAndAborts) {
    EXPECT_EXIT(GM_CHECK(1 + 1 == 3), ::testing::KilledBySignal(SIGABRT),
                "check_test.cpp:[0-9]+: check failed: 1 \\+ 1 == 3");
}

}  // namespace
}  // namespace guestmem

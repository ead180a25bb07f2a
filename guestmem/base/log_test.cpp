// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ListeningLog final : public Log {
public:
    void write(LogLevel level, std::string_view text) override {
        lines.emplace_back(text);
        levels.push_back(level);
    }
    std::vector<std::string> lines;
    std::vector<LogLevel> levels;
};

TEST(LogLimiter, PassesABurstWhole) {
    ListeningLog log;
    LogLimiter limiter{log, 3};

    for (const char* line : {"a", "b", "c"}) limiter.write(LogLevel::info, line, 10);

    EXPECT_THAT(log.lines, ElementsAre("a", "b", "c"));
    EXPECT_THAT(log.levels, ElementsAre(LogLevel::info, LogLevel::info, LogLevel::info));
}

TEST(LogLimiter, LeavesOutOnePastTheBurst) {
    ListeningLog log;
    LogLimiter limiter{log, 2};

    for (const char* line : {"a", "b", "c"}) limiter.write(LogLevel::info, line, 999);

    EXPECT_THAT(log.lines, ElementsAre("a", "b"));
}

TEST(LogLimiter, SaysHowManyWereLeftOutWithTheNextSecond) {
    ListeningLog log;
    LogLimiter limiter{log, 1};

    for (int i = 0; i < 5; ++i) limiter.write(LogLevel::error, "again", 1000);
    limiter.write(LogLevel::info, "calm", 2000);

    EXPECT_THAT(log.lines, ElementsAre("again", "4 more lines were left out", "calm"));
    EXPECT_THAT(log.levels, ElementsAre(LogLevel::error, LogLevel::warning, LogLevel::info));
}

TEST(LogLimiter, SaysItOnce) {
    ListeningLog log;
    LogLimiter limiter{log, 1};

    limiter.write(LogLevel::info, "a", 0);
    limiter.write(LogLevel::info, "left out", 0);
    limiter.write(LogLevel::info, "b", 1000);
    limiter.write(LogLevel::info, "c", 2000);

    EXPECT_THAT(log.lines, ElementsAre("a", "1 more lines were left out", "b", "c"));
}

TEST(LogLimiter, GivesEachSecondItsOwnBurst) {
    ListeningLog log;
    LogLimiter limiter{log, 1};

    for (const std::uint64_t now_ms : {0U, 999U, 1000U, 1999U, 5000U})
        limiter.write(LogLevel::info, "x", now_ms);

    EXPECT_THAT(log.lines,
                ElementsAre("x", "1 more lines were left out", "x", "1 more lines were left out", "x"));
}

TEST(LogLimiter, WithABurstOfNoneOnlyCounts) {
    ListeningLog log;
    LogLimiter limiter{log, 0};

    limiter.write(LogLevel::error, "x", 0);

    EXPECT_THAT(log.lines, IsEmpty());
}

}  // namespace
}  // namespace guestmem

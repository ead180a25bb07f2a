// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/warnings.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <vector>

namespace guestmem::vmm {
namespace {

TEST(Warnings, ALogSaysWhatIsAWarningOrWorse) {
    std::vector<std::string> said;
    WarningLog log{[&](const std::string& text) { said.push_back(text); }};
    log.write(LogLevel::info, "somebody came");
    log.write(LogLevel::warning, "somebody was cut");
    log.write(LogLevel::error, "nothing works");
    EXPECT_EQ(said, (std::vector<std::string>{"somebody was cut", "nothing works"}));
}

TEST(Warnings, TheFirstAreSaidAsTheyAreAndAFloodIsCutShort) {
    std::vector<std::string> said;
    const Warn warn = limited([&](const std::string& text) { said.push_back(text); });
    const auto began = std::chrono::steady_clock::now();
    for (int count = 0; count < 10'000; ++count) warn("again");
    const auto passed = std::chrono::steady_clock::now() - began;
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(passed).count() + 2;
    EXPECT_EQ(said.front(), "again");
    EXPECT_GE(said.size(), max_warnings_per_second);
    // So many a second, and one that counts the others.
    EXPECT_LE(said.size(), (max_warnings_per_second + 1) * static_cast<std::size_t>(seconds));
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config.hpp"

#include <gtest/gtest.h>

#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::TempFolder;

TEST(ShareName, HasOneTo31PrintableBytesWithoutASlash) {
    EXPECT_FALSE(find_name_problem("a"));
    EXPECT_FALSE(find_name_problem(std::string(31, 'x')));
    EXPECT_FALSE(find_name_problem("with blank~!"));
    EXPECT_TRUE(find_name_problem(""));
    EXPECT_TRUE(find_name_problem(std::string(32, 'x')));
    EXPECT_TRUE(find_name_problem("a/b"));
    EXPECT_TRUE(find_name_problem("a\nb"));
    EXPECT_TRUE(find_name_problem("\x7f"));
    EXPECT_TRUE(find_name_problem("\xc3\xa4"));
}

TEST(ShareSize, IsWholePagesAndTheProblemSaysTheNextSize) {
    EXPECT_FALSE(find_size_problem(4096));
    EXPECT_FALSE(find_size_problem(3 * 4096));
    EXPECT_FALSE(find_size_problem(max_size_bytes));
    EXPECT_NE(find_size_problem(0)->advice.find("4096"), std::string::npos);
    EXPECT_NE(find_size_problem(1)->advice.find("4096"), std::string::npos);
    EXPECT_NE(find_size_problem(4097)->advice.find("8192"), std::string::npos);
    EXPECT_TRUE(find_size_problem(max_size_bytes + 4096));
    EXPECT_TRUE(find_size_problem(~std::uint64_t{0}));
}

TEST(ShareExtent, IsTheNextPowerOfTwo) {
    EXPECT_EQ(extent_of(1), 4096U);
    EXPECT_EQ(extent_of(4096), 4096U);
    EXPECT_EQ(extent_of(3 * 4096), 4U * 4096U);
    EXPECT_EQ(extent_of(max_size_bytes - 4096), max_size_bytes);
    EXPECT_EQ(extent_of(max_size_bytes), max_size_bytes);
}

TEST(ShareSlots, HoldTheirLimitsAndNotOnePast) {
    EXPECT_FALSE(find_slots_problem(1, 1));
    EXPECT_FALSE(find_slots_problem(1024, 8));
    EXPECT_TRUE(find_slots_problem(1025, 1));
    EXPECT_TRUE(find_slots_problem(0, 1));
    EXPECT_FALSE(find_slots_problem(4, 2048));
    EXPECT_TRUE(find_slots_problem(5, 2048));
    EXPECT_NE(find_slots_problem(1024, 9)->advice.find("910"), std::string::npos) << "8192 / 9";
    EXPECT_FALSE(find_vectors_problem(1));
    EXPECT_FALSE(find_vectors_problem(2048));
    EXPECT_TRUE(find_vectors_problem(0));
    EXPECT_TRUE(find_vectors_problem(2049));
}

QuickOptions quick_options(const std::string& socket) {
    QuickOptions options;
    options.share = {.name = "mailbox",
                     .size_bytes = 8192,
                     .vectors = 2,
                     .slots = 3,
                     .ids = IdPolicy::stable,
                     .huge_page_bytes = 0};
    options.socket = socket;
    return options;
}

TEST(QuickConfig, HasADoorForAnySlotAndOneForEach) {
    const TempFolder folder;
    const auto config = quick_config(quick_options(folder.path_of("sock")));
    ASSERT_TRUE(config);
    ASSERT_EQ(config->doors.size(), 4U);
    EXPECT_TRUE(config->doors[0].slots.empty());
    EXPECT_EQ(config->doors[3].socket.path, folder.path_of("sock.2"));
    EXPECT_EQ(config->doors[3].slots, std::vector<std::uint32_t>{2});
    EXPECT_EQ(config->control.socket.path, folder.path_of("sock.control"));
    EXPECT_TRUE(owned_slots(*config, "mailbox").empty()) << "a fixed socket does not own its slot";
}

TEST(QuickConfig, HasOneDoorWithClassicIds) {
    const TempFolder folder;
    QuickOptions options = quick_options(folder.path_of("sock"));
    options.share.ids = IdPolicy::classic;
    EXPECT_EQ(quick_config(options).value().doors.size(), 1U);
}

TEST(QuickConfig, RefusesWhatTheFileWouldRefuse) {
    const TempFolder folder;
    QuickOptions options = quick_options(folder.path_of("sock"));
    options.share.size_bytes = 5000;
    const auto refused = quick_config(options);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("8192"), std::string::npos);
    EXPECT_FALSE(quick_config(quick_options(folder.path_of("no/such/sock"))));
}

}  // namespace
}  // namespace guestmem::share

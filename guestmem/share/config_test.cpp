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

TEST(ShareHugePages, ArePowersOfTwoThatTheSizeIsMadeOf) {
    EXPECT_FALSE(find_huge_pages_problem(0, 4096));
    EXPECT_FALSE(find_huge_pages_problem(2 << 20, 4 << 20));
    EXPECT_FALSE(find_huge_pages_problem(least_huge_page_bytes, 0));
    EXPECT_FALSE(find_huge_pages_problem(max_huge_page_bytes, 0));
    EXPECT_TRUE(find_huge_pages_problem(least_huge_page_bytes / 2, 0));
    EXPECT_TRUE(find_huge_pages_problem(max_huge_page_bytes * 2, 0));
    EXPECT_TRUE(find_huge_pages_problem(3 << 20, 0));
    const auto problem = find_huge_pages_problem(2 << 20, (2 << 20) + 4096);
    ASSERT_TRUE(problem);
    EXPECT_NE(problem->advice.find("4M"), std::string::npos) << problem->advice;
}

TEST(SharePath, OfAFileIsAbsoluteAndOfAShmOneName) {
    EXPECT_FALSE(find_path_problem(BackingKind::memfd, ""));
    EXPECT_TRUE(find_path_problem(BackingKind::memfd, "/a"));

    EXPECT_FALSE(find_path_problem(BackingKind::file, "/a/b"));
    EXPECT_FALSE(find_path_problem(BackingKind::file, "/" + std::string(max_path_bytes - 1, 'a')));
    for (const std::string& path : {std::string{}, std::string{"a"}, std::string{"/"}, std::string{"/a/"},
                                    std::string("/a\0b", 4), "/" + std::string(max_path_bytes, 'a')})
        EXPECT_TRUE(find_path_problem(BackingKind::file, path)) << path;

    EXPECT_FALSE(find_path_problem(BackingKind::shm, "/a"));
    EXPECT_FALSE(find_path_problem(BackingKind::shm, "/" + std::string(max_shm_name_bytes, 'a')));
    for (const std::string& path :
         {std::string{}, std::string{"a"}, std::string{"/"}, std::string{"/a/b"}, std::string{"/."},
          std::string{"/.."}, std::string("/a\0b", 4), "/" + std::string(max_shm_name_bytes + 1, 'a')})
        EXPECT_TRUE(find_path_problem(BackingKind::shm, path)) << path;
}

TEST(ShareCgroup, IsAPatternOverAPath) {
    EXPECT_FALSE(find_cgroup_problem("/machine.slice/linux*"));
    EXPECT_FALSE(find_cgroup_problem("*/linux.scope"));
    EXPECT_FALSE(find_cgroup_problem("/" + std::string(max_cgroup_pattern_bytes - 1, 'a')));
    EXPECT_TRUE(find_cgroup_problem("/" + std::string(max_cgroup_pattern_bytes, 'a')));
    EXPECT_TRUE(find_cgroup_problem(""));
    EXPECT_TRUE(find_cgroup_problem("machine.slice"));
    EXPECT_TRUE(find_cgroup_problem("/a[b"));
}

TEST(ShareRule, AllowsSomethingToSomeName) {
    EXPECT_FALSE(find_rule_problem({.pattern = "mail*"}));
    EXPECT_TRUE(find_rule_problem({.pattern = "a/b"}));
    EXPECT_TRUE(find_rule_problem({.pattern = ""}));
    Rule nothing{.verdict = Verdict::allow,
                 .pattern = "a",
                 .permissions = {.may_attach = false, .may_create = false, .may_notify = false}};
    EXPECT_TRUE(find_rule_problem(nothing));
    nothing.verdict = Verdict::deny;
    EXPECT_FALSE(find_rule_problem(nothing));
}

}  // namespace
}  // namespace guestmem::share

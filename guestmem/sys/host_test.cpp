// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/host.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::TempFolder;

/// Sets a variable of the environment for one test.
class Variable {
public:
    Variable(const char* name, const std::string& value) : name_(name) { ::setenv(name, value.c_str(), 1); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;
    ~Variable() { ::unsetenv(name_); }

private:
    const char* name_;
};

TEST(AvailableMemory, IsMoreThanNothingAndLessThanAnyMachineHas) {
    const auto available = available_memory_bytes();
    ASSERT_TRUE(available);
    EXPECT_GT(*available, std::uint64_t{1} << 20);
    EXPECT_LT(*available, std::uint64_t{1} << 50);
    EXPECT_EQ(*available % 1024, 0U);
}

TEST(AvailableMemory, IsAnErrorWhenTheKernelDoesNotTell) {
    EXPECT_GE(for_each_fault([] { return available_memory_bytes(); }), 2U);
}

TEST(CountOpenDescriptors, FollowsWhatIsOpened) {
    const std::uint64_t before = count_open_descriptors().value();
    {
        const EventFd one = EventFd::create().value();
        const EventFd two = EventFd::create().value();
        EXPECT_EQ(*count_open_descriptors(), before + 2);
    }
    EXPECT_EQ(*count_open_descriptors(), before);
}

TEST(DescriptorLimit, IsRaisedToTheHardOne) {
    rlimit original{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &original), 0);
    rlimit low = original;
    low.rlim_cur = std::min<rlim_t>(64, original.rlim_max);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);

    EXPECT_EQ(descriptor_limit(), low.rlim_cur);
    EXPECT_EQ(raise_descriptor_limit(), original.rlim_max);
    EXPECT_EQ(descriptor_limit(), original.rlim_max);

    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &original), 0);
}

TEST(HugePageSizeAt, AnOrdinaryFolderHasNone) {
    const TempFolder folder;
    EXPECT_EQ(*huge_page_size_at(folder.path()), 0U);
    const auto missing = huge_page_size_at(folder.path_of("no"));
    ASSERT_FALSE(missing);
    EXPECT_THAT(missing.error().message(), HasSubstr(folder.path_of("no")));
}

TEST(OwnProcess, IsThisOne) {
    EXPECT_EQ(own_process(), ::getpid());
    EXPECT_EQ(own_user(), ::geteuid());
}

TEST(RuntimeFolder, OfRootIsTheSystemsAndOfOthersTheirs) {
    const Variable folder{"XDG_RUNTIME_DIR", "/run/user/7"};
    EXPECT_EQ(runtime_folder(), own_user() == 0 ? "/run/guestmem" : "/run/user/7/guestmem");
}

TEST(Environment, AnEmptyVariableIsNone) {
    const Variable set{"GUESTMEM_TEST_SET", "value"};
    const Variable empty{"GUESTMEM_TEST_EMPTY", ""};
    EXPECT_EQ(environment("GUESTMEM_TEST_SET"), "value");
    EXPECT_EQ(environment("GUESTMEM_TEST_EMPTY"), std::nullopt);
    EXPECT_EQ(environment("GUESTMEM_TEST_UNSET"), std::nullopt);
}

TEST(MakeFolder, MakesOneAndIsContentWithOneThatIsThere) {
    const TempFolder folder;
    const std::string path = folder.path_of("made");

    EXPECT_FALSE(is_folder(path));
    ASSERT_TRUE(make_folder(path));
    EXPECT_TRUE(is_folder(path));
    EXPECT_TRUE(make_folder(path));
}

TEST(MakeFolder, AFileInItsPlaceIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "");
    EXPECT_FALSE(is_folder(path));
    EXPECT_FALSE(make_folder(path));
    EXPECT_FALSE(make_folder(folder.path_of("no/child")));
}

TEST(ParentFolder, IsWhatAFileStandsIn) {
    EXPECT_EQ(parent_folder("/run/x/y"), "/run/x");
    EXPECT_EQ(parent_folder("/y"), "/");
    EXPECT_EQ(parent_folder("y"), ".");
    EXPECT_EQ(parent_folder("x/y"), "x");
}

TEST(UserId, KnowsNamesAndNumbers) {
    EXPECT_EQ(*user_id("root"), 0U);
    EXPECT_EQ(*user_id("0"), 0U);
    EXPECT_EQ(*user_id("65534"), 65534U);
    EXPECT_EQ(*group_id("root"), 0U);
    EXPECT_EQ(*group_id("12"), 12U);
}

TEST(UserId, TheLastIdIsAUserAndOnePastIsRefused) {
    EXPECT_EQ(*user_id("4294967294"), 4294967294U);
    EXPECT_EQ(*group_id("4294967294"), 4294967294U);
    // 2^32-1 is chown's word for "leave it", 2^32 does not fit.
    EXPECT_FALSE(user_id("4294967295"));
    EXPECT_FALSE(group_id("4294967295"));
    EXPECT_FALSE(user_id("4294967296"));
}

TEST(UserId, SaysWhichNameNobodyHas) {
    const auto user = user_id("nobody-has-this-name");
    ASSERT_FALSE(user);
    EXPECT_EQ(user.error().code(), Errc::not_found);
    EXPECT_THAT(user.error().message(), HasSubstr("nobody-has-this-name"));
    EXPECT_FALSE(group_id("nobody-has-this-name"));
    EXPECT_FALSE(user_id(""));
    EXPECT_FALSE(user_id("-1"));
}

}  // namespace
}  // namespace guestmem

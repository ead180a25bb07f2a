// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_limits.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <thread>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

// Lines as kernels 5.10 and 6.1 show them.
constexpr const char* second_mount =
    "24 30 0:22 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* first_mount =
    "29 25 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755\n"
    "33 29 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:13 - cgroup cgroup rw,cpu,cpuacct\n"
    "36 29 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,memory\n";
constexpr const char* first_groups = "9:cpu,cpuacct:/other\n4:memory:/a/b\n1:name=systemd:/c\n";

/// A captured tree: files of proc and of the cgroups.
class Tree {
public:
    Tree() {
        write("proc/meminfo",
              "MemTotal: 4096 kB\nMemAvailable: 2048 kB\nCommitLimit: 100 kB\nCommitted_AS: 40 kB\n");
        write("proc/sys/vm/overcommit_memory", "0\n");
    }
    void write(const std::string& path, const std::string& text) const {
        std::filesystem::create_directories(std::filesystem::path{folder_.path_of(path)}.parent_path());
        folder_.write(path, text);
    }
    void remove(const std::string& path) const { std::filesystem::remove(folder_.path_of(path)); }
    /// A process in the cgroup /a/b of the second version.
    void write_second(const std::string& groups = "0::/a/b\n") const {
        write("proc/self/cgroup", groups);
        write("proc/self/mountinfo", second_mount);
    }
    void write_first() const {
        write("proc/self/cgroup", first_groups);
        write("proc/self/mountinfo", first_mount);
    }
    [[nodiscard]] std::string path() const { return folder_.path(); }
    [[nodiscard]] Result<MemoryLimits> limits() const { return memory_limits(folder_.path()); }

private:
    TempFolder folder_;
};

TEST(MemoryLimits, OfThisProcessAreWhatTheKernelSays) {
    rlimit address_space{};
    ASSERT_EQ(::getrlimit(RLIMIT_AS, &address_space), 0);
    const auto limits = memory_limits();
    ASSERT_TRUE(limits) << limits.error().message();
    EXPECT_GT(limits->available_bytes, mib);
    EXPECT_LT(limits->available_bytes, std::uint64_t{1} << 50);
    EXPECT_EQ(limits->address_space_bytes, address_space.rlim_cur);
    EXPECT_EQ(limits->cgroup_path.empty(), !limits->cgroup_headroom_bytes);
}

TEST(MemoryLimits, OfFilesAndLockedMemoryAreTheProcessesOwn) {
    const Tree tree;
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    rlimit changed = before;
    changed.rlim_cur = 123 * mib;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &changed), 0);
    const auto limits = tree.limits();
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    rlimit locked{};
    ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &locked), 0);

    EXPECT_EQ(limits->file_size_bytes, 123 * mib);
    const bool is_bound = ::prctl(PR_CAPBSET_READ, CAP_IPC_LOCK) == 0 || ::geteuid() != 0;
    EXPECT_EQ(limits->locked_bytes, is_bound ? locked.rlim_cur : no_memory_limit);
}

TEST(MemoryLimits, OnLockedMemoryBindThoseWithoutTheCapability) {
    const Tree tree;
    std::thread{[&] {
        // Of this thread alone.
        __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
        std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> none{};
        ASSERT_EQ(::syscall(SYS_capset, &header, none.data()), 0);
        rlimit locked{};
        ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &locked), 0);
        EXPECT_EQ(tree.limits()->locked_bytes, locked.rlim_cur);
    }}.join();
}

TEST(MemoryLimits, WithoutCgroupsAreThoseOfTheHost) {
    const Tree tree;
    const MemoryLimits limits = tree.limits().value();
    EXPECT_EQ(limits.total_bytes, 4 * mib) << "without a line for swap there is none";
    EXPECT_EQ(limits.available_bytes, 2 * mib);
    EXPECT_EQ(limits.commit_left_bytes, 60U * 1024);
    EXPECT_EQ(limits.overcommit, Overcommit::heuristic);
    EXPECT_EQ(limits.cgroup_headroom_bytes, std::nullopt);
    EXPECT_THAT(limits.cgroup_path, IsEmpty());
}

TEST(MemoryLimits, MoreCommittedThanAllowedLeavesNothing) {
    const Tree tree;
    tree.write("proc/meminfo",
               "MemTotal: 9 kB\nMemAvailable: 1 kB\nCommitLimit: 40 kB\nCommitted_AS: 100 kB\n");
    EXPECT_EQ(tree.limits()->commit_left_bytes, 0U);
}

TEST(MemoryLimits, TellTheThreeWaysToOvercommit) {
    const Tree tree;
    tree.write("proc/sys/vm/overcommit_memory", "1\n");
    EXPECT_EQ(tree.limits()->overcommit, Overcommit::always);
    tree.write("proc/sys/vm/overcommit_memory", "2\n");
    EXPECT_EQ(tree.limits()->overcommit, Overcommit::never);
    for (const char* text : {"3\n", "", "x", "-1"}) {
        tree.write("proc/sys/vm/overcommit_memory", text);
        const auto limits = tree.limits();
        ASSERT_FALSE(limits) << text;
        EXPECT_EQ(limits.error().code(), Errc::corrupt) << text;
    }
}

TEST(MemoryLimits, AMeminfoWithoutALineIsAnErrorThatNamesIt) {
    const Tree tree;
    for (const char* text :
         {"", "MemAvailable: 1 kB\nCommitLimit: 1 kB\nCommitted_AS: 1 kB\n",
          "MemTotal: 1 kB\nMemAvailable: 1 kB\nCommitLimit: 1 kB\nCommitted_AS: x kB\n",
          "MemTotal: 1 kB\nMemAvailable: 1 kB\nCommitted_AS: 1 kB\n",
          "MemTotal: 1 kB\nCommitLimit: 1 kB\nCommitted_AS: 1 kB\n",
          "MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\nCommitLimit: 1 kB\nCommitted_AS: 1 kB\n"}) {
        tree.write("proc/meminfo", text);
        const auto limits = tree.limits();
        ASSERT_FALSE(limits) << text;
        EXPECT_EQ(limits.error().code(), Errc::unsupported) << text;
        EXPECT_THAT(limits.error().message(), HasSubstr("proc/meminfo: no line")) << text;
    }
}

TEST(CgroupHeadroom, OfTheSecondVersionIsItsLimitLessWhatCannotBeTakenBack) {
    const Tree tree;
    tree.write_second();
    tree.write("sys/fs/cgroup/a/b/memory.max", "104857600\n");
    tree.write("sys/fs/cgroup/a/b/memory.current", "62914560\n");
    tree.write("sys/fs/cgroup/a/b/memory.stat",
               "anon 1\nfile 2\ninactive_file 10485760\nactive_file 5242880\n");

    const MemoryLimits limits = tree.limits().value();

    EXPECT_EQ(limits.cgroup_headroom_bytes, 55 * mib);
    EXPECT_EQ(limits.cgroup_path, "/sys/fs/cgroup/a/b");
}

TEST(CgroupHeadroom, OfTheFirstVersionIsItsLimitLessWhatCannotBeTakenBack) {
    const Tree tree;
    tree.write_first();
    tree.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "104857600\n");
    tree.write("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "62914560\n");
    tree.write("sys/fs/cgroup/memory/a/b/memory.stat",
               "inactive_file 1\nactive_file 1\ntotal_inactive_file 10485760\ntotal_active_file 5242880\n");
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");

    const MemoryLimits limits = tree.limits().value();

    EXPECT_EQ(limits.cgroup_headroom_bytes, 55 * mib);
    EXPECT_EQ(limits.cgroup_path, "/sys/fs/cgroup/memory/a/b");
}

TEST(CgroupHeadroom, IsTheLeastOfTheCgroupAndAllAboveIt) {
    const Tree tree;
    tree.write_second("0::/a/b/c\n");
    tree.write("sys/fs/cgroup/a/b/c/memory.max", "max\n");
    tree.write("sys/fs/cgroup/a/b/memory.max", "1000\n");
    tree.write("sys/fs/cgroup/a/b/memory.current", "100\n");
    tree.write("sys/fs/cgroup/a/memory.max", "2000\n");
    tree.write("sys/fs/cgroup/a/memory.current", "1500\n");

    const MemoryLimits limits = tree.limits().value();

    EXPECT_EQ(limits.cgroup_headroom_bytes, 500U);
    EXPECT_EQ(limits.cgroup_path, "/sys/fs/cgroup/a");
}

TEST(CgroupHeadroom, OfAHybridHostIsTheLeastOfBoth) {
    const Tree tree;
    tree.write("proc/self/cgroup", std::string{first_groups} + "0::/u\n");
    tree.write(
        "proc/self/mountinfo",
        std::string{first_mount} + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3000\n");
    tree.write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1000\n");
    tree.write("sys/fs/cgroup/unified/u/cgroup.procs", "");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 2000U);
    EXPECT_EQ(tree.limits()->cgroup_path, "/sys/fs/cgroup/memory/a");

    tree.write("sys/fs/cgroup/unified/u/memory.max", "1500\n");
    tree.write("sys/fs/cgroup/unified/u/memory.current", "0\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 1500U);
    EXPECT_EQ(tree.limits()->cgroup_path, "/sys/fs/cgroup/unified/u");
}

TEST(CgroupHeadroom, WhereAContainerSeesItsOwnCgroupOnlyIsThatOfTheMountPoint) {
    const Tree tree;
    tree.write("proc/self/cgroup", "4:memory:/docker/0123\n");
    tree.write("proc/self/mountinfo",
               "36 29 0:33 /docker/0123 /sys/fs/cgroup/memory ro master:16 - cgroup cgroup rw,memory\n");
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n");
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 2000U);
    EXPECT_EQ(tree.limits()->cgroup_path, "/sys/fs/cgroup/memory");
}

TEST(CgroupHeadroom, OfSeveralMountsIsSeenThroughTheOneThatShowsMost) {
    const Tree tree;
    tree.write("proc/self/cgroup", "0::/a/b\n");
    tree.write("proc/self/mountinfo",
               "1 1 0:1 /a/b /part rw - cgroup2 x rw\n2 1 0:1 /a\\040b /blank rw - cgroup2 x rw\n"
               "3 1 0:1 / /the\\040whole rw - cgroup2 x rw\n4 1 0:1 /a /some rw - cgroup2 x rw\n");
    tree.write("the whole/memory.max", "3000\n");
    tree.write("the whole/memory.current", "1\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 2999U);
    EXPECT_EQ(tree.limits()->cgroup_path, "/the whole");
}

TEST(CgroupHeadroom, OfAMountThatDoesNotShowTheProcessesCgroupIsNone) {
    const Tree tree;
    for (const char* root : {"/other", "/a/bb", "/a/b/c", "/a/", "/../..", "", "a"}) {
        tree.write("proc/self/cgroup", "0::/a/b\n");
        tree.write("proc/self/mountinfo", std::string{"1 1 0:1 "} + root + " /m rw - cgroup2 x rw\n");
        tree.write("m/memory.max", "1000\n");
        tree.write("m/memory.current", "0\n");
        const auto limits = tree.limits();
        ASSERT_TRUE(limits) << root;
        if (*root != '\0') {
            EXPECT_EQ(limits->cgroup_headroom_bytes, std::nullopt) << root;
        }
    }
}

TEST(CgroupHeadroom, ACgroupThatLeadsUpwardsIsPassedOver) {
    const Tree tree;
    for (const char* own : {"0::/../x\n", "0::/..\n", "0::/a/../../../etc\n", "0::relative\n", "0::\n"}) {
        tree.write_second(own);
        tree.write("sys/fs/cgroup/memory.max", "1000\n");
        tree.write("sys/fs/cgroup/memory.current", "0\n");
        const auto limits = tree.limits();
        ASSERT_TRUE(limits) << own;
        EXPECT_EQ(limits->cgroup_headroom_bytes, std::nullopt) << own;
    }
}

TEST(CgroupHeadroom, OfTheRootCgroupIsThatOfTheMountPoint) {
    const Tree tree;
    tree.write_second("0::/\n");
    tree.write("sys/fs/cgroup/memory.max", "1000\n");
    tree.write("sys/fs/cgroup/memory.current", "0\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 1000U);
    EXPECT_EQ(tree.limits()->cgroup_path, "/sys/fs/cgroup");
}

TEST(CgroupHeadroom, WithoutTheMemoryControllersFilesIsNone) {
    const Tree tree;
    tree.write_second();
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, std::nullopt);
    tree.write_first();
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, std::nullopt);
    tree.remove("proc/self/mountinfo");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, std::nullopt);
}

TEST(CgroupHeadroom, WithoutStatisticsCountsNoCache) {
    const Tree tree;
    tree.write_second();
    tree.write("sys/fs/cgroup/a/b/memory.max", "1000\n");
    tree.write("sys/fs/cgroup/a/b/memory.current", "400\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 600U);
    tree.write("sys/fs/cgroup/a/b/memory.stat", "anon 7\n");
    EXPECT_EQ(tree.limits()->cgroup_headroom_bytes, 600U);
}

TEST(CgroupHeadroom, ALimitWithoutAUsageIsAnError) {
    const Tree tree;
    tree.write_second();
    tree.write("sys/fs/cgroup/a/b/memory.max", "1000\n");
    const auto limits = tree.limits();
    ASSERT_FALSE(limits);
    EXPECT_THAT(limits.error().message(), HasSubstr("a/b/memory.current"));
}

TEST(CgroupHeadroom, OfHostileNumbersNeitherWrapsNorExceedsTheLimit) {
    const Tree tree;
    tree.write_second();
    const std::string most = "18446744073709551615";
    struct Case {
        std::string limit, usage, inactive, active;
        std::optional<std::uint64_t> headroom;
    };
    const Case cases[] = {{"1000", most, "0", "0", 0},
                          {"1000", "2000", "0", "0", 0},
                          {"1000", "2000", most, most, 1000},
                          {"1000", "2000", "1500", "0", 500},
                          {"1000", "0", most, "1", 1000},
                          {"0", "0", "0", "0", 0},
                          {most, "0", "0", "0", std::nullopt},
                          {"9223372036854710272", "0", "0", "0", std::nullopt},
                          {"9223372036854710271", "0", "0", "0", 9223372036854710271U}};
    for (const Case& it : cases) {
        tree.write("sys/fs/cgroup/a/b/memory.max", it.limit + "\n");
        tree.write("sys/fs/cgroup/a/b/memory.current", it.usage + "\n");
        tree.write("sys/fs/cgroup/a/b/memory.stat",
                   "inactive_file " + it.inactive + "\nactive_file " + it.active + "\n");
        const auto limits = tree.limits();
        ASSERT_TRUE(limits) << it.limit;
        EXPECT_EQ(limits->cgroup_headroom_bytes, it.headroom) << it.limit << " " << it.usage;
    }
}

TEST(CgroupHeadroom, GarbageIsAnErrorThatNamesTheFile) {
    const Tree tree;
    tree.write_second();
    const auto expect_error = [&](const std::string& file, const std::string& text, const std::string& good) {
        tree.write("sys/fs/cgroup/a/b/" + file, text);
        const auto limits = tree.limits();
        ASSERT_FALSE(limits) << file << " " << text;
        EXPECT_EQ(limits.error().code(), Errc::corrupt) << file << " " << text;
        EXPECT_THAT(limits.error().message(), HasSubstr(file));
        tree.write("sys/fs/cgroup/a/b/" + file, good);
    };
    tree.write("sys/fs/cgroup/a/b/memory.current", "0\n");
    for (const char* text : {"", "\n", "-1\n", "maximum\n", "1 2\n", "99999999999999999999\n", "0x10\n"}) {
        expect_error("memory.max", text, "1000\n");
        expect_error("memory.current", text, "0\n");
        expect_error("memory.stat", std::string{"active_file "} + text, "\n");
    }
}

TEST(CgroupHeadroom, BrokenListsOfCgroupsAndMountsAreSkippedLineByLine) {
    const Tree tree;
    tree.write("proc/self/cgroup", "\n:\n::\n0\n0:\nmemory\n1:memory\n4:memoryless:/x\n0::/a/b\n");
    tree.write("proc/self/mountinfo",
               "\n-\n - \n1 2 3 4 5 6 -\n1 2 3 4 5 6 - cgroup2\n- cgroup2 x rw\n1 2 3 / /w rw - cgroup2 x\n" +
                   std::string{second_mount} + std::string(10000, ' ') + "\n\\04\\9");
    tree.write("sys/fs/cgroup/a/b/memory.max", "1000\n");
    tree.write("sys/fs/cgroup/a/b/memory.current", "0\n");
    const auto limits = tree.limits();
    ASSERT_TRUE(limits) << limits.error().message();
    EXPECT_EQ(limits->cgroup_headroom_bytes, 1000U);
}

TEST(CgroupHeadroom, AListBeyondItsLimitIsAnError) {
    const Tree tree;
    tree.write_second(std::string(64 * 1024 + 1, 'x'));
    const auto limits = tree.limits();
    ASSERT_FALSE(limits);
    EXPECT_EQ(limits.error().code(), Errc::out_of_range);
    tree.write("proc/self/cgroup", "0::" + std::string(4097, '/'));
    const auto too_deep = tree.limits();
    ASSERT_FALSE(too_deep);
    EXPECT_EQ(too_deep.error().code(), Errc::corrupt);
    tree.write("proc/self/cgroup", "0::" + std::string(3000, '/'));
    EXPECT_TRUE(tree.limits());
}

TEST(MemoryLimits, ARootMayEndWithSlashes) {
    const Tree tree;
    EXPECT_TRUE(memory_limits(tree.path() + "//"));
    EXPECT_FALSE(memory_limits(tree.path() + "/no"));
}

TEST(MemoryLimits, AnyCallThatFailsIsAnError) {
    const Tree tree;
    tree.write_second("0::/a\n");
    tree.write("sys/fs/cgroup/a/memory.max", "1000\n");
    tree.write("sys/fs/cgroup/a/memory.current", "1\n");
    tree.write("sys/fs/cgroup/a/memory.stat", "active_file 1\n");
    // Seven files, each opened and read twice; the mount point's limit, which is not there; three getrlimit; capget.
    EXPECT_EQ(for_each_fault([&] { return tree.limits(); }), 26U);
}

}  // namespace
}  // namespace guestmem

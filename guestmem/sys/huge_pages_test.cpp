// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/huge_pages.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::TempFolder;

constexpr std::uint64_t no_end = std::numeric_limits<std::uint64_t>::max();
constexpr const char* pool_files[] = {"nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages",
                                      "nr_overcommit_hugepages"};

/// A pool as sysfs shows it; each file holds `text`.
void write_pool(const TempFolder& folder, const std::string& name, const std::string& text = "0\n") {
    std::filesystem::create_directories(folder.path_of(name));
    for (const char* file : pool_files) folder.write(name + "/" + file, text);
}

TEST(HugePagePools, AreReadAndSortedBySize) {
    const TempFolder folder;
    write_pool(folder, "hugepages-1048576kB");
    write_pool(folder, "hugepages-64kB", "7\n");
    write_pool(folder, "hugepages-2048kB");
    folder.write("hugepages-2048kB/nr_hugepages", "12\n");
    folder.write("hugepages-2048kB/free_hugepages", "10\n");
    folder.write("hugepages-2048kB/resv_hugepages", "3\n");
    folder.write("hugepages-2048kB/surplus_hugepages", "1\n");
    folder.write("hugepages-2048kB/nr_overcommit_hugepages", "5\n");

    const auto pools = huge_page_pools(folder.path()).value();

    ASSERT_THAT(pools, SizeIs(3));
    EXPECT_EQ(pools[0].page_bytes, 64U << 10);
    EXPECT_EQ(pools[1].page_bytes, 2U << 20);
    EXPECT_EQ(pools[1].count_total, 12U);
    EXPECT_EQ(pools[1].count_free, 10U);
    EXPECT_EQ(pools[1].count_reserved, 3U);
    EXPECT_EQ(pools[1].count_surplus, 1U);
    EXPECT_EQ(pools[1].count_overcommit, 5U);
    EXPECT_EQ(pools[1].available_pages(), 11U);
    EXPECT_EQ(pools[2].page_bytes, 1U << 30);
}

TEST(HugePagePools, OfThisKernelHaveTheDefaultSizeAmongThem) {
    const auto pools = huge_page_pools();
    ASSERT_TRUE(pools);
    const auto size = default_huge_page_bytes();
    if (!size) GTEST_SKIP() << "SKIPPED: this kernel has no huge pages";
    EXPECT_TRUE(std::ranges::any_of(*pools, [&](const auto& pool) { return pool.page_bytes == *size; }));
    for (const HugePagePool& pool : *pools) EXPECT_LE(pool.count_free, pool.count_total);
}

TEST(HugePagePools, OfAKernelWithoutHugePagesAreNone) {
    const TempFolder folder;
    EXPECT_THAT(*huge_page_pools(folder.path_of("no")), IsEmpty());
    EXPECT_THAT(*huge_page_pools(folder.path()), IsEmpty());
}

TEST(HugePagePools, WhatIsNotNamedLikeAPoolIsPassedOver) {
    const TempFolder folder;
    for (const char* name : {"hugepages-", "hugepages-kB", "hugepages-0kB", "hugepages-3kB", "hugepages--2kB",
                             "hugepages-2048", "hugepages-2048MB", "hugepages-9223372036854775808kB",
                             "hugepages-99999999999999999999kB", "kB", "hugepages-kBkB", "other"})
        write_pool(folder, name);
    EXPECT_THAT(*huge_page_pools(folder.path()), IsEmpty());
}

TEST(HugePagePools, ANumberThatIsNoneIsAnErrorThatNamesTheFile) {
    for (const char* file : pool_files)
        for (const char* text : {"", "many\n", "-1\n", "18446744073709551616\n", "1 2\n"}) {
            const TempFolder folder;
            write_pool(folder, "hugepages-2048kB");
            folder.write(std::string{"hugepages-2048kB/"} + file, text);
            const auto pools = huge_page_pools(folder.path());
            ASSERT_FALSE(pools) << file << " " << text;
            EXPECT_EQ(pools.error().code(), Errc::corrupt);
            EXPECT_THAT(pools.error().message(), HasSubstr(file));
        }
}

TEST(HugePagePools, AFileThatIsMissingIsAnErrorThatNamesIt) {
    for (const char* file : pool_files) {
        const TempFolder folder;
        write_pool(folder, "hugepages-2048kB");
        std::filesystem::remove(folder.path_of(std::string{"hugepages-2048kB/"} + file));
        const auto pools = huge_page_pools(folder.path());
        ASSERT_FALSE(pools) << file;
        EXPECT_THAT(pools.error().message(), HasSubstr(file));
    }
}

TEST(HugePagePools, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    write_pool(folder, "hugepages-2048kB");
    // The folder, its three entries and its end; five files, each opened and read twice.
    EXPECT_EQ(for_each_fault([&] { return huge_page_pools(folder.path()); }), 20U);
    EXPECT_FALSE(huge_page_pools(folder.write("f", "x")));
}

TEST(HugePagePool, PromisesMoreThanThereIsAreNoPages) {
    const HugePagePool pool{
        .count_free = 1, .count_reserved = no_end, .count_surplus = no_end, .count_overcommit = 2};
    EXPECT_EQ(pool.available_pages(), 0U);
}

TEST(HugePagePool, HugeNumbersDoNotWrap) {
    const HugePagePool pool{.count_free = no_end, .count_overcommit = no_end};
    EXPECT_EQ(pool.available_pages(), no_end);
    EXPECT_EQ((HugePagePool{.count_free = 1, .count_overcommit = no_end - 1}).available_pages(), no_end);
}

TEST(DefaultHugePageBytes, IsThatOfMeminfo) {
    const TempFolder folder;
    EXPECT_EQ(default_huge_page_bytes(folder.write("m", "MemFree: 1 kB\nHugepagesize:       2048 kB\n")),
              2U << 20);
}

TEST(DefaultHugePageBytes, IsNothingWhereTheKernelDoesNotSay) {
    const TempFolder folder;
    EXPECT_EQ(default_huge_page_bytes(folder.path_of("no")), std::nullopt);
    for (const char* text : {"", "Hugepagesize:", "Hugepagesize: 0 kB", "Hugepagesize: 3 kB",
                             "Hugepagesize: 2048", "Hugepagesize: 99999999999999999999 kB"})
        EXPECT_EQ(default_huge_page_bytes(folder.write("m", text)), std::nullopt) << text;
    EXPECT_EQ(default_huge_page_bytes(folder.write("m", std::string(70000, 'x'))), std::nullopt);
}

}  // namespace
}  // namespace guestmem

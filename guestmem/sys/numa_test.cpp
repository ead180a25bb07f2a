// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/numa.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using testing::GuestPages;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::TempFolder;

using Nodes = std::vector<std::uint16_t>;

/// Why there is nothing to bind to here, or nothing: no NUMA in the kernel, a filter, qemu-user.
std::string why_no_numa() {
    const GuestPages pages{1};
    const auto bound = bind_memory({pages.data(), pages.size_bytes()}, NumaPolicy::standard, {});
    const auto node = node_of(pages.data());
    if (!bound) return "SKIPPED: " + bound.error().message();
    return node ? "" : "SKIPPED: " + node.error().message();
}

std::span<std::byte> bytes_of(const GuestPages& pages) { return {pages.data(), pages.size_bytes()}; }

TEST(NumaNodes, OfThisHostHaveTheNodeOfItsMemory) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    pages.data()[0] = std::byte{1};
    const NumaNodes nodes = numa_nodes().value();
    EXPECT_TRUE(std::ranges::binary_search(nodes.online, node_of(pages.data()).value()));
}

TEST(NumaNodes, AreListedOneByOne) {
    const TempFolder folder;
    folder.write("online", "0-2,5,7-8\n");
    EXPECT_THAT(numa_nodes(folder.path())->online, ElementsAre(0, 1, 2, 5, 7, 8));
    folder.write("online", "3");
    EXPECT_THAT(numa_nodes(folder.path())->online, ElementsAre(3));
    folder.write("online", "0-65535\n");
    EXPECT_THAT(numa_nodes(folder.path())->online, SizeIs(65536));
}

TEST(NumaNodes, AKernelWithoutNodesHasOne) {
    const TempFolder folder;
    EXPECT_THAT(numa_nodes(folder.path())->online, ElementsAre(0));
}

TEST(NumaNodes, AListThatIsNoneIsAnErrorThatShowsIt) {
    const TempFolder folder;
    for (const char* text : {"",
                             "\n",
                             ",",
                             "0,",
                             ",0",
                             "-",
                             "0-",
                             "-1",
                             "1-0",
                             "0,0",
                             "2,1",
                             "0-3,2",
                             "0-1-2",
                             "x",
                             "0 1",
                             "0;1",
                             "65536",
                             "0-65536",
                             "0-4294967295",
                             "99999999999999999999",
                             "0-1\n\n",
                             "0-65535,0-65535",
                             "1,\n"}) {
        folder.write("online", text);
        const auto nodes = numa_nodes(folder.path());
        ASSERT_FALSE(nodes) << text;
        EXPECT_EQ(nodes.error().code(), Errc::corrupt) << text;
        EXPECT_THAT(nodes.error().message(), HasSubstr(folder.path_of("online")));
    }
}

TEST(NumaNodes, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    folder.write("online", "0\n");
    EXPECT_EQ(for_each_fault([&] { return numa_nodes(folder.path()); }), 3U);
}

TEST(NodeAvailableBytes, AreFreePagesAndCache) {
    const TempFolder folder;
    std::filesystem::create_directory(folder.path_of("node3"));
    folder.write("node3/meminfo",
                 "Node 3 MemTotal:  100 kB\nNode 3 MemFree:    7 kB\nNode 3 Inactive(anon): 50 kB\n"
                 "Node 3 Active(file):   2 kB\nNode 3 Inactive(file):   20 kB\n");
    EXPECT_EQ(node_available_bytes(3, folder.path()).value(), 29U * 1024) << "what is in use is left out";
    folder.write("node3/meminfo",
                 "Node 3 MemFree: 7 kB\nNode 3 Active(file): 2 kB\nNode 3 Inactive(file): 20 kB\n"
                 "Node 3 SReclaimable: 100 kB\n");
    EXPECT_EQ(node_available_bytes(3, folder.path()).value(), 129U * 1024);
    EXPECT_EQ(node_available_bytes(4, folder.path()).value(), std::nullopt);
    EXPECT_EQ(for_each_fault([&] { return node_available_bytes(3, folder.path()); }), 3U);
    folder.write("node3/meminfo", "Node 3 MemFree: 7 kB\n");
    EXPECT_EQ(node_available_bytes(3, folder.path()).value(), std::nullopt);
    folder.write("node3/meminfo", std::string(20'000, 'x'));
    EXPECT_FALSE(node_available_bytes(3, folder.path()));
}

TEST(NodeAvailableBytes, OfThisHostsNodesAreFewerThanItHas) {
    const NumaNodes nodes = numa_nodes().value();
    for (const std::uint16_t node : nodes.online) {
        const auto bytes = node_available_bytes(node).value();
        if (bytes) {
            EXPECT_GT(*bytes, 0U);
            EXPECT_LT(*bytes, std::uint64_t{1} << 46);
        }
    }
}

TEST(BindMemory, EachPolicyIsTakenForTheNodeThatIsThere) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const Nodes node{numa_nodes()->online.front()};
    for (const NumaPolicy policy : {NumaPolicy::preferred, NumaPolicy::bind, NumaPolicy::interleave}) {
        const GuestPages pages{4};
        pages.page(1)[0] = std::byte{1};
        const auto bound = bind_memory(bytes_of(pages), policy, node);
        ASSERT_TRUE(bound) << bound.error().message();
        pages.page(2)[0] = std::byte{1};
        EXPECT_EQ(node_of(pages.page(2)).value(), node.front());
        EXPECT_TRUE(bind_memory(bytes_of(pages), NumaPolicy::standard, {}));
    }
}

TEST(BindMemory, ANodeMayBeNamedTwice) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    const std::uint16_t there = numa_nodes()->online.front();
    // Several preferred nodes: the kernel's newer way, where it has one.
    const auto bound = bind_memory(bytes_of(pages), NumaPolicy::preferred, Nodes{there, there});
    ASSERT_TRUE(bound) << bound.error().message();
    pages.data()[0] = std::byte{1};
    EXPECT_EQ(node_of(pages.data()).value(), there);
}

TEST(BindMemory, ANodeThatTheHostDoesNotHaveIsTheKernelsRefusal) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    if (std::ranges::binary_search(numa_nodes()->online, 127)) GTEST_SKIP() << "SKIPPED: there is a node 127";
    const GuestPages pages{1};
    const auto bound = bind_memory(bytes_of(pages), NumaPolicy::bind, Nodes{127});
    ASSERT_FALSE(bound);
    EXPECT_EQ(bound.error().os_error(), EINVAL);
    EXPECT_THAT(bound.error().message(), HasSubstr("nodes 127"));
}

TEST(BindMemory, ANodeBeyondTheLastIsOutOfRange) {
    const GuestPages pages{1};
    for (const std::uint16_t node : {std::uint16_t{128}, std::uint16_t{65535}}) {
        const auto bound = bind_memory(bytes_of(pages), NumaPolicy::bind, Nodes{0, node});
        ASSERT_FALSE(bound);
        EXPECT_EQ(bound.error().code(), Errc::out_of_range);
    }
    EXPECT_EQ(bind_memory(bytes_of(pages), NumaPolicy::bind, Nodes(129, 0)).error().code(),
              Errc::out_of_range);
}

TEST(BindMemory, NodesAndPolicyGoTogether) {
    const GuestPages pages{1};
    EXPECT_EQ(bind_memory(bytes_of(pages), NumaPolicy::standard, Nodes{0}).error().code(),
              Errc::invalid_argument);
    for (const NumaPolicy policy : {NumaPolicy::preferred, NumaPolicy::bind, NumaPolicy::interleave})
        EXPECT_EQ(bind_memory(bytes_of(pages), policy, {}).error().code(), Errc::invalid_argument);
}

TEST(BindMemory, SeveralPreferredNodesAreTheFirstOneOnAKernelThatKnowsNoMore) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    const std::uint16_t there = numa_nodes()->online.front();
    {
        const FaultInjector injector{0, {.only = SysCall::mbind, .os_error = EINVAL}};
        EXPECT_TRUE(bind_memory(bytes_of(pages), NumaPolicy::preferred, Nodes{there, 127}));
    }
    const FaultInjector injector{0, {.only = SysCall::mbind, .os_error = EINVAL, .repeat = 2}};
    EXPECT_FALSE(bind_memory(bytes_of(pages), NumaPolicy::preferred, Nodes{there, 127}));
}

TEST(BindMemory, BytesBeginAtAPageAndNoneAreNoWork) {
    const GuestPages pages{2};
    const auto bound = bind_memory(bytes_of(pages).subspan(1), NumaPolicy::bind, Nodes{0});
    ASSERT_FALSE(bound);
    EXPECT_EQ(bound.error().code(), Errc::invalid_argument);
    const FaultInjector injector{0};
    EXPECT_TRUE(bind_memory({}, NumaPolicy::bind, Nodes{0}));
    EXPECT_FALSE(injector.has_fired());
}

TEST(BindMemory, ACallThatFailsIsAnErrorThatKeepsItsErrno) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    const Nodes node{numa_nodes()->online.front()};
    EXPECT_EQ(for_each_fault([&] { return bind_memory(bytes_of(pages), NumaPolicy::bind, node); }), 1U);
    const FaultInjector injector{0, {.only = SysCall::mbind, .os_error = EPERM}};
    EXPECT_EQ(bind_memory(bytes_of(pages), NumaPolicy::bind, node).error().code(), Errc::permission_denied);
}

TEST(NodeOf, AByteThatIsNotMappedIsAnError) { EXPECT_FALSE(node_of(nullptr)); }

TEST(NodeOf, ACallThatFailsIsAnError) {
    if (const std::string why = why_no_numa(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    EXPECT_EQ(for_each_fault([&] { return node_of(pages.data()); }), 1U);
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/grants.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

using testing::HasSubstr;

Result<std::vector<VmMemory>> no_config(const std::string& path) {
    return Error{Errc::not_found, path + ": no such file"};
}

Grants read(std::string_view text) {
    auto grants = read_grants("grants.toml", text, &no_config);
    EXPECT_TRUE(grants) << grants.error().message();
    return grants ? *std::move(grants) : Grants{};
}

std::string mistakes(std::string_view text) {
    const auto grants = read_grants("grants.toml", text, &no_config);
    EXPECT_FALSE(grants);
    return grants ? "" : grants.error().message();
}

TEST(GrantsTest, TheWholeOfAVmIsReachedWhenNothingElseIsSaid) {
    const Grants grants = read(R"(
[[vm]]
name = "cluster"
memory = [{ name = "ram", at = 0, size = "1G", page = "2M" }]
device = [{ name = "0000:01:00.0" }]
)");
    ASSERT_EQ(grants.vms.size(), 1U);
    const GrantedVm& vm = grants.vms[0];
    EXPECT_EQ(vm.name, "cluster");
    ASSERT_EQ(vm.memory.size(), 1U);
    EXPECT_EQ(vm.memory[0].size_bytes, std::uint64_t{1} << 30);
    EXPECT_EQ(vm.memory[0].page_bytes, std::uint64_t{2} << 20);
    ASSERT_EQ(vm.devices.size(), 1U);
    EXPECT_TRUE(vm.devices[0].reaches_all);
    EXPECT_EQ(vm.devices[0].line, 5U);
}

TEST(GrantsTest, NamedRangesHavePermissionsAndMayBeParts) {
    const Grants grants = read(R"(
[[vm]]
name = "a"
memory_lock = "64M"
memory = [{ name = "mail", at = 0x40000000, size = "1M", share = "mailbox" }, { name = "ram", at = 0, size = "64M" }]
device = [{ name = "pci:1:0.0", reach = [{ memory = "mail", permissions = "r" },
                                          { memory = "ram", offset = "1M", size = "64K", permissions = "wr" }] }]
)");
    const GrantedVm& vm = grants.vms.at(0);
    EXPECT_EQ(vm.memory.at(0).name, "ram") << "memory is by address";
    EXPECT_EQ(vm.memory.at(1).share, "mailbox");
    EXPECT_EQ(vm.memory_lock_bytes, std::uint64_t{64} << 20);
    const GrantedDevice& device = vm.devices.at(0);
    EXPECT_FALSE(device.reaches_all);
    ASSERT_EQ(device.ranges.size(), 2U);
    EXPECT_EQ(device.ranges[0].memory, 1U);
    EXPECT_EQ(device.ranges[0].size_bytes, std::uint64_t{1} << 20);
    EXPECT_EQ(device.ranges[0].permission, (Permission{true, false}));
    EXPECT_EQ(device.ranges[1].offset_bytes, std::uint64_t{1} << 20);
    EXPECT_EQ(device.ranges[1].permission, (Permission{true, true}));
}

TEST(GrantsTest, MemoryComesFromTheMachinesConfiguration) {
    const auto grants =
        read_grants("g.toml", "[[vm]]\nname = \"a\"\nconfig = \"a.qvmconf\"\nmemory_lock = \"unlimited\"\n",
                    [](const std::string& path) -> Result<std::vector<VmMemory>> {
                        EXPECT_EQ(path, "a.qvmconf");
                        return std::vector<VmMemory>{{.name = "ram", .at = 0, .size_bytes = 4096}};
                    });
    ASSERT_TRUE(grants) << grants.error().message();
    EXPECT_EQ(grants->vms.at(0).memory.at(0).name, "ram");
    EXPECT_TRUE(grants->vms.at(0).is_memory_lock_unlimited);
}

TEST(GrantsTest, EveryMistakeIsSaidWithItsPlace) {
    const std::string text = mistakes(R"([[vm]]
name = "a"
memory = [{ name = "ram", at = 0, size = "1M" }, { name = "rom", at = "512K", size = "1M" }]
device = [{ name = "x", reach = [{ memory = "rum" }, { memory = "ram", permissions = "rx" },
                                 { memory = "ram", offset = "2M" }, { memory = "ram", size = "2M" }] }]
[[vm]]
name = "a"
devise = []
)");
    for (const char* wanted :
         {"overlaps 'ram'", "no memory 'rum'; did you mean 'ram'?", "'rx' are no permissions",
          "grants.toml:5:", "do not fit", "VM 'a' is in line 1 already", "did you mean 'device'?"})
        EXPECT_THAT(text, HasSubstr(wanted));
}

TEST(GrantsTest, SizesAndAddressesThatCannotBeAreRefused) {
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\nmemory=[{name='m',at=1,size='1M'}]\n"),
                HasSubstr("0x1 is not at a page"));
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\nmemory=[{name='m',at=0,size=5}]\n"), HasSubstr("no whole pages"));
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\nmemory=[{name='m',at=0,size='1M',page='3K'}]\n"),
                HasSubstr("is no page size"));
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\nmemory=[{name='m',at='16777215T',size='4T'}]\n"),
                HasSubstr("beyond the last address"));
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\n"), HasSubstr("VM 'a' has no memory"));
    EXPECT_THAT(mistakes("[[vm]]\nname='a'\nconfig='x.qvmconf'\n"), HasSubstr("x.qvmconf: no such file"));
    EXPECT_THAT(mistakes(""), HasSubstr("no VM"));
    EXPECT_THAT(mistakes("[[vm]\n"), HasSubstr("grants.toml:1"));
}

TEST(GrantsTest, PermissionsAreShownAsTheyAreWritten) {
    EXPECT_EQ(to_string(Permission{true, true}), "rw");
    EXPECT_EQ(to_string(Permission{true, false}), "r");
    EXPECT_EQ(to_string(Permission{false, true}), "w");
    EXPECT_EQ(to_string(Permission{false, false}), "-");
}

}  // namespace
}  // namespace guestmem::dma

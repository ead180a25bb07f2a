// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_calls.hpp"

#include <gtest/gtest.h>

#include "guestmem/control/wire.hpp"
#include "guestmem/vmm/dirty_harvest.hpp"

namespace guestmem::vmm {
namespace {

VmStatus make_status() {
    VmStatus status;
    status.name = "cluster";
    status.pid = 4711;
    status.state = "running";
    status.memory_bytes = 64UL << 20;
    status.count_slots = 3;
    status.has_dirty_log = true;
    status.share_control = "/run/guestmem/share.control";
    status.processors = {ExitCounts{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, ExitCounts{}};
    status.devices = {{.name = "PIC", .is_port = true, .first = 0x20, .count = 2},
                      {.name = "ioapic", .is_port = false, .first = 0xf800'0000, .count = 4096}};
    status.connections = {{.device = "shmem", .share = "a", .size_bytes = 4096},
                          {.device = "ivshmem", .share = "b", .size_bytes = 8192, .slot = 15}};
    status.plugged = {
        {.share = "c", .address = 0x4000'0000, .size_bytes = 4096, .slot = 7, .is_read_only = true}};
    return status;
}

TEST(VmCalls, AStatusIsTheSameAfterItsText) {
    const std::string text = to_json(make_status());
    const auto read = parse_vm_status(text);
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(to_json(*read), text);
    EXPECT_EQ(read->processors.at(0), (ExitCounts{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
    EXPECT_TRUE(read->devices.at(0).is_port);
    EXPECT_FALSE(read->devices.at(1).is_port);
    EXPECT_FALSE(read->connections.at(0).slot);
    EXPECT_EQ(read->connections.at(1).slot, 15U);
    EXPECT_TRUE(read->plugged.at(0).is_read_only);
}

TEST(VmCalls, ARegionWithoutASlotHasNone) {
    MemoryMapReply reply;
    reply.regions.push_back({.name = "ram0", .kind = "ram", .backend = "share", .size_bytes = 4096});
    reply.regions.push_back(
        {.name = "ram1", .kind = "ram", .backend = "share", .slot = 0, .is_logged = true});
    const auto read = parse_memory_map_reply(to_json(reply));
    ASSERT_TRUE(read);
    EXPECT_FALSE(read->regions.at(0).slot);
    EXPECT_EQ(read->regions.at(1).slot, 0U);
    EXPECT_TRUE(read->regions.at(1).is_logged);
    EXPECT_FALSE(read->next);
}

TEST(VmCalls, TheLargestPartFitsIntoAnAnswer) {
    DirtyHarvestReply harvest;
    harvest.ranges.assign(DirtyHarvest::max_ranges, {~std::uint64_t{0}, ~std::uint64_t{0}});
    EXPECT_LT(to_json(harvest).size(), control::max_answer_bytes - 1024);
    MemoryMapReply map;
    const std::string longest_name(64, 'x');
    map.regions.assign(max_listed_regions, {.name = longest_name,
                                            .kind = "read-only",
                                            .backend = "memory-backend-physical",
                                            .address = ~std::uint64_t{0},
                                            .size_bytes = ~std::uint64_t{0},
                                            .slot = 65535,
                                            .is_logged = false});
    EXPECT_LT(to_json(map).size(), control::max_answer_bytes - 1024);
}

TEST(VmCalls, AWrongFieldIsNamed) {
    EXPECT_NE(parse_attach_share_call(R"({"share":"m","address":-1})").error().message().find("'address'"),
              std::string::npos);
    EXPECT_NE(parse_attach_share_call("{}").error().message().find("'share'"), std::string::npos);
    EXPECT_NE(parse_dirty_log_call(R"({"on":1})").error().message().find("'on'"), std::string::npos);
    EXPECT_NE(parse_dirty_harvest_call(R"({"limit":1.5})").error().message().find("'limit'"),
              std::string::npos);
    EXPECT_NE(parse_dirty_harvest_reply(R"({"ranges":[[1]],"ticket":1,"more":false})")
                  .error()
                  .message()
                  .find("'ranges'"),
              std::string::npos);
    EXPECT_EQ(parse_memory_map_call("[]").error().code(), Errc::corrupt);
    EXPECT_EQ(parse_vm_status(R"({"name":"a"})").error().code(), Errc::invalid_argument);
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/calls.hpp"

#include <gtest/gtest.h>

namespace guestmem::share {
namespace {

TEST(Calls, AStatusArrivesAsItWasSent) {
    ShareStatus status;
    status.summary = {.name = "m\"\\\n",
                      .size_bytes = 12288,
                      .extent_bytes = 16384,
                      .vectors = 2,
                      .slots = 3,
                      .ids = "stable",
                      .count_peers = 1};
    status.seals = {"shrink", "grow"};
    status.doors = {{.path = "/run/x", .vm = "linux", .slots = {0, 2}}};
    status.peers = {{.slot = 2,
                     .vm = "linux",
                     .pid = 12,
                     .uid = 4294967295U,
                     .gid = 7,
                     .is_joined = true,
                     .is_tool = false}};
    status.pending = {{.slot = 0, .per_vector = {0, ~std::uint64_t{0}}}};
    const auto parsed = parse_share_status(to_json(status));
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(to_json(*parsed), to_json(status));
    EXPECT_EQ(parsed->summary.name, status.summary.name);
    EXPECT_EQ(parsed->peers[0].uid, 4294967295U);
    EXPECT_EQ(parsed->pending[0].per_vector[1], ~std::uint64_t{0});
}

TEST(Calls, AListArrivesAsItWasSent) {
    const ServiceSummary summary{.pid = 77,
                                 .shares = {{.name = "a",
                                             .size_bytes = 1,
                                             .extent_bytes = 2,
                                             .vectors = 3,
                                             .slots = 4,
                                             .ids = "classic",
                                             .count_peers = 5}}};
    const auto parsed = parse_service_summary(to_json(summary));
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_EQ(to_json(*parsed), to_json(summary));
}

TEST(Calls, RingReadsANumberOrAllAndNothingElse) {
    EXPECT_EQ(parse_ring_call(R"({"share":"m","peer":3,"vector":1})").value().peer, 3U);
    EXPECT_EQ(parse_ring_call(R"({"share":"m","peer":"all","vector":1})").value().peer, std::nullopt);
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","peer":"some","vector":1})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","vector":1})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","peer":3})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","peer":-1,"vector":1})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","peer":4294967296,"vector":1})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":"m","peer":1.5,"vector":1})"));
    EXPECT_FALSE(parse_ring_call(R"({"share":7,"peer":1,"vector":1})"));
    EXPECT_FALSE(parse_ring_call("[]"));
    EXPECT_FALSE(parse_ring_call("{"));
}

TEST(Calls, AMissingFieldIsNamed) {
    const auto refused = parse_memory_reply(R"({"size":4096})");
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("extent"), std::string::npos);
}

TEST(Calls, UnknownFieldsArePassedOver) {
    EXPECT_EQ(parse_attach_reply(R"({"slot":3,"later":{"x":1}})").value().slot, 3U);
}

}  // namespace
}  // namespace guestmem::share

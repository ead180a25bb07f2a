// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/plan_text.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace guestmem::dma {
namespace {

using testing::HasSubstr;

Plan small_plan() {
    Plan plan;
    plan.vms = {{.name = "cluster", .locked_bytes = 0x3000, .memory_lock_bytes = 0x2000}};
    plan.domains = {
        {.vm = 0,
         .devices = {"0000:01:00.0"},
         .unit = "vtd@fed90000",
         .mappings = {{.iova = 0x1000, .size_bytes = 0x2000, .page_bytes = 0x1000},
                      {.iova = 0x8000, .size_bytes = 0x1000, .asked = {false, true}, .page_bytes = 0x1000}},
         .mapped_bytes = 0x3000,
         .locked_bytes = 0x3000,
         .page_entries = 3,
         .seconds_populated = 0.0001,
         .seconds_unpopulated = 1.26}};
    plan.problems = {{.kind = ProblemKind::memory_lock,
                      .vm = "cluster",
                      .line = 3,
                      .text = "12K would be locked\x1b",
                      .commands = {"ulimit -l 12"}}};
    return plan;
}

TEST(PlanTextTest, MappingsLimitsAndProblemsAreShown) {
    EXPECT_EQ(to_text(small_plan(), "g.toml"),
              R"(VM cluster: 12K locked, limit 8K
0000:01:00.0: behind vtd@fed90000
  0x000000001000 to 0x000000002fff        8K  rw  pages of 4K
  0x000000008000 to 0x000000008fff        4K  w , kept as rw  pages of 4K
  2 mappings, 3 entries in the unit's tables, 12K locked, under 1 ms when the memory is there (1.3 s when it is not)
g.toml:3: error: 12K would be locked?
  $ ulimit -l 12
it would not work: 1 reason
)");
}

TEST(PlanTextTest, ALongListOfMappingsIsCut) {
    EXPECT_THAT(to_text(small_plan(), "g.toml", 1), HasSubstr("  and 1 mappings more\n"));
}

TEST(PlanTextTest, AProblemThatIsOnlyANoteLetsItWork) {
    Plan plan = small_plan();
    plan.problems[0].is_fatal = false;
    EXPECT_THAT(to_text(plan, "g.toml"), HasSubstr("g.toml:3: note: "));
    EXPECT_THAT(to_text(plan, "g.toml"), HasSubstr("it would work\n"));
}

TEST(PlanTextTest, JsonHasTheSame) {
    const auto json = nlohmann::json::parse(to_json(small_plan(), "g.toml"));
    EXPECT_EQ(json["would_work"], false);
    EXPECT_EQ(json["vms"][0]["memory_lock_bytes"], 0x2000);
    EXPECT_EQ(json["domains"][0]["mappings"][1]["iova"], "0x8000");
    EXPECT_EQ(json["domains"][0]["mappings"][1]["asked"], "w");
    EXPECT_EQ(json["domains"][0]["mappings"][1]["kept"], "rw");
    EXPECT_EQ(json["problems"][0]["kind"], "memory-lock");
    EXPECT_EQ(json["problems"][0]["commands"][0], "ulimit -l 12");
}

}  // namespace
}  // namespace guestmem::dma

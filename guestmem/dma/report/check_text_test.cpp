// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/check_text.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "guestmem/dma/report/testing/small_inventory.hpp"

namespace guestmem::dma {
namespace {

const std::vector<Finding> findings{{Weight::risk, "device-outside", "one device is behind no IOMMU: a\x1b",
                                     "it reaches all memory", "take it out"}};

TEST(CheckTextTest, AFindingIsThreeLinesAndTheLastLineIsTheSum) {
    EXPECT_EQ(to_text(findings, testing::small_inventory()),
              R"(risk: one device is behind no IOMMU: a? (device-outside)
  why: it reaches all memory
  fix: take it out
not protected: 1 risk
)");
}

TEST(CheckTextTest, AGoodMachineTakesOneLine) {
    EXPECT_EQ(to_text({}, testing::small_inventory()), "protected: 3 devices behind 1 IOMMU\n");
}

TEST(CheckTextTest, JsonSaysWhetherItIsProtected) {
    const auto json = nlohmann::json::parse(to_json(findings));
    EXPECT_EQ(json["is_protected"], false);
    EXPECT_EQ(json["findings"][0]["code"], "device-outside");
    EXPECT_EQ(nlohmann::json::parse(to_json(std::vector<Finding>{}))["is_protected"], true);
}

}  // namespace
}  // namespace guestmem::dma

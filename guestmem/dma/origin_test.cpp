// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/origin.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(OriginTest, FirmwareIsNamedWithItsPlace) {
    EXPECT_EQ(to_string(Origin{Source::dmar, "offset 0x30", {}}), "DMAR offset 0x30");
    EXPECT_EQ(to_string(Origin{Source::kernel, {}, {}}), "kernel");
}

TEST(OriginTest, TheUsersWordsAreNamedByTheirFileAndByWhatTheyOverride) {
    EXPECT_EQ(to_string(Origin{Source::user, "board.smmu:7", "DMAR"}), "board.smmu:7, overrides DMAR");
    EXPECT_EQ(to_string(Origin{Source::user, {}, {}}), "user");
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_svg.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "guestmem/dma/report/testing/small_inventory.hpp"

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

/// Whether elements are closed in the order in which they are opened, and no text has a bare '<' or '&'.
bool is_well_formed(std::string_view text) {
    std::vector<std::string_view> open;
    while (!text.empty()) {
        if (text.front() == '&') {
            const auto end = text.find(';');
            if (end == std::string_view::npos || end > 6) return false;
        }
        if (text.front() != '<') {
            text.remove_prefix(1);
            continue;
        }
        const auto end = text.find('>');
        if (end == std::string_view::npos) return false;
        const std::string_view tag = text.substr(1, end - 1);
        text.remove_prefix(end + 1);
        if (tag.starts_with('/')) {
            if (open.empty() || open.back() != tag.substr(1)) return false;
            open.pop_back();
        } else if (!tag.ends_with('/')) {
            open.push_back(tag.substr(0, tag.find(' ')));
        }
    }
    return open.empty();
}

std::size_t count(std::string_view text, std::string_view part) {
    std::size_t found = 0;
    for (auto at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++found;
    return found;
}

TEST(InventorySvgTest, ThePictureIsWellFormedWhateverTheNamesAre) {
    const std::string text = to_svg(testing::small_inventory());
    EXPECT_TRUE(is_well_formed(text)) << text;
    EXPECT_THAT(text, HasSubstr("/soc/?[31m&lt;b&gt;&amp;&quot;dma&quot;?@1"));
    EXPECT_TRUE(is_well_formed(to_svg(Inventory{})));
}

TEST(InventorySvgTest, ABoxPerUnitBusAndContainment) {
    const std::string text = to_svg(testing::small_inventory());
    // Four heads, three buses, four containments: the lone bridge has none.
    EXPECT_EQ(count(text, "<rect "), 11U);
    EXPECT_EQ(count(text, "<rect class=\"good\""), 3U) << "the unit that works and what is behind it";
    EXPECT_EQ(count(text, "<rect class=\"bad\""), 5U);
    EXPECT_THAT(text, HasSubstr("<title>00:08.0 and 00:08.1 are functions of one device without ACS"));
    EXPECT_THAT(text, Not(HasSubstr("00:04.0")));
}

}  // namespace
}  // namespace guestmem::dma

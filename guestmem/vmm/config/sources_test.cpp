// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/sources.hpp"

#include <gmock/gmock.h>

#include "guestmem/base/diagnostic.hpp"

namespace guestmem::vmm {
namespace {

using ::testing::HasSubstr;

class SourcesAndFindings : public ::testing::Test {
protected:
    SourcesAndFindings() {
        main_ = sources_.add({.name = "main.qvmconf", .text = "ram 1M\n@two\n", .included_at = {}});
        two_ = sources_.add(
            {.name = "two", .text = "ram 2M\n", .included_at = {.source = main_, .line = 2, .column = 1}});
        words_ = sources_.add({.name = {}, .text = "ram\n3X\n", .included_at = {}, .is_command_line = true});
    }

    Sources sources_;
    std::uint32_t main_ = 0;
    std::uint32_t two_ = 0;
    std::uint32_t words_ = 0;
};

TEST_F(SourcesAndFindings, APlaceIsNamedByItsSource) {
    const Place first{.source = main_, .line = 1, .column = 5};
    const Place other{.source = two_, .line = 1, .column = 5};
    const Place word{.source = words_, .line = 2, .column = 1};
    EXPECT_EQ(sources_.describe(first), "main.qvmconf:1:5");
    EXPECT_EQ(sources_.describe(first, first), "line 1");
    EXPECT_EQ(sources_.describe(other, first), "two:1:5");
    EXPECT_EQ(sources_.describe(word), "command line, word 2");
    EXPECT_EQ(sources_.describe(word, first), "word 2 of the command line");
    EXPECT_EQ(sources_.describe({}), "nowhere");
    EXPECT_EQ(sources_.describe({.source = 9, .line = 1, .column = 1}, first), "nowhere");
}

TEST_F(SourcesAndFindings, FindingsOfAllSourcesAreShownSourceBySource) {
    Findings findings{sources_};
    findings.add({.source = words_, .line = 2, .column = 2}, "no unit X", "write K");
    findings.add({.source = two_, .line = 1, .column = 5}, "second");
    findings.add({.source = main_, .line = 1, .column = 5}, "first");
    EXPECT_EQ(findings.to_text(),
              "main.qvmconf:1:5: error: first\n"
              "   1 | ram 1M\n"
              "     |     ^\n"
              "two:1:5: error: second\n"
              "   1 | ram 2M\n"
              "     |     ^\n"
              "two: included at main.qvmconf:2:1\n"
              "command line, word 2: error: no unit X\n"
              "   2 | 3X\n"
              "     |  ^\n"
              "     = write K");
    EXPECT_EQ(findings.to_error().code(), Errc::invalid_argument);
    EXPECT_EQ(findings.to_error().message(), findings.to_text());
}

TEST_F(SourcesAndFindings, AFindingWithoutAPlaceNamesTheFirstSource) {
    Findings findings{sources_};
    findings.add({}, "no kernel", "write load");
    EXPECT_EQ(findings.to_text(), "main.qvmconf: error: no kernel\n  = write load");
    const Sources none;
    Findings of_nothing{none};
    of_nothing.add({}, "no kernel");
    EXPECT_EQ(of_nothing.to_text(), "configuration: error: no kernel");
}

TEST_F(SourcesAndFindings, WhatIsBeyondTheLimitIsCounted) {
    Findings findings{sources_};
    for (std::size_t i = 0; i < max_diagnostics; ++i) findings.add({}, "again");
    EXPECT_THAT(findings.to_text(), ::testing::Not(HasSubstr("more")));
    findings.add({}, "again");
    findings.add({}, "again");
    EXPECT_EQ(findings.found().size(), max_diagnostics);
    EXPECT_THAT(findings.to_text(), HasSubstr("\nand 2 more"));
}

TEST_F(SourcesAndFindings, PlacesAreNoPartOfAValue) {
    const Placed<int> here{5, {.source = main_, .line = 1, .column = 1}};
    const Placed<int> there{5, {.source = two_, .line = 7, .column = 3}};
    EXPECT_EQ(here, there);
    EXPECT_NE(here, (Placed<int>{6, here.place}));
    EXPECT_EQ(here.place.moved_right(4).column, 5U);
}

}  // namespace
}  // namespace guestmem::vmm

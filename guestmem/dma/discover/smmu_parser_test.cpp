// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_parser.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// What is wrong with a file; empty: nothing.
std::string findings_of(std::string_view text) {
    SmmuSources sources;
    const auto tokens = read_smmu_tokens(text, "b", {}, sources);
    static_cast<void>(parse_smmu_tokens(tokens, sources));
    return sources.has_findings() ? sources.to_error().message() : std::string{};
}

std::size_t count_findings(std::string_view text) {
    const std::string findings = findings_of(text);
    std::size_t count = 0;
    for (std::size_t at = findings.find(": error: "); at != std::string::npos;
         at = findings.find(": error: ", at + 1))
        ++count;
    return count;
}

TEST(SmmuParser, ATypingErrorGetsTheClosestWord) {
    EXPECT_THAT(findings_of("smu vtd"),
                AllOf(HasSubstr("b:1:1: error: unknown word 'smu'"), HasSubstr("did you mean 'smmu'?")));
    EXPECT_THAT(findings_of("smmu vtdd"), HasSubstr("did you mean 'vtd'?"));
    EXPECT_THAT(findings_of("smmu vtd ignroe"), HasSubstr("did you mean 'ignore'?"));
    EXPECT_THAT(findings_of("device pci:0:1.0 foo\nallow fo 0,1"), HasSubstr("did you mean 'fo'?"));
    EXPECT_THAT(findings_of("vtd"), HasSubstr("write smmu vtd"));
}

TEST(SmmuParser, ADocumentedWordThatIsNotDoneIsNoTypingError) {
    EXPECT_THAT(findings_of("safety required"),
                HasSubstr("documented by QNX, not supported here: safety required"));
    EXPECT_THAT(findings_of("safety requird"), HasSubstr("did you mean 'required'?"));
}

TEST(SmmuParser, AllMistakesAreToldAtOnceEachOnceAndInTheirOrder) {
    const std::string findings = findings_of(
        "smmu vtd\n"
        "unit a fed90000x\n"
        "device pci:0:40.0 use a\n"
        "alow foo 0,1\n"
        "allow foo 0,0\n"
        "debug 3\n");
    EXPECT_EQ(
        count_findings(
            "smmu vtd\nunit a fed90000x\ndevice pci:0:40.0 use a\nalow foo 0,1\nallow foo 0,0\ndebug 3\n"),
        5U)
        << findings;
    for (const char* place : {"b:2:8", "b:3:14", "b:4:1", "b:5:13", "b:6:7"})
        EXPECT_THAT(findings, HasSubstr(place));
}

TEST(SmmuParser, AMistakeIsNotToldTwice) {
    EXPECT_EQ(count_findings("smmu vdt\nunit a fed90000\ndevice pci:0:1.0 use a"), 1U);
    EXPECT_EQ(count_findings("unit a fed90000\nunit b fed91000"), 1U) << "the missing smmu";
    EXPECT_EQ(count_findings("device pci:0:1.0 foo\nallow foo zzz,1"), 1U)
        << "a set with a broken range is there";
    EXPECT_EQ(count_findings("device pci:0:99.0 use a 5 foo"), 1U)
        << "what belongs to a broken option is left out";
}

TEST(SmmuParser, AnOptionWithoutItsArgumentsSaysThem) {
    EXPECT_THAT(findings_of("unit"), HasSubstr("write unit NAME PARAM"));
    EXPECT_THAT(findings_of("smmu vtd unit a device pci:0:1.0"), HasSubstr("'unit' without its arguments"));
    EXPECT_THAT(findings_of("device"), HasSubstr("'device' without its arguments"));
    EXPECT_THAT(findings_of("allow a"), HasSubstr("'allow' without its arguments"));
    EXPECT_THAT(findings_of("reserved pci:0:1.0"), HasSubstr("write reserved DEVICE START,LENGTH"));
    EXPECT_THAT(findings_of("debug\nforeground"), HasSubstr("'debug' without its arguments"));
    EXPECT_THAT(findings_of("use a 5"), HasSubstr("'use' without its device"));
    EXPECT_THAT(findings_of("device pci:0:1.0 use"), HasSubstr("write use UNIT [PARAM]"));
}

TEST(SmmuParser, AUnitBeforeItsTypeIsAskedWhatItIs) {
    EXPECT_THAT(findings_of("unit a fed90000"), HasSubstr("'unit' before 'smmu'"));
}

TEST(SmmuParser, TheUseParameterIsAMatterOfTheUnitsType) {
    const std::string vtd = "smmu vtd\nunit v fed90000\n";
    const std::string arm = "smmu armsmmuv3\nunit s 9050000\n";
    EXPECT_EQ(findings_of(vtd + "device pci:0:1.0 use v"), "");
    EXPECT_THAT(findings_of(vtd + "device pci:0:1.0 use v 5"), HasSubstr("whose 'use' has no parameter"));
    EXPECT_EQ(findings_of(arm + "device mem:1000 use s 5"), "");
    EXPECT_THAT(findings_of(arm + "device mem:1000 use s"), HasSubstr("write use s STREAM"));
    EXPECT_THAT(findings_of(arm + "device mem:1000 use s 4294967296"), HasSubstr("is more than 4294967295"));
    EXPECT_THAT(findings_of("smmu amdvi unit a pci:0:0.2 device pci:0:1.0 use a 65536"),
                HasSubstr("no requester id"));
    EXPECT_EQ(findings_of("device mem:1000 use s 5\n" + arm), "") << "a unit may be declared behind its use";
    EXPECT_THAT(findings_of("device pci:0:1.0 use vtd@fed90000 5"), HasSubstr("has no parameter"))
        << "firmware's name says the type";
}

TEST(SmmuParser, ADeviceIsBehindOneUnit) {
    const std::string text =
        "smmu vtd\nunit a 1000\nunit b 2000\ndevice pci:0:1.0 use a\ndevice pci:0:1.0 use b\n";
    EXPECT_THAT(findings_of(text), HasSubstr("b:5:18: error: the device is behind a already (b:4)"));
}

TEST(SmmuParser, TwoNamesForOneUnitAreTold) {
    EXPECT_THAT(findings_of("smmu vtd unit a 1000\nunit b 0x1000"),
                HasSubstr("unit b has the registers at 0x1000 of unit a (b:1)"));
    EXPECT_THAT(findings_of("smmu amdvi unit a pci:0:0.2\nunit b pci:0:0.2"),
                HasSubstr("function 0000:00:00.2"));
}

TEST(SmmuParser, AScopeOfNoOptionIsATypingError) {
    EXPECT_THAT(findings_of("merge pci:0:1.0"),
                HasSubstr("no 'device' and no 'reserved' is about 0000:00:01.0"));
    EXPECT_EQ(findings_of("merge pci:0:1.0\nreserved pci:0:1.0 1000,1K"), "");
    EXPECT_EQ(findings_of("device pci:0:1.0\noverride pci:0:1.0"), "");
    EXPECT_THAT(findings_of("merge all"), HasSubstr("'all' is no device"));
    EXPECT_THAT(findings_of("merge unit:"), HasSubstr("is no name of a unit"));
}

TEST(SmmuParser, AUserIsANameAndAGroup) {
    EXPECT_EQ(findings_of("user smmu"), "");
    EXPECT_EQ(findings_of("user 99:99"), "");
    for (const char* text : {"user a:b:c", "user :b", "user a:", "user -x", "user a/b"})
        EXPECT_THAT(findings_of(text), HasSubstr("is no user")) << text;
}

TEST(SmmuParser, LongWordsAreClippedInWhatIsSaid) {
    const std::string word(4000, 'x');
    for (const std::string prefix :
         {"", "smmu ", "smmu vtd ", "debug ", "safety ", "user /", "unit ", "device ", "merge ", "allow a ",
          "smmu vtd unit a ", "smmu armsmmu unit a ", "smmu rcar3 "}) {
        const std::string findings = findings_of(prefix + word);
        // The line itself is cut at max_shown_columns.
        EXPECT_LT(findings.size(), 1000U) << prefix;
        EXPECT_THAT(findings, HasSubstr("error: ")) << prefix;
    }
}

}  // namespace
}  // namespace guestmem::dma

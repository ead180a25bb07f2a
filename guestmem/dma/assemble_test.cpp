// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/assemble.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>

#include "guestmem/dma/testing/assemble_world.hpp"
#include "guestmem/dma/testing/fact_model.hpp"

namespace guestmem::dma {
namespace {

using testing::add_id;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Outcome;
using testing::selects;
using testing::World;

UserWords words_of(std::string_view text) {
    auto words = read_smmu_text(text, "b", {});
    EXPECT_TRUE(words) << words.error().message();
    return words ? *words : UserWords{};
}

UnitFact vtd(std::uint64_t registers, std::uint16_t segment = 0) {
    return {.name = unit_name(UnitKind::vt_d, registers),
            .kind = UnitKind::vt_d,
            .registers = registers,
            .registers_bytes = 4096,
            .segment = segment,
            .origin = {.source = Source::dmar, .place = "offset 0x30"}};
}
CoverFact dmar_cover(const UnitFact& unit, Selector which) {
    return {.unit = unit.name,
            .which = std::move(which),
            .origin = {.source = Source::dmar, .place = "offset 0x40"}};
}
Selector function(std::uint16_t rid) { return PciRange{.segment = 0, .first_rid = rid, .last_rid = rid}; }

/// Two VT-d units: one with graphics (02.0) and a NIC (03.0), one with the rest; a reserved range of graphics.
FirmwareFacts two_units() {
    const UnitFact first = vtd(0xfed90000);
    const UnitFact second = vtd(0xfed91000, 1);
    return {
        .source = Source::dmar,
        .facts = {
            .units = {first, second},
            .covers = {dmar_cover(second, PciRest{}), dmar_cover(first, function(0x10)),
                       dmar_cover(first, PciPath{.hops = {{3, 0}}})},
            .reserved = {{.who = {function(0x10)}, .first = 0x1000, .last = 0x1fff, .origin = first.origin}},
            .complaints = {{.text = "a firmware error"}},
            .platform = {.address_bits = 39}}};
}

SourceFacts assembled(const FirmwareFacts& firmware, std::string_view words) {
    auto facts = assemble(std::span{&firmware, 1}, words_of(words));
    EXPECT_TRUE(facts) << facts.error().message();
    return facts ? *facts : SourceFacts{};
}

std::string text_of(const std::vector<CoverFact>& covers) {
    std::string text;
    for (const CoverFact& cover : covers)
        text += fmt::format("{}{} at {}", text.empty() ? "" : "; ", to_string(cover.which), cover.unit);
    return text;
}

std::string texts_of(const std::vector<Complaint>& complaints) {
    std::string text;
    for (const Complaint& complaint : complaints)
        text += fmt::format("{}: {}\n", to_string(complaint.origin), complaint.text);
    return text;
}

TEST(Assemble, WithoutWordsFirmwareIsKeptAndTheRestIsLast) {
    const SourceFacts facts = assembled(two_units(), "");
    EXPECT_EQ(facts.units.size(), 2U);
    EXPECT_EQ(
        text_of(facts.covers),
        "0000:00:02.0 at vtd@fed90000; 0000:00:03.0 at vtd@fed90000; the rest of segment 0000 at vtd@fed91000");
    EXPECT_EQ(facts.reserved.size(), 1U);
    EXPECT_EQ(facts.platform.address_bits, 39);
    ASSERT_EQ(facts.complaints.size(), 1U);
    EXPECT_EQ(facts.complaints[0].text, "a firmware error");
}

TEST(Assemble, TheUsersUnitTakesThePlaceOfTheFirmwaresAndItsName) {
    const SourceFacts facts = assembled(two_units(), "smmu vtd\nunit gfx fed90000");
    ASSERT_EQ(facts.units.size(), 2U);
    EXPECT_EQ(facts.units[0].name, "vtd@fed91000");
    EXPECT_EQ(facts.units[1].name, "gfx");
    EXPECT_EQ(to_string(facts.units[1].origin), "b:2, overrides DMAR");
    EXPECT_EQ(facts.units[1].registers_bytes, 4096U) << "words cannot say it";
    EXPECT_EQ(text_of(facts.covers),
              "0000:00:02.0 at gfx; 0000:00:03.0 at gfx; the rest of segment 0000 at vtd@fed91000");
}

TEST(Assemble, AUnitOfTheSameNameHasTheUsersRegistersAndTheFirmwaresSegment) {
    const SourceFacts facts = assembled(two_units(), "smmu vtd\nunit vtd@fed91000 fed95000");
    ASSERT_EQ(facts.units.size(), 2U);
    EXPECT_EQ(facts.units[1].registers, 0xfed95000U);
    EXPECT_EQ(facts.units[1].segment, 1);
    EXPECT_EQ(facts.units[1].registers_bytes, 0U) << "the size was of other registers";
}

TEST(Assemble, MergeKeepsBothFactsOfAUnitSideBySideFirmwareFirst) {
    const SourceFacts facts = assembled(two_units(), "merge smmu vtd\nunit gfx fed90000");
    ASSERT_EQ(facts.units.size(), 3U);
    EXPECT_EQ(facts.units[0].name, "gfx");
    EXPECT_EQ(facts.units[0].origin.source, Source::dmar);
    EXPECT_EQ(facts.units[1].name, "gfx");
    EXPECT_EQ(to_string(facts.units[1].origin), "b:2");
    EXPECT_EQ(facts.units[2].name, "vtd@fed91000");
}

TEST(Assemble, WhatContradictsInAMergeIsAComplaintAndFirmwareIsKept) {
    const SourceFacts facts = assembled(two_units(), "merge smmu armsmmuv3\nunit vtd@fed90000 9050000");
    ASSERT_EQ(facts.units.size(), 3U);
    EXPECT_EQ(facts.units[0].kind, UnitKind::vt_d);
    EXPECT_THAT(texts_of(facts.complaints),
                AllOf(HasSubstr("b:2: unit vtd@fed90000: type SMMUv3 contradicts VT-d of DMAR offset 0x30"),
                      HasSubstr("registers at 0x9050000 contradicts 0xfed90000")));
}

TEST(Assemble, ADeviceOfTheUserComesFirstAndOverrides) {
    const SourceFacts facts = assembled(two_units(), "device pci:0:2.0 use vtd@fed91000");
    EXPECT_EQ(text_of(facts.covers),
              "0000:00:02.0 at vtd@fed91000; 0000:00:02.0 at vtd@fed90000; 0000:00:03.0 at vtd@fed90000; "
              "the rest of segment 0000 at vtd@fed91000");
    EXPECT_TRUE(facts.covers[0].is_override);
    EXPECT_FALSE(facts.covers[1].is_override);
    EXPECT_EQ(to_string(facts.covers[0].origin), "b:1, overrides DMAR");
}

TEST(Assemble, ADeviceThatFirmwareDoesNotKnowOverridesNothing) {
    const SourceFacts facts =
        assembled(two_units(), "device mem:1000 use vtd@fed91000\ndevice pci:1:0:1.0 use vtd@fed91000");
    EXPECT_EQ(to_string(facts.covers[0].origin), "b:1");
    EXPECT_EQ(to_string(facts.covers[1].origin), "b:2");
}

TEST(Assemble, AMergedDeviceStandsBehindFirmwareAndBeforeTheRest) {
    const SourceFacts facts = assembled(
        two_units(), "device pci:0:2.0 use vtd@fed91000\nmerge pci:0:2.0\ndevice pci:0:9.0 use vtd@fed90000");
    EXPECT_EQ(text_of(facts.covers),
              "0000:00:09.0 at vtd@fed90000; 0000:00:02.0 at vtd@fed90000; 0000:00:03.0 at vtd@fed90000; "
              "0000:00:02.0 at vtd@fed91000; the rest of segment 0000 at vtd@fed91000");
    EXPECT_THAT(
        texts_of(facts.complaints),
        HasSubstr(
            "0000:00:02.0 is behind vtd@fed91000: DMAR offset 0x40 has it behind vtd@fed90000, which is "
            "kept; `override pci:0:2.0` changes it"));
}

TEST(Assemble, TheNarrowestScopeDecides) {
    const std::string words =
        "smmu vtd\nunit gfx fed90000\ndevice pci:0:2.0 use gfx\ndevice pci:0:3.0 use gfx\n";
    const auto overriding = [&](std::string_view scopes) {
        std::string text;
        const SourceFacts facts = assembled(two_units(), words + std::string{scopes});
        for (const CoverFact& cover : facts.covers)
            if (cover.is_override) text += to_string(cover.which).substr(8) + " ";
        return text + (facts.units.size() == 3 ? "both units" : "one unit");
    };
    EXPECT_EQ(overriding(""), "02.0 03.0 one unit");
    EXPECT_EQ(overriding("merge"), "both units");
    EXPECT_EQ(overriding("merge unit:gfx"), "both units");
    EXPECT_EQ(overriding("merge unit:vtd@fed90000"), "both units") << "firmware's name of the same unit";
    EXPECT_EQ(overriding("merge\noverride unit:gfx"), "02.0 03.0 one unit");
    EXPECT_EQ(overriding("override pci:0:2.0\nmerge"), "02.0 both units");
    EXPECT_EQ(overriding("merge unit:gfx\noverride pci:0:3.0"), "03.0 both units");
    EXPECT_EQ(overriding("merge unit:vtd@fed91000"), "02.0 03.0 one unit");
}

TEST(Assemble, ReservedRangesOverrideForTheirDeviceOrAreAdded) {
    const SourceFacts over = assembled(two_units(), "reserved pci:0:2.0 5000,4K\nreserved pci:0:3.0 6000,4K");
    ASSERT_EQ(over.reserved.size(), 3U);
    EXPECT_TRUE(over.reserved[0].is_override);
    EXPECT_EQ(to_string(over.reserved[0].origin), "b:1, overrides DMAR");
    EXPECT_EQ(to_string(over.reserved[1].origin), "b:2") << "firmware has none for it";
    EXPECT_EQ(over.reserved[2].first, 0x1000U);
    const SourceFacts both = assembled(two_units(), "merge pci:0:2.0\nreserved pci:0:2.0 5000,4K");
    ASSERT_EQ(both.reserved.size(), 2U);
    EXPECT_EQ(both.reserved[0].first, 0x1000U);
    EXPECT_FALSE(both.reserved[1].is_override);
}

TEST(Assemble, IgnoreLeavesOutTheSourceWithAllThatItSays) {
    const SourceFacts facts =
        assembled(two_units(), "smmu vtd ignore\nunit gfx fed90000\ndevice pci:0:2.0 use gfx");
    ASSERT_EQ(facts.units.size(), 1U);
    EXPECT_EQ(to_string(facts.units[0].origin), "b:2");
    EXPECT_EQ(text_of(facts.covers), "0000:00:02.0 at gfx");
    EXPECT_THAT(facts.reserved, IsEmpty());
    EXPECT_THAT(facts.complaints, IsEmpty());
    EXPECT_EQ(facts.platform.address_bits, std::nullopt);
    EXPECT_EQ(assembled(two_units(), "smmu amdvi ignore").units.size(), 2U) << "DMAR is not AMD's";
}

TEST(Assemble, RequireWithoutATableIsAnError) {
    const auto missing = assemble({}, words_of("\nsmmu vtd require"));
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code(), Errc::not_found);
    EXPECT_THAT(missing.error().message(), HasSubstr("b:2: smmu vtd require: firmware says nothing"));
    EXPECT_EQ(assembled(two_units(), "smmu vtd require").units.size(), 2U);
    const FirmwareFacts tree{.source = Source::device_tree, .facts = {}};
    EXPECT_TRUE(assemble(std::span{&tree, 1}, words_of("smmu armsmmuv3 require")));
    EXPECT_FALSE(assemble(std::span{&tree, 1}, words_of("smmu amdvi require")));
}

TEST(Assemble, UnitsThatNobodyDeclaresAreNamedAllAtOnce) {
    const FirmwareFacts firmware = two_units();
    const auto wrong =
        assemble(std::span{&firmware, 1},
                 words_of("device pci:0:2.0 use vtd@fed90001\nmerge unit:nobody\ndevice pci:0:3.0 use x"));
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), Errc::invalid_argument);
    EXPECT_THAT(
        wrong.error().message(),
        AllOf(HasSubstr("b:1: neither these words nor the firmware have a unit 'vtd@fed90001'; did you mean "
                        "'vtd@fed90000'?"),
              HasSubstr("b:2: neither"), HasSubstr("'x'; declare it: unit NAME PARAM")));
}

TEST(Assemble, ADeviceTreeBesideAcpiTablesIsLeftOutAndToldOf) {
    FirmwareFacts iort{.source = Source::iort,
                       .facts = {.units = {{.name = "smmuv3@1000", .registers = 0x1000}}}};
    FirmwareFacts tree{.source = Source::device_tree,
                       .facts = {.units = {{.name = "smmuv3@2000", .registers = 0x2000}}}};
    const std::vector<FirmwareFacts> both{iort, tree};
    const auto facts = assemble(both, {});
    ASSERT_TRUE(facts);
    ASSERT_EQ(facts->units.size(), 1U);
    EXPECT_EQ(facts->units[0].name, "smmuv3@1000");
    EXPECT_THAT(texts_of(facts->complaints), HasSubstr("device tree: left out"));
    const std::vector<FirmwareFacts> empty_iort{{.source = Source::iort}, tree};
    EXPECT_EQ(assemble(empty_iort, {})->units.size(), 1U);
}

TEST(Assemble, UnitsOfTwoTablesWithOneNameAreOneWithSeveralFacts) {
    const UnitFact one{.name = "virtio-iommu@0000:00:01.0",
                       .kind = UnitKind::virtio_iommu,
                       .function = pci_address(0, 0, 1, 0),
                       .origin = {.source = Source::viot}};
    UnitFact other = one;
    other.origin.source = Source::iort;
    const UnitFact between{.name = "smmuv3@1000", .origin = {.source = Source::iort}};
    const std::vector<FirmwareFacts> both{{.source = Source::iort, .facts = {.units = {other, between}}},
                                          {.source = Source::viot, .facts = {.units = {one}}}};
    const auto facts = assemble(both, words_of("smmu virtio-iommu\nunit v pci:0:1.0"));
    ASSERT_TRUE(facts);
    ASSERT_EQ(facts->units.size(), 2U);
    EXPECT_EQ(to_string(facts->units[1].origin), "b:2, overrides IORT and VIOT");
    const auto plain = assemble(both, {});
    ASSERT_TRUE(plain);
    ASSERT_EQ(plain->units.size(), 3U);
    EXPECT_EQ(plain->units[0].name, plain->units[1].name);
    EXPECT_EQ(plain->units[2].name, "smmuv3@1000");
    EXPECT_THAT(plain->complaints, IsEmpty());
}

TEST(Assemble, ANameAndRegistersOfTwoFirmwareUnitsMakeThemOneAndThatIsTold) {
    const SourceFacts facts = assembled(two_units(), "smmu vtd\nunit vtd@fed90000 fed91000");
    EXPECT_EQ(facts.units.size(), 1U);
    EXPECT_THAT(texts_of(facts.complaints),
                HasSubstr("is several units of the firmware: vtd@fed90000, vtd@fed91000"));
}

TEST(ChooseCovers, AnOverridingWordLeavesNoIdentityOfTheFirmware) {
    const CoverFact user{.unit = "u",
                         .identity = {.first_id = 1},
                         .origin = {.source = Source::user, .place = "b:1"},
                         .is_override = true};
    const CoverFact firmware{.unit = "u", .identity = {.first_id = 2}, .origin = {.source = Source::iort}};
    const std::vector<const CoverFact*> both{&user, &firmware};
    const CoverChoice choice = choose_covers(both);
    EXPECT_THAT(choice.taken, ElementsAre(&user));
    EXPECT_THAT(choice.overridden, ElementsAre(&firmware));
    ASSERT_EQ(choice.origins.size(), 1U);
    EXPECT_EQ(to_string(choice.origins[0]), "b:1, overrides IORT");
}

TEST(ChooseCovers, TheFirstDecidesTheUnitAndOthersOfItAddIdentities) {
    const CoverFact a{.unit = "u"};
    const CoverFact b{.unit = "v"};
    const CoverFact c{.unit = "u"};
    const CoverFact rest{.unit = "u", .which = PciRest{}};
    const std::vector<const CoverFact*> all{&a, &b, &c, &rest};
    const CoverChoice choice = choose_covers(all);
    EXPECT_THAT(choice.taken, ElementsAre(&a, &c));
    EXPECT_THAT(choice.contradicting, ElementsAre(&b));
    const std::vector<const CoverFact*> alone{&rest};
    EXPECT_THAT(choose_covers(alone).taken, ElementsAre(&rest));
    EXPECT_THAT(choose_covers({}).taken, IsEmpty());
}

TEST(ChooseReserved, AnOverridingRangeStandsInPlaceOfTheOthers) {
    const ReservedFact user{.origin = {.source = Source::user, .place = "b:1"}, .is_override = true};
    const ReservedFact firmware{.origin = {.source = Source::dmar}};
    const std::vector<const ReservedFact*> both{&user, &firmware};
    EXPECT_THAT(choose_reserved(both).taken, ElementsAre(&user));
    EXPECT_EQ(to_string(choose_reserved(both).origins.at(0)), "b:1, overrides DMAR");
    const std::vector<const ReservedFact*> alone{&firmware};
    EXPECT_THAT(choose_reserved(alone).taken, ElementsAre(&firmware));
}

/// What a reader of assembled facts gets for a device.
Outcome outcome_of(const SourceFacts& facts, const Selector& device) {
    Outcome outcome;
    std::vector<const CoverFact*> covers;
    for (const CoverFact& cover : facts.covers)
        if (selects(cover.which, cover.identity.rid_mask, device)) covers.push_back(&cover);
    const CoverChoice choice = choose_covers(covers);
    for (const CoverFact* cover : choice.taken) add_id(*cover, device, outcome.ids);
    if (!choice.taken.empty()) {
        const auto unit = std::ranges::find(facts.units, choice.taken.front()->unit, &UnitFact::name);
        EXPECT_NE(unit, facts.units.end());
        if (unit != facts.units.end()) outcome.unit = unit->registers;
    }
    std::vector<const ReservedFact*> reserved;
    for (const ReservedFact& fact : facts.reserved)
        if (fact.who.empty() ||
            std::ranges::any_of(fact.who, [&](const Selector& who) { return selects(who, 0xffff, device); }))
            reserved.push_back(&fact);
    for (const ReservedFact* fact : choose_reserved(reserved).taken) outcome.reserved.insert(fact->first);
    return outcome;
}

constexpr unsigned count_worlds = 1500;

SourceFacts assembled_world(const World& world, const std::string& text) {
    auto facts = assemble(world.firmware(), words_of(text));
    EXPECT_TRUE(facts) << facts.error().message() << text;
    return facts ? *facts : SourceFacts{};
}

TEST(AssembleModel, EachDeviceGetsWhatTryingAllFactsSays) {
    std::size_t count_merges = 0;
    std::size_t count_contradictions = 0;
    for (unsigned seed = 0; seed < count_worlds; ++seed) {
        const World world{seed};
        const std::string text = World::text(world.lines());
        SCOPED_TRACE(fmt::format("seed {}\n{}", seed, text));
        const SourceFacts facts = assembled_world(world, text);
        const std::string complaints = texts_of(facts.complaints);
        for (std::size_t at = 0; at < world.devices().size(); ++at) {
            ASSERT_EQ(outcome_of(facts, world.devices()[at]), world.expected(at)) << world.word(at);
            const std::string complaint = fmt::format(" {} is behind", to_string(world.devices()[at]));
            ASSERT_EQ(complaints.find(complaint) != std::string::npos, world.contradicts(at)) << complaints;
            count_contradictions += world.contradicts(at) ? 1U : 0U;
        }
        count_merges += std::ranges::none_of(facts.covers, &CoverFact::is_override) ? 1U : 0U;
    }
    EXPECT_GT(count_merges, 50U) << "the worlds are too alike";
    EXPECT_GT(count_contradictions, 50U);
}

TEST(AssembleModel, WordsNeverChangeADeviceThatTheyAreNotAbout) {
    for (unsigned seed = 0; seed < count_worlds; ++seed) {
        const World world{seed};
        const std::string text = World::text(world.lines());
        SCOPED_TRACE(fmt::format("seed {}\n{}", seed, text));
        const SourceFacts before = assembled_world(world, "");
        const SourceFacts after = assembled_world(world, text);
        for (std::size_t at = 0; at < world.devices().size(); ++at)
            if (!world.is_in_plan(at)) {
                ASSERT_EQ(outcome_of(after, world.devices()[at]), outcome_of(before, world.devices()[at]));
            }
    }
}

TEST(AssembleModel, AMergeHasAllThatEitherSays) {
    const auto facts_of = [](const SourceFacts& facts) {
        std::multiset<std::string> all;
        for (const CoverFact& cover : facts.covers)
            all.insert(
                fmt::format("cover {} {}", to_string(cover.which), cover.identity.first_id.value_or(0)));
        for (const ReservedFact& fact : facts.reserved) all.insert(fmt::format("reserved {:#x}", fact.first));
        for (const UnitFact& unit : facts.units)
            all.insert(fmt::format("unit {:#x}", unit.registers.value_or(0)));
        return all;
    };
    for (unsigned seed = 0; seed < count_worlds; ++seed) {
        World world{seed};
        world.plan().merges = true;
        world.plan().unit_merges.clear();
        world.plan().device_merges.clear();
        const std::string text = World::text(world.lines());
        SCOPED_TRACE(fmt::format("seed {}\n{}", seed, text));
        std::multiset<std::string> expected = facts_of(words_of(text).facts);
        for (const FirmwareFacts& source : world.firmware()) expected.merge(facts_of(source.facts));
        ASSERT_EQ(facts_of(assembled_world(world, text)), expected);
    }
}

TEST(AssembleModel, TheOrderOfUnrelatedWordsDoesNotMatter) {
    for (unsigned seed = 0; seed < count_worlds; ++seed) {
        World world{seed};
        const std::string text = World::text(world.lines());
        const std::string mixed = World::text(world.shuffled(world.lines()));
        SCOPED_TRACE(fmt::format("seed {}\n{}---\n{}", seed, text, mixed));
        const SourceFacts one = assembled_world(world, text);
        const SourceFacts other = assembled_world(world, mixed);
        for (const Selector& device : world.devices())
            ASSERT_EQ(outcome_of(one, device), outcome_of(other, device));
    }
}

TEST(AssembleModel, WordsThatAreWrittenAgainAssembleToTheSame) {
    for (unsigned seed = 0; seed < count_worlds; ++seed) {
        const World world{seed};
        const std::string text = World::text(world.lines());
        const std::string again = to_smmu_text(words_of(text));
        SCOPED_TRACE(fmt::format("seed {}\n{}---\n{}", seed, text, again));
        const SourceFacts one = assembled_world(world, text);
        const SourceFacts other = assembled_world(world, again);
        for (const Selector& device : world.devices())
            ASSERT_EQ(outcome_of(one, device), outcome_of(other, device));
    }
}

}  // namespace
}  // namespace guestmem::dma

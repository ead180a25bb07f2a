// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_words.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "guestmem/dma/discover/smmu_arguments.hpp"
#include "guestmem/dma/discover/smmu_schema.hpp"

namespace guestmem::dma {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

UserWords words_of(std::string_view text) {
    auto words = read_smmu_text(text, "board.smmu", {});
    EXPECT_TRUE(words) << words.error().message();
    return words ? *words : UserWords{};
}

TEST(SmmuWords, TheUsualStartOnX86NamesVtdAndNothingElse) {
    const std::vector<std::string> line{"smmu", "vtd"};
    const auto words = read_smmu_words(line, {});
    ASSERT_TRUE(words) << words.error().message();
    ASSERT_TRUE(words->types.contains(SmmuType::vtd));
    EXPECT_EQ(words->types.at(SmmuType::vtd).value, FirmwareUse::use);
    EXPECT_EQ(words->types.at(SmmuType::vtd).place, "command line");
    EXPECT_THAT(words->facts.units, IsEmpty());
}

TEST(SmmuWords, AUnitAndItsDevicesAreFactsWithTheirLines) {
    const UserWords words = words_of(
        "smmu vtd ignore\n"
        "unit gfx fed90000   # integrated graphics\n"
        "device pci:0:2.0 use gfx\n");
    EXPECT_EQ(words.types.at(SmmuType::vtd).value, FirmwareUse::ignore);
    ASSERT_EQ(words.facts.units.size(), 1U);
    EXPECT_EQ(words.facts.units[0].name, "gfx");
    EXPECT_EQ(words.facts.units[0].kind, UnitKind::vt_d);
    EXPECT_EQ(words.facts.units[0].registers, 0xfed90000U);
    EXPECT_EQ(words.facts.units[0].origin, (Origin{.source = Source::user, .place = "board.smmu:2"}));
    ASSERT_EQ(words.facts.covers.size(), 1U);
    const CoverFact& cover = words.facts.covers[0];
    EXPECT_EQ(cover.unit, "gfx");
    EXPECT_EQ(to_string(cover.which), "0000:00:02.0");
    EXPECT_EQ(cover.identity.first_id, std::nullopt);
    EXPECT_FALSE(cover.is_override) << "assemble() decides it";
    EXPECT_EQ(to_string(cover.origin), "board.smmu:3");
}

TEST(SmmuWords, ADeviceByItsRegistersHasStreamIdsThatAddUp) {
    const UserWords words = words_of(
        "smmu armsmmu unit mmu500 0x51400000,64,66,0\n"
        "device mem:5b010000 use mmu500 17\n"
        "device mem:0x5b010000 use mmu500 18 dma\n"
        "device mem:5b010000 use mmu500 17\n"
        "allow dma 80000000,16M\n");
    ASSERT_EQ(words.facts.covers.size(), 2U) << "the same said again says nothing";
    EXPECT_EQ(words.facts.covers[0].identity.first_id, 17U);
    EXPECT_EQ(words.facts.covers[1].identity.first_id, 18U);
    EXPECT_EQ(std::get<MmioDevice>(words.facts.covers[1].which).registers, 0x5b010000U);
    EXPECT_EQ(words.devices.size(), 1U);
}

TEST(SmmuWords, AllowGathersRangesAndDevices) {
    const UserWords words = words_of(
        "device pci:0:18.0 foo\n"
        "allow foo 0x20000000,0d4096\n"
        "allow foo 30000000,1M,r\n"
        "device pci:0:19.0 foo\n"
        "allow bar 0,1\n");
    ASSERT_EQ(words.allowed.size(), 2U);
    EXPECT_EQ(words.allowed[0].name, "foo");
    ASSERT_EQ(words.allowed[0].ranges.size(), 2U);
    EXPECT_EQ(words.allowed[0].ranges[0].last, 0x20000fffU);
    EXPECT_FALSE(words.allowed[0].ranges[1].can_write);
    EXPECT_EQ(words.allowed[0].ranges[1].place, "board.smmu:3");
    ASSERT_EQ(words.allowed[0].devices.size(), 2U);
    EXPECT_EQ(to_string(words.allowed[0].devices[0].value), "0000:00:12.0");
    EXPECT_THAT(words.facts.covers, IsEmpty()) << "a set says no unit";
    ASSERT_EQ(words.facts.complaints.size(), 1U);
    EXPECT_EQ(words.facts.complaints[0].text, "allow set bar is of no device");
}

TEST(SmmuWords, OfOtherWordsTheLastOneHolds) {
    const UserWords words = words_of(
        "smmu vtd require debug 1 debug 2 safety none safety warn user a user b:c\n"
        "merge override foreground foreground\n"
        "smmu vtd unit u 1000 unit u 2000\n"
        "merge unit:u override unit:u\n");
    EXPECT_EQ(words.types.at(SmmuType::vtd).value, FirmwareUse::use);
    EXPECT_EQ(words.debug->value, 2);
    EXPECT_EQ(words.safety->value, SafetyMode::warn);
    EXPECT_EQ(words.user->value, "b:c");
    EXPECT_TRUE(words.foreground->value);
    EXPECT_EQ(words.mode.value, LayMode::overrides);
    EXPECT_EQ(words.mode.place, "board.smmu:2");
    ASSERT_EQ(words.facts.units.size(), 1U);
    EXPECT_EQ(words.facts.units[0].registers, 0x2000U);
    EXPECT_EQ(words.unit_modes.at("u").value, LayMode::overrides);
}

TEST(SmmuWords, AUnitsParameterIsReadByTheTypeInForce) {
    const UserWords words = words_of(
        "smmu armsmmuv3 unit a 9050000\n"
        "smmu rcar3 e67b0000,228,1 unit b e6740000,3\n"
        "smmu virtio-iommu unit c pci:0:1.0\n");
    ASSERT_EQ(words.facts.units.size(), 3U);
    EXPECT_EQ(words.facts.units[0].kind, UnitKind::smmu_v3);
    EXPECT_EQ(words.facts.units[1].kind, UnitKind::other);
    EXPECT_THAT(words.details[1].interrupts, ElementsAre(3U));
    EXPECT_EQ(words.facts.units[2].function, pci_address(0, 0, 1, 0));
}

TEST(SmmuWords, ReservedIsADirectRangeOfOneDevice) {
    const UserWords words = words_of("reserved pci:0:20.0 ac000000,0x20000,r");
    ASSERT_EQ(words.facts.reserved.size(), 1U);
    const ReservedFact& fact = words.facts.reserved[0];
    EXPECT_EQ(fact.kind, ReservedKind::direct);
    EXPECT_EQ(fact.first, 0xac000000U);
    EXPECT_EQ(fact.last, 0xac01ffffU);
    EXPECT_TRUE(fact.can_read);
    EXPECT_FALSE(fact.can_write);
    ASSERT_EQ(fact.who.size(), 1U);
    EXPECT_EQ(to_string(fact.who[0]), "0000:00:14.0");
}

TEST(SmmuWords, WhatHasNoEffectHereIsAComplaint) {
    const UserWords words =
        words_of("smmu armsmmu unit m 1000,1,2,1,,imx8\nsmmu vtd unit v 2000\ndevice mem:5000 use v");
    std::string all;
    for (const Complaint& complaint : words.facts.complaints)
        all += fmt::format("{}: {}\n", to_string(complaint.origin), complaint.text);
    EXPECT_THAT(all,
                HasSubstr("board.smmu:1: unit m: documented by QNX, not supported here: board DLL imx8"));
    EXPECT_THAT(all, HasSubstr("board.smmu:1: unit m: streams that nobody configured pass"));
    EXPECT_THAT(all, HasSubstr("board.smmu:3: mem:0x5000 cannot be told from other devices by unit v"));
}

TEST(SmmuWords, FilesAndTheCommandLineAreReadInOnePass) {
    const SmmuLoader loader = [](const std::string& path,
                                 std::size_t /*limit_bytes*/) -> Result<std::string> {
        if (path == "/etc/board.smmu") return std::string{"smmu vtd\ndebug 1\n"};
        return Error{Errc::not_found, "no such file"};
    };
    const std::vector<std::string> line{"debug", "2", "@/etc/board.smmu", "unit", "u", "1000"};
    const auto words = read_smmu_words(line, loader);
    ASSERT_TRUE(words) << words.error().message();
    EXPECT_EQ(words->debug->value, 1) << "the file stands behind";
    EXPECT_EQ(words->debug->place, "/etc/board.smmu:2");
    EXPECT_EQ(words->facts.units.at(0).origin.place, "command line");
    const auto wrong = read_smmu_words(std::vector<std::string>{"@/etc/none.smmu", "debg"}, loader);
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), Errc::invalid_argument);
    EXPECT_THAT(wrong.error().message(), HasSubstr("command line:1:17: error: unknown word 'debg'"));
    EXPECT_THAT(wrong.error().message(), HasSubstr("@/etc/none.smmu: no such file"));
}

TEST(SmmuWords, NoWordsSayNothing) {
    const UserWords words = words_of(" # nothing\n");
    EXPECT_EQ(to_smmu_text(words), "");
    EXPECT_EQ(words.mode.place, "");
}

// --- round trip ---

void expect_same(const UserWords& a, const UserWords& b) {
    ASSERT_EQ(a.facts.units.size(), b.facts.units.size());
    for (std::size_t at = 0; at < a.facts.units.size(); ++at) {
        EXPECT_EQ(a.facts.units[at].name, b.facts.units[at].name);
        EXPECT_EQ(a.facts.units[at].kind, b.facts.units[at].kind);
        EXPECT_EQ(a.facts.units[at].registers, b.facts.units[at].registers);
        EXPECT_EQ(a.facts.units[at].function, b.facts.units[at].function);
        EXPECT_EQ(a.details[at].reserved_ids, b.details[at].reserved_ids);
        EXPECT_EQ(a.details[at].board_library, b.details[at].board_library);
    }
    ASSERT_EQ(a.facts.covers.size(), b.facts.covers.size());
    for (std::size_t at = 0; at < a.facts.covers.size(); ++at) {
        EXPECT_EQ(a.facts.covers[at].unit, b.facts.covers[at].unit);
        EXPECT_EQ(to_string(a.facts.covers[at].which), to_string(b.facts.covers[at].which));
        EXPECT_EQ(a.facts.covers[at].identity.first_id, b.facts.covers[at].identity.first_id);
    }
    ASSERT_EQ(a.allowed.size(), b.allowed.size());
    for (std::size_t at = 0; at < a.allowed.size(); ++at) {
        EXPECT_EQ(a.allowed[at].name, b.allowed[at].name);
        ASSERT_EQ(a.allowed[at].ranges.size(), b.allowed[at].ranges.size());
        for (std::size_t i = 0; i < a.allowed[at].ranges.size(); ++i) {
            const AllowedRange& one = a.allowed[at].ranges[i];
            const AllowedRange& other = b.allowed[at].ranges[i];
            EXPECT_EQ(one.first, other.first);
            EXPECT_EQ(one.last, other.last);
            EXPECT_EQ(one.can_read, other.can_read);
            EXPECT_EQ(one.can_write, other.can_write);
            EXPECT_EQ(one.can_execute, other.can_execute);
        }
        EXPECT_EQ(a.allowed[at].devices.size(), b.allowed[at].devices.size());
    }
    EXPECT_EQ(a.facts.reserved.size(), b.facts.reserved.size());
    EXPECT_EQ(a.devices.size(), b.devices.size());
    EXPECT_EQ(a.types.size(), b.types.size());
    for (const auto& [type, use] : a.types) EXPECT_EQ(use.value, b.types.at(type).value);
    EXPECT_EQ(a.mode.value, b.mode.value);
    for (const auto& [name, mode] : a.unit_modes) EXPECT_EQ(mode.value, b.unit_modes.at(name).value);
    for (const auto& [name, mode] : a.device_modes) EXPECT_EQ(mode.value, b.device_modes.at(name).value);
}

class RandomText {
public:
    explicit RandomText(unsigned seed) : random_(seed) {}

    std::string make() {
        std::string text;
        const std::size_t count = below(20);
        for (std::size_t at = 0; at < count; ++at) text += line() + "\n";
        for (std::size_t set = 0; set < 3; ++set) text += fmt::format("allow set{} {}\n", set, range());
        return text;
    }

private:
    std::size_t below(std::size_t limit) {
        return std::uniform_int_distribution<std::size_t>{0, limit - 1}(random_);
    }
    std::string device() {
        return below(3) == 0 ? fmt::format("mem:{:x}", 0x1000 * (1 + below(4)))
                             : fmt::format("pci:{}:{}:{}.{}", below(2), below(2), below(3), below(2));
    }
    /// Each device has its one unit, so that the words do not contradict.
    std::string device_with_use() {
        const std::size_t number = below(6);
        const std::string who =
            number < 3 ? fmt::format("mem:{:x}", 0x100000 * (number + 1)) : fmt::format("pci:9:{}.0", number);
        return fmt::format("device {} use s{} {}", who, number, below(3));
    }
    std::string range() {
        static constexpr std::array<std::string_view, 6> ends{"", ",r", ",w", ",rw", ",rx", ",rwx"};
        return fmt::format("{:x},{}{}{}", below(1 << 20), below(100) + 1, below(2) == 0 ? "K" : "",
                           ends[below(6)]);
    }
    std::string line() {
        switch (below(11)) {
            case 0: return fmt::format("smmu vtd{}", std::array{"", " require", " ignore"}[below(3)]);
            case 1: {
                const std::size_t number = below(4);
                return fmt::format("smmu vtd unit v{} {:x}", number, 0xfed90000 + number * 0x1000);
            }
            case 2: {
                const std::size_t number = below(6);
                return fmt::format("smmu armsmmu unit s{} {:x},1,2,{},{}{}", number,
                                   0x51400000 + number * 0x10000, below(2), below(2) == 0 ? "" : "4:5",
                                   below(2) == 0 ? "" : ",imx8");
            }
            case 3: return device_with_use();
            case 4: return fmt::format("device {} set{}", device(), below(3));
            case 5: return fmt::format("allow set{} {}", below(3), range());
            case 6: return fmt::format("reserved {} {}", device(), range());
            case 7: return fmt::format("{} unit:s{}", below(2) == 0 ? "merge" : "override", below(6));
            case 8: return below(2) == 0 ? "merge" : "override";
            case 9: {
                const std::string who = device();
                return fmt::format("device {}\nmerge {}", who, who);
            }
            default:
                return std::string{
                    std::array{"debug 1", "debug 2", "foreground", "safety warn", "user a:1"}[below(5)]};
        }
    }
    std::mt19937 random_;
};

TEST(SmmuWords, WordsThatAreWrittenAgainSayTheSame) {
    for (unsigned seed = 0; seed < 400; ++seed) {
        SCOPED_TRACE(fmt::format("seed {}", seed));
        const std::string text = RandomText{seed}.make();
        const auto first = read_smmu_text(text, "a", {});
        ASSERT_TRUE(first) << text << first.error().message();
        const std::string written = to_smmu_text(*first);
        const auto second = read_smmu_text(written, "b", {});
        ASSERT_TRUE(second) << written << second.error().message();
        expect_same(*first, *second);
        ASSERT_EQ(to_smmu_text(*second), written);
        if (::testing::Test::HasFailure()) FAIL() << text << "---\n" << written;
    }
}

}  // namespace
}  // namespace guestmem::dma

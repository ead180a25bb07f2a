// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/manifest.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <regex>
#include <string>
#include <vector>

#include "guestmem/mem/template/page_sum.hpp"

namespace guestmem {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t gib = std::uint64_t{1} << 30;

Manifest good() {
    return Manifest{.id = "0123456789abcdef0123456789abcdef",
                    .made_at_s = 1'800'000'000,
                    .owner = 1000,
                    .regions = {{"low", 0, 2 * gib, 0, false},
                                {"high", 4 * gib, gib, 2 * gib, false},
                                {"bios", 0xfffc0000, 0x40000, 3 * gib, true}},
                    .image_bytes = 3 * gib + 0x40000,
                    .stored_bytes = 3 * gib + 0x40000,
                    .data_pages = 17,
                    .sum_of_sums = 0xfedcba9876543210,
                    .image_changed_ns = 1'800'000'000'123'456'789,
                    .state_bytes = 99,
                    .state_sum = 1,
                    .parent = ParentLink{"base", "ffffffffffffffffffffffffffffffff", 20, 7},
                    .provenance = {{"source", "a test"}, {"quote", "\"\n\\"}}};
}

std::string error_of(const Manifest& manifest) {
    const auto checked = check_manifest(manifest);
    const auto parsed = parse_manifest(to_text(manifest));
    EXPECT_EQ(bool{checked}, bool{parsed});
    if (checked) return "";
    EXPECT_EQ(parsed.error().code(), Errc::corrupt);
    return checked.error().message();
}

/// With its sum set right: what is wrong is what the test changes.
std::string summed(const std::string& text) {
    static const std::regex sum{R"(,\s*"sum": "[0-9a-f]{16}")"};
    const std::string without = std::regex_replace(text, sum, "");
    const std::string bare = without.substr(0, without.rfind('}') + 1);
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx",
                  static_cast<unsigned long long>(bytes_sum(std::as_bytes(std::span{bare}))));
    static const std::regex old{R"("sum": "[0-9a-f]{16}")"};
    return std::regex_replace(text, old, std::string{"\"sum\": \""} + digits + "\"");
}

TEST(Manifest, IsTheSameAfterWritingAndReading) {
    EXPECT_EQ(parse_manifest(to_text(good())).value(), good());
    Manifest alone = good();
    alone.parent.reset();
    alone.provenance.clear();
    alone.state_bytes = 0;
    EXPECT_EQ(parse_manifest(to_text(alone)).value(), alone);
}

TEST(Manifest, TextsThatATerminalWouldObeyAreEscaped) {
    Manifest manifest = good();
    manifest.provenance["escape"] = "\x1b[2J\xff";
    EXPECT_THAT(to_text(manifest), ::testing::Not(HasSubstr("\x1b")));
}

TEST(Manifest, AnySingleByteThatIsChangedIsNoticed) {
    const std::string text = to_text(good());
    std::size_t count_taken = 0;
    for (std::size_t at = 0; at < text.size(); ++at) {
        std::string changed = text;
        changed[at] = static_cast<char>(changed[at] ^ 1);
        const auto parsed = parse_manifest(changed);
        // A blank between two fields is none of them.
        if (parsed) {
            ++count_taken;
            EXPECT_EQ(*parsed, good()) << at;
        }
    }
    EXPECT_LT(count_taken, 5U);
}

TEST(Manifest, EachFieldIsNeededAndOfItsType) {
    const std::string text = to_text(good());
    static const std::regex line{R"re(\n  "([a-z_]+)": )re"};
    std::size_t count = 0;
    for (std::sregex_iterator at{text.begin(), text.end(), line}, end; at != end; ++at) {
        const std::string name = (*at)[1];
        std::string renamed = text;
        renamed.replace(static_cast<std::size_t>(at->position(1)), name.size(), "x" + name.substr(1));
        const auto missing = parse_manifest(summed(renamed));
        if (name == "parent") continue;
        ASSERT_FALSE(missing) << name;
        ++count;
        std::string wrong = text;
        wrong.insert(static_cast<std::size_t>(at->position(0) + at->length(0)), "[[]],\n  \"y\": ");
        EXPECT_FALSE(parse_manifest(summed(wrong))) << name;
    }
    EXPECT_EQ(count, 17U);
}

TEST(Manifest, TimesAreSome) {
    Manifest manifest = good();
    manifest.made_at_s = 253'402'300'799;
    EXPECT_EQ(error_of(manifest), "");
    ++manifest.made_at_s;
    EXPECT_THAT(error_of(manifest), HasSubstr("time"));
    manifest = good();
    manifest.image_changed_ns = -1;
    EXPECT_THAT(error_of(manifest), HasSubstr("time"));
}

TEST(Manifest, WhatIsStoredFitsToTheEncodingAndTheParent) {
    Manifest manifest = good();
    manifest.stored_bytes += 4096;
    EXPECT_THAT(error_of(manifest), HasSubstr("raw image"));
    manifest.encoding = ImageEncoding::zstd;
    EXPECT_EQ(error_of(manifest), "");
    manifest.stored_bytes = max_image_bytes + 1;
    EXPECT_NE(error_of(manifest), "");
    manifest = good();
    manifest.parent->count_pages = manifest.data_pages - 1;
    EXPECT_THAT(error_of(manifest), HasSubstr("difference"));
    const std::string text = to_text(good());
    const std::string other = summed(std::regex_replace(text, std::regex{"\"raw\""}, "\"lzma\""));
    EXPECT_EQ(parse_manifest(other).error().code(), Errc::unsupported);
}

TEST(Manifest, RegionsAreWholePagesThatOverlapNowhere) {
    struct Case {
        const char* says;
        void (*change)(Manifest& manifest);
    };
    constexpr std::uint64_t top = ~std::uint64_t{0} - 4095;
    const std::vector<Case> cases{
        {"the id is not", [](Manifest& m) { m.id = "0123456789ABCDEF0123456789abcdef"; }},
        {"the id is not", [](Manifest& m) { m.id.pop_back(); }},
        {"there are 0 regions", [](Manifest& m) { m.regions.clear(); }},
        {"there are 1025 regions", [](Manifest& m) { m.regions.resize(1025); }},
        {"an image of 0 bytes", [](Manifest& m) { m.image_bytes = 0; }},
        {"an image of 4097 bytes", [](Manifest& m) { m.image_bytes = 4097; }},
        {"an image of", [](Manifest& m) { m.image_bytes = max_image_bytes + 4096; }},
        {"more pages with data", [](Manifest& m) { m.data_pages = m.image_bytes / 4096 + 1; }},
        {"the state is too large", [](Manifest& m) { m.state_bytes = max_state_bytes + 1; }},
        {"a region has no name", [](Manifest& m) { m.regions[0].name.clear(); }},
        {"a region has no name", [](Manifest& m) { m.regions[0].name.assign(256, 'a'); }},
        {"region 'low' is not whole pages of the guest", [](Manifest& m) { m.regions[0].guest_address = 1; }},
        {"region 'low' is not whole pages of the guest", [](Manifest& m) { m.regions[0].size_bytes = 0; }},
        {"region 'low' is not whole pages of the guest", [](Manifest& m) { ++m.regions[0].size_bytes; }},
        {"region 'low' is not whole pages of the image",
         [](Manifest& m) { m.regions[0].image_offset_bytes = 8; }},
        {"'low' and 'bios' overlap in the guest", [](Manifest& m) { m.regions[2].guest_address = 0; }},
        {"overlap in the guest", [](Manifest& m) { m.regions[1].guest_address = 2 * gib - 4096; }},
        {"'low' and 'high' overlap in the image", [](Manifest& m) { m.regions[1].image_offset_bytes = gib; }},
        {"'bios' ends beyond the guest", [](Manifest& m) { m.regions[2].guest_address = top; }},
        {"'bios' ends beyond the image", [](Manifest& m) { m.regions[2].image_offset_bytes += 4096; }},
        {"'bios' ends beyond the image", [](Manifest& m) { m.regions[2].image_offset_bytes = top; }},
        {"'bios' ends beyond the guest", [](Manifest& m) { m.regions[2].size_bytes = top; }},
        {"the parent has no name", [](Manifest& m) { m.parent->name = "../base"; }},
        {"the parent has no name", [](Manifest& m) { m.parent->id = "1"; }},
    };
    for (const Case& one : cases) {
        Manifest manifest = good();
        one.change(manifest);
        EXPECT_THAT(error_of(manifest), HasSubstr(one.says));
    }
    Manifest last = good();
    last.regions[2].guest_address = ~std::uint64_t{0} - 0x3ffff;
    EXPECT_EQ(error_of(last), "") << "up to the last byte of the guest";
}

TEST(Manifest, OfAnotherFormatOrVersionIsRefused) {
    EXPECT_EQ(parse_manifest("").error().code(), Errc::corrupt);
    EXPECT_EQ(parse_manifest("[]").error().code(), Errc::corrupt);
    EXPECT_EQ(parse_manifest("{}").error().code(), Errc::corrupt);
    EXPECT_EQ(parse_manifest(std::string(max_manifest_bytes + 1, ' ')).error().code(), Errc::out_of_range);
    std::string next = to_text(good());
    next.replace(next.find("\"version\": 1"), 12, "\"version\": 2");
    const auto parsed = parse_manifest(next);
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().code(), Errc::unsupported);
    EXPECT_THAT(parsed.error().message(), HasSubstr("version 2; this program knows version 1"));
}

TEST(Manifest, ThatNestsDeepTakesNoStack) {
    for (const char* open : {"[", "{\"a\":"}) {
        std::string text = "{\"format\": \"guestmem-template\", \"a\": ";
        while (text.size() < max_manifest_bytes - 10) text += open;
        EXPECT_FALSE(parse_manifest(text));
    }
    std::string deep = to_text(good());
    deep.insert(1, "\"deep\": " + std::string(200'000, '[') + std::string(200'000, ']') + ",");
    EXPECT_FALSE(parse_manifest(deep));
}

TEST(Manifest, NamesAreOnePartOfAPath) {
    for (const char* name : {"a", "base-1.2_x", "0", "A..b"}) EXPECT_TRUE(is_template_name(name)) << name;
    for (const char* name : {"", ".", "..", ".hidden", "-x", "a/b", "a b", "\xc3\xa4", "a\n"})
        EXPECT_FALSE(is_template_name(name)) << name;
    EXPECT_TRUE(is_template_name(std::string(128, 'a')));
    EXPECT_FALSE(is_template_name(std::string(129, 'a')));
}

TEST(Manifest, OfRandomBytesIsAnErrorAndNothingElse) {
    std::mt19937 random{7};
    const std::string text = to_text(good());
    for (int round = 0; round < 2000; ++round) {
        std::string changed = text;
        for (int i = 0; i < 3; ++i) {
            const std::size_t at = random() % changed.size();
            if (random() % 2 == 0)
                changed[at] = static_cast<char>(random());
            else
                changed.erase(at, random() % 40);
            if (changed.empty()) changed = "{";
        }
        const auto parsed = parse_manifest(summed(changed));
        if (parsed) {
            EXPECT_TRUE(check_manifest(*parsed));
        }
    }
}

}  // namespace
}  // namespace guestmem

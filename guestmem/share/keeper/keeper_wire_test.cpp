// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_wire.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>

namespace guestmem::share {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t highest = std::numeric_limits<std::uint32_t>::max();

std::string to_hex(std::span<const std::byte> bytes) {
    std::ostringstream text;
    for (const std::byte byte : bytes) {
        constexpr const char* digits = "0123456789abcdef";
        text << digits[std::to_integer<unsigned>(byte) >> 4] << digits[std::to_integer<unsigned>(byte) & 15];
    }
    return text.str();
}

/// "name | bytes" of the block of vectors in docs/protocols/keeper.md.
std::map<std::string, std::string> read_vectors() {
    std::ifstream file{GUESTMEM_SOURCE "/docs/protocols/keeper.md"};
    std::map<std::string, std::string> vectors;
    bool is_inside = false;
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("```")) {
            is_inside = line == "```vectors";
            continue;
        }
        const std::size_t bar = line.find(" | ");
        if (!is_inside || bar == std::string::npos) continue;
        std::string bytes = line.substr(bar + 3);
        std::erase(bytes, ' ');
        const std::string name = line.substr(0, line.find_last_not_of(' ', bar) + 1);
        vectors[name] = bytes;
    }
    return vectors;
}

std::map<std::string, KeeperMessage> examples() {
    const KeptKey journal{};
    const KeptKey bell{.kind = KeptKind::doorbell, .share = 3, .index = 0x1f};
    return {{"welcome", {.verb = KeeperVerb::welcome, .values = {1, 2, 32'768}}},
            {"refused EBUSY", {.verb = KeeperVerb::refused, .status = 16, .values = {812, 0, 0}}},
            {"holding two", {.verb = KeeperVerb::holding, .keys = {journal, bell}}},
            {"holding no more", {.verb = KeeperVerb::holding}},
            {"done 7", {.verb = KeeperVerb::done, .number = 7}},
            {"done 8 ENOSPC", {.verb = KeeperVerb::done, .number = 8, .status = 28}},
            {"next", {.verb = KeeperVerb::next}},
            {"keep one", {.verb = KeeperVerb::keep, .keys = {bell}}},
            {"keep with answer", {.verb = KeeperVerb::keep, .number = 7, .keys = {journal}}},
            {"forget", {.verb = KeeperVerb::forget, .keys = {bell}}},
            {"sync", {.verb = KeeperVerb::sync, .number = 8}},
            {"end", {.verb = KeeperVerb::end, .number = 258}}};
}

TEST(KeeperWire, IsAsItsPageShows) {
    const auto vectors = read_vectors();
    EXPECT_EQ(vectors.size(), examples().size());
    for (const auto& [name, message] : examples()) {
        ASSERT_TRUE(vectors.contains(name)) << name;
        EXPECT_EQ(to_hex(encode(message)), vectors.at(name)) << name;
    }
}

TEST(KeeperWire, GivesBackWhatWasSaid) {
    for (const auto& [name, message] : examples()) {
        const auto decoded = decode_keeper_message(encode(message));
        ASSERT_TRUE(decoded) << name << ": " << decoded.error().message();
        EXPECT_EQ(*decoded, message) << name;
    }
    KeeperMessage largest{.verb = KeeperVerb::keep, .number = highest, .status = highest};
    largest.keys.assign(max_keys_per_message, {.kind = KeptKind::bell, .share = highest, .index = highest});
    EXPECT_EQ(encode(largest).size(), max_keeper_message_bytes);
    EXPECT_EQ(decode_keeper_message(encode(largest)).value(), largest);
}

TEST(KeeperWire, OneKeyPastTheLimitIsRefused) {
    auto packet = encode({.verb = KeeperVerb::keep, .keys = std::vector<KeptKey>(max_keys_per_message)});
    packet.resize(packet.size() + keeper_key_bytes);
    packet[6] = std::byte{251};
    const auto decoded = decode_keeper_message(packet);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code(), Errc::corrupt);
    EXPECT_THAT(decoded.error().message(), HasSubstr("251 keys"));
}

TEST(KeeperWire, RefusesWhatIsNotWhole) {
    const auto whole = encode({.verb = KeeperVerb::forget, .keys = {KeptKey{}, KeptKey{}}});
    for (std::size_t size = 0; size < whole.size(); ++size)
        EXPECT_FALSE(decode_keeper_message(std::span{whole}.first(size))) << size;
    auto longer = whole;
    longer.push_back({});
    EXPECT_FALSE(decode_keeper_message(longer));
}

TEST(KeeperWire, RefusesOtherMagicVerbsAndKinds) {
    const auto good = encode({.verb = KeeperVerb::forget, .keys = {KeptKey{}}});
    const auto with = [&](std::size_t at, int value) {
        auto packet = good;
        packet[at] = static_cast<std::byte>(value);
        return decode_keeper_message(packet);
    };
    EXPECT_TRUE(with(4, 18));
    EXPECT_FALSE(with(0, 0)) << "the magic";
    EXPECT_FALSE(with(4, 0));
    EXPECT_FALSE(with(4, 5));
    EXPECT_FALSE(with(4, 15));
    EXPECT_FALSE(with(4, 21));
    EXPECT_FALSE(with(5, 1)) << "the verb's high byte";
    EXPECT_TRUE(with(keeper_header_bytes, 7));
    EXPECT_FALSE(with(keeper_header_bytes, 8)) << "the kind behind the last";
    EXPECT_FALSE(with(keeper_header_bytes + 1, 1)) << "what has to be zero";
    EXPECT_FALSE(with(keeper_header_bytes + 3, 1));
}

TEST(KeeperWire, KeysBelongToThoseThatHaveThem) {
    for (const auto verb : {KeeperVerb::welcome, KeeperVerb::refused, KeeperVerb::done, KeeperVerb::next,
                            KeeperVerb::sync, KeeperVerb::end}) {
        EXPECT_TRUE(decode_keeper_message(encode({.verb = verb})));
        EXPECT_FALSE(decode_keeper_message(encode({.verb = verb, .keys = {KeptKey{}}})));
    }
    EXPECT_FALSE(decode_keeper_message(encode({.verb = KeeperVerb::keep})));
    EXPECT_FALSE(decode_keeper_message(encode({.verb = KeeperVerb::forget})));
}

}  // namespace
}  // namespace guestmem::share

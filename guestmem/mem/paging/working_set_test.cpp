// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/working_set.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace guestmem {
namespace {

using ::testing::HasSubstr;

const std::string some_id = "0123456789abcdef0123456789abcdef";

WorkingSet some_set() { return {.template_id = some_id, .image_pages = 1000, .pages = {7, 999, 0, 8}}; }

/// The bytes of some_set() with one of them changed.
std::vector<std::byte> with(std::size_t at, unsigned value) {
    std::vector<std::byte> bytes = to_bytes(some_set()).value();
    bytes.at(at) = std::byte(value);
    return bytes;
}

std::string refusal(std::span<const std::byte> bytes) {
    const auto set = parse_working_set(bytes);
    if (set) return "taken";
    EXPECT_EQ(set.error().code(), Errc::corrupt);
    return set.error().message();
}

TEST(WorkingSet, IsTheSameAfterItWasWrittenAndRead) {
    for (const WorkingSet& set :
         {some_set(), WorkingSet{.template_id = some_id, .image_pages = 0, .pages = {}},
          WorkingSet{.template_id = some_id, .image_pages = ~std::uint64_t{0}, .pages = {~std::uint64_t{1}}}})
        EXPECT_EQ(parse_working_set(to_bytes(set).value()).value(), set);
}

TEST(WorkingSet, HasTheBytesOfItsDescription) {
    const WorkingSet set{.template_id = some_id, .image_pages = 0x0201, .pages = {0x0102}};
    std::string text{"GMWSET\0\0\1\0\0\0\0\0\0\0\1\2\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 32};
    text += some_id + std::string{"\2\1\0\0\0\0\0\0", 8};
    const std::vector<std::byte> bytes = to_bytes(set).value();
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), text);
}

TEST(WorkingSet, IsRefusedCutShortAnywhereOrWithBytesBehind) {
    std::vector<std::byte> bytes = to_bytes(some_set()).value();
    for (std::size_t size = 0; size < bytes.size(); ++size)
        EXPECT_FALSE(parse_working_set(std::span{bytes}.first(size))) << size;
    bytes.push_back({});
    EXPECT_FALSE(parse_working_set(bytes));
    bytes.resize(bytes.size() + 7);
    EXPECT_THAT(refusal(bytes), HasSubstr("do not fill"));
}

TEST(WorkingSet, IsRefusedWithWhateverFieldIsWrong) {
    EXPECT_THAT(refusal(with(0, 'X')), HasSubstr("GMWSET"));
    EXPECT_THAT(refusal(with(7, 1)), HasSubstr("GMWSET"));
    EXPECT_THAT(refusal(with(8, 2)), HasSubstr("version 2"));
    EXPECT_THAT(refusal(with(12, 1)), HasSubstr("behind the version"));
    EXPECT_THAT(refusal(with(17, 2)), HasSubstr("outside the image"));  // 744 pages
    EXPECT_THAT(refusal(with(24, 3)), HasSubstr("do not fill"));
    EXPECT_THAT(refusal(with(31, 0xff)), HasSubstr("do not fill"));
    EXPECT_THAT(refusal(with(32, 'G')), HasSubstr("digits"));
    EXPECT_THAT(refusal(with(64, 8)), HasSubstr("page 8 is in it twice"));
    EXPECT_THAT(refusal(with(71, 0xff)), HasSubstr("outside the image"));
}

TEST(WorkingSet, AtTheLimitIsTakenAndPastItRefused) {
    constexpr std::size_t most = (max_working_set_bytes - 64) / 8;
    WorkingSet set{.template_id = some_id, .image_pages = most + 1, .pages = {}};
    for (std::size_t i = 0; i < most; ++i) set.pages.push_back(i);
    std::vector<std::byte> bytes = to_bytes(set).value();
    EXPECT_EQ(bytes.size(), max_working_set_bytes);
    EXPECT_TRUE(parse_working_set(bytes));
    bytes.resize(bytes.size() + 8);
    EXPECT_THAT(refusal(bytes), HasSubstr("are more than"));
    set.pages.push_back(most);
    EXPECT_FALSE(to_bytes(set));
}

TEST(WorkingSet, ThatCouldNotBeReadIsNotWritten) {
    WorkingSet set = some_set();
    set.pages.push_back(7);
    EXPECT_EQ(to_bytes(set).error().code(), Errc::invalid_argument);
    set = some_set();
    set.image_pages = 999;
    EXPECT_FALSE(to_bytes(set));
    set = some_set();
    set.template_id = "me";
    EXPECT_FALSE(to_bytes(set));
}

}  // namespace
}  // namespace guestmem

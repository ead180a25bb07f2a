// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/kernel_text.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TempFolder;

TEST(ParseKernelNumber, IsTheWholeText) {
    EXPECT_EQ(parse_kernel_number("0"), 0U);
    EXPECT_EQ(parse_kernel_number(" 12\n"), 12U);
    EXPECT_EQ(parse_kernel_number("18446744073709551615"), std::numeric_limits<std::uint64_t>::max());
    for (const char* text : {"", " ", "\n", "-1", "+1", "1.5", "1 2", "12kB", "0x10", "max",
                             "18446744073709551616", "99999999999999999999999999999999"})
        EXPECT_EQ(parse_kernel_number(text), std::nullopt) << text;
}

TEST(ValueOfLine, IsThatOfTheFirstLineWithTheWholeKey) {
    constexpr std::string_view text = "anon 1\ninactive_file  2 \nfile 3\nfile 4\nlast";
    EXPECT_EQ(value_of_line(text, "file"), "3");
    EXPECT_EQ(value_of_line(text, "inactive_file"), "2");
    EXPECT_EQ(value_of_line(text, "last"), "");
    EXPECT_EQ(value_of_line(text, "ano"), std::nullopt);
    EXPECT_EQ(value_of_line(text, "no"), std::nullopt);
    EXPECT_EQ(value_of_line("", "no"), std::nullopt);
    EXPECT_EQ(value_of_line("\n\n\n", "no"), std::nullopt);
}

TEST(MeminfoBytes, AreKibibytes) {
    EXPECT_EQ(meminfo_bytes("MemFree:   12 kB\n", "MemFree:"), 12288U);
    EXPECT_EQ(meminfo_bytes("MemFree: 18014398509481983 kB", "MemFree:"),
              std::numeric_limits<std::uint64_t>::max() - 1023);
    for (const char* text : {"", "MemFree:", "MemFree: kB", "MemFree: 12", "MemFree: 12 MB", "MemFree: -1 kB",
                             "MemFree: 18014398509481984 kB", "xMemFree: 1 kB"})
        EXPECT_EQ(meminfo_bytes(text, "MemFree:"), std::nullopt) << text;
}

TEST(ReadIfThere, AFileThatIsNotThereIsNothing) {
    const TempFolder folder;
    EXPECT_EQ(*read_if_there(folder.path_of("no"), 10), std::nullopt);
    EXPECT_EQ(*read_if_there(folder.write("f", "text"), 10), "text");
    EXPECT_FALSE(read_if_there(folder.write("large", "12345678901"), 10));
    EXPECT_FALSE(read_if_there(folder.path(), 10));
}

TEST(ReadIfThere, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "text");
    EXPECT_EQ(for_each_fault([&] { return read_if_there(path, 10); }), 3U);
}

TEST(ReadKernelNumber, WhatIsNoneIsAnErrorThatShowsIt) {
    const TempFolder folder;
    EXPECT_EQ(*read_kernel_number(folder.write("good", "42\n")), 42U);
    EXPECT_FALSE(read_kernel_number(folder.path_of("no")));
    const auto number = read_kernel_number(folder.write("bad", "\x1b[2J" + std::string(100, 'x')));
    ASSERT_FALSE(number);
    EXPECT_EQ(number.error().code(), Errc::corrupt);
    EXPECT_THAT(number.error().message(), HasSubstr(folder.path_of("bad")));
    EXPECT_THAT(number.error().message(), HasSubstr("'?[2J" + std::string(36, 'x') + "' is not a number"));
    EXPECT_THAT(number.error().message(), Not(HasSubstr("\x1b")));
}

TEST(ReadKernelNumber, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "1");
    EXPECT_EQ(for_each_fault([&] { return read_kernel_number(path); }), 3U);
}

}  // namespace
}  // namespace guestmem

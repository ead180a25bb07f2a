// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/tar_archive.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::dma {
namespace {

using guestmem::testing::TempFolder;
using ::testing::HasSubstr;

/// A header as a hostile program writes it; the sum is right.
std::string header(std::string_view name, char type, std::string_view size, std::string_view target = {}) {
    std::string block(512, '\0');
    block.replace(0, name.size(), name);
    block.replace(124, size.size(), size);
    block[156] = type;
    block.replace(157, target.size(), target);
    block.replace(257, 5, "ustar");
    block.replace(148, 8, 8, ' ');
    unsigned sum = 0;
    for (const char c : block) sum += static_cast<unsigned char>(c);
    block.replace(148, 6, fmt::format("{:06o}", sum));
    block[154] = '\0';
    return block;
}

std::string padded(std::string text) {
    text.resize((text.size() + 511) / 512 * 512, '\0');
    return text;
}

std::string file(std::string_view name, const std::string& content) {
    return header(name, '0', fmt::format("{:011o}", content.size())) + padded(content);
}

std::string pax(const std::string& key, const std::string& value) {
    std::string record = fmt::format(" {}={}\n", key, value);
    const std::size_t digits = record.size() + 3 < 100 ? 2 : record.size() + 3 < 1000 ? 3 : 4;
    record = fmt::format("{}{}", record.size() + digits, record);
    return header("pax", 'x', fmt::format("{:011o}", record.size())) + padded(record);
}

const std::string end_of_archive(1024, '\0');

std::string exact_refusal(std::string bytes) {
    const auto archive = TarArchive::read(std::move(bytes));
    return archive ? "taken" : archive.error().message();
}

/// Of the same with an end behind it.
std::string refusal(const std::string& bytes) { return exact_refusal(bytes + end_of_archive); }

TEST(TarArchive, WhatIsWrittenIsReadSortedAndWhole) {
    TarWriter writer;
    ASSERT_TRUE(writer.add_file("sys/b", "bytes"));
    ASSERT_TRUE(writer.add_link("sys/a/driver", "../../drivers/e1000e"));
    ASSERT_TRUE(writer.add_file("proc/empty", ""));
    ASSERT_TRUE(writer.add_file("proc/block", std::string(512, 'x')));
    const auto archive = TarArchive::read(std::move(writer).finish());
    ASSERT_TRUE(archive) << archive.error().message();
    ASSERT_EQ(archive->entries().size(), 4U);
    EXPECT_EQ(archive->entries()[0].path, "proc/block");
    EXPECT_EQ(archive->entries()[2].path, "sys/a/driver");
    EXPECT_EQ(archive->entries()[2].kind, TarEntry::Kind::link);
    EXPECT_EQ(archive->entries()[2].content, "../../drivers/e1000e");
    EXPECT_EQ(archive->find("sys/b")->content, "bytes");
    EXPECT_EQ(archive->find("sys"), nullptr);
    EXPECT_EQ(archive->find("sys/c"), nullptr);
}

TEST(TarArchive, NamesAndTargetsOfEveryLengthSurvive) {
    for (const std::size_t length : {1U, 99U, 100U, 101U, 155U, 156U, 255U, 256U, 257U, 1000U, 4095U}) {
        std::string flat(length, 'n');
        std::string deep;
        while (deep.size() < length) deep += deep.size() % 50 == 40 ? '/' : 'd';
        if (deep.back() == '/') deep.back() = 'd';
        TarWriter writer;
        ASSERT_TRUE(writer.add_file("0" + flat.substr(1), "flat"));
        ASSERT_TRUE(writer.add_file(deep, "deep"));
        ASSERT_TRUE(writer.add_link("link", flat));
        const auto archive = TarArchive::read(std::move(writer).finish());
        ASSERT_TRUE(archive) << archive.error().message();
        EXPECT_EQ(archive->find("0" + flat.substr(1))->content, "flat") << length;
        EXPECT_EQ(archive->find(deep)->content, "deep") << length;
        EXPECT_EQ(archive->find("link")->content, flat) << length;
    }
}

TEST(TarArchive, TheSystemsTarReadsIt) {
    const TempFolder folder;
    TarWriter writer;
    const std::string deep = "sys/" + std::string(120, 'a') + "/" + std::string(90, 'b');
    ASSERT_TRUE(writer.add_file(deep, "deep"));
    ASSERT_TRUE(writer.add_file(std::string(180, 'c'), "flat"));
    ASSERT_TRUE(writer.add_link("link", std::string(150, 't')));
    folder.write("a.tar", std::move(writer).finish());
    const std::string command =
        fmt::format("tar -xf {} -C {} 2>/dev/null", folder.path_of("a.tar"), folder.path());
    if (std::system("tar --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "there is no tar(1)";
    ASSERT_EQ(std::system(command.c_str()), 0);
    EXPECT_EQ(folder.read(deep), "deep");
    EXPECT_EQ(folder.read(std::string(180, 'c')), "flat");
    EXPECT_EQ(std::filesystem::read_symlink(folder.path_of("link")), std::string(150, 't'));
}

TEST(TarArchive, TheSystemsArchivesAreRead) {
    const TempFolder folder;
    if (std::system("tar --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "there is no tar(1)";
    const std::string deep = "sys/" + std::string(120, 'a') + "/" + std::string(90, 'b');
    std::filesystem::create_directories(folder.path_of("tree/" + deep));
    folder.write("tree/" + deep + "/file", "deep");
    std::filesystem::create_symlink(std::string(150, 't'), folder.path_of("tree/link"));
    for (const char* format : {"gnu", "pax", "ustar", "v7"}) {
        const bool is_short = std::string_view{format} == "ustar" || std::string_view{format} == "v7";
        if (is_short) {
            std::filesystem::remove_all(folder.path_of("tree"));
            std::filesystem::create_directories(folder.path_of("tree/sys"));
            folder.write("tree/sys/file", "deep");
        }
        ASSERT_EQ(std::system(fmt::format("tar --format={} -cf {} -C {} .", format, folder.path_of("a.tar"),
                                          folder.path_of("tree"))
                                  .c_str()),
                  0);
        const auto archive = TarArchive::read(folder.read("a.tar"));
        ASSERT_TRUE(archive) << format << ": " << archive.error().message();
        const TarEntry* found = archive->find(is_short ? "sys/file" : deep + "/file");
        ASSERT_NE(found, nullptr) << format;
        EXPECT_EQ(found->content, "deep");
        if (is_short) continue;
        ASSERT_NE(archive->find("link"), nullptr);
        EXPECT_EQ(archive->find("link")->content, std::string(150, 't'));
    }
}

TEST(TarArchive, NamesThatLeadOutsideAreRefused) {
    EXPECT_THAT(refusal(file("../etc/passwd", "x")), HasSubstr("leads outside"));
    EXPECT_THAT(refusal(file("sys/../../x", "x")), HasSubstr("leads outside"));
    EXPECT_THAT(refusal(file("/etc/passwd", "x")), HasSubstr("absolute"));
    EXPECT_THAT(refusal(file("./", "x")), HasSubstr("no name"));
    EXPECT_THAT(refusal(file("a//b", "x")), HasSubstr("empty part"));
    EXPECT_THAT(refusal(pax("path", "../x") + file("a", "x")), HasSubstr("leads outside"));
    EXPECT_THAT(refusal(file("\033[31m/../x", "x")), HasSubstr("'?[31m/../x'"));
    EXPECT_EQ(refusal(file("./..x/a", "x")), "taken") << "two dots begin a name";
}

TEST(TarArchive, ANameIsTakenOnceAndNotBelowAFileOrLink) {
    EXPECT_THAT(refusal(file("a", "1") + file("b", "") + file("./a", "2")), HasSubstr("'a' is in it twice"));
    const std::string link = header("sys", '2', "0", "/etc");
    EXPECT_THAT(refusal(link + file("sys-a/b", "") + file("sys/passwd", "x")),
                HasSubstr("below a file or link"));
    EXPECT_THAT(refusal(file("a", "1") + file("a-b", "") + file("a/b/c", "2")), HasSubstr("below a file"));
    EXPECT_EQ(refusal(file("a", "1") + file("a-b/c", "") + file("ab/c", "2")), "taken");
}

TEST(TarArchive, LinksDevicesAndUnknownEntriesAreRefused) {
    EXPECT_THAT(refusal(file("a", "") + header("b", '1', "0", "a")), HasSubstr("hard link"));
    for (const char type : {'3', '4', '6', 'S', 'V', 'Z'})
        EXPECT_THAT(refusal(header("b", type, "0")), HasSubstr("an entry of type")) << type;
    EXPECT_THAT(refusal(header("b", '2', "0", "")), HasSubstr("without a target"));
    EXPECT_EQ(refusal(header("b", '5', "0") + file("b/c", "")), "taken") << "a folder";
}

TEST(TarArchive, SizesBeyondTheArchiveAreRefused) {
    EXPECT_THAT(exact_refusal(header("a", '0', "77777777777")),
                HasSubstr("bytes are said to follow, and 0 do"));
    EXPECT_THAT(exact_refusal(header("a", '0', "00000001001") + std::string(512, 'x')),
                HasSubstr("513 bytes"));
    EXPECT_THAT(exact_refusal(header("a", '0', "-1")), HasSubstr("size is no number"));
    std::string huge = "\x80";
    huge += "\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    EXPECT_THAT(exact_refusal(header("a", '0', huge)), HasSubstr("size is no number"));
    EXPECT_THAT(exact_refusal(pax("size", "99999999999999") + file("a", "x")),
                HasSubstr("are said to follow"));
    EXPECT_THAT(exact_refusal(pax("size", "99999999999999999999999") + file("a", "x")), HasSubstr("size"));
    EXPECT_THAT(exact_refusal(header("long", 'L', "00000010001") + padded(std::string(4097, 'n'))),
                HasSubstr("too long"));
}

TEST(TarArchive, AnArchiveThatIsCutOffAnywhereIsRefused) {
    const std::string whole = file("a", std::string(600, 'x')) + file("b", "y") + end_of_archive;
    for (std::size_t length = 0; length <= whole.size(); ++length) {
        // Of the two blocks of zeros at the end one is enough.
        EXPECT_EQ(exact_refusal(whole.substr(0, length)) == "taken", length >= whole.size() - 512) << length;
    }
    EXPECT_THAT(exact_refusal(""), HasSubstr("it is empty"));
    EXPECT_THAT(exact_refusal(end_of_archive), HasSubstr("no entries"));
    EXPECT_THAT(exact_refusal(file("a", "x")), HasSubstr("the rest of it is missing"));
}

TEST(TarArchive, AWrongSumOrExtendedHeaderIsRefused) {
    std::string bytes = file("a", "x");
    bytes[1] = 'z';
    EXPECT_THAT(refusal(bytes), HasSubstr("sum is wrong"));
    EXPECT_THAT(refusal(std::string(512, 'x')), HasSubstr("sum is wrong"));
    for (const std::string text :
         {"9", "6 a=\n", "0 a=b\n", "99 a=b\n", "6 a=bx", "7 abcd\n", "18446744073709551617 a=b\n"})
        EXPECT_NE(
            refusal(header("p", 'x', fmt::format("{:011o}", text.size())) + padded(text) + file("a", "")),
            "taken")
            << text;
    EXPECT_THAT(refusal(pax("GNU.sparse.major", "1") + file("a", "x")), HasSubstr("holes"));
}

TEST(TarArchive, EntriesAreCountedUpToTheLimit) {
    std::string bytes;
    std::string one = header("x00000", '0', "00000000000");
    bytes.reserve((max_tar_entries + 1) * 512);
    for (std::size_t i = 0; i <= max_tar_entries; ++i) bytes += header(fmt::format("x{:06x}", i), '0', "0");
    EXPECT_THAT(refusal(bytes), HasSubstr("more than 262144 entries"));
    bytes.resize(bytes.size() - 512);
    EXPECT_EQ(refusal(bytes), "taken");
}

TEST(TarWriter, RefusesWhatAReaderWould) {
    TarWriter writer;
    for (const char* path : {"", "/a", "../a", "a/../b", "a//b", "a/", "."})
        EXPECT_FALSE(writer.add_file(path, "")) << path;
    EXPECT_FALSE(writer.add_file(std::string(max_tar_name_bytes + 1, 'a'), ""));
    EXPECT_FALSE(writer.add_link("a", ""));
    EXPECT_FALSE(writer.add_link("a", std::string(max_tar_name_bytes + 1, 'a')));
    EXPECT_EQ(writer.size_bytes(), 0U);
}

TEST(TarArchive, StaysWhereItsEntriesAreWhenItIsMoved) {
    TarWriter writer;
    ASSERT_TRUE(writer.add_file("a", "content"));
    TarArchive first = TarArchive::read(std::move(writer).finish()).value();
    const TarArchive second = std::move(first);
    EXPECT_EQ(second.find("a")->content, "content");
}

}  // namespace
}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/fd.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <type_traits>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::TempFolder;

bool is_closed(int number) { return ::fcntl(number, F_GETFD) < 0 && errno == EBADF; }

Fd some_fd() { return open_file("/dev/null", OpenMode::read).value(); }

static_assert(!std::is_copy_constructible_v<Fd> && !std::is_copy_assignable_v<Fd>);
static_assert(!std::is_convertible_v<int, Fd> && !std::is_convertible_v<int, FdView>);

TEST(Fd, ADefaultOneOwnsNothing) {
    const Fd nothing;
    EXPECT_FALSE(nothing.is_open());
    EXPECT_FALSE(nothing.view().is_open());
}

TEST(Fd, ClosesWhenItGoes) {
    int number = -1;
    {
        const Fd fd = some_fd();
        number = fd.view().number();
        EXPECT_FALSE(is_closed(number));
    }
    EXPECT_TRUE(is_closed(number));
}

TEST(Fd, AMoveLeavesOneOwner) {
    Fd first = some_fd();
    const int number = first.view().number();

    const Fd second{std::move(first)};

    EXPECT_FALSE(first.is_open());  // NOLINT(bugprone-use-after-move): what a moved one owns is the question
    EXPECT_EQ(second.view().number(), number);
}

TEST(Fd, AMoveAssignmentClosesWhatWasThere) {
    Fd first = some_fd();
    Fd second = some_fd();
    const int closed = second.view().number();
    const int kept = first.view().number();

    second = std::move(first);

    EXPECT_TRUE(is_closed(closed));
    EXPECT_FALSE(is_closed(kept));
    EXPECT_EQ(second.view().number(), kept);
}

TEST(Fd, AnAssignmentToItselfKeepsItOpen) {
    Fd fd = some_fd();
    Fd& same = fd;

    fd = std::move(same);

    EXPECT_TRUE(fd.is_open());
    EXPECT_FALSE(is_closed(fd.view().number()));
}

TEST(Fd, ADuplicateOutlivesTheFirst) {
    const TempFolder folder;
    Fd first = open_file(folder.write("f", "text"), OpenMode::read).value();
    const Fd second = first.duplicate().value();

    first.reset();

    EXPECT_EQ(file_facts(second)->size_bytes, 4U);
    EXPECT_NE(::fcntl(second.view().number(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Fd, NothingHasNoDuplicate) { EXPECT_FALSE(Fd{}.duplicate()); }

TEST(OpenFile, IsCloseOnExecInEveryMode) {
    const TempFolder folder;
    for (const OpenMode mode : {OpenMode::create_exclusive, OpenMode::read, OpenMode::read_write}) {
        const auto fd = open_file(folder.path_of("f"), mode);
        ASSERT_TRUE(fd) << fd.error().message();
        EXPECT_NE(::fcntl(fd->view().number(), F_GETFD) & FD_CLOEXEC, 0);
    }
}

TEST(OpenFile, MakesAFileOnceAndForItsOwnerOnly) {
    const TempFolder folder;
    const std::string path = folder.path_of("f");

    ASSERT_TRUE(open_file(path, OpenMode::create_exclusive));
    const auto again = open_file(path, OpenMode::create_exclusive);

    struct stat status{};
    ASSERT_EQ(::stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777U, 0600U);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Errc::already_exists);
}

TEST(OpenFile, SaysWhichFileIsMissing) {
    const auto fd = open_file("/nowhere/at/all", OpenMode::read);
    ASSERT_FALSE(fd);
    EXPECT_EQ(fd.error().code(), Errc::not_found);
    EXPECT_THAT(fd.error().message(), HasSubstr("/nowhere/at/all"));
}

TEST(ReadTextFile, ReadsAFileOfTheLimitAndRefusesOnePast) {
    const TempFolder folder;
    const std::string text(100'000, 'x');
    const std::string path = folder.write("f", text);

    EXPECT_EQ(*read_text_file(path, text.size()), text);
    const auto refused = read_text_file(path, text.size() - 1);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
    EXPECT_THAT(refused.error().message(), HasSubstr("99999 bytes"));
}

TEST(ReadTextFile, ReadsAnEmptyFileAndOneWhoseSizeIsNotTold) {
    const TempFolder folder;
    EXPECT_EQ(*read_text_file(folder.write("f", ""), 0), "");
    EXPECT_THAT(*read_text_file("/proc/self/status", 64 * 1024), HasSubstr("Pid:"));
}

TEST(ReadTextFile, OfAFolderIsAnError) {
    const TempFolder folder;
    EXPECT_FALSE(read_text_file(folder.path(), 100));
}

TEST(WriteTextFile, MakesAFileAndReplacesOne) {
    const TempFolder folder;
    const std::string path = folder.path_of("f");

    ASSERT_TRUE(write_text_file(path, "first"));
    EXPECT_EQ(folder.read("f"), "first");
    ASSERT_TRUE(write_text_file(path, ""));

    EXPECT_EQ(folder.read("f"), "");
    EXPECT_THAT(folder.entries(), ElementsAre("f"));
}

TEST(WriteTextFile, IsNotStoppedByTheDraftOfAKilledProcess) {
    const TempFolder folder;
    folder.write("f." + std::to_string(::getpid()) + ".new", "half");

    ASSERT_TRUE(write_text_file(folder.path_of("f"), "whole"));

    EXPECT_EQ(folder.read("f"), "whole");
    EXPECT_THAT(folder.entries(), ElementsAre("f"));
}

TEST(WriteTextFile, DoesNotWriteThroughALinkInTheDraftsPlace) {
    const TempFolder folder;
    const std::string victim = folder.write("victim", "safe");
    std::filesystem::create_symlink(victim, folder.path_of("f." + std::to_string(::getpid()) + ".new"));

    ASSERT_TRUE(write_text_file(folder.path_of("f"), "text"));

    EXPECT_EQ(folder.read("victim"), "safe");
}

TEST(WriteTextFile, WhateverFailsTheOldFileStaysWhole) {
    const TempFolder folder;
    const std::string path = folder.write("f", "old");

    const auto count = for_each_fault([&] { return write_text_file(path, "new text"); },
                                      [&] {
                                          EXPECT_THAT(folder.entries(), ElementsAre("f"));
                                          EXPECT_THAT(folder.read("f"), ::testing::AnyOf("old", "new text"));
                                      });

    EXPECT_EQ(folder.read("f"), "new text");
    EXPECT_GE(count, 4U);  // open, write, fchmod, rename
}

TEST(OpenFile, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    for_each_fault([&] { return open_file(folder.path_of("f"), OpenMode::create_exclusive); });
    EXPECT_THAT(folder.entries(), ElementsAre("f"));
    const std::string path = folder.write("g", "text");
    EXPECT_GE(for_each_fault([&] { return read_text_file(path, 10); }), 3U);
    const Fd fd = some_fd();
    EXPECT_EQ(for_each_fault([&] { return fd.duplicate(); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return file_facts(fd); }), 2U);
}

TEST(ReadSome, ReadsWhatIsThereAndThenTheEnd) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const Fd out{ends[0]};
    Fd in{ends[1]};
    ASSERT_EQ(::write(in.view().number(), "abc", 3), 3);
    in.reset();
    std::array<std::byte, 8> buffer{};

    EXPECT_EQ(*read_some(out, buffer), 3U);
    EXPECT_EQ(*read_some(out, buffer), 0U);
    EXPECT_FALSE(read_some(FdView{}, buffer));
}

TEST(FileFacts, TellFilesFromSocketsAndReadersFromWriters) {
    const TempFolder folder;
    const std::string path = folder.write("f", "12345");
    const Fd reader = open_file(path, OpenMode::read).value();
    const Fd writer = open_file(path, OpenMode::read_write).value();

    const FileFacts read_only = file_facts(reader).value();
    const FileFacts writable = file_facts(writer).value();
    const FileFacts device = file_facts(some_fd()).value();

    EXPECT_TRUE(read_only.is_regular);
    EXPECT_FALSE(read_only.is_writable);
    EXPECT_TRUE(writable.is_writable);
    EXPECT_EQ(read_only.size_bytes, 5U);
    EXPECT_EQ(read_only.inode, writable.inode);
    EXPECT_EQ(read_only.device, writable.device);
    EXPECT_FALSE(device.is_regular);
    EXPECT_FALSE(device.is_socket);
}

TEST(FileFacts, OfAClosedDescriptorAreAnError) { EXPECT_FALSE(file_facts(FdView{})); }

}  // namespace
}  // namespace guestmem

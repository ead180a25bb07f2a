// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_file.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t size = 3 * 4096;

struct stat status_of(const std::string& path) {
    struct stat status{};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return status;
}

/// A file that fits, but for what the caller changes.
std::string fitting_file(const TempFolder& folder) {
    std::string path = folder.write("memory", std::string(size, 'x'));
    EXPECT_EQ(::chmod(path.c_str(), 0600), 0);
    return path;
}

void expect_refused(const std::string& path, Errc code, const std::string& words) {
    const struct stat before = status_of(path);
    const auto file = open_memory_file(path, size);
    ASSERT_FALSE(file) << path;
    EXPECT_EQ(file.error().code(), code) << file.error().message();
    EXPECT_THAT(file.error().message(), HasSubstr(words));
    EXPECT_THAT(file.error().message(), HasSubstr(path));
    const struct stat after = status_of(path);
    EXPECT_EQ(after.st_ino, before.st_ino);
    EXPECT_EQ(after.st_size, before.st_size);
    EXPECT_EQ(after.st_mode, before.st_mode);
}

TEST(MemoryFile, ThatWasNotThereIsPrivateWhateverTheUmask) {
    for (const mode_t mask : {0U, 0022U, 0777U}) {
        const TempFolder folder;
        const mode_t usual = ::umask(mask);
        const auto file = open_memory_file(folder.path_of("memory"), size);
        ::umask(usual);
        ASSERT_TRUE(file) << file.error().message();
        EXPECT_FALSE(file->was_there);
        EXPECT_EQ(status_of(folder.path_of("memory")).st_mode & 07777U, 0600U) << mask;
        EXPECT_EQ(file_facts(file->fd)->size_bytes, size);
    }
}

TEST(MemoryFile, ThatFitsKeepsItsBytes) {
    const TempFolder folder;
    const auto file = open_memory_file(fitting_file(folder), size);
    ASSERT_TRUE(file) << file.error().message();
    EXPECT_TRUE(file->was_there);
    EXPECT_EQ(folder.read("memory"), std::string(size, 'x'));
}

TEST(MemoryFile, OfNoBytesIsOneThatWasNotThere) {
    const TempFolder folder;
    const auto file = open_memory_file(folder.write("memory", ""), size);
    ASSERT_TRUE(file) << file.error().message();
    EXPECT_FALSE(file->was_there);
    EXPECT_EQ(status_of(folder.path_of("memory")).st_mode & 07777U, 0600U);
    EXPECT_EQ(file_facts(file->fd)->size_bytes, size);
}

TEST(MemoryFile, OfAnotherSizeIsRefusedAndNotTouched) {
    for (const std::size_t other : {std::size_t{1}, std::size_t{size - 1}, std::size_t{size + 1}}) {
        const TempFolder folder;
        const std::string path = folder.write("memory", std::string(other, 'x'));
        expect_refused(path, Errc::invalid_argument, "bytes, not 12288");
    }
}

TEST(MemoryFile, ThatOthersMayWriteIsRefused) {
    const TempFolder folder;
    const std::string path = fitting_file(folder);
    for (const mode_t mode : {0620U, 0602U, 0666U}) {
        ASSERT_EQ(::chmod(path.c_str(), mode), 0);
        expect_refused(path, Errc::permission_denied, "others may write it");
    }
    ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
    EXPECT_TRUE(open_memory_file(path, size));
}

TEST(MemoryFile, OfAnotherUserIsRefused) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
    const TempFolder folder;
    const std::string path = fitting_file(folder);
    ASSERT_EQ(::chown(path.c_str(), 65534, 65534), 0);
    expect_refused(path, Errc::permission_denied, "belongs to user 65534");
}

TEST(MemoryFile, WithASecondNameIsRefused) {
    const TempFolder folder;
    const std::string path = fitting_file(folder);
    ASSERT_EQ(::link(path.c_str(), folder.path_of("second").c_str()), 0);
    expect_refused(path, Errc::permission_denied, "2 names");
}

TEST(MemoryFile, ThatIsALinkIsRefusedAlsoOneThatLeadsNowhere) {
    const TempFolder folder;
    const std::string path = folder.path_of("link");
    ASSERT_EQ(::symlink(fitting_file(folder).c_str(), path.c_str()), 0);
    expect_refused(path, Errc::invalid_argument, "link");
    ASSERT_EQ(::unlink(path.c_str()), 0);
    ASSERT_EQ(::symlink(folder.path_of("nothing").c_str(), path.c_str()), 0);
    expect_refused(path, Errc::invalid_argument, "link");
    EXPECT_FALSE(std::filesystem::exists(folder.path_of("nothing")));
}

TEST(MemoryFile, ThatIsNoFileIsRefused) {
    const TempFolder folder;
    const std::string pipe = folder.path_of("pipe");
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    expect_refused(pipe, Errc::invalid_argument, "no ordinary file");
    EXPECT_FALSE(open_memory_file(folder.path(), size));
    EXPECT_FALSE(open_memory_file("/dev/null", size));
}

TEST(MemoryFile, WithoutItsFolderIsAnError) {
    const TempFolder folder;
    const auto file = open_memory_file(folder.path_of("no/memory"), size);
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::not_found);
}

TEST(MemoryFile, OfNoWholePagesIsNotMade) {
    const TempFolder folder;
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4097},
                                      std::uint64_t{1} << 63, std::numeric_limits<std::uint64_t>::max()})
        EXPECT_FALSE(open_memory_file(folder.path_of("memory"), bytes)) << bytes;
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(MemoryFile, WhateverFailsNoNewFileIsLeft) {
    const TempFolder folder;
    const std::string path = folder.path_of("memory");
    std::vector<bool> is_left;
    const auto count = for_each_fault([&] { return open_memory_file(path, size); },
                                      [&] { is_left.push_back(std::filesystem::exists(path)); });
    // The last round made it.
    EXPECT_EQ(std::ranges::count(is_left, true), 1);
    EXPECT_TRUE(is_left.back());
    EXPECT_GE(count, 5U);  // open, open, fchmod, getrlimit, ftruncate
    EXPECT_GE(for_each_fault([&] { return open_memory_file(path, size); }), 2U);
    EXPECT_EQ(std::filesystem::file_size(path), size);
}

TEST(ShmPath, IsTheFileThatShmOpenOpens) {
    const std::string name = "/guestmem-test-" + std::to_string(::getpid());
    const auto file = open_memory_file(shm_path(name).value(), size);
    ASSERT_TRUE(file) << file.error().message();
    const Fd opened{::shm_open(name.c_str(), O_RDWR, 0)};
    ASSERT_TRUE(opened.is_open());
    EXPECT_EQ(file_facts(opened)->inode, file_facts(file->fd)->inode);
    remove_name_of(shm_path(name).value(), file->fd);
    EXPECT_EQ(::shm_open(name.c_str(), O_RDWR, 0), -1);
}

TEST(ShmPath, HasItsOnlySlashInFront) {
    EXPECT_EQ(*shm_path("/mailbox"), "/dev/shm/mailbox");
    EXPECT_TRUE(shm_path("/" + std::string(255, 'n')));
    for (const std::string& name :
         {std::string{}, std::string{"/"}, std::string{"mailbox"}, std::string{"/."}, std::string{"/.."},
          std::string{"//x"}, std::string{"/x/"}, std::string{"/../x"}, std::string{"/a\0b", 4},
          "/" + std::string(256, 'n')})
        EXPECT_FALSE(shm_path(name)) << name;
}

TEST(RemoveNameOf, LeavesAnotherFileOfThatName) {
    const TempFolder folder;
    const std::string path = folder.path_of("memory");
    const Fd file = std::move(open_memory_file(path, size).value().fd);
    ASSERT_EQ(::rename(path.c_str(), folder.path_of("away").c_str()), 0);
    folder.write("memory", "another");
    remove_name_of(path, file);
    EXPECT_EQ(folder.read("memory"), "another");
    remove_name_of(folder.path_of("away"), file);
    EXPECT_FALSE(std::filesystem::exists(folder.path_of("away")));
    remove_name_of(folder.path_of("away"), file);
}

TEST(ReopenReadOnly, ShowsTheSameFileAndCannotWriteIt) {
    const TempFolder folder;
    const Fd file = std::move(open_memory_file(folder.path_of("memory"), size).value().fd);
    const auto reader = reopen_read_only(file);
    ASSERT_TRUE(reader) << reader.error().message();
    EXPECT_EQ(file_facts(*reader)->inode, file_facts(file)->inode);
    EXPECT_FALSE(file_facts(*reader)->is_writable);
    EXPECT_EQ(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, reader->view().number(), 0),
              MAP_FAILED);
    EXPECT_EQ(errno, EACCES);
    EXPECT_EQ(::fcntl(reader->view().number(), F_GETFD), FD_CLOEXEC);
    EXPECT_FALSE(reopen_read_only(FdView{}));
    EXPECT_EQ(for_each_fault([&] { return reopen_read_only(file); }), 1U);
}

}  // namespace
}  // namespace guestmem

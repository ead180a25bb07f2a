// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/sparse_file.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using testing::GuestPages;
using ::testing::HasSubstr;
using testing::PageAccess;
using testing::TempFolder;

constexpr std::uint64_t no_end = std::numeric_limits<std::uint64_t>::max();
/// A multiple of the blocks of every file system here.
constexpr std::uint64_t block = 64 * 1024;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

std::string read_text(FdView fd, std::uint64_t offset_bytes, std::size_t size_bytes) {
    std::string text(size_bytes, '?');
    const auto done = read_at(fd, offset_bytes, std::as_writable_bytes(std::span{text}));
    return done ? text : done.error().message();
}

/// Another limit on file sizes for one test.
class SizeLimit {
public:
    explicit SizeLimit(std::uint64_t limit_bytes) {
        GM_CHECK(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
        const rlimit limit{.rlim_cur = limit_bytes, .rlim_max = before_.rlim_max};
        GM_CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
    }
    SizeLimit(const SizeLimit&) = delete;
    SizeLimit& operator=(const SizeLimit&) = delete;
    ~SizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

private:
    rlimit before_{};
};

struct NamedFile {
    std::string name;
    Fd fd;
};

Fd make_memfd() { return Fd{::memfd_create("sparse", MFD_CLOEXEC)}; }

Fd make_file(const TempFolder& folder) { return create_unlinked_file(folder.path(), "sparse").value(); }

/// An empty file of each file system that there is.
std::vector<NamedFile> make_files(const TempFolder& folder) {
    std::vector<NamedFile> files;
    files.push_back({file_system_facts(folder.path())->type, make_file(folder)});
    files.push_back({"memfd", make_memfd()});
    if (is_folder("/dev/shm")) files.push_back({"/dev/shm", create_shm("sparse").value()});
    return files;
}

/// Both files of a copy, on the same file system or not.
struct Copied {
    explicit Copied(bool is_same = true)
        : from(make_file(folder)), to(is_same ? make_file(folder) : make_memfd()) {
        GM_CHECK(write_at(from, 0, bytes_of(text)));
        GM_CHECK(write_at(to, 0, bytes_of(std::string(text.size(), '.'))));
    }
    const TempFolder folder;
    Fd from;
    Fd to;
    const std::string text = [] {
        // Two and a half buffers of pieces that differ.
        std::string made;
        for (int i = 0; made.size() < copy_buffer_bytes * 5 / 2; ++i) made += std::to_string(i) + " ";
        return made;
    }();
};

TEST(NextData, WalksFromDataToData) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        ASSERT_TRUE(resize_file(file.fd, 10 * block));
        ASSERT_TRUE(write_at(file.fd, 2 * block, bytes_of(std::string(block, 'a'))));
        ASSERT_TRUE(write_at(file.fd, 5 * block, bytes_of(std::string(2 * block, 'b'))));

        std::vector<FileExtent> found;
        for (std::uint64_t at = 0; at < 10 * block;) {
            const auto data = next_data(file.fd, {.offset_bytes = at, .size_bytes = 10 * block - at}).value();
            if (!data) break;
            found.push_back(*data);
            at = data->offset_bytes + data->size_bytes;
        }

        EXPECT_THAT(found, ElementsAre(FileExtent{.offset_bytes = 2 * block, .size_bytes = block},
                                       FileExtent{.offset_bytes = 5 * block, .size_bytes = 2 * block}));
    }
}

TEST(NextData, IsCutToThePieceThatWasAskedFor) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        ASSERT_TRUE(resize_file(file.fd, 4 * block));
        ASSERT_TRUE(write_at(file.fd, block, bytes_of(std::string(block, 'a'))));
        const auto first = [&](std::uint64_t offset, std::uint64_t size) {
            return next_data(file.fd, {.offset_bytes = offset, .size_bytes = size}).value();
        };
        const auto extent = [](std::uint64_t offset, std::uint64_t size) {
            return std::optional{FileExtent{.offset_bytes = offset, .size_bytes = size}};
        };
        EXPECT_EQ(first(0, block), std::nullopt);
        EXPECT_EQ(first(0, block + 1), extent(block, 1));
        EXPECT_EQ(first(block + 7, 1), extent(block + 7, 1));
        EXPECT_EQ(first(2 * block - 1, no_end >> 2), extent(2 * block - 1, 1));
        EXPECT_EQ(first(2 * block, 9 * block), std::nullopt);
        EXPECT_EQ(first(0, no_end >> 1), extent(block, block));
        EXPECT_EQ(first(block, 0), std::nullopt);
        EXPECT_EQ(first(4 * block, 1), std::nullopt);
        EXPECT_EQ(first(no_end >> 1, 0), std::nullopt);
    }
}

TEST(NextData, EndsWithTheFile) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        EXPECT_EQ(next_data(file.fd, {.offset_bytes = 0, .size_bytes = block}).value(), std::nullopt);
        ASSERT_TRUE(write_at(file.fd, 0, bytes_of("12345")));
        EXPECT_EQ(next_data(file.fd, {.offset_bytes = 1, .size_bytes = block}).value(),
                  std::optional(FileExtent{.offset_bytes = 1, .size_bytes = 4}));
        EXPECT_EQ(next_data(file.fd, {.offset_bytes = 5, .size_bytes = block}).value(), std::nullopt);
    }
}

TEST(NextData, WhatWasPunchedIsAHole) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        ASSERT_TRUE(write_at(file.fd, 0, bytes_of(std::string(2 * block, 'a'))));
        ASSERT_TRUE(punch_hole(file.fd, 0, block));
        EXPECT_EQ(next_data(file.fd, {.offset_bytes = 0, .size_bytes = 2 * block}).value(),
                  std::optional(FileExtent{.offset_bytes = block, .size_bytes = block}));
    }
}

TEST(NextData, OfHugePagesIsAll) {
    // No page is taken: nothing is written.
    const Fd memory{::memfd_create("sparse", MFD_CLOEXEC | MFD_HUGETLB)};
    if (!memory.is_open()) GTEST_SKIP() << "SKIPPED: no huge pages: " << std::strerror(errno);
    const std::uint64_t page = file_system_facts(memory)->page_bytes;
    ASSERT_TRUE(resize_file(memory, page));
    EXPECT_EQ(next_data(memory, {.offset_bytes = 4096, .size_bytes = page}).value(),
              std::optional(FileExtent{.offset_bytes = 4096, .size_bytes = page - 4096}));
    EXPECT_EQ(next_data(memory, {.offset_bytes = page, .size_bytes = page}).value(), std::nullopt);
}

TEST(NextData, WhereTheFileSystemKnowsNoHolesIsAll) {
    const Fd memory = make_memfd();
    ASSERT_TRUE(resize_file(memory, 4096));
    const FaultInjector injector{0, {.only = SysCall::lseek, .os_error = EINVAL, .repeat = 9}};
    const auto first = [&](std::uint64_t offset, std::uint64_t size) {
        return next_data(memory, {.offset_bytes = offset, .size_bytes = size}).value();
    };
    EXPECT_EQ(first(0, 4096), std::optional(FileExtent{.offset_bytes = 0, .size_bytes = 4096}));
    EXPECT_EQ(first(96, 8192), std::optional(FileExtent{.offset_bytes = 96, .size_bytes = 4000}));
    EXPECT_EQ(first(96, 4), std::optional(FileExtent{.offset_bytes = 96, .size_bytes = 4}));
    EXPECT_EQ(first(4096, 1), std::nullopt);
}

TEST(NextData, OfAFileThatIsCutMeanwhileIsNone) {
    const Fd memory = make_memfd();
    ASSERT_TRUE(write_at(memory, 0, bytes_of("text")));
    const FaultInjector injector{1, {.only = SysCall::lseek, .os_error = ENXIO}};
    EXPECT_EQ(next_data(memory, {.offset_bytes = 0, .size_bytes = 4}).value(), std::nullopt);
    EXPECT_TRUE(injector.has_fired());
}

TEST(NextData, OfWhatIsNoFileIsAnError) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const Fd reader{ends[0]};
    const Fd writer{ends[1]};
    EXPECT_EQ(next_data(reader, {.offset_bytes = 0, .size_bytes = 1}).error().os_error(), ESPIPE);
    EXPECT_FALSE(next_data(FdView{}, {.offset_bytes = 0, .size_bytes = 1}));
    const FaultInjector injector{0, {.only = SysCall::lseek, .os_error = EINVAL}};
    EXPECT_EQ(next_data(reader, {.offset_bytes = 0, .size_bytes = 1}).error().code(), Errc::unsupported);
}

TEST(NextData, BeyondWhatAFileCanBeIsAnError) {
    const Fd memory = make_memfd();
    for (const FileExtent within : {FileExtent{.offset_bytes = no_end, .size_bytes = 1},
                                    FileExtent{.offset_bytes = 1, .size_bytes = no_end},
                                    FileExtent{.offset_bytes = 1, .size_bytes = no_end >> 1}}) {
        const auto data = next_data(memory, within);
        ASSERT_FALSE(data);
        EXPECT_EQ(data.error().code(), Errc::out_of_range);
    }
}

TEST(NextData, AnyCallThatFailsIsAnError) {
    const Fd memory = make_memfd();
    ASSERT_TRUE(write_at(memory, 0, bytes_of("text")));
    const auto look = [&] { return next_data(memory, {.offset_bytes = 0, .size_bytes = 4}); };
    EXPECT_EQ(for_each_fault(look), 2U);
}

TEST(ReadAt, ReadsAllOrSaysWhereTheFileEnds) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        ASSERT_TRUE(write_at(file.fd, 0, bytes_of("0123456789")));
        EXPECT_EQ(read_text(file.fd, 3, 7), "3456789");
        EXPECT_EQ(read_text(file.fd, 10, 0), "");
        for (const std::uint64_t offset : {4U, 10U, 4711U}) {
            std::string text(7, '?');
            const auto done = read_at(file.fd, offset, std::as_writable_bytes(std::span{text}));
            ASSERT_FALSE(done) << offset;
            EXPECT_EQ(done.error().code(), Errc::corrupt);
            EXPECT_THAT(done.error().message(), HasSubstr("the file ends at 10")) << offset;
        }
    }
}

TEST(ReadAt, MemoryThatIsGoneAndOffsetsThatAreNoneAreErrors) {
    const GuestPages guest{1};
    guest.protect(0, PageAccess::none);
    const Fd memory = make_memfd();
    ASSERT_TRUE(resize_file(memory, 4096));
    EXPECT_EQ(read_at(memory, 0, {guest.data(), 16}).error().os_error(), EFAULT);
    std::array<std::byte, 1> byte{};
    EXPECT_EQ(read_at(memory, no_end, byte).error().code(), Errc::out_of_range);
    EXPECT_FALSE(read_at(FdView{}, 0, byte));
}

TEST(ReadAt, AnyCallThatFailsIsAnError) {
    const Fd memory = make_memfd();
    std::array<std::byte, 8> bytes{};
    ASSERT_TRUE(resize_file(memory, 8));
    EXPECT_EQ(for_each_fault([&] { return read_at(memory, 0, bytes); }), 1U);
    ASSERT_TRUE(resize_file(memory, 4));
    const FaultInjector injector{0, {.only = SysCall::stat}};
    EXPECT_EQ(read_at(memory, 0, bytes).error().code(), Errc::permission_denied);
}

TEST(WriteAt, WritesAllAndGrows) {
    const TempFolder folder;
    for (const NamedFile& file : make_files(folder)) {
        SCOPED_TRACE(file.name);
        ASSERT_TRUE(write_at(file.fd, 3, bytes_of("abc")));
        ASSERT_TRUE(write_at(file.fd, 1, {}));
        EXPECT_EQ(read_text(file.fd, 0, 6), (std::string{"\0\0\0abc", 6}));
        EXPECT_EQ(file_facts(file.fd)->size_bytes, 6U);
        EXPECT_EQ(::lseek(file.fd.view().number(), 0, SEEK_CUR), 0);
    }
}

TEST(WriteAt, PastTheProcessesLimitIsAnErrorAndNoSignal) {
    const TempFolder folder;
    const Fd file = make_file(folder);
    const SizeLimit limit{8192};
    EXPECT_TRUE(write_at(file, 8188, bytes_of("1234")));
    for (const std::uint64_t offset : {8190U, 8192U, 65536U}) {
        const auto done = write_at(file, offset, bytes_of("1234"));
        ASSERT_FALSE(done) << offset;
        EXPECT_EQ(done.error().code(), Errc::out_of_range);
        EXPECT_EQ(done.error().os_error(), EFBIG);
    }
    // A short write was gone on with, up to the limit.
    EXPECT_EQ(read_text(file, 8188, 4), "1212");
}

TEST(WriteAt, BeyondWhatAFileCanBeIsAnErrorBeforeAnythingIsWritten) {
    const Fd memory = make_memfd();
    for (const std::uint64_t offset : {no_end, no_end >> 1, std::uint64_t{1} << 63})
        EXPECT_EQ(write_at(memory, offset, bytes_of("ab")).error().code(), Errc::out_of_range) << offset;
    EXPECT_EQ(file_facts(memory)->size_bytes, 0U);
}

/// Runs `is_right` in a child whose `folder` is a tmpfs of 64 KiB; its exit status, 77 where that cannot be mounted.
template <typename Check>
int run_on_small_disk(const TempFolder& folder, Check&& is_right) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("none", folder.path().c_str(), "tmpfs", 0, "size=64k") != 0)
            ::_exit(77);
        ::_exit(is_right() ? 0 : 1);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(WriteAt, AFullDiskIsAnErrorOfItsOwn) {
    const TempFolder folder;
    const int status = run_on_small_disk(folder, [&] {
        const Fd file = create_file(folder.path_of("f"), 0600).value();
        const auto done = write_at(file, 0, bytes_of(std::string(128 * 1024, 'x')));
        return !done && done.error().code() == Errc::exhausted && done.error().os_error() == ENOSPC;
    });
    if (status == 77) GTEST_SKIP() << "SKIPPED: may not mount a tmpfs";
    EXPECT_EQ(status, 0);
}

TEST(WriteAt, AnyCallThatFailsIsAnError) {
    const Fd memory = make_memfd();
    EXPECT_EQ(for_each_fault([&] { return write_at(memory, 0, bytes_of("text")); }), 1U);
    EXPECT_EQ(write_at(FdView{}, 0, bytes_of("text")).error().os_error(), EBADF);
    EXPECT_FALSE(write_at(open_file("/dev/full", OpenMode::read_write).value(), 0, bytes_of("text")));
}

TEST(CopyRange, CopiesExactlySoManyBytesAndNoOthers) {
    for (const bool is_same : {true, false}) {
        const Copied files{is_same};
        for (const std::size_t size :
             {files.text.size() - 20, copy_buffer_bytes, std::size_t{1}, std::size_t{0}}) {
            ASSERT_TRUE(write_at(files.to, 0, bytes_of(std::string(files.text.size(), '.'))));
            const auto how = copy_range(files.from, 7, files.to, 13, size);
            ASSERT_TRUE(how) << how.error().message();
            EXPECT_EQ(read_text(files.to, 0, files.text.size()),
                      std::string(13, '.') + files.text.substr(7, size) +
                          std::string(files.text.size() - 13 - size, '.'));
            EXPECT_EQ(::lseek(files.from.view().number(), 0, SEEK_CUR), 0);
        }
    }
}

TEST(CopyRange, OnOneFileSystemIsTheKernels) {
    const Copied files;
    EXPECT_EQ(copy_range(files.from, 0, files.to, 0, files.text.size()).value(), CopyHow::in_kernel);
}

TEST(CopyRange, WhereTheKernelCannotGoesThroughMemory) {
    const Copied files;
    for (const int os_error : {EXDEV, EINVAL, ENOSYS, EOPNOTSUPP}) {
        ASSERT_TRUE(resize_file(files.to, 0));
        const FaultInjector injector{0, {.only = SysCall::copy_file_range, .os_error = os_error}};
        EXPECT_EQ(copy_range(files.from, 0, files.to, 0, files.text.size()).value(), CopyHow::through_memory);
        EXPECT_EQ(read_text(files.to, 0, files.text.size()), files.text);
    }
}

TEST(CopyRange, WithinOneFileIsGoodUnlessThePiecesOverlap) {
    const Copied files;
    EXPECT_TRUE(copy_range(files.from, 0, files.from, 100, 100));
    EXPECT_EQ(read_text(files.from, 100, 100), files.text.substr(0, 100));
    for (const std::uint64_t offset : {0U, 1U, 99U}) {
        const auto up = copy_range(files.from, 0, files.from, offset, 100);
        const auto down = copy_range(files.from, offset, files.from, 0, 100);
        ASSERT_FALSE(up || down) << offset;
        EXPECT_EQ(up.error().code(), Errc::invalid_argument);
        EXPECT_THAT(down.error().message(), HasSubstr("overlap"));
    }
    EXPECT_TRUE(copy_range(files.from, 0, files.from, 0, 0));
}

TEST(CopyRange, FromAFileThatEndsBeforeIsCorruptAndSaysWhere) {
    const Copied files;
    const auto how = copy_range(files.from, 10, files.to, 0, files.text.size());
    ASSERT_FALSE(how);
    EXPECT_EQ(how.error().code(), Errc::corrupt);
    EXPECT_THAT(how.error().message(), HasSubstr("the file ends at " + std::to_string(files.text.size())));
}

TEST(CopyRange, PastTheProcessesLimitIsAnErrorAndNoSignal) {
    const Copied files;
    ASSERT_TRUE(resize_file(files.to, 0));
    const SizeLimit limit{8192};
    const auto past = copy_range(files.from, 0, files.to, 0, 8193);
    ASSERT_FALSE(past);
    EXPECT_EQ(past.error().os_error(), EFBIG);
    EXPECT_EQ(past.error().code(), Errc::out_of_range);
    EXPECT_EQ(file_facts(files.to)->size_bytes, 8192U);
    EXPECT_EQ(copy_range(files.from, 0, files.to, 0, 8192).value(), CopyHow::in_kernel);
}

TEST(CopyRange, BeyondWhatAFileCanBeIsAnError) {
    const Copied files;
    EXPECT_EQ(copy_range(files.from, no_end, files.to, 0, 1).error().code(), Errc::out_of_range);
    EXPECT_EQ(copy_range(files.from, 0, files.to, no_end >> 1, 1).error().code(), Errc::out_of_range);
    EXPECT_EQ(copy_range(files.from, 0, files.to, 0, no_end).error().code(), Errc::out_of_range);
}

TEST(CopyRange, AFullDiskIsAnErrorOfItsOwn) {
    const TempFolder folder;
    const int status = run_on_small_disk(folder, [&] {
        const Fd from = make_memfd();
        const Fd to = create_file(folder.path_of("f"), 0600).value();
        const auto filled = write_at(from, 0, bytes_of(std::string(128 * 1024, 'x')));
        const auto done = copy_range(from, 0, to, 0, 128 * 1024);
        return filled && !done && done.error().os_error() == ENOSPC;
    });
    if (status == 77) GTEST_SKIP() << "SKIPPED: may not mount a tmpfs";
    EXPECT_EQ(status, 0);
}

TEST(CopyRange, AnyCallThatFailsIsAnError) {
    const Copied files;
    // Two questions to each file, the limit, the copy.
    EXPECT_EQ(for_each_fault([&] { return copy_range(files.from, 0, files.to, 0, 64); }), 6U);
    const SizeLimit limit{32};
    ASSERT_TRUE(resize_file(files.to, 0));
    for (const SysCall call : {SysCall::readv, SysCall::writev}) {
        const FaultInjector injector{0, {.only = call}};
        EXPECT_EQ(copy_range(files.from, 0, files.to, 0, 64).error().os_error(), EIO) << to_string(call);
    }
    EXPECT_FALSE(copy_range(FdView{}, 0, files.to, 100, 8));
    EXPECT_FALSE(copy_range(files.from, 0, FdView{}, 100, 8));
}

TEST(CloneFile, SharesTheBytesOrSaysThatItCannot) {
    const Copied files;
    const auto is_cloned = clone_file(files.from, files.to);
    ASSERT_TRUE(is_cloned) << is_cloned.error().message();
    EXPECT_EQ(read_text(files.to, 0, files.text.size()),
              *is_cloned ? files.text : std::string(files.text.size(), '.'));
}

TEST(CloneFile, WhereTheFileSystemsCannotIsFalse) {
    const Copied files{false};
    EXPECT_EQ(clone_file(files.from, files.to).value(), false) << "across file systems";
    EXPECT_EQ(clone_file(files.to, make_memfd()).value(), false) << "tmpfs";
    for (const int os_error : {EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, ENOTTY}) {
        const FaultInjector injector{0, {.only = SysCall::ioctl, .os_error = os_error}};
        EXPECT_EQ(clone_file(files.from, files.to).value(), false) << os_error;
    }
}

TEST(CloneFile, PastTheProcessesLimitIsFalse) {
    const Copied files;
    const SizeLimit limit{0};
    EXPECT_EQ(clone_file(files.from, files.to).value(), false);
}

TEST(CloneFile, AnyCallThatFailsIsAnError) {
    const Copied files;
    const auto clone = [&] { return clone_file(files.from, files.to); };
    // Two questions to the file, the limit, the clone.
    const FaultInjector::Options disk{.os_error = EIO};
    EXPECT_EQ(for_each_fault({.injector = disk}, clone, [] {}), 4U);
    EXPECT_FALSE(clone_file(FdView{}, files.to));
    EXPECT_EQ(clone_file(files.from, FdView{}).error().os_error(), EBADF);
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_system.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t no_end = std::numeric_limits<std::uint64_t>::max();

std::uint64_t host_page_bytes() { return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)); }

/// What a descriptor leads to: "/tmp/f", "/tmp/#7 (deleted)".
std::string target_of(const Fd& fd) {
    return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd.view().number())).string();
}

/// Another limit on file sizes for one test.
class SizeLimit {
public:
    explicit SizeLimit(std::uint64_t limit_bytes) {
        EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
        rlimit changed = before_;
        changed.rlim_cur = limit_bytes;
        EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &changed), 0);
    }
    SizeLimit(const SizeLimit&) = delete;
    SizeLimit& operator=(const SizeLimit&) = delete;
    ~SizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

private:
    rlimit before_{};
};

TEST(PathFacts, OfAFileAreItsSizeItsBlocksAndWhoItIs) {
    const TempFolder folder;
    const std::string path = folder.write("f", std::string(5000, 'x'));
    struct stat status{};
    ASSERT_EQ(::stat(path.c_str(), &status), 0);

    const PathFacts facts = path_facts(path).value();

    EXPECT_TRUE(facts.exists);
    EXPECT_EQ(facts.kind, FileKind::regular);
    EXPECT_EQ(facts.size_bytes, 5000U);
    EXPECT_EQ(facts.allocated_bytes, static_cast<std::uint64_t>(status.st_blocks) * 512);
    EXPECT_EQ(facts.device, status.st_dev);
    EXPECT_EQ(facts.inode, status.st_ino);
    EXPECT_TRUE(facts.is_readable);
    EXPECT_TRUE(facts.is_writable);
}

TEST(PathFacts, TellWhatKindItIs) {
    const TempFolder folder;
    ASSERT_EQ(::mkfifo(folder.path_of("pipe").c_str(), 0600), 0);

    EXPECT_EQ(path_facts(folder.path())->kind, FileKind::folder);
    EXPECT_EQ(path_facts("/dev/null")->kind, FileKind::character_device);
    EXPECT_EQ(path_facts(folder.path_of("pipe"))->kind, FileKind::other);
}

TEST(PathFacts, FollowALinkAndOneThatLeadsNowhereDoesNotExist) {
    const TempFolder folder;
    folder.write("f", "1234");
    ASSERT_EQ(::symlink("f", folder.path_of("good").c_str()), 0);
    ASSERT_EQ(::symlink("gone", folder.path_of("dangling").c_str()), 0);

    EXPECT_EQ(path_facts(folder.path_of("good"))->size_bytes, 4U);
    EXPECT_FALSE(path_facts(folder.path_of("dangling"))->exists);
}

TEST(PathFacts, OfNothingAreNoError) {
    const TempFolder folder;
    const PathFacts facts = path_facts(folder.path_of("no/such")).value();
    EXPECT_FALSE(facts.exists);
    EXPECT_FALSE(facts.is_readable);
    EXPECT_FALSE(facts.is_writable);
    EXPECT_FALSE(path_facts("")->exists);
}

TEST(PathFacts, BelowAFileIsNothing) {
    const TempFolder folder;
    const std::string file = folder.write("f", "x");
    for (const char* below : {"/below", "/", "/below/that"})
        EXPECT_FALSE(path_facts(file + below)->exists) << below;
}

TEST(PathFacts, SayWhatAnOrdinaryUserMayDo) {
    if (own_user() != 0) GTEST_SKIP() << "SKIPPED: needs root, to become another user";
    const TempFolder folder;
    const std::string file = folder.write("f", "x");
    ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
    ASSERT_EQ(::chmod(file.c_str(), 0644), 0);
    constexpr uid_t nobody = 65534;
    ASSERT_EQ(::seteuid(nobody), 0);

    const auto facts = path_facts(file);

    ASSERT_EQ(::seteuid(0), 0);
    if (!facts) GTEST_SKIP() << "SKIPPED: nobody but root gets to the temporary folder";
    EXPECT_TRUE(facts->is_readable);
    EXPECT_FALSE(facts->is_writable);
}

TEST(PathFacts, OfAFileThatMayNotBeWrittenAreNoError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "x");
    for (const int os_error : {EACCES, EPERM, EROFS, ETXTBSY, ENOENT}) {
        const FaultInjector injector{1, {.only = SysCall::access, .os_error = os_error}};
        const auto facts = path_facts(path);
        ASSERT_TRUE(facts) << os_error;
        EXPECT_TRUE(facts->is_readable) << os_error;
        EXPECT_FALSE(facts->is_writable) << os_error;
    }
}

TEST(PathFacts, AreAnErrorWhenTheKernelDoesNotTell) {
    EXPECT_EQ(for_each_fault([] { return path_facts("/dev/null"); }), 3U);
}

TEST(FileSystemFacts, OfAFolderAndOfItsFileAreTheSame) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    const FileSystemFacts by_path = file_system_facts(folder.path()).value();
    const FileSystemFacts by_descriptor = file_system_facts(file).value();

    EXPECT_EQ(by_path.type, by_descriptor.type);
    EXPECT_EQ(by_path.page_bytes, host_page_bytes());
    EXPECT_EQ(by_descriptor.page_bytes, host_page_bytes());
    EXPECT_FALSE(by_path.is_huge);
}

TEST(FileSystemFacts, OfAnUnknownOneHaveAMagicNumberForAName) {
    EXPECT_EQ(file_system_facts("/sys")->type, "0x62656572");
    EXPECT_EQ(file_system_facts("/proc")->type, "proc");
    EXPECT_FALSE(file_system_facts("/proc")->is_memory);
}

TEST(IsLink, IsAskedOfTheNameItself) {
    const TempFolder folder;
    const std::string file = folder.write("f", "x");
    std::filesystem::create_symlink("f", folder.path_of("link"));
    std::filesystem::create_symlink("nowhere", folder.path_of("broken"));
    EXPECT_TRUE(is_link(folder.path_of("link")).value());
    EXPECT_TRUE(is_link(folder.path_of("broken")).value());
    for (const std::string& other : {file, folder.path(), folder.path_of("absent"), file + "/below"})
        EXPECT_FALSE(is_link(other).value()) << other;
    EXPECT_EQ(for_each_fault([&] { return is_link(file); }), 1U);
}

TEST(FileSystemFacts, OfAMemfdAreMemoryWithoutALimit) {
    const Fd memory{::memfd_create("facts", MFD_CLOEXEC)};
    const FileSystemFacts facts = file_system_facts(memory).value();
    EXPECT_EQ(facts.type, "tmpfs");
    EXPECT_TRUE(facts.is_memory);
    EXPECT_FALSE(facts.is_huge);
    EXPECT_EQ(facts.free_bytes, std::nullopt);
}

TEST(FileSystemFacts, OfSharedMemoryHaveItsLimit) {
    if (!is_folder("/dev/shm")) GTEST_SKIP() << "SKIPPED: there is no /dev/shm";
    const FileSystemFacts facts = file_system_facts("/dev/shm").value();
    EXPECT_EQ(facts.type, "tmpfs");
    if (facts.free_bytes) {
        EXPECT_LT(*facts.free_bytes, std::uint64_t{1} << 50);
    }
}

TEST(FileSystemFacts, OfHugePagesHaveThePageSizeOfTheirMappings) {
    // No page is taken: the file is empty.
    const Fd memory{::memfd_create("facts", MFD_CLOEXEC | MFD_HUGETLB)};
    if (!memory.is_open()) GTEST_SKIP() << "SKIPPED: no huge pages: " << std::strerror(errno);
    const FileSystemFacts facts = file_system_facts(memory).value();
    EXPECT_EQ(facts.type, "hugetlbfs");
    EXPECT_TRUE(facts.is_huge);
    EXPECT_TRUE(facts.is_memory);
    EXPECT_GT(facts.page_bytes, host_page_bytes());
}

TEST(FileSystemFacts, OfNothingAreAnErrorThatNamesIt) {
    const TempFolder folder;
    const auto facts = file_system_facts(folder.path_of("no"));
    ASSERT_FALSE(facts);
    EXPECT_EQ(facts.error().code(), Errc::not_found);
    EXPECT_THAT(facts.error().message(), HasSubstr(folder.path_of("no")));
    EXPECT_FALSE(file_system_facts(FdView{}));
}

TEST(FileSystemFacts, AreAnErrorWhenTheKernelDoesNotTell) {
    const Fd memory{::memfd_create("facts", MFD_CLOEXEC)};
    EXPECT_EQ(for_each_fault([] { return file_system_facts("/proc"); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return file_system_facts(memory); }), 1U);
}

TEST(CreateUnlinkedFile, HasNoNameAndKeepsItsBytes) {
    const TempFolder folder;
    const Fd file = create_unlinked_file(folder.path(), "ram.").value();

    EXPECT_THAT(folder.entries(), IsEmpty());
    EXPECT_THAT(target_of(file), HasSubstr(folder.path()));
    EXPECT_TRUE(file_facts(file)->is_writable);
    ASSERT_TRUE(resize_file(file, 4096));
    EXPECT_EQ(file_facts(file)->size_bytes, 4096U);
}

TEST(CreateUnlinkedFile, IsMadeWithANameWhereThereIsNoOther) {
    const TempFolder folder;
    for (const int os_error : {EOPNOTSUPP, EISDIR}) {
        const FaultInjector injector{0, {.only = SysCall::open, .os_error = os_error}};
        const Fd file = create_unlinked_file(folder.path(), "ram.").value();
        EXPECT_THAT(target_of(file), HasSubstr(folder.path_of("ram.")));
        EXPECT_THAT(target_of(file), HasSubstr("(deleted)"));
        EXPECT_THAT(folder.entries(), IsEmpty());
        EXPECT_EQ(::fcntl(file.view().number(), F_GETFD), FD_CLOEXEC);
    }
}

TEST(CreateUnlinkedFile, InAFolderThatIsNotThereIsAnError) {
    const TempFolder folder;
    const auto file = create_unlinked_file(folder.path_of("no"), "ram.");
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::not_found);
    EXPECT_FALSE(create_unlinked_file(folder.write("f", "x"), "ram."));
}

TEST(CreateUnlinkedFile, APrefixDoesNotLeaveTheFolder) {
    const TempFolder folder;
    const auto file = create_unlinked_file(folder.path(), "../ram.");
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::invalid_argument);
}

TEST(CreateUnlinkedFile, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const auto count = for_each_fault([&] { return create_unlinked_file(folder.path(), "ram."); },
                                      [&] { EXPECT_THAT(folder.entries(), IsEmpty()); });
    EXPECT_EQ(count, 1U);
}

TEST(CreateFile, HasTheModeLessTheUmask) {
    const TempFolder folder;
    const mode_t before = ::umask(022);
    const auto file = create_file(folder.path_of("f"), 0666);
    ::umask(before);
    ASSERT_TRUE(file);
    struct stat status{};
    ASSERT_EQ(::fstat(file->view().number(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777U, 0644U);
    EXPECT_EQ(::fcntl(file->view().number(), F_GETFD), FD_CLOEXEC);
}

TEST(CreateFile, OneThatIsThereIsAnErrorAndStays) {
    const TempFolder folder;
    const std::string path = folder.write("f", "precious");
    ASSERT_EQ(::symlink("nowhere", folder.path_of("link").c_str()), 0);

    const auto file = create_file(path, 0644);

    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::already_exists);
    EXPECT_EQ(folder.read("f"), "precious");
    EXPECT_FALSE(create_file(folder.path_of("link"), 0644));
}

TEST(CreateFile, AModeWithMoreThanPermissionsIsRefused) {
    const TempFolder folder;
    const auto file = create_file(folder.path_of("f"), 04755);
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::invalid_argument);
    EXPECT_THAT(file.error().message(), HasSubstr("4755"));
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(CreateFile, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const std::string path = folder.path_of("f");
    const auto count =
        for_each_fault([&] { return create_file(path, 0644); }, [&] { ::unlink(path.c_str()); });
    EXPECT_EQ(count, 1U);
}

TEST(CreateShm, HasNoNameAndItsOwnersModeOnly) {
    if (!is_folder("/dev/shm")) GTEST_SKIP() << "SKIPPED: there is no /dev/shm";
    const Fd memory = create_shm("guestmem-test").value();
    struct stat status{};
    ASSERT_EQ(::fstat(memory.view().number(), &status), 0);

    EXPECT_EQ(status.st_mode & 0777U, 0600U);
    EXPECT_EQ(status.st_nlink, 0U);
    EXPECT_THAT(target_of(memory), HasSubstr("guestmem-test"));
    EXPECT_EQ(::fcntl(memory.view().number(), F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(file_system_facts(memory)->type, "tmpfs");
}

TEST(CreateShm, ANameThatIsTakenIsNotUsed) {
    if (!is_folder("/dev/shm")) GTEST_SKIP() << "SKIPPED: there is no /dev/shm";
    {
        const FaultInjector injector{0, {.only = SysCall::open, .os_error = EEXIST, .repeat = 15}};
        EXPECT_TRUE(create_shm("guestmem-test"));
    }
    const FaultInjector injector{0, {.only = SysCall::open, .os_error = EEXIST, .repeat = 16}};
    const auto memory = create_shm("guestmem-test");
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Errc::already_exists);
}

TEST(CreateShm, AHintThatIsNoNameIsRefused) {
    for (const std::string& hint : {std::string{"../etc"}, std::string{"a\0b", 3}}) {
        const auto memory = create_shm(hint);
        ASSERT_FALSE(memory);
        EXPECT_EQ(memory.error().code(), Errc::invalid_argument);
    }
    const auto memory = create_shm(std::string(300, 'n'));
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Errc::invalid_argument);
}

TEST(CreateShm, SaysWhichNameStaysWhenItCannotBeRemoved) {
    if (!is_folder("/dev/shm")) GTEST_SKIP() << "SKIPPED: there is no /dev/shm";
    std::string message;
    {
        const FaultInjector injector{0, {.only = SysCall::unlink}};
        const auto memory = create_shm("guestmem-test");
        ASSERT_FALSE(memory);
        message = memory.error().message();
    }
    const std::size_t begin = message.find("/guestmem-test-");
    ASSERT_NE(begin, std::string::npos) << message;
    const std::string name = message.substr(begin, message.find(' ', begin) - begin);
    EXPECT_EQ(::shm_unlink(name.c_str()), 0) << name;
}

TEST(ResizeFile, GrowsAndCuts) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32,
                                     std::uint64_t{4095}, std::uint64_t{0}}) {
        ASSERT_TRUE(resize_file(file, size)) << size;
        EXPECT_EQ(file_facts(file)->size_bytes, size);
    }
}

TEST(ResizeFile, BeyondWhatAFileCanBeIsAnError) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    for (const std::uint64_t size : {std::uint64_t{1} << 63, no_end}) {
        const auto resized = resize_file(file, size);
        ASSERT_FALSE(resized) << size;
        EXPECT_EQ(resized.error().code(), Errc::out_of_range) << size;
    }
    EXPECT_FALSE(resize_file(FdView{}, 4096));
    EXPECT_FALSE(resize_file(open_file("/dev/null", OpenMode::read_write).value(), 4096));
}

TEST(ResizeFile, BeyondTheProcessesLimitIsAnErrorAndNoSignal) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    ASSERT_TRUE(resize_file(file, 16384));
    const SizeLimit limit{4096};

    const auto grown = resize_file(file, 16385);

    ASSERT_FALSE(grown);
    EXPECT_EQ(grown.error().code(), Errc::out_of_range);
    EXPECT_EQ(grown.error().os_error(), EFBIG);
    EXPECT_THAT(grown.error().message(), HasSubstr("RLIMIT_FSIZE"));
    EXPECT_TRUE(resize_file(file, 16384));
    EXPECT_TRUE(resize_file(file, 8192));
    EXPECT_TRUE(resize_file(file, 4096));
    EXPECT_FALSE(resize_file(file, 4097));
}

TEST(ResizeFile, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    EXPECT_EQ(for_each_fault([&] { return resize_file(file, 4096); }), 2U);
    const SizeLimit limit{1024};
    ASSERT_TRUE(resize_file(file, 0));
    EXPECT_EQ(for_each_fault([&] { return resize_file(file, 512); }), 2U);
    const FaultInjector injector{0, {.only = SysCall::stat}};
    EXPECT_FALSE(resize_file(file, 4096));
    EXPECT_TRUE(injector.has_fired());
}

TEST(AllocateFile, GivesBlocksAndGrows) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    const std::uint64_t page = host_page_bytes();

    ASSERT_TRUE(allocate_file(memory, page, page));

    EXPECT_EQ(file_facts(memory)->size_bytes, 2 * page);
    EXPECT_EQ(file_facts(memory)->allocated_bytes, page);
}

TEST(AllocateFile, APieceThatIsNoneIsAnError) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    EXPECT_EQ(allocate_file(memory, 0, 0).error().code(), Errc::invalid_argument);
    EXPECT_EQ(allocate_file(memory, no_end, 1).error().code(), Errc::out_of_range);
    EXPECT_EQ(allocate_file(memory, 1, no_end).error().code(), Errc::out_of_range);
    EXPECT_EQ(allocate_file(memory, 1, no_end >> 1).error().code(), Errc::out_of_range);
    EXPECT_FALSE(allocate_file(FdView{}, 0, 4096));
    EXPECT_EQ(file_facts(memory)->size_bytes, 0U);
}

TEST(AllocateFile, BeyondTheProcessesLimitIsAnErrorAndNoSignal) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    const SizeLimit limit{8192};
    EXPECT_TRUE(allocate_file(memory, 4096, 4096));
    const auto allocated = allocate_file(memory, 4096, 4097);
    ASSERT_FALSE(allocated);
    EXPECT_EQ(allocated.error().os_error(), EFBIG);
}

TEST(AllocateFile, AnyCallThatFailsIsAnError) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    EXPECT_EQ(for_each_fault([&] { return allocate_file(memory, 0, 4096); }), 2U);
}

TEST(AllocateFile, WhereTheFileSystemCannotIsUnsupported) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    const FaultInjector injector{0, {.only = SysCall::fallocate, .os_error = EOPNOTSUPP}};
    EXPECT_EQ(allocate_file(memory, 0, 4096).error().code(), Errc::unsupported);
}

TEST(PunchHole, GivesBlocksBackAndKeepsTheSize) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    const std::uint64_t page = host_page_bytes();
    ASSERT_TRUE(allocate_file(memory, 0, 2 * page));
    const Mapping mapping = Mapping::create(memory, 2 * page, MapAccess::read_write).value();
    mapping.bytes()[0] = std::byte{1};
    mapping.bytes()[page] = std::byte{2};

    ASSERT_TRUE(punch_hole(memory, 0, page));

    EXPECT_EQ(mapping.bytes()[0], std::byte{0});
    EXPECT_EQ(mapping.bytes()[page], std::byte{2});
    EXPECT_EQ(file_facts(memory)->size_bytes, 2 * page);
}

TEST(PunchHole, APieceThatIsNoneIsAnError) {
    const Fd memory{::memfd_create("blocks", MFD_CLOEXEC)};
    EXPECT_EQ(punch_hole(memory, 0, 0).error().code(), Errc::invalid_argument);
    EXPECT_EQ(punch_hole(memory, no_end, 4096).error().code(), Errc::out_of_range);
    EXPECT_FALSE(punch_hole(FdView{}, 0, 4096));
    EXPECT_EQ(for_each_fault([&] { return punch_hole(memory, 0, 4096); }), 1U);
}

TEST(RemoveFile, RemovesTheNameAndOneThatIsNotThereIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "x");
    ASSERT_TRUE(remove_file(path));
    EXPECT_THAT(folder.entries(), IsEmpty());
    const auto again = remove_file(path);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Errc::not_found);
    EXPECT_THAT(again.error().message(), HasSubstr(path));
}

TEST(RemoveFile, ACallThatFailsIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("f", "x");
    EXPECT_EQ(for_each_fault([&] { return remove_file(path); }), 1U);
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/owned_file.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <string>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::TempFolder;

class OwnedFile : public ::testing::Test {
protected:
    TempFolder folder_;
    std::string path_ = folder_.write("file", "content");
    Fd opened_{::open(folder_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
};

TEST_F(OwnedFile, HasOwnerPermissionsAndTheTimeOfItsLastWrite) {
    ASSERT_EQ(::chmod(path_.c_str(), 04640), 0);
    const std::array<timespec, 2> times{timespec{1, 2}, timespec{1'700'000'000, 123'456'789}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times.data(), 0), 0);
    const Fd file = open_in(opened_, "file").value();
    const Ownership ownership = ownership_of(file).value();
    EXPECT_EQ(ownership.owner, ::geteuid());
    EXPECT_EQ(ownership.group, ::getegid());
    EXPECT_EQ(ownership.permissions, 0640U) << "without the bit that changes users";
    EXPECT_EQ(ownership.modified_ns, 1'700'000'000'123'456'789);
    EXPECT_EQ(ownership.size_bytes, 7U);
}

TEST_F(OwnedFile, IsOpenedByItsNameInTheFolderWhereverThatGoes) {
    const std::filesystem::path moved = folder_.path() + "-moved";
    std::filesystem::rename(folder_.path(), moved);
    EXPECT_TRUE(open_in(opened_, "file"));
    std::filesystem::rename(moved, folder_.path());
}

TEST_F(OwnedFile, LinksPipesFoldersAndPathsAreNone) {
    std::filesystem::create_symlink("file", folder_.path_of("link"));
    ASSERT_EQ(::mkfifo(folder_.path_of("pipe").c_str(), 0600), 0);
    std::filesystem::create_directory(folder_.path_of("folder"));
    const auto link = open_in(opened_, "link");
    ASSERT_FALSE(link);
    EXPECT_THAT(link.error().message(), HasSubstr("open link: it is a link"));
    for (const char* name : {"pipe", "folder"}) {
        const auto other = open_in(opened_, name);
        ASSERT_FALSE(other);
        EXPECT_EQ(other.error().code(), Errc::corrupt) << name;
    }
    for (const char* name : {"", "..", "../file", "folder/../file", "/etc/passwd"})
        EXPECT_EQ(open_in(opened_, name).error().code(), Errc::invalid_argument) << name;
    EXPECT_EQ(open_in(opened_, "absent").error().os_error(), ENOENT);
}

TEST_F(OwnedFile, EachFailingCallIsAnError) {
    EXPECT_EQ(for_each_fault([&] { return open_in(opened_, "file"); }), 3U);
    EXPECT_EQ(for_each_fault([&] { return ownership_of(opened_); }), 1U);
}

}  // namespace
}  // namespace guestmem

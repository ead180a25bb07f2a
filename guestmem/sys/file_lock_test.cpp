// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_lock.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <optional>
#include <string>

#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::TempFolder;

/// A file, opened as often as the test likes: each time another open file.
class LockedFile {
public:
    [[nodiscard]] Fd open() const { return open_file(path_, OpenMode::read).value(); }
    [[nodiscard]] std::optional<FileLock> shared() const { return FileLock::try_shared(open()).value(); }
    [[nodiscard]] std::optional<FileLock> exclusive() const {
        return FileLock::try_exclusive(open()).value();
    }
    [[nodiscard]] bool is_locked() const { return is_locked_by_others(open()).value(); }
    [[nodiscard]] const TempFolder& folder() const { return folder_; }

private:
    TempFolder folder_;
    std::string path_ = folder_.write("f", "x");
};

/// A child that says when it is ready, by closing its end of a pipe or by an exec that closes it.
class Child {
public:
    /// `prepare` runs in the child. It ends in an exec, or the child waits after it.
    template <typename Prepare>
    explicit Child(Prepare&& prepare) {
        std::array<int, 2> ends{};
        EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            prepare();
            ::close(ends[0]);
            ::close(ends[1]);
            for (;;) ::pause();
        }
        ::close(ends[1]);
        char none = 0;
        EXPECT_EQ(::read(ends[0], &none, 1), 0);
        ::close(ends[0]);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() { kill(); }
    /// By signal 9: it cannot clean up.
    void kill() {
        if (pid_ <= 0) return;
        EXPECT_EQ(::kill(pid_, SIGKILL), 0);
        int status = 0;
        EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
        EXPECT_TRUE(WIFSIGNALED(status)) << status;
        pid_ = -1;
    }

private:
    pid_t pid_ = -1;
};

void exec_sleep() { ::execlp("sleep", "sleep", "600", nullptr); }

TEST(FileLock, ManyShareIt) {
    const LockedFile file;
    const auto first = file.shared();
    const auto second = file.shared();
    ASSERT_TRUE(first && second);
    EXPECT_FALSE(first->is_exclusive());
    EXPECT_TRUE(first->file().is_open());
}

TEST(FileLock, TheExclusiveOneIsAlone) {
    const LockedFile file;
    const auto only = file.exclusive();
    ASSERT_TRUE(only);
    EXPECT_TRUE(only->is_exclusive());
    EXPECT_FALSE(file.shared());
    EXPECT_FALSE(file.exclusive());
}

TEST(FileLock, WhoUsesItKeepsTheExclusiveOneAwayUntilTheLastIsGone) {
    const LockedFile file;
    auto first = file.shared();
    auto second = file.shared();
    EXPECT_FALSE(file.exclusive());
    first.reset();
    EXPECT_FALSE(file.exclusive());
    second.reset();
    EXPECT_TRUE(file.exclusive());
}

TEST(FileLock, OfAFolderIsOneToo) {
    const LockedFile file;
    const std::string path = file.folder().path();
    auto user = FileLock::try_shared(open_folder(path).value()).value();
    ASSERT_TRUE(user);
    EXPECT_FALSE(FileLock::try_exclusive(open_folder(path).value()).value());
    EXPECT_TRUE(is_locked_by_others(open_folder(path).value()).value());
    EXPECT_TRUE(file.exclusive()) << "a file in it is another thing";
    user.reset();
    EXPECT_FALSE(is_locked_by_others(open_folder(path).value()).value());
}

TEST(FileLock, StaysWithTheFileThatIsRenamedAndRemoved) {
    const LockedFile file;
    const auto user = file.shared();
    const Fd opened = file.open();
    ASSERT_TRUE(rename_new(file.folder().path_of("f"), file.folder().path_of("g")));
    EXPECT_TRUE(is_locked_by_others(opened).value());
    ASSERT_TRUE(remove_file(file.folder().path_of("g")));
    EXPECT_TRUE(is_locked_by_others(opened).value());
}

TEST(FileLock, LivesAsLongAsAnyCopyOfItsDescriptor) {
    const LockedFile file;
    auto user = file.shared();
    Fd copy = user->file().duplicate().value();
    user.reset();
    EXPECT_TRUE(file.is_locked());
    copy.reset();
    EXPECT_FALSE(file.is_locked());
}

TEST(FileLock, WhoGotTheDescriptorOwnsItByAskingForTheSame) {
    const LockedFile file;
    auto giver = file.shared();
    const auto other = file.shared();
    auto taker = FileLock::try_shared(giver->file().duplicate().value()).value();
    ASSERT_TRUE(taker);
    giver.reset();
    EXPECT_TRUE(file.is_locked());
}

TEST(FileLock, KillDropsIt) {
    const LockedFile file;
    std::optional<FileLock> held;
    Child child{[&] { held = file.exclusive(); }};
    EXPECT_TRUE(file.is_locked());
    EXPECT_FALSE(file.shared());
    child.kill();
    EXPECT_FALSE(file.is_locked());
    EXPECT_TRUE(file.exclusive());
}

TEST(FileLock, AProgramThatInheritsTheDescriptorKeepsIt) {
    const LockedFile file;
    auto user = file.shared();
    Child child{[&] {
        ::fcntl(user->file().view().number(), F_SETFD, 0);
        exec_sleep();
    }};
    user.reset();
    EXPECT_TRUE(file.is_locked());
    EXPECT_FALSE(file.exclusive());
    EXPECT_TRUE(file.shared());
    child.kill();
    EXPECT_FALSE(file.is_locked());
}

TEST(FileLock, AProgramThatDoesNotInheritItDoesNot) {
    const LockedFile file;
    auto user = file.shared();
    const Child child{exec_sleep};
    user.reset();
    EXPECT_FALSE(file.is_locked());
}

TEST(FileLock, IsTriedAgainAgainstThoseWhoOnlyLook) {
    const LockedFile file;
    const std::uint64_t repeat = lock_attempts - 1;
    {
        const FaultInjector injector{0, {.only = SysCall::flock, .os_error = EWOULDBLOCK, .repeat = repeat}};
        EXPECT_TRUE(file.shared());
    }
    const FaultInjector injector{0, {.only = SysCall::flock, .os_error = EWOULDBLOCK, .repeat = repeat + 1}};
    EXPECT_FALSE(file.shared());
}

TEST(FileLock, ACallThatFailsIsAnErrorThatNamesTheDescriptor) {
    const LockedFile file;
    const FaultInjector::Options only_lock{.only = SysCall::flock};
    EXPECT_EQ(for_each_fault(
                  {.injector = only_lock}, [&] { return FileLock::try_shared(file.open()); }, [] {}),
              1U);
    EXPECT_EQ(for_each_fault(
                  {.injector = only_lock}, [&] { return FileLock::try_exclusive(file.open()); }, [] {}),
              1U);
    const auto none = FileLock::try_shared(Fd{});
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().os_error(), EBADF);
    EXPECT_THAT(none.error().message(), HasSubstr("descriptor -1"));
}

TEST(IsLockedByOthers, TellsBothKindsAndLeavesNone) {
    const LockedFile file;
    EXPECT_FALSE(file.is_locked());
    {
        const auto user = file.shared();
        EXPECT_TRUE(file.is_locked());
    }
    {
        const auto only = file.exclusive();
        EXPECT_TRUE(file.is_locked());
    }
    const Fd asking = file.open();
    EXPECT_FALSE(is_locked_by_others(asking).value());
    EXPECT_TRUE(file.exclusive()) << "asking left a lock";
}

TEST(IsLockedByOthers, ALockOfItsOwnIsAnErrorAndStays) {
    const LockedFile file;
    const auto user = file.shared();
    const auto asked = is_locked_by_others(user->file());
    ASSERT_FALSE(asked);
    EXPECT_EQ(asked.error().code(), Errc::invalid_argument);
    EXPECT_FALSE(file.exclusive());
}

TEST(IsLockedByOthers, AnyCallThatFailsIsAnError) {
    const LockedFile file;
    const Fd asking = file.open();
    // fdinfo: open, read, its end; the file again; its lock
    EXPECT_EQ(for_each_fault([&] { return is_locked_by_others(asking); }), 5U);
    EXPECT_FALSE(is_locked_by_others(FdView{}));
}

}  // namespace
}  // namespace guestmem

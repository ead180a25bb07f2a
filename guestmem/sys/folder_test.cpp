// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/folder.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

/// Another umask for one test.
class Umask {
public:
    explicit Umask(mode_t mask) : before_(::umask(mask)) {}
    Umask(const Umask&) = delete;
    Umask& operator=(const Umask&) = delete;
    ~Umask() { ::umask(before_); }

private:
    mode_t before_;
};

unsigned mode_of(const std::string& path) {
    struct stat status{};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
    return status.st_mode & 07777U;
}

/// A folder that a link beside it leads to.
struct Linked {
    Linked() {
        std::filesystem::create_directory(folder.path_of("real"));
        folder.write("real/precious", "x");
        EXPECT_EQ(::symlink("real", link.c_str()), 0);
    }
    const TempFolder folder;
    const std::string link = folder.path_of("link");
    /// A link as the last part, however it ends.
    const std::vector<std::string> paths{link, link + "/", link + "/.", link + "//", link + "/./"};
};

/// A tree with `depth` folders in folders, each with a file and a link that leads out.
std::string make_tree(const TempFolder& folder, int depth) {
    std::string path = folder.path_of("tree");
    const std::string top = path;
    for (int level = 0; level <= depth; ++level) {
        std::filesystem::create_directory(path);
        std::filesystem::create_symlink(folder.path(), path + "/link");
        folder.write(path.substr(folder.path().size() + 1) + "/file", "x");
        path += "/sub";
    }
    return top;
}

TEST(OpenFolder, IsThatFolderAndClosesOnExec) {
    const TempFolder folder;
    folder.write("f", "x");
    for (const std::string& path : {folder.path(), folder.path() + "/", folder.path() + "/."}) {
        const auto opened = open_folder(path);
        ASSERT_TRUE(opened) << path;
        EXPECT_EQ(file_facts(*opened)->inode, path_facts(folder.path())->inode);
        EXPECT_EQ(::fcntl(opened->view().number(), F_GETFD), FD_CLOEXEC);
    }
    EXPECT_TRUE(open_folder("/"));
    EXPECT_TRUE(open_folder("."));
}

TEST(OpenFolder, ALinkIsRefusedHoweverThePathEnds) {
    const Linked linked;
    for (const std::string& path : linked.paths) {
        const auto opened = open_folder(path);
        ASSERT_FALSE(opened) << path;
        EXPECT_EQ(opened.error().code(), Errc::invalid_argument) << path;
        EXPECT_THAT(opened.error().message(), HasSubstr("link")) << path;
    }
}

TEST(OpenFolder, ALinkOnTheWayIsFollowed) {
    const Linked linked;
    std::filesystem::create_directory(linked.folder.path_of("real/below"));
    EXPECT_TRUE(open_folder(linked.link + "/below"));
}

TEST(OpenFolder, WhatIsNoFolderIsAnErrorThatNamesIt) {
    const TempFolder folder;
    const std::string file = folder.write("f", "x");
    EXPECT_EQ(open_folder(file).error().code(), Errc::invalid_argument);
    const auto missing = open_folder(folder.path_of("no"));
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code(), Errc::not_found);
    EXPECT_THAT(missing.error().message(), HasSubstr(folder.path_of("no")));
}

TEST(OpenFolder, APathWithoutANameAtItsEndIsRefused) {
    const TempFolder folder;
    for (const std::string& path : {std::string{}, std::string{".."}, folder.path() + "/..",
                                    folder.path() + "/../.", folder.path() + std::string{"/x\0", 3}}) {
        const auto opened = open_folder(path);
        ASSERT_FALSE(opened) << path;
        EXPECT_EQ(opened.error().code(), Errc::invalid_argument) << path;
    }
}

TEST(OpenFolder, ACallThatFailsIsAnError) {
    EXPECT_EQ(for_each_fault([] { return open_folder("/"); }), 1U);
}

TEST(MakeFolder, HasTheModeWhateverTheUmask) {
    const TempFolder folder;
    for (const mode_t mask : {0U, 022U, 077U, 0777U}) {
        const Umask umask{mask};
        for (const std::uint32_t mode : {0700U, 0755U, 0777U, 0500U, 0U}) {
            ASSERT_TRUE(make_folder(folder.path_of("d"), mode)) << mask;
            EXPECT_EQ(mode_of(folder.path_of("d")), mode) << mask;
            ASSERT_TRUE(remove_folder(folder.path_of("d")));
        }
    }
}

TEST(MakeFolder, DoesNotInheritTheGroupBit) {
    const TempFolder folder;
    ASSERT_EQ(::chmod(folder.path().c_str(), 02755), 0);
    ASSERT_TRUE(make_folder(folder.path_of("d"), 0750));
    EXPECT_EQ(mode_of(folder.path_of("d")), 0750U);
}

TEST(MakeFolder, WhatIsThereIsAnErrorAndStays) {
    const Linked linked;
    std::vector<std::string> taken = linked.paths;
    taken.push_back(linked.folder.path_of("real"));
    taken.push_back(linked.folder.write("file", "x"));
    for (const std::string& path : taken) {
        const auto made = make_folder(path, 0711);
        ASSERT_FALSE(made) << path;
        EXPECT_EQ(made.error().code(), Errc::already_exists) << path;
        EXPECT_THAT(made.error().message(), HasSubstr(path));
    }
    EXPECT_NE(mode_of(linked.folder.path_of("real")), 0711U);
}

TEST(MakeFolder, AModeWithMoreThanPermissionsIsRefused) {
    const TempFolder folder;
    const auto made = make_folder(folder.path_of("d"), 01777);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code(), Errc::invalid_argument);
    EXPECT_THAT(made.error().message(), HasSubstr("1777"));
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(MakeFolder, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const std::string path = folder.path_of("d");
    const auto count = for_each_fault(
        [&] {
            auto made = make_folder(path, 0700);
            EXPECT_EQ(static_cast<bool>(made), ::access(path.c_str(), F_OK) == 0);
            return made;
        },
        [&] { ::rmdir(path.c_str()); });
    EXPECT_EQ(count, 2U);
}

TEST(ListFolder, NamesAndKindsAreSortedAndLinksNotFollowed) {
    const TempFolder folder;
    folder.write("b", "x");
    folder.write(".hidden", "x");
    std::filesystem::create_directory(folder.path_of("c"));
    std::filesystem::create_directory_symlink("c", folder.path_of("a"));
    ASSERT_EQ(::mkfifo(folder.path_of("pipe").c_str(), 0600), 0);

    const auto entries = list_folder(folder.path(), 5);

    ASSERT_TRUE(entries) << entries.error().message();
    EXPECT_THAT(*entries, ElementsAre(FolderEntry{.name = ".hidden", .kind = FileKind::regular},
                                      FolderEntry{.name = "a", .kind = FileKind::other},
                                      FolderEntry{.name = "b", .kind = FileKind::regular},
                                      FolderEntry{.name = "c", .kind = FileKind::folder},
                                      FolderEntry{.name = "pipe", .kind = FileKind::other}));
}

TEST(ListFolder, DevicesAreTold) {
    const auto entries = list_folder("/dev", 4096).value();
    const auto null = std::ranges::find(entries, "null", &FolderEntry::name);
    ASSERT_NE(null, entries.end());
    EXPECT_EQ(null->kind, FileKind::character_device);
}

TEST(ListFolder, MoreNamesThanTheLimitAreAnError) {
    const TempFolder folder;
    EXPECT_THAT(list_folder(folder.path(), 0).value(), IsEmpty());
    for (const char* name : {"a", "b", "c"}) folder.write(name, "x");
    EXPECT_EQ(list_folder(folder.path(), 3)->size(), 3U);
    const auto entries = list_folder(folder.path(), 2);
    ASSERT_FALSE(entries);
    EXPECT_EQ(entries.error().code(), Errc::out_of_range);
    EXPECT_THAT(entries.error().message(), HasSubstr("more than 2 names"));
}

TEST(ListFolder, TakesMoreThanOneFillingOfTheBuffer) {
    const TempFolder folder;
    // 200 bytes each: 300 are more than list_buffer_bytes.
    for (int i = 0; i < 300; ++i) folder.write(std::to_string(i) + std::string(200, 'n'), "");
    EXPECT_EQ(list_folder(folder.path(), 300)->size(), 300U);
}

TEST(ListFolder, ANameThatGoesMeanwhileIsLeftOut) {
    const TempFolder folder;
    folder.write("a", "x");
    const FaultInjector injector{0, {.only = SysCall::stat, .os_error = ENOENT}};
    EXPECT_THAT(list_folder(folder.path(), 1).value(), IsEmpty());
    EXPECT_TRUE(injector.has_fired());
}

TEST(ListFolder, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    folder.write("a", "x");
    // open, names, kind, no more names
    EXPECT_EQ(for_each_fault([&] { return list_folder(folder.path(), 8); }), 4U);
    EXPECT_FALSE(list_folder(folder.path_of("a"), 8));
}

TEST(RenameNew, TakesFoldersAndFilesToAFreeName) {
    const TempFolder folder;
    ASSERT_TRUE(make_folder(folder.path_of("draft"), 0700));
    folder.write("draft/ram", "text");
    ASSERT_TRUE(rename_new(folder.path_of("draft/"), folder.path_of("whole/")));
    ASSERT_TRUE(rename_new(folder.path_of("whole/ram"), folder.path_of("whole/memory")));
    EXPECT_THAT(folder.entries(), ElementsAre("whole"));
    EXPECT_EQ(folder.read("whole/memory"), "text");
}

TEST(RenameNew, ANameThatIsTakenIsAnErrorAndStays) {
    const TempFolder folder;
    ASSERT_TRUE(make_folder(folder.path_of("draft"), 0700));
    ASSERT_TRUE(make_folder(folder.path_of("empty"), 0700));
    ASSERT_EQ(::symlink("nowhere", folder.path_of("link").c_str()), 0);
    for (const char* taken : {"empty", "link", "draft"}) {
        const auto renamed = rename_new(folder.path_of("draft"), folder.path_of(taken));
        ASSERT_FALSE(renamed) << taken;
        EXPECT_EQ(renamed.error().code(), Errc::already_exists) << taken;
        EXPECT_THAT(renamed.error().message(), HasSubstr(folder.path_of(taken)));
    }
    EXPECT_THAT(folder.entries(), ElementsAre("draft", "empty", "link"));
}

TEST(RenameNew, WhereTheFileSystemCannotTheErrorSaysSo) {
    const TempFolder folder;
    folder.write("a", "x");
    for (const int os_error : {EINVAL, ENOSYS}) {
        const FaultInjector injector{0, {.only = SysCall::rename, .os_error = os_error}};
        const auto renamed = rename_new(folder.path_of("a"), folder.path_of("b"));
        ASSERT_FALSE(renamed);
        EXPECT_EQ(renamed.error().code(), Errc::unsupported);
        EXPECT_EQ(renamed.error().os_error(), os_error);
        EXPECT_THAT(renamed.error().message(), HasSubstr("RENAME_NOREPLACE"));
    }
    EXPECT_THAT(folder.entries(), ElementsAre("a"));
}

TEST(RenameNew, IntoItselfIsTheCallersError) {
    const TempFolder folder;
    ASSERT_TRUE(make_folder(folder.path_of("a"), 0700));
    const auto renamed = rename_new(folder.path_of("a"), folder.path_of("a/b"));
    ASSERT_FALSE(renamed);
    EXPECT_EQ(renamed.error().code(), Errc::invalid_argument);
}

TEST(RenameNew, AnyCallThatFailsIsAnError) {
    const TempFolder folder;
    const auto count = for_each_fault(
        [&] {
            folder.write("a", "x");
            return rename_new(folder.path_of("a"), folder.path_of("b"));
        },
        [&] { ::unlink(folder.path_of("b").c_str()); });
    EXPECT_EQ(count, 1U);
    EXPECT_EQ(rename_new(folder.path_of("no"), folder.path_of("b")).error().code(), Errc::not_found);
    EXPECT_EQ(rename_new(folder.path_of("a"), "").error().code(), Errc::invalid_argument);
}

TEST(RemoveFolder, TakesAnEmptyOneOnly) {
    const TempFolder folder;
    ASSERT_TRUE(make_folder(folder.path_of("d"), 0700));
    folder.write("d/f", "x");
    const auto full = remove_folder(folder.path_of("d"));
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().os_error(), ENOTEMPTY);
    ASSERT_TRUE(remove_file(folder.path_of("d/f")));
    EXPECT_TRUE(remove_folder(folder.path_of("d")));
    EXPECT_EQ(remove_folder(folder.path_of("d")).error().code(), Errc::not_found);
}

TEST(RemoveFolder, ALinkAndAFileAreRefused) {
    const Linked linked;
    ASSERT_TRUE(remove_file(linked.folder.path_of("real/precious")));
    for (const std::string& path : linked.paths)
        EXPECT_EQ(remove_folder(path).error().code(), Errc::invalid_argument) << path;
    EXPECT_EQ(remove_folder(linked.folder.write("f", "x")).error().code(), Errc::invalid_argument);
    EXPECT_THAT(linked.folder.entries(), ElementsAre("f", "link", "real"));
    EXPECT_EQ(for_each_fault([&] { return remove_folder(linked.folder.path_of("real")); }), 1U);
}

TEST(RemoveTree, TakesAllBelowAndNothingThatLinksLeadTo) {
    const TempFolder folder;
    folder.write("precious", "x");
    const std::string tree = make_tree(folder, 2);
    ASSERT_EQ(::mkfifo((tree + "/sub/pipe").c_str(), 0600), 0);
    const auto removed = remove_tree(tree + "/");
    ASSERT_TRUE(removed) << removed.error().message();
    EXPECT_THAT(folder.entries(), ElementsAre("precious"));
}

TEST(RemoveTree, DeeperThanItMayGoIsAnErrorAndTheTreeIsWhole) {
    const TempFolder folder;
    for (const int depth : {0, 1, 3}) {
        const std::string tree = make_tree(folder, depth);
        const auto removed = remove_tree(tree, depth - 1);
        ASSERT_FALSE(removed) << depth;
        EXPECT_EQ(removed.error().code(), depth == 0 ? Errc::invalid_argument : Errc::out_of_range);
        EXPECT_EQ(list_folder(tree, 3)->size(), depth == 0 ? 2U : 3U);
        EXPECT_TRUE(remove_tree(tree, depth)) << depth;
        EXPECT_THAT(folder.entries(), IsEmpty());
    }
}

TEST(RemoveTree, MoreNamesThanItTakesAreAnErrorAndTheTreeIsWhole) {
    const TempFolder folder;
    const std::string tree = folder.path_of("tree");
    std::filesystem::create_directories(tree + "/sub");
    for (std::size_t i = 1; i < max_tree_entries; ++i) folder.write("tree/sub/" + std::to_string(i), "");
    folder.write("tree/one-too-many", "");
    const auto removed = remove_tree(tree);
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().code(), Errc::out_of_range);
    EXPECT_THAT(removed.error().message(), HasSubstr("more than 4096 names"));
    EXPECT_EQ(list_folder(tree + "/sub", max_tree_entries)->size(), max_tree_entries - 1);

    ASSERT_TRUE(remove_file(tree + "/one-too-many"));
    EXPECT_TRUE(remove_tree(tree));
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(RemoveTree, ALinkAFileAndNothingAreErrors) {
    const Linked linked;
    for (const std::string& path : linked.paths)
        EXPECT_EQ(remove_tree(path).error().code(), Errc::invalid_argument) << path;
    EXPECT_EQ(remove_tree(linked.folder.write("f", "x")).error().code(), Errc::invalid_argument);
    EXPECT_EQ(remove_tree(linked.folder.path_of("no")).error().code(), Errc::not_found);
    EXPECT_EQ(linked.folder.read("real/precious"), "x");
}

TEST(RemoveTree, APathThatEndsWithoutANameIsRefused) {
    const TempFolder folder;
    folder.write("f", "x");
    for (const std::string& path : {std::string{"/"}, std::string{"//"}, std::string{"."}, std::string{},
                                    std::string{".."}, folder.path() + "/.."}) {
        const auto removed = remove_tree(path, 0);
        ASSERT_FALSE(removed) << path;
        EXPECT_EQ(removed.error().code(), Errc::invalid_argument) << path;
    }
    EXPECT_THAT(folder.entries(), ElementsAre("f"));
}

TEST(RemoveTree, BehindALinkOnTheWayIsFound) {
    const Linked linked;
    std::filesystem::create_directory(linked.folder.path_of("real/tree"));
    ASSERT_TRUE(remove_tree(linked.link + "/tree"));
    EXPECT_EQ(linked.folder.read("real/precious"), "x");
}

/// Exchanges two names all the time while it lives.
class Swapper {
public:
    Swapper(std::string one, std::string other)
        : thread_([this, one = std::move(one), other = std::move(other)] {
              while (!is_over_)
                  if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0)
                      ++count_swaps_;
          }) {}
    Swapper(const Swapper&) = delete;
    Swapper& operator=(const Swapper&) = delete;
    ~Swapper() {
        is_over_ = true;
        thread_.join();
    }
    /// False where the file system cannot exchange names.
    [[nodiscard]] bool is_running() const {
        return testing::eventually([&] { return count_swaps_ > 0; });
    }

private:
    std::atomic<bool> is_over_{false};
    std::atomic<int> count_swaps_{0};
    std::thread thread_;
};

TEST(RemoveTree, ANameThatIsSwappedForALinkLeadsNowhere) {
    for (int round = 0; round < 40; ++round) {
        const TempFolder folder;
        std::filesystem::create_directories(folder.path_of("tree/sub"));
        std::filesystem::create_directory(folder.path_of("outside"));
        folder.write("outside/precious", "x");
        std::filesystem::create_symlink(folder.path_of("outside"), folder.path_of("link"));
        // Names beside it: time between the look at it and its turn.
        for (int i = 0; i < 50; ++i) folder.write("tree/" + std::to_string(i), "");

        const Swapper swapper{folder.path_of("tree/sub"), folder.path_of("link")};
        if (!swapper.is_running()) GTEST_SKIP() << "SKIPPED: the file system cannot exchange names";
        const auto removed = remove_tree(folder.path_of("tree"));

        EXPECT_EQ(folder.read("outside/precious"), "x") << "round " << round;
        if (!removed) {
            EXPECT_TRUE(path_facts(folder.path_of("tree"))->exists);
        }
    }
}

TEST(RemoveTree, AnotherFileSystemInItStays) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: needs root, to mount";
    const TempFolder folder;
    const std::string mounted = folder.path_of("tree/sub");
    std::filesystem::create_directories(mounted);
    const pid_t child = ::fork();
    if (child == 0) {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("none", mounted.c_str(), "tmpfs", 0, nullptr) != 0)
            ::_exit(77);
        folder.write("tree/sub/precious", "x");
        const auto removed = remove_tree(folder.path_of("tree"));
        const bool is_right =
            !removed && removed.error().code() == Errc::busy && folder.read("tree/sub/precious") == "x";
        if (!is_right) std::fprintf(stderr, "%s\n", removed ? "removed" : removed.error().message().c_str());
        ::_exit(is_right ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "SKIPPED: may not mount a tmpfs";
    EXPECT_EQ(status, 0);
}

TEST(RemoveTree, WhateverFailsIsAnErrorAndCanBeTriedAgain) {
    const TempFolder folder;
    folder.write("precious", "x");
    const auto count = for_each_fault(
        [&] {
            // What an earlier round left is made whole again.
            std::filesystem::remove_all(folder.path_of("tree"));
            return remove_tree(make_tree(folder, 1));
        },
        [&] { EXPECT_EQ(folder.read("precious"), "x"); });
    // Two looks at two folders, and seven names.
    EXPECT_GT(count, 20U);
    EXPECT_THAT(folder.entries(), ElementsAre("precious"));
}

TEST(SyncFolder, TakesFoldersAndNoLinks) {
    const Linked linked;
    EXPECT_TRUE(sync_folder(linked.folder.path()));
    EXPECT_EQ(for_each_fault([&] { return sync_folder(linked.folder.path()); }), 2U);
    EXPECT_EQ(sync_folder(linked.link).error().code(), Errc::invalid_argument);
    EXPECT_EQ(sync_folder(linked.folder.path_of("no")).error().code(), Errc::not_found);
}

TEST(SyncFile, AFailureIsAnError) {
    const TempFolder folder;
    const Fd file = create_file(folder.path_of("f"), 0600).value();
    EXPECT_EQ(for_each_fault([&] { return sync_file(file); }), 1U);
    const FaultInjector injector{0, {.only = SysCall::fsync, .os_error = ENOSPC}};
    EXPECT_EQ(sync_file(file).error().code(), Errc::exhausted);
    EXPECT_FALSE(sync_file(FdView{}));
}

}  // namespace
}  // namespace guestmem

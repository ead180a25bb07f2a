// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <filesystem>
#include <string>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

namespace fs = std::filesystem;

class FileTreeTest : public ::testing::Test {
protected:
    void SetUp() override {
        fs::create_directories(outside_.path_of("root/sys/devices/a"));
        outside_.write("secret", "of the host");
        outside_.write("root/secret", "of the tree");
        outside_.write("root/sys/devices/a/config", "bytes");
    }
    void link(const std::string& target, const std::string& name) {
        fs::create_symlink(target, outside_.path_of("root/" + name));
    }
    std::string text_of(const std::string& path) {
        auto text = tree_->read(path, 100);
        if (!text) return "error: " + text.error().message();
        return text.value().value_or("nothing");
    }

    TempFolder outside_;
    Result<FileTree> tree_ =
        FileTree::open((fs::create_directories(outside_.path_of("root")), outside_.path_of("root")));
};

TEST_F(FileTreeTest, ReadsFilesWithAndWithoutASlashInFront) {
    EXPECT_EQ(text_of("sys/devices/a/config"), "bytes");
    EXPECT_EQ(text_of("/sys/devices/a/config"), "bytes");
    EXPECT_EQ(text_of("sys/devices/a/absent"), "nothing");
    EXPECT_EQ(text_of("sys/devices/b/config"), "nothing");
    EXPECT_EQ(text_of("secret/below"), "nothing") << "a file is no folder";
}

TEST_F(FileTreeTest, LinksAreFollowedInsideAndNeverOutside) {
    link("../../secret", "sys/devices/up");
    link("../../../../../../../../secret", "sys/devices/far");
    link("/secret", "sys/devices/absolute");
    link(outside_.path_of("secret"), "sys/devices/host");
    link("devices/a", "sys/folder");
    link("/..", "sys/top");
    EXPECT_EQ(text_of("sys/devices/up"), "of the tree");
    EXPECT_EQ(text_of("sys/devices/far"), "of the tree");
    EXPECT_EQ(text_of("sys/devices/absolute"), "of the tree");
    EXPECT_EQ(text_of("sys/devices/host"), "nothing");
    EXPECT_EQ(text_of("sys/folder/config"), "bytes");
    EXPECT_EQ(text_of("sys/top/secret"), "of the tree");
    EXPECT_EQ(text_of("../secret"), "of the tree");
    EXPECT_EQ(text_of("sys/../../secret"), "of the tree");
    EXPECT_THAT(tree_->list("..", 10).value(), ElementsAre("secret", "sys"));
}

TEST_F(FileTreeTest, LinksInCirclesAreAnError) {
    link("round", "round");
    EXPECT_THAT(text_of("round"), HasSubstr("error"));
    EXPECT_THAT(text_of("round/file"), HasSubstr("error"));
    EXPECT_EQ(tree_->link_target("round").value(), "round");
}

TEST_F(FileTreeTest, TargetsOfLinksAreGivenAsTheyStandThere) {
    link("../nowhere/b", "sys/dangling");
    EXPECT_EQ(tree_->link_target("sys/dangling").value(), "../nowhere/b");
    EXPECT_EQ(tree_->link_target("sys/devices").value(), std::nullopt) << "a folder";
    EXPECT_EQ(tree_->link_target("sys/absent").value(), std::nullopt);
    EXPECT_EQ(tree_->link_target("").value(), std::nullopt);
    EXPECT_FALSE(tree_->exists("sys/dangling").value());
    EXPECT_TRUE(tree_->exists("sys/devices/a").value());
}

TEST_F(FileTreeTest, PipesSocketsAndFoldersAreNotRead) {
    ASSERT_EQ(::mkfifo(outside_.path_of("root/pipe").c_str(), 0600), 0);
    EXPECT_THAT(text_of("pipe"), HasSubstr("pipe: no ordinary file"));
    EXPECT_THAT(text_of("sys"), HasSubstr("sys: no ordinary file"));
    EXPECT_THAT(text_of(""), HasSubstr("error"));
}

TEST_F(FileTreeTest, AFileAtTheLimitIsReadAndOneBeyondItIsAnError) {
    outside_.write("root/full", std::string(100, 'x'));
    outside_.write("root/large", std::string(101, 'x'));
    EXPECT_EQ(text_of("full").size(), 100U);
    EXPECT_EQ(tree_->read("large", 100).error().code(), Errc::out_of_range);
    outside_.write("root/huge", std::string(200'000, 'x'));
    EXPECT_EQ(tree_->read("huge", 100).error().code(), Errc::out_of_range);
    EXPECT_EQ(tree_->read("huge", 300'000).value()->size(), 200'000U);
}

TEST_F(FileTreeTest, ALinkToAFolderInAListedFolderStaysInside) {
    fs::create_directories(outside_.path_of("folder"));
    outside_.write("folder/config", "of the host");
    link("a", "sys/devices/b");
    link("../../../folder", "sys/devices/c");
    link(outside_.path_of("folder"), "sys/devices/d");
    EXPECT_THAT(tree_->list("sys/devices", 9).value(), ElementsAre("a", "b", "c", "d"));
    EXPECT_EQ(text_of("sys/devices/a/config"), "bytes");
    EXPECT_EQ(text_of("sys/devices/b/config"), "bytes");
    EXPECT_EQ(text_of("sys/devices/c/config"), "nothing");
    EXPECT_EQ(text_of("sys/devices/d/config"), "nothing");
    EXPECT_EQ(text_of("sys/devices/../secret"), "nothing");
    EXPECT_EQ(text_of("sys/devices/../../secret"), "of the tree");
    EXPECT_EQ(text_of("sys/devices/../../../folder/config"), "nothing");
    EXPECT_EQ(text_of("sys/devices//a/config"), "bytes");
}

TEST_F(FileTreeTest, AFolderIsListedSortedAndWithinItsLimit) {
    outside_.write("root/sys/b", "");
    EXPECT_THAT(tree_->list("sys", 2).value(), ElementsAre("b", "devices"));
    EXPECT_EQ(tree_->list("sys", 1).error().code(), Errc::out_of_range);
    EXPECT_THAT(tree_->list("absent", 1).value(), IsEmpty());
    EXPECT_THAT(tree_->list("secret", 1).value(), IsEmpty());
}

TEST_F(FileTreeTest, PathsWithZeroBytesOrTooLongAreRefused) {
    EXPECT_EQ(tree_->read(std::string{"a\0b", 3}, 1).error().code(), Errc::invalid_argument);
    const std::string longest = "sys/" + std::string(max_tree_path_bytes - 4, '/');
    EXPECT_TRUE(tree_->list(longest, 10));
    EXPECT_EQ(tree_->exists("a" + std::string(max_tree_path_bytes - 1, '/') + "b").error().code(),
              Errc::invalid_argument);
}

TEST_F(FileTreeTest, TheMachineItselfIsReadWithoutContainment) {
    auto machine = FileTree::open("/").value();
    EXPECT_FALSE(machine.read("proc/sys/kernel/osrelease", 100).value()->empty());
    EXPECT_EQ(machine.read(outside_.path_of("secret"), 100).value(), "of the host");
    EXPECT_FALSE(FileTree::open(outside_.path_of("absent")));
}

TEST_F(FileTreeTest, AKernelWithoutOpenat2SaysWhatToDo) {
    const FaultInjector injector{0, {.only = SysCall::open, .os_error = ENOSYS}};
    const auto text = tree_->read("secret", 100);
    ASSERT_FALSE(text);
    EXPECT_EQ(text.error().code(), Errc::unsupported);
    EXPECT_THAT(text.error().message(), HasSubstr("name a .tar"));
}

TEST_F(FileTreeTest, EachFailingCallIsAnError) {
    const auto open = [&] { return FileTree::open(outside_.path_of("root")).value(); };
    for (const char* path : {"secret", "sys/devices/a/config"}) {
        const std::string message = path;
        EXPECT_EQ(for_each_fault([&]() -> Result<bool> {
                      auto tree = GM_TRY(FileTree::open(outside_.path_of("root")));
                      return GM_TRY(tree.read(message, 100)).has_value();
                  }),
                  5U);
    }
    EXPECT_TRUE(open().exists("secret").value());
    EXPECT_EQ(for_each_fault([&]() -> Result<std::vector<std::string>> {
                  auto tree = GM_TRY(FileTree::open(outside_.path_of("root")));
                  return tree.list("sys", 10);
              }),
              4U);
}

}  // namespace
}  // namespace guestmem

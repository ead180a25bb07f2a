// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/host_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::dma {
namespace {

using guestmem::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

using Names = std::vector<std::pair<std::string, std::string>>;

const Names files{{"proc/cmdline", "quiet"},
                  {"secret", "of the tree"},
                  {"sys/bus/pci/devices-old/x", ""},
                  {"sys/bus/pci/devices/0000:00:00.0/config", "bytes"},
                  {"sys/bus/pci/devices/0000:00:00.0-x", ""},
                  {"sys/devices/a/b/type", "deep"}};
const Names links{{"sys/bus/pci/devices/0000:00:01.0", "../../../devices/a/b"},
                  {"sys/devices/a/up", "../../../../../../secret"},
                  {"sys/devices/a/absolute", "/secret"},
                  {"sys/devices/a/top", "/.."},
                  {"sys/devices/a/twice", "up"},
                  {"sys/devices/a/self", "self"},
                  {"sys/devices/a/round", "/sys/devices/a/round2/x"},
                  {"sys/devices/a/round2", "round"},
                  {"sys/devices/a/host", "/etc/passwd"},
                  {"sys/devices/a/b/driver", "../nowhere/e1000e"}};

/// The same tree as a folder and as an archive.
class HostTreeTest : public ::testing::TestWithParam<bool> {
protected:
    void SetUp() override {
        TarWriter writer;
        for (const auto& [path, content] : files) {
            fs::create_directories(fs::path{folder_.path_of("tree/" + path)}.parent_path());
            folder_.write("tree/" + path, content);
            ASSERT_TRUE(writer.add_file(path, content));
        }
        for (const auto& [path, target] : links) {
            fs::create_symlink(target, folder_.path_of("tree/" + path));
            ASSERT_TRUE(writer.add_link(path, target));
        }
        folder_.write("tree.tar", std::move(writer).finish());
        folder_.write("secret", "of the host");
        auto tree = open_host_tree(folder_.path_of(GetParam() ? "tree.tar" : "tree"));
        ASSERT_TRUE(tree) << tree.error().message();
        tree_ = std::move(*tree);
    }
    std::string text_of(std::string_view path) {
        const auto text = tree_->read(path, 100);
        return text ? text->value_or("nothing") : "error: " + text.error().message();
    }

    TempFolder folder_;
    std::unique_ptr<HostTree> tree_;
};

INSTANTIATE_TEST_SUITE_P(Forms, HostTreeTest, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Archive" : "Folder"; });

TEST_P(HostTreeTest, ReadsFilesThroughLinks) {
    EXPECT_EQ(text_of("proc/cmdline"), "quiet");
    EXPECT_EQ(text_of("/proc/cmdline"), "quiet");
    EXPECT_EQ(text_of("sys/bus/pci/devices/0000:00:00.0/config"), "bytes");
    EXPECT_EQ(text_of("sys/bus/pci/devices/0000:00:01.0/type"), "deep");
    EXPECT_EQ(text_of("sys/bus/pci/devices/0000:00:01.0/../up"), "of the tree");
    EXPECT_EQ(text_of("sys/absent/a"), "nothing");
    EXPECT_EQ(text_of("sys/bus/pci/devices/0000:00:00.0/absent"), "nothing");
    EXPECT_EQ(text_of("proc/cmdline/below"), "nothing");
    EXPECT_FALSE(tree_->is_live());
}

TEST_P(HostTreeTest, LinksNeverLeaveTheTree) {
    for (const char* path : {"up", "absolute", "top/secret", "twice"})
        EXPECT_EQ(text_of(std::string{"sys/devices/a/"} + path), "of the tree") << path;
    EXPECT_EQ(text_of("sys/devices/a/host"), "nothing");
    EXPECT_EQ(text_of("../secret"), "of the tree");
    EXPECT_EQ(text_of("../../../../etc/passwd"), "nothing");
}

TEST_P(HostTreeTest, LinksInCirclesAreAnError) {
    EXPECT_THAT(text_of("sys/devices/a/self"), HasSubstr("error"));
    EXPECT_THAT(text_of("sys/devices/a/round"), HasSubstr("error"));
    EXPECT_THAT(text_of("sys/devices/a/self/below"), HasSubstr("error"));
    EXPECT_FALSE(tree_->exists("sys/devices/a/round"));
    EXPECT_FALSE(tree_->list("sys/devices/a/round", 10));
}

TEST_P(HostTreeTest, LinkTargetsAreGivenAsTheyStand) {
    EXPECT_EQ(tree_->link_target("sys/bus/pci/devices/0000:00:01.0/driver").value(), "../nowhere/e1000e");
    EXPECT_EQ(tree_->link_target("sys/bus/pci/devices/0000:00:01.0").value(), "../../../devices/a/b");
    EXPECT_EQ(tree_->link_target("proc/cmdline").value(), std::nullopt);
    EXPECT_EQ(tree_->link_target("proc/absent").value(), std::nullopt);
    EXPECT_EQ(tree_->link_target("").value(), std::nullopt);
}

TEST_P(HostTreeTest, FoldersAreListedSortedAndWithinTheirLimit) {
    EXPECT_THAT(tree_->list("sys/bus/pci/devices", 3).value(),
                ElementsAre("0000:00:00.0", "0000:00:00.0-x", "0000:00:01.0"));
    EXPECT_THAT(tree_->list("sys/bus/pci", 3).value(), ElementsAre("devices", "devices-old"));
    EXPECT_THAT(tree_->list("sys/bus/pci/devices/0000:00:01.0", 3).value(), ElementsAre("driver", "type"));
    EXPECT_THAT(tree_->list("", 3).value(), ElementsAre("proc", "secret", "sys"));
    EXPECT_THAT(tree_->list("sys/absent", 3).value(), IsEmpty());
    EXPECT_THAT(tree_->list("proc/cmdline", 3).value(), IsEmpty());
    EXPECT_EQ(tree_->list("sys/bus/pci/devices", 2).error().code(), Errc::out_of_range);
}

TEST_P(HostTreeTest, WhatIsThereExists) {
    EXPECT_TRUE(tree_->exists("sys/bus/pci").value());
    EXPECT_TRUE(tree_->exists("sys/bus/pci/devices/0000:00:01.0").value());
    EXPECT_TRUE(tree_->exists("proc/cmdline").value());
    EXPECT_FALSE(tree_->exists("sys/bus/pc").value());
    EXPECT_FALSE(tree_->exists("sys/devices/a/b/driver").value()) << "it leads nowhere";
}

TEST_P(HostTreeTest, FoldersAndLargeFilesAreNotRead) {
    EXPECT_THAT(text_of("sys/bus"), HasSubstr("no ordinary file"));
    EXPECT_EQ(tree_->read("secret", 11).value(), "of the tree");
    EXPECT_EQ(tree_->read("secret", 10).error().code(), Errc::out_of_range);
}

TEST(HostTree, TheMachineItselfIsLive) {
    const auto tree = open_host_tree("/").value();
    EXPECT_TRUE(tree->is_live());
    EXPECT_FALSE(tree->read("proc/sys/kernel/osrelease", 100).value()->empty());
}

TEST(HostTree, WhatIsNoArchiveIsRefusedWithItsName) {
    const TempFolder folder;
    const auto refusal = [&](std::string_view bytes) {
        return open_host_tree(folder.write("machine.tar", bytes)).error().message();
    };
    EXPECT_THAT(refusal("no archive"), HasSubstr("machine.tar': archive, offset 0x0"));
    EXPECT_THAT(refusal("\x1f\x8b..."), HasSubstr("unpack it with gunzip first"));
    EXPECT_THAT(refusal(""), HasSubstr("empty"));
    EXPECT_THAT(open_host_tree(folder.path_of("absent")).error().message(), HasSubstr("absent"));
    EXPECT_THAT(open_host_tree("/dev/null").error().message(), HasSubstr("neither a folder nor a file"));
    fs::resize_file(folder.write("large.tar", ""), max_host_archive_bytes + 1);
    EXPECT_EQ(open_host_tree(folder.path_of("large.tar")).error().code(), Errc::out_of_range);
}

TEST(HostTree, AnArchiveOfLinksThatMultiplyEndsSoon) {
    TarWriter writer;
    ASSERT_TRUE(writer.add_link("0", "."));
    for (int i = 1; i < 100; ++i) {
        const std::string before = std::to_string(i - 1);
        ASSERT_TRUE(writer.add_link(std::to_string(i), before + "/" + before + "/" + before));
    }
    const auto tree = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    EXPECT_EQ(tree->exists("99/x").error().code(), Errc::corrupt);
    EXPECT_FALSE(tree->exists("2/x").value());
}

}  // namespace
}  // namespace guestmem::dma

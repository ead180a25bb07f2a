// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/maker.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;
using testing::TestMap;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

class MakerTest : public ::testing::Test {
protected:
    MakerTest() { guest_.ram(0, mib, "low").ram(2 * mib, mib, "high").device(mib, 4096).count_up(); }

    Result<Manifest> make(const std::string& folder) {
        TemplateMaker maker = GM_TRY(TemplateMaker::begin(folder));
        GM_TRY(maker.add_map(*guest_.map()));
        GM_TRY(maker.set_state(std::as_bytes(std::span{state_})));
        return std::move(maker).commit();
    }
    static bool is_whole(const std::string& folder) {
        const auto opened = Template::open(folder);
        const auto check = opened ? (*opened)->verify() : Result<TemplateCheck>{opened.error()};
        return check && check->is_good() && (*opened)->fork();
    }

    TempFolder store_;
    TestMap guest_;
    std::string state_ = "state";
};

TEST_F(MakerTest, MakesAFolderOfFilesThatTheirOwnerAloneReadsAndNobodyWrites) {
    ASSERT_TRUE(make(store_.path_of("base")));
    const auto mode = [&](const std::string& name) {
        struct stat status{};
        EXPECT_EQ(::stat((store_.path_of("base") + name).c_str(), &status), 0) << name;
        return status.st_mode & 07777;
    };
    EXPECT_EQ(mode(""), 0700U);
    for (const char* name : {"/manifest.json", "/image", "/sums", "/state"})
        EXPECT_EQ(mode(name), 0400U) << name;
    EXPECT_THAT(store_.entries(), ElementsAre("base")) << "and leaves no work behind";
    EXPECT_TRUE(is_whole(store_.path_of("base")));
}

TEST_F(MakerTest, LeavesOutDevices) {
    const Manifest manifest = make(store_.path_of("base")).value();
    EXPECT_EQ(manifest.regions.size(), 2U);
    EXPECT_EQ(manifest.image_bytes, 2 * mib);
}

TEST_F(MakerTest, EachTemplateHasAnIdOfItsOwn) {
    EXPECT_NE(make(store_.path_of("one"))->id, make(store_.path_of("other"))->id);
}

TEST_F(MakerTest, ANameThatIsTakenStays) {
    ASSERT_TRUE(make(store_.path_of("base")));
    const auto again = make(store_.path_of("base"));
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Errc::already_exists);
    store_.write("file", "of somebody");
    EXPECT_EQ(make(store_.path_of("file")).error().code(), Errc::already_exists);
    EXPECT_EQ(store_.read("file"), "of somebody");
    EXPECT_THAT(store_.entries(), ElementsAre("base", "file"));
}

TEST_F(MakerTest, ANameThatIsTakenMeanwhileStays) {
    TemplateMaker first = TemplateMaker::begin(store_.path_of("base")).value();
    TemplateMaker second = TemplateMaker::begin(store_.path_of("base")).value();
    ASSERT_TRUE(first.add_map(*guest_.map()));
    ASSERT_TRUE(second.add_map(*guest_.map()));
    const Manifest winner = std::move(first).commit().value();
    EXPECT_EQ(std::move(second).commit().error().code(), Errc::already_exists);
    EXPECT_EQ(Template::open(store_.path_of("base")).value()->manifest(), winner);
}

TEST_F(MakerTest, BadNamesAndStoresAreErrors) {
    for (const char* name : {".hidden", "a b", "-x", ".."}) {
        const auto made = make(store_.path_of(name));
        ASSERT_FALSE(made) << name;
        EXPECT_EQ(made.error().code(), Errc::invalid_argument) << name;
    }
    EXPECT_FALSE(make(store_.path_of("no/base")));
    EXPECT_THAT(store_.entries(), IsEmpty());
}

TEST_F(MakerTest, OfNoMemoryIsAnErrorAndLeavesNothing) {
    {
        TemplateMaker maker = TemplateMaker::begin(store_.path_of("base")).value();
        EXPECT_FALSE(std::move(maker).commit());
    }
    EXPECT_THAT(store_.entries(), IsEmpty());
}

TEST_F(MakerTest, OfMemoryThatIsLostIsAnErrorAndNoSignal) {
    ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
    Fd file = create_file(store_.path_of("ram"), 0600).value();
    ASSERT_TRUE(resize_file(file, mib));
    const Fd mine = file.duplicate().value();
    const auto memory = HostMemory::create_from_file(std::move(file), {.size_bytes = mib}).value();
    TestMap guest;
    guest.add({.name = "cut", .base = GuestAddress{0}, .memory = memory});
    ASSERT_TRUE(resize_file(mine, mib / 2));
    {
        TemplateMaker maker = TemplateMaker::begin(store_.path_of("base")).value();
        const auto added = maker.add_map(*guest.map());
        ASSERT_FALSE(added);
        EXPECT_THAT(added.error().message(), HasSubstr("cannot be read"));
    }
    EXPECT_THAT(store_.entries(), ElementsAre("ram"));
}

TEST_F(MakerTest, EachFailingCallLeavesNothingBehindOrAllOfIt) {
    std::vector<SysCall> survived;
    const auto attempt = [&] {
        auto made = make(store_.path_of("base"));
        const SysCall failed = detail::active_injector.load()->failed_call();
        if (made && failed != SysCall::count) survived.push_back(failed);
        return made;
    };
    const auto after = [&] {
        const std::vector<std::string> entries = store_.entries();
        const bool is_there = std::ranges::count(entries, "base") != 0;
        EXPECT_EQ(entries.size(), is_there ? 1U : 0U);
        if (!is_there) return;
        EXPECT_TRUE(is_whole(store_.path_of("base")));
        ASSERT_TRUE(remove_template(store_.path_of("base")));
    };
    EXPECT_GT(for_each_fault({.faults = testing::FaultsAre::survivable}, attempt, after), 30U);
    EXPECT_THAT(survived, IsEmpty());
}

TEST_F(MakerTest, AKillAtAnyCallLeavesAllOrNothingAndTheNextMakerCleansUp) {
    std::size_t count_killed = 0;
    std::size_t count_whole = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        const int status = testing::status_of_child([&] {
            FaultInjector injector{nth, {.is_deadly = true}};
            ASSERT_TRUE(make(store_.path_of("base")));
        });
        const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        ASSERT_TRUE(is_killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << nth;
        if (is_killed) ++count_killed;
        const std::vector<std::string> names = list_templates(store_.path()).value();
        if (!names.empty()) {
            ASSERT_TRUE(is_whole(store_.path_of("base"))) << nth;
            ++count_whole;
            ASSERT_TRUE(remove_template(store_.path_of("base")));
        }
        ASSERT_TRUE(remove_leftovers(store_.path()));
        ASSERT_THAT(store_.entries(), IsEmpty()) << nth;
        if (!is_killed) break;
        ASSERT_LT(nth, 500U);
    }
    EXPECT_GT(count_killed, 30U);
    EXPECT_GT(count_whole, 1U) << "killed behind the rename, too";
}

TEST_F(MakerTest, ManyMakersInOneStoreDoNotRemoveEachOthersWork) {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            for (int round = 0; round < 25; ++round) {
                auto maker = TemplateMaker::begin(store_.path_of("t" + std::to_string(i)));
                EXPECT_TRUE(maker) << (maker ? "" : maker.error().message());
            }
        });
    threads.clear();
    EXPECT_THAT(store_.entries(), IsEmpty());
}

TEST_F(MakerTest, AFullFileSystemLeavesNothing) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root may mount a tmpfs";
    testing::in_child([&] {
        const std::string folder = store_.path_of("small");
        std::filesystem::create_directory(folder);
        constexpr std::uint64_t size = 3 * mib;
        ASSERT_TRUE(testing::mount_small_tmpfs(folder, size)) << "root without the right to mount";
        const Fd filler = create_file(folder + "/filler", 0600).value();
        bool was_full = false;
        bool was_made = false;
        // From no room at all to enough, in steps of some pages.
        for (std::uint64_t room = 0; room <= size - 64 * 1024 && !was_made; room += 52 * 1024) {
            ASSERT_TRUE(resize_file(filler, 0));
            ASSERT_TRUE(allocate_file(filler, 0, size - room - 16 * 1024));
            const auto made = make(folder + "/base");
            was_made = made.has_value();
            if (made) {
                EXPECT_TRUE(is_whole(folder + "/base"));
            } else {
                was_full = true;
                EXPECT_EQ(made.error().code(), Errc::exhausted) << made.error().message();
                EXPECT_THAT(list_templates(folder).value(), IsEmpty());
                EXPECT_EQ(std::distance(std::filesystem::directory_iterator{folder}, {}), 1);
            }
        }
        EXPECT_TRUE(was_full && was_made);
    });
}

}  // namespace
}  // namespace guestmem

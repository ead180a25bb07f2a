// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/store.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;
using testing::TestMap;

class StoreTest : public ::testing::Test {
protected:
    StoreTest() { guest_.ram(0, 64 * 1024).count_up(); }
    void make(const std::string& name) {
        TemplateMaker maker = TemplateMaker::begin(store_.path_of(name)).value();
        ASSERT_TRUE(maker.add_map(*guest_.map()));
        ASSERT_TRUE(std::move(maker).commit());
    }
    TempFolder store_;
    TestMap guest_;
};

TEST_F(StoreTest, ListsTemplatesAndNothingElse) {
    EXPECT_THAT(list_templates(store_.path()).value(), IsEmpty());
    EXPECT_THAT(list_templates(store_.path_of("nowhere")).value(), IsEmpty());
    make("b");
    make("a");
    store_.write("file", "");
    std::filesystem::create_directory(store_.path_of("folder"));
    std::filesystem::create_directory_symlink(store_.path_of("a"), store_.path_of("link"));
    const TemplateMaker making = TemplateMaker::begin(store_.path_of("c")).value();
    EXPECT_THAT(list_templates(store_.path()).value(), ElementsAre("a", "b"));
}

TEST_F(StoreTest, RemovesATemplateWhole) {
    make("a");
    ASSERT_TRUE(remove_template(store_.path_of("a")));
    EXPECT_THAT(store_.entries(), IsEmpty());
    EXPECT_EQ(remove_template(store_.path_of("a")).error().code(), Errc::not_found);
    store_.write("file", "x");
    EXPECT_FALSE(remove_template(store_.path_of("file")));
    EXPECT_THAT(store_.entries(), ElementsAre("file"));
}

TEST_F(StoreTest, ATemplateWithForksStaysAndTheErrorNamesWhoHasThem) {
    make("a");
    auto opened = Template::open(store_.path_of("a")).value();
    auto fork = opened->fork().value();
    const auto removed = remove_template(store_.path_of("a"));
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().code(), Errc::busy);
    EXPECT_THAT(removed.error().message(), HasSubstr("processes " + std::to_string(::getpid())));
    EXPECT_EQ(tenants_of(store_.path_of("a"))->size(), 1U);
    fork.regions.clear();
    opened.reset();
    EXPECT_TRUE(remove_template(store_.path_of("a")));
}

TEST_F(StoreTest, AnOpenTemplateThatWasRemovedGivesNoFork) {
    make("a");
    const auto opened = Template::open(store_.path_of("a")).value();
    ASSERT_TRUE(remove_template(store_.path_of("a")));
    EXPECT_FALSE(opened->fork());
    make("a");
    const auto fork = opened->fork();
    ASSERT_FALSE(fork) << "another template has its name";
    EXPECT_THAT(fork.error().message(), HasSubstr("it was replaced"));
    EXPECT_THAT(*tenants_of(store_.path_of("a")), IsEmpty());
}

TEST_F(StoreTest, ATemplateThatIsBeingRemovedGivesNoFork) {
    make("a");
    const auto lock = try_retire(store_.path_of("a")).value();
    ASSERT_TRUE(lock);
    const auto fork = Template::open(store_.path_of("a")).value()->fork();
    ASSERT_FALSE(fork);
    EXPECT_EQ(fork.error().code(), Errc::busy);
}

TEST_F(StoreTest, WorkThatIsGoingOnIsNoLeftover) {
    TemplateMaker making = TemplateMaker::begin(store_.path_of("a")).value();
    ASSERT_TRUE(remove_leftovers(store_.path()));
    ASSERT_TRUE(making.add_map(*guest_.map()));
    EXPECT_TRUE(std::move(making).commit());
    EXPECT_THAT(store_.entries(), ElementsAre("a"));
}

TEST_F(StoreTest, LeftoversOfTheDeadAreRemovedAndLinksAreNotFollowed) {
    const TempFolder elsewhere;
    elsewhere.write("kept", "x");
    for (const std::string prefix : {making_prefix, retired_prefix}) {
        const std::string work = store_.path_of(prefix + "0123");
        std::filesystem::create_directories(work + "/forks");
        std::filesystem::create_directory_symlink(elsewhere.path(), work + "/link");
        store_.write(prefix + "0123/image", "x");
        std::filesystem::create_directory_symlink(elsewhere.path(), store_.path_of(prefix + "4567"));
    }
    ASSERT_TRUE(remove_leftovers(store_.path()));
    EXPECT_THAT(store_.entries(), ElementsAre(".making-4567", ".retired-4567")) << "links are nobody's work";
    EXPECT_EQ(elsewhere.read("kept"), "x");
    EXPECT_TRUE(remove_leftovers(store_.path_of("nowhere")));
}

TEST_F(StoreTest, EachFailingCallOfRemovingIsAnErrorAndTheNextOneFinishes) {
    for (std::uint64_t nth = 0; nth < 200; ++nth) {
        if (list_templates(store_.path()).value().empty()) make("a");
        SysCall failed = SysCall::count;
        {
            FaultInjector injector{nth, {}};
            static_cast<void>(remove_template(store_.path_of("a")));
            failed = injector.failed_call();
        }
        const auto names = list_templates(store_.path()).value();
        if (!names.empty()) {
            EXPECT_TRUE(Template::open(store_.path_of("a")).value()->verify()->is_good()) << "whole, or gone";
        }
        ASSERT_TRUE(remove_leftovers(store_.path()));
        EXPECT_EQ(store_.entries().size(), names.size());
        if (failed == SysCall::count) return;
    }
    FAIL() << "there is still a call to fail";
}

}  // namespace
}  // namespace guestmem

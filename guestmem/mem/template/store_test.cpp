// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/store.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::Chain;
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

// -------------------------------------------------------------------------------------------------- differences

class StoreOfDifferences : public ::testing::Test {
protected:
    StoreOfDifferences() {
        chain_.add(1);
        chain_.add(2);
    }
    void difference(const std::string& name, int parent) const {
        TemplateMaker maker =
            TemplateMaker::begin_difference(chain_.store().path_of(name), chain_.open(parent)).value();
        ASSERT_TRUE(std::move(maker).commit());
    }
    [[nodiscard]] Error refusal(int number) const {
        const auto removed = remove_template(chain_.path_of(number));
        EXPECT_FALSE(removed);
        return removed ? Error{Errc::io, "it was removed"} : removed.error();
    }
    Chain chain_;
};

TEST_F(StoreOfDifferences, ATemplateWithDifferencesStaysAndTheErrorNamesThem) {
    difference("other", 0);
    EXPECT_EQ(refusal(0).code(), Errc::busy);
    EXPECT_THAT(refusal(0).message(),
                HasSubstr("d1, other are differences to it; flatten or remove them first"));
    EXPECT_THAT(refusal(1).message(), HasSubstr("d2 is a difference to it; flatten or remove it first"));
    EXPECT_THAT(differences_to(chain_.path_of(0)).value(), ElementsAre("d1", "other"));
    EXPECT_THAT(differences_to(chain_.path_of(2)).value(), IsEmpty());
    for (int number = 0; number <= 2; ++number)
        EXPECT_TRUE(chain_.open(number)->verify()->is_good()) << number;
    for (const char* name : {"other", "d2", "d1", "d0"})
        EXPECT_TRUE(remove_template(chain_.store().path_of(name))) << name;
    EXPECT_THAT(chain_.store().entries(), IsEmpty());
}

TEST_F(StoreOfDifferences, ATemplateStaysWhileADifferenceToItIsMade) {
    {
        const TemplateMaker making =
            TemplateMaker::begin_difference(chain_.store().path_of("new"), chain_.open(2)).value();
        EXPECT_THAT(refusal(2).message(), HasSubstr("processes " + std::to_string(::getpid())));
        EXPECT_EQ(refusal(0).code(), Errc::busy);
    }
    EXPECT_TRUE(remove_template(chain_.path_of(2)));
}

TEST_F(StoreOfDifferences, ATemplateWithTheNameOfAParentIsRemovedWhenItIsAnotherOne) {
    const std::string aside = chain_.store().path_of("aside");
    std::filesystem::rename(chain_.path_of(0), aside);
    TemplateMaker maker = TemplateMaker::begin(chain_.path_of(0)).value();
    ASSERT_TRUE(maker.add_map(*chain_.guest().map()));
    ASSERT_TRUE(std::move(maker).commit());
    EXPECT_TRUE(remove_template(chain_.path_of(0)));
    EXPECT_FALSE(remove_template(aside)) << "and the parent stays under any name";
}

TEST_F(StoreOfDifferences, WhatIsNoTemplateDoesNotHoldUpTheOthers) {
    const auto folder_with = [&](const char* name, const std::function<void(const std::string&)>& how) {
        std::filesystem::create_directory(chain_.store().path_of(name));
        how(chain_.store().path_of(name) + "/" + template_manifest_file);
    };
    folder_with("broken", [](const std::string& path) { std::ofstream{path} << "no manifest"; });
    folder_with("empty", [](const std::string& path) { std::ofstream{path} << ""; });
    folder_with("folder", [](const std::string& path) { std::filesystem::create_directory(path); });
    folder_with("link",
                [](const std::string& path) { std::filesystem::create_symlink("/etc/passwd", path); });
    // Nobody writes to it: who reads it waits for ever.
    folder_with("pipe", [](const std::string& path) { ASSERT_EQ(::mkfifo(path.c_str(), 0400), 0); });
    folder_with("large", [](const std::string& path) {
        std::ofstream{path} << "{";
        std::filesystem::resize_file(path, std::uint64_t{1} << 40);
    });
    testing::in_child([&] {
        ::alarm(20);
        EXPECT_THAT(differences_to(chain_.path_of(0)).value(), ElementsAre("d1"));
        EXPECT_TRUE(remove_template(chain_.path_of(2)));
    });
    EXPECT_THAT(list_templates(chain_.store().path()).value(), ::testing::Not(::testing::Contains("d2")));
}

/// What cannot be read at the moment may be a difference: its parent must not go.
TEST_F(StoreOfDifferences, EachFailingCallOfRemovingAParentKeepsIt) {
    for (const int os_error : {0, EIO, EACCES, EMFILE}) {
        const auto attempt = [&] {
            const auto removed = remove_template(chain_.path_of(1));
            EXPECT_FALSE(removed);
            return removed || removed.error().code() == Errc::busy;
        };
        EXPECT_GT(testing::for_each_fault({.faults = testing::FaultsAre::survivable,
                                           .injector = {.only = SysCall::open, .os_error = os_error}},
                                          attempt,
                                          [&] { ASSERT_TRUE(std::filesystem::exists(chain_.path_of(1))); }),
                  3U);
        EXPECT_GT(testing::for_each_fault({.faults = testing::FaultsAre::survivable}, attempt,
                                          [&] { ASSERT_TRUE(std::filesystem::exists(chain_.path_of(1))); }),
                  10U);
    }
    EXPECT_TRUE(chain_.open(2)->verify()->is_good());
    EXPECT_EQ(testing::bytes_of(chain_.open(2)->fork().value()), chain_.expected(2));
}

TEST(RemoveTemplate, GoesOnBesideMakersThatCleanUp) {
    const TempFolder store;
    std::atomic<bool> is_done{false};
    std::jthread cleaner{[&] {
        while (!is_done) EXPECT_TRUE(remove_leftovers(store.path()));
    }};
    const Fd hole = create_sparse_memory({.name = "ram", .size_bytes = 4096}, Sealing::none).value();
    for (int round = 0; round < 100; ++round) {
        TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
        EXPECT_TRUE(maker.add_file({.name = "ram", .size_bytes = 4096}, hole, 0));
        EXPECT_TRUE(std::move(maker).commit());
        const auto removed = remove_template(store.path_of("base"));
        EXPECT_TRUE(removed) << removed.error().message();
    }
    is_done = true;
}

}  // namespace
}  // namespace guestmem

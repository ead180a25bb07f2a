// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/template/testing/hostile_folder.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Resources;
using testing::TempFolder;
using testing::TestMap;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t high_base = std::uint64_t{1} << 32;
constexpr std::uint64_t rom_base = 0xfffc0000;

/// A template of two regions of RAM and a ROM, with a state.
class TemplateTest : public ::testing::Test {
protected:
    TemplateTest() {
        guest_.ram(0, 4 * mib, "low").ram(high_base, mib, "high").rom(rom_base, 256 * 1024).count_up();
        std::memset(guest_.bytes(0).data() + mib, 0, mib);
    }
    void SetUp() override { make(folder_); }
    void make(const std::string& folder) {
        TemplateMaker maker = TemplateMaker::begin(folder).value();
        ASSERT_TRUE(maker.add_map(*guest_.map()));
        ASSERT_TRUE(maker.set_state(std::as_bytes(std::span{state_})));
        maker.set_provenance("source", "a test");
        const auto made = std::move(maker).commit();
        ASSERT_TRUE(made) << made.error().message();
    }
    [[nodiscard]] std::shared_ptr<const Template> opened() const {
        auto opened = Template::open(folder_);
        EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
        return opened ? *opened : nullptr;
    }
    static std::shared_ptr<const MemoryMap> map_of(const Fork& fork) {
        Layout layout;
        for (const auto& region : fork.regions) layout.add(region);
        return std::move(layout).freeze().value();
    }
    [[nodiscard]] static std::vector<std::byte> content(const Region& region) {
        return {region.host_base(), region.host_base() + region.range().size_bytes()};
    }
    /// A file of the template, which its owner may change if he insists.
    void change(const char* name, const std::function<void(const std::string& path)>& how) const {
        const std::string path = folder_ + "/" + name;
        ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
        how(path);
        ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
    }
    static void flip_bit(const std::string& path, std::uint64_t at) {
        std::fstream file{path, std::ios::in | std::ios::out | std::ios::binary};
        file.seekg(static_cast<std::streamoff>(at));
        const char byte = static_cast<char>(file.get() ^ 0x10);
        file.seekp(static_cast<std::streamoff>(at));
        file.put(byte);
        ASSERT_TRUE(file.flush());
    }
    [[nodiscard]] std::string error_of_opening() const {
        const auto opened = Template::open(folder_);
        if (opened) return "";
        EXPECT_THAT(opened.error().message(), HasSubstr("template " + folder_));
        return opened.error().message();
    }

    TempFolder store_;
    std::string folder_ = store_.path_of("base");
    TestMap guest_;
    std::string state_ = "registers and devices";
};

TEST_F(TemplateTest, HasTheLayoutAndTheBytes) {
    const auto base = opened();
    ASSERT_TRUE(base);
    const Manifest& manifest = base->manifest();
    ASSERT_EQ(manifest.regions.size(), 3U);
    EXPECT_EQ(manifest.regions[0], (ImageRegion{"low", 0, 4 * mib, 0, false}));
    EXPECT_EQ(manifest.regions[1], (ImageRegion{"rom", rom_base, 256 * 1024, 4 * mib, true}));
    EXPECT_EQ(manifest.regions[2], (ImageRegion{"high", high_base, mib, 4 * mib + 256 * 1024, false}));
    EXPECT_EQ(manifest.data_pages, (4 * mib + mib / 4) / page_size_bytes);
    EXPECT_EQ(manifest.provenance.at("source"), "a test");
    EXPECT_EQ(base->read_state().value(), std::vector<std::byte>(std::as_bytes(std::span{state_}).begin(),
                                                                 std::as_bytes(std::span{state_}).end()));
    EXPECT_TRUE(base->verify()->is_good());
}

TEST_F(TemplateTest, AForkHasTheMemoryAndItsWritesAreItsOwn) {
    const auto base = opened();
    const Fork one = base->fork().value();
    const Fork other = base->fork().value();
    GuestMemory mine{map_of(one)};
    GuestMemory theirs{map_of(other)};
    const auto original = content(guest_.region(0));
    EXPECT_EQ(content(*one.regions[0]), original);
    ASSERT_TRUE(mine.write_le<std::uint64_t>(GuestAddress{8}, 0xabcdef));
    ASSERT_TRUE(mine.write_le<std::uint64_t>(GuestAddress{high_base}, 1));
    EXPECT_EQ(mine.read_le<std::uint64_t>(GuestAddress{8}).value(), 0xabcdefU);
    EXPECT_EQ(content(*other.regions[0]), original);
    EXPECT_EQ(content(*other.regions[2]), content(guest_.region(1)));
    EXPECT_EQ(mine.write_le<std::uint64_t>(GuestAddress{rom_base}, 1).error().reason(),
              AccessReason::read_only);
    EXPECT_EQ(content(*one.regions[1]), content(guest_.region(2)));
    EXPECT_TRUE(base->verify()->is_good()) << "the image has not changed";
    EXPECT_NE(one.generation, other.generation);
    EXPECT_TRUE(is_template_id(one.generation));
}

TEST_F(TemplateTest, AForkOutlivesTheTemplateObject) {
    auto base = opened();
    std::shared_ptr<const Region> region = base->fork()->regions.front();
    base.reset();
    EXPECT_EQ(content(*region), content(guest_.region(0)));
    EXPECT_EQ(tenants_of(folder_)->size(), 1U) << "and the lease with it";
    region.reset();
    EXPECT_THAT(*tenants_of(folder_), IsEmpty());
}

TEST_F(TemplateTest, LeavesNothingOpenAndNothingMapped) {
    const Resources before = Resources::look();
    {
        const auto base = opened();
        const Fork one = base->fork().value();
        const Fork other = base->fork().value();
    }
    EXPECT_EQ(Resources::look(), before);
}

TEST_F(TemplateTest, ManyForksAreMadeAtOnceByManyThreads) {
    const auto base = opened();
    std::vector<std::vector<Fork>> forks(4);
    {
        std::vector<std::jthread> threads;
        for (std::vector<Fork>& mine : forks)
            threads.emplace_back([&] {
                for (std::uint64_t i = 0; i < 50; ++i) {
                    auto fork = base->fork();
                    ASSERT_TRUE(fork);
                    std::memset(fork->regions[0]->host_base(), static_cast<int>(i), page_size_bytes);
                    mine.push_back(*std::move(fork));
                }
            });
    }
    std::set<std::string> generations;
    for (const auto& mine : forks)
        for (std::size_t i = 0; i < mine.size(); ++i) {
            generations.insert(mine[i].generation);
            EXPECT_EQ(std::to_integer<std::size_t>(*mine[i].regions[0]->host_base()), i);
        }
    EXPECT_EQ(generations.size(), 200U);
    EXPECT_EQ(tenants_of(folder_)->size(), 1U) << "one process";
}

TEST_F(TemplateTest, ASparse64GibForkIsMadeAndTakesNothing) {
    const TempFolder store;
    const std::string folder = store.path_of("large");
    TemplateMaker maker = TemplateMaker::begin(folder).value();
    const Fd hole = create_file(store.path_of("hole"), 0600).value();
    constexpr std::uint64_t size = std::uint64_t{64} << 30;
    ASSERT_TRUE(resize_file(hole, size));
    ASSERT_TRUE(maker.add_file({.name = "ram", .size_bytes = size}, hole, 0));
    ASSERT_TRUE(std::move(maker).commit());
    const auto base = Template::open(folder).value();
    std::vector<Fork> forks;
    for (int i = 0; i < 20; ++i) forks.push_back(base->fork().value());
    EXPECT_EQ(forks.back().regions[0]->host_base()[size - 1], std::byte{0});
}

TEST_F(TemplateTest, AnImageThatWasWrittenGivesNoFork) {
    const auto base = opened();
    change(template_image_file, [](const std::string& path) { flip_bit(path, 5 * page_size_bytes); });
    const auto fork = base->fork();
    ASSERT_FALSE(fork);
    EXPECT_EQ(fork.error().code(), Errc::corrupt);
    EXPECT_THAT(fork.error().message(), HasSubstr("it was written"));
    EXPECT_FALSE(opened()->fork()) << "nor from one that is opened later";
    const TemplateCheck check = base->verify().value();
    ASSERT_EQ(check.image.count_bad, 1U);
    EXPECT_EQ(place_in_guest(base->manifest(), check.image.bad.front().image_offset_bytes),
              "guest address 0x5000 (low + 0x5000)");
}

TEST_F(TemplateTest, PlacesAreNamedByTheirRegions) {
    const Manifest manifest = opened()->manifest();
    EXPECT_EQ(place_in_guest(manifest, 4 * mib + 256 * 1024 + 4096),
              "guest address 0x100001000 (high + 0x1000)");
    EXPECT_EQ(place_in_guest(manifest, 4 * mib), "guest address 0xfffc0000 (rom + 0x0)");
    EXPECT_EQ(place_in_guest(manifest, 100 * mib), "byte 104857600 of the image, which no region shows");
}

TEST_F(TemplateTest, AChangedStateIsNoticed) {
    change(template_state_file, [](const std::string& path) { flip_bit(path, 3); });
    EXPECT_EQ(opened()->read_state().error().code(), Errc::corrupt);
    const TemplateCheck check = opened()->verify().value();
    EXPECT_FALSE(check.state_fits);
    EXPECT_TRUE(check.sums_fit);
    change(template_state_file, [](const std::string& path) { std::filesystem::resize_file(path, 2); });
    EXPECT_EQ(opened()->read_state().error().code(), Errc::corrupt);
}

TEST_F(TemplateTest, SumsThatFitAChangedPageDoNotFitTheManifest) {
    change(template_image_file, [](const std::string& path) { flip_bit(path, 0); });
    const auto page = content(guest_.region(0));
    std::vector<std::byte> changed{page.begin(), page.begin() + page_size_bytes};
    changed[0] ^= std::byte{0x10};
    const std::uint64_t sum = page_sum(changed);
    change(template_sums_file, [&](const std::string& path) {
        std::fstream file{path, std::ios::in | std::ios::out | std::ios::binary};
        file.write(reinterpret_cast<const char*>(&sum), sizeof sum);
    });
    const TemplateCheck check = opened()->verify().value();
    EXPECT_EQ(check.image.count_bad, 0U);
    EXPECT_FALSE(check.sums_fit);
    EXPECT_FALSE(check.is_good());
}

TEST_F(TemplateTest, AHostileFolderIsAnError) {
    EXPECT_EQ(error_of_opening(), "");
    const auto replaced_by = [&](const char* name, const std::function<void(const std::string& path)>& how) {
        const std::string path = folder_ + "/" + name;
        const std::string aside = store_.path_of("aside");
        std::filesystem::rename(path, aside);
        how(path);
        std::string error = error_of_opening();
        std::filesystem::remove_all(path);
        std::filesystem::rename(aside, path);
        return error;
    };
    for (const char* name : {template_manifest_file, template_image_file}) {
        EXPECT_THAT(replaced_by(name, [](const std::string&) {}), HasSubstr("No such file")) << name;
        EXPECT_THAT(replaced_by(name,
                                [&](const std::string& path) {
                                    std::filesystem::create_symlink(store_.path_of("aside"), path);
                                }),
                    HasSubstr("it is a link"))
            << name;
        EXPECT_THAT(replaced_by(name, [](const std::string& path) { ::mkfifo(path.c_str(), 0400); }),
                    HasSubstr("no ordinary file"))
            << name;
        EXPECT_THAT(
            replaced_by(name, [](const std::string& path) { std::filesystem::create_directory(path); }),
            HasSubstr("no ordinary file"))
            << name;
        EXPECT_THAT(replaced_by(name,
                                [](const std::string& path) {
                                    std::ofstream{path} << "short";
                                    ::chmod(path.c_str(), 0400);
                                }),
                    ::testing::AnyOf(HasSubstr("no JSON object"), HasSubstr("it has 5 bytes")))
            << name;
    }
    EXPECT_EQ(error_of_opening(), "") << "all is back";
}

TEST_F(TemplateTest, WhatOthersCouldWriteIsRefused) {
    ASSERT_EQ(::chmod(folder_.c_str(), 0770), 0);
    EXPECT_THAT(error_of_opening(), HasSubstr("the folder: its mode is 0770"));
    ASSERT_EQ(::chmod(folder_.c_str(), 0700), 0);
    for (const char* name : {template_manifest_file, template_image_file}) {
        const std::string path = folder_ + "/" + name;
        ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
        EXPECT_THAT(error_of_opening(), HasSubstr("chmod a-w")) << name;
        ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
    }
}

TEST_F(TemplateTest, AnotherUsersTemplateIsNotForOrdinaryUsers) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
    ASSERT_EQ(::chmod(store_.path().c_str(), 0755), 0);
    for (const auto& entry : std::filesystem::recursive_directory_iterator{folder_})
        ASSERT_EQ(::chown(entry.path().c_str(), 65534, 65534), 0);
    ASSERT_EQ(::chown(folder_.c_str(), 65533, 65534), 0);
    EXPECT_TRUE(Template::open(folder_)) << "root may";
    ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
    ASSERT_EQ(::seteuid(65534), 0);
    const auto refused = Template::open(folder_);
    ASSERT_EQ(::seteuid(0), 0);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::permission_denied);
    EXPECT_THAT(refused.error().message(), HasSubstr("the folder: it belongs to user 65533"));
}

TEST_F(TemplateTest, EachFailingCallOfOpeningForkingAndVerifyingIsAnError) {
    EXPECT_GT(for_each_fault([&] { return Template::open(folder_); }), 8U);
    const auto base = opened();
    const auto fork = [&]() -> Result<Fork> {
        const auto again = GM_TRY(Template::open(folder_));
        return again->fork();
    };
    std::set<SysCall> survived;
    const auto count = for_each_fault(
        {.faults = testing::FaultsAre::survivable},
        [&] {
            auto made = fork();
            const SysCall failed = detail::active_injector.load()->failed_call();
            if (made && failed != SysCall::count) survived.insert(failed);
            return made;
        },
        [] {});
    EXPECT_GT(count, 20U);
    // A region asks nobody to wait for it when it is new; a lease's file that stays is found to be of nobody.
    survived.erase(SysCall::membarrier);
    survived.erase(SysCall::unlink);
    EXPECT_THAT(survived, IsEmpty());
    EXPECT_GT(for_each_fault([&] { return base->verify(); }), 8U);
    EXPECT_THAT(*tenants_of(folder_), IsEmpty());
}

TEST(TemplateOfSomebody, GivesValuesOrErrorsWhateverStandsInItsFiles) {
    testing::HostileFolders folders;
    // All four as they are: raw ones in three modes, compressed ones in two.
    for (const auto& [choice, count] : {std::pair{0, 3}, {1, 2}, {2, 3}, {3, 2}, {14, 3}, {15, 2}})
        EXPECT_EQ(folders.run(std::array{static_cast<std::byte>(choice)}), count) << choice;
    constexpr unsigned seed = 99;
    std::mt19937 random{seed};
    int count_forks = 0;
    constexpr int count_rounds = 150;
    for (int round = 0; round < count_rounds; ++round) {
        std::vector<std::byte> input(2 + random() % 30);
        for (std::byte& byte : input) byte = static_cast<std::byte>(random() % (random() % 3 == 0 ? 4 : 256));
        SCOPED_TRACE(::testing::Message() << "seed " << seed << ", round " << round);
        count_forks += folders.run(input);
    }
    EXPECT_GT(count_forks, count_rounds / 10) << "some changes are seen by forks alone";
    EXPECT_LT(count_forks, 3 * count_rounds - count_rounds / 2) << "most are not taken";
    for (const auto& [choice, count] : {std::pair{2, 3}, {3, 2}})
        EXPECT_EQ(folders.run(std::array{static_cast<std::byte>(choice)}), count) << "all is back";
}

}  // namespace
}  // namespace guestmem

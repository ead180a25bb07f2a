// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/maker.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::Chain;
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
    // Without the kernel's word on what was touched, all is read.
    EXPECT_THAT(survived, ::testing::Each(::testing::AnyOf(SysCall::open, SysCall::ioctl)));
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

// -------------------------------------------------------------------------------------------------- differences

constexpr std::uint64_t page = page_size_bytes;

/// A template, and a difference to it by all ways there are.
class DifferenceTest : public ::testing::Test {
protected:
    [[nodiscard]] TemplateMaker begin(const MakerOptions& options = {}) const {
        return TemplateMaker::begin_difference(chain_.path_of(1), chain_.open(0), options).value();
    }
    /// What it holds, by copying and by mapping.
    [[nodiscard]] std::string content_of(const Result<Manifest>& made) const {
        EXPECT_TRUE(made) << (made ? "" : made.error().message());
        if (!made) return {};
        const auto opened = chain_.open(1);
        EXPECT_EQ(opened->manifest(), *made);
        EXPECT_TRUE(opened->verify()->is_good());
        std::string bytes = testing::bytes_of(opened->fork({.mode = RestoreMode::copy}).value());
        if (made->encoding == ImageEncoding::raw) {
            EXPECT_EQ(testing::bytes_of(opened->fork().value()), bytes);
        }
        return bytes;
    }
    /// Page numbers of the image.
    [[nodiscard]] std::vector<PageRun> own_pages() const {
        const auto opened = chain_.open(1);
        return {opened->own_pages()->runs().begin(), opened->own_pages()->runs().end()};
    }
    void expect_nothing_left() const { EXPECT_THAT(chain_.store().entries(), ElementsAre("d0")); }
    void expect_refused(const Result<void>& added) const {
        ASSERT_FALSE(added);
        EXPECT_EQ(added.error().code(), Errc::invalid_argument) << added.error().message();
    }
    static Fd memory_of(std::uint64_t size_bytes) {
        return create_sparse_memory({.name = "ram", .size_bytes = size_bytes}, Sealing::none).value();
    }

    static constexpr std::uint64_t rom_page = Chain::ram_bytes / page;
    static constexpr std::uint64_t high_page = (Chain::ram_bytes + Chain::rom_bytes) / page;
    Chain chain_;
};

TEST_F(DifferenceTest, OfAForkHasThePagesWithOtherBytesAndNotThoseThatWereWrittenAlike) {
    for (const RestoreMode mode : {RestoreMode::map, RestoreMode::copy, RestoreMode::lazy}) {
        ForkOptions options{.mode = mode};
        options.lazy.is_filled = true;
        const Fork fork = chain_.open(0)->fork(options).value();
        const auto low = testing::bytes_of(*fork.regions[0]);
        low[3 * page + 5] = std::byte{0xff};
        *const_cast<volatile std::byte*>(&low[40 * page]) = low[40 * page];  // alike
        std::memset(low.data() + 41 * page, 0, page);                        // zeros over data
        std::memset(low.data() + 10 * page, 0, page);                        // zeros over zeros
        low[12 * page + page - 1] = std::byte{1};                            // data over zeros
        testing::bytes_of(*fork.regions[2])[63 * page] = std::byte{9};
        if (fork.pager) {
            ASSERT_TRUE(fork.pager->wait_until_filled(std::chrono::seconds{20}));
        }
        TemplateMaker maker = begin();
        ASSERT_TRUE(maker.add_written(written_since_fork(fork).value()));
        const auto made = std::move(maker).commit();
        EXPECT_EQ(content_of(made), testing::bytes_of(fork));
        EXPECT_THAT(own_pages(),
                    ElementsAre(PageRun{3, 1}, PageRun{12, 1}, PageRun{41, 1}, PageRun{high_page + 63, 1}));
        EXPECT_EQ(made->data_pages, 3U) << "one of them is zeros";
        EXPECT_EQ(made->parent->id, chain_.open(0)->manifest().id);
        ASSERT_TRUE(remove_template(chain_.path_of(1)));
    }
}

TEST_F(DifferenceTest, OfAForkIsToTheTemplateThatWasForked) {
    chain_.add(1);
    const Fork fork = chain_.open(0)->fork().value();
    testing::bytes_of(*fork.regions[0])[0] = std::byte{0xee};
    TemplateMaker maker = TemplateMaker::begin_difference(chain_.path_of(2), chain_.open(1)).value();
    const auto added = maker.add_written(written_since_fork(fork).value());
    ASSERT_FALSE(added);
    EXPECT_EQ(added.error().code(), Errc::invalid_argument);
    EXPECT_THAT(added.error().message(), HasSubstr(chain_.open(0)->manifest().id));
}

TEST_F(DifferenceTest, OfAMapHasAllRegionsOfTheParent) {
    const Fork fork = chain_.open(0)->fork().value();
    Layout layout;
    layout.add(fork.regions[0]);
    const auto added = begin().add_map(*std::move(layout).freeze().value());
    ASSERT_FALSE(added);
    EXPECT_THAT(added.error().message(), HasSubstr("1 of the 3 regions"));
}

TEST_F(DifferenceTest, OfACopyHasThePagesThatWereGivenBackAsZeros) {
    const Fork fork = chain_.open(0)->fork({.mode = RestoreMode::copy}).value();
    const auto low = testing::bytes_of(*fork.regions[0]);
    ASSERT_NE(low[41 * page], std::byte{0});
    ASSERT_EQ(::madvise(low.data() + 41 * page, page, MADV_DONTNEED), 0);
    TemplateMaker maker = begin();
    ASSERT_TRUE(maker.add_written(written_since_fork(fork).value()));
    ASSERT_TRUE(std::move(maker).commit());
    EXPECT_THAT(own_pages(), ElementsAre(PageRun{41, 1}));
}

TEST_F(MakerTest, GivesNoPagesToMemoryThatNobodyTouched) {
    const auto memory = HostMemory::create_anonymous({.size_bytes = 64 * mib}).value();
    memory->bytes()[33 * mib] = std::byte{1};
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory}).value());
    TemplateMaker maker = TemplateMaker::begin(store_.path_of("base")).value();
    ASSERT_TRUE(maker.add_map(*std::move(layout).freeze().value()));
    EXPECT_EQ(std::move(maker).commit()->data_pages, 1U);
    std::vector<unsigned char> resident(64 * mib / page);
    ASSERT_EQ(::mincore(memory->bytes().data(), 64 * mib, resident.data()), 0);
    EXPECT_LE(std::ranges::count_if(resident, [](unsigned char bits) { return (bits & 1) != 0; }), 512)
        << "the page that was touched, huge maybe";
    EXPECT_TRUE(is_whole(store_.path_of("base")));
}

TEST_F(DifferenceTest, OfDirtyPagesOfAnySize) {
    for (const std::uint64_t dirty_bytes : {std::uint64_t{64}, std::uint64_t{4096}, std::uint64_t{65536}}) {
        const Fork fork = chain_.open(0)->fork().value();
        DirtyPages dirty =
            DirtyPages::create({.size_bytes = Chain::ram_bytes, .page_bytes = dirty_bytes}).value();
        const auto low = testing::bytes_of(*fork.regions[0]);
        for (const std::uint64_t at :
             {2 * page + 100, 2 * page + 4000, 3 * page, 7 * page - 1, Chain::ram_bytes - 1}) {
            low[at] ^= std::byte{0xff};
            dirty.mark(at, 1);
        }
        const WrittenRegion written = to_written(fork.regions[0], dirty);
        for (std::size_t i = 1; i < written.pages.size(); ++i)
            EXPECT_GT(written.pages[i].offset_bytes,
                      written.pages[i - 1].offset_bytes + written.pages[i - 1].size_bytes);
        TemplateMaker maker = begin();
        ASSERT_TRUE(maker.add_written(std::vector{written}));
        EXPECT_EQ(content_of(std::move(maker).commit()), testing::bytes_of(fork)) << dirty_bytes;
        EXPECT_THAT(own_pages(), ElementsAre(PageRun{2, 2}, PageRun{6, 1}, PageRun{63, 1}));
        ASSERT_TRUE(remove_template(chain_.path_of(1)));
    }
}

TEST_F(DifferenceTest, OfAMapIsComparedWhateverTheOrderOfItsRegions) {
    const Fork fork = chain_.open(0)->fork({.mode = RestoreMode::copy}).value();
    TestMap other;
    for (const std::size_t number : {2U, 0U, 1U}) {
        const Region& region = *fork.regions[number];
        other.add({.name = "another name",
                   .base = region.range().base(),
                   .kind = region.kind(),
                   .memory = HostMemory::borrow(testing::bytes_of(region), MapAccess::read_write,
                                                fork.regions[number])
                                 .value()});
    }
    std::memset(testing::bytes_of(*fork.regions[0]).data() + 50 * page, 7, 2 * page);
    testing::bytes_of(*fork.regions[1])[0] ^= std::byte{1};
    TemplateMaker maker = begin({.encoding = ImageEncoding::zstd});
    ASSERT_TRUE(maker.add_map(*other.map()));
    EXPECT_EQ(content_of(std::move(maker).commit()), testing::bytes_of(fork));
    EXPECT_THAT(own_pages(), ElementsAre(PageRun{50, 2}, PageRun{rom_page, 1})) << "also of ROM";
    EXPECT_EQ(chain_.open(1)->manifest().regions, chain_.open(0)->manifest().regions);
}

TEST_F(DifferenceTest, OfFilesHasZerosWhereTheFilesHaveHolesAndTheParentHasData) {
    const Fd file = memory_of(page + Chain::ram_bytes);
    const std::string& bytes = chain_.expected(0);
    // The first 30 pages are a hole: 20 of them are zeros in the parent. A page of zeros is written, too.
    ASSERT_TRUE(write_at(file, 31 * page, std::as_bytes(std::span{bytes}).subspan(30 * page, 34 * page)));
    ASSERT_TRUE(write_at(file, 61 * page, std::vector<std::byte>(page)));
    TemplateMaker maker = begin();
    ASSERT_TRUE(maker.add_file(chain_.open(0)->manifest().regions[0], file, page));
    const auto made = std::move(maker).commit();
    std::string expected = bytes;
    std::memset(expected.data(), 0, 30 * page);
    std::memset(expected.data() + 60 * page, 0, page);
    EXPECT_EQ(content_of(made), expected) << "regions that are not added are the parent's";
    EXPECT_THAT(own_pages(), ElementsAre(PageRun{0, 8}, PageRun{28, 2}, PageRun{60, 1}));
    EXPECT_EQ(made->data_pages, 0U);
}

TEST_F(DifferenceTest, OfNothingIsItsParent) {
    EXPECT_EQ(content_of(begin().commit()), chain_.expected(0));
    EXPECT_THAT(own_pages(), IsEmpty());
}

TEST_F(DifferenceTest, WrongRegionsAreErrorsThatLeaveNothing) {
    const Fd file = memory_of(2 * Chain::ram_bytes);
    const auto regions = chain_.open(0)->manifest().regions;
    const auto expect_wrong = [&](const std::function<void(ImageRegion&)>& how) {
        ImageRegion wrong = regions[0];
        how(wrong);
        expect_refused(begin().add_file(wrong, file, 0));
    };
    expect_wrong([](ImageRegion& region) { region.size_bytes *= 2; });
    expect_wrong([](ImageRegion& region) { region.size_bytes = 0; });
    expect_wrong([](ImageRegion& region) { region.is_rom = true; });
    expect_wrong([](ImageRegion& region) { region.guest_address += page; });
    for (const auto& [first, second] : {std::pair{0U, 0U}, {2U, 0U}, {2U, 2U}, {1U, 0U}}) {
        TemplateMaker maker = begin();
        ASSERT_TRUE(maker.add_file(regions[first], file, 0));
        expect_refused(maker.add_file(regions[second], file, 0));
    }
    const auto source = TemplateSource::open(chain_.open(0)).value();
    expect_refused(begin().add_source(regions, *source));
    TestMap too_much;
    too_much.ram(0, Chain::ram_bytes).ram(Chain::ram_bytes, page);
    expect_refused(begin().add_map(*too_much.map()));
    expect_nothing_left();
}

TEST_F(DifferenceTest, WrongPagesAreErrorsThatLeaveNothing) {
    const Fork fork = chain_.open(0)->fork().value();
    const auto refuse = [&](const std::vector<WrittenRegion>& written) {
        expect_refused(begin().add_written(written));
    };
    constexpr std::uint64_t most = ~std::uint64_t{0};
    const auto& low = fork.regions[0];
    for (const FileExtent run : {FileExtent{1, page}, FileExtent{0, 5}, FileExtent{Chain::ram_bytes, page},
                                 FileExtent{page, Chain::ram_bytes}, FileExtent{most - page + 1, 2 * page},
                                 FileExtent{page, most - page + 1}})
        refuse({{low, {run}}});
    refuse({{low, {{0, 2 * page}, {page, page}}}});
    refuse({{low, {{page, page}, {page, page}}}});
    refuse({{low, {{page, page}}}, {low, {{page, page}}}});
    TestMap other;
    other.ram(0, 2 * Chain::ram_bytes).rom(testing::high_address, Chain::ram_bytes);
    refuse({{other.shared_region(0), {}}});
    refuse({{other.shared_region(1), {}}});
    expect_refused(TemplateMaker::begin(chain_.path_of(1))->add_written({}));
    {
        TemplateMaker maker = begin();
        ASSERT_TRUE(maker.add_written(std::vector<WrittenRegion>{{fork.regions[2], {{0, page}}}}));
        expect_refused(maker.add_written(std::vector<WrittenRegion>{{low, {{0, page}}}}));
    }
    expect_nothing_left();
}

TEST_F(DifferenceTest, TakesRunsAndRegionsInAnyOrder) {
    const Fork fork = chain_.open(0)->fork().value();
    chain_.scribble(fork);
    std::vector<WrittenRegion> written = written_since_fork(fork).value();
    std::ranges::reverse(written);
    for (WrittenRegion& region : written) std::ranges::reverse(region.pages);
    TemplateMaker maker = begin();
    ASSERT_TRUE(maker.add_written(written));
    EXPECT_EQ(content_of(std::move(maker).commit()), testing::bytes_of(fork));
}

TEST_F(DifferenceTest, APlaceWithinAPageOfAFileIsAnErrorOfAnyTemplate) {
    const Fd file = memory_of(2 * Chain::ram_bytes);
    expect_refused(begin().add_file(chain_.open(0)->manifest().regions[0], file, 100));
    TemplateMaker maker = TemplateMaker::begin(chain_.path_of(1)).value();
    expect_refused(maker.add_file({.name = "ram", .size_bytes = page}, file, 100));
}

TEST_F(DifferenceTest, AParentInAnotherStoreOrInMemoryIsAnError) {
    const TempFolder other;
    const auto elsewhere = TemplateMaker::begin_difference(other.path_of("x"), chain_.open(0));
    ASSERT_FALSE(elsewhere);
    EXPECT_THAT(elsewhere.error().message(), HasSubstr("same store"));
    EXPECT_THAT(other.entries(), IsEmpty());
    // Nobody keeps the folder of a loaded one: it has no lease, and nobody knows how long its chain is.
    const auto loaded = TemplateMaker::begin_difference(chain_.path_of(1), chain_.open(0)->load().value());
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), Errc::invalid_argument);
    expect_nothing_left();
}

TEST_F(DifferenceTest, AParentThatIsGoneIsAnErrorThatLeavesNothing) {
    const auto parent = chain_.open(0);
    ASSERT_TRUE(remove_template(chain_.path_of(0)));
    EXPECT_FALSE(TemplateMaker::begin_difference(chain_.path_of(1), parent));
    EXPECT_THAT(chain_.store().entries(), IsEmpty());
}

TEST_F(DifferenceTest, ADamagedParentIsAnErrorWhereItIsCompared) {
    testing::flip_bit(chain_.path_of(0) + "/image", 3 * page);
    const Fork fork = chain_.open(0)->fork().value();
    testing::bytes_of(*fork.regions[0])[3 * page] = std::byte{1};
    const auto added = begin().add_written(written_since_fork(fork).value());
    ASSERT_FALSE(added);
    EXPECT_EQ(added.error().code(), Errc::corrupt);
    EXPECT_THAT(added.error().message(), HasSubstr("guest address 0x3000"));
    expect_nothing_left();
}

TEST_F(DifferenceTest, EachFailingCallLeavesNothingBehindOrAllOfIt) {
    const auto parent = chain_.open(0);
    const Fork fork = parent->fork().value();
    chain_.scribble(fork);
    for (const ImageEncoding encoding : {ImageEncoding::raw, ImageEncoding::zstd}) {
        const auto attempt = [&]() -> Result<Manifest> {
            const auto written = GM_TRY(written_since_fork(fork));
            TemplateMaker maker = GM_TRY(TemplateMaker::begin_difference(chain_.path_of(1), parent,
                                                                         MakerOptions{.encoding = encoding}));
            GM_TRY(maker.add_written(written));
            return std::move(maker).commit();
        };
        const auto after = [&] {
            const std::vector<std::string> entries = chain_.store().entries();
            if (std::ranges::count(entries, "d1") == 0) return expect_nothing_left();
            EXPECT_EQ(entries.size(), 2U);
            EXPECT_TRUE(chain_.open(1)->verify()->is_good());
            EXPECT_EQ(testing::bytes_of(chain_.open(1)->fork({.mode = RestoreMode::copy}).value()),
                      testing::bytes_of(fork));
            EXPECT_TRUE(remove_template(chain_.path_of(1)));
        };
        EXPECT_GT(for_each_fault({.faults = testing::FaultsAre::survivable}, attempt, after), 40U);
    }
}

TEST_F(DifferenceTest, AKillAtAnyCallLeavesAllOrNothing) {
    const Fork fork = chain_.open(0)->fork().value();
    chain_.scribble(fork);
    const std::vector<WrittenRegion> written = written_since_fork(fork).value();
    std::size_t count_killed = 0;
    std::size_t count_whole = 0;
    for (std::uint64_t nth = 0; nth < 500; ++nth) {
        const int status = testing::status_of_child([&] {
            FaultInjector injector{nth, {.is_deadly = true}};
            TemplateMaker maker = begin();
            ASSERT_TRUE(maker.add_written(written));
            ASSERT_TRUE(std::move(maker).commit());
        });
        const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        ASSERT_TRUE(is_killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << nth;
        ASSERT_TRUE(remove_leftovers(chain_.store().path()));
        const std::vector<std::string> names = list_templates(chain_.store().path()).value();
        EXPECT_THAT(chain_.store().entries(), ::testing::ElementsAreArray(names));
        if (names.size() == 2) {
            ++count_whole;
            EXPECT_TRUE(chain_.open(1)->verify()->is_good()) << nth;
            EXPECT_EQ(testing::bytes_of(chain_.open(1)->fork().value()), testing::bytes_of(fork)) << nth;
            ASSERT_TRUE(remove_template(chain_.path_of(1))) << nth;
        }
        if (!is_killed) break;
        ++count_killed;
    }
    EXPECT_GT(count_killed, 40U);
    EXPECT_GT(count_whole, 1U) << "killed behind the rename, too";
}

}  // namespace
}  // namespace guestmem

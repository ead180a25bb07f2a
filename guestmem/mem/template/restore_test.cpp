// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/restore.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

// Behind the others, whose variables would hide its names.
#include "guestmem/mem/paging/testing/lazy_memory.hpp"

namespace guestmem {
namespace {

using testing::Chain;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::look;
using testing::MadeUpSource;
using testing::page;
using testing::PagerTest;
using testing::part_of;
using testing::TempFolder;
using testing::TestMap;
using testing::word_of;
using namespace std::chrono_literals;

/// Two regions of RAM and a ROM, not in the order of the image, with a hole in it.
Manifest made_up_manifest() {
    Manifest manifest{.id = std::string(32, 'a'), .image_bytes = 40 * page, .stored_bytes = 40 * page};
    manifest.regions = {{"high", 100 * page, 8 * page, 0, false},
                        {"rom", 50 * page, 4 * page, 30 * page, true},
                        {"low", 0, 16 * page, 10 * page, false}};
    return manifest;
}

void expect_made_up(const Fork& fork) {
    ASSERT_EQ(fork.regions.size(), 3U);
    for (const auto& [region, first, count] : {std::tuple{0U, 0U, 8U}, {1U, 30U, 4U}, {2U, 10U, 16U}})
        for (std::uint64_t i = 0; i < count; ++i)
            EXPECT_EQ(look(testing::bytes_of(*fork.regions[region]), i), word_of(first + i))
                << region << " " << i;
}

void expect_read_only_rom(const Fork& fork) {
    GuestMemory memory{testing::map_of(fork)};
    EXPECT_EQ(memory.write_le<std::uint64_t>(GuestAddress{50 * page}, 1).error().reason(),
              AccessReason::read_only);
    EXPECT_EQ(memory.read_le<std::uint64_t>(GuestAddress{50 * page}).value(), word_of(30));
    EXPECT_TRUE(memory.write_le<std::uint64_t>(GuestAddress{0}, 1));
}

/// PagerTest skips where the kernel has no lazy memory.
class RestoreTest : public PagerTest {};

TEST_F(RestoreTest, ACopyHasTheBytesAndItsRomIsReadOnly) {
    MadeUpSource source{40};
    std::vector<std::uint64_t> told;
    const Fork fork = restore_by_copying(made_up_manifest(), source, [&](std::uint64_t done) {
                          told.push_back(done);
                      }).value();
    expect_made_up(fork);
    expect_read_only_rom(fork);
    EXPECT_TRUE(is_template_id(fork.generation));
    EXPECT_EQ(fork.pager, nullptr);
    EXPECT_THAT(told, ::testing::ElementsAre(40 * page));
}

TEST_F(RestoreTest, LazyMemoryHasTheBytesAndItsRomIsReadOnly) {
    const auto fork = restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40), {}).value();
    ASSERT_NE(fork.pager, nullptr);
    expect_made_up(fork);
    expect_read_only_rom(fork);
    EXPECT_TRUE(fork.pager->health());
    EXPECT_NE(fork.generation,
              restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40), {})->generation);
}

TEST_F(RestoreTest, LazyMemoryFetchesAheadAndTellsWhatWasTouched) {
    auto filled =
        restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40), {.is_filled = true}).value();
    EXPECT_TRUE(filled.pager->wait_until_filled(20s));
    EXPECT_EQ(filled.pager->counters().faults, 0U);
    expect_made_up(filled);
    const auto recorded =
        restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40), {.is_recorded = true}).value();
    EXPECT_EQ(look(testing::bytes_of(*recorded.regions[2]), 5), word_of(15));
    EXPECT_EQ(look(testing::bytes_of(*recorded.regions[0]), 1), word_of(1));
    EXPECT_THAT(recorded.pager->recorded(), ::testing::ElementsAre(15, 1));
}

TEST_F(RestoreTest, ASourceOfAnotherSizeIsAnErrorAndSoIsABadManifest) {
    MadeUpSource source{41};
    for (const auto& fork :
         {restore_by_copying(made_up_manifest(), source).error(),
          restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(39), {}).error()}) {
        EXPECT_EQ(fork.code(), Errc::invalid_argument);
        EXPECT_THAT(fork.message(), HasSubstr("the manifest says"));
    }
    Manifest overlap = made_up_manifest();
    overlap.regions[1].image_offset_bytes = 0;
    MadeUpSource good{40};
    EXPECT_EQ(restore_by_copying(overlap, good).error().code(), Errc::corrupt);
    EXPECT_EQ(restore_lazily(overlap, std::make_shared<MadeUpSource>(40), {}).error().code(), Errc::corrupt);
    EXPECT_EQ(restore_by_copying(Manifest{}, good).error().code(), Errc::corrupt);
}

TEST_F(RestoreTest, WhatASourceGivesBeyondARegionIsLeftOut) {
    MadeUpSource source{40,
                        [](ImagePart, PageSink& sink) { return MadeUpSource::give(part_of(0, 40), sink); }};
    expect_made_up(restore_by_copying(made_up_manifest(), source).value());
    MadeUpSource in_one{40, [](ImagePart, PageSink& sink) -> Result<void> {
                            std::vector<std::uint64_t> words;
                            for (std::uint64_t i = 0; i < 40; ++i) words.insert(words.end(), 512, word_of(i));
                            return sink.take_pages(0, std::as_bytes(std::span{words}));
                        }};
    expect_made_up(restore_by_copying(made_up_manifest(), in_one).value());
}

TEST_F(RestoreTest, WhatASourceGivesOutsideOfTheImageIsAnErrorOrNothing) {
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    for (const std::uint64_t at :
         {40 * page, max_image_bytes, max_image_bytes + page, most - page + 1, most}) {
        const auto hostile = [at](ImagePart wanted, PageSink& sink) -> Result<void> {
            const std::vector<std::byte> bytes(page, std::byte{0xee});
            GM_TRY(sink.take_pages(at, bytes));
            GM_TRY(sink.take_zeros({at, page}));
            return MadeUpSource::give(wanted, sink);
        };
        MadeUpSource source{40, hostile};
        if (const auto fork = restore_by_copying(made_up_manifest(), source)) expect_made_up(*fork);
        MadeUpSource of_zeros{40, [](ImagePart wanted, PageSink& sink) -> Result<void> {
                                  GM_TRY(sink.take_zeros({page, most}));
                                  return MadeUpSource::give(wanted, sink);
                              }};
        EXPECT_EQ(restore_by_copying(made_up_manifest(), of_zeros).error().code(), Errc::corrupt);
        const auto lazy =
            restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40, hostile), {}).value();
        const auto seen = look(testing::bytes_of(*lazy.regions[0]), 2);
        EXPECT_TRUE(seen == word_of(2) || (!seen && !lazy.pager->health())) << at;
    }
}

TEST_F(RestoreTest, ASourceThatFailsIsAnErrorAndWhatItHasNotGivenIsAFault) {
    const auto fails = [](ImagePart wanted, PageSink& sink) -> Result<void> {
        if (wanted.offset_bytes + wanted.size_bytes > 30 * page)
            return Error{Errc::io, "the disk is on fire"};
        return MadeUpSource::give(wanted, sink);
    };
    MadeUpSource source{40, fails};
    const auto copy = restore_by_copying(made_up_manifest(), source);
    ASSERT_FALSE(copy);
    EXPECT_THAT(copy.error().message(), HasSubstr("on fire"));

    MadeUpSource lazy_one{40, [](ImagePart, PageSink&) { return Result<void>{}; }};
    EXPECT_EQ(restore_by_copying(made_up_manifest(), lazy_one).error().code(), Errc::corrupt)
        << "nothing is given";

    std::atomic<int> count_told{0};
    LazyOptions options;
    options.on_failure = [&](const Error&) { ++count_told; };
    const auto lazy =
        restore_lazily(made_up_manifest(), std::make_shared<MadeUpSource>(40, fails), options).value();
    EXPECT_EQ(look(testing::bytes_of(*lazy.regions[2]), 3), word_of(13));
    EXPECT_FALSE(look(testing::bytes_of(*lazy.regions[1]), 0)) << "a fault, and no signal";
    EXPECT_THAT(lazy.pager->health().error().message(), HasSubstr("on fire"));
    EXPECT_TRUE(testing::eventually([&] { return count_told == 1; })) << "when nobody waits for an answer";
    EXPECT_EQ(look(testing::bytes_of(*lazy.regions[2]), 3), word_of(13)) << "what has come stays";
    GuestMemory guest{testing::map_of(lazy)};
    EXPECT_EQ(guest.read_le<std::uint64_t>(GuestAddress{50 * page}).error().reason(), AccessReason::fault);
}

TEST_F(RestoreTest, EachFailingCallOfCopyingIsAnErrorOrDoesNotMatter) {
    const Manifest manifest = made_up_manifest();
    EXPECT_GT(for_each_fault(
                  {.faults = testing::FaultsAre::survivable},
                  [&] {
                      MadeUpSource source{40};
                      auto fork = restore_by_copying(manifest, source);
                      if (fork) expect_made_up(*fork);
                      return fork;
                  },
                  [] {}),
              3U);
}

TEST_F(RestoreTest, EachFailingCallOfBeginningLazilyIsAnErrorOrDoesNotMatter) {
    const Manifest manifest = made_up_manifest();
    EXPECT_GT(for_each_fault(
                  {.faults = testing::FaultsAre::survivable},
                  [&] { return restore_lazily(manifest, std::make_shared<MadeUpSource>(40), {}); }, [] {}),
              5U);
}

TEST(RestoreMode, HasNames) {
    EXPECT_EQ(to_string(RestoreMode::map), "map");
    EXPECT_EQ(to_string(RestoreMode::copy), "copy");
    EXPECT_EQ(to_string(RestoreMode::lazy), "lazy");
}

// -------------------------------------------------------------------------------------------------- modes

/// Of three templates in a chain: all raw, all compressed, or a compressed one between raw ones.
class ModesTest : public ::testing::TestWithParam<int> {
protected:
    void SetUp() override {
        ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
        for (int number = 1; number <= 2; ++number) chain_.add(number, {.encoding = encoding_of(number)});
    }
    static ImageEncoding encoding_of(int number) {
        return GetParam() == 1 || (GetParam() == 2 && number == 1) ? ImageEncoding::zstd : ImageEncoding::raw;
    }
    static std::vector<RestoreMode> modes() {
        if (GetParam() != 0) return {RestoreMode::copy, RestoreMode::lazy};
        return {RestoreMode::map, RestoreMode::copy, RestoreMode::lazy};
    }
    testing::Watchdog watchdog_;
    Chain chain_{{.encoding = encoding_of(0)}};
};
INSTANTIATE_TEST_SUITE_P(RawCompressedMixed, ModesTest, ::testing::Values(0, 1, 2));

TEST_P(ModesTest, EachModeShowsTheBytesAndKeepsItsWritesToItself) {
    const auto base = chain_.open(2);
    std::set<std::string> generations;
    for (const RestoreMode mode : modes()) {
        const Fork one = base->fork({.mode = mode}).value();
        const Fork other = base->fork({.mode = mode}).value();
        EXPECT_EQ(testing::bytes_of(one), chain_.expected(2)) << to_string(mode);
        GuestMemory memory{testing::map_of(one)};
        for (std::uint64_t at = 0; at < Chain::ram_bytes; at += page) {
            ASSERT_TRUE(memory.write_le<std::uint64_t>(GuestAddress{at}, 0x1234567));
            ASSERT_TRUE(
                memory.write_le<std::uint64_t>(GuestAddress{testing::high_address + at + 8}, 0x1234567));
        }
        const auto refused = memory.write_le<std::uint64_t>(GuestAddress{testing::rom_address}, 1);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().reason(), AccessReason::read_only);
        EXPECT_EQ(testing::bytes_of(other), chain_.expected(2)) << to_string(mode);
        generations.insert({one.generation, other.generation});
    }
    EXPECT_EQ(generations.size(), 2 * modes().size());
    for (int number = 0; number <= 2; ++number) EXPECT_TRUE(chain_.open(number)->verify()->is_good());
}

TEST_P(ModesTest, ACompressedImageInAChainCannotBeMapped) {
    for (int number = 0; number <= 2; ++number) {
        const auto fork = chain_.open(number)->fork();
        const bool is_raw = GetParam() == 0 || (GetParam() == 2 && number == 0);
        ASSERT_EQ(fork.has_value(), is_raw) << number;
        if (is_raw) continue;
        EXPECT_EQ(fork.error().code(), Errc::unsupported);
        EXPECT_THAT(fork.error().message(), HasSubstr("a compressed image cannot be mapped"));
    }
}

TEST_P(ModesTest, EachFailingCallIsAnErrorOrDoesNotMatter) {
    const auto base = chain_.open(2);
    // It keeps its leases from the first use on.
    ASSERT_TRUE(base->hold());
    for (const RestoreMode mode : modes()) {
        const auto attempt = [&] {
            auto fork = base->fork({.mode = mode});
            EXPECT_TRUE(!fork || fork->regions.size() == 3);
            return fork;
        };
        EXPECT_GT(for_each_fault({.faults = testing::FaultsAre::survivable}, attempt, [] {}), 10U)
            << to_string(mode);
    }
}

TEST_P(ModesTest, ALoadedOneCannotBeWrittenAndOutlivesItsFolder) {
    auto base = chain_.open(2);
    const auto loaded = base->load().value();
    EXPECT_THAT(seals_of(loaded->image()).value(), ::testing::IsSupersetOf({"write", "shrink", "grow"}));
    EXPECT_TRUE(loaded->is_loaded());
    EXPECT_EQ(loaded->parent(), nullptr);
    EXPECT_TRUE(loaded->verify()->is_good());
    base.reset();
    for (const int number : {2, 1, 0}) ASSERT_TRUE(remove_template(chain_.path_of(number))) << number;
    for (const RestoreMode mode : {RestoreMode::map, RestoreMode::copy, RestoreMode::lazy}) {
        const Fork fork = loaded->fork({.mode = mode}).value();
        EXPECT_EQ(testing::bytes_of(fork), chain_.expected(2));
        std::memset(fork.regions[0]->host_base(), 0xee, Chain::ram_bytes);
    }
    EXPECT_EQ(testing::bytes_of(loaded->fork().value()), chain_.expected(2));
    EXPECT_EQ(testing::bytes_of(loaded->load().value()->fork().value()), chain_.expected(2))
        << "loaded again";
}

TEST_P(ModesTest, EachFailingCallOfLoadingIsAnErrorOrDoesNotMatter) {
    const auto base = chain_.open(2);
    ASSERT_TRUE(base->hold());
    const auto attempt = [&]() -> Result<bool> {
        const auto loaded = GM_TRY(base->load());
        EXPECT_TRUE(loaded->is_loaded());
        return true;
    };
    EXPECT_GT(for_each_fault({.faults = testing::FaultsAre::survivable}, attempt, [] {}), 20U);
}

TEST_P(ModesTest, ForksOfAllModesAreMadeByManyThreads) {
    const auto base = chain_.open(2);
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&, i] {
            ASSERT_TRUE(prepare_thread_for_guest_memory());
            for (std::size_t round = 0; round < 12; ++round) {
                const RestoreMode mode = modes()[(round + static_cast<std::size_t>(i)) % modes().size()];
                const Fork fork = base->fork({.mode = mode}).value();
                EXPECT_EQ(testing::bytes_of(fork), chain_.expected(2));
                std::memset(fork.regions[2]->host_base(), i, Chain::ram_bytes);
            }
        });
}

/// A bit of the template under both differences that they show.
TEST_P(ModesTest, APageThatIsNotWhatItWasIsAFaultOfALazyForkAndAnErrorOfACopy) {
    const auto base = chain_.open(2);
    constexpr std::uint64_t rom_page = Chain::ram_bytes / page;  // ROM is in no difference
    if (encoding_of(0) == ImageEncoding::raw) {
        testing::flip_bit(chain_.path_of(0) + "/image", (rom_page + 3) * page + 100);
    } else {
        testing::flip_bit(chain_.path_of(0) + "/sums", (rom_page + 3) * 8);
    }
    for (const int number : {0, 2}) {
        const auto copy = chain_.open(number)->fork({.mode = RestoreMode::copy});
        ASSERT_FALSE(copy);
        EXPECT_EQ(copy.error().code(), Errc::corrupt);
        EXPECT_THAT(copy.error().message(), HasSubstr("guest address 0xfffc3000"));
        EXPECT_FALSE(chain_.open(number)->load());
        const Fork lazy = chain_.open(number)->fork({.mode = RestoreMode::lazy}).value();
        std::uint64_t word = 0;
        EXPECT_TRUE(try_load(lazy.regions[2]->host_base(), word));
        EXPECT_FALSE(try_load(lazy.regions[1]->host_base() + 3 * page, word));
        const auto health = lazy.pager->health();
        ASSERT_FALSE(health);
        EXPECT_THAT(health.error().message(), HasSubstr("guest address 0xfffc3000"));
        EXPECT_TRUE(try_load(lazy.regions[2]->host_base(), word)) << "what has come stays";
    }
    const TemplateCheck check = chain_.open(0)->verify().value();
    ASSERT_EQ(check.image.bad.size(), 1U);
    EXPECT_THAT(place_in_guest(base->manifest(), check.image.bad[0].image_offset_bytes),
                HasSubstr("0xfffc3000"));
}

TEST(TemplateModes, AForkOfTooManyPiecesCannotBeMappedAndIsCopied) {
    const TempFolder store;
    constexpr std::uint64_t count = 2 * max_fork_pieces + 4;
    {
        TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
        const Fd hole =
            create_sparse_memory({.name = "ram", .size_bytes = count * page}, Sealing::none).value();
        ASSERT_TRUE(maker.add_file({.name = "ram", .size_bytes = count * page}, hole, 0));
        ASSERT_TRUE(std::move(maker).commit());
    }
    const auto parent = Template::open(store.path_of("base")).value();
    ASSERT_TRUE(TemplateMaker::begin_difference(store.path_of("top"), parent).value().commit());
    PageRuns pages;
    for (std::uint64_t i = 0; i < max_fork_pieces; ++i) pages.add(2 * i, 1);
    testing::edit_pages(store.path_of("top"), pages);
    EXPECT_TRUE(Template::open(store.path_of("top")).value()->fork());
    pages.add(2 * max_fork_pieces, 1);
    testing::edit_pages(store.path_of("top"), pages);
    const auto top = Template::open(store.path_of("top")).value();
    const auto mapped = top->fork();
    ASSERT_FALSE(mapped);
    EXPECT_EQ(mapped.error().code(), Errc::out_of_range);
    EXPECT_THAT(mapped.error().message(), HasSubstr("flatten it"));
    EXPECT_TRUE(top->fork({.mode = RestoreMode::copy}));
    EXPECT_TRUE(top->fork({.mode = RestoreMode::lazy}));
}

TEST(TemplateModes, ThePiecesOfAllRegionsCount) {
    const TempFolder store;
    constexpr std::uint64_t count = max_fork_pieces + 2;
    TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
    const Fd hole = create_sparse_memory({.name = "ram", .size_bytes = count * page}, Sealing::none).value();
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1} << 40}) {
        const ImageRegion region{.name = "ram", .guest_address = address, .size_bytes = count * page};
        ASSERT_TRUE(maker.add_file(region, hole, 0));
    }
    ASSERT_TRUE(std::move(maker).commit());
    const auto parent = Template::open(store.path_of("base")).value();
    ASSERT_TRUE(TemplateMaker::begin_difference(store.path_of("top"), parent).value().commit());
    PageRuns pages;
    for (std::uint64_t i = 0; i < count; ++i) pages.add(2 * i, 1);
    testing::edit_pages(store.path_of("top"), pages);
    EXPECT_EQ(Template::open(store.path_of("top")).value()->fork().error().code(), Errc::out_of_range);
}

/// Gives the second half when it is asked for the first time, and no page twice.
class BackToFront final : public PageSource {
public:
    explicit BackToFront(std::uint64_t size_bytes) : size_(size_bytes) {}
    [[nodiscard]] std::uint64_t size_bytes() const override { return size_; }
    [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
        const std::vector<std::byte> pages(size_ / 2, std::byte{7});
        if (count_calls_++ == 0) GM_TRY(sink.take_pages(size_ / 2, pages));
        if (wanted.offset_bytes + wanted.size_bytes > size_ / 2 && count_calls_ > 1)
            return Error{Errc::invalid_argument, "these have passed"};
        return sink.take_pages(0, pages);
    }

private:
    std::uint64_t size_;
    int count_calls_ = 0;
};

TEST(TemplateModes, ACopyTakesPagesInAnyOrderAndATemplateIsMadeInItsOwn) {
    const Manifest manifest{.id = std::string(32, '1'),
                            .regions = {{"ram", 0, 16 * page, 0, false}},
                            .image_bytes = 16 * page,
                            .stored_bytes = 16 * page};
    BackToFront source{16 * page};
    EXPECT_EQ(testing::bytes_of(restore_by_copying(manifest, source).value()), std::string(16 * page, '\7'));
    const TempFolder store;
    TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
    BackToFront again{16 * page};
    EXPECT_EQ(maker.add_source(manifest.regions, again).error().code(), Errc::unsupported);
}

TEST(TemplateModes, TooLittleMemoryIsAnErrorOfLoadingBeforeAnythingIsTaken) {
    const TempFolder store;
    constexpr std::uint64_t size = std::uint64_t{1} << 40;
    TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
    const Fd hole = create_sparse_memory({.name = "ram", .size_bytes = size}, Sealing::none).value();
    ASSERT_TRUE(maker.add_file({.name = "ram", .size_bytes = size}, hole, 0));
    ASSERT_TRUE(std::move(maker).commit());
    EXPECT_TRUE(Template::open(store.path_of("base")).value()->load()) << "zeros take no memory";
    testing::edit_manifest(store.path_of("base"),
                           [](Manifest& manifest) { manifest.data_pages = size / page; });
    const auto loaded = Template::open(store.path_of("base")).value()->load();
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), Errc::exhausted);
    EXPECT_THAT(loaded.error().message(), HasSubstr("of memory are left"));
}

TEST(TemplateModes, ALoadedOneOfHugePagesHasTheBytesAndTakesWholeOnesAlone) {
    constexpr std::uint64_t huge = std::uint64_t{2} << 20;
    const Chain small;
    EXPECT_EQ(small.open(0)->load({.huge_page_bytes = huge}).error().code(), Errc::invalid_argument);
    const TempFolder store;
    TestMap guest;
    guest.ram(0, 2 * huge).count_up();
    {
        TemplateMaker maker = TemplateMaker::begin(store.path_of("base")).value();
        ASSERT_TRUE(maker.add_map(*guest.map()));
        ASSERT_TRUE(std::move(maker).commit());
    }
    const auto base = Template::open(store.path_of("base")).value();
    const testing::HugePages pages{4};
    if (!pages.is_there()) GTEST_SKIP() << "SKIPPED: no huge pages can be had here";
    const auto loaded = base->load({.huge_page_bytes = huge}).value();
    const Fork fork = loaded->fork().value();
    EXPECT_EQ(std::memcmp(fork.regions[0]->host_base(), guest.bytes(0).data(), 2 * huge), 0);
    fork.regions[0]->host_base()[huge + 5] = std::byte{0xff};
    EXPECT_EQ(std::memcmp(loaded->fork()->regions[0]->host_base(), guest.bytes(0).data(), 2 * huge), 0);
    EXPECT_FALSE(base->load({.huge_page_bytes = huge})) << "there are no more";
    // What was written is a huge page; what differs is less.
    TemplateMaker maker = TemplateMaker::begin_difference(store.path_of("top"), base).value();
    ASSERT_TRUE(maker.add_written(written_since_fork(fork).value()));
    const Manifest made = std::move(maker).commit().value();
    EXPECT_EQ(made.parent->count_pages, 1U);
    EXPECT_EQ(testing::bytes_of(Template::open(store.path_of("top")).value()->fork().value()),
              testing::bytes_of(fork));
}

/// Skips where the kernel cannot watch.
#define GM_WATCHED_FORK_OR_SKIP(name, base)                              \
    auto name##_made = (base)->fork({.is_write_watched = true});         \
    if (!name##_made && name##_made.error().code() == Errc::unsupported) \
        GTEST_SKIP() << "SKIPPED: " << name##_made.error().message();    \
    ASSERT_TRUE(name##_made) << name##_made.error().message();           \
    const Fork& fork = *name##_made

TEST(TemplateModes, WatchedForksGiveOneDifferenceAfterTheOther) {
    Chain chain;
    chain.add(1);
    GM_WATCHED_FORK_OR_SKIP(fork, chain.open(1));
    ASSERT_EQ(fork.watches.size(), 3U);
    const auto take = [&] {
        std::vector<WrittenRegion> written;
        for (std::size_t i = 0; i < fork.regions.size(); ++i) {
            auto pages = const_cast<WriteWatch&>(fork.watches[i]).take_written().value();
            if (!pages.empty()) written.push_back({fork.regions[i], std::move(pages)});
        }
        return written;
    };
    EXPECT_THAT(take(), IsEmpty());
    for (int number = 2; number <= 5; ++number) {
        const auto first = static_cast<std::uint64_t>(number) * 5;
        const auto low = testing::bytes_of(*fork.regions[0]);
        std::memset(low.data() + first * page, number, 2 * page);
        low[63 * page] = static_cast<std::byte>(number);
        const auto written = take();
        ASSERT_EQ(written.size(), 1U) << number;
        EXPECT_THAT(written[0].pages,
                    ::testing::ElementsAre(FileExtent{first * page, 2 * page}, FileExtent{63 * page, page}));
        TemplateMaker maker =
            TemplateMaker::begin_difference(chain.path_of(number), chain.open(number - 1)).value();
        ASSERT_TRUE(maker.add_written(written));
        ASSERT_TRUE(std::move(maker).commit());
        EXPECT_EQ(testing::bytes_of(chain.open(number)->fork().value()), testing::bytes_of(fork)) << number;
    }
}

/// The range of a fork that goes is another thread's before long: its watch must have ended by then.
TEST(TemplateModes, WatchedForksThatReplaceEachOtherKeepTheirAnswersApart) {
    Chain chain;
    const auto base = chain.open(0);
    if (const auto made = base->fork({.is_write_watched = true}); !made)
        GTEST_SKIP() << "SKIPPED: " << made.error().message();
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            Fork mine;
            for (std::uint64_t round = 0; round < 300; ++round) {
                mine = base->fork({.is_write_watched = true}).value();
                for (int again = 0; again < 2; ++again) {
                    testing::bytes_of(*mine.regions[0])[round % 64 * page] = std::byte{0xee};
                    const auto taken = mine.watches[0].take_written();
                    ASSERT_TRUE(taken) << taken.error().message();
                    ASSERT_THAT(*taken, ::testing::ElementsAre(FileExtent{round % 64 * page, page}));
                }
            }
        });
}

TEST(TemplateModes, CopiesAreNotWatched) {
    Chain chain;
    for (const RestoreMode mode : {RestoreMode::copy, RestoreMode::lazy}) {
        const auto made = chain.open(0)->fork({.mode = mode, .is_write_watched = true});
        ASSERT_FALSE(made);
        EXPECT_EQ(made.error().code(), Errc::invalid_argument);
    }
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template_source.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

using ::testing::AllOf;
using testing::Chain;
using testing::change_file;
using testing::flip_bit;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::replace_bytes;

constexpr std::uint64_t page = page_size_bytes;

/// What comes, which has to be just what was asked for, in ascending order.
class Collector final : public PageSink {
public:
    explicit Collector(std::uint64_t offset_bytes = 0) : next_(offset_bytes) {}
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        if (fails_at <= offset_bytes) return Error{Errc::io, "full"};
        EXPECT_EQ(offset_bytes, next_);
        EXPECT_LE(pages.size(), max_part_bytes);
        bytes.append(reinterpret_cast<const char*>(pages.data()), pages.size());
        next_ += pages.size();
        return {};
    }
    Result<void> take_zeros(ImagePart part) override {
        EXPECT_EQ(part.offset_bytes, next_);
        bytes.append(part.size_bytes, '\0');
        next_ += part.size_bytes;
        return {};
    }
    std::string bytes;
    std::uint64_t fails_at = std::numeric_limits<std::uint64_t>::max();

private:
    std::uint64_t next_;
};

Result<std::string> all_of(const std::shared_ptr<const Template>& base) {
    const auto source = GM_TRY(TemplateSource::open(base));
    Collector sink;
    GM_TRY(source->fetch({0, source->size_bytes()}, sink));
    return sink.bytes;
}

/// Each template of a chain raw, compressed, or by turns.
class TemplateSourceTest : public ::testing::TestWithParam<int> {
protected:
    TemplateSourceTest() : chain_({.encoding = encoding_of(0)}) {
        for (int number = 1; number <= 2; ++number) chain_.add(number, {.encoding = encoding_of(number)});
    }
    static ImageEncoding encoding_of(int number) {
        const bool is_zstd = GetParam() == 1 || (GetParam() == 2 && number % 2 == 1);
        return is_zstd ? ImageEncoding::zstd : ImageEncoding::raw;
    }
    Chain chain_;
};
INSTANTIATE_TEST_SUITE_P(RawCompressedMixed, TemplateSourceTest, ::testing::Values(0, 1, 2));

TEST_P(TemplateSourceTest, GivesWhatEachTemplateHas) {
    for (int number = 0; number <= 2; ++number)
        EXPECT_EQ(all_of(chain_.open(number)).value(), chain_.expected(number)) << number;
}

TEST_P(TemplateSourceTest, GivesAnyPartAndNoMore) {
    const auto source = TemplateSource::open(chain_.open(2)).value();
    std::mt19937 random{5};  // NOLINT: the same each time
    constexpr std::uint64_t count = Chain::image_bytes / page;
    for (int round = 0; round < 200; ++round) {
        const std::uint64_t at = random() % count * page;
        const std::uint64_t size = random() % (count - at / page + 1) * page;
        Collector sink{at};
        ASSERT_TRUE(source->fetch({at, size}, sink));
        ASSERT_EQ(sink.bytes, chain_.expected(2).substr(at, size)) << at << " " << size;
    }
}

TEST_P(TemplateSourceTest, RefusesWhatIsNoWholePageOfTheImage) {
    const auto source = TemplateSource::open(chain_.open(2)).value();
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    for (const ImagePart part : {ImagePart{1, page}, ImagePart{0, page + 1},
                                 ImagePart{Chain::image_bytes, page}, ImagePart{page, Chain::image_bytes},
                                 ImagePart{most - page + 1, page}, ImagePart{page, most - page + 1}}) {
        Collector sink;
        const auto given = source->fetch(part, sink);
        ASSERT_FALSE(given);
        EXPECT_EQ(given.error().code(), Errc::invalid_argument);
        EXPECT_TRUE(sink.bytes.empty());
    }
    Collector sink{Chain::image_bytes};
    EXPECT_TRUE(source->fetch({Chain::image_bytes, 0}, sink)) << "nothing at the end is whole pages";
}

TEST_P(TemplateSourceTest, EndsWithTheErrorOfTheSink) {
    const auto source = TemplateSource::open(chain_.open(2)).value();
    Collector sink;
    sink.fails_at = 30 * page;
    const auto given = source->fetch({0, Chain::image_bytes}, sink);
    ASSERT_FALSE(given);
    EXPECT_THAT(given.error().message(), HasSubstr("full"));
    Collector again;
    EXPECT_TRUE(source->fetch({0, Chain::image_bytes}, again)) << "the source itself is good";
    EXPECT_EQ(again.bytes, chain_.expected(2));
}

TEST_P(TemplateSourceTest, EachFailingCallIsAnError) {
    const auto base = chain_.open(2);
    // It keeps its leases from the first use on.
    ASSERT_TRUE(base->hold());
    EXPECT_GT(for_each_fault(
                  {.faults = testing::FaultsAre::survivable},
                  [&]() -> Result<bool> {
                      const auto all = GM_TRY(all_of(base));
                      EXPECT_EQ(all, chain_.expected(2));
                      return true;
                  },
                  [] {}),
              20U);
}

TEST(TemplateSource, KeepsAllLayersFromBeingRemoved) {
    Chain chain;
    chain.add(1);
    auto source = TemplateSource::open(chain.open(1)).value();
    for (const int number : {0, 1})
        EXPECT_EQ(remove_template(chain.path_of(number)).error().code(), Errc::busy);
    source.reset();
    for (const int number : {1, 0}) EXPECT_TRUE(remove_template(chain.path_of(number)));
}

TEST(TemplateSource, OfAnImageThatWasWrittenSinceIsAnErrorInEachLayer) {
    for (const int number : {0, 1}) {
        Chain chain;
        chain.add(1);
        const auto base = chain.open(1);
        ASSERT_EQ(::utimensat(AT_FDCWD, (chain.path_of(number) + "/image").c_str(), nullptr, 0), 0);
        const auto source = TemplateSource::open(base);
        ASSERT_FALSE(source);
        EXPECT_EQ(source.error().code(), Errc::corrupt);
        EXPECT_THAT(source.error().message(),
                    AllOf(HasSubstr(chain.path_of(number)), HasSubstr("it was written")));
    }
}

/// A place that layer 0 of the two shows, of the wanted kind.
std::uint64_t page_of_base(const Template& top, const std::string& bytes, bool is_zero) {
    for (std::uint64_t number = 2; number < bytes.size() / page; ++number)
        if (!top.own_pages()->contains(number) &&
            (bytes.find_first_not_of('\0', number * page) >= (number + 1) * page) == is_zero)
            return number;
    ADD_FAILURE() << "no such page";
    return 0;
}

TEST(TemplateSource, NamesTheTemplateAndThePlaceOfAPageThatIsNotWhatItWas) {
    using Damage = std::function<void(const std::string& image, std::uint64_t number)>;
    const Damage flip = [](const std::string& image, std::uint64_t number) {
        flip_bit(image, number * page + 77);
    };
    const Damage clear = [](const std::string& image, std::uint64_t number) {
        replace_bytes(image, number * page, std::string(page, '\0'));
    };
    const Damage punch = [](const std::string& image, std::uint64_t number) {
        change_file(image, [&] {
            const Fd file = open_file(image, OpenMode::read_write).value();
            ASSERT_EQ(::fallocate(file.view().number(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  static_cast<off_t>(number * page), page),
                      0);
        });
    };
    const Damage fill = [](const std::string& image, std::uint64_t number) {
        replace_bytes(image, number * page + 9, "x");
    };
    for (const auto& [damage, is_zero] :
         {std::pair{flip, false}, {clear, false}, {punch, false}, {fill, true}}) {
        Chain chain;
        chain.add(1);
        const auto top = chain.open(1);
        const std::uint64_t number = page_of_base(*top, chain.expected(1), is_zero);
        damage(chain.path_of(0) + "/image", number);
        const auto source = TemplateSource::open(top).value();
        Collector sink{number * page};
        const auto given = source->fetch({number * page, page}, sink);
        ASSERT_FALSE(given);
        EXPECT_EQ(given.error().code(), Errc::corrupt);
        EXPECT_THAT(
            given.error().message(),
            AllOf(HasSubstr(chain.path_of(0)), HasSubstr(place_in_guest(top->manifest(), number * page))));
        EXPECT_TRUE(sink.bytes.empty()) << "a bad page is not given";
        Collector before;
        EXPECT_TRUE(source->fetch({0, number * page}, before)) << "the others are";
        EXPECT_EQ(before.bytes, chain.expected(1).substr(0, number * page));
    }
}

TEST(TemplateSource, OfDamageUnderADifferencesOwnPageTellsNothing) {
    Chain chain;
    chain.add(1);
    const auto top = chain.open(1);
    const std::uint64_t number = top->own_pages()->runs()[0].first;
    replace_bytes(chain.path_of(0) + "/image", number * page, "damaged");
    EXPECT_EQ(all_of(top).value(), chain.expected(1)) << "the parent's page is not shown";
    EXPECT_FALSE(all_of(chain.open(0)));
}

TEST(TemplateSource, OfALoadedTemplateIsTheSame) {
    Chain chain;
    chain.add(1, {.encoding = ImageEncoding::zstd});
    EXPECT_EQ(all_of(chain.open(1)->load().value()).value(), chain.expected(1));
}

TEST(TemplateSource, IsUsedByManyThreadsEachWithItsOwn) {
    Chain chain;
    chain.add(1, {.encoding = ImageEncoding::zstd});
    const auto base = chain.open(1);
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            for (int round = 0; round < 10; ++round) EXPECT_EQ(all_of(base).value(), chain.expected(1));
        });
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/flatten.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_source.hpp"
#include "guestmem/mem/template/testing/chain.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

using ::testing::AllOf;
using testing::bytes_of;
using testing::Chain;
using testing::edit_manifest;
using testing::flip_bit;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t page = page_size_bytes;

/// A chain of differences, each written by a fork of the one before.
class ChainTest : public ::testing::Test {
protected:
    [[nodiscard]] std::string flat() const { return chain_.store().path_of("flat"); }
    [[nodiscard]] std::string file_of(int number, const char* name) const {
        return chain_.path_of(number) + "/" + name;
    }
    [[nodiscard]] Error error_of_opening(int number) const {
        const auto opened = Template::open(chain_.path_of(number));
        EXPECT_FALSE(opened);
        return opened ? Error{Errc::io, "it opens"} : opened.error();
    }
    void link(int number, int parent, const TemplateId& id) const {
        edit_manifest(chain_.path_of(number), [&](Manifest& manifest) {
            manifest.parent->name = "d" + std::to_string(parent);
            manifest.parent->id = id;
        });
    }
    [[nodiscard]] TemplateId id_of(int number) const {
        return parse_manifest(testing::text_of(file_of(number, template_manifest_file)))->id;
    }

    Chain chain_;
};

TEST_F(ChainTest, HasWhatEachForkHadInEveryModeAndWhenItIsFlat) {
    for (int number = 1; number <= 5; ++number)
        chain_.add(number, {.encoding = number == 5 ? ImageEncoding::zstd : ImageEncoding::raw});
    for (int number = 0; number <= 5; ++number) {
        const std::string& bytes = chain_.expected(number);
        const auto base = chain_.open(number);
        EXPECT_TRUE(base->verify().value().is_good()) << number;
        EXPECT_EQ(bytes_of(base->fork({.mode = RestoreMode::copy}).value()), bytes) << number;
        EXPECT_EQ(bytes_of(base->fork({.mode = RestoreMode::lazy}).value()), bytes) << number;
        EXPECT_EQ(bytes_of(base->load().value()->fork().value()), bytes) << number;
        const auto mapped = base->fork();
        if (number == 5) {
            EXPECT_EQ(mapped.error().code(), Errc::unsupported);
        } else {
            EXPECT_EQ(bytes_of(*mapped), bytes) << number;
        }
        for (const ImageEncoding encoding : {ImageEncoding::raw, ImageEncoding::zstd}) {
            std::vector<std::uint64_t> told;
            const Manifest manifest =
                flatten_template(base, flat(), {.encoding = encoding}, [&](std::uint64_t done) {
                    told.push_back(done);
                }).value();
            EXPECT_THAT(told, ::testing::ElementsAre(Chain::image_bytes));
            EXPECT_FALSE(manifest.parent);
            EXPECT_NE(manifest.id, base->manifest().id);
            EXPECT_EQ(manifest.regions, base->manifest().regions);
            EXPECT_EQ(manifest.provenance, base->manifest().provenance);
            auto opened = Template::open(flat()).value();
            EXPECT_TRUE(opened->verify().value().is_good());
            EXPECT_EQ(opened->read_state().value(), base->read_state().value());
            EXPECT_EQ(bytes_of(opened->fork({.mode = RestoreMode::copy}).value()), bytes) << number;
            opened.reset();
            EXPECT_TRUE(remove_template(flat()));
        }
    }
}

TEST_F(ChainTest, OfAsManyTemplatesAsAllowedWorksAndOneMoreIsAnError) {
    const int last = static_cast<int>(max_template_layers) - 1;
    chain_.add(1);
    // Each of the others has the pages of the first difference.
    for (int number = 2; number <= last; ++number) {
        std::filesystem::copy(chain_.path_of(1), chain_.path_of(number),
                              std::filesystem::copy_options::recursive);
        edit_manifest(chain_.path_of(number), [&](Manifest& manifest) {
            manifest.id = std::string(30, '0') + std::to_string(number + 100).substr(1);
        });
        std::filesystem::last_write_time(file_of(number, template_image_file),
                                         std::filesystem::last_write_time(file_of(1, template_image_file)));
        link(number, number - 1, id_of(number - 1));
    }
    const auto top = chain_.open(last);
    EXPECT_EQ(top->layers().size(), max_template_layers);
    EXPECT_EQ(bytes_of(top->fork().value()), chain_.expected(1));
    EXPECT_EQ(bytes_of(top->fork({.mode = RestoreMode::lazy}).value()), chain_.expected(1));
    const auto more = TemplateMaker::begin_difference(chain_.path_of(last + 1), top);
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), Errc::out_of_range);
    EXPECT_THAT(more.error().message(), HasSubstr("flatten it"));
    // By hand: what was a difference to the first one is one to the last one.
    TemplateMaker maker = TemplateMaker::begin_difference(chain_.path_of(last + 1), chain_.open(0)).value();
    ASSERT_TRUE(std::move(maker).commit());
    link(last + 1, last, id_of(last));
    EXPECT_EQ(error_of_opening(last + 1).code(), Errc::out_of_range);
    ASSERT_TRUE(flatten_template(top, flat()));
    EXPECT_EQ(bytes_of(Template::open(flat()).value()->fork().value()), chain_.expected(1));
}

TEST_F(ChainTest, WithAMissingOrReplacedMemberIsAnError) {
    for (int number = 1; number <= 3; ++number) chain_.add(number);
    const std::string aside = chain_.store().path_of("aside");
    for (int number = 0; number <= 2; ++number) {
        std::filesystem::rename(chain_.path_of(number), aside);
        Error error = error_of_opening(3);
        EXPECT_EQ(error.code(), Errc::not_found);
        EXPECT_THAT(error.message(), HasSubstr("its parent 'd" + std::to_string(number) + "'"));
        {
            // One of the same memory that is another template.
            TemplateMaker maker = TemplateMaker::begin(chain_.path_of(number)).value();
            ASSERT_TRUE(maker.add_map(*chain_.guest().map()));
            ASSERT_TRUE(std::move(maker).commit());
        }
        error = error_of_opening(3);
        EXPECT_EQ(error.code(), Errc::corrupt);
        EXPECT_THAT(error.message(),
                    AllOf(HasSubstr("d" + std::to_string(number)), HasSubstr("with the id")));
        std::filesystem::remove_all(chain_.path_of(number));
        // A link to where it is, and a link in it to what anybody may read.
        std::filesystem::create_directory_symlink(aside, chain_.path_of(number));
        EXPECT_FALSE(Template::open(chain_.path_of(3)));
        std::filesystem::remove(chain_.path_of(number));
        std::filesystem::rename(aside, chain_.path_of(number));
    }
    EXPECT_TRUE(Template::open(chain_.path_of(3)));
    for (const char* name : {template_image_file, template_pages_file}) {
        std::filesystem::rename(file_of(2, name), aside);
        std::filesystem::create_symlink("/etc/passwd", file_of(2, name));
        EXPECT_THAT(error_of_opening(3).message(), AllOf(HasSubstr("it is a link"), HasSubstr("d2"))) << name;
        std::filesystem::remove(file_of(2, name));
        std::filesystem::rename(aside, file_of(2, name));
    }
    std::filesystem::rename(file_of(2, template_sums_file), aside);
    std::filesystem::create_symlink("/etc/passwd", file_of(2, template_sums_file));
    EXPECT_FALSE(chain_.open(3)->fork({.mode = RestoreMode::copy}));
    EXPECT_FALSE(chain_.open(2)->verify());
}

TEST_F(ChainTest, WithAMemberOfOtherRegionsIsAnError) {
    chain_.add(1);
    edit_manifest(chain_.path_of(1),
                  [](Manifest& manifest) { manifest.regions[0].guest_address += 64 * page; });
    EXPECT_THAT(error_of_opening(1).message(), HasSubstr("its parent 'd0' has other regions"));
    edit_manifest(chain_.path_of(1), [](Manifest& manifest) {
        manifest.regions[0].guest_address = 0;
        manifest.image_bytes += page;
        manifest.stored_bytes += page;
    });
    EXPECT_EQ(error_of_opening(1).code(), Errc::corrupt);
}

TEST_F(ChainTest, WithAMemberThatWasWrittenSinceGivesNoFork) {
    for (int number = 1; number <= 2; ++number) chain_.add(number);
    for (int number = 0; number <= 2; ++number) {
        const auto before = std::filesystem::last_write_time(file_of(number, template_image_file));
        std::filesystem::last_write_time(file_of(number, template_image_file),
                                         before + std::chrono::seconds{1});
        for (const RestoreMode mode : {RestoreMode::map, RestoreMode::copy, RestoreMode::lazy}) {
            const auto fork = chain_.open(2)->fork({.mode = mode});
            ASSERT_FALSE(fork);
            EXPECT_THAT(fork.error().message(),
                        AllOf(HasSubstr("it was written"), HasSubstr(chain_.path_of(number))));
        }
        EXPECT_FALSE(chain_.open(2)->load());
        EXPECT_FALSE(flatten_template(chain_.open(2), flat()));
        std::filesystem::last_write_time(file_of(number, template_image_file), before);
    }
    EXPECT_TRUE(chain_.open(2)->fork());
    EXPECT_EQ(chain_.store().entries().size(), 3U);
}

TEST_F(ChainTest, ThatIsARingIsAnErrorAndNoMemberOfItIsRemoved) {
    for (int number = 1; number <= 3; ++number) chain_.add(number);
    link(1, 1, id_of(1));
    EXPECT_EQ(error_of_opening(1).code(), Errc::out_of_range) << "its own parent";
    EXPECT_EQ(error_of_opening(3).code(), Errc::out_of_range);
    link(1, 3, id_of(3));
    for (int number = 1; number <= 3; ++number) {
        EXPECT_EQ(error_of_opening(number).code(), Errc::out_of_range);
        EXPECT_EQ(remove_template(chain_.path_of(number)).error().code(), Errc::busy);
    }
    flip_bit(file_of(3, template_pages_file), 0);
    EXPECT_EQ(error_of_opening(3).code(), Errc::out_of_range) << "its pages would be read 64 times";
    EXPECT_TRUE(Template::open(chain_.path_of(0)));
    EXPECT_TRUE(remove_template(chain_.path_of(0)));
}

TEST_F(ChainTest, AFlippedBitOfEachFileIsFound) {
    for (const ImageEncoding encoding : {ImageEncoding::raw, ImageEncoding::zstd}) {
        const Manifest made = chain_.add(1, {.encoding = encoding});
        const bool is_raw = encoding == ImageEncoding::raw;
        const std::uint64_t own = chain_.open(1)->own_pages()->runs()[0].first;
        const std::string place = place_in_guest(made, own * page);
        const auto verify_flipped = [&](const char* name, std::uint64_t at) {
            flip_bit(file_of(1, name), at);
            const auto opened = Template::open(chain_.path_of(1));
            auto check = opened ? (*opened)->verify() : Result<TemplateCheck>{opened.error()};
            flip_bit(file_of(1, name), at);
            EXPECT_FALSE(check && check->is_good()) << name << " " << at;
            return check;
        };
        for (const std::uint64_t at : {0U, 9U})
            EXPECT_THAT(verify_flipped(template_pages_file, at).error().message(), HasSubstr("pages"));
        const auto sums = verify_flipped(template_sums_file, own * 8 + 1).value();
        ASSERT_EQ(sums.image.bad.size(), 1U);
        EXPECT_EQ(place_in_guest(made, sums.image.bad[0].image_offset_bytes), place);
        EXPECT_FALSE(sums.sums_fit);
        EXPECT_FALSE(verify_flipped(template_manifest_file, 100));
        if (is_raw) {
            const auto image = verify_flipped(template_image_file, own * page + 1000).value();
            ASSERT_EQ(image.image.bad.size(), 1U);
            EXPECT_EQ(image.image.bad[0].image_offset_bytes, own * page);
            EXPECT_TRUE(image.sums_fit);
        } else {
            for (std::uint64_t at = 0; at < made.stored_bytes; at += 37)
                EXPECT_FALSE(verify_flipped(template_image_file, at).value().image.bad.empty()) << at;
            for (std::uint64_t at = 0; at < 16; ++at)
                EXPECT_THAT(verify_flipped(template_chunks_file, at).error().code(), Errc::corrupt) << at;
        }
        EXPECT_TRUE(chain_.open(1)->verify()->is_good()) << "all is back";
        ASSERT_TRUE(remove_template(chain_.path_of(1)));
    }
}

TEST_F(ChainTest, OfDamageCannotBeFlattenedAndLeavesNothing) {
    chain_.add(1);
    constexpr std::uint64_t rom_page = Chain::ram_bytes / page;
    flip_bit(file_of(0, template_image_file), rom_page * page);
    const auto made = flatten_template(chain_.open(1), flat());
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code(), Errc::corrupt);
    EXPECT_THAT(made.error().message(), HasSubstr("guest address 0xfffc0000"));
    flip_bit(file_of(0, template_image_file), rom_page * page);
    // A state that is damaged is not passed on, either.
    const std::string state = file_of(0, template_state_file);
    flip_bit(state, 3);
    EXPECT_EQ(flatten_template(chain_.open(0), flat()).error().code(), Errc::corrupt);
    EXPECT_EQ(chain_.store().entries(), (std::vector<std::string>{"d0", "d1"}));
    flip_bit(state, 3);
    EXPECT_EQ(flatten_template(chain_.open(1), chain_.path_of(0)).error().code(), Errc::already_exists);
}

TEST_F(ChainTest, ThatWasLoadedIsFlattenedWhenItsFoldersAreGone) {
    chain_.add(1);
    const auto loaded = chain_.open(1)->load().value();
    for (const int number : {1, 0}) ASSERT_TRUE(remove_template(chain_.path_of(number)));
    ASSERT_TRUE(flatten_template(loaded, flat()));
    const auto opened = Template::open(flat()).value();
    EXPECT_TRUE(opened->verify()->is_good());
    EXPECT_EQ(bytes_of(opened->fork().value()), chain_.expected(1));
}

TEST_F(ChainTest, EachFailingCallOfFlatteningLeavesNothingOrAllOfIt) {
    chain_.add(1, {.encoding = ImageEncoding::zstd});
    const auto original = chain_.open(1);
    // It keeps its leases from the first use on.
    ASSERT_TRUE(original->hold());
    for (const ImageEncoding encoding : {ImageEncoding::raw, ImageEncoding::zstd}) {
        const auto after = [&] {
            const auto entries = chain_.store().entries();
            if (std::ranges::count(entries, "flat") == 0) {
                EXPECT_EQ(entries, (std::vector<std::string>{"d0", "d1"}));
                return;
            }
            EXPECT_EQ(entries.size(), 3U);
            auto opened = Template::open(flat()).value();
            EXPECT_TRUE(opened->verify()->is_good());
            EXPECT_EQ(bytes_of(opened->fork({.mode = RestoreMode::copy}).value()), chain_.expected(1));
            opened.reset();
            EXPECT_TRUE(remove_template(flat()));
        };
        EXPECT_GT(for_each_fault(
                      {.faults = testing::FaultsAre::survivable},
                      [&] { return flatten_template(original, flat(), {.encoding = encoding}); }, after),
                  40U);
    }
}

TEST_F(ChainTest, AKillAtAnyCallOfFlatteningLeavesAllOrNothing) {
    chain_.add(1);
    std::size_t count_killed = 0;
    std::size_t count_whole = 0;
    for (std::uint64_t nth = 0; nth < 500; ++nth) {
        const int status = testing::status_of_child([&] {
            FaultInjector injector{nth, {.is_deadly = true}};
            const auto original = chain_.open(1);
            ASSERT_TRUE(flatten_template(original, flat(), {.encoding = ImageEncoding::zstd}));
        });
        const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        ASSERT_TRUE(is_killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << nth;
        ASSERT_TRUE(remove_leftovers(chain_.store().path()));
        const auto names = list_templates(chain_.store().path()).value();
        EXPECT_EQ(chain_.store().entries(), names);
        EXPECT_TRUE(chain_.open(1)->verify()->is_good()) << "the original stays";
        if (std::filesystem::exists(flat())) {
            ++count_whole;
            ASSERT_TRUE(Template::open(flat()).value()->verify()->is_good()) << nth;
            ASSERT_TRUE(remove_template(flat())) << nth;
        }
        if (!is_killed) break;
        ++count_killed;
    }
    EXPECT_GT(count_killed, 40U);
    EXPECT_GT(count_whole, 1U) << "killed behind the rename, too";
}

/// Differences, flat templates and compressed ones on a file system with no room at all to enough.
TEST_F(ChainTest, AFullFileSystemLeavesNothing) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root may mount a tmpfs";
    testing::in_child([&] {
        const std::string folder = chain_.store().path_of("small");
        std::filesystem::create_directory(folder);
        constexpr std::uint64_t size = std::uint64_t{3} << 20;
        ASSERT_TRUE(testing::mount_small_tmpfs(folder, size)) << "root without the right to mount";
        const auto source = TemplateSource::open(chain_.open(0)).value();
        {
            TemplateMaker maker = TemplateMaker::begin(folder + "/base").value();
            ASSERT_TRUE(maker.add_source(chain_.open(0)->manifest().regions, *source));
            ASSERT_TRUE(std::move(maker).commit());
        }
        const auto base = Template::open(folder + "/base").value();
        const Fork fork = base->fork({.mode = RestoreMode::copy}).value();
        for (const auto& region : fork.regions)
            if (region->is_writable())
                for (std::byte& byte : bytes_of(*region)) byte ^= std::byte{0x55};
        const auto difference = [&](ImageEncoding encoding) -> Result<Manifest> {
            TemplateMaker maker = GM_TRY(
                TemplateMaker::begin_difference(folder + "/x", base, MakerOptions{.encoding = encoding}));
            GM_TRY(maker.add_written(GM_TRY(written_since_fork(fork))));
            return std::move(maker).commit();
        };
        const std::vector<std::function<Result<Manifest>()>> ways{
            [&] { return difference(ImageEncoding::raw); }, [&] { return difference(ImageEncoding::zstd); },
            [&] { return flatten_template(base, folder + "/x", {.encoding = ImageEncoding::zstd}); },
            [&] { return flatten_template(base, folder + "/x"); }};
        const Fd filler = create_file(folder + "/filler", 0600).value();
        for (std::size_t way = 0; way < ways.size(); ++way) {
            bool was_full = false;
            bool was_made = false;
            for (std::uint64_t room = 0; room <= size && !was_made; room += 20 * 1024) {
                ASSERT_TRUE(resize_file(filler, 0));
                const std::uint64_t free = std::filesystem::space(folder).free;
                if (room < free) {
                    ASSERT_TRUE(allocate_file(filler, 0, free - room));
                }
                const auto made = ways[way]();
                was_made = made.has_value();
                was_full = was_full || !made;
                if (made) {
                    EXPECT_TRUE(Template::open(folder + "/x").value()->verify()->is_good()) << way;
                    EXPECT_TRUE(remove_template(folder + "/x"));
                } else {
                    EXPECT_EQ(made.error().code(), Errc::exhausted) << way << made.error().message();
                }
                EXPECT_EQ(std::distance(std::filesystem::directory_iterator{folder}, {}), 2) << way;
            }
            EXPECT_TRUE(was_full && was_made) << way;
        }
    });
}

}  // namespace
}  // namespace guestmem

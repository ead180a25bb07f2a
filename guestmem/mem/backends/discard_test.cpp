// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/discard.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/backends/testing/ways.hpp"
#include "guestmem/mem/backends/usage.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using guestmem::testing::count_resident_pages;
using guestmem::testing::Scene;
using guestmem::testing::TempFolder;
using guestmem::testing::Way;
using guestmem::testing::way_bytes;
using guestmem::testing::ways;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

BackendPlan planned(const BackendOptions& options) {
    return plan_backend(options, ask_machine().value(), ask_file(options).value());
}
BackendPlan planned(std::string_view text) { return planned(parse_backend(text).value()); }

std::vector<std::string> codes_of(const Problems& problems) {
    std::vector<std::string> codes;
    for (const Problem& problem : problems.all())
        codes.push_back((problem.severity == Severity::refusal ? "refused " : "warned ") +
                        std::string{problem.code});
    return codes;
}

/// What stands behind each way of the conformance suite.
const std::map<std::string_view, Backing> backings{
    {"RamPrivate", Backing::anonymous},
    {"RamShared", Backing::object},
    {"Memfd", Backing::object},
    {"MemfdUnsealed", Backing::object},
    {"MemfdPrivate", Backing::private_object},
    {"MemfdHuge", Backing::object},
    {"MemfdHugePrivate", Backing::private_object},
    {"Shm", Backing::object},
    {"FileShared", Backing::file},
    {"FilePrivate", Backing::private_file},
    {"FileMadeShared", Backing::file},
    {"FileMadePrivate", Backing::private_file},
    {"FileGrown", Backing::file},
    {"FileGrownPrivate", Backing::private_file},
    {"FileInAFolder", Backing::file},
    {"FileOnTmpfs", Backing::file},
    {"FileMadeOnTmpfs", Backing::file},
    {"HugeFileMadeShared", Backing::file},
    {"HugeFileMadePrivate", Backing::private_file},
    {"HugeFileInAFolder", Backing::file},
    {"FileWithOffset", Backing::file},
    {"TemplateClone", Backing::private_file},
    {"RomPrivate", Backing::rom},
    {"RomShared", Backing::rom},
    {"Physical", Backing::physical},
    {"PhysicalRom", Backing::physical},
};

class Discard : public ::testing::TestWithParam<Way> {
protected:
    void SetUp() override {
        if (!scene_.is_possible())
            GTEST_SKIP()
                << "4 huge pages of 2M cannot be reserved: not root, none in this kernel, or no room";
        backend_ = Backend::create(scene_.options()).value();
        granule_ = backend_->page_bytes();
    }
    [[nodiscard]] std::span<std::byte> bytes() const { return backend_->memory()->bytes(); }
    [[nodiscard]] bool is_rom() const { return GetParam().writes == guestmem::testing::Writes::refused; }
    /// What the memory is after all of it was written.
    [[nodiscard]] std::vector<std::byte> written() const {
        if (!is_rom()) std::memset(bytes().data(), 0x5a, bytes().size());
        return {bytes().begin(), bytes().end()};
    }
    [[nodiscard]] std::vector<std::byte> content() const { return {bytes().begin(), bytes().end()}; }

    Scene scene_{GetParam()};
    std::shared_ptr<const Backend> backend_;
    std::uint64_t granule_ = 0;
};

INSTANTIATE_TEST_SUITE_P(All, Discard, ::testing::ValuesIn(ways),
                         [](const auto& way) { return std::string{way.param.name}; });

TEST_P(Discard, FollowsTheRowOfItsBacking) {
    const DiscardRule& rule = backend_->discard_rule();
    EXPECT_EQ(rule.backing, backings.at(GetParam().name));
    EXPECT_EQ(backing_of(planned(scene_.options())), rule.backing) << "said before";
    std::vector<std::byte> expected = written();
    const std::vector<std::byte> file_before = scene_.file_bytes();
    std::vector<std::byte> file_expected = file_before;

    const std::uint64_t at = granule_;
    const auto done = backend_->discard(at, granule_);
    if (rule.means == DiscardMeans::refused) {
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code(), Errc::unsupported);
        EXPECT_THAT(done.error().message(), HasSubstr(std::string{rule.sentence}));
    } else {
        ASSERT_TRUE(done) << done.error().message();
        const std::vector<std::byte> first = scene_.first_bytes();
        for (std::uint64_t i = at; i < at + granule_; ++i)
            expected[i] = rule.reads_zeros ? std::byte{0} : first[i];
        const bool is_in_file = rule.backing == Backing::file && !file_expected.empty();
        if (is_in_file) std::memset(file_expected.data() + GetParam().offset_bytes + at, 0, granule_);
    }
    EXPECT_EQ(content(), expected);
    EXPECT_EQ(scene_.file_bytes(), file_expected);
}

TEST_P(Discard, GivesItsPagesBackToTheHost) {
    if (backend_->discard_rule().means == DiscardMeans::refused) return;
    static_cast<void>(written());
    ASSERT_EQ(count_resident_pages(bytes()), way_bytes / page_size_bytes);
    const auto file = backend_->memory()->file();
    // Huge pages that are written privately are never the object's.
    const DiscardRule& rule = backend_->discard_rule();
    const bool is_copied = GetParam().is_huge && rule.backing == Backing::private_object;
    const bool is_punched = rule.means != DiscardMeans::dropped && !is_copied;
    struct stat before{};
    if (is_punched) {
        ASSERT_EQ(::fstat(file->fd.number(), &before), 0);
    }
    ASSERT_TRUE(backend_->discard(0, way_bytes));
    if (is_punched) {
        struct stat after{};
        ASSERT_EQ(::fstat(file->fd.number(), &after), 0);
        EXPECT_EQ(after.st_size, before.st_size);
        EXPECT_LE(static_cast<std::uint64_t>(after.st_blocks) * 512 + way_bytes,
                  static_cast<std::uint64_t>(before.st_blocks) * 512);
    }
    EXPECT_EQ(usage_of(*backend_)->resident_bytes, 0U);
    // Pages of a file are in its cache, whoever drops his own.
    if (!file) {
        EXPECT_EQ(count_resident_pages(bytes()), 0U);
    }
    EXPECT_EQ(bytes()[0], backend_->discard_rule().reads_zeros ? std::byte{0} : scene_.first_bytes()[0]);
}

TEST_P(Discard, ReachesOthersAsTheRowSays) {
    const auto file = backend_->memory()->file();
    if (!file || backend_->discard_rule().means == DiscardMeans::refused || GetParam().is_huge) return;
    const Mapping other = Mapping::create(file->fd, {.size_bytes = way_bytes,
                                                     .offset_bytes = file->offset_bytes,
                                                     .access = MapAccess::read_only,
                                                     .sharing = MapSharing::shared})
                              .value();
    static_cast<void>(written());
    const std::vector<std::byte> before{other.bytes().begin(), other.bytes().end()};
    ASSERT_TRUE(backend_->discard(0, granule_));
    const std::vector<std::byte> after{other.bytes().begin(), other.bytes().end()};
    if (backend_->discard_rule().reaches_others) {
        EXPECT_EQ(std::vector(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(granule_)),
                  std::vector<std::byte>(granule_));
    } else {
        EXPECT_EQ(after, before);
    }
}

TEST_P(Discard, OfOtherThanWholePagesInItIsAnErrorAndNothingChanges) {
    if (backend_->discard_rule().means == DiscardMeans::refused) return;
    const std::vector<std::byte> before = written();
    constexpr std::uint64_t most = ~std::uint64_t{0};
    struct Wrong {
        std::uint64_t offset;
        std::uint64_t size;
    };
    for (const auto& [offset, size] : {Wrong{1, granule_}, Wrong{0, granule_ - 1}, Wrong{way_bytes, granule_},
                                       Wrong{0, way_bytes + granule_}, Wrong{most - granule_ + 1, granule_},
                                       Wrong{granule_, most - granule_ + 1}, Wrong{most, most}}) {
        const auto done = backend_->discard(offset, size);
        ASSERT_FALSE(done) << offset << " " << size;
        EXPECT_EQ(done.error().code(), Errc::invalid_argument);
    }
    EXPECT_TRUE(backend_->discard(0, 0));
    EXPECT_TRUE(backend_->discard(way_bytes, 0));
    EXPECT_EQ(content(), before);
}

TEST_P(Discard, OfAPrivateObjectEmptiesTheObjectToo) {
    if (backend_->discard_rule().backing != Backing::private_object) return;
    static_cast<void>(written());
    ASSERT_TRUE(backend_->discard(0, way_bytes));
    EXPECT_EQ(file_facts(backend_->memory()->file()->fd)->allocated_bytes, 0U);
}

TEST_P(Discard, ThatTheKernelRefusesIsAnError) {
    if (backend_->discard_rule().means == DiscardMeans::refused) return;
    const std::vector<std::byte> before = written();
    FaultInjector injector{0, {}};
    EXPECT_FALSE(backend_->discard(0, granule_));
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(content(), before);
}

TEST(DiscardRules, AreInTheOrderOfTheirNames) {
    for (const DiscardRule& rule : discard_rules) {
        EXPECT_EQ(&row_of(rule.backing), &rule) << rule.name;
        EXPECT_FALSE(rule.sentence.empty());
        const bool is_punched =
            rule.means == DiscardMeans::punched || rule.means == DiscardMeans::dropped_and_punched;
        EXPECT_EQ(is_punched, rule.reaches_others) << rule.name;
    }
    EXPECT_EQ(to_word(DiscardUse::balloon), "balloon");
    EXPECT_EQ(to_word(DiscardUse::free_page_reporting), "free-page-reporting");
    EXPECT_EQ(to_word(DiscardUse::unplug), "unplug");
}

TEST(DiscardRules, PrivateMappingsNeverPunchTheirFile) {
    for (const Way& way : ways) {
        const Scene scene{way};
        const BackendPlan plan = planned(scene.options());
        const DiscardMeans means = row_of(backing_of(plan)).means;
        if (plan.mode.sharing == MapSharing::private_copy && plan.options.kind == BackendKind::file) {
            EXPECT_TRUE(means == DiscardMeans::dropped || means == DiscardMeans::refused) << way.name;
        }
    }
}

class DiscardUses : public ::testing::Test {
protected:
    [[nodiscard]] std::string file(std::string_view options) const {
        return "memory-backend-file,id=a,size=64K,mem-path=" + folder_.path_of("ram") + std::string{options};
    }
    TempFolder folder_;
};

TEST_F(DiscardUses, OfPlainMemoryHaveNoProblem) {
    for (const DiscardUse use : discard_uses)
        for (const char* text :
             {"memory-backend-ram,id=a,size=1M", "memory-backend-memfd,id=a,size=1M",
              "memory-backend-shm,id=a,size=1M", "memory-backend-memfd,id=a,size=1M,share=off"})
            EXPECT_THAT(codes_of(check_discard(planned(text), use)), IsEmpty()) << text;
}

TEST_F(DiscardUses, OfRomAndPhysicalMemoryAreRefused) {
    folder_.write("ram", std::string(65536, 'a'));
    const std::string physical = "memory-backend-physical,id=a,size=64K,mem-path=" + folder_.path_of("ram");
    for (const DiscardUse use : discard_uses)
        for (const std::string& text : {file(",readonly=on"), file(",readonly=on,share=on"), physical})
            EXPECT_THAT(codes_of(check_discard(planned(text), use)), ElementsAre("refused discard-refused"))
                << text;
}

TEST_F(DiscardUses, OfAPreallocatedBackendAreToldAndUnplugIsRefused) {
    const BackendPlan plan = planned("memory-backend-ram,id=a,size=1M,prealloc=on");
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::unplug)),
                ElementsAre("refused discard-undoes-prealloc"));
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::balloon)),
                ElementsAre("warned discard-undoes-prealloc"));
}

TEST_F(DiscardUses, FreePageReportingOfACloneShowsTheFile) {
    folder_.write("ram", std::string(65536, 'a'));
    const BackendPlan plan = planned(file(",readonly=on,rom=off"));
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::free_page_reporting)),
                ElementsAre("warned discard-shows-file"));
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::balloon)), IsEmpty());
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::unplug)), IsEmpty());
}

TEST_F(DiscardUses, DependOnWhatTheFileSystemCan) {
    folder_.write("ram", std::string(65536, 'a'));
    BackendPlan plan = planned(file(",share=on"));
    struct Case {
        const char* type;
        FileKind kind;
        std::vector<std::string> codes;
    };
    const Case cases[] = {{"ext4", FileKind::regular, {}},
                          {"xfs", FileKind::regular, {}},
                          {"btrfs", FileKind::regular, {}},
                          {"tmpfs", FileKind::regular, {}},
                          {"hugetlbfs", FileKind::regular, {}},
                          {"ramfs", FileKind::regular, {"refused discard-without-holes"}},
                          {"nfs", FileKind::regular, {"warned discard-unknown"}},
                          {"tmpfs", FileKind::character_device, {"refused discard-without-holes"}},
                          {"tmpfs", FileKind::block_device, {"refused discard-without-holes"}}};
    for (const Case& one : cases) {
        plan.file.file_system->type = one.type;
        plan.file.path.kind = one.kind;
        EXPECT_EQ(codes_of(check_discard(plan, DiscardUse::balloon)), one.codes) << one.type;
    }
    plan.file.file_system.reset();
    plan.file.path.kind = FileKind::regular;
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::balloon)), ElementsAre("warned discard-unknown"));
}

TEST_F(DiscardUses, OfHugePagesAreTold) {
    BackendPlan plan = planned("memory-backend-memfd,id=a,size=2M");
    plan.is_huge = true;
    plan.page_bytes = std::uint64_t{2} << 20;
    EXPECT_THAT(codes_of(check_discard(plan, DiscardUse::balloon)),
                ElementsAre("warned discard-of-huge-pages"));
}

class DiscardData : public DiscardUses {
protected:
    void SetUp() override { folder_.write("ram", std::string(128 * 1024, 'a')); }
    [[nodiscard]] std::string content() const { return folder_.read("ram"); }
    [[nodiscard]] static std::string expected(std::size_t zeros_at, std::size_t count_zeros) {
        std::string text(128 * 1024, 'a');
        std::memset(text.data() + zeros_at, 0, count_zeros);
        return text;
    }
    static Result<std::shared_ptr<const Backend>> make(const std::string& text) {
        return Backend::create(parse_backend(text).value());
    }
};

TEST_F(DiscardData, ZeroesItsPartOfTheFileWhenTheLastOwnerGoes) {
    auto backend = make(file(",share=on,offset=4K,discard-data=on")).value();
    auto region = backend->make_region(GuestAddress{0}).value();
    backend.reset();
    EXPECT_EQ(content(), expected(0, 0)) << "the region has it";
    region.reset();
    EXPECT_EQ(content(), expected(4096, 65536));
}

TEST_F(DiscardData, OfAChildThatWasForkedLeavesTheFile) {
    auto backend = make(file(",share=on,discard-data=on")).value();
    testing::in_child([&] { backend.reset(); });
    EXPECT_EQ(content(), expected(0, 0));
    backend.reset();
    EXPECT_EQ(content(), expected(0, 65536));
}

TEST_F(DiscardData, LeavesTheFileWhenItIsPrivateOrReadOnly) {
    for (const char* options : {",discard-data=on", ",readonly=on,share=on,discard-data=on",
                                ",readonly=on,rom=off,discard-data=on"}) {
        ASSERT_TRUE(make(file(options))) << options;
        EXPECT_EQ(content(), expected(0, 0)) << options;
    }
}

TEST_F(DiscardData, LeavesTheFileWhenTheBackendCannotBeMade) {
    const BackendPlan plan = planned(file(",share=on,prealloc=on,discard-data=on"));
    FaultInjector injector{0, {.only = SysCall::madvise, .os_error = ENOMEM, .repeat = 100}};
    EXPECT_FALSE(Backend::create(plan));
    EXPECT_EQ(content(), expected(0, 0));
}

TEST_F(DiscardData, ThatTheKernelRefusesLeavesTheFile) {
    auto backend = make(file(",share=on,discard-data=on")).value();
    FaultInjector injector{0, {.only = SysCall::fallocate, .os_error = EOPNOTSUPP}};
    backend.reset();
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(content(), expected(0, 0));
}

}  // namespace
}  // namespace guestmem

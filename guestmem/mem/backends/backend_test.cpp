// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/backend.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/backends/testing/ways.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

constexpr GuestAddress base{0x100000000};

GuestAddress at(std::uint64_t offset) { return GuestAddress{base.value() + offset}; }

std::shared_ptr<const Backend> made(const BackendOptions& options) {
    auto backend = Backend::create(options);
    EXPECT_TRUE(backend) << (backend ? "" : backend.error().message());
    return backend ? *backend : nullptr;
}
std::shared_ptr<const Backend> made(std::string_view text) { return made(parse_backend(text).value()); }

std::string refusal(std::string_view text) {
    const auto backend = Backend::create(parse_backend(text).value());
    EXPECT_FALSE(backend) << text;
    return backend ? "" : backend.error().message();
}

BackendPlan planned(const BackendOptions& options) {
    return plan_backend(options, ask_machine().value(), ask_file(options).value());
}

std::shared_ptr<const MemoryMap> map_of(const Backend& backend) {
    TestMap map;
    map.add(backend.make_region(base).value());
    return map.take_map();
}

std::vector<std::byte> copy_of(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

class Conformance : public ::testing::TestWithParam<Way> {
protected:
    void SetUp() override {
        if (!scene_.is_possible())
            GTEST_SKIP()
                << "4 huge pages of 2M cannot be reserved: not root, none in this kernel, or no room";
    }
    Scene scene_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, Conformance, ::testing::ValuesIn(ways),
                         [](const auto& way) { return std::string{way.param.name}; });

/// Of the ways that can be preallocated: ROM may not be written, and physical memory is there.
class Preallocated : public Conformance {
protected:
    [[nodiscard]] BackendOptions prealloc_options() const {
        BackendOptions options = scene_.options();
        options.is_prealloc = true;
        return options;
    }
};

std::vector<Way> ways_to_preallocate() {
    std::vector<Way> found;
    for (const Way& way : ways)
        if (way.writes != Writes::refused && !way.name.starts_with("Physical")) found.push_back(way);
    return found;
}
INSTANTIATE_TEST_SUITE_P(All, Preallocated, ::testing::ValuesIn(ways_to_preallocate()),
                         [](const auto& way) { return std::string{way.param.name}; });

TEST_P(Conformance, IsWhatWasPlanned) {
    const BackendPlan plan = planned(scene_.options());
    const auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    EXPECT_EQ(backend->options(), scene_.options());
    EXPECT_EQ(backend->mode(), plan.mode);
    EXPECT_EQ(backend->page_bytes(), GetParam().is_huge ? huge_bytes : page_size_bytes);
    EXPECT_EQ(backend->page_bytes(), plan.page_bytes);
    EXPECT_EQ(backend->memory()->bytes().size(), way_bytes);
    EXPECT_EQ(plan.mapped_bytes, way_bytes);
    EXPECT_EQ(backend->memory()->access(), plan.mode.access);
    EXPECT_EQ(backend->memory()->sharing(), plan.mode.sharing);
    EXPECT_EQ(backend->health().value(), BackendHealth::good);
}

TEST_P(Conformance, BeginsWithZerosOrTheFilesBytes) {
    const auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    EXPECT_EQ(copy_of(backend->memory()->bytes()), scene_.first_bytes());
}

TEST_P(Conformance, MakesARegionAtAnAddress) {
    const auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    const auto region = backend->make_region(base).value();
    const bool is_rom = GetParam().writes == Writes::refused;
    EXPECT_EQ(region->kind(), is_rom ? RegionKind::rom : RegionKind::ram);
    EXPECT_EQ(region->name(), "it");
    EXPECT_EQ(region->range().base(), base);
    EXPECT_EQ(region->range().size_bytes(), way_bytes);
    EXPECT_FALSE(backend->make_region(GuestAddress{~std::uint64_t{0} - page_size_bytes})) << "no room there";
}

TEST_P(Conformance, WritesDoAsTheModeSays) {
    const auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    GuestMemory memory{map_of(*backend)};
    const std::vector<std::byte> file_before = scene_.file_bytes();
    std::vector<std::byte> expected = scene_.first_bytes();
    constexpr std::array<std::uint64_t, 4> places{0, page_size_bytes - 4, huge_bytes - 4, way_bytes - 8};
    constexpr std::uint64_t word = 0x1122334455667788;
    for (const std::uint64_t place : places) {
        const auto written = memory.write_le<std::uint64_t>(at(place), word);
        if (GetParam().writes == Writes::refused) {
            ASSERT_FALSE(written);
            EXPECT_EQ(written.error().reason(), AccessReason::read_only);
        } else {
            EXPECT_TRUE(written);
            EXPECT_EQ(memory.read_le<std::uint64_t>(at(place)).value(), word);
            std::memcpy(expected.data() + place, &word, sizeof word);
        }
    }
    EXPECT_EQ(copy_of(backend->memory()->bytes()), expected);
    EXPECT_FALSE(memory.read<std::uint8_t>(at(way_bytes))) << "one past";
    if (GetParam().writes == Writes::reach_file) {
        const std::vector<std::byte> file = scene_.file_bytes();
        EXPECT_EQ(copy_of(std::span{file}.subspan(GetParam().offset_bytes)), expected);
    } else {
        EXPECT_EQ(scene_.file_bytes(), file_before);
    }
}

TEST_P(Conformance, IsAlignedForTransparentHugePages) {
    const auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(backend->memory()->bytes().data()) % huge_bytes, 0U);
}

TEST_P(Conformance, LeavesNothingWhenAllOwnersAreGone) {
    const Resources before = Resources::look();
    auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    const std::span<const std::byte> bytes = backend->memory()->bytes();
    auto region = backend->make_region(base).value();
    auto map = map_of(*backend);
    backend.reset();
    map.reset();
    EXPECT_TRUE(count_resident_pages(bytes)) << "the region holds it";
    region.reset();
    EXPECT_FALSE(count_resident_pages(bytes));
    EXPECT_EQ(Resources::look(), before);
    EXPECT_FALSE(is_mapped(scene_.path()));
    EXPECT_THAT(Scene::shm_names(), IsEmpty());
}

TEST_P(Conformance, RegionsOutliveTheBackend) {
    auto backend = made(scene_.options());
    ASSERT_TRUE(backend);
    GuestMemory memory{map_of(*backend)};
    backend.reset();
    std::vector<std::byte> bytes(way_bytes);
    ASSERT_TRUE(memory.read_bytes(base, bytes));
    EXPECT_EQ(bytes, scene_.first_bytes());
    EXPECT_EQ(bool{memory.write<std::uint8_t>(at(way_bytes - 1), 7)}, GetParam().writes != Writes::refused);
}

/// Creates it with each system call failing; those that went on nevertheless.
template <typename Create>
std::vector<SysCall> survived_faults(const Scene& scene, Create&& create) {
    std::vector<SysCall> survived;
    const auto attempt = [&] {
        scene.reset();
        auto backend = create();
        const SysCall failed = detail::active_injector.load()->failed_call();
        if (!backend) {
            EXPECT_TRUE(scene.is_as_before()) << "failed: " << to_string(failed);
            EXPECT_THAT(backend.error().message(), HasSubstr("backend 'it': "));
            EXPECT_FALSE(is_mapped(scene.path()));
        } else if (failed != SysCall::count) {
            survived.push_back(failed);
            EXPECT_EQ((*backend)->memory()->bytes().size(), way_bytes);
        }
        // A name that could not be removed is still there, of course.
        if (failed == SysCall::unlink)
            for (const auto& name : Scene::shm_names()) std::filesystem::remove(name);
        EXPECT_THAT(Scene::shm_names(), IsEmpty());
        return backend;
    };
    EXPECT_GT(for_each_fault({.faults = FaultsAre::survivable}, attempt, [] {}), 2U);
    return survived;
}

/// Huge pages and merging are wishes.
void expect_wishes(const std::vector<SysCall>& survived, std::size_t count) {
    EXPECT_EQ(survived, std::vector<SysCall>(count, SysCall::madvise));
}
std::size_t count_wishes(const Way& way) { return way.is_huge || way.name.starts_with("Physical") ? 0 : 2; }

TEST_P(Conformance, EachFailingCallOfTheMakingIsAnErrorAndUndone) {
    const BackendPlan plan = planned(scene_.options());
    expect_wishes(survived_faults(scene_, [&] { return Backend::create(plan); }), count_wishes(GetParam()));
}

TEST_P(Conformance, EachFailingCallOfThePlanningIsAnErrorToo) {
    auto survived = survived_faults(scene_, [&] { return Backend::create(scene_.options()); });
    // The default size of huge pages is unknown where it cannot be read, and nobody asks for it here.
    const std::size_t count_not_asked =
        std::erase_if(survived, [](SysCall call) { return call == SysCall::open || call == SysCall::read; });
    EXPECT_LE(count_not_asked, 4U);
    expect_wishes(survived, count_wishes(GetParam()));
}

TEST_P(Preallocated, UndoesEachFailingCall) {
    const BackendPlan plan = planned(prealloc_options());
    ASSERT_FALSE(plan.problems.has_refusal()) << refusal_of(plan).message();
    expect_wishes(survived_faults(scene_, [&] { return Backend::create(plan); }), count_wishes(GetParam()));
}

TEST_P(Preallocated, HasAllPagesAndNoOtherByte) {
    const std::vector<std::byte> file_before = scene_.file_bytes();
    const auto backend = made(prealloc_options());
    ASSERT_TRUE(backend);
    EXPECT_EQ(count_resident_pages(backend->memory()->bytes()), way_bytes / page_size_bytes);
    EXPECT_EQ(copy_of(backend->memory()->bytes()), scene_.first_bytes());
    if (GetParam().before == Before::content) {
        EXPECT_EQ(scene_.file_bytes(), file_before);
    }
}

TEST_P(Preallocated, HasAllPagesOnAnOldKernelToo) {
    ASSERT_TRUE(install_fault_guard() && prepare_thread_for_guest_memory());
    const BackendPlan plan = planned(prealloc_options());
    // Populating comes behind huge pages, forking and merging; the second question is whether it is known.
    FaultInjector injector{count_wishes(GetParam()) + 1,
                           {.only = SysCall::madvise, .os_error = EINVAL, .repeat = 2}};
    const auto backend = Backend::create(plan);
    ASSERT_TRUE(backend) << backend.error().message();
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(count_resident_pages((*backend)->memory()->bytes()), way_bytes / page_size_bytes);
    EXPECT_EQ(copy_of((*backend)->memory()->bytes()), scene_.first_bytes());
}

TEST(Backend, FollowsAlignBeyondTheHugePage) {
    const TempFolder folder;
    const auto backend =
        made("memory-backend-file,id=a,size=64K,align=16M,share=on,mem-path=" + folder.path_of("ram"));
    ASSERT_TRUE(backend);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(backend->memory()->bytes().data()) % (16U << 20), 0U);
}

TEST(Backend, OfOneByteOfRamIsAPage) {
    const auto backend = made("memory-backend-ram,id=a,size=1");
    ASSERT_TRUE(backend);
    EXPECT_EQ(backend->make_region(base).value()->range().size_bytes(), page_size_bytes);
}

TEST(Backend, ThatThePlanRefusesIsNotBegunAndAllReasonsAreTold) {
    const TempFolder folder;
    const Resources before = Resources::look();
    const std::string text =
        "memory-backend-file,id=bad,size=4097,offset=1,align=3,prealloc=on,reserve=off,mem-path=";
    const std::string message = refusal(text + folder.path_of("ram"));
    EXPECT_THAT(message, ::testing::StartsWith("backend 'bad': "));
    for (const char* part :
         {"size 4097 is not whole pages", "the next size is 8192", "offset 1 is not whole pages",
          "align 3 is not a power of two", "prealloc=on with reserve=off"})
        EXPECT_THAT(message, HasSubstr(part));
    EXPECT_THAT(folder.entries(), IsEmpty());
    EXPECT_EQ(Resources::look(), before);
    EXPECT_EQ(Backend::create(parse_backend(text + "x").value()).error().code(), Errc::invalid_argument);
}

TEST(Backend, WarningsDoNotStopIt) {
    const auto backend = made("memory-backend-ram,id=a,size=4097,prealloc-threads=3");
    ASSERT_TRUE(backend);
    EXPECT_EQ(backend->memory()->bytes().size(), 2 * page_size_bytes);
}

TEST(Backend, OfAFileThatTookTheNameAfterThePlanIsAnError) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(8192, 'a'));
    const BackendPlan plan =
        planned(parse_backend("memory-backend-file,id=a,size=8K,share=on,mem-path=" + path).value());
    folder.write("other", std::string(8192, 'b'));
    std::filesystem::rename(folder.path_of("other"), path);
    const auto backend = Backend::create(plan);
    ASSERT_FALSE(backend);
    EXPECT_THAT(backend.error().message(), HasSubstr("another file took this name"));
}

TEST(Backend, OfAFileThatWasFilledAfterThePlanIsAnErrorAndTheContentStays) {
    const TempFolder folder;
    const std::string path = folder.write("ram", "");
    const BackendPlan plan =
        planned(parse_backend("memory-backend-file,id=a,size=8K,share=on,mem-path=" + path).value());
    folder.write("ram", "labels");
    const auto backend = Backend::create(plan);
    ASSERT_FALSE(backend);
    EXPECT_THAT(backend.error().message(),
                HasSubstr("it was empty when the backend was planned, and has 6 bytes"));
    EXPECT_EQ(folder.read("ram"), "labels");
}

TEST(Backend, OfAFileThatSomebodyMadeAfterThePlanIsAnErrorAndTheFileStays) {
    const TempFolder folder;
    const BackendPlan plan = planned(
        parse_backend("memory-backend-file,id=a,size=8K,share=on,mem-path=" + folder.path_of("ram")).value());
    folder.write("ram", "mine");
    const auto backend = Backend::create(plan);
    ASSERT_FALSE(backend);
    EXPECT_EQ(backend.error().code(), Errc::already_exists);
    EXPECT_EQ(folder.read("ram"), "mine");
}

TEST(Backend, OfAResourceFileThatIsTooShortIsAnErrorAndNoSignal) {
    const TempFolder folder;
    const std::string path = folder.write("resource0", std::string(8192, 'a'));
    EXPECT_THAT(refusal("memory-backend-physical,id=a,size=12K,mem-path=" + path), HasSubstr("8192 bytes"));
    EXPECT_EQ(folder.read("resource0").size(), 8192U);
}

TEST(Backend, OfAFileThatWasCutShortAfterThePlanIsAnErrorAndNoSignal) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(8192, 'a'));
    for (const char* kind : {"memory-backend-physical", "memory-backend-file"}) {
        std::filesystem::resize_file(path, 8192);
        const BackendPlan plan =
            planned(parse_backend(std::string{kind} + ",id=a,size=8K,mem-path=" + path).value());
        std::filesystem::resize_file(path, 8191);
        const auto backend = Backend::create(plan);
        ASSERT_FALSE(backend) << kind;
        EXPECT_THAT(backend.error().message(), HasSubstr("the file has 8191 bytes"));
    }
}

TEST(Backend, OfADeviceHasNoSizeAndIsInGoodHealth) {
    const auto backend = made("memory-backend-physical,id=a,size=64K,mem-path=/dev/zero");
    ASSERT_TRUE(backend);
    EXPECT_EQ(backend->health().value(), BackendHealth::good);
    GuestMemory memory{map_of(*backend)};
    EXPECT_TRUE(memory.write<std::uint32_t>(at(0xfffc), 5U));
    EXPECT_EQ(memory.read<std::uint32_t>(at(0xfffc)).value(), 5U);
}

struct Cell {
    bool is_shared;
    bool is_readonly;
    Rom rom;
};

std::vector<Cell> all_cells() {
    std::vector<Cell> cells;
    for (const bool is_shared : {false, true})
        for (const bool is_readonly : {false, true})
            for (const Rom rom : {Rom::automatic, Rom::on, Rom::off})
                cells.push_back({is_shared, is_readonly, rom});
    return cells;
}

/// Makes that cell over a file of 8K 'a' bytes, and checks what QEMU's table says of it.
void check_cell(const TempFolder& folder, const Cell& cell, std::string_view name, bool is_writable) {
    SCOPED_TRACE(::testing::Message() << name << " share " << cell.is_shared << " readonly "
                                      << cell.is_readonly << " rom " << static_cast<int>(cell.rom));
    const BackendOptions options{.kind = BackendKind::file,
                                 .id = "cell",
                                 .size_bytes = 8192,
                                 .is_shared = cell.is_shared,
                                 .mem_path = folder.path_of(name),
                                 .is_readonly = cell.is_readonly,
                                 .rom = cell.rom};
    const auto backend = Backend::create(options);
    const auto expect_refusal = [&](std::string_view why) {
        ASSERT_FALSE(backend);
        EXPECT_THAT(backend.error().message(), HasSubstr(std::string{why}));
    };
    if (cell.rom == Rom::on && !cell.is_readonly) return expect_refusal("rom=on needs readonly=on");
    if (cell.rom == Rom::off && cell.is_readonly && cell.is_shared)
        return expect_refusal("rom=off cannot go with readonly=on and share=on");
    if (!cell.is_readonly && !is_writable)
        return expect_refusal(
            cell.is_shared ? "an immutable file) (with readonly=on it is only read, and the guest sees ROM)"
                           : "an immutable file) (with readonly=on,rom=off it is only read, and writes stay");
    ASSERT_TRUE(backend) << backend.error().message();
    const bool is_rom = cell.is_readonly && cell.rom != Rom::off;
    GuestMemory memory{map_of(**backend)};
    EXPECT_EQ(memory.read<std::uint8_t>(at(8191)).value(), 'a');
    const auto written = memory.write<std::uint8_t>(at(8191), 'b');
    EXPECT_EQ(bool{written}, !is_rom);
    if (!written) {
        EXPECT_EQ(written.error().reason(), AccessReason::read_only);
    }
    EXPECT_EQ(memory.read<std::uint8_t>(at(8191)).value(), is_rom ? 'a' : 'b');
    const bool reaches_file = !is_rom && cell.is_shared;
    EXPECT_EQ(folder.read(name).back(), reaches_file ? 'b' : 'a');
    if (reaches_file) static_cast<void>(memory.write<std::uint8_t>(at(8191), 'a'));
}

void check_all_cells(const TempFolder& folder, bool is_root) {
    for (const Cell& cell : all_cells()) {
        check_cell(folder, cell, "writable", true);
        check_cell(folder, cell, "readonly", is_root);
    }
}

/// Files of that user, mode 0644 and 0444.
void write_cell_files(const TempFolder& folder, std::uint32_t user) {
    for (const char* name : {"writable", "readonly"}) {
        const std::string path = folder.write(name, std::string(8192, 'a'));
        ASSERT_EQ(::chown(path.c_str(), user, user), 0);
        ASSERT_EQ(::chmod(path.c_str(), std::string_view{name} == "writable" ? 0644 : 0444), 0);
    }
    ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
}

TEST(Backend, IsQemusTableOverRealFiles) {
    const TempFolder folder;
    write_cell_files(folder, ::geteuid());
    check_all_cells(folder, ::geteuid() == 0);
}

TEST(Backend, IsQemusTableOverRealFilesOfAnotherUser) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    const TempFolder folder;
    write_cell_files(folder, other_user);
    in_child([&] {
        become_user(other_user);
        check_all_cells(folder, false);
        EXPECT_THAT(refusal("memory-backend-file,id=a,size=4K,mem-path=" + folder.path_of("new")),
                    HasSubstr("files cannot be made in its folder"));
    });
    EXPECT_THAT(folder.entries(), ::testing::ElementsAre("readonly", "writable"));
}

class ChangedFile : public ::testing::Test {
protected:
    static void SetUpTestSuite() {
        ASSERT_TRUE(install_fault_guard());
        ASSERT_TRUE(prepare_thread_for_guest_memory());
    }
    [[nodiscard]] BackendHealth health() const { return backend_->health().value(); }

    TempFolder folder_;
    std::string path_ = folder_.write("ram", std::string(4 * page_size_bytes, 'a'));
    std::shared_ptr<const Backend> backend_ =
        made("memory-backend-file,id=a,size=16K,share=on,mem-path=" + path_);
    GuestMemory memory_{map_of(*backend_)};
};

TEST_F(ChangedFile, ThatWasCutShortIsAFaultBehindItsEnd) {
    EXPECT_EQ(health(), BackendHealth::good);
    std::filesystem::resize_file(path_, page_size_bytes);
    EXPECT_EQ(health(), BackendHealth::cut_short);
    EXPECT_EQ(memory_.read<std::uint8_t>(at(0)).value(), 'a');
    const auto lost = memory_.read<std::uint8_t>(at(page_size_bytes));
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().reason(), AccessReason::fault);
    EXPECT_EQ(memory_.write<std::uint8_t>(at(3 * page_size_bytes), 1).error().reason(), AccessReason::fault);
    std::filesystem::resize_file(path_, 4 * page_size_bytes);
    EXPECT_EQ(health(), BackendHealth::good);
    EXPECT_EQ(memory_.read<std::uint8_t>(at(page_size_bytes)).value(), 0);
}

TEST_F(ChangedFile, ThatIsOneByteTooShortIsCutShort) {
    std::filesystem::resize_file(path_, 4 * page_size_bytes - 1);
    EXPECT_EQ(health(), BackendHealth::cut_short);
}

TEST_F(ChangedFile, ThatWasReplacedIsTheOldOneStill) {
    folder_.write("other", std::string(4 * page_size_bytes, 'b'));
    std::filesystem::rename(folder_.path_of("other"), path_);
    EXPECT_EQ(health(), BackendHealth::replaced);
    EXPECT_EQ(memory_.read<std::uint8_t>(at(0)).value(), 'a');
    EXPECT_TRUE(memory_.write<std::uint8_t>(at(0), 'c'));
    EXPECT_EQ(folder_.read("ram").front(), 'b');
}

TEST_F(ChangedFile, IsFoundFromAnotherWorkingFolder) {
    testing::in_child([&] {
        std::filesystem::current_path(folder_.path());
        const auto backend = made("memory-backend-file,id=a,size=16K,share=on,mem-path=ram");
        std::filesystem::current_path("/");
        EXPECT_EQ(backend->health().value(), BackendHealth::good);
    });
}

TEST_F(ChangedFile, ThatWasDeletedIsReplacedByNone) {
    std::filesystem::remove(path_);
    EXPECT_EQ(health(), BackendHealth::replaced);
    EXPECT_EQ(memory_.read<std::uint8_t>(at(0)).value(), 'a');
}

TEST_F(ChangedFile, ThatCannotBeAskedIsAnError) {
    EXPECT_GT(for_each_fault([&] { return backend_->health(); }), 3U);
}

bool can_resize(const Backend& backend, std::uint64_t size_bytes) {
    return bool{resize_file(backend.memory()->file().value().fd, size_bytes)};
}

TEST(Backend, OfASealedMemfdKeepsItsSize) {
    for (const char* text :
         {"memory-backend-memfd,id=a,size=64K", "memory-backend-memfd,id=a,size=64K,seal=on",
          "memory-backend-memfd,id=a,size=64K,share=off", "memory-backend-ram,id=a,size=64K,share=on"}) {
        const auto backend = made(text);
        ASSERT_TRUE(backend);
        EXPECT_FALSE(can_resize(*backend, 65536 - page_size_bytes)) << text;
        EXPECT_FALSE(can_resize(*backend, 65536 + page_size_bytes)) << text;
        EXPECT_THAT(seals_of(backend->memory()->file().value().fd).value(), Contains("seal")) << text;
    }
}

TEST(Backend, OfAMemfdWithoutSealsChangesItsSize) {
    const auto backend = made("memory-backend-memfd,id=a,size=64K,seal=off");
    ASSERT_TRUE(backend);
    EXPECT_TRUE(can_resize(*backend, 65536 + page_size_bytes));
    EXPECT_EQ(backend->health().value(), BackendHealth::good);
    EXPECT_TRUE(can_resize(*backend, page_size_bytes));
    EXPECT_EQ(backend->health().value(), BackendHealth::cut_short);
}

TEST(Backend, OfSharedMemoryLeavesNoName) {
    const auto backend = made("memory-backend-shm,id=it,size=64K");
    ASSERT_TRUE(backend);
    EXPECT_THAT(Scene::shm_names(), IsEmpty());
    EXPECT_TRUE(is_mapped("/dev/shm/it-")) << "but is seen among the mappings";
}

std::vector<std::string> flags_of(const std::string& text) {
    const auto backend = made(text);
    return backend ? flags_of_mapping(backend->memory()->bytes().data()) : std::vector<std::string>{};
}

TEST(Backend, TellsTheKernelWhatItWasTold) {
    const std::string ram = "memory-backend-ram,id=a,size=64K";
    EXPECT_THAT(flags_of(ram), ::testing::AllOf(Contains("dc"), Not(Contains("dd")), Not(Contains("nr"))));
    EXPECT_THAT(flags_of(ram + ",dump=off"), Contains("dd"));
    if (std::filesystem::exists("/sys/kernel/mm/ksm")) {
        EXPECT_THAT(flags_of(ram), Contains("mg"));
        EXPECT_THAT(flags_of(ram + ",merge=off"), Not(Contains("mg")));
    }
    std::ifstream overcommit{"/proc/sys/vm/overcommit_memory"};
    if (std::string mode; std::getline(overcommit, mode) && mode != "2") {
        EXPECT_THAT(flags_of(ram + ",reserve=off"), Contains("nr"));
        EXPECT_THAT(flags_of("memory-backend-memfd,id=a,size=64K,reserve=off"), Contains("nr"));
    }
}

TEST(Backend, IsBoundToItsNode) {
    EXPECT_TRUE(made("memory-backend-ram,id=a,size=64K,host-nodes=0,policy=bind,prealloc=on"));
    const BackendPlan plan =
        planned(parse_backend("memory-backend-ram,id=a,size=64K,host-nodes=0,policy=bind").value());
    FaultInjector injector{0, {.only = SysCall::mbind}};
    const auto backend = Backend::create(plan);
    ASSERT_FALSE(backend);
    EXPECT_THAT(backend.error().message(), HasSubstr("backend 'a': bind 65536 bytes"));
}

TEST(Backend, AnIdMayBeLongerThanTheKernelsNames) {
    for (const BackendKind kind : {BackendKind::ram, BackendKind::memfd, BackendKind::shm}) {
        const auto backend = Backend::create(
            {.kind = kind, .id = std::string(300, 'x'), .size_bytes = page_size_bytes, .is_shared = true});
        EXPECT_TRUE(backend) << (backend ? "" : backend.error().message());
    }
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/backing.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/huge_pages.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::for_each_fault;
using guestmem::testing::TempFolder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// More than one chunk, and the last one is cut.
constexpr std::uint64_t size = backing_chunk_bytes + 3 * 4096;

std::string shm_name() { return fmt::format("/guestmem-test-{}", ::getpid()); }

/// A backing of each kind, and its options; files and names are gone with it.
struct Place {
    TempFolder folder;
    ~Place() { ::shm_unlink(shm_name().c_str()); }

    [[nodiscard]] BackingOptions options(BackingKind kind, std::uint64_t size_bytes = size) const {
        BackingOptions options{.kind = kind, .name = "test", .size_bytes = size_bytes};
        if (kind == BackingKind::file) options.path = folder.path_of("memory");
        if (kind == BackingKind::shm) options.path = shm_name();
        return options;
    }
};
constexpr std::array kinds{BackingKind::memfd, BackingKind::file, BackingKind::shm};

Result<void> allocate_all(Backing& backing) {
    while (!GM_TRY(backing.allocate_step())) {
    }
    return {};
}

Backing whole_backing(const BackingOptions& options) {
    Backing backing = std::move(Backing::create(options).value());
    EXPECT_TRUE(allocate_all(backing));
    return backing;
}

std::string byte_at(const Backing& backing, std::uint64_t offset) {
    std::string byte(1, '?');
    EXPECT_EQ(::pread(backing.memory().view().number(), byte.data(), 1, static_cast<off_t>(offset)), 1);
    return byte;
}

void put_byte(const Backing& backing, std::uint64_t offset, char byte) {
    EXPECT_EQ(::pwrite(backing.memory().view().number(), &byte, 1, static_cast<off_t>(offset)), 1);
}

const std::string zero(1, '\0');

TEST(Backing, HasItsSizeAtOnceAndItsPagesAfterItsSteps) {
    for (const BackingKind kind : kinds) {
        const Place place;
        auto backing = Backing::create(place.options(kind));
        ASSERT_TRUE(backing) << backing.error().message();
        EXPECT_FALSE(backing->is_complete());
        EXPECT_FALSE(backing->has_kept_bytes());
        EXPECT_EQ(file_facts(backing->memory())->size_bytes, size);
        EXPECT_EQ(file_facts(backing->memory())->allocated_bytes, 0U);

        EXPECT_FALSE(*backing->allocate_step());
        EXPECT_EQ(file_facts(backing->memory())->allocated_bytes, backing_chunk_bytes);
        EXPECT_TRUE(*backing->allocate_step());
        EXPECT_TRUE(backing->is_complete());
        EXPECT_GE(file_facts(backing->memory())->allocated_bytes, size);
        EXPECT_TRUE(*backing->allocate_step());
    }
}

TEST(Backing, IsOfModeSixHundredAndAMemfdIsSealed) {
    for (const BackingKind kind : kinds) {
        const Place place;
        const Backing backing = whole_backing(place.options(kind));
        struct stat status{};
        ASSERT_EQ(::fstat(backing.memory().view().number(), &status), 0);
        EXPECT_EQ(status.st_mode & 07777U, 0600U) << to_string(kind);
        EXPECT_EQ(*is_size_sealed(backing.memory()), kind == BackingKind::memfd) << to_string(kind);
    }
}

TEST(Backing, ClearedReadsAsZeroAndTakesItsStepsAgain) {
    for (const BackingKind kind : kinds) {
        const Place place;
        Backing backing = whole_backing(place.options(kind));
        const Mapping mapping =
            std::move(Mapping::create(backing.memory(), size, MapAccess::read_write).value());
        for (std::byte& byte : mapping.bytes()) byte = std::byte{0xee};

        backing.begin_clear();
        EXPECT_FALSE(backing.is_complete());
        EXPECT_EQ(file_facts(backing.memory())->size_bytes, size);
        ASSERT_TRUE(allocate_all(backing));
        EXPECT_TRUE(std::ranges::all_of(mapping.bytes(), [](std::byte byte) { return byte == std::byte{0}; }))
            << to_string(kind);
    }
}

TEST(Backing, StepsKeepBytesThatWereWrittenMeanwhile) {
    for (const BackingKind kind : kinds) {
        const Place place;
        Backing backing = std::move(Backing::create(place.options(kind)).value());
        put_byte(backing, 0, 'a');
        put_byte(backing, size - 1, 'z');
        ASSERT_TRUE(allocate_all(backing));
        EXPECT_EQ(byte_at(backing, 0), "a");
        EXPECT_EQ(byte_at(backing, size - 1), "z");
    }
}

TEST(Backing, ThatWasThereIsKeptUntilItIsCleared) {
    for (const BackingKind kind : {BackingKind::file, BackingKind::shm}) {
        const Place place;
        put_byte(whole_backing(place.options(kind)), 4097, 'k');

        Backing again = whole_backing(place.options(kind));
        EXPECT_TRUE(again.has_kept_bytes());
        EXPECT_EQ(byte_at(again, 4097), "k");
        again.begin_clear();
        EXPECT_FALSE(again.has_kept_bytes());
        ASSERT_TRUE(allocate_all(again));
        EXPECT_EQ(byte_at(again, 4097), zero);
    }
}

TEST(Backing, InMemoryThatHasAllItsPagesNeedsNoStep) {
    const Place place;
    {
        const Backing backing = whole_backing(place.options(BackingKind::shm));
    }
    const auto again = Backing::create(place.options(BackingKind::shm));
    ASSERT_TRUE(again);
    EXPECT_TRUE(again->is_complete());
}

TEST(Backing, OfAFileThatDoesNotFitIsRefused) {
    const Place place;
    {
        const Backing backing = whole_backing(place.options(BackingKind::file, 8192));
    }
    const auto other = Backing::create(place.options(BackingKind::file));
    ASSERT_FALSE(other);
    EXPECT_THAT(other.error().message(), HasSubstr("8192 bytes, not"));
    EXPECT_EQ(std::filesystem::file_size(place.folder.path_of("memory")), 8192U);
}

TEST(Backing, OptionsThatMakeNoSenseAreRefused) {
    const Place place;
    BackingOptions huge_file = place.options(BackingKind::file, 2 << 20);
    huge_file.huge_page_bytes = 2 << 20;
    BackingOptions relative = place.options(BackingKind::file);
    relative.path = "memory";
    BackingOptions no_folder = place.options(BackingKind::file);
    no_folder.path = place.folder.path_of("no/memory");
    BackingOptions no_name = place.options(BackingKind::shm);
    no_name.path = "mailbox";
    for (const BackingOptions& options :
         {huge_file, relative, no_folder, no_name, place.options(BackingKind::memfd, 0),
          place.options(BackingKind::memfd, 4097), place.options(BackingKind::file, std::uint64_t{1} << 63)})
        EXPECT_FALSE(Backing::create(options)) << options.path << " " << options.size_bytes;
    EXPECT_THAT(Backing::create(no_folder).error().message(), HasSubstr("make it"));
    EXPECT_THAT(place.folder.entries(), IsEmpty());
}

TEST(Backing, LargerThanTheHostIsRefusedAndNoNameIsLeft) {
    for (const BackingKind kind : kinds) {
        const Place place;
        // Of whole pages, and within what the file systems of the usual machines take for a size.
        const auto backing = Backing::create(place.options(kind, std::uint64_t{1} << 43));
        ASSERT_FALSE(backing) << to_string(kind);
        EXPECT_EQ(backing.error().code(), Errc::exhausted) << backing.error().message();
        EXPECT_THAT(place.folder.entries(), IsEmpty());
        EXPECT_EQ(::shm_open(shm_name().c_str(), O_RDWR, 0), -1);
    }
}

TEST(Backing, WhatIsPromisedToOneIsNotThereForAnother) {
    // More than a half, and far from all: alone there is room for it.
    const std::uint64_t most = *available_memory_bytes() / 10 * 7 / 4096 * 4096;
    const Place place;
    std::optional<Backing> first{std::move(Backing::create(place.options(BackingKind::memfd, most)).value())};
    EXPECT_EQ(promised_bytes(0), most);
    const auto second = Backing::create(place.options(BackingKind::memfd, most));
    ASSERT_FALSE(second) << "none of the first one's pages is taken";
    EXPECT_EQ(second.error().code(), Errc::exhausted);
    EXPECT_THAT(second.error().message(), HasSubstr("promised to others"));
    first.reset();
    EXPECT_EQ(promised_bytes(0), 0U);
    EXPECT_TRUE(Backing::create(place.options(BackingKind::memfd, most)));
}

TEST(Backing, APromiseShrinksWithEachStepAndIsTakenOverWithTheMemory) {
    const Place place;
    Backing backing = std::move(Backing::create(place.options(BackingKind::memfd)).value());
    ASSERT_FALSE(*backing.allocate_step());
    EXPECT_EQ(promised_bytes(0), size - backing_chunk_bytes);
    backing.begin_clear();
    ASSERT_FALSE(*backing.allocate_step());
    EXPECT_EQ(promised_bytes(0), size - backing_chunk_bytes);
    {
        const auto next = Backing::adopt(std::move(backing.memory().duplicate().value()),
                                         place.options(BackingKind::memfd));
        ASSERT_TRUE(next);
        EXPECT_EQ(promised_bytes(0), 2 * (size - backing_chunk_bytes));
    }
    ASSERT_TRUE(*backing.allocate_step());
    EXPECT_EQ(promised_bytes(0), 0U);
    backing.begin_clear();
    EXPECT_EQ(promised_bytes(0), 0U) << "its pages are there";
    const Backing file = std::move(Backing::create(place.options(BackingKind::file)).value());
    EXPECT_EQ(promised_bytes(0), file_system_facts(file.memory())->is_memory ? size : 0U);
}

TEST(Backing, WhoseHugePagesAreNotThereSaysSo) {
    constexpr std::uint64_t huge = 2 << 20;
    BackingOptions options{.kind = BackingKind::memfd, .name = "huge", .size_bytes = 4 * huge};
    options.huge_page_bytes = huge;
    auto backing = Backing::create(options);
    if (!backing && backing.error().os_error() == ENODEV)
        GTEST_SKIP() << "the kernel has no huge pages of 2 MiB: " << backing.error().message();
    if (!backing) {
        EXPECT_EQ(backing.error().code(), Errc::exhausted) << backing.error().message();
        EXPECT_THAT(backing.error().message(), HasSubstr("huge pages of 2M"));
        return;
    }
    const auto allocated = allocate_all(*backing);
    if (!allocated) {
        EXPECT_EQ(allocated.error().code(), Errc::exhausted) << allocated.error().message();
        EXPECT_FALSE(backing->is_complete());
        return;
    }
    // Here they are there.
    EXPECT_EQ(file_system_facts(backing->memory())->page_bytes, huge);
    BackingOptions usual = options;
    usual.huge_page_bytes = 0;
    EXPECT_FALSE(Backing::adopt(std::move(backing->memory().duplicate().value()), usual));
    EXPECT_TRUE(Backing::adopt(std::move(backing->memory().duplicate().value()), options));
}

TEST(Backing, NameIsRemovedWhileItLeadsToThisMemory) {
    const Place place;
    const Backing backing = whole_backing(place.options(BackingKind::shm));
    backing.remove_name();
    EXPECT_EQ(::shm_open(shm_name().c_str(), O_RDWR, 0), -1);

    const Backing another = whole_backing(place.options(BackingKind::shm));
    backing.remove_name();
    EXPECT_TRUE(Fd{::shm_open(shm_name().c_str(), O_RDWR, 0)}.is_open());
    another.remove_name();
    EXPECT_EQ(::shm_open(shm_name().c_str(), O_RDWR, 0), -1);
}

TEST(Backing, OfAFileStaysWhenItsNameIsToBeRemoved) {
    const Place place;
    whole_backing(place.options(BackingKind::file)).remove_name();
    EXPECT_TRUE(std::filesystem::exists(place.folder.path_of("memory")));
}

TEST(Backing, GoesOnInANextInstance) {
    for (const BackingKind kind : kinds) {
        const Place place;
        Fd kept;
        {
            const Backing backing = whole_backing(place.options(kind));
            put_byte(backing, 5, 'k');
            kept = std::move(backing.memory().duplicate().value());
        }
        auto next = Backing::adopt(std::move(kept), place.options(kind));
        ASSERT_TRUE(next) << next.error().message();
        EXPECT_TRUE(next->has_kept_bytes());
        ASSERT_TRUE(allocate_all(*next));
        EXPECT_EQ(byte_at(*next, 5), "k");
        next->begin_clear();
        ASSERT_TRUE(allocate_all(*next));
        EXPECT_EQ(byte_at(*next, 5), zero);
    }
}

TEST(Backing, OfAnotherSizeOrKindIsNotAdopted) {
    const Place place;
    const auto copy = [](const Backing& backing) { return std::move(backing.memory().duplicate().value()); };
    const Backing memfd = whole_backing(place.options(BackingKind::memfd));
    const Backing file = whole_backing(place.options(BackingKind::file));
    EXPECT_FALSE(Backing::adopt(copy(memfd), place.options(BackingKind::memfd, size + 4096)));
    EXPECT_FALSE(Backing::adopt(copy(memfd), place.options(BackingKind::file)));
    EXPECT_FALSE(Backing::adopt(copy(memfd), place.options(BackingKind::shm)));
    EXPECT_FALSE(Backing::adopt(copy(file), place.options(BackingKind::memfd)));
    EXPECT_FALSE(Backing::adopt(std::move(memfd.read_only().value()), place.options(BackingKind::memfd)));
    EXPECT_FALSE(Backing::adopt(Fd{}, place.options(BackingKind::memfd)));
    int ends[2]{};
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const Fd other{ends[1]};
    EXPECT_FALSE(Backing::adopt(Fd{ends[0]}, place.options(BackingKind::memfd)));
    EXPECT_TRUE(Backing::adopt(copy(memfd), place.options(BackingKind::memfd)));
}

TEST(Backing, WhateverFailsNothingIsLeft) {
    for (const BackingKind kind : kinds) {
        const Place place;
        const std::uint64_t count = for_each_fault(
            [&]() -> Result<Backing> {
                Backing backing = GM_TRY(Backing::create(place.options(kind)));
                GM_TRY(allocate_all(backing));
                GM_TRY(backing.read_only());
                backing.begin_clear();
                GM_TRY(allocate_all(backing));
                return backing;
            },
            [&] {
                // What was made and then failed in a later step is there: each round begins without it.
                ::shm_unlink(shm_name().c_str());
                ::unlink(place.folder.path_of("memory").c_str());
            });
        EXPECT_GE(count, 10U) << to_string(kind);
    }
}

TEST(Backing, WhateverFailsWhileItIsTakenOverNothingIsLeft) {
    for (const BackingKind kind : kinds) {
        const Place place;
        const Backing backing = whole_backing(place.options(kind));
        // A file is known by having no seals: that the kernel says so is no failure of it.
        const auto faults = kind == BackingKind::memfd ? guestmem::testing::FaultsAre::errors
                                                       : guestmem::testing::FaultsAre::survivable;
        const std::uint64_t count = for_each_fault(
            {.faults = faults},
            [&]() -> Result<Backing> {
                Fd memory = GM_TRY(backing.memory().duplicate());
                return Backing::adopt(std::move(memory), place.options(kind));
            },
            [] {});
        EXPECT_GE(count, 6U) << to_string(kind);
    }
}

TEST(Backing, CreateThatFailsLeavesNoName) {
    for (const BackingKind kind : {BackingKind::file, BackingKind::shm}) {
        const Place place;
        const std::uint64_t count = for_each_fault(
            [&]() -> Result<void> {
                const Backing backing = GM_TRY(Backing::create(place.options(kind)));
                ::unlink(place.folder.path_of("memory").c_str());
                backing.remove_name();
                return {};
            },
            [&] {
                EXPECT_THAT(place.folder.entries(), IsEmpty());
                EXPECT_EQ(::shm_open(shm_name().c_str(), O_RDWR, 0), -1);
            });
        EXPECT_GE(count, 8U) << to_string(kind);
    }
}

TEST(Backing, ThatRunsOutOfRoomGoesOnWhenThereIsRoom) {
    const Place place;
    Backing backing = std::move(Backing::create(place.options(BackingKind::memfd)).value());
    ASSERT_FALSE(*backing.allocate_step());
    put_byte(backing, 0, 'a');
    for (const int os_error : {ENOSPC, ENOMEM}) {
        FaultInjector injector{0, {.only = SysCall::fallocate, .os_error = os_error}};
        const auto step = backing.allocate_step();
        ASSERT_FALSE(step);
        EXPECT_EQ(step.error().code(), Errc::exhausted);
        EXPECT_THAT(step.error().message(), HasSubstr("memory 'test'"));
        EXPECT_FALSE(backing.is_complete());
    }
    EXPECT_TRUE(*backing.allocate_step());
    EXPECT_EQ(byte_at(backing, 0), "a");
}

// Who has a read-only descriptor, as another user.

constexpr uid_t another_user = 65534;

/// A way to get at the bytes; true: it worked.
struct Attempt {
    const char* what;
    std::function<bool(int)> works;
};

bool can_map_writable(int fd) {
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) ::munmap(at, 4096);
    return at != MAP_FAILED;
}

bool can_make_writable(int fd) {
    void* at = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
    return at != MAP_FAILED && ::mprotect(at, 4096, PROT_READ | PROT_WRITE) == 0;
}

bool can_reopen(int fd, int flags) {
    const std::string path = fmt::format("/proc/self/fd/{}", fd);
    const Fd again{::open(path.c_str(), flags | O_CLOEXEC)};
    return again.is_open();
}

/// Writes through the kernel's window into our own memory, which passes over a page's protection where it may.
bool can_write_by_mem(int fd) {
    void* at = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
    const Fd window{::open("/proc/self/mem", O_RDWR | O_CLOEXEC)};
    return at != MAP_FAILED && window.is_open() &&
           ::pwrite(window.view().number(), "x", 1,
                    static_cast<off_t>(reinterpret_cast<std::uintptr_t>(at))) == 1;
}

bool can_map_a_duplicate(int fd) {
    const Fd again{::dup(fd)};
    return ::fcntl(again.view().number(), F_SETFL, O_RDWR) == 0 && can_map_writable(again.view().number());
}

const std::vector<Attempt>& attempts() {
    static const std::vector<Attempt> all{
        {"mmap writable", can_map_writable},
        {"mprotect", can_make_writable},
        {"reopen O_RDWR", [](int fd) { return can_reopen(fd, O_RDWR); }},
        {"reopen O_WRONLY", [](int fd) { return can_reopen(fd, O_WRONLY); }},
        {"reopen O_TRUNC", [](int fd) { return can_reopen(fd, O_RDONLY | O_TRUNC); }},
        {"/proc/self/mem", can_write_by_mem},
        {"dup and F_SETFL", can_map_a_duplicate},
        {"pwrite", [](int fd) { return ::pwrite(fd, "x", 1, 0) == 1; }},
        {"ftruncate", [](int fd) { return ::ftruncate(fd, 0) == 0; }},
        {"fallocate",
         [](int fd) { return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0; }},
        {"F_ADD_SEALS", [](int fd) { return ::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0; }},
        {"fchmod", [](int fd) { return ::fchmod(fd, 0666) == 0; }},
        {"fchown", [](int fd) { return ::fchown(fd, ::getuid(), ::getgid()) == 0; }}};
    return all;
}

/// Runs in a child; true when the child has ended with 0. It says on standard error what went otherwise.
bool holds_in_child(const std::function<bool()>& check) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(check() ? 0 : 1);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool become_another_user() {
    // Raw calls: only this thread is there. A process that has changed its user cannot look at itself otherwise.
    return ::setgid(another_user) == 0 && ::setuid(another_user) == 0 && ::prctl(PR_SET_DUMPABLE, 1) == 0;
}

bool all_fail(int fd, std::string_view where) {
    bool is_so = true;
    for (const Attempt& attempt : attempts()) {
        if (!attempt.works(fd)) continue;
        is_so = false;
        fmt::print(stderr, "{} worked {}\n", attempt.what, where);
    }
    // It does show the bytes.
    char byte = 0;
    return is_so && ::pread(fd, &byte, 1, 0) == 1 && byte == 's';
}

/// Gives it to a process that has nothing else of ours.
bool all_fail_after_passing_on(const Fd& reader) {
    auto ends = UnixStream::pair();
    if (!ends) return false;
    const auto& [here, there] = *ends;
    const std::array one{std::byte{1}};
    const std::array fds{reader.view()};
    if (!here.send(one, fds)) return false;
    return holds_in_child([&] {
        std::array<std::byte, 1> buffer{};
        const auto received = there.receive(buffer);
        return received && *received && (*received)->fds.size() == 1 &&
               all_fail((*received)->fds[0].view().number(), "after it was passed on");
    });
}

TEST(ReadOnlyBacking, CannotBeWrittenByAnotherUserWhateverItTries) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    for (const BackingKind kind : kinds) {
        const Place place;
        const Backing backing = whole_backing(place.options(kind));
        put_byte(backing, 0, 's');
        const Fd reader = std::move(backing.read_only().value());
        EXPECT_TRUE(holds_in_child([&] {
            return become_another_user() && all_fail(reader.view().number(), "as another user") &&
                   all_fail_after_passing_on(reader) && ::shm_open(shm_name().c_str(), O_RDWR, 0) == -1;
        })) << to_string(kind);
        EXPECT_EQ(byte_at(backing, 0), "s");
    }
}

TEST(ReadOnlyBacking, CanBeReopenedByItsOwnersUser) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    EXPECT_TRUE(holds_in_child([] {
        if (!become_another_user()) return false;
        const auto backing = Backing::create({.kind = BackingKind::memfd, .name = "x", .size_bytes = 4096});
        if (!backing) return false;
        const auto reader = backing->read_only();
        return reader && !can_map_writable(reader->view().number()) &&
               can_reopen(reader->view().number(), O_RDWR);
    }));
}

bool set_dac_override(bool has) {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    const bool had = (data[0].effective & (1U << CAP_DAC_OVERRIDE)) != 0;
    if (!has) data[0].effective &= ~((1U << CAP_DAC_OVERRIDE) | (1U << CAP_DAC_READ_SEARCH));
    return (had || !has) && ::syscall(SYS_capset, &header, data) == 0;
}

TEST(ReadOnlyBacking, CanBeReopenedByWhoHasTheCapabilityAndByNoOtherRoot) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root has capabilities";
    if (!set_dac_override(true)) GTEST_SKIP() << "this root has no CAP_DAC_OVERRIDE";
    const Place place;
    const Backing backing = whole_backing(place.options(BackingKind::memfd));
    ASSERT_EQ(::fchown(backing.memory().view().number(), another_user, another_user), 0);
    const Fd reader = std::move(backing.read_only().value());
    const int fd = reader.view().number();
    EXPECT_TRUE(holds_in_child([&] { return can_reopen(fd, O_RDWR); }));
    EXPECT_TRUE(holds_in_child([&] { return set_dac_override(false) && !can_reopen(fd, O_RDWR); }));
}

}  // namespace
}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/userfaultfd.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

using testing::FaultLoopOptions;
using testing::FaultsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;

constexpr std::size_t page = page_size_bytes;
constexpr int patience_ms = 10'000;

/// Eight pages that are watched. The owner goes before the memory.
class UserFaults : public ::testing::Test {
protected:
    void SetUp() override {
        ASSERT_TRUE(install_fault_guard());
        auto made = UserFaultFd::create({.user_faults_only = true});
        if (!made) GTEST_SKIP() << "SKIPPED: " << made.error().message();
        faults = std::move(*made);
        ASSERT_TRUE(faults.watch_missing(bytes()));
    }
    [[nodiscard]] std::span<std::byte> bytes() const { return memory.bytes(); }
    [[nodiscard]] std::span<std::byte> pages(std::size_t first, std::size_t count) const {
        return bytes().subspan(first * page, count * page);
    }
    /// The next event, waited for.
    [[nodiscard]] std::optional<FaultEvent> next() const {
        if (!poll_readable(faults.view(), patience_ms).value()) return std::nullopt;
        const std::vector<FaultEvent> events = faults.read_events().value();
        EXPECT_EQ(events.size(), 1U);
        if (events.empty()) return std::nullopt;
        return events.front();
    }
    static std::vector<std::byte> filled(std::size_t count, int value) {
        return std::vector<std::byte>(count * page, std::byte(value));
    }

    Mapping memory = Mapping::create_anonymous({.size_bytes = 8 * page}).value();
    UserFaultFd faults;
};

TEST_F(UserFaults, AreReadWithTheirPageAndAnsweredByACopy) {
    std::atomic<int> seen{-1};
    std::thread reader{[&] { seen = static_cast<int>(bytes()[3 * page + 17]); }};
    const auto fault = next();
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->kind, FaultEvent::Kind::page_missing);
    EXPECT_EQ(fault->bytes.data(), bytes().data() + 3 * page);
    EXPECT_EQ(fault->bytes.size(), page);
    EXPECT_FALSE(fault->is_write);
    EXPECT_EQ(seen, -1);

    const PagesGiven given = faults.copy_pages(fault->bytes.data(), filled(1, 5)).value();

    reader.join();
    EXPECT_EQ(given.given_bytes, page);
    EXPECT_EQ(seen, 5);
}

TEST_F(UserFaults, TellWritesFromReads) {
    std::thread writer{[&] { bytes()[0] = std::byte{1}; }};
    const auto fault = next();
    ASSERT_TRUE(fault);
    EXPECT_TRUE(fault->is_write);
    EXPECT_TRUE(faults.zero_pages(fault->bytes));
    writer.join();
    EXPECT_EQ(bytes()[0], std::byte{1});
    EXPECT_EQ(bytes()[1], std::byte{0});
}

TEST_F(UserFaults, AreNotWaitedForByReading) { EXPECT_TRUE(faults.read_events().value().empty()); }

TEST_F(UserFaults, CopiesPassOverPagesThatAreThere) {
    ASSERT_EQ(faults.copy_pages(pages(2, 1).data(), filled(1, 9)).value().given_bytes, page);
    ASSERT_EQ(faults.zero_pages(pages(7, 1)).value().given_bytes, page);

    const PagesGiven given = faults.copy_pages(bytes().data(), filled(8, 5)).value();

    EXPECT_EQ(given.done_bytes, 8 * page);
    EXPECT_EQ(given.given_bytes, 6 * page);
    EXPECT_FALSE(given.is_interrupted);
    for (std::size_t i = 0; i < 8; ++i)
        EXPECT_EQ(bytes()[i * page + 1], std::byte(i == 2 ? 9 : i == 7 ? 0 : 5)) << i;
    const PagesGiven none = faults.zero_pages(bytes()).value();
    EXPECT_EQ(none.done_bytes, 8 * page);
    EXPECT_EQ(none.given_bytes, 0U);
}

TEST_F(UserFaults, WhatWasGivenBeforeAnErrorIsKnown) {
    ASSERT_TRUE(faults.zero_pages(pages(2, 1)));
    const FaultInjector injector{1, {.only = SysCall::ioctl, .os_error = EIO, .repeat = 100}};
    const auto given = faults.copy_pages(bytes().data(), filled(8, 5));
    ASSERT_TRUE(given) << given.error().message();
    EXPECT_EQ(given->done_bytes, 2 * page);
    EXPECT_EQ(given->given_bytes, 2 * page);
    EXPECT_FALSE(given->is_interrupted);
    const auto rest = faults.copy_pages(pages(2, 6).data(), filled(6, 5));
    ASSERT_FALSE(rest);
    EXPECT_EQ(rest.error().os_error(), EIO);
}

TEST_F(UserFaults, NothingIsGivenUntilARemovalHasBeenRead) {
    ASSERT_TRUE(faults.copy_pages(bytes().data(), filled(4, 5)));
    std::atomic<bool> is_gone{false};
    std::thread remover{[&] {
        EXPECT_TRUE(discard_pages(pages(1, 2)));
        is_gone = true;
    }};
    ASSERT_TRUE(poll_readable(faults.view(), patience_ms).value());
    const PagesGiven refused = faults.copy_pages(pages(4, 1).data(), filled(1, 6)).value();
    EXPECT_TRUE(refused.is_interrupted);
    EXPECT_EQ(refused.done_bytes, 0U);
    EXPECT_FALSE(is_gone);

    const auto removal = next();

    ASSERT_TRUE(removal);
    EXPECT_EQ(removal->kind, FaultEvent::Kind::pages_removed);
    EXPECT_EQ(removal->bytes.data(), bytes().data() + page);
    EXPECT_EQ(removal->bytes.size(), 2 * page);
    remover.join();
    EXPECT_EQ(faults.copy_pages(pages(4, 1).data(), filled(1, 6)).value().given_bytes, page);
    EXPECT_EQ(faults.zero_pages(pages(0, 4)).value().given_bytes, 2 * page);
}

TEST_F(UserFaults, UnmappingIsARemoval) {
    std::thread remover{[&] { EXPECT_EQ(::munmap(pages(6, 2).data(), 2 * page), 0); }};
    const auto removal = next();
    ASSERT_TRUE(removal);
    EXPECT_EQ(removal->kind, FaultEvent::Kind::pages_removed);
    EXPECT_EQ(removal->bytes.data(), bytes().data() + 6 * page);
    remover.join();
    EXPECT_FALSE(faults.copy_pages(pages(6, 1).data(), filled(1, 1)));
}

TEST_F(UserFaults, APoisonedPageIsAFaultOfAGuardedAccess) {
    if (!faults.can_poison()) GTEST_SKIP() << "SKIPPED: this kernel cannot poison pages";
    ASSERT_TRUE(faults.copy_pages(bytes().data(), filled(1, 5)));
    const PagesGiven given = faults.poison_pages(pages(0, 2)).value();
    EXPECT_EQ(given.given_bytes, page) << "a page that is there is none that can be poisoned";
    std::uint8_t value = 0;
    EXPECT_TRUE(try_load(bytes().data(), value));
    EXPECT_EQ(value, 5);
    EXPECT_FALSE(try_load(bytes().data() + page, value));
}

TEST_F(UserFaults, WhoWaitsIsWokenToFindThatAPageCannotBeHad) {
    std::atomic<bool> is_good{true};
    std::thread reader{[&] {
        std::uint8_t value = 0;
        is_good = try_load(bytes().data(), value);
    }};
    const auto fault = next();
    ASSERT_TRUE(fault);
    ASSERT_TRUE(make_unreachable(fault->bytes));
    ASSERT_TRUE(faults.wake(fault->bytes));
    reader.join();
    EXPECT_FALSE(is_good);
}

TEST_F(UserFaults, PagesThatAreWatchedNoMoreAreZeros) {
    std::atomic<int> seen{-1};
    std::thread reader{[&] { seen = static_cast<int>(bytes()[0]); }};
    ASSERT_TRUE(next());
    ASSERT_TRUE(faults.unwatch(pages(0, 4)));
    reader.join();
    EXPECT_EQ(seen, 0);
    EXPECT_EQ(bytes()[3 * page], std::byte{0});
    EXPECT_FALSE(faults.copy_pages(pages(2, 1).data(), filled(1, 1)));
}

TEST_F(UserFaults, EndWithTheirOwner) {
    std::atomic<int> seen{-1};
    std::thread reader{[&] { seen = static_cast<int>(bytes()[0]); }};
    ASSERT_TRUE(next());
    faults = UserFaultFd{};
    reader.join();
    EXPECT_EQ(seen, 0);
}

TEST_F(UserFaults, PartsOfPagesAreRefused) {
    EXPECT_FALSE(faults.copy_pages(bytes().data(), std::span<const std::byte>{filled(1, 1)}.first(5)));
    EXPECT_FALSE(faults.copy_pages(bytes().data() + 1, filled(1, 1)));
    EXPECT_FALSE(faults.zero_pages(bytes().first(1)));
    EXPECT_FALSE(faults.watch_missing(bytes().first(1)));
    EXPECT_TRUE(faults.watch_missing({}));
    EXPECT_TRUE(faults.unwatch({}));
    EXPECT_EQ(faults.zero_pages({}).value().done_bytes, 0U);
}

TEST_F(UserFaults, EachCallThatFailsIsAnError) {
    const std::vector<std::byte> content = filled(1, 1);
    EXPECT_EQ(for_each_fault([&] { return faults.copy_pages(pages(0, 1).data(), content); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return faults.zero_pages(pages(1, 1)); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return faults.wake(pages(1, 1)); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return faults.read_events(); }), 1U);
    if (faults.can_poison()) {
        EXPECT_EQ(for_each_fault([&] { return faults.poison_pages(pages(2, 1)); }), 1U);
    }
    EXPECT_EQ(for_each_fault([&] { return faults.unwatch(pages(4, 4)); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return faults.watch_missing(pages(4, 4)); }), 1U);
}

TEST_F(UserFaults, AnInterruptedCopyIsAValue) {
    const FaultInjector injector{0, {.only = SysCall::ioctl, .os_error = EAGAIN}};
    const PagesGiven given = faults.copy_pages(bytes().data(), filled(1, 1)).value();
    EXPECT_TRUE(given.is_interrupted);
    EXPECT_EQ(given.given_bytes, 0U);
}

TEST(UserFaultFd, WhateverFailsNothingIsLeft) {
    if (const auto made = UserFaultFd::create({.user_faults_only = true}); !made)
        GTEST_SKIP() << "SKIPPED: " << made.error().message();
    EXPECT_EQ(for_each_fault([] { return UserFaultFd::create({.user_faults_only = true}); }), 2U);
}

TEST(UserFaultFd, ComesFromTheDeviceWhereTheCallIsRefused) {
    if (::access("/dev/userfaultfd", R_OK | W_OK) != 0) GTEST_SKIP() << "SKIPPED: no /dev/userfaultfd";
    for_each_fault(
        FaultLoopOptions{.faults = FaultsAre::survivable, .injector = {.os_error = EPERM}},
        [] { return UserFaultFd::create({}); }, [] {});
    const FaultInjector injector{0, {.only = SysCall::userfaultfd, .os_error = EPERM}};
    const auto made = UserFaultFd::create({});
    EXPECT_TRUE(made) << made.error().message();
    EXPECT_TRUE(injector.has_fired());
}

TEST(UserFaultFd, OfAnOrdinaryUserSaysWhatIsMissing) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can become another user";
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        constexpr long nobody = 65534;
        if (::syscall(SYS_setresuid, nobody, nobody, nobody) != 0) ::_exit(2);
        const auto refused = UserFaultFd::create({});
        const bool is_allowed = [] {
            const int file = ::open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);
            char first = '0';
            return file >= 0 && ::read(file, &first, 1) == 1 && first == '1';
        }();
        if (refused) ::_exit(is_allowed ? 0 : 3);
        const std::string text = refused.error().message();
        const bool is_clear = refused.error().code() == Errc::permission_denied &&
                              text.contains("CAP_SYS_PTRACE") && text.contains("/dev/userfaultfd") &&
                              text.contains("vm.unprivileged_userfaultfd");
        ::_exit(is_clear && UserFaultFd::create({.user_faults_only = true}) ? 0 : 4);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(UserFaultFd, OfAnOldKernelCannotPoison) {
    const auto refused = UserFaultFd{}.poison_pages({});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::unsupported);
    EXPECT_THAT(refused.error().message(), HasSubstr("Linux 6.6"));
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/filter_program.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/child_end.hpp"

namespace guestmem {
namespace {

using testing::end_of_child;
using testing::ends_by_filter;
using testing::ends_well;
using ::testing::HasSubstr;

#define SKIP_WITHOUT_FILTER() \
    if (const auto obstacle = find_filter_obstacle()) GTEST_SKIP() << "no filter in this build: " << *obstacle

/// Enough to end.
constexpr std::string_view little = "exit_group getpid getppid";

bool install(const FilterPlan& plan, FilterScope scope = FilterScope::thread) {
    const auto program = FilterProgram::create(plan);
    return program && program->install(scope);
}

TEST(FilterProgram, AllowsWhatItsPlanNamesAndEndsTheRest) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] { return install({.calls = {little}}) && ::getppid() != 0; })));
    EXPECT_TRUE(ends_by_filter(end_of_child([] { return install({.calls = {little}}) && ::getuid() != 7; })));
}

TEST(FilterProgram, LooksAtTheArgumentThatARuleNames) {
    SKIP_WITHOUT_FILTER();
    const FilterPlan plan{
        .calls = {little},
        .rules = {{.call = "prctl", .argument = 0, .mask = whole_int, .value = PR_GET_DUMPABLE},
                  {.call = "prctl", .argument = 0, .mask = whole_int, .value = PR_GET_KEEPCAPS}}};
    EXPECT_TRUE(ends_well(end_of_child([&] {
        return install(plan) && ::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) >= 0 &&
               ::prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0) >= 0;
    })));
    EXPECT_TRUE(ends_by_filter(
        end_of_child([&] { return install(plan) && ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 7; })));
}

TEST(FilterProgram, IsTheSameWhicheverCallIsLookedAtFirst) {
    SKIP_WITHOUT_FILTER();
    const FilterPlan plan{.calls = {little}, .first = "getppid"};
    EXPECT_TRUE(ends_well(end_of_child([&] { return install(plan) && ::getppid() != 0; })));
    EXPECT_TRUE(ends_by_filter(end_of_child([&] { return install(plan) && ::getuid() != 7; })));
}

TEST(FilterProgram, SaysThatClone3DoesNotExist) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        return install({.calls = {little}}) && ::syscall(SYS_clone3, nullptr, 0) == -1 && errno == ENOSYS;
    })));
}

TEST(FilterProgram, OfOneThreadLeavesTheOthersAlone) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        bool is_refused = false;
        bool is_installed = false;
        const auto program =
            FilterProgram::create({.calls = {"exit exit_group futex madvise munmap rt_sigprocmask write"},
                                   .answer = FilterAnswer::refuse});
        std::thread other{[&] {
            is_installed = program && program->install(FilterScope::thread);
            is_refused = ::syscall(SYS_getuid) == -1 && errno == EPERM;
        }};
        other.join();
        return is_installed && is_refused && ::syscall(SYS_getuid) >= 0;
    })));
}

TEST(FilterProgram, ForAllThreadsIsAnErrorWhenOneHasItsOwn) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        const auto installed = EventFd::create();
        const auto leave = EventFd::create();
        const auto program = FilterProgram::create({.answer = FilterAnswer::log});
        std::thread other{[&] {
            const bool is_there = program->install(FilterScope::thread).has_value();
            if (is_there) static_cast<void>(installed->ring());
            static_cast<void>(leave->wait(-1));
        }};
        const bool is_there = installed->wait(10'000).has_value();
        const auto all = program->install(FilterScope::process);
        static_cast<void>(leave->ring());
        other.join();
        return is_there && !all && all.error().code() == Errc::unavailable;
    })));
}

/// Of the kernel's own probes in programs: they pass filters by, and end who makes them himself (SIGILL).
bool is_of_probes(long number) {
#ifdef __x86_64__
    constexpr long uretprobe = 335;
    constexpr long uprobe = 336;
    return number == uretprobe || number == uprobe;
#else
    return number < 0;
#endif
}

TEST(FilterProgram, AllowsNoCallBesideThoseOfItsPlan) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        // Far apart in the table of numbers, next to each other, and at its ends.
        const std::set<long> allowed{SYS_read,   SYS_write,  SYS_close, SYS_exit_group, SYS_getpid,
                                     SYS_getuid, SYS_getgid, SYS_brk,   SYS_close_range};
        if (!install({.calls = {"read write close exit_group getpid getuid getgid brk close_range"},
                      .answer = FilterAnswer::refuse}))
            return false;
        // No call has a number as high, which a tree has to say, too.
        constexpr long beyond_all = 700;
        for (long number = 0; number < beyond_all; ++number) {
            if (allowed.contains(number) || number == SYS_clone3 || is_of_probes(number)) continue;
            if (::syscall(number, -1, 0, 0, 0, 0, 0) != -1 || errno != EPERM) return false;
        }
        return ::syscall(SYS_getuid) >= 0 && ::syscall(SYS_getgid) >= 0 && ::syscall(SYS_getpid) > 0;
    })));
}

TEST(FilterProgram, LooksAtAllBitsOfAMaskAndAtNoOther) {
    SKIP_WITHOUT_FILTER();
    constexpr std::uint64_t high_bit = std::uint64_t{1} << 40;
    EXPECT_TRUE(ends_well(end_of_child([&] {
        if (!install(
                {.calls = {little},
                 .rules = {{.call = "getuid", .argument = 1, .mask = high_bit | 6, .value = high_bit | 2},
                           {.call = "getuid", .argument = 2, .mask = whole_int, .value = 0xffff'ffff}},
                 .answer = FilterAnswer::refuse}))
            return false;
        const auto is_allowed = [](std::uint64_t second, std::uint64_t third) {
            return ::syscall(SYS_getuid, 0, second, third) >= 0;
        };
        return is_allowed(high_bit | 2, 0) && is_allowed(high_bit | 0x102'0000'00fb, 0) &&
               !is_allowed(2, 0) && !is_allowed(high_bit | 6, 0) && !is_allowed(high_bit, 0) &&
               is_allowed(0, 0xffff'ffff) && is_allowed(0, ~std::uint64_t{0}) && !is_allowed(0, 0xffff'fffe);
    })));
}

TEST(FilterProgram, HoldsForCallsWhosePlaceIsFarInALongProgram) {
    SKIP_WITHOUT_FILTER();
    FilterPlan plan{.calls = {little}, .answer = FilterAnswer::refuse};
    // More than the 255 instructions that one jump reaches.
    for (std::uint64_t value = 1; value <= 300; ++value)
        plan.rules.push_back({.call = "getuid", .mask = whole_int, .value = value});
    for (const std::string_view first : {std::string_view{}, std::string_view{"getuid"}}) {
        plan.first = first;
        EXPECT_TRUE(ends_well(end_of_child([&] {
            return install(plan) && ::syscall(SYS_getuid, 1) >= 0 && ::syscall(SYS_getuid, 300) >= 0 &&
                   ::syscall(SYS_getuid, 301) == -1 && ::syscall(SYS_getppid) >= 0 &&
                   ::syscall(SYS_getgid) == -1;
        }))) << first;
    }
}

TEST(FilterProgram, OfMoreThanTheKernelTakesIsAnError) {
    SKIP_WITHOUT_FILTER();
    FilterPlan plan;
    for (std::uint64_t value = 0; value < 2000; ++value)
        plan.rules.push_back({.call = "getuid", .mask = whole_int, .value = value});
    const auto program = FilterProgram::create(plan);
    ASSERT_FALSE(program);
    EXPECT_EQ(program.error().code(), Errc::out_of_range);
}

TEST(FilterProgram, OfACallThatIsUnknownIsAnErrorThatNamesIt) {
    SKIP_WITHOUT_FILTER();
    for (const FilterPlan& plan : {FilterPlan{.calls = {"read raed"}},
                                   FilterPlan{.rules = {{.call = "raed"}}}, FilterPlan{.first = "raed"}}) {
        const auto program = FilterProgram::create(plan);
        ASSERT_FALSE(program);
        EXPECT_THAT(program.error().message(), HasSubstr("'raed'"));
    }
}

TEST(FilterProgram, WhateverFailsIsAnError) {
    SKIP_WITHOUT_FILTER();
    const auto program = FilterProgram::create({.calls = {little}});
    ASSERT_TRUE(program);
    // In a child: no_new_privs is set first, and stays.
    for (const auto& [call, what] : {std::pair{SysCall::seccomp, "hand it to the kernel"},
                                     std::pair{SysCall::prctl, "set no_new_privs"}}) {
        EXPECT_TRUE(ends_well(end_of_child([&] {
            FaultInjector injector{0, {.only = call}};
            const auto installed = program->install(FilterScope::thread);
            return !installed && installed.error().message().contains(what) && ::getuid() == ::geteuid();
        }))) << what;
    }
}

TEST(FilterProgram, OfAnInstrumentedBuildIsAnErrorThatSaysWhy) {
    const auto obstacle = find_filter_obstacle();
    const auto program = FilterProgram::create({.calls = {little}});
    ASSERT_EQ(program.has_value(), !obstacle.has_value());
    if (!obstacle) return;
    EXPECT_EQ(program.error().code(), Errc::unsupported);
    EXPECT_THAT(program.error().message(), HasSubstr(*obstacle));
}

}  // namespace
}  // namespace guestmem

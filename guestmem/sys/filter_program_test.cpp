// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/filter_program.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/child_end.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

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

TEST(FilterProgram, WhateverFailsIsAnError) {
    SKIP_WITHOUT_FILTER();
    EXPECT_GE(testing::for_each_fault([] { return FilterProgram::create({.calls = {little}}); }), 3U);
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

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/membarrier.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

TEST(Membarrier, WorksAfterItWasPreparedAnyNumberOfTimes) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    EXPECT_TRUE(prepare_membarrier());
    EXPECT_TRUE(membarrier());
    EXPECT_TRUE(membarrier());
}

TEST(Membarrier, WorksWhileAnotherThreadRuns) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    std::atomic<bool> is_over{false};
    std::thread other{[&] {
        while (!is_over.load(std::memory_order_relaxed)) {
        }
    }};
    for (int turn = 0; turn < 100; ++turn) EXPECT_TRUE(membarrier());
    is_over = true;
    other.join();
}

int exit_status_of_an_unprepared_barrier() {
    const auto done = membarrier();
    if (done) return 1;
    // ENOSYS where there is none at all.
    return done.error().os_error() == EPERM || done.error().os_error() == ENOSYS ? 7 : 2;
}

TEST(MembarrierDeathTest, UnpreparedIsAnErrorAndNotSilence) {
    // "threadsafe" runs this test anew, in a process that nobody has prepared.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the child has one thread
    EXPECT_EXIT(std::exit(exit_status_of_an_unprepared_barrier()), ::testing::ExitedWithCode(7), "");
}

TEST(Membarrier, APreparationThatFailsIsToldEachTimeAnew) {
    for (const int os_error : {ENOSYS, EPERM, EINVAL}) {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = os_error, .repeat = 2}};
        EXPECT_FALSE(prepare_membarrier()) << os_error;
        EXPECT_FALSE(prepare_membarrier()) << os_error;
        EXPECT_EQ(injector.failed_call(), SysCall::membarrier);
    }
    (void)prepare_membarrier();
    FaultInjector injector{0, {.only = SysCall::membarrier}};
    EXPECT_FALSE(prepare_membarrier());
}

TEST(Membarrier, TellsTheKernelsReason) {
    for (const int os_error : {ENOMEM, EPERM, ENOSYS}) {
        const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = os_error}};
        const auto done = membarrier();
        ASSERT_FALSE(done) << os_error;
        EXPECT_EQ(done.error().os_error(), os_error);
        EXPECT_TRUE(done.error().message().starts_with("a memory barrier in all threads of this process"));
    }
}

}  // namespace
}  // namespace guestmem

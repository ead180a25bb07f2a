// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/thread_placement.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <thread>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// In a thread of its own: the test's thread stays as it was.
template <typename Function>
void apart(Function&& function) {
    std::thread thread{function};
    thread.join();
}

std::uint32_t first_allowed_cpu() {
    cpu_set_t set;
    CPU_ZERO(&set);
    EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
    for (std::uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &set)) return cpu;
    return 0;
}

TEST(RunThreadOn, KeepsTheThreadThere) {
    apart([] {
        const std::array<std::uint32_t, 1> cpus{first_allowed_cpu()};
        ASSERT_TRUE(run_thread_on(cpus));
        cpu_set_t set;
        CPU_ZERO(&set);
        ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
        EXPECT_EQ(CPU_COUNT(&set), 1);
        EXPECT_TRUE(CPU_ISSET(cpus[0], &set));
    });
}

TEST(RunThreadOn, CpusThatAreNotThereAreNamed) {
    apart([] {
        const std::array<std::uint32_t, 1> none{8000};
        const auto done = run_thread_on(none);
        ASSERT_FALSE(done);
        EXPECT_NE(done.error().message().find("8000"), std::string::npos) << done.error().message();
        const std::array<std::uint32_t, 1> beyond{9000};
        EXPECT_FALSE(run_thread_on(beyond));
    });
}

TEST(SetThreadPolicy, IsWhatWasAskedForOrAnError) {
    apart([] {
        const auto done = set_thread_policy(ThreadPolicy::round_robin, 5);
        if (!done) {
            EXPECT_EQ(done.error().code(), Errc::permission_denied) << done.error().message();
            EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
            return;
        }
        EXPECT_EQ(::sched_getscheduler(0), SCHED_RR);
        ASSERT_TRUE(set_thread_policy(ThreadPolicy::usual, 0));
        EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
    });
}

TEST(SetThreadPolicy, ACallThatFailsIsAnError) {
    apart([] {
        const FaultInjector injector{0};
        const auto done = set_thread_policy(ThreadPolicy::fifo, 5);
        ASSERT_FALSE(done);
        EXPECT_NE(done.error().message().find("CAP_SYS_NICE"), std::string::npos) << done.error().message();
    });
}

}  // namespace
}  // namespace guestmem

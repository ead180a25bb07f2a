// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/resources.hpp"

/// The fault loop: an attempt is repeated with system call 0, 1, 2... failing, until none is left to fail.
///
/// Contract: `attempt` returns a Result, or anything that is true when it went well. In each round but the last
/// it has to fail (FaultsAre::errors), or may go on without that call (FaultsAre::survivable); in the last, where
/// no call failed, it has to succeed. When what it returned is gone, descriptors and shared mappings are where they
/// were before the round; `after_round` then looks at whatever else the test cares for.
/// Limits: max_fault_rounds; an attempt that never ends to fail is a failed test.
/// Threads: the injector counts the calls of all threads.
/// Example:
///     const std::uint64_t count = for_each_fault([] { return EventFd::create(); });
///     EXPECT_GT(count, 0U);

namespace guestmem::testing {

inline constexpr std::uint64_t max_fault_rounds = 500;

enum class FaultsAre : std::uint8_t { errors, survivable };

struct FaultLoopOptions {
    FaultsAre faults = FaultsAre::errors;
    FaultInjector::Options injector = {};
};

/// The number of system calls that were failed, one in each round.
template <typename Attempt, typename AfterRound>
std::uint64_t for_each_fault(const FaultLoopOptions& options, Attempt&& attempt, AfterRound&& after_round) {
    for (std::uint64_t nth = 0; nth < max_fault_rounds; ++nth) {
        const Resources before = Resources::look();
        bool is_good = false;
        SysCall failed = SysCall::count;
        {
            FaultInjector injector{nth, options.injector};
            auto outcome = attempt();
            failed = injector.failed_call();
            is_good = static_cast<bool>(outcome);
        }
        const bool is_last = failed == SysCall::count;
        const std::string what = is_last ? "no call" : std::string{to_string(failed)};
        SCOPED_TRACE(::testing::Message() << "round " << nth << ", failed: " << what);
        if (is_last) {
            EXPECT_TRUE(is_good);
        } else if (options.faults == FaultsAre::errors) {
            EXPECT_FALSE(is_good);
        }
        EXPECT_EQ(Resources::look(), before);
        after_round();
        if (is_last) return nth;
    }
    ADD_FAILURE() << "after " << max_fault_rounds << " rounds there is still a call to fail";
    return max_fault_rounds;
}

template <typename Attempt>
std::uint64_t for_each_fault(Attempt&& attempt) {
    return for_each_fault(FaultLoopOptions{}, attempt, [] {});
}

template <typename Attempt, typename AfterRound>
std::uint64_t for_each_fault(Attempt&& attempt, AfterRound&& after_round) {
    return for_each_fault(FaultLoopOptions{}, attempt, after_round);
}

}  // namespace guestmem::testing

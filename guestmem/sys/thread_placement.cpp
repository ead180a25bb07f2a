// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/thread_placement.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

constexpr std::uint32_t max_cpus = 8192;

int policy_of(ThreadPolicy policy) {
    switch (policy) {
        case ThreadPolicy::round_robin: return SCHED_RR;
        case ThreadPolicy::fifo: return SCHED_FIFO;
        case ThreadPolicy::usual: break;
    }
    return SCHED_OTHER;
}

}  // namespace

Result<void> run_thread_on(std::span<const std::uint32_t> cpus) {
    const std::size_t set_bytes = CPU_ALLOC_SIZE(max_cpus);
    std::vector<cpu_set_t> set((set_bytes + sizeof(cpu_set_t) - 1) / sizeof(cpu_set_t));
    CPU_ZERO_S(set_bytes, set.data());
    std::string names;
    for (const std::uint32_t cpu : cpus) {
        if (cpu >= max_cpus) {
            return Error{Errc::out_of_range, fmt::format("CPU {}: hosts have at most {}", cpu, max_cpus)};
        }
        CPU_SET_S(cpu, set_bytes, set.data());
        names += fmt::format("{}{}", names.empty() ? "" : ",", cpu);
    }
    const int status =
        checked_call(SysCall::set_scheduler, [&] { return ::sched_setaffinity(0, set_bytes, set.data()); });
    if (status == 0) return {};
    return Error::from_errno(errno, fmt::format("run on CPUs {} of the host", names));
}

Result<void> set_thread_policy(ThreadPolicy policy, std::uint32_t priority) {
    sched_param parameter = {};
    parameter.sched_priority = policy == ThreadPolicy::usual ? 0 : static_cast<int>(priority);
    const int status = checked_call(SysCall::set_scheduler,
                                    [&] { return ::sched_setscheduler(0, policy_of(policy), &parameter); });
    if (status == 0) return {};
    if (errno == EPERM) {
        return Error{Errc::permission_denied, EPERM,
                     fmt::format("a real-time priority of {}: give this program CAP_SYS_NICE, or its user an "
                                 "RLIMIT_RTPRIO",
                                 priority)};
    }
    return Error::from_errno(errno, fmt::format("a priority of {}", priority));
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
// A machine with little memory and no swap: what is more than it has, and what it may not promise.
#include <fmt/format.h>
#include <sys/mman.h>

#include <array>
#include <filesystem>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "lab/backends/probe/checks.hpp"

namespace lab {
namespace {

using namespace guestmem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::array<const char*, 3> types{"memory-backend-ram", "memory-backend-memfd",
                                           "memory-backend-shm"};

std::uint64_t meminfo(std::string_view key) { return number_in(read_text("/proc/meminfo"), key) * 1024; }

/// All that the machine says it can give, to the last page.
void check_brim(Checks& checks) {
    constexpr int count_tries = 5;
    std::string ends;
    for (const char* type : types) {
        int count_ended = 0;
        for (int i = 0; i < count_tries; ++i) {
            const std::uint64_t size = meminfo("MemAvailable") / page_size_bytes * page_size_bytes;
            const std::string end = end_of_child([&] {
                static_cast<void>(make_backend(fmt::format("{},id=m,size={},prealloc=on", type, size)));
            });
            if (!end.empty()) ++count_ended;
        }
        if (count_ended != 0)
            ends += fmt::format("{}{} of {} of {}", ends.empty() ? "" : ", ", count_ended, count_tries, type);
    }
    checks.expect(ends.empty(), "prealloc of all that is available, to the last page, ends no process",
                  "ended by a signal: " + ends);
}

void check_more_than_there_is(Checks& checks) {
    for (const char* type : types) {
        const std::uint64_t before = meminfo("MemFree");
        const std::string text =
            fmt::format("{},id=m,size={}M,prealloc=on", type, meminfo("MemTotal") / mib + 64);
        checks.expect_error(make_backend(text), "MemAvailable",
                            fmt::format("{}: more than there is is refused", type));
        checks.expect(meminfo("MemFree") + 4 * mib > before, fmt::format("{}: and takes nothing", type));
    }
}

/// Whether the kernel promises that much to an anonymous private mapping.
bool kernel_promises(std::uint64_t size_bytes) {
    void* at = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return false;
    ::munmap(at, size_bytes);
    return true;
}

/// vm.overcommit_memory=2: the kernel promises no more than the commit limit.
void check_commit(Checks& checks) {
    if (!checks.expect(write_text("/proc/sys/vm/overcommit_memory", "2"),
                       "the kernel promises only what it can keep"))
        return;
    const std::uint64_t left = meminfo("CommitLimit") - meminfo("Committed_AS");
    const std::uint64_t before = meminfo("Committed_AS");
    {
        const auto backend = make_backend("memory-backend-ram,id=m,size=16M");
        checks.expect(backend && meminfo("Committed_AS") >= before + 16 * mib,
                      "the kernel counts a private backend before it is written");
    }
    const std::uint64_t beyond = (left / mib + 16) * mib;
    checks.expect_error(make_backend(fmt::format("memory-backend-ram,id=m,size={}", beyond)),
                        "vm.overcommit_memory=2", "what is beyond the commit limit is refused by the plan");
    checks.expect(!kernel_promises(beyond), "and so it is by the kernel");
    checks.expect_error(make_backend("memory-backend-ram,id=m,size=16M,reserve=off"), "reserve=off",
                        "reserve=off of a private backend is refused");
    static_cast<void>(write_text("/proc/sys/vm/overcommit_memory", "0"));
}

/// vm.overcommit_memory=0: one mapping may not have more than all memory and swap.
void check_obvious(Checks& checks) {
    const std::uint64_t size = meminfo("MemTotal") + 256 * mib;
    const auto plan = make_plan(fmt::format("memory-backend-ram,id=m,size={}", size));
    checks.expect(plan && plan->problems.has_refusal() == !kernel_promises(size),
                  "plan and kernel agree on one private mapping that has more than the whole machine",
                  fmt::format("the plan {}, the kernel {}",
                              plan && plan->problems.has_refusal() ? "refuses" : "takes it",
                              kernel_promises(size) ? "takes it" : "refuses"));
    checks.expect_value(make_backend(fmt::format("memory-backend-ram,id=m,size={},reserve=off", size)),
                        "with reserve=off it is made");
}

}  // namespace

void check_memory(Checks& checks) {
    check_more_than_there_is(checks);
    check_commit(checks);
    check_obvious(checks);
    check_brim(checks);
}

}  // namespace lab

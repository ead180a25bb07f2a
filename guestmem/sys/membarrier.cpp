// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/membarrier.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

long ask(int command) {
    return checked_call(SysCall::membarrier, [&] { return ::syscall(SYS_membarrier, command, 0U, 0); });
}

}  // namespace

bool prepare_membarrier() {
    // What the kernel granted stays granted. A fault injector wants to be asked all the same.
    static constinit std::atomic<bool> is_prepared{false};
    if (is_prepared.load(std::memory_order_relaxed) &&
        detail::active_injector.load(std::memory_order_relaxed) == nullptr)
        return true;
    const bool is_granted = ask(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0;
    if (is_granted) is_prepared.store(true, std::memory_order_relaxed);
    return is_granted;
}

Result<void> membarrier() {
    if (ask(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return {};
    return Error::from_errno(errno, "a memory barrier in all threads of this process");
}

}  // namespace guestmem

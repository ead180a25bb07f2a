// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/membarrier.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

long ask(int command) {
    return checked_call(SysCall::membarrier, [&] { return ::syscall(SYS_membarrier, command, 0U, 0); });
}

}  // namespace

bool prepare_membarrier() { return ask(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0; }

Result<void> membarrier() {
    if (ask(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return {};
    return Error::from_errno(errno, "a memory barrier in all threads of this process");
}

}  // namespace guestmem

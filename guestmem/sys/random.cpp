// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/random.hpp"

#include <sys/random.h>

#include <cerrno>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Result<void> fill_randomly(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
        const auto count =
            checked_call(SysCall::getrandom, [&] { return ::getrandom(bytes.data(), bytes.size(), 0); });
        if (count < 0) return Error::from_errno(errno, "ask for random bytes");
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
    return {};
}

}  // namespace guestmem

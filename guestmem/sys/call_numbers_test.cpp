// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/call_numbers.hpp"

#include <gtest/gtest.h>
#include <sys/syscall.h>

namespace guestmem {
namespace {

TEST(CallNumbers, AreThoseOfTheHeaders) {
    EXPECT_EQ(call_number("read"), unsigned{SYS_read});
    EXPECT_EQ(call_number("openat"), unsigned{SYS_openat});
    EXPECT_EQ(call_number("ioctl"), unsigned{SYS_ioctl});
    EXPECT_EQ(call_number("clone3"), unsigned{SYS_clone3});
    EXPECT_EQ(call_number("writev"), unsigned{SYS_writev});
}

TEST(CallNumbers, OfCallsThatThisArchitectureLacksAreNone) {
    // Of 32-bit machines.
    EXPECT_TRUE(is_known_call("mmap2"));
    EXPECT_EQ(call_number("mmap2"), std::nullopt);
#ifdef SYS_open
    EXPECT_EQ(call_number("open"), unsigned{SYS_open});
#else
    EXPECT_EQ(call_number("open"), std::nullopt);
#endif
}

TEST(CallNumbers, OfOtherNamesAreUnknown) {
    for (const char* const name : {"", "raed", "zzz", "execve", "ReaD", "read "}) {
        EXPECT_FALSE(is_known_call(name)) << name;
        EXPECT_EQ(call_number(name), std::nullopt) << name;
    }
}

}  // namespace
}  // namespace guestmem

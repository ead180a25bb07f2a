// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/debug_port.hpp"

#include <gtest/gtest.h>

#include <string>

#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

TEST(DebugPort, SendsBytesAndSaysThatItIsThere) {
    std::string sent;
    DebugPort debug{[&sent](std::byte byte) { sent += static_cast<char>(byte); }};
    testing::out8(debug.port(), 0, 'o');
    testing::write_register<std::uint16_t>(debug.port(), 0, 'k' | 'x' << 8);
    EXPECT_EQ(sent, "ok") << "the second byte is another port's";
    EXPECT_EQ(testing::in8(debug.port()), 0xe9);
    EXPECT_EQ(testing::read_register<std::uint32_t>(debug.port(), 0), 0xffff'ffe9U);
}

TEST(DebugPort, WithoutAFunctionBytesAreDropped) {
    DebugPort debug{{}};
    testing::touch_all(debug.port(), 1, 0x41);
    EXPECT_EQ(testing::in8(debug.port()), 0xe9);
}

}  // namespace
}  // namespace guestmem::vmm

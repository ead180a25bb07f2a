// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/exit_port.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using ::testing::ElementsAre;

TEST(ExitPort, TellsTheValueOfEachWidth) {
    std::vector<std::uint32_t> values;
    ExitPort port{[&values](std::uint32_t value) { values.push_back(value); }};
    testing::write_register<std::uint8_t>(port, 0, 0x81);
    testing::write_register<std::uint16_t>(port, 0, 0x8182);
    testing::write_register<std::uint32_t>(port, 0, 0x8182'8384U);
    testing::write_register<std::uint64_t>(port, 0, 0x0102'0304'8182'8384U);
    testing::write_register<std::uint8_t>(port, 1, 0x55);
    EXPECT_THAT(values, ElementsAre(0x81U, 0x8182U, 0x8182'8384U, 0x8182'8384U));
    EXPECT_EQ(testing::in8(port), 0xff);
}

TEST(ExitPort, WithoutAFunctionNothingHappens) {
    ExitPort port{{}};
    testing::touch_all(port, ExitPort::port_count, 1);
    port.write(0, {});
    EXPECT_EQ(testing::read_register<std::uint32_t>(port, 0), 0xffff'ffffU);
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/intx_pin.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "guestmem/device/testing/recording_line.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::RecordingLine;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(IntxPin, AShutGateKeepsTheLineDownAndTheStatusUp) {
    const auto line = std::make_shared<RecordingLine>();
    IntxPin pin;
    pin.connect(line);
    pin.set_gate(false);
    pin.set(true);
    EXPECT_TRUE(pin.is_up());
    EXPECT_THAT(line->changes(), IsEmpty());
    pin.set_gate(true);
    EXPECT_TRUE(line->is_up());
    pin.set_gate(false);
    EXPECT_FALSE(line->is_up());
    pin.set(false);
    pin.set_gate(true);
    EXPECT_THAT(line->changes(), ElementsAre(true, false));
}

TEST(IntxPin, WhatWasSaidBeforeTheLineIsConnectedIsNotLost) {
    IntxPin pin;
    pin.set(true);
    const auto first = std::make_shared<RecordingLine>();
    const auto second = std::make_shared<RecordingLine>();
    pin.connect(first);
    EXPECT_TRUE(first->is_up());
    pin.connect(second);
    EXPECT_FALSE(first->is_up());
    EXPECT_TRUE(second->is_up());
    pin.connect(nullptr);
    EXPECT_FALSE(second->is_up());
}

TEST(IntxPin, ThreadsAtThePinAndAtTheGateAgreeInTheEnd) {
    const auto line = std::make_shared<RecordingLine>();
    IntxPin pin;
    pin.connect(line);
    std::thread device{[&] {
        for (int i = 0; i < 5000; ++i) pin.pulse();
        pin.set(true);
    }};
    for (int i = 0; i < 5000; ++i) {
        pin.set_gate(false);
        pin.set_gate(true);
    }
    device.join();
    EXPECT_TRUE(line->is_up());
}

}  // namespace
}  // namespace guestmem::pci

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/bus.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <map>
#include <random>
#include <thread>
#include <utility>

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

/// Answers with its own number, and remembers what was written where.
class Numbered final : public IoDevice {
public:
    explicit Numbered(std::uint8_t number) : number_(number) {}
    void read(std::uint64_t offset, std::span<std::byte> data) override {
        last_offset_ = offset;
        std::ranges::fill(data, std::byte{number_});
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        last_offset_ = offset;
        count_written_bytes_ += data.size();
    }
    [[nodiscard]] std::uint64_t last_offset() const { return last_offset_; }
    [[nodiscard]] std::uint64_t count_written_bytes() const { return count_written_bytes_; }

private:
    std::uint8_t number_;
    std::atomic<std::uint64_t> last_offset_{0};
    std::atomic<std::uint64_t> count_written_bytes_{0};
};

std::shared_ptr<Numbered> numbered(std::uint8_t number) { return std::make_shared<Numbered>(number); }

BusWindow window(std::uint64_t first, std::uint64_t count, std::shared_ptr<IoDevice> device = numbered(1),
                 std::string name = "w") {
    return {.name = std::move(name), .first = first, .count = count, .device = std::move(device)};
}

/// The byte that each of `size` bytes reads as; 0 when they differ.
std::uint8_t byte_at(const Bus& bus, std::uint64_t address, std::size_t size = 1) {
    std::array<std::byte, 8> data{};
    const std::span bytes = std::span{data}.first(size);
    const bool is_answered = bus.read(address, bytes);
    const auto is_same = [&](std::byte byte) { return byte == bytes[0]; };
    if (!std::ranges::all_of(bytes, is_same)) return 0;
    EXPECT_TRUE(is_answered || bytes[0] == std::byte{0xff});
    return static_cast<std::uint8_t>(bytes[0]);
}

TEST(Bus, AnAccessReachesTheDeviceWithItsOffset) {
    Bus bus{"port", 0xffff};
    const auto device = numbered(7);
    ASSERT_TRUE(bus.add(window(0x3f8, 8, device)));
    EXPECT_EQ(byte_at(bus, 0x3ff), 7);
    EXPECT_EQ(device->last_offset(), 7U);
    const std::array<std::byte, 4> data{};
    EXPECT_TRUE(bus.write(0x3f9, data));
    EXPECT_EQ(device->last_offset(), 1U);
    EXPECT_EQ(device->count_written_bytes(), 4U);
}

TEST(Bus, WhatNobodyHoldsWholeReadsAsOnesAndTakesNoWrite) {
    Bus bus{"port", 0xffff};
    const auto device = numbered(7);
    ASSERT_TRUE(bus.add(window(0x10, 4, device)));
    std::array<std::byte, 2> data{};
    for (const std::uint64_t address : {0xfULL, 0x13ULL, 0x14ULL, 0x0ULL, 0xffffULL}) {
        data = {};
        EXPECT_FALSE(bus.read(address, data)) << address;
        EXPECT_THAT(data, ElementsAre(std::byte{0xff}, std::byte{0xff})) << address;
        EXPECT_FALSE(bus.write(address, data)) << address;
    }
    EXPECT_EQ(device->count_written_bytes(), 0U);
}

TEST(Bus, AWindowWithoutADeviceKeepsOthersAwayAndAnswersNobody) {
    Bus bus{"memory", top};
    ASSERT_TRUE(bus.add(window(0x1000, 0x1000, nullptr, "shared memory")));
    EXPECT_EQ(byte_at(bus, 0x1000), 0xff);
    EXPECT_FALSE(bus.write(0x1000, std::array<std::byte, 1>{}));
    const auto refused = bus.add(window(0x1fff, 1, numbered(1), "other"));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("shared memory at 0x1000 to 0x1fff"));
}

TEST(Bus, AnOverlapIsRefusedWithBothNames) {
    Bus bus{"port", 0xffff};
    ASSERT_TRUE(bus.add(window(0x60, 5, numbered(1), "keyboard")));
    for (const auto& [first, count] :
         {std::pair{0x60ULL, 5ULL}, {0x5fULL, 2ULL}, {0x64ULL, 1ULL}, {0x62ULL, 1ULL}, {0ULL, 0x10000ULL}}) {
        const auto refused = bus.add(window(first, count, numbered(2), "clock"));
        ASSERT_FALSE(refused) << first;
        EXPECT_EQ(refused.error().code(), Errc::already_exists);
        EXPECT_THAT(refused.error().message(), HasSubstr("clock"));
        EXPECT_THAT(refused.error().message(), HasSubstr("keyboard at 0x60 to 0x64"));
    }
    EXPECT_TRUE(bus.add(window(0x65, 1)));
    EXPECT_TRUE(bus.add(window(0x5f, 1)));
}

TEST(Bus, TheLastAddressOfTheSpaceIsAnAddress) {
    Bus bus{"memory", top};
    ASSERT_TRUE(bus.add(window(top, 1, numbered(3))));
    ASSERT_TRUE(bus.add(window(0, 1, numbered(4))));
    EXPECT_EQ(byte_at(bus, top), 3);
    EXPECT_EQ(byte_at(bus, 0), 4);
    EXPECT_EQ(byte_at(bus, top, 2), 0xff);
    EXPECT_EQ(byte_at(bus, top - 1, 2), 0xff);
    EXPECT_FALSE(bus.add(window(top, 2)));
    EXPECT_FALSE(bus.add(window(1, 0)));
    EXPECT_TRUE(bus.add(window(1, top - 1, numbered(5))));
    EXPECT_EQ(byte_at(bus, top - 8, 8), 5);
}

TEST(Bus, AWindowEndsWhereTheBusEnds) {
    Bus bus{"port", 0xffff};
    const auto refused = bus.add(window(0xfffe, 3, numbered(1), "late"));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("late"));
    EXPECT_THAT(refused.error().message(), HasSubstr("0xffff"));
    EXPECT_FALSE(bus.add(window(0x10000, 1)));
    EXPECT_TRUE(bus.add(window(0xfffe, 2)));
}

TEST(Bus, ARefusedMoveChangesNothing) {
    Bus bus{"memory", 0xffff};
    ASSERT_TRUE(bus.add(window(0x100, 0x100, numbered(1))));
    ASSERT_TRUE(bus.add(window(0x300, 0x100, numbered(2))));
    EXPECT_FALSE(bus.move(0x100, 0x2ff));
    EXPECT_FALSE(bus.move(0x100, 0xff01));
    EXPECT_FALSE(bus.move(0x101, 0x800));
    EXPECT_EQ(byte_at(bus, 0x1ff), 1);
    EXPECT_EQ(byte_at(bus, 0x300), 2);
    EXPECT_TRUE(bus.move(0x100, 0x180)) << "a window does not stand in its own way";
    EXPECT_EQ(byte_at(bus, 0x17f), 0xff);
    EXPECT_EQ(byte_at(bus, 0x27f), 1);
    EXPECT_TRUE(bus.remove(0x180));
    EXPECT_FALSE(bus.remove(0x180));
}

/// Moves its own window whenever it is written.
class Mover final : public IoDevice {
public:
    explicit Mover(Bus& bus) : bus_(bus) {}
    void read(std::uint64_t, std::span<std::byte> data) override { std::ranges::fill(data, std::byte{9}); }
    void write(std::uint64_t, std::span<const std::byte>) override {
        const std::uint64_t to = at_ == 0x1000 ? 0x2000 : 0x1000;
        ASSERT_TRUE(bus_.move(at_, to));
        at_ = to;
    }

private:
    Bus& bus_;
    std::uint64_t at_ = 0x1000;
};

TEST(Bus, ADeviceMayMoveAndRemoveItsOwnWindowDuringAnAccess) {
    Bus bus{"memory", top};
    ASSERT_TRUE(bus.add(window(0x1000, 0x100, std::make_shared<Mover>(bus))));
    const std::array<std::byte, 1> data{};
    EXPECT_TRUE(bus.write(0x1000, data));
    EXPECT_EQ(byte_at(bus, 0x1000), 0xff);
    EXPECT_EQ(byte_at(bus, 0x2000), 9);
    EXPECT_TRUE(bus.write(0x2000, data));
    EXPECT_EQ(byte_at(bus, 0x1000), 9);
}

TEST(Bus, RandomChangesAgreeWithAByteByByteModel) {
    constexpr std::uint64_t last = 63;
    std::random_device device;
    const auto seed = device();
    SCOPED_TRACE(seed);
    std::mt19937_64 random{seed};
    Bus bus{"memory", last};
    std::map<std::uint64_t, std::pair<std::uint64_t, std::uint8_t>> model;  // first: count, number
    const auto is_free = [&](std::uint64_t first, std::uint64_t count, std::uint64_t but) {
        if (count == 0 || first > last || count - 1 > last - first) return false;
        return std::ranges::all_of(model, [&](const auto& entry) {
            const auto& [other, rest] = entry;
            return other == but || other + rest.first <= first || first + count <= other;
        });
    };
    for (int i = 0; i < 5000; ++i) {
        const std::uint64_t first = random() % 70;
        const std::uint64_t other = random() % 70;
        const std::uint64_t count = random() % 12;
        const auto number = static_cast<std::uint8_t>(1 + random() % 200);
        switch (random() % 3) {
            case 0:
                ASSERT_EQ(bus.add(window(first, count, numbered(number))).has_value(),
                          is_free(first, count, 99));
                if (is_free(first, count, 99)) model[first] = {count, number};
                break;
            case 1: {
                const auto found = model.find(first);
                const bool can_move = found != model.end() && is_free(other, found->second.first, first);
                ASSERT_EQ(bus.move(first, other).has_value(), can_move);
                if (!can_move) break;
                const auto moved = found->second;
                model.erase(found);
                model[other] = moved;
                break;
            }
            default: ASSERT_EQ(bus.remove(first), model.erase(first) != 0); break;
        }
        const std::uint64_t address = random() % 70;
        const std::size_t size = 1 + random() % 8;
        std::uint8_t expected = 0xff;
        for (const auto& [base, rest] : model)
            if (base <= address && address + size <= base + rest.first) expected = rest.second;
        ASSERT_EQ(byte_at(bus, address, size), expected) << address << " " << size;
    }
}

TEST(Bus, ThreadsThatAccessWhileWindowsMoveSeeOneDeviceOrNone) {
    Bus bus{"memory", 0xffff};
    ASSERT_TRUE(bus.add(window(0x1000, 0x100, numbered(1))));
    ASSERT_TRUE(bus.add(window(0x3000, 0x100, numbered(2))));
    std::atomic<bool> is_over{false};
    std::vector<std::thread> readers;
    for (int i = 0; i < 2; ++i) {
        readers.emplace_back([&] {
            while (!is_over) {
                const std::uint8_t low = byte_at(bus, 0x1000, 8);
                EXPECT_TRUE(low == 1 || low == 0xff);
                EXPECT_EQ(byte_at(bus, 0x3000, 8), 2);
            }
        });
    }
    for (int i = 0; i < 2000; ++i) {
        EXPECT_TRUE(bus.move(0x1000, 0x2000));
        EXPECT_TRUE(bus.move(0x2000, 0x1000));
    }
    is_over = true;
    for (std::thread& reader : readers) reader.join();
    EXPECT_EQ(byte_at(bus, 0x1000), 1);
}

TEST(Bus, TheListIsInAscendingOrder) {
    Bus bus{"port", 0xffff};
    for (const std::uint64_t first : {0x70ULL, 0x20ULL, 0x60ULL, 0x40ULL})
        ASSERT_TRUE(bus.add(window(first, 1)));
    ASSERT_TRUE(bus.move(0x20, 0x65));
    std::vector<std::uint64_t> firsts;
    const auto windows = bus.windows();
    for (const BusWindow& one : windows) firsts.push_back(one.first);
    EXPECT_THAT(firsts, ElementsAre(0x40, 0x60, 0x65, 0x70));
}

}  // namespace
}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/translator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "guestmem/mem/testing/table_translator.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using testing::io_range;
using testing::TestMap;
using testing::translation;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

TEST(Permissions, AllowWhatTheyName) {
    EXPECT_FALSE(allows(Permissions::none, Access::read));
    EXPECT_FALSE(allows(Permissions::none, Access::write));
    EXPECT_TRUE(allows(Permissions::read, Access::read));
    EXPECT_FALSE(allows(Permissions::read, Access::write));
    EXPECT_FALSE(allows(Permissions::write, Access::read));
    EXPECT_TRUE(allows(Permissions::write, Access::write));
    EXPECT_TRUE(allows(Permissions::read_write, Access::read));
    EXPECT_TRUE(allows(Permissions::read_write, Access::write));
    EXPECT_EQ(Permissions::read | Permissions::write, Permissions::read_write);
    EXPECT_EQ(Permissions::read_write & Permissions::write, Permissions::write);
}

TEST(Translation, ThatWouldWrapCannotBeBuilt) {
    EXPECT_TRUE(Translation::create(io_range(0, 1), GuestAddress{top}, Permissions::read));
    EXPECT_FALSE(Translation::create(io_range(0, 2), GuestAddress{top}, Permissions::read));
    EXPECT_TRUE(Translation::create(io_range(0, 4096), GuestAddress{top - 4095}, Permissions::read));
    EXPECT_FALSE(Translation::create(io_range(0, 4096), GuestAddress{top - 4094}, Permissions::read));
    EXPECT_TRUE(Translation::create(io_range(1, top), GuestAddress{1}, Permissions::read));
    EXPECT_FALSE(Translation::create(io_range(0, top), GuestAddress{2}, Permissions::read));
}

TEST(Translation, DropsPermissionsThatMeanNothing) {
    const auto strange = static_cast<Permissions>(0xfd);
    EXPECT_EQ(translation(0, 1, 0, strange).permissions(), Permissions::read);
    EXPECT_EQ(translation(0, 1, 0, static_cast<Permissions>(0xfc)).permissions(), Permissions::none);
}

TEST(Translation, LeadsItsRangeAndNothingElse) {
    const Translation some = translation(0x1000, 0x100, 0x8000);
    EXPECT_EQ(some.guest_address_of(IoAddress{0x1000}), GuestAddress{0x8000});
    EXPECT_EQ(some.guest_address_of(IoAddress{0x10ff}), GuestAddress{0x80ff});
    EXPECT_FALSE(some.guest_address_of(IoAddress{0xfff}));
    EXPECT_FALSE(some.guest_address_of(IoAddress{0x1100}));
    const Translation last = translation(top - 1, 2, top - 1);
    EXPECT_EQ(last.guest_address_of(IoAddress{top}), GuestAddress{top});
    EXPECT_FALSE(last.guest_address_of(IoAddress{0}));
}

TEST(Translation, WithinARangeLeadsToTheSamePlaces) {
    const Translation some = translation(0x1000, 0x100, 0x8000, Permissions::read);
    EXPECT_EQ(some.within(io_range(0x1010, 0x20)), translation(0x1010, 0x20, 0x8010, Permissions::read));
    EXPECT_EQ(some.within(io_range(0, 0x1001)), translation(0x1000, 1, 0x8000, Permissions::read));
    EXPECT_EQ(some.within(io_range(0x10ff, 0x1000)), translation(0x10ff, 1, 0x80ff, Permissions::read));
    EXPECT_EQ(some.within(io_range(0, top)), some);
    EXPECT_FALSE(some.within(io_range(0, 0x1000)));
    EXPECT_FALSE(some.within(io_range(0x1100, 1)));
}

TEST(Translation, IsJoinedOnlyWithWhatContinuesItOnBothSides) {
    const Translation some = translation(0x1000, 0x100, 0x8000);
    EXPECT_EQ(some.joined_with(translation(0x1100, 0x10, 0x8100)), translation(0x1000, 0x110, 0x8000));
    EXPECT_FALSE(some.joined_with(translation(0x1101, 0x10, 0x8101)));
    EXPECT_FALSE(some.joined_with(translation(0x1100, 0x10, 0x8101)));
    EXPECT_FALSE(some.joined_with(translation(0x1100, 0x10, 0x7000)));
    EXPECT_FALSE(some.joined_with(translation(0x1100, 0x10, 0x8100, Permissions::read)));
    EXPECT_FALSE(translation(0x1100, 0x10, 0x8100).joined_with(some));
    EXPECT_FALSE(some.joined_with(some));
}

TEST(Translation, IsNotJoinedAcrossTheEndOfASpace) {
    // The guest addresses end at the last one; the next ones begin at 0.
    EXPECT_FALSE(translation(0, 0x1000, top - 0xfff).joined_with(translation(0x1000, 0x1000, 0)));
    EXPECT_FALSE(translation(top - 0xfff, 0x1000, 0).joined_with(translation(0, 0x1000, 0x1000)));
    // Two halves of everything have no common size.
    const std::uint64_t half = std::uint64_t{1} << 63;
    EXPECT_FALSE(translation(0, half, 0).joined_with(translation(half, half, half)));
    EXPECT_EQ(translation(1, half - 1, 1).joined_with(translation(half, half, half)), translation(1, top, 1));
}

// ---- translators that fail or lie ----

class AnyTranslator final : public Translator {
public:
    std::function<AccessResult<Translation>(IoAddress, Access)> answer;
    [[nodiscard]] AccessResult<Translation> translate(IoAddress address, Access access) override {
        return answer(address, access);
    }
};

struct HostileTranslator : ::testing::Test {
    HostileTranslator() {
        guest.ram(0x8000, 0x1000);
        memory = space.make_memory("queue 0", guest.map()).value();
    }
    [[nodiscard]] AccessResult<void> write(std::uint64_t address) const {
        return memory->write<std::uint64_t>(IoAddress{address}, 1);
    }
    void expect(AccessReason reason, std::uint64_t address) const {
        EXPECT_EQ(write(address).error(), (AccessError{reason, Access::write, address, 0}));
    }
    TestMap guest;
    std::shared_ptr<AnyTranslator> translator = std::make_shared<AnyTranslator>();
    IoSpace space = IoSpace::create({.name = "test", .translator = translator}).value();
    std::unique_ptr<TranslatedMemory> memory;
};

TEST_F(HostileTranslator, IsToldByItsReasonOrAsFailed) {
    using enum AccessReason;
    for (const AccessReason said :
         {none, hole, out_of_range, misaligned, overflow, read_only, device, fault, untranslated, denied,
          translator_failed, list_full, static_cast<AccessReason>(200)}) {
        // The address, the access and the count are not believed either.
        translator->answer = [&](IoAddress, Access) { return AccessError{said, Access::read, 7, 99}; };
        expect(said == untranslated || said == denied ? said : translator_failed, 0x1000);
    }
}

TEST_F(HostileTranslator, AnAnswerWithoutTheAddressIsAFailure) {
    for (const Translation& answer : {translation(0, 0x1008, 0x8000), translation(0x1009, 0x1000, 0x8000),
                                      translation(top, 1, 0x8000), translation(0, 1, 0x8000)}) {
        translator->answer = [&](IoAddress, Access) { return answer; };
        expect(AccessReason::translator_failed, 0x1008);
    }
    EXPECT_EQ(space.counts().count_entries, 0U);
}

TEST_F(HostileTranslator, AnAnswerWithoutThePermissionIsADenial) {
    for (const auto permissions : {Permissions::none, Permissions::read}) {
        translator->answer = [&](IoAddress, Access) { return translation(0, 0x2000, 0x8000, permissions); };
        expect(AccessReason::denied, 0x1000);
    }
}

TEST_F(HostileTranslator, AHugeAnswerReachesNothingOutsideOfTheMap) {
    translator->answer = [](IoAddress, Access) { return translation(0, top, 1); };
    expect(AccessReason::hole, 0);
    expect(AccessReason::out_of_range, top - 7);
    EXPECT_TRUE(write(0x7fff));
    expect(AccessReason::hole, 0x7ffe);
    // The last byte fits, the one after it does not.
    EXPECT_TRUE(write(0x8ff7));
    expect(AccessReason::out_of_range, 0x8fff);
    std::vector<std::byte> buffer(0x1001);
    EXPECT_EQ(memory->read_bytes(IoAddress{0x7fff}, buffer).error(),
              (AccessError{AccessReason::out_of_range, Access::read, 0x8fff, 0x1000}));
}

TEST_F(HostileTranslator, AnswersThatContradictEachOtherStayInsideOfTheMap) {
    std::uint64_t number = 0;
    translator->answer = [&](IoAddress address, Access) {
        ++number;
        const std::uint64_t base = address.value() - std::min(address.value(), number * 977 % 300);
        return translation(base, 1 + number * 331 % 5000, number * 7919 % 0x12000,
                           static_cast<Permissions>(number % 4));
    };
    for (std::uint64_t i = 0; i < 20000; ++i) {
        const IoAddress address{i * 48271 % 0x10000};
        static_cast<void>(memory->write<std::uint64_t>(address, i));
        std::array<std::byte, 200> buffer;
        static_cast<void>(memory->read_some(address, buffer));
        if (i % 16 != 0) continue;
        EXPECT_TRUE(space.invalidate(io_range(i % 5000, 1 + i % 777), std::chrono::seconds{1}));
    }
}

}  // namespace
}  // namespace guestmem

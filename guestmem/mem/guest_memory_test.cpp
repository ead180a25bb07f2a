// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/guest_memory.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>

#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/model_session.hpp"

namespace guestmem {
namespace {

using testing::Choices;
using testing::ModelSession;

TEST(GuestMemory, AgreesWithTheModelInRandomOperations) {
    for (std::uint64_t seed = 1; seed <= 400; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        Choices choices{seed};
        ModelSession session{choices};
        for (int i = 0; i < 250; ++i) ASSERT_EQ(session.step(), "") << "operation " << i;
    }
}

}  // namespace
}  // namespace guestmem

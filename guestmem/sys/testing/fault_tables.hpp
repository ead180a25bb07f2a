// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <span>

#include "guestmem/sys/fault_guard.hpp"

/// Fault tables that nothing ever faults in, one more than there is room for.
///
/// Contract: add_all() registers as many as go and says how many these were; remove_all() takes all back, which has
/// to be done before the object is destroyed.
/// Threads: any.

namespace guestmem::testing {

class OtherTables {
public:
    static constexpr std::size_t count = max_fault_tables + 1;
    [[nodiscard]] std::span<const FaultEntry> at(std::size_t index) const { return entries_.at(index); }
    [[nodiscard]] std::size_t add_all() const {
        std::size_t count_good = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const auto added = detail::add_fault_table(at(i));
            if (added) {
                ++count_good;
            } else {
                EXPECT_EQ(added.error().code(), Errc::exhausted);
            }
        }
        return count_good;
    }
    void remove_all() const {
        for (std::size_t i = 0; i < count; ++i) detail::remove_fault_table(at(i));
    }

private:
    std::array<std::array<FaultEntry, 3>, count> entries_{};
};

}  // namespace guestmem::testing

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

#include "guestmem/device/interrupt.hpp"

/// An interrupt line that remembers what it was told, for tests of devices.
///
/// Contract: changes() has each change in its order; set() of what is so already counts in count_calls() only.
/// Threads: any.

namespace guestmem::testing {

class RecordingLine final : public InterruptLine {
public:
    void set(bool is_up) override {
        const std::scoped_lock lock{mutex_};
        ++count_calls_;
        if (is_up == is_up_) return;
        is_up_ = is_up;
        changes_.push_back(is_up);
    }
    [[nodiscard]] bool is_up() const {
        const std::scoped_lock lock{mutex_};
        return is_up_;
    }
    [[nodiscard]] std::vector<bool> changes() const {
        const std::scoped_lock lock{mutex_};
        return changes_;
    }
    [[nodiscard]] std::size_t count_raised() const {
        const std::scoped_lock lock{mutex_};
        return (changes_.size() + 1) / 2;  // it begins down, and every second change is up
    }
    [[nodiscard]] std::size_t count_calls() const {
        const std::scoped_lock lock{mutex_};
        return count_calls_;
    }

private:
    mutable std::mutex mutex_;
    bool is_up_ = false;
    std::size_t count_calls_ = 0;
    std::vector<bool> changes_;
};

}  // namespace guestmem::testing

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pit_counter.hpp"

#include <algorithm>
#include <utility>

namespace guestmem::vmm {
namespace {

std::uint32_t from_bcd(std::uint16_t value) {
    return (value >> 12U) * 1000U + (value >> 8U & 15U) * 100U + (value >> 4U & 15U) * 10U + (value & 15U);
}

std::uint16_t to_bcd(std::uint32_t value) {
    return static_cast<std::uint16_t>((value / 1000 % 10) << 12U | (value / 100 % 10) << 8U |
                                      (value / 10 % 10) << 4U | value % 10);
}

}  // namespace

void PitCounter::write_control(std::uint8_t control) {
    // "Control word format": M2 is of no account in modes 2 and 3.
    mode_ = control >> 1U & 7U;
    if (mode_ > 5) mode_ -= 4;
    access_ = static_cast<Access>(control >> 4U & 3U);
    is_bcd_ = (control & 1U) != 0;
    is_null_ = true;
    is_loaded_ = false;
    is_load_pending_ = false;
    is_armed_ = false;
    is_second_write_ = false;
    is_second_read_ = false;
    is_held_ = false;
    count_ = 0;
    element_ = 0;
    latched_count_.reset();
    latched_status_.reset();
    set_out(mode_ != 0);
}

void PitCounter::write_count(std::uint8_t value) {
    if (access_ == Access::low) return take_count(value);
    if (access_ == Access::high) return take_count(static_cast<std::uint16_t>(value << 8U));
    if (!is_second_write_) {
        first_byte_ = value;
        is_second_write_ = true;
        if (mode_ == 0) {
            // "Mode 0": the first byte stops counting, and OUT is down without a clock.
            is_held_ = true;
            is_armed_ = false;
            is_load_pending_ = false;
            set_out(false);
        }
        return;
    }
    is_second_write_ = false;
    take_count(static_cast<std::uint16_t>(value << 8U | first_byte_));
}

void PitCounter::take_count(std::uint16_t value) {
    count_ = (is_bcd_ ? from_bcd(value) : value) % modulus();
    if (count_ == 0) count_ = modulus();
    is_null_ = true;
    is_held_ = false;
    switch (mode_) {
        case 0:
            set_out(false);
            is_load_pending_ = true;
            break;
        case 4: is_load_pending_ = true; break;
        case 2:
        case 3:
            // A count that is running goes on to the end of its period or half of it.
            if (!is_loaded_) is_load_pending_ = true;
            break;
        default: break;  // 1 and 5: the gate loads
    }
}

void PitCounter::set_gate(bool is_up) {
    const bool is_rising = is_up && !is_gate_;
    is_gate_ = is_up;
    if (count_ == 0) return;
    if (is_rising && mode_ != 0 && mode_ != 4) is_load_pending_ = true;
    if (!is_up && (mode_ == 2 || mode_ == 3)) set_out(true);
}

void PitCounter::load() {
    is_load_pending_ = false;
    is_null_ = false;
    is_loaded_ = true;
    element_ = count_;
    is_armed_ = true;
    loaded_count_ = count_;
    if (mode_ == 3) element_ = count_ & ~1U;
    set_out(mode_ > 1);
}

void PitCounter::set_out(bool is_up) {
    if (is_up && !is_out_) has_risen_ = true;
    is_out_ = is_up;
}

bool PitCounter::is_counting() const {
    if (!is_loaded_ || is_held_) return false;
    return is_gate_ || mode_ == 1 || mode_ == 5;
}

bool PitCounter::run(std::uint64_t clocks) {
    has_risen_ = false;
    if (clocks == 0) return false;
    if (is_load_pending_) {
        load();
        if (--clocks == 0) return has_risen_;
    }
    if (mode_ > 3) set_out(true);  // a strobe is one clock, whatever the gate does
    if (!is_counting()) return has_risen_;
    switch (mode_) {
        case 2: run_rate(clocks); break;
        case 3: run_square(clocks); break;
        default: run_down(clocks); break;
    }
    return has_risen_;
}

void PitCounter::run_down(std::uint64_t clocks) {
    const bool is_strobe = mode_ > 3;
    const std::uint64_t left = element_ == 0 ? modulus() : element_;
    if (is_armed_ && clocks >= left) {
        is_armed_ = false;
        set_out(!is_strobe);
        if (is_strobe && clocks > left) set_out(true);
    }
    // Beyond 0 it goes on from the greatest count: "wraps around".
    const std::uint64_t down = clocks % modulus();
    element_ = static_cast<std::uint32_t>((left + modulus() - down) % modulus());
}

void PitCounter::run_rate(std::uint64_t clocks) {
    const std::uint64_t left = element_;  // clocks until it is loaded again
    if (clocks < left) {
        element_ -= static_cast<std::uint32_t>(clocks);
    } else {
        if (loaded_count_ != 1) set_out(false);
        set_out(true);
        is_null_ = false;
        loaded_count_ = count_;
        clocks -= left;
        // Whole periods lead back here, each with an edge.
        if (clocks >= count_ && count_ != 1) has_risen_ = true;
        element_ = count_ - static_cast<std::uint32_t>(clocks % count_);
    }
    set_out(element_ != 1 || loaded_count_ == 1);
}

std::uint32_t PitCounter::clocks_of_half() const {
    // "Mode 3": an odd count has one clock more while OUT is up.
    return element_ / 2 + (is_out_ && loaded_count_ % 2 != 0 ? 1 : 0);
}

void PitCounter::run_square(std::uint64_t clocks) {
    // At most: the rest of this half, the next half, whole periods, two halves more.
    bool has_skipped = false;
    while (clocks >= clocks_of_half()) {
        clocks -= clocks_of_half();
        is_null_ = false;
        loaded_count_ = count_;
        element_ = count_ & ~1U;
        if (count_ == 1) {
            set_out(true);
            return;
        }
        set_out(!is_out_);
        if (!has_skipped && clocks >= count_) {
            has_risen_ = true;
            clocks %= count_;
            has_skipped = true;
        }
    }
    element_ -= static_cast<std::uint32_t>(2 * clocks);
}

std::optional<std::uint64_t> PitCounter::clocks_to_rise() const {
    if (is_load_pending_) {
        PitCounter loaded = *this;
        if (loaded.run(1)) return 1;
        const auto rest = loaded.clocks_to_rise();
        if (!rest) return std::nullopt;
        return *rest + 1;
    }
    if (mode_ > 3 && !is_out_) return 1;
    if (!is_counting()) return std::nullopt;
    const std::uint64_t left = element_ == 0 ? modulus() : element_;
    switch (mode_) {
        case 2:
            if (loaded_count_ != 1) return element_;
            if (count_ == 1) return std::nullopt;
            return std::uint64_t{count_} + 1;
        case 3: {
            const std::uint64_t half = clocks_of_half();
            if (!is_out_) return half;
            if (count_ == 1) return std::nullopt;
            return half + count_ / 2;
        }
        case 0:
        case 1: return is_armed_ ? std::optional{left} : std::nullopt;
        default: return is_armed_ ? std::optional{left + 1} : std::nullopt;
    }
}

std::uint16_t PitCounter::visible_count() const {
    const std::uint32_t value = element_ % modulus();
    return is_bcd_ ? to_bcd(value) : static_cast<std::uint16_t>(value);
}

std::uint8_t PitCounter::status() const {
    // "Read-back command": OUT, null count, and the control word as it was written.
    unsigned value = unsigned{std::to_underlying(access_)} << 4U | unsigned{mode_} << 1U;
    if (is_out_) value |= 0x80U;
    if (is_null_) value |= 0x40U;
    if (is_bcd_) value |= 0x01U;
    return static_cast<std::uint8_t>(value);
}

void PitCounter::latch_count() {
    if (!latched_count_) latched_count_ = visible_count();
}

void PitCounter::latch_status() {
    if (!latched_status_) latched_status_ = status();
}

std::uint8_t PitCounter::read() {
    if (latched_status_) return *std::exchange(latched_status_, std::nullopt);
    const std::uint16_t count = latched_count_.value_or(visible_count());
    const bool is_high = access_ == Access::high || (access_ == Access::both && is_second_read_);
    const bool is_last = access_ != Access::both || is_second_read_;
    if (access_ == Access::both) is_second_read_ = !is_second_read_;
    if (is_last) latched_count_.reset();
    return static_cast<std::uint8_t>(is_high ? count >> 8U : count);
}

}  // namespace guestmem::vmm

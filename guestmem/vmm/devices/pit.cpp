// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pit.hpp"

#include <algorithm>

namespace guestmem::vmm {
namespace {

// 105/88 MHz are 21 clocks in 17,600 ns: a twelfth of 14.31818 MHz, the color carrier times four.
constexpr std::uint64_t clocks_of_turn = 21;
constexpr std::uint64_t ns_of_turn = 17'600;

// PIIX3, section 2.5.4: a refresh every 15.085 us.
constexpr std::uint64_t refresh_ns = 15'085;

constexpr std::uint8_t gate_bit = 0x01;
constexpr std::uint8_t refresh_bit = 0x10;
constexpr std::uint8_t output_bit = 0x20;
constexpr std::uint8_t writable_bits = 0x0f;

constexpr std::uint64_t control_word_offset = 3;
constexpr std::size_t speaker = 2;

}  // namespace

std::uint64_t Pit::to_clocks(std::uint64_t time_ns) {
    return time_ns / ns_of_turn * clocks_of_turn + time_ns % ns_of_turn * clocks_of_turn / ns_of_turn;
}

std::uint64_t Pit::to_ns(std::uint64_t clocks) {
    const std::uint64_t rest = clocks % clocks_of_turn * ns_of_turn;
    return clocks / clocks_of_turn * ns_of_turn + (rest + clocks_of_turn - 1) / clocks_of_turn;
}

Pit::Pit(DeviceClock& clock, InterruptLine& line)
    : clock_(clock),
      line_(line),
      now_ns_(clock.now_ns()),
      clocks_(to_clocks(now_ns_)),
      counter_ports_(
          4, [this](std::uint64_t offset) { return read_counter_port(offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_counter_port(offset, value); }),
      control_port_(
          1, [this](std::uint64_t /*offset*/) { return read_control_port(); },
          [this](std::uint64_t /*offset*/, std::uint8_t value) { write_control_port(value); }),
      alarm_(clock.make_alarm([this] {
          const std::scoped_lock lock{mutex_};
          advance();
          follow_output();
      })) {
    counters_.at(speaker).set_gate(false);
}

void Pit::advance() {
    now_ns_ = std::max(now_ns_, clock_.now_ns());
    const std::uint64_t clocks = to_clocks(now_ns_) - clocks_;
    clocks_ += clocks;
    for (std::size_t number = 0; number < counter_count; ++number) {
        if (!counters_.at(number).run(clocks) || number != 0) continue;
        // An edge went by, and the output may be down again already.
        line_.set(false);
        line_.set(true);
        last_edge_ns_ = now_ns_;
    }
}

void Pit::follow_output() {
    const PitCounter& counter = counters_.front();
    line_.set(counter.is_out());
    const auto clocks = counter.clocks_to_rise();
    if (!clocks) return alarm_->set(std::nullopt);
    alarm_->set(std::max(to_ns(clocks_ + *clocks), last_edge_ns_ + min_ring_ns));
}

std::uint8_t Pit::read_counter_port(std::uint64_t offset) {
    // "Read operations": the control word register cannot be read, the bus floats.
    if (offset == control_word_offset) return 0xff;
    const std::scoped_lock lock{mutex_};
    advance();
    const std::uint8_t value = counters_.at(offset).read();
    follow_output();
    return value;
}

void Pit::write_counter_port(std::uint64_t offset, std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    advance();
    if (offset == control_word_offset) {
        write_control_word(value);
    } else {
        counters_.at(offset).write_count(value);
    }
    follow_output();
}

void Pit::write_control_word(std::uint8_t value) {
    const std::size_t number = value >> 6U;
    if (number < counter_count) {
        PitCounter& counter = counters_.at(number);
        return (value & 0x30U) == 0 ? counter.latch_count() : counter.write_control(value & 0x3fU);
    }
    // "Read-back command": both latches are asked for with zeros.
    for (std::size_t i = 0; i < counter_count; ++i) {
        if ((unsigned{value} >> (i + 1) & 1U) == 0) continue;
        if ((value & 0x20U) == 0) counters_.at(i).latch_count();
        if ((value & 0x10U) == 0) counters_.at(i).latch_status();
    }
}

std::uint8_t Pit::read_control_port() {
    const std::scoped_lock lock{mutex_};
    advance();
    follow_output();
    std::uint8_t value = control_bits_;
    if (now_ns_ / refresh_ns % 2 != 0) value |= refresh_bit;
    if (counters_.at(speaker).is_out()) value |= output_bit;
    return value;
}

void Pit::write_control_port(std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    advance();
    control_bits_ = value & writable_bits;
    counters_.at(speaker).set_gate((value & gate_bit) != 0);
    follow_output();
}

}  // namespace guestmem::vmm

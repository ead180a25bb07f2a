// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/rtc.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace guestmem::vmm {
namespace {

// Data sheet, "Address map".
constexpr std::uint8_t second_register = 0x00;
constexpr std::uint8_t second_alarm_register = 0x01;
constexpr std::uint8_t minute_register = 0x02;
constexpr std::uint8_t minute_alarm_register = 0x03;
constexpr std::uint8_t hour_register = 0x04;
constexpr std::uint8_t hour_alarm_register = 0x05;
constexpr std::uint8_t day_of_week_register = 0x06;
constexpr std::uint8_t day_register = 0x07;
constexpr std::uint8_t month_register = 0x08;
constexpr std::uint8_t year_register = 0x09;
constexpr std::uint8_t register_a = 0x0a;
constexpr std::uint8_t register_b = 0x0b;
constexpr std::uint8_t register_c = 0x0c;
constexpr std::uint8_t register_d = 0x0d;

constexpr std::uint8_t a_updating = 0x80;
constexpr std::uint8_t a_divider_reset = 0x60;  // both bits: table 4
constexpr std::uint8_t a_rate = 0x0f;
constexpr std::uint8_t b_set = 0x80;
constexpr std::uint8_t b_binary = 0x04;
constexpr std::uint8_t b_24_hours = 0x02;
// The same bits enable in B and tell in C.
constexpr std::uint8_t periodic_event = 0x40;
constexpr std::uint8_t alarm_event = 0x20;
constexpr std::uint8_t update_event = 0x10;
constexpr std::uint8_t c_request = 0x80;
constexpr std::uint8_t d_valid = 0x80;

constexpr std::int64_t second_ns = 1'000'000'000;
// "Update cycle": UIP goes up 244 us before.
constexpr std::int64_t updating_ns = 244'000;
// Table 4: the first update comes half a second after the divider is let go.
constexpr std::int64_t after_reset_ns = 500'000'000;
// A wall clock that is slower than the machine's is asked again, but not in a circle.
constexpr std::int64_t min_wait_ns = 50'000;
// A wall clock may be set, and goes on while the machine is paused: nobody relies on it for longer.
constexpr std::int64_t max_wait_ns = 60 * second_ns;
// Times of day within this are far beyond what the bytes can say, and sums of two of them fit 64 bits.
constexpr std::int64_t max_time_ns = std::numeric_limits<std::int64_t>::max() / 4;

// 32,768 Hz are 64 ticks in 1,953,125 ns.
constexpr std::uint64_t ticks_of_turn = 64;
constexpr std::uint64_t ns_of_turn = 1'953'125;

std::uint64_t to_ticks(std::uint64_t time_ns) {
    return time_ns / ns_of_turn * ticks_of_turn + time_ns % ns_of_turn * ticks_of_turn / ns_of_turn;
}

std::uint64_t to_ns(std::uint64_t ticks) {
    const std::uint64_t rest = ticks % ticks_of_turn * ns_of_turn;
    return ticks / ticks_of_turn * ns_of_turn + (rest + ticks_of_turn - 1) / ticks_of_turn;
}

std::int64_t floor_second(std::int64_t time_ns) {
    return time_ns / second_ns - (time_ns % second_ns < 0 ? 1 : 0);
}

bool is_time_register(std::uint8_t index) {
    if (index == Rtc::century_register) return true;
    return index <= year_register && index != second_alarm_register && index != minute_alarm_register &&
           index != hour_alarm_register;
}

}  // namespace

Rtc::Rtc(DeviceClock& clock, WallClock wall_clock, InterruptLine& line)
    : clock_(clock),
      wall_clock_(std::move(wall_clock)),
      line_(line),
      ports_(
          2, [this](std::uint64_t offset) { return read_port(offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_port(offset, value); }),
      alarm_(clock.make_alarm([this] {
          const std::scoped_lock lock{mutex_};
          advance();
          follow();
      })) {
    // As a PC's firmware leaves them: 32,768 Hz, 1,024 Hz, 24 hours in BCD, and a battery.
    memory_.at(register_a) = 0x26;
    memory_.at(register_b) = b_24_hours;
    memory_.at(register_d) = d_valid;
    last_second_ = floor_second(time_ns());
    last_tick_ = to_ticks(clock_.now_ns());
}

void Rtc::store(std::uint8_t index, std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    if (index > register_d && index < memory_bytes && index != century_register) memory_.at(index) = value;
}

bool Rtc::is_running() const {
    return (memory_.at(register_b) & b_set) == 0 &&
           (memory_.at(register_a) & a_divider_reset) != a_divider_reset;
}

std::int64_t Rtc::time_ns() const {
    const std::int64_t wall_ns = std::clamp(wall_clock_(), -max_time_ns, max_time_ns);
    return std::clamp(wall_ns + ahead_ns_, -max_time_ns, max_time_ns);
}

RtcFormat Rtc::format() const {
    const std::uint8_t control = memory_.at(register_b);
    return {.is_binary = (control & b_binary) != 0, .is_24_hours = (control & b_24_hours) != 0};
}

RtcAlarm Rtc::alarm_time() const {
    return to_rtc_alarm(memory_.at(second_alarm_register), memory_.at(minute_alarm_register),
                        memory_.at(hour_alarm_register), format());
}

void Rtc::store_time() {
    const RtcBytes bytes = to_rtc_bytes(floor_second(time_ns()), format());
    memory_.at(second_register) = bytes.second;
    memory_.at(minute_register) = bytes.minute;
    memory_.at(hour_register) = bytes.hour;
    memory_.at(day_of_week_register) = bytes.day_of_week;
    memory_.at(day_register) = bytes.day;
    memory_.at(month_register) = bytes.month;
    memory_.at(year_register) = bytes.year;
    memory_.at(century_register) = bytes.century;
}

void Rtc::adopt_time(std::int64_t fraction_ns) {
    const RtcBytes bytes{.second = memory_.at(second_register),
                         .minute = memory_.at(minute_register),
                         .hour = memory_.at(hour_register),
                         .day_of_week = memory_.at(day_of_week_register),
                         .day = memory_.at(day_register),
                         .month = memory_.at(month_register),
                         .year = memory_.at(year_register),
                         .century = memory_.at(century_register)};
    const std::int64_t last_moment = max_time_ns / second_ns - 1;
    const std::int64_t moment = std::clamp(to_moment(bytes, format()), -last_moment, last_moment);
    const std::int64_t wall_ns = std::clamp(wall_clock_(), -max_time_ns, max_time_ns);
    ahead_ns_ = moment * second_ns + fraction_ns - wall_ns;
    last_second_ = moment;
}

std::uint64_t Rtc::periodic_ticks() const {
    // Table 5 for a time base of 32,768 Hz: rates 1 and 2 are those of 8 and 9.
    const unsigned rate = memory_.at(register_a) & a_rate;
    const bool is_held = (memory_.at(register_a) & a_divider_reset) == a_divider_reset;
    if (rate == 0 || is_held) return 0;
    return std::uint64_t{1} << (rate < 3 ? rate + 6 : rate - 1);
}

void Rtc::advance() {
    std::uint8_t& events = memory_.at(register_c);
    const std::uint64_t tick = std::max(last_tick_, to_ticks(clock_.now_ns()));
    if (const std::uint64_t period = periodic_ticks(); period != 0 && tick / period != last_tick_ / period)
        events |= periodic_event;
    last_tick_ = tick;
    if (!is_running()) return;
    const std::int64_t second = floor_second(time_ns());
    if (second > last_second_) {
        events |= update_event;
        const auto alarm = next_alarm(alarm_time(), last_second_);
        if (alarm && *alarm <= second) events |= alarm_event;
    }
    last_second_ = second;  // backwards too: the wall clock was set
}

void Rtc::follow() {
    const std::uint8_t enabled = memory_.at(register_b) & (periodic_event | alarm_event | update_event);
    std::uint8_t& events = memory_.at(register_c);
    events &= static_cast<std::uint8_t>(~c_request);
    if ((events & enabled) != 0) events |= c_request;
    line_.set((events & c_request) != 0);
    // While the line is up nothing can be told: reading C comes first.
    if ((events & c_request) != 0 || enabled == 0) return alarm_->set(std::nullopt);
    std::optional<std::uint64_t> when;
    const auto at_most = [&when](std::uint64_t other) { when = when ? std::min(*when, other) : other; };
    const std::uint64_t period = periodic_ticks();
    if ((enabled & periodic_event) != 0 && period != 0) at_most(to_ns((last_tick_ / period + 1) * period));
    std::optional<std::int64_t> second;
    if (is_running() && (enabled & alarm_event) != 0) second = next_alarm(alarm_time(), last_second_);
    if (is_running() && (enabled & update_event) != 0) second = last_second_ + 1;
    if (second) {
        const std::int64_t wait_ns = std::clamp(*second * second_ns - time_ns(), min_wait_ns, max_wait_ns);
        at_most(clock_.now_ns() + static_cast<std::uint64_t>(wait_ns));
    }
    alarm_->set(when);
}

std::uint8_t Rtc::read_port(std::uint64_t offset) {
    if (offset == 0) return 0xff;
    const std::scoped_lock lock{mutex_};
    advance();
    follow();
    const std::uint8_t value = read_register(index_);
    follow();
    return value;
}

void Rtc::write_port(std::uint64_t offset, std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    if (offset == 0) {
        index_ = value & 0x7fU;
        return;
    }
    advance();
    write_register(index_, value);
    follow();
}

std::uint8_t Rtc::read_register(std::uint8_t index) {
    if (is_time_register(index)) {
        if (is_running()) store_time();
        return memory_.at(index);
    }
    if (index == register_a) {
        std::uint8_t value = memory_.at(register_a);
        const std::int64_t to_update_ns = (floor_second(time_ns()) + 1) * second_ns - time_ns();
        if (is_running() && to_update_ns <= updating_ns) value |= a_updating;
        return value;
    }
    if (index == register_c) return std::exchange(memory_.at(register_c), std::uint8_t{0});
    return memory_.at(index);
}

void Rtc::write_register(std::uint8_t index, std::uint8_t value) {
    if (is_time_register(index)) return write_time(index, value);
    switch (index) {
        case register_a: return change_control(memory_.at(register_a), value & 0x7fU);
        case register_b: return change_control(memory_.at(register_b), value);
        case register_c:
        case register_d: return;
        default: memory_.at(index) = value; return;
    }
}

void Rtc::write_time(std::uint8_t index, std::uint8_t value) {
    if (!is_running()) {
        memory_.at(index) = value;
        return;
    }
    store_time();
    const std::int64_t fraction_ns = time_ns() - floor_second(time_ns()) * second_ns;
    memory_.at(index) = value;
    adopt_time(fraction_ns);
}

void Rtc::change_control(std::uint8_t& control, std::uint8_t value) {
    const bool was_running = is_running();
    const bool was_held = (memory_.at(register_a) & a_divider_reset) == a_divider_reset;
    const std::int64_t fraction_ns = time_ns() - floor_second(time_ns()) * second_ns;
    if (was_running) store_time();
    const std::uint8_t set_before = memory_.at(register_b) & b_set;
    control = value;
    // "SET": going up, it takes the update interrupt's enable away.
    if (set_before == 0 && (memory_.at(register_b) & b_set) != 0)
        memory_.at(register_b) &= static_cast<std::uint8_t>(~update_event);
    if (!was_running && is_running()) adopt_time(was_held ? after_reset_ns : fraction_ns);
}

}  // namespace guestmem::vmm

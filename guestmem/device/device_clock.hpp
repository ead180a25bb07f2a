// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

/// The time that devices live in, and alarms in it.
///
/// Concepts: nanoseconds since some moment before the guest's first instruction, which stand still while the machine is
/// paused. An alarm calls its handler once its time has come; a periodic device sets it again for a time computed from
/// the last one, so that being late does not add up.
/// Contract: a handler runs in a thread of the clock, never inside set(), and never after the alarm is destroyed:
/// destroying waits for a handler that runs, unless the handler itself destroys it. A time that has passed rings at
/// once. Handlers of one clock run one at a time, and may set alarms.
/// Threads: any. A device that holds its mutex while it destroys an alarm must not take that mutex in the handler.

namespace guestmem {

class DeviceAlarm {
public:
    DeviceAlarm() = default;
    DeviceAlarm(const DeviceAlarm&) = delete;
    DeviceAlarm& operator=(const DeviceAlarm&) = delete;
    virtual ~DeviceAlarm() = default;

    /// Rings at that time instead of an earlier set one; nothing: not at all.
    virtual void set(std::optional<std::uint64_t> when_ns) = 0;
};

class DeviceClock {
public:
    DeviceClock() = default;
    DeviceClock(const DeviceClock&) = delete;
    DeviceClock& operator=(const DeviceClock&) = delete;
    virtual ~DeviceClock() = default;

    [[nodiscard]] virtual std::uint64_t now_ns() const = 0;
    [[nodiscard]] virtual std::unique_ptr<DeviceAlarm> make_alarm(std::function<void()> handler) = 0;
};

}  // namespace guestmem

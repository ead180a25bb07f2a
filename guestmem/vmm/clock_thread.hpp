// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "guestmem/device/device_clock.hpp"

/// The time of a running machine, and the thread that rings its devices' alarms.
///
/// Concepts: time begins at 0 with start(), and stands still between pause() and resume().
/// Contract: as DeviceClock. An alarm that is late rings as soon as it can. After pause() returned no handler runs
/// until resume(). The destructor ends the thread; alarms may outlive it and ring no more.
/// Threads: any; pause() and the destructor from no handler.
/// Cost: an alarm is an entry of a map; setting one that is not the next wakes nobody. It rings some 60 us late.

namespace guestmem::vmm {

class ClockThread final : public DeviceClock {
public:
    ClockThread();
    ~ClockThread() override;

    [[nodiscard]] std::uint64_t now_ns() const override;
    [[nodiscard]] std::unique_ptr<DeviceAlarm> make_alarm(std::function<void()> handler) override;

    /// Pauses count: each needs a resume. It is born paused once.
    void pause();
    void resume();

private:
    class Alarm;
    struct State;
    static void run(const std::shared_ptr<State>& state);

    std::shared_ptr<State> state_;
    std::thread thread_;
};

}  // namespace guestmem::vmm

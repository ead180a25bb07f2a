// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/sys/kvm.hpp"

/// The processors of one machine: a thread each, which runs the guest and takes its accesses to the buses.
///
/// Concepts: a processor runs, stands (paused), or has ended. What makes a machine end (a triple fault, an exit of the
/// kernel that nobody can serve) is told to `stop`, once per processor at most, and that processor ends.
/// Contract: pause() returns when every processor stands outside of the guest and of every device; resume() lets
/// them go on. Pauses count: each needs a resume. The destructor ends and joins all. An access where no device is
/// reads as ones. A processor that is to stand or to end and does not come back from a device for `patience` is told to
/// `stuck`, once; whoever waits goes on waiting after that.
/// Threads: any, but no handler of the hooks pauses or ends the processors: it runs in one of them.
/// Lifetime: buses and hooks outlive it.

namespace guestmem::vmm {

/// Why a machine ends.
struct MachineEnd {
    enum class Kind : std::uint8_t {
        power_off,     ///< the guest switched itself off
        reset,         ///< the guest asked for a reset
        triple_fault,  ///< the guest's processor gave up
        exit_port,     ///< the guest wrote `code` to the exit port
        stopped,       ///< somebody outside asked
        failed,        ///< `message` says what cannot be done
    };
    Kind kind = Kind::stopped;
    std::uint8_t code = 0;
    std::string message = {};
};

struct ProcessorHooks {
    std::reference_wrapper<Bus> ports;
    std::reference_wrapper<Bus> memory;
    /// The local APICs are done with a level interrupt of that vector.
    std::function<void(std::uint8_t)> end_of_interrupt;
    /// Whether the old interrupt controller asks, and the vector that it gives when it is taken.
    std::function<bool()> has_interrupt;
    std::function<std::optional<std::uint8_t>()> take_interrupt;
    std::function<void(MachineEnd)> stop;
    /// Called first in each processor's thread, with its number.
    std::function<Result<void>(std::uint32_t)> begin_thread;
    /// The number of one that can neither be paused nor ended; called by who wants that.
    std::function<void(std::uint32_t)> stuck = {};
    std::chrono::milliseconds patience{10'000};
};

inline constexpr std::size_t count_exit_kinds = 10;
static_assert(count_exit_kinds == static_cast<std::size_t>(KvmExit::Kind::system_power_off) + 1);
/// How often a processor has left the guest, by KvmExit::Kind.
using ExitCounts = std::array<std::uint64_t, count_exit_kinds>;

class Processors {
public:
    Processors(std::vector<KvmVcpu> vcpus, ProcessorHooks hooks);
    Processors(const Processors&) = delete;
    Processors& operator=(const Processors&) = delete;
    ~Processors();

    /// The threads begin; each stands until resume() when the processors were paused before.
    void start();
    void pause();
    void resume();
    [[nodiscard]] bool is_paused() const;

    /// The first processor looks at the old interrupt controller soon.
    void notice_interrupt();

    [[nodiscard]] std::size_t count() const { return processors_.size(); }
    /// Of each processor, since it began; also while they run.
    [[nodiscard]] std::vector<ExitCounts> exits() const;
    /// Only while paused.
    [[nodiscard]] Result<KvmRegisters> registers(std::size_t processor) const;

private:
    struct Processor;
    void run(Processor& processor);
    /// Until that is so of all; with the mutex held, which is given up while waiting.
    void await(std::unique_lock<std::mutex>& lock, const std::function<bool(const Processor&)>& is_done);
    /// False when the processor is to end.
    [[nodiscard]] bool stand(Processor& processor);
    [[nodiscard]] bool give_interrupt(Processor& processor);
    [[nodiscard]] bool serve(Processor& processor, const KvmExit& exit);
    void serve_ports(const KvmExit& exit);

    ProcessorHooks hooks_;
    std::vector<std::unique_ptr<Processor>> processors_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::uint32_t pauses_ = 0;
    bool is_ending_ = false;
    bool is_stuck_told_ = false;
};

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/board_plan.hpp"
#include "guestmem/vmm/machine_facts.hpp"
#include "guestmem/vmm/processors.hpp"
#include "guestmem/vmm/sandbox.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// A virtual machine put together by its plan: memory, processors, devices, and a guest that can start.
///
/// Concepts: the world is what a machine speaks to: a place for what its serial port sends, one for what has to be said
/// about it. Everything else it owns.
/// Contract: create() makes all of it, or nothing: what was made goes with an error. start() runs the guest; the end
/// comes once, by the world's `ended`, from a thread of the machine. The destructor ends a guest that still runs.
/// Threads: any; the world's functions are called from the machine's threads, and must neither wait nor end the
/// machine.
/// Cost: create() touches no RAM but what the guest's files fill.
/// Example:
///     auto machine = GM_TRY(Machine::create(plan, world));
///     machine->start();

namespace guestmem::vmm {

struct MachineWorld {
    /// Bytes that the guest sent through the serial port of that number (in the order of the configuration).
    std::function<void(std::size_t port, std::byte)> send;
    /// A serial port that refused bytes takes some again.
    std::function<void(std::size_t port)> has_room;
    /// Bytes that the guest wrote to the debug port.
    std::function<void(std::byte)> debug;
    /// What an operator should know; a sentence.
    std::function<void(const std::string&)> warn;
    std::function<void(MachineEnd)> ended;
    /// The control socket of the share service; empty: the machine serves itself.
    std::string share_control = {};
    /// Entered by each thread of the machine, and by the one that calls start(), before the guest runs. Without one
    /// nothing is given up.
    std::shared_ptr<const Sandbox> sandbox = {};
    MemoryDump dump = MemoryDump::left_out;
    /// A processor does not come back from a device, so that the machine can neither be paused nor ended: a sentence.
    /// Does not return. Without one the process says so on standard error, and ends with stuck_exit_code.
    std::function<void(const std::string&)> stuck = {};
};

/// "It could not go on", as `guestmem run` has it.
inline constexpr int stuck_exit_code = 96;

class Machine {
public:
    [[nodiscard]] static Result<std::unique_ptr<Machine>> create(const BoardPlan& plan, MachineWorld world);
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    ~Machine();

    /// What goes wrong is the machine's end.
    void start();
    /// The guest and its time stand still until resume(). Pauses count.
    void pause();
    void resume();
    [[nodiscard]] bool is_paused() const;
    /// Asks the guest to switch itself off, as a power button does.
    void press_power_button();

    /// Bytes for a serial port; says how many it took.
    [[nodiscard]] std::size_t receive(std::size_t port, std::span<const std::byte> bytes);
    [[nodiscard]] std::size_t count_serial_ports() const;
    [[nodiscard]] std::size_t count_processors() const;
    [[nodiscard]] std::size_t count_slots() const;
    [[nodiscard]] MachineFacts facts() const;
    /// The control socket of the share service that the machine uses; empty: it uses none.
    [[nodiscard]] const std::string& share_control() const;
    /// To look at, to plug into and to log; lives as long as the machine.
    [[nodiscard]] VmMemory& memory();

private:
    struct Parts;
    explicit Machine(std::unique_ptr<Parts> parts);
    std::unique_ptr<Parts> parts_;
};

}  // namespace guestmem::vmm

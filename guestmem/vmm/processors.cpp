// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/processors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace guestmem::vmm {
namespace {

constexpr std::chrono::milliseconds await_step{50};

}  // namespace

struct Processors::Processor {
    explicit Processor(std::uint32_t given_number, KvmVcpu given)
        : number(given_number), vcpu(std::move(given)) {}

    std::uint32_t number;
    KvmVcpu vcpu;
    std::thread thread;
    bool is_standing = true;  ///< outside of run() and of devices, or ended
    bool has_ended = false;
    /// Written by its thread alone.
    std::array<std::atomic<std::uint64_t>, count_exit_kinds> exits{};

    void count(KvmExit::Kind kind) {
        auto& one = exits[static_cast<std::size_t>(kind)];
        one.store(one.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
};

Processors::Processors(std::vector<KvmVcpu> vcpus, ProcessorHooks hooks) : hooks_(std::move(hooks)) {
    for (KvmVcpu& vcpu : vcpus) {
        const auto number = static_cast<std::uint32_t>(processors_.size());
        processors_.push_back(std::make_unique<Processor>(number, std::move(vcpu)));
    }
}

Processors::~Processors() {
    {
        std::unique_lock lock{mutex_};
        is_ending_ = true;
        for (const auto& processor : processors_) processor->vcpu.interrupt();
        changed_.notify_all();
        await(lock, [](const Processor& one) { return one.has_ended || !one.thread.joinable(); });
    }
    for (const auto& processor : processors_) {
        if (processor->thread.joinable()) processor->thread.join();
    }
}

void Processors::start() {
    const std::lock_guard lock{mutex_};
    for (const auto& processor : processors_) {
        processor->is_standing = false;
        processor->thread = std::thread{[this, &one = *processor] { run(one); }};
    }
}

void Processors::pause() {
    std::unique_lock lock{mutex_};
    ++pauses_;
    for (const auto& processor : processors_) processor->vcpu.interrupt();
    await(lock, [](const Processor& one) { return one.is_standing; });
}

void Processors::await(std::unique_lock<std::mutex>& lock,
                       const std::function<bool(const Processor&)>& is_done) {
    const auto late = [&] {
        return std::ranges::find_if(processors_, [&](const auto& one) { return !is_done(*one); });
    };
    // Counted, not by the clock: a process that was stopped for a while has had no time to come back.
    std::chrono::milliseconds waited{0};
    while (!changed_.wait_for(lock, await_step, [&] { return late() == processors_.end(); })) {
        (*late())->vcpu.interrupt();
        waited += await_step;
        if (waited < hooks_.patience || !hooks_.stuck || std::exchange(is_stuck_told_, true)) continue;
        const std::uint32_t number = (*late())->number;
        lock.unlock();
        hooks_.stuck(number);
        lock.lock();
    }
}

void Processors::resume() {
    {
        const std::lock_guard lock{mutex_};
        if (pauses_ == 0) return;
        --pauses_;
    }
    changed_.notify_all();
}

bool Processors::is_paused() const {
    const std::lock_guard lock{mutex_};
    return pauses_ != 0;
}

void Processors::notice_interrupt() {
    if (!processors_.empty()) processors_.front()->vcpu.interrupt();
}

std::vector<ExitCounts> Processors::exits() const {
    std::vector<ExitCounts> all;
    for (const auto& processor : processors_) {
        ExitCounts& counts = all.emplace_back();
        for (std::size_t kind = 0; kind < counts.size(); ++kind)
            counts[kind] = processor->exits[kind].load(std::memory_order_relaxed);
    }
    return all;
}

Result<KvmRegisters> Processors::registers(std::size_t processor) const {
    const std::lock_guard lock{mutex_};
    if (processor >= processors_.size() || !processors_[processor]->is_standing) {
        return Error{Errc::busy,
                     fmt::format("processor {} does not stand still: pause the machine", processor)};
    }
    return processors_[processor]->vcpu.registers();
}

bool Processors::stand(Processor& processor) {
    std::unique_lock lock{mutex_};
    // Forgotten under the mutex: whoever pauses or ends sets it again after this, or is seen here.
    processor.vcpu.forget_interrupt();
    if (pauses_ != 0 && !is_ending_) {
        processor.is_standing = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return pauses_ == 0 || is_ending_; });
        processor.is_standing = false;
        processor.vcpu.forget_interrupt();
    }
    return !is_ending_;
}

void Processors::run(Processor& processor) {
    auto begun = hooks_.begin_thread ? hooks_.begin_thread(processor.number) : Result<void>{};
    if (!begun) {
        hooks_.stop({.kind = MachineEnd::Kind::failed, .message = begun.error().message()});
    } else {
        while (stand(processor) && give_interrupt(processor)) {
            const auto exit = processor.vcpu.run();
            if (!exit) {
                hooks_.stop({.kind = MachineEnd::Kind::failed, .message = exit.error().message()});
                break;
            }
            processor.count(exit->kind);
            if (!serve(processor, *exit)) break;
        }
    }
    const std::lock_guard lock{mutex_};
    processor.is_standing = true;
    processor.has_ended = true;
    changed_.notify_all();
}

bool Processors::give_interrupt(Processor& processor) {
    if (processor.number != 0 || !hooks_.has_interrupt) return true;
    if (!hooks_.has_interrupt()) {
        processor.vcpu.request_interrupt_window(false);
        return true;
    }
    if (!processor.vcpu.is_ready_for_interrupt()) {
        processor.vcpu.request_interrupt_window(true);
        return true;
    }
    const auto vector = hooks_.take_interrupt();
    if (!vector) return true;
    processor.vcpu.request_interrupt_window(hooks_.has_interrupt());
    const auto given = processor.vcpu.give_interrupt(*vector);
    if (!given) hooks_.stop({.kind = MachineEnd::Kind::failed, .message = given.error().message()});
    return given.has_value();
}

void Processors::serve_ports(const KvmExit& exit) {
    const std::size_t size = exit.data.size() / std::max<std::size_t>(exit.count, 1);
    if (size == 0) return;
    for (std::size_t at = 0; at + size <= exit.data.size(); at += size) {
        const auto part = exit.data.subspan(at, size);
        if (exit.is_write) {
            hooks_.ports.get().write(exit.address, part);
        } else {
            hooks_.ports.get().read(exit.address, part);
        }
    }
}

bool Processors::serve(Processor& processor, const KvmExit& exit) {
    using Kind = KvmExit::Kind;
    switch (exit.kind) {
        case Kind::io: serve_ports(exit); return true;
        case Kind::mmio:
            if (exit.is_write) {
                hooks_.memory.get().write(exit.address, exit.data);
            } else {
                hooks_.memory.get().read(exit.address, exit.data);
            }
            return true;
        case Kind::end_of_interrupt:
            if (hooks_.end_of_interrupt) hooks_.end_of_interrupt(static_cast<std::uint8_t>(exit.address));
            return true;
        case Kind::window_open:
        case Kind::interrupted:
        case Kind::halt: return true;
        case Kind::shutdown: hooks_.stop({.kind = MachineEnd::Kind::triple_fault}); return false;
        case Kind::system_reset: hooks_.stop({.kind = MachineEnd::Kind::reset}); return false;
        case Kind::system_power_off: hooks_.stop({.kind = MachineEnd::Kind::power_off}); return false;
        case Kind::failed: break;
    }
    const auto registers = processor.vcpu.registers();
    hooks_.stop(
        {.kind = MachineEnd::Kind::failed,
         .message = fmt::format("processor {}: the kernel cannot run the guest at {:#x} (exit {}, detail "
                                "{:#x})",
                                processor.number, registers ? registers->rip : 0, exit.reason, exit.detail)});
    return false;
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// The kernel's virtual machines: /dev/kvm, a machine, a processor of it.
///
/// Concepts: a KvmSystem is the door; a KvmMachine has memory slots, interrupt routes and eventfds; a KvmVcpu is
/// one processor, whose guest code runs inside run() until something has to be done for it, a KvmExit. The
/// interrupt controller is split: local APICs are in the kernel, the I/O APIC and what is older belong to the
/// program, which gives each of its pins a message as its route.
/// Contract: structures of the kernel are defined here, with their sizes checked: <linux/kvm.h> before 6.12 gives
/// some of them another size in C++, and the numbers of the calls follow from the sizes. An exit's data lies in
/// memory that the kernel shares with this process only: valid until the next run(), and what is written into it is
/// what a read gets. Slots come before everything that hangs on a bus (enable_split_irqchip() is none): one that is
/// set later costs milliseconds once.
/// Threads: machine calls any; a processor belongs to the thread that runs it, apart from interrupt().
/// Lifetime: a machine outlives its processors, and the memory of its slots outlives the machine.
/// Limits: x86-64. Elsewhere open() says that it is unsupported.
/// Cost: an exit to the program and back 1 to 15 us, by the kind of KVM.
/// Example:
///     const KvmSystem kvm = GM_TRY(KvmSystem::open());
///     const KvmMachine machine = GM_TRY(kvm.create_machine());
///     GM_TRY(machine.set_slot({.slot = 0, .size_bytes = ram.size(), .host = ram.data()}));
///     KvmVcpu vcpu = GM_TRY(machine.create_vcpu(0));
///     for (;;) { const KvmExit exit = GM_TRY(vcpu.run()); ... }

namespace guestmem {

struct KvmMemorySlot {
    std::uint32_t slot = 0;
    std::uint32_t flags = 0;  ///< 1: log writes; 2: read-only, a guest's write is an exit
    std::uint64_t guest_address = 0;
    std::uint64_t size_bytes = 0;  ///< 0: the slot goes
    std::uint64_t host_address = 0;
};

/// What a guest's interrupt line or an eventfd stands for: the message that the local APICs get.
struct KvmRoute {
    std::uint32_t gsi = 0;
    std::uint64_t address = 0;
    std::uint32_t data = 0;
};

struct KvmCpuidEntry {
    std::uint32_t function = 0, index = 0, flags = 0;
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    std::array<std::uint32_t, 3> padding = {};
};

struct KvmRegisters {
    std::uint64_t rax = 0, rbx = 0, rcx = 0, rdx = 0, rsi = 0, rdi = 0, rsp = 0, rbp = 0;
    std::uint64_t r8 = 0, r9 = 0, r10 = 0, r11 = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0;
    std::uint64_t rip = 0, rflags = 2;
};

struct KvmSegment {
    std::uint64_t base = 0;
    std::uint32_t limit = 0;
    std::uint16_t selector = 0;
    std::uint8_t type = 0, present = 0, dpl = 0, db = 0, s = 0, l = 0, g = 0, avl = 0, unusable = 0,
                 padding = 0;
};

struct KvmTable {
    std::uint64_t base = 0;
    std::uint16_t limit = 0;
    std::array<std::uint16_t, 3> padding = {};
};

struct KvmSystemRegisters {
    KvmSegment cs, ds, es, fs, gs, ss, tr, ldt;
    KvmTable gdt, idt;
    std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, cr8 = 0, efer = 0, apic_base = 0;
    std::array<std::uint64_t, 4> interrupt_bitmap = {};
};

struct KvmMsr {
    std::uint32_t index = 0, reserved = 0;
    std::uint64_t value = 0;
};

/// What the guest did that the kernel does not do for it.
struct KvmExit {
    enum class Kind : std::uint8_t {
        io,                ///< `count` accesses of `data.size() / count` bytes at port `address`
        mmio,              ///< one access where no memory slot is, or a write into a read-only one
        halt,              ///< only without a local APIC in the kernel
        end_of_interrupt,  ///< the local APICs are done with vector `address` of a level route
        window_open,       ///< the processor takes an interrupt that was asked for
        shutdown,          ///< a triple fault
        interrupted,       ///< interrupt() or a signal
        failed,            ///< the kernel cannot run this guest: `reason` and `detail` are its numbers
        system_reset,
        system_power_off,
    };
    Kind kind = Kind::interrupted;
    bool is_write = false;
    std::uint64_t address = 0;
    std::span<std::byte> data = {};
    std::uint32_t count = 1;
    std::uint32_t reason = 0;
    std::uint64_t detail = 0;
};

class KvmVcpu {
public:
    KvmVcpu(KvmVcpu&&) noexcept;
    KvmVcpu& operator=(KvmVcpu&&) noexcept;
    ~KvmVcpu();

    /// Until the next exit. The thread that calls it first is the processor's.
    [[nodiscard]] Result<KvmExit> run();
    /// Makes run() return, now or as soon as it is called; any thread.
    void interrupt();
    /// A run after this one goes on; what was asked before is forgotten.
    void forget_interrupt();

    [[nodiscard]] Result<KvmRegisters> registers() const;
    [[nodiscard]] Result<void> set_registers(const KvmRegisters& registers) const;
    [[nodiscard]] Result<KvmSystemRegisters> system_registers() const;
    [[nodiscard]] Result<void> set_system_registers(const KvmSystemRegisters& registers) const;
    [[nodiscard]] Result<void> set_cpuid(std::span<const KvmCpuidEntry> entries) const;
    [[nodiscard]] Result<void> set_msrs(std::span<const KvmMsr> msrs) const;

    /// Whether an interrupt of the old kind (its vector from outside) can be given at once; else asks for an exit as
    /// soon as it can.
    [[nodiscard]] bool is_ready_for_interrupt() const;
    void request_interrupt_window(bool is_wanted);
    [[nodiscard]] Result<void> give_interrupt(std::uint8_t vector) const;

private:
    friend class KvmMachine;
    struct Run;
    explicit KvmVcpu(std::unique_ptr<Run> run);
    std::unique_ptr<Run> run_;
};

class KvmMachine {
public:
    [[nodiscard]] Result<void> set_slot(const KvmMemorySlot& slot) const;
    /// Local APICs in the kernel, the routes of `pins` lines outside; before the first processor.
    [[nodiscard]] Result<void> enable_split_irqchip(std::uint32_t pins) const;
    /// All routes at once: those that are not named are gone.
    [[nodiscard]] Result<void> set_routes(std::span<const KvmRoute> routes) const;
    /// A write into the eventfd is that line's interrupt; kicks that wait in it are one. The kernel keeps a reference.
    [[nodiscard]] Result<void> connect_irqfd(FdView eventfd, std::uint32_t gsi) const;
    [[nodiscard]] Result<void> disconnect_irqfd(FdView eventfd, std::uint32_t gsi) const;
    /// A guest's write of `size_bytes` (0: of any size) to that address kicks the eventfd and is no exit. With `value`
    /// only a write of that value does.
    struct Doorbell {
        std::uint64_t address = 0;
        std::uint32_t size_bytes = 4;
        std::optional<std::uint64_t> value = std::nullopt;
        bool is_port = false;
    };
    [[nodiscard]] Result<void> connect_doorbell(const Doorbell& doorbell, FdView eventfd) const;
    [[nodiscard]] Result<void> disconnect_doorbell(const Doorbell& doorbell, FdView eventfd) const;
    [[nodiscard]] Result<void> send_message(std::uint64_t address, std::uint32_t data) const;
    [[nodiscard]] Result<KvmVcpu> create_vcpu(std::uint32_t id) const;
    /// The pages of a slot that were written since the last call, one bit each; `words` has room for all.
    [[nodiscard]] Result<void> get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> words) const;

private:
    friend class KvmSystem;
    KvmMachine(Fd fd, std::uint64_t run_bytes) : fd_(std::move(fd)), run_bytes_(run_bytes) {}
    Fd fd_;
    std::uint64_t run_bytes_ = 0;
};

class KvmSystem {
public:
    [[nodiscard]] static Result<KvmSystem> open(const char* path = "/dev/kvm");
    /// What KVM_CHECK_EXTENSION says of a capability; 0 when it has none of it.
    [[nodiscard]] std::uint32_t capability(std::uint32_t number) const;
    [[nodiscard]] std::uint32_t max_slots() const;
    [[nodiscard]] std::uint32_t max_vcpus() const;
    /// What processors of this host can show to a guest.
    [[nodiscard]] Result<std::vector<KvmCpuidEntry>> supported_cpuid() const;
    [[nodiscard]] Result<KvmMachine> create_machine() const;

private:
    explicit KvmSystem(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "guestmem/mem/kvm_slots.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// A virtual machine of /dev/kvm, which takes plans of memory slots, with one processor in real mode.
///
/// Contract: start() is false where /dev/kvm does not open. update() makes the calls of a plan as far as they go well
/// and commits them. run() goes from an address to the next HLT and tells in words what left the guest: "out 0x41",
/// "read 0x50000", "write 0x33 to 0x30002" (the first byte); what the guest reads where no memory is, is 0x77.
/// Limits: the processor is x86-64's; at most 32 exits a run.
/// Threads: one at a time.
/// Example:
///     KvmMachine machine;
///     if (!machine.start()) GTEST_SKIP() << "SKIPPED: no /dev/kvm that opens";

namespace guestmem::testing {

class KvmMachine {
public:
    [[nodiscard]] bool start() {
        kvm_ = Fd{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
        if (!kvm_.is_open()) return false;
        vm_ = Fd{::ioctl(kvm_.view().number(), KVM_CREATE_VM, 0)};
        return vm_.is_open();
    }
    [[nodiscard]] int ask(unsigned long extension) const {
        return ::ioctl(vm_.view().number(), KVM_CHECK_EXTENSION, extension);
    }
    [[nodiscard]] bool set(KvmSlot slot) const {
        return ::ioctl(vm_.view().number(), KVM_SET_USER_MEMORY_REGION, &slot) == 0;
    }
    /// Makes the calls of the plan as far as they go well.
    [[nodiscard]] Result<void> update(KvmSlots& slots, const MemoryMap& map) const {
        const KvmSlotPlan plan = GM_TRY(slots.plan(map));
        std::size_t count_done = 0;
        for (const KvmSlotEntry& step : plan.steps()) {
            if (!set(step.slot)) break;
            ++count_done;
        }
        GM_TRY(slots.commit(plan, count_done));
        if (count_done < plan.steps().size()) return Error::from_errno(errno, "set a memory slot");
        return {};
    }
    [[nodiscard]] KvmSlots make_slots() const {
        return KvmSlots::create({.max_slots = static_cast<std::uint32_t>(ask(KVM_CAP_NR_MEMSLOTS)),
                                 .has_read_only = ask(KVM_CAP_READONLY_MEM) > 0})
            .value();
    }
    /// The pages of a slot that were written since the last look, one bit each.
    [[nodiscard]] Result<std::uint64_t> dirty_bits(std::uint32_t slot) const {
        std::uint64_t bits = 0;
        kvm_dirty_log log{};
        log.slot = slot;
        log.dirty_bitmap = &bits;
        if (::ioctl(vm_.view().number(), KVM_GET_DIRTY_LOG, &log) != 0)
            return Error::from_errno(errno, "get the dirty log");
        return bits;
    }

#if defined(__x86_64__)
    [[nodiscard]] bool start_processor() {
        // Where Intel processors of old keep their real mode: anywhere that no slot is.
        if (::ioctl(vm_.view().number(), KVM_SET_TSS_ADDR, 0xfffbd000UL) != 0) return false;
        cpu_ = Fd{::ioctl(vm_.view().number(), KVM_CREATE_VCPU, 0)};
        const int size = ::ioctl(kvm_.view().number(), KVM_GET_VCPU_MMAP_SIZE, 0);
        if (!cpu_.is_open() || size <= 0) return false;
        shared_ =
            Mapping::create(cpu_, {.size_bytes = static_cast<std::uint64_t>(size), .may_exceed_file = true})
                .value();
        run_ = reinterpret_cast<kvm_run*>(shared_.bytes().data());
        return true;
    }
    /// Runs from `address` to the next HLT; what the guest did that left it, in words.
    [[nodiscard]] std::vector<std::string> run(std::uint16_t address) {
        kvm_sregs system{};
        EXPECT_EQ(::ioctl(cpu_.view().number(), KVM_GET_SREGS, &system), 0);
        system.cs.selector = 0;
        system.cs.base = 0;
        EXPECT_EQ(::ioctl(cpu_.view().number(), KVM_SET_SREGS, &system), 0);
        kvm_regs registers{};
        registers.rip = address;
        registers.rflags = 2;
        EXPECT_EQ(::ioctl(cpu_.view().number(), KVM_SET_REGS, &registers), 0);
        std::vector<std::string> events;
        constexpr std::size_t max_events = 32;
        while (events.size() < max_events) {
            if (::ioctl(cpu_.view().number(), KVM_RUN, 0) != 0) {
                if (errno == EINTR) continue;
                events.emplace_back("run failed");
                return events;
            }
            if (run_->exit_reason == KVM_EXIT_HLT) return events;
            events.push_back(exit_in_words());
        }
        return events;
    }

private:
    static std::string hex(std::uint64_t value) {
        std::array<char, 20> text{};
        std::snprintf(text.data(), text.size(), "%#llx", static_cast<unsigned long long>(value));
        return text.data();
    }
    [[nodiscard]] std::string exit_in_words() const {
        if (run_->exit_reason == KVM_EXIT_IO) {
            const auto value = shared_.bytes()[run_->io.data_offset];
            return "out " + hex(std::to_integer<std::uint64_t>(value));
        }
        if (run_->exit_reason != KVM_EXIT_MMIO) return "exit " + std::to_string(run_->exit_reason);
        if (run_->mmio.is_write != 0)
            return "write " + hex(run_->mmio.data[0]) + " to " + hex(run_->mmio.phys_addr);
        run_->mmio.data[0] = 0x77;
        return "read " + hex(run_->mmio.phys_addr);
    }

    Fd cpu_;
    Mapping shared_;
    kvm_run* run_ = nullptr;
#else
private:
#endif
    Fd kvm_;
    Fd vm_;
};

}  // namespace guestmem::testing

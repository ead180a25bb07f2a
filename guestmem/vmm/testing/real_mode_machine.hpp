// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>

#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/sys/kvm.hpp"

/// A machine of /dev/kvm with 64 KiB of RAM and processors in real mode, for tests of what stands around a machine.
///
/// Contract: start() is false where /dev/kvm does not open, and `why` says why. load() puts code at 0x1000 on, where
/// each processor begins.
/// Threads: one at a time.
/// Example:
///     RealModeMachine machine;
///     if (!machine.start()) GTEST_SKIP() << "SKIPPED: " << machine.why;

namespace guestmem::vmm::testing {

class RealModeMachine {
public:
    static constexpr std::uint64_t ram_bytes = 64UL * 1024;
    static constexpr std::uint64_t code_at = 0x1000;

    [[nodiscard]] bool start() {
        auto opened = KvmSystem::open();
        if (!opened) {
            why = opened.error().message();
            return false;
        }
        system.emplace(*std::move(opened));
        machine = std::make_shared<const KvmMachine>(system->create_machine().value());
        ram = Region::create({.name = "ram",
                              .base = GuestAddress{0},
                              .memory = HostMemory::create_anonymous({.size_bytes = ram_bytes}).value()})
                  .value();
        Layout layout;
        layout.add(ram);
        map = std::move(layout).freeze().value();
        return true;
    }

    void load(std::initializer_list<unsigned> code) const {
        std::byte* at = ram->host_base() + code_at;
        for (const unsigned byte : code) *at++ = static_cast<std::byte>(byte);
    }

    /// At the code's beginning, with `number` in BX.
    [[nodiscard]] KvmVcpu make_vcpu(std::uint32_t number) const {
        KvmVcpu vcpu = machine->create_vcpu(number).value();
        auto registers = vcpu.system_registers().value();
        registers.cs.base = 0;
        registers.cs.selector = 0;
        EXPECT_TRUE(vcpu.set_system_registers(registers));
        EXPECT_TRUE(vcpu.set_registers({.rbx = number, .rip = code_at}));
        return vcpu;
    }

    std::string why;
    std::optional<KvmSystem> system;
    std::shared_ptr<const KvmMachine> machine;
    std::shared_ptr<const Region> ram;
    std::shared_ptr<const MemoryMap> map;
};

}  // namespace guestmem::vmm::testing

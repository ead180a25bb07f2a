// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/kvm.hpp"
#include "guestmem/vmm/boot/entry_state.hpp"

/// What a processor is before its first instruction: its identity, and for the first one where it begins.
///
/// Concepts: identity (CPUID) is what the host's KVM can show, with what differs by processor filled in: its APIC
/// id and how many there are, all in one package.
/// Contract: the first processor gets the entry state; the others wait for the start-up interrupt that the guest
/// sends them, as KVM's local APICs have it.
/// Threads: any; plain values.

namespace guestmem::vmm {

/// The list for processor `number` of `count`.
[[nodiscard]] std::vector<KvmCpuidEntry> make_cpuid(std::span<const KvmCpuidEntry> supported,
                                                    std::uint32_t number, std::uint32_t count,
                                                    bool has_tsc_deadline);
/// The size of guest physical addresses that a list says; 36 when it says none.
[[nodiscard]] unsigned address_bits(std::span<const KvmCpuidEntry> supported);

/// What firmware would have set on every processor: memory is cached unless a page says otherwise. Without it Linux
/// takes the memory types for switched off and leaves the kinds of pages (PAT) as they are after a reset.
[[nodiscard]] std::vector<KvmMsr> make_msrs();

[[nodiscard]] KvmRegisters make_registers(const EntryState& entry);
/// `before` has what the entry state does not say.
[[nodiscard]] KvmSystemRegisters make_system_registers(const EntryState& entry,
                                                       const KvmSystemRegisters& before);

}  // namespace guestmem::vmm

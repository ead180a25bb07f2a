// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vcpu_setup.hpp"

#include <algorithm>
#include <bit>

namespace guestmem::vmm {
namespace {

// Intel SDM volume 2, CPUID; leaf 1.
constexpr std::uint32_t leaf_features = 1;
constexpr std::uint32_t has_hypervisor = 1U << 31;
constexpr std::uint32_t has_tsc_deadline_timer = 1U << 24;
constexpr std::uint32_t has_hyper_threading = 1U << 28;  // edx: the count of leaf 1's ebx is meant
constexpr std::uint32_t leaf_cache = 4;
constexpr std::uint32_t leaf_topology = 0xb;
constexpr std::uint32_t leaf_topology_v2 = 0x1f;
constexpr std::uint32_t leaf_address_sizes = 0x8000'0008;
constexpr std::uint32_t level_thread = 1;
constexpr std::uint32_t level_core = 2;
constexpr unsigned default_address_bits = 36;

// Intel SDM volume 3, "Memory type range registers": IA32_MTRR_DEF_TYPE.
constexpr std::uint32_t msr_default_memory_type = 0x2ff;
constexpr std::uint64_t has_memory_types = 1U << 11;
constexpr std::uint64_t type_write_back = 6;

/// Bits of an APIC id that tell the processors of a package apart.
std::uint32_t package_shift(std::uint32_t count) {
    return static_cast<std::uint32_t>(std::bit_width(count - 1));
}

void set_features(KvmCpuidEntry& entry, std::uint32_t number, std::uint32_t count, bool has_deadline) {
    const std::uint32_t slots = std::min(1U << package_shift(count), 255U);
    entry.ebx = (entry.ebx & 0x0000'ffff) | (number << 24) | (slots << 16);
    entry.ecx |= has_hypervisor;
    if (has_deadline) entry.ecx |= has_tsc_deadline_timer;
    if (count > 1) {
        entry.edx |= has_hyper_threading;
    } else {
        entry.edx &= ~has_hyper_threading;
    }
}

/// One thread a core, all cores in one package.
void set_topology(KvmCpuidEntry& entry, std::uint32_t number, std::uint32_t count) {
    entry.eax = entry.ebx = 0;
    entry.ecx = entry.index & 0xff;
    entry.edx = number;
    if (entry.index == 0) {
        entry.ebx = 1;
        entry.ecx |= level_thread << 8;
    } else if (entry.index == 1) {
        entry.eax = package_shift(count);
        entry.ebx = count;
        entry.ecx |= level_core << 8;
    }
}

/// Deterministic caches (leaf 4): level 3 is everybody's, others a core's.
void set_cache(KvmCpuidEntry& entry, std::uint32_t count) {
    if ((entry.eax & 0x1f) == 0) return;
    const bool is_shared = ((entry.eax >> 5) & 7) >= 3;
    const std::uint32_t slots = std::min(1U << package_shift(count), 64U);
    entry.eax &= 0x3fff;
    entry.eax |= (is_shared ? slots - 1 : 0) << 14;
    entry.eax |= (slots - 1) << 26;
}

KvmSegment to_kvm(const SegmentState& state) {
    KvmSegment segment;
    segment.base = state.base;
    segment.limit = state.limit;
    segment.selector = state.selector;
    segment.type = state.type;
    segment.present = state.is_present ? 1 : 0;
    segment.db = state.is_32_bit ? 1 : 0;
    segment.s = state.is_code_or_data ? 1 : 0;
    segment.l = state.is_64_bit ? 1 : 0;
    segment.g = state.has_page_granularity ? 1 : 0;
    return segment;
}

}  // namespace

std::vector<KvmCpuidEntry> make_cpuid(std::span<const KvmCpuidEntry> supported, std::uint32_t number,
                                      std::uint32_t count, bool has_tsc_deadline) {
    std::vector<KvmCpuidEntry> entries{supported.begin(), supported.end()};
    for (KvmCpuidEntry& entry : entries) {
        switch (entry.function) {
            case leaf_features: set_features(entry, number, count, has_tsc_deadline); break;
            case leaf_cache: set_cache(entry, count); break;
            case leaf_topology:
            case leaf_topology_v2: set_topology(entry, number, count); break;
            default: break;
        }
    }
    return entries;
}

unsigned address_bits(std::span<const KvmCpuidEntry> supported) {
    const auto found = std::ranges::find(supported, leaf_address_sizes, &KvmCpuidEntry::function);
    return found == supported.end() ? default_address_bits : found->eax & 0xff;
}

std::vector<KvmMsr> make_msrs() {
    return {{.index = msr_default_memory_type, .value = has_memory_types | type_write_back}};
}

KvmRegisters make_registers(const EntryState& entry) {
    KvmRegisters registers;
    registers.rax = entry.rax;
    registers.rbx = entry.rbx;
    registers.rsi = entry.rsi;
    registers.rdi = entry.rdi;
    registers.rsp = entry.rsp;
    registers.rip = entry.rip;
    registers.rflags = entry.rflags;
    return registers;
}

KvmSystemRegisters make_system_registers(const EntryState& entry, const KvmSystemRegisters& before) {
    KvmSystemRegisters registers = before;
    registers.cs = to_kvm(entry.code);
    registers.ds = registers.es = registers.fs = registers.gs = registers.ss = to_kvm(entry.data);
    registers.tr = to_kvm(entry.task);
    registers.gdt = {.base = entry.gdt_base, .limit = entry.gdt_limit, .padding = {}};
    registers.idt = {};
    registers.cr0 = entry.cr0;
    registers.cr3 = entry.cr3;
    registers.cr4 = entry.cr4;
    registers.efer = entry.efer;
    return registers;
}

}  // namespace guestmem::vmm

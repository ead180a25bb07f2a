// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"

/// What the first processor has to be set to before its first instruction, and the tables that this needs.
///
/// Concepts: two modes. protected_32: flat segments of 4 GiB, no paging (PVH, ELF32, Linux without a 64-bit entry).
/// long_64: paging on, the low 4 GiB mapped at their own addresses in pages of 2 MiB, readable, writable and
/// executable (Linux, ELF64, flat). Both have one descriptor table, with selectors as Linux' boot protocol wants them.
/// Contract: a SegmentState has the fields of KVM's kvm_segment and nothing that KVM would refuse. Registers that are
/// not named are 0; rflags is 2 (interrupts off); the interrupt table is empty, so a fault before the guest sets its
/// own is a triple fault. All memory is mapped write-back; a device's addresses exit because no memory slot is there.
/// Threads: any; plain values.
/// Example:
///     GM_TRY(write_entry_tables(EntryMode::long_64, memory));
///     EntryState state = make_entry_state(EntryMode::long_64, entry);
///     state.rsi = low_memory::zero_page.base;

namespace guestmem::vmm {

enum class EntryMode : std::uint8_t { protected_32, long_64 };

[[nodiscard]] std::string_view to_string(EntryMode mode);

struct SegmentState {
    std::uint64_t base = 0;
    std::uint32_t limit = 0;
    std::uint16_t selector = 0;
    std::uint8_t type = 0;
    bool is_present = false;
    bool is_32_bit = false;        ///< db
    bool is_code_or_data = false;  ///< s
    bool is_64_bit = false;        ///< l
    bool has_page_granularity = false;
    friend bool operator==(const SegmentState&, const SegmentState&) = default;
};

struct EntryState {
    EntryMode mode = EntryMode::protected_32;
    std::uint64_t rip = 0;
    std::uint64_t rsp = 0;
    std::uint64_t rax = 0;
    std::uint64_t rbx = 0;
    std::uint64_t rsi = 0;
    std::uint64_t rdi = 0;
    std::uint64_t rflags = 2;

    std::uint64_t cr0 = 0;
    std::uint64_t cr3 = 0;
    std::uint64_t cr4 = 0;
    std::uint64_t efer = 0;
    std::uint64_t gdt_base = 0;
    std::uint16_t gdt_limit = 0;  ///< the last byte's offset
    SegmentState code;
    SegmentState data;  ///< for ds, es, fs, gs and ss
    SegmentState task;
    friend bool operator==(const EntryState&, const EntryState&) = default;
};

/// Selectors: __BOOT_CS and __BOOT_DS of Linux' boot protocol, and a task segment behind them.
inline constexpr std::uint16_t boot_code_selector = 0x10;
inline constexpr std::uint16_t boot_data_selector = 0x18;
inline constexpr std::uint16_t boot_task_selector = 0x20;

[[nodiscard]] EntryState make_entry_state(EntryMode mode, GuestAddress entry);

/// Writes the descriptor table, and the page tables for long_64, to their spots of low_memory.hpp.
[[nodiscard]] Result<void> write_entry_tables(EntryMode mode, BootMemory& memory);

}  // namespace guestmem::vmm

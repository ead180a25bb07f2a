// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/entry_state.hpp"

#include <array>
#include <span>
#include <vector>

#include "guestmem/mem/object.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {

namespace {

// Intel SDM 3A: 2.5 (control registers), 3.4.5 (descriptors), 4.5 (paging).
constexpr std::uint64_t cr0_protected = 1;
constexpr std::uint64_t cr0_extension = std::uint64_t{1} << 4;
constexpr std::uint64_t cr0_numeric_error = std::uint64_t{1} << 5;
constexpr std::uint64_t cr0_write_protect = std::uint64_t{1} << 16;
constexpr std::uint64_t cr0_paging = std::uint64_t{1} << 31;
constexpr std::uint64_t cr4_physical_extension = std::uint64_t{1} << 5;
constexpr std::uint64_t efer_long_mode = std::uint64_t{1} << 8;
constexpr std::uint64_t efer_long_active = std::uint64_t{1} << 10;

constexpr std::uint8_t type_code = 0xb;  // execute, read, accessed
constexpr std::uint8_t type_data = 0x3;  // read, write, accessed
constexpr std::uint8_t type_task = 0xb;  // busy task segment of 32 or 64 bits
constexpr std::uint32_t task_limit = 0x67;

constexpr std::uint64_t page_present = 1;
constexpr std::uint64_t page_writable = 2;
constexpr std::uint64_t page_large = std::uint64_t{1} << 7;
constexpr std::uint64_t large_page_bytes = std::uint64_t{2} << 20;
constexpr std::size_t entries_of_table = 512;
constexpr std::size_t count_directories = 4;  // of 1 GiB each

constexpr std::size_t count_descriptors = 6;  // a task segment of 64 bits takes two

std::uint64_t to_descriptor(const SegmentState& segment) {
    // With pages as the unit the limit's low 12 bits are ones by themselves.
    const std::uint64_t limit = segment.has_page_granularity ? segment.limit >> 12 : segment.limit;
    const std::uint64_t access =
        segment.type | (segment.is_code_or_data ? 0x10u : 0u) | (segment.is_present ? 0x80u : 0u);
    const std::uint64_t flags = (segment.is_64_bit ? 2u : 0u) | (segment.is_32_bit ? 4u : 0u) |
                                (segment.has_page_granularity ? 8u : 0u);
    return (limit & 0xffff) | (segment.base & 0xffffff) << 16 | access << 40 | (limit >> 16 & 0xf) << 48 |
           flags << 52 | (segment.base >> 24 & 0xff) << 56;
}

Result<void> write_words(BootMemory& memory, std::uint64_t address, std::span<const Le64> words) {
    const auto done = memory.write_bytes(GuestAddress{address}, std::as_bytes(words));
    if (!done) return done.error().to_error("entry tables");
    return {};
}

Result<void> write_page_tables(BootMemory& memory) {
    constexpr std::uint64_t level_4 = low_memory::page_tables.base;
    constexpr std::uint64_t level_3 = level_4 + low_memory::page_bytes;
    constexpr std::uint64_t level_2 = level_3 + low_memory::page_bytes;
    static_assert((2 + count_directories) * low_memory::page_bytes == low_memory::page_tables.size_bytes);
    std::vector<Le64> words((2 + count_directories) * entries_of_table, Le64{0});
    words[0] = Le64{level_3 | page_present | page_writable};
    for (std::size_t i = 0; i < count_directories; ++i)
        words[entries_of_table + i] =
            Le64{(level_2 + i * low_memory::page_bytes) | page_present | page_writable};
    for (std::size_t i = 0; i < count_directories * entries_of_table; ++i)
        words[2 * entries_of_table + i] =
            Le64{i * large_page_bytes | page_present | page_writable | page_large};
    return write_words(memory, level_4, words);
}

}  // namespace

std::string_view to_string(EntryMode mode) {
    return mode == EntryMode::long_64 ? "64-bit mode, low 4 GiB mapped" : "32-bit protected mode, no paging";
}

EntryState make_entry_state(EntryMode mode, GuestAddress entry) {
    const bool is_long = mode == EntryMode::long_64;
    EntryState state;
    state.mode = mode;
    state.rip = entry.value();
    state.gdt_base = low_memory::descriptor_table.base;
    state.gdt_limit = count_descriptors * sizeof(Le64) - 1;
    state.code = {.limit = 0xffffffff,
                  .selector = boot_code_selector,
                  .type = type_code,
                  .is_present = true,
                  .is_32_bit = !is_long,
                  .is_code_or_data = true,
                  .is_64_bit = is_long,
                  .has_page_granularity = true};
    state.data = {.limit = 0xffffffff,
                  .selector = boot_data_selector,
                  .type = type_data,
                  .is_present = true,
                  .is_32_bit = true,
                  .is_code_or_data = true,
                  .has_page_granularity = true};
    state.task = {.limit = task_limit, .selector = boot_task_selector, .type = type_task, .is_present = true};
    state.cr0 = cr0_protected | cr0_extension | cr0_numeric_error;
    if (is_long) {
        state.cr0 |= cr0_write_protect | cr0_paging;
        state.cr3 = low_memory::page_tables.base;
        state.cr4 = cr4_physical_extension;
        state.efer = efer_long_mode | efer_long_active;
    }
    return state;
}

Result<void> write_entry_tables(EntryMode mode, BootMemory& memory) {
    const EntryState state = make_entry_state(mode, GuestAddress{0});
    std::array<Le64, count_descriptors> descriptors{};
    descriptors[boot_code_selector / sizeof(Le64)] = Le64{to_descriptor(state.code)};
    descriptors[boot_data_selector / sizeof(Le64)] = Le64{to_descriptor(state.data)};
    descriptors[boot_task_selector / sizeof(Le64)] = Le64{to_descriptor(state.task)};
    static_assert(boot_task_selector / sizeof(Le64) + 1 < count_descriptors);
    GM_TRY(write_words(memory, low_memory::descriptor_table.base, descriptors));
    if (mode == EntryMode::long_64) GM_TRY(write_page_tables(memory));
    return {};
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/pvh.hpp"

#include <fmt/format.h>

#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {

namespace {

constexpr std::uint64_t modules_address = low_memory::start_info.base + 0x80;
constexpr std::uint64_t map_address = low_memory::start_info.base + 0x100;
static_assert(low_memory::start_info.base + sizeof(StartInfo) <= modules_address);
static_assert(modules_address + sizeof(StartModule) <= map_address);
static_assert(map_address + max_memory_map_entries * sizeof(PvhMemoryEntry) <=
              low_memory::start_info.base + low_memory::start_info.size_bytes);

Result<void> write(BootMemory& memory, std::uint64_t address, std::span<const std::byte> bytes) {
    if (const auto done = memory.write_bytes(GuestAddress{address}, bytes); !done)
        return done.error().to_error(low_memory::start_info.name);
    return {};
}

}  // namespace

Result<void> write_start_info(const StartInfoPlan& plan, BootMemory& memory) {
    if (plan.map.size() > max_memory_map_entries)
        return Error{Errc::exhausted,
                     fmt::format("start information: {} entries of the memory map; at most {}",
                                 plan.map.size(), max_memory_map_entries)};
    const auto entries = to_pvh(plan.map);
    StartInfo info{};
    info.magic = Le32{start_info_magic};
    info.version = Le32{1};
    if (plan.initrd) {
        const StartModule initrd{Le64{plan.initrd->base().value()}, Le64{plan.initrd->size_bytes()}, Le64{0},
                                 Le64{0}};
        info.count_modules = Le32{1};
        info.modules_address = Le64{modules_address};
        GM_TRY(write(memory, modules_address, std::as_bytes(std::span{&initrd, 1})));
    }
    if (plan.has_command_line) info.command_line_address = Le64{low_memory::command_line.base};
    if (plan.rsdp) info.rsdp_address = Le64{plan.rsdp->value()};
    if (!entries.empty()) {
        info.memory_map_address = Le64{map_address};
        info.count_memory_map_entries = Le32{static_cast<std::uint32_t>(entries.size())};
        GM_TRY(write(memory, map_address, std::as_bytes(std::span{entries})));
    }
    return write(memory, low_memory::start_info.base, std::as_bytes(std::span{&info, 1}));
}

EntryState make_pvh_entry(GuestAddress entry) {
    EntryState state = make_entry_state(EntryMode::protected_32, entry);
    state.rbx = low_memory::start_info.base;
    return state;
}

}  // namespace guestmem::vmm

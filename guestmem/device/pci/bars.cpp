// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/bars.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace guestmem::pci {
namespace {

// Low bits of a register (6.2.5.1).
constexpr std::uint32_t bit_io = 1;
constexpr std::uint32_t type_64bit = 2 << 1;
constexpr std::uint32_t bit_prefetchable = 1 << 3;

// 6.2.5.1: memory has 16 bytes at least; ports 4 at least, and 256 at most.
constexpr std::uint64_t least_memory_bytes = 16;
constexpr std::uint64_t least_port_count = 4;
constexpr std::uint64_t most_port_count = 256;
constexpr std::uint64_t most_bytes_below_4g = std::uint64_t{1} << 31;

std::size_t register_of(unsigned index) { return first_bar_register + std::size_t{4} * index; }

/// The address bits that a guest can set.
std::uint64_t address_mask(const Bar& bar) {
    const std::uint64_t all = bar.kind == BarKind::memory64 ? ~std::uint64_t{0} : 0xffff'ffff;
    return all & ~(bar.size_bytes - 1);
}

std::uint16_t decode_bit(const Bar& bar) { return bar.kind == BarKind::io ? command_io : command_memory; }

std::uint32_t kind_bits(const Bar& bar) {
    if (bar.kind == BarKind::io) return bit_io;
    return (bar.kind == BarKind::memory64 ? type_64bit : 0) | (bar.is_prefetchable ? bit_prefetchable : 0);
}

Result<void> check(const Bar& bar, const std::string& name) {
    const auto invalid = [&name](const std::string& why) {
        return Error{Errc::invalid_argument, fmt::format("{}: {}", name, why)};
    };
    const unsigned last = bar.index + (bar.kind == BarKind::memory64 ? 1 : 0);
    if (bar.index >= count_bars || last >= count_bars)
        return invalid("there are BAR0 to BAR5, 64-bit ones take two");
    if (!std::has_single_bit(bar.size_bytes))
        return invalid(fmt::format("{} bytes are not a power of two", bar.size_bytes));
    const bool is_io = bar.kind == BarKind::io;
    const std::uint64_t least = is_io ? least_port_count : least_memory_bytes;
    std::uint64_t most = std::uint64_t{1} << 62;
    if (bar.kind == BarKind::memory32) most = most_bytes_below_4g;
    if (is_io) most = most_port_count;
    if (bar.size_bytes < least || bar.size_bytes > most)
        return invalid(fmt::format("{} bytes are not {} to {}", bar.size_bytes, least, most));
    if (is_io && (bar.is_prefetchable || bar.moved))
        return invalid("ports are neither prefetchable nor memory");
    if (!bar.device && !bar.moved) return invalid("there is nothing to show");
    return {};
}

}  // namespace

bool is_decodable(const Bar& bar, std::uint64_t address) {
    const std::uint64_t mask = address_mask(bar);
    return (address & ~mask) == 0 && address != 0 && address != mask;
}

Result<Bars> Bars::create(std::string name, std::vector<Bar> bars, const Report& report) {
    Bars made;
    unsigned taken = 0;
    for (Bar& bar : bars) {
        std::string bar_name = fmt::format("{} BAR{}", name, bar.index);
        GM_TRY(check(bar, bar_name));
        const unsigned registers = (bar.kind == BarKind::memory64 ? 3U : 1U) << bar.index;
        if ((taken & registers) != 0)
            return Error{Errc::already_exists, fmt::format("{}: another BAR has its register", bar_name)};
        taken |= registers;
        made.slots_.push_back({.bar = std::move(bar),
                               .name = std::move(bar_name),
                               .shown = std::nullopt,
                               .is_refused = false,
                               .report = std::make_unique<ReportOnce>(report)});
    }
    return made;
}

void Bars::install(ConfigSpace& space) const {
    for (const Slot& slot : slots_) {
        const std::size_t offset = register_of(slot.bar.index);
        const std::uint64_t mask = address_mask(slot.bar);
        space.set(offset, kind_bits(slot.bar));
        space.allow_write(offset, static_cast<std::uint32_t>(mask & 0xffff'ffff));
        if (slot.bar.kind == BarKind::memory64)
            space.allow_write(offset + 4, static_cast<std::uint32_t>(mask >> 32));
        space.allow_write(command_register, decode_bit(slot.bar));
    }
}

void Bars::plug(Bus& memory, Bus& ports) {
    memory_ = &memory;
    ports_ = &ports;
}

Bus* Bars::bus_of(const Slot& slot) const { return slot.bar.kind == BarKind::io ? ports_ : memory_; }

const Bars::Slot* Bars::find(unsigned index) const {
    const auto found =
        std::ranges::find_if(slots_, [index](const Slot& one) { return one.bar.index == index; });
    return found == slots_.end() ? nullptr : &*found;
}

std::uint64_t Bars::programmed(const ConfigSpace& space, unsigned index) const {
    const Slot* slot = find(index);
    if (slot == nullptr) return 0;
    std::uint64_t address = space.get<std::uint32_t>(register_of(index));
    if (slot->bar.kind == BarKind::memory64)
        address |= std::uint64_t{space.get<std::uint32_t>(register_of(index) + 4)} << 32;
    return address & address_mask(slot->bar);
}

void Bars::program(ConfigSpace& space, unsigned index, std::uint64_t address) const {
    const Slot* slot = find(index);
    if (slot == nullptr) return;
    const std::uint64_t value = address & address_mask(slot->bar);
    space.set(register_of(index), static_cast<std::uint32_t>(value & 0xffff'ffff) | kind_bits(slot->bar));
    if (slot->bar.kind == BarKind::memory64)
        space.set(register_of(index) + 4, static_cast<std::uint32_t>(value >> 32));
}

bool Bars::update(const ConfigSpace& space) {
    const auto command = space.get<std::uint16_t>(command_register);
    const auto wanted = [&](const Slot& slot) -> std::optional<std::uint64_t> {
        const std::uint64_t address = programmed(space, slot.bar.index);
        if (bus_of(slot) == nullptr || (command & decode_bit(slot.bar)) == 0) return std::nullopt;
        if (!is_decodable(slot.bar, address)) return std::nullopt;
        return address;
    };
    bool has_left = false;
    for (Slot& slot : slots_) {
        if (!slot.shown || slot.shown == wanted(slot)) continue;
        has_left = hide(slot) || has_left;
    }
    for (Slot& slot : slots_) {
        const auto address = wanted(slot);
        slot.is_refused = slot.shown && slot.shown != address;
        if (!address || slot.shown) continue;
        const auto shown = show(slot, *address);
        slot.is_refused = !shown;
        if (!shown) slot.report->say(shown.error());
    }
    return has_left;
}

Result<void> Bars::show(Slot& slot, std::uint64_t address) const {
    Bus& bus = *bus_of(slot);
    GM_TRY(bus.add(
        {.name = slot.name, .first = address, .count = slot.bar.size_bytes, .device = slot.bar.device}));
    if (slot.bar.moved) {
        if (auto done = slot.bar.moved(address); !done) {
            bus.remove(address);
            return std::move(done).error().with_context(fmt::format("{} at {:#x}", slot.name, address));
        }
    }
    slot.shown = address;
    return {};
}

bool Bars::hide(Slot& slot) const {
    if (slot.bar.moved) {
        if (const auto done = slot.bar.moved(std::nullopt); !done) {
            slot.report->say(done.error());
            return false;
        }
    }
    bus_of(slot)->remove(*slot.shown);
    slot.shown.reset();
    return true;
}

void Bars::unplug() {
    for (Slot& slot : slots_) {
        slot.is_refused = false;
        if (!slot.shown || hide(slot)) continue;
        // Whoever unplugs takes the window in any case.
        bus_of(slot)->remove(*slot.shown);
        slot.shown.reset();
    }
    memory_ = nullptr;
    ports_ = nullptr;
}

std::vector<Bar> Bars::list() const {
    std::vector<Bar> bars;
    for (const Slot& slot : slots_) bars.push_back(slot.bar);
    return bars;
}

std::optional<std::uint64_t> Bars::address(unsigned index) const {
    const Slot* slot = find(index);
    return slot == nullptr ? std::nullopt : slot->shown;
}

bool Bars::has_refused() const {
    return std::ranges::any_of(slots_, [](const Slot& slot) { return slot.is_refused; });
}

}  // namespace guestmem::pci

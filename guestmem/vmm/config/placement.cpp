// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/placement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/vmm/config/numbers.hpp"

namespace guestmem::vmm {
namespace {

std::string write_range(const GuestRange& range) {
    return fmt::format("{}-{}", write_address(range.base().value()), write_address(range.last().value()));
}

/// "ram 1024M" as it was meant: start and length with the units of write_length().
std::string title_of(const MemoryLine& line) {
    static constexpr std::string_view titles[] = {"ram", "rom", "reserve loc"};
    const std::string start =
        line.start ? fmt::format("{},", write_address(line.start->value.value())) : std::string{};
    return fmt::format("{} {}{}", titles[static_cast<std::size_t>(line.kind)], start,
                       write_length(line.size_bytes.value));
}

/// Something that takes a range of the guest's addresses.
struct Tenant {
    std::string title;
    GuestRange range;
    Place place;  ///< nowhere for what is there without a line
};

class Placement {
public:
    Placement(VmConfig& config, Findings& findings) : config_(config), findings_(findings) {}

    void place_memory() {
        for (MemoryLine& line : config_.memory) {
            if (line.kind == MemoryKind::ram) {
                place_ram(line);
            } else {
                place_at(line, line.start->value.value(), line.size_bytes.value);
            }
            for (const GuestRange& range : line.ranges) {
                tenants_.push_back({title_of(line), range, line.place});
                if (line.kind != MemoryKind::reserve)
                    after_highest_ = std::max(after_highest_, range.last().value() + 1);
            }
        }
    }

    void place_devices() {
        for (Vdev& vdev : config_.vdevs) {
            if (vdev.kind == VdevKind::ser8250) continue;
            const std::string type{row_of(vdev.kind).text};
            const bool is_given = vdev.loc.has_value();
            if (vdev.kind == VdevKind::ioapic && !is_given)
                vdev.loc = Placed<std::uint64_t>{default_ioapic_base, {}};
            if (!vdev.loc) continue;
            const std::uint64_t size_bytes =
                vdev.kind == VdevKind::pci ? pci_window_bytes : register_page_bytes;
            const auto range = range_below_limit(vdev.loc->value, size_bytes);
            if (!range) {
                findings_.add(
                    vdev.loc->place,
                    fmt::format("vdev {} loc {} reaches beyond the last address {}", type,
                                write_address(vdev.loc->value), write_address(guest_address_limit - 1)));
                continue;
            }
            const std::string title =
                fmt::format("vdev {} {}", type,
                            is_given ? fmt::format("loc {}", write_address(vdev.loc->value))
                                     : fmt::format("without loc, at {},", write_address(vdev.loc->value)));
            tenants_.push_back({title, *range, is_given ? vdev.loc->place : vdev.place});
        }
        if (const auto range = range_below_limit(local_apic_base, register_page_bytes))
            tenants_.push_back({"the local APICs", *range, {}});
    }

    void check_overlaps() {
        // A vector of at most two ranges for each of max_memory_lines lines, and max_vdevs: all pairs are few.
        for (std::size_t later = 0; later < tenants_.size(); ++later)
            for (std::size_t earlier = 0; earlier < later; ++earlier)
                if (tenants_[earlier].range.overlaps(tenants_[later].range))
                    complain(tenants_[earlier], tenants_[later]);
    }

    void check_loads() {
        const auto ram = std::ranges::find(config_.memory, MemoryKind::ram, &MemoryLine::kind);
        if (ram == config_.memory.end()) return;
        for (const Load& load : config_.loads) {
            // One before all RAM is a finding of its own.
            if (!load.address || load.place.order < ram->place.order) continue;
            const auto holds = [&](const MemoryLine& line) {
                return line.kind != MemoryKind::reserve && line.place.order < load.place.order &&
                       std::ranges::any_of(
                           line.ranges,
                           [&](const GuestRange& range) { return range.contains(load.address->value); });
            };
            if (std::ranges::none_of(config_.memory, holds))
                findings_.add(load.address->place,
                              fmt::format("address {} is in no ram and no rom that stands before it",
                                          write_address(load.address->value.value())),
                              "load into memory: the ram line comes first");
        }
    }

private:
    static std::optional<GuestRange> range_below_limit(std::uint64_t base, std::uint64_t size_bytes) {
        if (base >= guest_address_limit || size_bytes > guest_address_limit - base) return std::nullopt;
        return GuestRange::create(GuestAddress{base}, size_bytes);
    }

    void place_at(MemoryLine& line, std::uint64_t base, std::uint64_t size_bytes) {
        if (const auto range = range_below_limit(base, size_bytes)) {
            line.ranges.push_back(*range);
            return;
        }
        findings_.add(line.size_bytes.place,
                      fmt::format("{} reaches beyond the last address of x86-64, {}", title_of(line),
                                  write_address(guest_address_limit - 1)));
    }

    void place_ram(MemoryLine& line) {
        std::uint64_t base = line.start ? line.start->value.value() : after_highest_;
        const std::uint64_t size_bytes = line.size_bytes.value;
        if (base >= device_hole_base && base < device_hole_after) {
            if (line.start)
                return findings_.add(
                    line.start->place,
                    fmt::format("{} begins in the device hole {}-{} of x86", title_of(line),
                                write_address(device_hole_base), write_address(device_hole_after - 1)),
                    "begin below it, or at 0x100000000; without a start it goes around the hole");
            base = device_hole_after;
        }
        const std::uint64_t room = base < device_hole_base ? device_hole_base - base : size_bytes;
        const std::uint64_t low = std::min(room, size_bytes);
        place_at(line, base, low);
        if (low < size_bytes) place_at(line, device_hole_after, size_bytes - low);
    }

    void complain(const Tenant& a, const Tenant& b) {
        // At the line that came second; a tenant without a line cannot be moved.
        const bool is_b_second =
            !a.place.is_somewhere() || (b.place.is_somewhere() && b.place.order > a.place.order);
        const Tenant& second = is_b_second ? b : a;
        const Tenant& first = is_b_second ? a : b;
        if (!second.place.is_somewhere()) return;
        const std::string_view how = first.range.contains(second.range) ? "lies inside" : "overlaps";
        const std::string where =
            first.place.is_somewhere()
                ? fmt::format(" ({})", findings_.sources().describe(first.place, second.place))
                : std::string{};
        findings_.add(second.place, fmt::format("{} {} {}{}", second.title, how, first.title, where),
                      fmt::format("{} takes {}, {} {}", second.title, write_range(second.range), first.title,
                                  write_range(first.range)));
    }

    VmConfig& config_;
    Findings& findings_;
    std::vector<Tenant> tenants_;
    std::uint64_t after_highest_ = 0;
};

}  // namespace

void check_placement(VmConfig& config, const std::set<Word>& broken, Findings& findings) {
    Placement placement{config, findings};
    const bool is_memory_known = !broken.contains(Word::ram) && !broken.contains(Word::rom);
    if (is_memory_known) placement.place_memory();
    placement.place_devices();
    placement.check_overlaps();
    if (is_memory_known) placement.check_loads();
}

}  // namespace guestmem::vmm

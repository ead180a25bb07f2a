// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "guestmem/vmm/config/numbers.hpp"
#include "guestmem/vmm/config/placement.hpp"

namespace guestmem::vmm {
namespace {

/// Where PCs have their serial ports, in the order in which guests look.
constexpr std::array<std::uint64_t, 4> serial_ports{0x3f8, 0x2f8, 0x3e8, 0x2e8};
constexpr std::uint64_t count_serial_ports = 8;

struct PortRange {
    std::string_view title;
    std::uint64_t first;
    std::uint64_t count;
};
/// What the machine and its other devices have, whether a line names them or not.
constexpr std::array<PortRange, 7> fixed_ports{{
    {"the PIC", 0x20, 2},
    {"timer8254", 0x40, 4},
    {"pckeyboard", 0x60, 5},
    {"mc146818", 0x70, 2},
    {"the PIC", 0xa0, 2},
    {"the PIC", 0x4d0, 2},
    {"the PCI host bridge", 0xcf8, 8},
}};

bool overlaps(std::uint64_t a, std::uint64_t count_a, std::uint64_t b, std::uint64_t count_b) {
    return a < b + count_b && b < a + count_a;
}

class Check {
public:
    Check(Parsed& parsed, Findings& findings)
        : config_(parsed.config), broken_(parsed.broken), findings_(findings) {}

    void run() {
        check_parts();
        check_order();
        check_loads();
        check_names();
        check_counts();
        check_interrupts();
        check_pins();
        check_ports();
        check_shmem();
        check_ivshmem();
        check_regions();
        check_placement(config_, broken_, findings_);
    }

private:
    [[nodiscard]] bool is_broken(Word word) const {
        // Of an unknown word nobody knows what it was meant to be.
        return broken_.contains(word) || broken_.contains(Word::not_here);
    }
    [[nodiscard]] std::string on(const Place& place, const Place& from) const {
        return findings_.sources().describe(place, from);
    }

    void check_parts() {
        if (!config_.system.place.is_somewhere() && !is_broken(Word::system))
            findings_.add({}, "the VM has no name", "write system NAME");
        const bool has_ram =
            std::ranges::find(config_.memory, MemoryKind::ram, &MemoryLine::kind) != config_.memory.end();
        if (!has_ram && !is_broken(Word::ram)) findings_.add({}, "the VM has no memory", "write ram 192M");
        const bool has_kernel =
            std::ranges::find(config_.loads, LoadKind::kernel, &Load::kind) != config_.loads.end();
        if (!has_kernel && !is_broken(Word::load))
            findings_.add({}, "nothing runs in the VM: there is no load", "write load FILE");
        if (config_.cpus.empty()) config_.cpus.emplace_back();
    }

    /// RAM comes before what goes into it.
    void check_order() {
        if (is_broken(Word::ram)) return;
        const auto ram = std::ranges::find(config_.memory, MemoryKind::ram, &MemoryLine::kind);
        if (ram == config_.memory.end()) return;
        for (const Load& load : config_.loads)
            if (load.place.order < ram->place.order)
                findings_.add(load.place,
                              fmt::format("load before the ram on {}", on(ram->place, load.place)),
                              "write ram first: what goes into guest memory follows it");
    }

    void check_loads() {
        std::map<LoadKind, Place> seen;
        for (const Load& load : config_.loads) {
            if (load.kind == LoadKind::data && !load.address)
                findings_.add(load.place, "data load without an address", "write data load ADDRESS,FILE");
            if (load.kind == LoadKind::acpi && load.address)
                findings_.add(load.address->place, "acpi load with an address",
                              "leave the address out: tables are found by their list");
            if (load.kind == LoadKind::data || load.kind == LoadKind::acpi) continue;
            const auto [first, is_first] = seen.emplace(load.kind, load.place);
            if (is_first) continue;
            findings_.add(load.place,
                          fmt::format("a second {}: the first is on {}",
                                      load.kind == LoadKind::kernel ? "kernel" : "initrd",
                                      on(first->second, load.place)),
                          load.kind == LoadKind::kernel
                              ? "say what it is: initrd load, data load or acpi load"
                              : "put both into one file: the kernel reads them one after another");
        }
    }

    void check_names() {
        std::map<std::string_view, Place> seen;
        for (const Vdev& vdev : config_.vdevs) {
            if (!vdev.name) continue;
            const auto [first, is_first] = seen.emplace(vdev.name->value, vdev.name->place);
            if (!is_first)
                findings_.add(vdev.name->place,
                              fmt::format("the name '{}' is given already on {}", vdev.name->value,
                                          on(first->second, vdev.name->place)),
                              "give each vdev a name of its own");
        }
    }

    void check_counts() {
        static constexpr std::array one_each{VdevKind::timer8254, VdevKind::mc146818, VdevKind::pckeyboard,
                                             VdevKind::pci, VdevKind::ioapic};
        std::map<VdevKind, Place> seen;
        std::size_t count_pci = 0;
        for (const Vdev& vdev : config_.vdevs) {
            if (is_pci(vdev) && ++count_pci == max_pci_vdevs + 1)
                findings_.add(vdev.place, fmt::format("more than {} PCI devices", max_pci_vdevs),
                              "a vdev shmem with loc and intr is not one");
            if (std::ranges::find(one_each, vdev.kind) == one_each.end()) continue;
            const auto [first, is_first] = seen.emplace(vdev.kind, vdev.place);
            if (!is_first)
                findings_.add(vdev.place,
                              fmt::format("a second vdev {}: the first is on {}", row_of(vdev.kind).text,
                                          on(first->second, vdev.place)),
                              "this machine has one: remove the other");
        }
    }

    void check_interrupts() {
        for (const Vdev& vdev : config_.vdevs) {
            if (!vdev.intr || !vdev.intr->value.pin) continue;
            const std::string& wanted = vdev.intr->value.controller;
            const auto is_meant = [&](const Vdev& other) {
                return other.name && other.name->value == wanted;
            };
            const auto found = std::ranges::find_if(config_.vdevs, is_meant);
            const Place& place = vdev.intr->place;
            if (found == config_.vdevs.end()) {
                if (!is_broken(Word::name) && !is_broken(Word::vdev)) complain_of_controller(wanted, place);
            } else if (found->kind != VdevKind::ioapic) {
                findings_.add(place,
                              fmt::format("'{}' on {} is a {}, no interrupt controller", wanted,
                                          on(found->place, place), row_of(found->kind).text),
                              "name a vdev ioapic");
            } else if (found->name->place.order > place.order) {
                findings_.add(place,
                              fmt::format("the ioapic '{}' gets its name only on {}", wanted,
                                          on(found->name->place, place)),
                              "write the ioapic before the devices that use it");
            }
        }
    }

    void complain_of_controller(const std::string& wanted, const Place& place) {
        std::string known;
        for (const Vdev& vdev : config_.vdevs)
            if (vdev.kind == VdevKind::ioapic && vdev.name)
                known += fmt::format("{}{}", known.empty() ? "" : ", ", vdev.name->value);
        findings_.add(place, fmt::format("no ioapic has the name '{}'", wanted),
                      known.empty()
                          ? fmt::format("write vdev ioapic, intr apic and name {} before it", wanted)
                          : fmt::format("there is: {}", known));
    }

    static bool is_pci(const Vdev& vdev) {
        return vdev.kind == VdevKind::ivshmem || (vdev.kind == VdevKind::shmem && !vdev.loc);
    }

    /// Pins that the machine has without a line, and holds until they are served.
    void check_machine_pin(const Vdev& vdev) {
        if (row_of(vdev.kind).trigger == Trigger::level) return;
        const Interrupt& intr = vdev.intr->value;
        const Place& place = vdev.intr->place;
        std::string user;
        if (*intr.pin == power_pin) user = "the power events of ACPI (SCI)";
        const auto pci = std::ranges::find_if(config_.vdevs, is_pci);
        if (pci != config_.vdevs.end() && std::ranges::find(pci_pins, *intr.pin) != pci_pins.end())
            user =
                fmt::format("the PCI bus, with vdev {} on {}", row_of(pci->kind).text, on(pci->place, place));
        if (user.empty()) return;
        findings_.add(place,
                      fmt::format("pin {}:{} of vdev {} belongs to {}", intr.controller, *intr.pin,
                                  row_of(vdev.kind).text, user),
                      "take another pin: an edge-triggered one has one device");
    }

    /// Two devices on one pin are right when both hold it until they are served.
    void check_pins() {
        std::map<std::pair<std::string_view, std::uint32_t>, const Vdev*> seen;
        for (const Vdev& vdev : config_.vdevs) {
            if (!vdev.intr || !vdev.intr->value.pin) continue;
            check_machine_pin(vdev);
            const auto key = std::pair{std::string_view{vdev.intr->value.controller}, *vdev.intr->value.pin};
            const auto [first, is_first] = seen.emplace(key, &vdev);
            if (is_first) continue;
            const Vdev& other = *first->second;
            const bool can_share =
                row_of(vdev.kind).trigger == Trigger::level && row_of(other.kind).trigger == Trigger::level;
            if (!can_share)
                findings_.add(vdev.intr->place,
                              fmt::format("pin {}:{} belongs to vdev {} on {}", key.first, key.second,
                                          row_of(other.kind).text, on(other.intr->place, vdev.intr->place)),
                              "take another pin: an edge-triggered one has one device");
        }
    }

    void check_ports() {
        for (const Vdev& vdev : config_.vdevs)
            if (vdev.kind == VdevKind::ser8250 && vdev.loc) check_port(vdev);
        for (Vdev& vdev : config_.vdevs)
            if (vdev.kind == VdevKind::ser8250 && !vdev.loc) give_port(vdev);
    }

    void check_port(const Vdev& vdev) {
        const Place& place = vdev.loc->place;
        for (const PortRange& fixed : fixed_ports)
            if (overlaps(vdev.loc->value, count_serial_ports, fixed.first, fixed.count))
                findings_.add(place,
                              fmt::format("vdev ser8250 loc {} reaches into the ports {}-{} of {}",
                                          write_address(vdev.loc->value), write_address(fixed.first),
                                          write_address(fixed.first + fixed.count - 1), fixed.title),
                              "PCs have serial ports at 0x3f8, 0x2f8, 0x3e8 and 0x2e8");
        for (const Vdev& other : config_.vdevs) {
            if (&other == &vdev) break;
            if (other.kind == VdevKind::ser8250 && other.loc && is_serial_at(other, vdev.loc->value))
                findings_.add(place,
                              fmt::format("vdev ser8250 loc {} overlaps the one on {}",
                                          write_address(vdev.loc->value), on(other.loc->place, place)),
                              fmt::format("each has {} ports", count_serial_ports));
        }
    }

    static bool is_serial_at(const Vdev& vdev, std::uint64_t port) {
        return vdev.kind == VdevKind::ser8250 && vdev.loc &&
               overlaps(vdev.loc->value, count_serial_ports, port, count_serial_ports);
    }

    void give_port(Vdev& vdev) {
        for (const std::uint64_t port : serial_ports) {
            const auto has = [&](const Vdev& other) { return is_serial_at(other, port); };
            if (std::ranges::any_of(config_.vdevs, has)) continue;
            vdev.loc = Placed<std::uint64_t>{port, {}};
            return;
        }
        if (!is_broken(Word::loc))
            findings_.add(vdev.place, "no standard port is left for this ser8250",
                          "there are four: give it a loc, such as 0x220");
    }

    void check_shmem() {
        for (const Vdev& vdev : config_.vdevs) {
            if (vdev.kind != VdevKind::shmem) continue;
            if (vdev.loc && !vdev.intr && !is_broken(Word::intr))
                findings_.add(vdev.loc->place, "a vdev shmem with loc and without intr",
                              "add an intr, or leave loc out for a PCI device");
            if (vdev.intr && !vdev.loc && !is_broken(Word::loc))
                findings_.add(vdev.intr->place, "a vdev shmem with intr and without loc",
                              "add a loc, or leave intr out: a PCI device has its interrupt from the bus");
            if (vdev.shmem.rules.size() > max_name_rules)
                findings_.add(vdev.shmem.rules[max_name_rules].pattern.place,
                              fmt::format("more than {} entries of allow and deny", max_name_rules),
                              "put some together by a wildcard");
        }
    }

    void check_ivshmem() {
        for (const Vdev& vdev : config_.vdevs) {
            if (vdev.kind != VdevKind::ivshmem) continue;
            const IvshmemOptions& options = vdev.ivshmem;
            if (options.share.value.empty() && !is_broken(Word::share))
                findings_.add(vdev.place, "a vdev ivshmem without a share", "write share NAME");
            if (options.mode.value == IvshmemMode::plain && options.vectors.place.is_somewhere())
                findings_.add(options.vectors.place,
                              fmt::format("vectors for a plain ivshmem, which {} says it is",
                                          on(options.mode.place, options.vectors.place)),
                              "a plain one has no interrupts: remove one of the two");
        }
    }

    /// A region has one size, and one line that makes it.
    void check_regions() {
        std::map<std::string_view, const CreateLine*> created;
        std::map<std::string_view, Placed<std::uint64_t>> sizes;
        std::size_t count = 0;
        for (const Vdev& vdev : config_.vdevs) {
            for (const CreateLine& line : vdev.shmem.creates) {
                if (++count == max_creates + 1)
                    findings_.add(line.name.place,
                                  fmt::format("more than {} regions to create", max_creates));
                const auto [first, is_first] = created.emplace(line.name.value, &line);
                if (!is_first) {
                    findings_.add(line.name.place,
                                  fmt::format("region '{}' is created already on {}", line.name.value,
                                              on(first->second->name.place, line.name.place)),
                                  "remove one of them");
                } else {
                    check_size(sizes, line.name.value, line.size_bytes);
                }
            }
            if (vdev.ivshmem.size_bytes)
                check_size(sizes, vdev.ivshmem.share.value, *vdev.ivshmem.size_bytes);
        }
    }

    void check_size(std::map<std::string_view, Placed<std::uint64_t>>& sizes, const std::string& name,
                    const Placed<std::uint64_t>& size) {
        const auto [first, is_first] = sizes.emplace(name, size);
        if (is_first || name.empty() || first->second.value == size.value) return;
        findings_.add(size.place,
                      fmt::format("share '{}' has {} here and {} on {}", name, write_length(size.value),
                                  write_length(first->second.value), on(first->second.place, size.place)),
                      "a share has one size");
    }

    VmConfig& config_;
    const std::set<Word>& broken_;
    Findings& findings_;
};

}  // namespace

void check_configuration(Parsed& parsed, Findings& findings) { Check{parsed, findings}.run(); }

}  // namespace guestmem::vmm

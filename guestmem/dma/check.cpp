// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>

namespace guestmem::dma {
namespace {

/// The words of a kernel command line, in order; quotes group.
std::vector<std::string> words_of(std::string_view line) {
    std::vector<std::string> words;
    std::string word;
    bool is_quoted = false;
    for (const char c : line) {
        if (c == '"') {
            is_quoted = !is_quoted;
        } else if (!is_quoted && (c == ' ' || c == '\t' || c == '\n')) {
            if (!word.empty()) {
                words.push_back(std::move(word));
            }
            word.clear();
        } else {
            word += c;
        }
    }
    if (!word.empty()) {
        words.push_back(std::move(word));
    }
    return words;
}

class Checking {
public:
    explicit Checking(const Inventory& inventory)
        : inventory_(inventory), words_(words_of(inventory.settings.command_line)) {
        for (const Unit& unit : inventory.units) {
            if (unit.function) {
                unit_functions_.push_back(*unit.function);
            }
        }
        std::ranges::sort(unit_functions_);
    }

    std::vector<Finding> check() {
        if (std::ranges::none_of(inventory_.units, is_used)) {
            no_unit_works();
        } else {
            unused_units();
            unprotected_devices();
            ungrouped_devices();
            pass_through();
        }
        interrupts();
        open_streams();
        forced_apart();
        outside_ports();
        lazy_invalidation();
        fixed_ranges();
        before_the_kernel();
        what_was_not_seen();
        // Not a sort: findings of one weight keep their order.
        std::vector<Finding> ordered;
        for (const Weight weight : {Weight::risk, Weight::note}) {
            std::ranges::copy_if(found_, std::back_inserter(ordered),
                                 [&](const Finding& one) { return one.weight == weight; });
        }
        return ordered;
    }

private:
    using IsMeant = std::function<bool(const Device&)>;

    static bool is_used(const Unit& unit) { return !unit.kernel_name.empty(); }

    void add(Weight weight, std::string_view code, std::string what, std::string_view why, std::string fix) {
        found_.push_back({weight, code, std::move(what), why, std::move(fix)});
    }

    bool has_word(std::string_view word) const { return std::ranges::count(words_, word) != 0; }
    /// The whole word that begins so; empty when there is none. The last one counts, as for the kernel.
    std::string word_of(std::string_view start) const {
        for (auto at = words_.rbegin(); at != words_.rend(); ++at) {
            if (at->starts_with(start)) {
                return *at;
            }
        }
        return {};
    }

    /// An IOMMU that is a PCI function is behind no IOMMU, and no danger.
    bool is_unit(const Device& device) const {
        return device.pci && std::ranges::binary_search(unit_functions_, *device.pci);
    }

    /// Whether it is "name=part,part", in quotes or not.
    static bool has_part(std::string_view word, std::string_view part) {
        const auto equals = word.find('=');
        std::string_view rest =
            equals == std::string_view::npos ? std::string_view{} : word.substr(equals + 1);
        while (!rest.empty()) {
            const auto comma = std::min(rest.find(','), rest.size());
            if (rest.substr(0, comma) == part) {
                return true;
            }
            rest.remove_prefix(std::min(comma + 1, rest.size()));
        }
        return false;
    }

    std::vector<std::string> devices(const IsMeant& is_meant) const {
        std::vector<std::string> names;
        for (const Device& device : inventory_.devices) {
            if (!device.is_bridge && !is_unit(device) && is_meant(device)) {
                names.push_back(device.name);
            }
        }
        return names;
    }

    static std::string named(const std::vector<std::string>& names) {
        std::string text;
        for (std::size_t i = 0; i < std::min(names.size(), max_named); ++i) {
            text += (i == 0 ? "" : ", ") + names[i];
        }
        return names.size() > max_named ? fmt::format("{} and {} more", text, names.size() - max_named)
                                        : text;
    }

    void no_unit_works() {
        constexpr std::string_view why =
            "every device that does DMA reads and writes all memory, the kernel's too";
        const bool has = !inventory_.units.empty();
        if (!has && is_firmware_unread()) {
            add(Weight::risk, "iommu-off",
                "the kernel uses no IOMMU, and the firmware's tables could not be read", why,
                "ask again as root: the tables say whether there is one");
            return;
        }
        add(Weight::risk, "iommu-off",
            !has ? "firmware and kernel name no IOMMU"
            : inventory_.units.size() == 1
                ? "the kernel does not use " + named({inventory_.units.front().name})
                : fmt::format("the kernel uses none of the machine's {} IOMMUs", inventory_.units.size()),
            why,
            has ? how_to_switch_on() : "switch it on in the firmware's setup (VT-d, AMD-Vi, IOMMU, SMMU)");
    }

    /// The readers' complaints about what only root may read say so.
    bool is_firmware_unread() const {
        return std::ranges::any_of(inventory_.complaints, [](const Complaint& complaint) {
            return complaint.text.find("root") != std::string::npos;
        });
    }

    std::string how_to_switch_on() const {
        for (const std::string_view start : {"iommu=", "intel_iommu=", "amd_iommu="}) {
            if (has_part(word_of(start), "off")) {
                return fmt::format("take '{}' off the kernel's command line", word_of(start));
            }
        }
        switch (inventory_.units.front().kind) {
            case UnitKind::vt_d: return "add 'intel_iommu=on' to the kernel's command line";
            case UnitKind::amd_vi: return "boot a kernel with AMD_IOMMU; Debian's cloud kernel has none";
            case UnitKind::virtio_iommu:
                return "load the module virtio-iommu before other drivers; Linux 6.1 of Debian has none";
            case UnitKind::smmu_v2:
            case UnitKind::smmu_v3:
            case UnitKind::other: break;
        }
        return "boot a kernel with a driver for " + std::string{to_string(inventory_.units.front().kind)};
    }

    void unused_units() {
        std::vector<std::string> names;
        for (const Unit& unit : inventory_.units) {
            if (!is_used(unit)) {
                names.push_back(unit.name);
            }
        }
        if (!names.empty()) {
            const std::string word = word_of("intel_iommu=");
            add(Weight::risk, "unit-not-used", "the kernel does not use " + named(names),
                "devices behind such a unit reach all memory",
                has_part(word, "igfx_off")
                    ? fmt::format("take 'igfx_off' out of '{}' on the kernel's command line", word)
                    : "look for the unit in the kernel's log");
        }
    }

    void unprotected_devices() {
        const auto names =
            devices([](const Device& device) { return device.protection == Protection::none; });
        if (!names.empty()) {
            add(Weight::risk, "device-outside",
                fmt::format("{} behind no IOMMU: {}",
                            names.size() == 1 ? "one device is" : fmt::format("{} devices are", names.size()),
                            named(names)),
                "such a device reaches all memory, and a VM that has it does, too",
                "do not give it to a VM; leave it without a driver, or take it out");
        }
    }

    /// Their unit works, and the kernel has not put them behind it.
    void ungrouped_devices() {
        const auto names = devices([&](const Device& device) {
            return device.is_seen && device.protection == Protection::unit_not_used && device.unit &&
                   is_used(inventory_.units[*device.unit]);
        });
        if (!names.empty()) {
            add(Weight::risk, "device-not-grouped",
                "the kernel has in no group behind its unit: " + named(names),
                "such a device reaches all memory, or none: nobody has programmed the unit for it",
                "look for the device in the kernel's log; do not give it to a VM");
        }
    }

    void pass_through() {
        std::vector<std::string> groups;
        for (const KernelGroup& group : inventory_.kernel_groups) {
            if (group.type == "identity") {
                groups.push_back(std::to_string(group.number));
            }
        }
        const std::string wanted = word_of("iommu.passthrough=");
        const bool is_wanted = !wanted.empty() && !wanted.ends_with("=0") && !wanted.ends_with("=n");
        const std::string word = is_wanted                           ? wanted
                                 : has_part(word_of("iommu="), "pt") ? word_of("iommu=")
                                                                     : "";
        const bool has_types = std::ranges::any_of(
            inventory_.kernel_groups, [](const KernelGroup& group) { return !group.type.empty(); });
        if (groups.empty() && (has_types || word.empty())) {
            return;
        }
        add(Weight::risk, "pass-through",
            groups.empty()
                ? fmt::format(
                      "the kernel's own devices reach all memory, as '{}' says; types of groups could not be read",
                      word)
                : "the kernel's own devices reach all memory (default domain 'identity'): groups " +
                      named(groups),
            "a broken or hostile device that no VM has can read and write the kernel's memory",
            word.empty() ? "add 'iommu.passthrough=0' to the kernel's command line"
                         : fmt::format("take '{}' off the kernel's command line", word));
    }

    void interrupts() {
        const KernelSettings& settings = inventory_.settings;
        if (settings.may_use_unsafe_interrupts.value_or(false)) {
            add(Weight::risk, "unsafe-interrupts",
                "VFIO may give away devices whose interrupts are not isolated",
                "a VM with such a device can raise any interrupt of the host, with a write to memory",
                "load vfio_iommu_type1 without allow_unsafe_interrupts");
        }
        if (settings.has_posted_no_iommu) {
            add(Weight::risk, "vfio-without-iommu",
                "VFIO gives away devices without an IOMMU (enable_unsafe_noiommu_mode)",
                "whoever has such a device reaches all memory",
                "load vfio without enable_unsafe_noiommu_mode");
        }
        const auto names = devices([](const Device& device) {
            return device.protection == Protection::behind_unit &&
                   !device.is_interrupt_isolated.value_or(true);
        });
        if (!names.empty()) {
            add(Weight::risk, "interrupts-not-isolated", "interrupts are not isolated of " + named(names),
                "such a device can raise any interrupt of the host with a write to memory; VFIO refuses it",
                how_to_isolate());
        }
        const auto unknown = devices([](const Device& device) {
            return device.protection == Protection::behind_unit && !device.is_interrupt_isolated;
        });
        if (!unknown.empty()) {
            add(Weight::note, "interrupts-unknown",
                "it could not be seen whether interrupts are isolated of " + named(unknown),
                "without isolation a device can raise any interrupt of the host with a write to memory",
                "ask again as root; the kernel's log tells of interrupt remapping, or of an ITS");
        }
    }

    std::string how_to_isolate() const {
        const bool is_virtio = std::ranges::all_of(
            inventory_.units, [](const Unit& unit) { return unit.kind == UnitKind::virtio_iommu; });
        if (is_virtio) {
            return "virtio-iommu cannot remap interrupts on x86: emulate VT-d or AMD-Vi for this machine";
        }
        for (const std::string_view word : {"intremap=", "nointremap"}) {
            if (!word_of(word).empty()) {
                return fmt::format("take '{}' off the kernel's command line", word_of(word));
            }
        }
        return "switch interrupt remapping on in the firmware's setup (with x2APIC)";
    }

    void open_streams() {
        for (const std::string_view start : {"arm-smmu.disable_bypass=", "arm-smmu-v3.disable_bypass="}) {
            const std::string word = word_of(start);
            if (word.ends_with("=0") || word.ends_with("=n") || word.ends_with("=N")) {
                add(Weight::risk, "smmu-bypass",
                    fmt::format("'{}' lets streams that nobody has configured pass", word),
                    "a device that no driver has taken reaches all memory",
                    fmt::format("take '{}' off the kernel's command line", word));
                return;
            }
        }
    }

    void forced_apart() {
        const std::string override_word = word_of("pcie_acs_override=");
        std::string weaker;
        for (const std::string& word : words_) {
            if (word.starts_with("pci=") && (word.find("disable_acs_redir=") != std::string::npos ||
                                             word.find("config_acs=") != std::string::npos)) {
                weaker = word;
            }
        }
        if (!override_word.empty() || !weaker.empty()) {
            const auto forced =
                std::ranges::count_if(inventory_.unproven_separations, &UnprovenSeparation::is_overridden);
            add(Weight::risk, "acs-overridden",
                fmt::format("groups are made smaller by '{}'{}",
                            override_word.empty() ? weaker : override_word,
                            forced == 0 ? "" : fmt::format(", at {} ports that show no ACS", forced)),
                "devices in different groups can reach each other past the IOMMU: a VM's device another VM's",
                "take the word off the kernel's command line and give whole groups away");
        }
    }

    void outside_ports() {
        for (const ThunderboltDomain& domain : inventory_.thunderbolt) {
            if (domain.has_iommu_protection == false) {
                add(Weight::risk, "thunderbolt-open",
                    fmt::format("{} (security '{}') is not protected by an IOMMU", domain.name,
                                domain.security),
                    "whatever is plugged in from outside can reach memory",
                    "switch on Kernel DMA Protection in the firmware's setup");
                break;
            }
        }
        const auto names = devices([](const Device& device) {
            return device.is_external && device.protection != Protection::behind_unit;
        });
        if (!names.empty()) {
            add(Weight::risk, "external-device",
                "a device from outside of the case reaches all memory: " + named(names),
                "whoever can touch the machine can read its memory",
                "unplug it, or switch the IOMMU of its port on");
        }
    }

    void lazy_invalidation() {
        const bool is_lazy = std::ranges::any_of(
            inventory_.kernel_groups, [](const KernelGroup& group) { return group.type == "DMA-FQ"; });
        if (is_lazy) {
            add(Weight::note, "lazy-invalidation",
                "the kernel takes memory back from its own devices late (lazy invalidation)",
                "for some milliseconds a device still reaches memory that is free or another's; VMs' devices are "
                "not concerned",
                "add 'iommu.strict=1' to the kernel's command line");
        }
    }

    void fixed_ranges() {
        const auto names = devices([](const Device& device) {
            return std::ranges::any_of(device.reserved,
                                       [](const Reserved& one) { return one.kind == ReservedKind::direct; });
        });
        if (!names.empty()) {
            add(Weight::note, "firmware-memory",
                "firmware keeps memory that these always reach: " + named(names),
                "the kernel refuses to give such a device to a VM",
                "an option of the firmware's setup may release it");
        }
    }

    void before_the_kernel() {
        const bool has_vt_d = std::ranges::any_of(
            inventory_.units, [](const Unit& unit) { return unit.kind == UnitKind::vt_d; });
        if (has_vt_d && inventory_.platform.is_protected_from_start == false) {
            add(Weight::note, "no-opt-in",
                "firmware does not say that DMA is blocked before the kernel starts (DMAR flag 4)",
                "a device could have changed memory before the IOMMU was switched on",
                "switch on Kernel DMA Protection in the firmware's setup");
        }
    }

    void what_was_not_seen() {
        if (!inventory_.complaints.empty()) {
            add(Weight::note, "notes",
                fmt::format("there {} {} on what firmware and kernel say",
                            inventory_.complaints.size() == 1 ? "is" : "are",
                            inventory_.complaints.size() == 1
                                ? "one note"
                                : fmt::format("{} notes", inventory_.complaints.size())),
                "a part of the inventory may be missing or wrong", "read them: guestmem dma discover");
        }
    }

    const Inventory& inventory_;
    const std::vector<std::string> words_;
    std::vector<PciAddress> unit_functions_;  ///< sorted
    std::vector<Finding> found_;
};

}  // namespace

std::string_view to_string(Weight weight) { return weight == Weight::risk ? "risk" : "note"; }

std::vector<Finding> check(const Inventory& inventory) { return Checking{inventory}.check(); }

}  // namespace guestmem::dma

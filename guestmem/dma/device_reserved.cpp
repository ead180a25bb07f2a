// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_reserved.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "guestmem/dma/assemble.hpp"
#include "guestmem/dma/selector_index.hpp"

namespace guestmem::dma {
namespace {

constexpr std::uint32_t class_usb = 0x0c03;
constexpr std::uint32_t base_class_display = 0x03;

bool is_relaxable(const Device& device, const ReservedFact& fact) {
    return fact.origin.source == Source::dmar && device.pci &&
           (device.class_code >> 8 == class_usb || device.class_code >> 16 == base_class_display);
}

bool is_from(const Unit& unit, Source source) {
    return std::ranges::find(unit.origins, source, &Origin::source) != unit.origins.end();
}

struct Window {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    ReservedKind kind = ReservedKind::msi;
    std::string_view what = {};
};

/// What Linux reserves with each unit of a kind.
std::vector<Window> windows_of(UnitKind kind, const std::string& architecture) {
    constexpr Window x86_msi{0xfee00000, 0xfeefffff, ReservedKind::msi, "MSI window of x86"};
    constexpr Window hyper_transport{0xfd00000000, 0xffffffffff, ReservedKind::reserved,
                                     "HyperTransport range of AMD-Vi"};
    // Linux' MSI_IOVA_BASE and MSI_IOVA_LENGTH.
    constexpr Window software_msi{0x8000000, 0x80fffff, ReservedKind::msi, "MSI window of Linux"};
    switch (kind) {
        case UnitKind::vt_d: return {x86_msi};
        case UnitKind::amd_vi: return {x86_msi, hyper_transport};
        case UnitKind::smmu_v2:
        case UnitKind::smmu_v3: return {software_msi};
        case UnitKind::virtio_iommu: return {architecture == "x86_64" ? x86_msi : software_msi};
        case UnitKind::other: break;
    }
    return {};
}

class Layer {
public:
    Layer(const SourceFacts& facts, const HostView& view, const PciTopology& topology,
          const std::vector<Unit>& units, DeviceList& list, ComplaintList& complaints)
        : facts_(facts),
          view_(view),
          topology_(topology),
          units_(units),
          list_(list),
          complaints_(complaints) {}

    void lay() {
        find_selecting();
        for (const KernelGroup& group : view_.groups) {
            groups_.try_emplace(group.number, &group);
        }
        for (std::uint32_t device = 0; device < list_.devices().size(); ++device) {
            lay_facts(device);
            lay_kernel(device);
            lay_windows(list_.devices()[device]);
            std::ranges::stable_sort(list_.devices()[device].reserved, {}, [](const Reserved& range) {
                return std::pair(range.first, range.last);
            });
        }
        if (count_dropped_ > 0) {
            complaints_.add({},
                            fmt::format("{} reserved ranges are left out: there may be {} per device and {} "
                                        "altogether",
                                        count_dropped_, most_reserved_of_device, most_reserved));
        }
    }

private:
    void find_selecting() {
        const std::size_t count_functions = topology_.functions().size();
        SelectorIndex index(topology_, {});
        others_.resize(list_.devices().size() - count_functions);
        for (std::uint32_t i = 0; i < facts_.reserved.size(); ++i) {
            const ReservedFact& fact = facts_.reserved[i];
            if (fact.who.empty()) {
                auto& all = of_source_[fact.origin.source];
                if (all.size() < most_reserved_of_device) {
                    all.push_back(i);
                } else {
                    ++count_dropped_;
                }
            }
            for (const Selector& who : fact.who) {
                index.add(who, 0xffff, i);
                for (const std::uint32_t device : list_.find(who)) {
                    if (device < count_functions) {
                        index.add_function(device, i);
                    } else if (auto& ranges = others_[device - count_functions];
                               ranges.size() < most_reserved_of_device) {
                        ranges.push_back(i);
                    }
                }
            }
        }
        selecting_ = index.facts_of_points(most_reserved_of_device);
    }

    void lay_facts(std::uint32_t device) {
        const std::size_t count_functions = topology_.functions().size();
        std::vector<std::uint32_t> numbers =
            device < count_functions ? selecting_[device] : others_[device - count_functions];
        Device& target = list_.devices()[device];
        if (target.unit) {
            for (const auto& [source, ranges] : of_source_) {
                if (is_from(units_[*target.unit], source)) {
                    numbers.insert(numbers.end(), ranges.begin(), ranges.end());
                }
            }
        }
        std::ranges::sort(numbers);
        const auto again = std::ranges::unique(numbers);
        numbers.erase(again.begin(), again.end());
        std::vector<const ReservedFact*> selecting;
        selecting.reserve(numbers.size());
        for (const std::uint32_t number : numbers) {
            selecting.push_back(&facts_.reserved[number]);
        }
        ReservedChoice choice = choose_reserved(selecting);
        for (std::size_t i = 0; i < choice.taken.size(); ++i) {
            const ReservedFact& fact = *choice.taken[i];
            Reserved range{fact.first, fact.last, fact.kind, fact.can_read, fact.can_write, fact.origin};
            if (i < choice.origins.size()) {
                range.origin = std::move(choice.origins[i]);
            }
            if (range.kind == ReservedKind::direct && is_relaxable(target, fact)) {
                range.kind = ReservedKind::direct_relaxable;
            }
            add(target, std::move(range));
        }
    }

    void lay_kernel(std::uint32_t device) {
        Device& target = list_.devices()[device];
        const auto group = target.kernel_group ? groups_.find(*target.kernel_group) : groups_.end();
        if (group == groups_.end()) {
            return;
        }
        const auto& ranges = group->second->reserved;
        for (std::size_t i = 0; i < std::min(ranges.size(), most_reserved_of_device); ++i) {
            const auto same = std::ranges::find_if(target.reserved, [&](const Reserved& known) {
                return known.first == ranges[i].first && known.last == ranges[i].last;
            });
            if (same != target.reserved.end()) {
                same->kind = ranges[i].kind;
                continue;
            }
            add(target, {ranges[i].first, ranges[i].last, ranges[i].kind, true, true,
                         Origin{Source::kernel, fmt::format("group {}", group->first)}});
        }
        count_dropped_ += ranges.size() - std::min(ranges.size(), most_reserved_of_device);
    }

    void lay_windows(Device& target) {
        const bool is_shown = std::ranges::any_of(
            target.reserved, [](const Reserved& known) { return known.kind == ReservedKind::msi; });
        if (!target.unit || is_shown) {
            return;
        }
        for (const Window& window : windows_of(units_[*target.unit].kind, view_.settings.architecture)) {
            add(target, {window.first, window.last, window.kind, true, true,
                         Origin{Source::kernel, std::string(window.what)}});
        }
    }

    void add(Device& target, Reserved range) {
        if (target.reserved.size() >= most_reserved_of_device || count_ >= most_reserved) {
            ++count_dropped_;
            return;
        }
        ++count_;
        target.reserved.push_back(std::move(range));
    }

    const SourceFacts& facts_;
    const HostView& view_;
    const PciTopology& topology_;
    const std::vector<Unit>& units_;
    DeviceList& list_;
    ComplaintList& complaints_;
    std::vector<std::vector<std::uint32_t>> selecting_;
    std::vector<std::vector<std::uint32_t>> others_;
    std::map<Source, std::vector<std::uint32_t>> of_source_;
    std::unordered_map<std::uint32_t, const KernelGroup*> groups_;
    std::size_t count_ = 0;
    std::size_t count_dropped_ = 0;
};

}  // namespace

void lay_reserved(const SourceFacts& facts, const HostView& view, const PciTopology& topology,
                  const std::vector<Unit>& units, DeviceList& list, ComplaintList& complaints) {
    Layer(facts, view, topology, units, list, complaints).lay();
}

}  // namespace guestmem::dma

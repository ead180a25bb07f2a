// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_tree.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "guestmem/dma/report/grouping.hpp"
#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

/// A line and what hangs below it.
struct Branch {
    std::string text = {};
    std::vector<std::string> notes = {};  ///< between the line and its branches
    std::vector<Branch> branches = {};
};

struct Strokes {
    std::string_view fork;
    std::string_view last;
    std::string_view trunk;
};
constexpr Strokes plain{"+- ", "+- ", "|  "};
constexpr Strokes drawn{"├─ ", "└─ ", "│  "};

void print_branches(std::string& out, const Branch& branch, const std::string& indent,
                    const Strokes& strokes) {
    for (const std::string& note : branch.notes) {
        out += indent;
        out += branch.branches.empty() ? "   " : strokes.trunk;
        out += note + "\n";
    }
    for (std::size_t i = 0; i < branch.branches.size(); ++i) {
        const bool is_last = i + 1 == branch.branches.size();
        out += indent;
        out += is_last ? strokes.last : strokes.fork;
        out += branch.branches[i].text + "\n";
        print_branches(out, branch.branches[i], indent + std::string{is_last ? "   " : strokes.trunk},
                       strokes);
    }
}

class Drawing {
public:
    Drawing(const Inventory& inventory, const TreeStyle& style) : inventory_(inventory), style_(style) {}

    std::string draw() {
        const Shown shown = show(inventory_, style_.has_bridges);
        std::string out;
        for (const ShownHead& head : shown.heads) {
            const Branch branch = head_branch(head);
            out += branch.text + "\n";
            print_branches(out, branch, "", style_.is_unicode ? drawn : plain);
        }
        if (shown.count_hidden != 0) {
            out += fmt::format("bridges and IOMMUs that stand alone are not shown: {}\n", shown.count_hidden);
        }
        for (const Complaint& complaint : inventory_.complaints) {
            out += fmt::format("note: {}: {}\n", clean(to_string(complaint.origin)), clean(complaint.text));
        }
        return out.empty() ? "no IOMMU and no device was found\n" : out;
    }

private:
    Branch head_branch(const ShownHead& head) const {
        Branch branch{.text = head.text};
        if (head.unit) {
            if (const std::string text = abilities_text(head.unit->abilities); !text.empty()) {
                branch.notes.push_back(text);
            }
        }
        for (const ShownBus& bus : head.buses) {
            if (bus.name.empty()) {
                add_containments(branch, bus);
            } else {
                add_containments(branch.branches.emplace_back(Branch{.text = "bus " + bus.name}), bus);
            }
        }
        return branch;
    }

    void add_containments(Branch& branch, const ShownBus& bus) const {
        for (const Containment* containment : bus.containments) {
            branch.branches.push_back(containment_branch(*containment));
        }
    }

    Branch device_branch(const Device& device, const std::string& groups) const {
        Branch branch;
        branch.text = short_name(device);
        if (!device.title.empty()) {
            branch.text += "  " + clean(device.title);
        }
        if (!groups.empty()) {
            branch.text += ", " + groups;
        }
        if (!device.driver.empty()) {
            branch.text += ", driver " + clean(device.driver);
        }
        if (device.is_external) {
            branch.text += ", outside of the case";
        }
        if (device.is_interrupt_isolated && !*device.is_interrupt_isolated) {
            branch.text += ", interrupts not isolated";
        }
        if (style_.has_details) {
            add_details(branch, device);
        }
        return branch;
    }

    static void add_details(Branch& branch, const Device& device) {
        if (!device.ids.empty()) {
            branch.notes.push_back(fmt::format("ids {:#x}", fmt::join(device.ids, ", ")));
        }
        for (const Reserved& reserved : device.reserved) {
            branch.notes.push_back(reserved_text(reserved) + ", from: " + clean(to_string(reserved.origin)));
        }
        if (!device.origins.empty()) {
            branch.notes.push_back("from: " + origins_text(device.origins));
        }
    }

    Branch containment_branch(const Containment& containment) const {
        if (containment.devices.size() == 1) {
            return device_branch(inventory_.devices[containment.devices.front()], groups_text(containment));
        }
        Branch branch;
        branch.text = fmt::format("only together, {}: {} devices", groups_text(containment),
                                  containment.devices.size());
        for (const std::size_t index : containment.devices) {
            branch.branches.push_back(device_branch(inventory_.devices[index], ""));
        }
        for (const Join& join : containment.joins) {
            branch.branches.push_back({.text = "because " + clean(join.text)});
        }
        return branch;
    }

    const Inventory& inventory_;
    const TreeStyle style_;
};

}  // namespace

std::string to_tree(const Inventory& inventory, const TreeStyle& style) {
    return Drawing{inventory, style}.draw();
}

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_svg.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/dma/report/grouping.hpp"
#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

constexpr int margin = 20;
constexpr int line_height = 18;
constexpr int padding = 8;
constexpr int gap = 12;
constexpr int unit_width = 300;
constexpr int bus_x = margin + unit_width + 40;
constexpr int bus_width = 90;
constexpr int box_x = bus_x + bus_width + 40;
constexpr int box_width = 560;
constexpr int width = box_x + box_width + margin;
/// Of the font in use, nearly: what is longer is cut, so that no text leaves its box.
constexpr std::size_t unit_columns = 40;
constexpr std::size_t box_columns = 78;

std::string escape(std::string_view text) {
    std::string result;
    for (const char c : clean(text)) {
        switch (c) {
            case '&': result += "&amp;"; break;
            case '<': result += "&lt;"; break;
            case '>': result += "&gt;"; break;
            case '"': result += "&quot;"; break;
            default: result += c;
        }
    }
    return result;
}

std::string cut(std::string text, std::size_t columns) {
    if (text.size() > columns) {
        text.resize(columns - 3);
        text += "...";
    }
    return text;
}

int box_height(std::size_t lines) { return static_cast<int>(lines) * line_height + 2 * padding; }

class Picture {
public:
    explicit Picture(const Inventory& inventory) : inventory_(inventory) {}

    std::string draw() {
        for (const ShownHead& head : show(inventory_, false).heads) {
            draw_head(head);
        }
        return fmt::format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
            "font-family=\"monospace\" font-size=\"12\">\n"
            "<style>.good{{fill:#e6f4e6;stroke:#2e7d32}}.bad{{fill:#fdeaea;stroke:#c62828}}"
            ".bus{{fill:#f4f4f4;stroke:#777}}.wire{{stroke:#777;fill:none}}</style>\n{2}</svg>\n",
            width, y_ + margin, body_);
    }

private:
    void box(std::string_view kind, int x, int y, int box_wide, int height) {
        body_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"5\"/>\n",
                             kind, x, y, box_wide, height);
    }

    void text(int x, int y, const std::string& line, std::size_t columns) {
        body_ += fmt::format("<text x=\"{}\" y=\"{}\">{}</text>\n", x, y, escape(cut(line, columns)));
    }

    void wire(int from_x, int from_y, int to_x, int to_y) {
        const int middle = (from_x + to_x) / 2;
        body_ += fmt::format("<path class=\"wire\" d=\"M{} {} H{} V{} H{}\"/>\n", from_x, from_y, middle,
                             to_y, to_x);
    }

    void draw_head(const ShownHead& head) {
        const int top = y_;
        const auto lines = head_lines(head);
        const int height = box_height(lines.size());
        box(head.is_protected ? "good" : "bad", margin, top, unit_width, height);
        for (std::size_t i = 0; i < lines.size(); ++i) {
            text(margin + padding, top + padding + 13 + static_cast<int>(i) * line_height, lines[i],
                 unit_columns);
        }
        for (const ShownBus& bus : head.buses) {
            draw_bus(head, bus, top + height / 2);
        }
        y_ = std::max(y_, top + height + gap) + gap;
    }

    static std::vector<std::string> head_lines(const ShownHead& head) {
        if (!head.unit) {
            const auto colon = head.text.find(": ");
            return {head.text.substr(0, colon), head.text.substr(std::min(colon + 2, head.text.size()))};
        }
        std::vector<std::string> lines{
            clean(head.unit->name),
            fmt::format("{}, {}", to_string(head.unit->kind),
                        head.unit->kernel_name.empty() ? "not used by the kernel" : head.unit->kernel_name)};
        if (head.unit->abilities.input_bits) {
            lines.push_back(fmt::format("{}-bit addresses", *head.unit->abilities.input_bits));
        }
        if (head.unit->abilities.page_sizes != 0) {
            lines.push_back("pages of " + page_sizes_text(head.unit->abilities.page_sizes));
        }
        return lines;
    }

    void draw_bus(const ShownHead& head, const ShownBus& bus, int unit_y) {
        const int bus_y = y_;
        box("bus", bus_x, bus_y, bus_width, box_height(1));
        text(bus_x + padding, bus_y + padding + 13, bus.name.empty() ? "platform" : bus.name, unit_columns);
        wire(margin + unit_width, unit_y, bus_x, bus_y + box_height(1) / 2);
        for (const Containment* containment : bus.containments) {
            draw_containment(head, *containment, bus_y + box_height(1) / 2);
        }
    }

    void draw_containment(const ShownHead& head, const Containment& containment, int bus_y) {
        const int height = box_height(containment.devices.size() + 1);
        wire(bus_x + bus_width, bus_y, box_x, y_ + height / 2);
        body_ += "<g>";
        if (!containment.joins.empty()) {
            body_ += "<title>";
            for (const Join& join : containment.joins) {
                body_ += escape(join.text) + "\n";
            }
            body_ += "</title>";
        }
        box(head.is_protected ? "good" : "bad", box_x, y_, box_width, height);
        int line_y = y_ + padding + 13;
        text(box_x + padding, line_y, groups_text(containment), box_columns);
        for (const std::size_t index : containment.devices) {
            const Device& device = inventory_.devices[index];
            line_y += line_height;
            text(box_x + padding, line_y, short_name(device) + "  " + device.title, box_columns);
        }
        body_ += "</g>\n";
        y_ += height + gap;
    }

    const Inventory& inventory_;
    std::string body_;
    int y_ = margin;
};

}  // namespace

std::string to_svg(const Inventory& inventory) { return Picture{inventory}.draw(); }

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/check_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

std::string summary(const std::vector<Finding>& findings, const Inventory& inventory) {
    const auto risks = std::ranges::count(findings, Weight::risk, &Finding::weight);
    if (risks != 0) return fmt::format("not protected: {} {}\n", risks, risks == 1 ? "risk" : "risks");
    const auto devices = std::ranges::count_if(inventory.devices, [](const Device& device) {
        return !device.is_bridge && device.protection == Protection::behind_unit;
    });
    const auto units =
        std::ranges::count_if(inventory.units, [](const Unit& unit) { return !unit.kernel_name.empty(); });
    return fmt::format("protected: {} {} behind {} {}\n", devices, devices == 1 ? "device" : "devices", units,
                       units == 1 ? "IOMMU" : "IOMMUs");
}

}  // namespace

std::string to_text(const std::vector<Finding>& findings, const Inventory& inventory) {
    std::string text;
    for (const Finding& finding : findings)
        text += fmt::format("{}: {} ({})\n  why: {}\n  fix: {}\n", to_string(finding.weight),
                            clean(finding.what), finding.code, finding.why, clean(finding.fix));
    return text + summary(findings, inventory);
}

std::string to_json(const std::vector<Finding>& findings) {
    using Json = nlohmann::ordered_json;
    Json list = Json::array();
    for (const Finding& finding : findings)
        list.push_back({{"weight", to_string(finding.weight)},
                        {"code", finding.code},
                        {"what", finding.what},
                        {"why", finding.why},
                        {"fix", finding.fix}});
    const Json all{{"is_protected", std::ranges::count(findings, Weight::risk, &Finding::weight) == 0},
                   {"findings", std::move(list)}};
    return all.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_json.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

using Json = nlohmann::ordered_json;

std::string address_text(std::uint64_t address) { return fmt::format("{:#x}", address); }

template <typename Value>
void put(Json& object, const char* key, const std::optional<Value>& value) {
    if (value) {
        object[key] = *value;
    }
}

void put_address(Json& object, const char* key, const std::optional<std::uint64_t>& address) {
    if (address) {
        object[key] = address_text(*address);
    }
}

void put_text(Json& object, const char* key, const std::string& text) {
    if (!text.empty()) {
        object[key] = text;
    }
}

Json origins_json(const std::vector<Origin>& origins) {
    Json list = Json::array();
    for (const Origin& origin : origins) {
        list.push_back(to_string(origin));
    }
    return list;
}

Json reserved_json(std::uint64_t first, std::uint64_t last, ReservedKind kind) {
    return {
        {"first", address_text(first)}, {"last", address_text(last)}, {"kind", code_word(to_string(kind))}};
}

Json unit_json(const Unit& unit) {
    Json object{{"name", unit.name}, {"kind", to_string(unit.kind)}, {"segment", unit.segment}};
    put_address(object, "registers", unit.registers);
    if (unit.function) {
        object["function"] = to_string(*unit.function);
    }
    put_text(object, "kernel_name", unit.kernel_name);
    const UnitAbilities& abilities = unit.abilities;
    if (abilities.page_sizes != 0) {
        object["page_sizes"] = address_text(abilities.page_sizes);
    }
    put(object, "input_bits", abilities.input_bits);
    put(object, "output_bits", abilities.output_bits);
    put(object, "has_interrupt_remapping", abilities.has_interrupt_remapping);
    put(object, "can_forbid_reads", abilities.can_forbid_reads);
    put(object, "has_device_tlb", abilities.has_device_tlb);
    put(object, "is_coherent", abilities.is_coherent);
    object["from"] = origins_json(unit.origins);
    return object;
}

Json device_json(const Inventory& inventory, const Device& device) {
    Json object{{"name", device.name}};
    put_text(object, "title", device.title);
    put_text(object, "driver", device.driver);
    put_address(object, "registers", device.registers);
    object["is_bridge"] = device.is_bridge;
    object["is_external"] = device.is_external;
    if (device.unit) {
        object["unit"] = inventory.units[*device.unit].name;
    }
    object["ids"] = device.ids;
    object["protection"] = code_word(to_string(device.protection));
    object["containment"] = device.containment;
    put(object, "kernel_group", device.kernel_group);
    put(object, "is_interrupt_isolated", device.is_interrupt_isolated);
    object["reserved"] = Json::array();
    for (const Reserved& reserved : device.reserved) {
        Json range = reserved_json(reserved.first, reserved.last, reserved.kind);
        range["can_read"] = reserved.can_read;
        range["can_write"] = reserved.can_write;
        range["from"] = to_string(reserved.origin);
        object["reserved"].push_back(std::move(range));
    }
    object["from"] = origins_json(device.origins);
    return object;
}

Json containment_json(const Inventory& inventory, const Containment& containment) {
    Json object{
        {"devices", Json::array()}, {"kernel_groups", containment.kernel_groups}, {"joins", Json::array()}};
    for (const std::size_t index : containment.devices) {
        object["devices"].push_back(inventory.devices[index].name);
    }
    for (const Join& join : containment.joins) {
        object["joins"].push_back({{"reason", code_word(to_string(join.reason))},
                                   {"one", inventory.devices[join.one].name},
                                   {"other", inventory.devices[join.other].name},
                                   {"text", join.text}});
    }
    return object;
}

Json group_json(const KernelGroup& group) {
    Json object{{"number", group.number},
                {"type", group.type},
                {"devices", group.members},
                {"reserved", Json::array()}};
    for (const KernelReserved& reserved : group.reserved) {
        object["reserved"].push_back(reserved_json(reserved.first, reserved.last, reserved.kind));
    }
    return object;
}

Json platform_json(const Inventory& inventory) {
    Json object = Json::object();
    put(object, "address_bits", inventory.platform.address_bits);
    put(object, "has_interrupt_remapping", inventory.platform.has_interrupt_remapping);
    put(object, "is_protected_from_start", inventory.platform.is_protected_from_start);
    put_text(object, "architecture", inventory.settings.architecture);
    put_text(object, "kernel", inventory.settings.release);
    put_text(object, "command_line", inventory.settings.command_line);
    return object;
}

}  // namespace

std::string to_json(const Inventory& inventory) {
    Json all{{"units", Json::array()},         {"devices", Json::array()},   {"containments", Json::array()},
             {"kernel_groups", Json::array()}, {"platform", Json::object()}, {"complaints", Json::array()}};
    for (const Unit& unit : inventory.units) {
        all["units"].push_back(unit_json(unit));
    }
    for (const Device& device : inventory.devices) {
        all["devices"].push_back(device_json(inventory, device));
    }
    for (const Containment& containment : inventory.containments) {
        all["containments"].push_back(containment_json(inventory, containment));
    }
    for (const KernelGroup& group : inventory.kernel_groups) {
        all["kernel_groups"].push_back(group_json(group));
    }
    all["platform"] = platform_json(inventory);
    for (const Complaint& complaint : inventory.complaints) {
        all["complaints"].push_back({{"from", to_string(complaint.origin)}, {"text", complaint.text}});
    }
    // What captured files and tables say need not be UTF-8.
    return all.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/firmware_tables.hpp"

#include <fmt/format.h>
#include <libfdt.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <span>
#include <utility>

namespace guestmem::dma {
namespace {

constexpr std::string_view acpi_folder = "sys/firmware/acpi/tables";
constexpr std::string_view device_tree_path = "sys/firmware/fdt";
/// More than the tables of any machine, and of the folder's two folders.
constexpr std::size_t max_acpi_names = 4096;

struct Signature {
    std::string_view name;
    Source source;
};
constexpr std::array<Signature, 4> signatures{{{.name = "DMAR", .source = Source::dmar},
                                               {.name = "IVRS", .source = Source::ivrs},
                                               {.name = "IORT", .source = Source::iort},
                                               {.name = "VIOT", .source = Source::viot}}};

/// 0 for "DMAR", 1 for "DMAR1"; nothing for another name.
std::optional<unsigned> instance_of(std::string_view name, std::string_view signature) {
    if (!name.starts_with(signature)) return std::nullopt;
    name.remove_prefix(signature.size());
    if (name.empty()) return 0;
    unsigned number = 0;
    const auto [stop, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (error != std::errc{} || stop != name.data() + name.size()) return std::nullopt;
    return number;
}

class Finder {
public:
    explicit Finder(HostTree& tree) : tree_(tree) {}

    Result<FirmwareTables> run() {
        const auto names = GM_TRY(tree_.list(acpi_folder, max_acpi_names));
        bool has_iort = false;
        for (const Signature& signature : signatures) {
            std::vector<std::pair<unsigned, std::string>> instances;
            for (const std::string& name : names)
                if (const auto number = instance_of(name, signature.name))
                    instances.emplace_back(*number, name);
            std::ranges::sort(instances);
            has_iort = has_iort || (signature.source == Source::iort && !instances.empty());
            for (const auto& [number, name] : instances)
                GM_TRY(take(signature.source, fmt::format("{}/{}", acpi_folder, name), name));
        }
        if (!has_iort) GM_TRY(take(Source::device_tree, std::string{device_tree_path}, "fdt"));
        complain_of_permission();
        return std::move(found_);
    }

private:
    Result<void> take(Source source, const std::string& path, const std::string& name) {
        auto bytes = tree_.read(path, max_firmware_table_bytes);
        if (!bytes) {
            if (bytes.error().code() == Errc::permission_denied) {
                unreadable_ += (unreadable_.empty() ? "" : ", ") + printable_name(name);
            } else {
                found_.complaints.push_back({.origin = {.source = source, .place = path},
                                             .text = fmt::format("not read: {}", bytes.error().message())});
            }
            return {};
        }
        if (!*bytes || (source == Source::device_tree && !is_machine_description(**bytes))) return {};
        if (found_.tables.size() == max_firmware_tables)
            return Error{Errc::out_of_range,
                         fmt::format("{}: more than {} tables", path, max_firmware_tables)};
        found_.tables.push_back({.source = source, .name = name, .bytes = *std::move(*bytes)});
        return {};
    }

    void complain_of_permission() {
        if (unreadable_.empty()) return;
        found_.complaints.push_back(
            {.origin = {.source = Source::kernel, .place = "/sys/firmware"},
             .text = fmt::format("not readable: {}: run as root to see what firmware says", unreadable_)});
    }

    HostTree& tree_;
    FirmwareTables found_;
    std::string unreadable_;
};

bool is_sound(std::string_view device_tree) {
    return device_tree.size() >= FDT_V1_SIZE && fdt_check_header(device_tree.data()) == 0 &&
           fdt_check_full(device_tree.data(), device_tree.size()) == 0;
}

bool is_private(std::string_view property) {
    return property.contains("serial") || property.contains("mac-address") || property.contains("uuid") ||
           property.contains("seed") || property == "bootargs";
}

}  // namespace

Result<FirmwareTables> firmware_tables(HostTree& tree) { return Finder{tree}.run(); }

bool is_machine_description(std::string_view device_tree) {
    if (!is_sound(device_tree)) return false;
    const void* blob = device_tree.data();
    for (int node = fdt_first_subnode(blob, 0); node >= 0; node = fdt_next_subnode(blob, node)) {
        const char* const name = fdt_get_name(blob, node, nullptr);
        if (name != nullptr && std::string_view{name} != "chosen") return true;
    }
    return false;
}

void blank_private_properties(std::string& device_tree) {
    if (!is_sound(device_tree)) {
        device_tree.clear();
        return;
    }
    // What is behind the tree is in nobody's format.
    device_tree.resize(std::min<std::size_t>(device_tree.size(), fdt_totalsize(device_tree.data())));
    const void* blob = device_tree.data();
    for (int node = 0; node >= 0; node = fdt_next_node(blob, node, nullptr))
        for (int at = fdt_first_property_offset(blob, node); at >= 0;
             at = fdt_next_property_offset(blob, at)) {
            const char* name = nullptr;
            int length = 0;
            const auto* value = static_cast<const char*>(fdt_getprop_by_offset(blob, at, &name, &length));
            if (value == nullptr || name == nullptr || length <= 0 || !is_private(name)) continue;
            const auto offset = static_cast<std::size_t>(value - device_tree.data());
            std::ranges::fill(std::span{device_tree}.subspan(offset, static_cast<std::size_t>(length)), '\0');
        }
    // Firmware leaves room between and behind the blocks, with whatever was there. Old versions stay as they are.
    if (fdt_pack(device_tree.data()) == 0) device_tree.resize(fdt_totalsize(device_tree.data()));
}

}  // namespace guestmem::dma

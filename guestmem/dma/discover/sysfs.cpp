// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/sysfs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/dma/device_title.hpp"
#include "guestmem/dma/discover/capture_rules.hpp"
#include "guestmem/dma/discover/pci_config.hpp"
#include "guestmem/dma/discover/sysfs_text.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/kernel_text.hpp"
#include "guestmem/sys/memory_limits.hpp"

namespace guestmem::dma {
namespace {

constexpr std::size_t max_text_bytes = 64 * 1024;

constexpr std::string_view functions_folder = "sys/bus/pci/devices";
constexpr std::string_view units_folder = "sys/class/iommu";
constexpr std::string_view groups_folder = "sys/kernel/iommu_groups";
constexpr std::string_view thunderbolt_folder = "sys/bus/thunderbolt/devices";

std::optional<std::uint32_t> parse_number(std::string_view text) {
    std::uint32_t number = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || stop != text.data() + text.size()) return std::nullopt;
    return number;
}

bool is_yes(std::string_view text) { return text.starts_with('Y') || text.starts_with('1'); }

class SysfsReader {
public:
    explicit SysfsReader(HostTree& tree) : tree_(tree) {}

    Result<HostView> run() {
        GM_TRY(read_functions());
        for (const char* bus : {"platform", "amba"}) GM_TRY(read_platform(bus));
        GM_TRY(read_units());
        GM_TRY(read_groups());
        GM_TRY(read_thunderbolt());
        read_settings();
        view_.complaints = book_.complaints();
        return std::move(view_);
    }

private:
    [[nodiscard]] std::string_view who_sees_more() const {
        return tree_.is_live() ? "run as root to see it" : "capture as root to have it";
    }

    void note_error(const Error& error, std::string_view path) {
        const std::string name = last_part(path);
        if (error.code() == Errc::permission_denied) {
            book_.note(fmt::format("permission {}", name),
                       fmt::format("'{}' is not readable: {}", name, who_sees_more()), path);
        } else {
            book_.note(fmt::format("error {}", name),
                       fmt::format("'{}' is not read: {}", name, error.message()), path);
        }
    }

    std::optional<std::string> text_of(const std::string& path, std::size_t limit_bytes = max_text_bytes) {
        auto text = tree_.read(path, limit_bytes);
        if (text) return *std::move(text);
        note_error(text.error(), path);
        return std::nullopt;
    }

    std::optional<std::string> target_of(const std::string& path) {
        auto target = tree_.link_target(path);
        if (target) return *std::move(target);
        note_error(target.error(), path);
        return std::nullopt;
    }

    /// The last part of a link; empty when there is none.
    std::string name_of(const std::string& path) {
        const auto target = target_of(path);
        return target ? last_part(*target) : std::string{};
    }

    std::string line_of(const std::string& path) {
        const auto text = text_of(path);
        return text ? plain_line(*text) : std::string{};
    }

    std::optional<std::uint64_t> hexadecimal_of(const std::string& path) {
        const auto text = text_of(path);
        return text ? parse_hexadecimal(*text) : std::nullopt;
    }

    std::optional<std::uint32_t> group_of(const std::string& device) {
        const std::string name = name_of(device + "/iommu_group");
        return name.empty() ? std::nullopt : parse_number(name);
    }

    /// A folder that may not be listed is a complaint, one with too many names an error.
    Result<std::vector<std::string>> names_in(std::string_view folder) {
        auto names = tree_.list(folder, max_host_names);
        if (names || names.error().code() == Errc::out_of_range) return names;
        note_error(names.error(), folder);
        return std::vector<std::string>{};
    }

    Result<void> read_functions() {
        const auto names = GM_TRY(names_in(functions_folder));
        view_.functions.reserve(names.size());
        for (const std::string& name : names) {
            const auto address = parse_pci_address(name);
            if (!address || to_string(*address) != name) {
                add_function_of_large_segment(name);
                continue;
            }
            view_.functions.push_back(read_function(*address, fmt::format("{}/{}", functions_folder, name)));
        }
        std::ranges::sort(view_.functions, {}, &PciFunction::address);
        find_external_ports();
        return {};
    }

    /// Behind VMD: it counts as a device, by its name.
    void add_function_of_large_segment(const std::string& name) {
        const std::string path = fmt::format("{}/{}", functions_folder, name);
        book_.note("address",
                   "functions without a PCI address of 16 bits for the segment are known by their names only",
                   path);
        PciFunction function = read_function({}, path);
        PlatformDevice device;
        device.name = plain_line(name);
        device.firmware_node = std::move(function.firmware_node);
        device.registers = function.first_register;
        device.driver = std::move(function.driver);
        device.group = function.group;
        device.kernel_unit = std::move(function.kernel_unit);
        device.is_pci = true;
        device.is_bridge = function.header_type != 0;
        device.class_code = function.class_code;
        device.title = device_title(function);
        view_.platform_devices.push_back(std::move(device));
    }

    PciFunction read_function(PciAddress address, const std::string& folder) {
        PciFunction function;
        function.address = address;
        read_configuration(folder, function);
        function.driver = name_of(folder + "/driver");
        function.group = group_of(folder);
        function.kernel_unit = name_of(folder + "/iommu");
        const std::string physical = name_of(folder + "/physfn");
        if (!physical.empty()) function.physical_function = parse_pci_address(physical);
        if (function.vendor == 0xffff) read_identity(folder, function);
        if (!function.first_register && function.physical_function)
            if (const auto regions = text_of(folder + "/resource"))
                function.first_register = first_memory_region(*regions);
        function.is_removable = line_of(folder + "/removable") == "removable";
        // Last: these are in other folders.
        const auto node = target_of(folder + "/of_node");
        if (node) function.firmware_node = device_tree_path(*node);
        if (node && function.secondary_bus) {
            const auto is_external = tree_.exists(folder + "/of_node/external-facing");
            function.is_external_facing = is_external && *is_external;
        }
        if (function.firmware_node.empty()) function.firmware_node = line_of(folder + "/firmware_node/path");
        return function;
    }

    void read_configuration(const std::string& folder, PciFunction& function) {
        const std::string path = folder + "/config";
        const auto bytes = text_of(path, config_bytes);
        if (!bytes) return;
        const auto notes = read_pci_config(std::as_bytes(std::span{*bytes}), function);
        if (!notes) {
            book_.note("config short", notes.error().message(), path);
            return;
        }
        if (!notes->problem.empty()) book_.note("config problem", notes->problem, path);
        if (!notes->is_cut) return;
        if (bytes->size() < config_conventional_bytes) {
            book_.note("config cut",
                       fmt::format(
                           "configuration space beyond {} bytes is not readable (kind of port, ACS, MSI): {}",
                           bytes->size(), who_sees_more()),
                       path);
        } else {
            book_.note(
                "config extended",
                "extended configuration space is not readable (ACS, ATS): the kernel has no access to it",
                path);
        }
    }

    /// From the kernel's own files, where configuration space has none.
    void read_identity(const std::string& folder, PciFunction& function) {
        if (const auto vendor = hexadecimal_of(folder + "/vendor"))
            function.vendor = static_cast<std::uint16_t>(*vendor);
        if (const auto device = hexadecimal_of(folder + "/device"))
            function.device = static_cast<std::uint16_t>(*device);
        if (function.class_code != 0) return;
        if (const auto class_code = hexadecimal_of(folder + "/class"))
            function.class_code = static_cast<std::uint32_t>(*class_code & 0xffffff);
    }

    /// A bridge that is fixed, with removable functions on its bus.
    void find_external_ports() {
        std::vector<std::pair<std::uint32_t, std::size_t>> bridges;
        const auto bus_of = [](std::uint16_t segment, unsigned bus) {
            return std::uint32_t{segment} << 8 | bus;
        };
        for (std::size_t i = 0; i < view_.functions.size(); ++i)
            if (const PciFunction& function = view_.functions[i]; function.secondary_bus)
                bridges.emplace_back(bus_of(function.address.segment, *function.secondary_bus), i);
        std::ranges::sort(bridges);
        for (const PciFunction& function : view_.functions) {
            if (!function.is_removable) continue;
            const auto bus = bus_of(function.address.segment, function.address.bus());
            const auto above = std::ranges::lower_bound(bridges, std::pair{bus, std::size_t{0}});
            if (above == bridges.end() || above->first != bus) continue;
            PciFunction& port = view_.functions[above->second];
            port.is_external_facing = port.is_external_facing || !port.is_removable;
        }
    }

    Result<void> read_platform(std::string_view bus) {
        const std::string folder = fmt::format("sys/bus/{}/devices", bus);
        for (const std::string& name : GM_TRY(names_in(folder))) {
            const std::string path = fmt::format("{}/{}", folder, name);
            PlatformDevice device;
            device.name = plain_line(name);
            device.driver = name_of(path + "/driver");
            device.group = group_of(path);
            device.kernel_unit = name_of(path + "/iommu");
            if (const auto node = target_of(path + "/of_node"))
                device.firmware_node = device_tree_path(*node);
            if (device.firmware_node.empty()) device.firmware_node = line_of(path + "/firmware_node/path");
            // "9000000.dma": the kernel names a device of the tree by its registers.
            if (const std::size_t dot = name.find('.'); dot != std::string::npos && dot > 0)
                device.registers = parse_hexadecimal(std::string_view{name}.substr(0, dot));
            if (device.group || !device.kernel_unit.empty() || !device.firmware_node.empty())
                view_.platform_devices.push_back(std::move(device));
        }
        return {};
    }

    Result<void> read_units() {
        for (const std::string& name : GM_TRY(names_in(units_folder))) {
            const std::string path = fmt::format("{}/{}", units_folder, name);
            KernelUnit unit;
            unit.name = plain_line(name);
            unit.registers = hexadecimal_of(path + "/intel-iommu/address");
            unit.capability = hexadecimal_of(path + (unit.registers ? "/intel-iommu/cap" : "/amd-iommu/cap"));
            unit.extended =
                hexadecimal_of(path + (unit.registers ? "/intel-iommu/ecap" : "/amd-iommu/features"));
            // "smmu3.0x0000000009050000"
            if (const std::size_t at = name.find(".0x"); !unit.registers && at != std::string::npos)
                unit.registers = parse_hexadecimal(std::string_view{name}.substr(at + 1));
            unit.function = parse_pci_address(name_of(path + "/device"));
            if (!unit.function) unit.function = parse_pci_address(name);
            view_.units.push_back(std::move(unit));
        }
        return {};
    }

    Result<void> read_groups() {
        for (const std::string& name : GM_TRY(names_in(groups_folder))) {
            const std::string path = fmt::format("{}/{}", groups_folder, name);
            const auto number = parse_number(name);
            if (!number) {
                book_.note("group", "groups whose name is no number are left out", path);
                continue;
            }
            KernelGroup group;
            group.number = *number;
            group.type = line_of(path + "/type");
            // Groups that a driver makes by hand have a name and no domain of the kernel's.
            if (!group.type.starts_with("DMA") && group.type != "identity")
                group.name = line_of(path + "/name");
            if (const auto text = text_of(path + "/reserved_regions")) {
                if (auto regions = parse_reserved_regions(*text)) {
                    group.reserved = *std::move(regions);
                } else {
                    book_.note("regions", "'reserved_regions' is not understood", path + "/reserved_regions");
                }
            }
            for (const std::string& member : GM_TRY(names_in(path + "/devices")))
                group.members.push_back(plain_line(member));
            view_.groups.push_back(std::move(group));
        }
        std::ranges::sort(view_.groups, {}, &KernelGroup::number);
        return {};
    }

    Result<void> read_thunderbolt() {
        for (const std::string& name : GM_TRY(names_in(thunderbolt_folder))) {
            if (!name.starts_with("domain")) continue;
            const std::string path = fmt::format("{}/{}", thunderbolt_folder, name);
            ThunderboltDomain domain;
            domain.name = plain_line(name);
            domain.security = line_of(path + "/security");
            if (const auto text = text_of(path + "/iommu_dma_protection"))
                domain.has_iommu_protection = is_yes(*text);
            view_.thunderbolt.push_back(std::move(domain));
        }
        return {};
    }

    /// Whether one of the paths is there; nothing where the tree could not have them.
    std::optional<bool> has_one_of(std::initializer_list<const char*> paths) {
        for (const char* path : paths) {
            const auto exists = tree_.exists(path);
            if (exists && *exists) return true;
        }
        for (const char* path : {"sys/module", "capture"}) {
            const auto exists = tree_.exists(path);
            if (exists && *exists) return false;
        }
        return std::nullopt;
    }

    void read_settings() {
        KernelSettings& settings = view_.settings;
        settings.release = line_of("proc/sys/kernel/osrelease");
        settings.architecture = line_of("proc/sys/kernel/arch");
        if (const auto text = text_of("proc/cmdline")) settings.command_line = plain_line(kept_words(*text));
        if (const auto text = text_of("proc/meminfo"))
            settings.memory_total_bytes = meminfo_bytes(*text, "MemTotal:");
        const std::string type1 = "sys/module/vfio_iommu_type1/parameters/";
        if (const auto text = text_of(type1 + "allow_unsafe_interrupts"))
            settings.may_use_unsafe_interrupts = is_yes(*text);
        if (const auto text = text_of(type1 + "dma_entry_limit"))
            settings.dma_entry_limit = parse_kernel_number(*text);
        if (const auto text = text_of("sys/module/vfio/parameters/enable_unsafe_noiommu_mode"))
            settings.has_posted_no_iommu = is_yes(*text);
        settings.has_vfio = has_one_of({"sys/module/vfio", "sys/class/misc/vfio"});
        settings.has_iommufd = has_one_of({"sys/class/misc/iommu"});
        if (tree_.is_live()) {
            read_process();
        } else if (const auto text = text_of(std::string{page_bytes_path})) {
            const auto page_bytes = parse_kernel_number(*text);
            if (page_bytes && *page_bytes != 0) settings.page_bytes = *page_bytes;
        }
    }

    /// What only the live machine can say: the limits of this process.
    void read_process() {
        if (const auto facts = file_system_facts(std::string{"/proc"}); facts && facts->page_bytes != 0)
            view_.settings.page_bytes = facts->page_bytes;
        const auto limits = memory_limits();
        if (limits && limits->locked_bytes != no_memory_limit)
            view_.settings.memory_lock_bytes = limits->locked_bytes;
    }

    HostTree& tree_;
    HostView view_;
    ComplaintBook book_;
};

}  // namespace

Result<HostView> read_host_view(HostTree& tree) { return SysfsReader{tree}.run(); }

}  // namespace guestmem::dma

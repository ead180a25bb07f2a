// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "guestmem/dma/discover/testing/config_space.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// A folder with files as the kernel shows them, for tests of what reads a machine.
///
/// Contract: functions are folders below sys/devices/pci0000:00, and sys/bus/pci/devices has links to them, as on a
/// machine; so have groups and units. The folder is gone with the object.
/// Threads: one at a time.
/// Example:
///     MachineTree machine;
///     machine.add_function("0000:00:02.0", ConfigSpace{}.express(0x40, 0).text());
///     machine.set_group("0000:00:02.0", 3);

namespace guestmem::dma::testing {

class MachineTree {
public:
    [[nodiscard]] const std::string& path() const { return folder_.path(); }

    void put(const std::string& path, std::string_view content) {
        std::filesystem::create_directories(std::filesystem::path{folder_.path_of(path)}.parent_path());
        folder_.write(path, content);
    }
    void link(const std::string& path, const std::string& target) {
        std::filesystem::create_directories(std::filesystem::path{folder_.path_of(path)}.parent_path());
        std::filesystem::create_symlink(target, folder_.path_of(path));
    }

    void add_function(const std::string& address, std::string_view configuration) {
        put(device(address) + "/config", configuration);
        put(device(address) + "/class", "0x020000\n");
        put(device(address) + "/vendor", "0x8086\n");
        put(device(address) + "/device", "0x10ed\n");
        put(device(address) + "/resource",
            "0x00000000feb80000 0x00000000feb9ffff 0x0000000000040200\n"
            "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n");
        put(device(address) + "/numa_node", "0\n");
        link("sys/bus/pci/devices/" + address, "../../../devices/pci0000:00/" + address);
    }
    void set_driver(const std::string& address, const std::string& driver) {
        link(device(address) + "/driver", "../../../bus/pci/drivers/" + driver);
    }
    void set_group(const std::string& address, unsigned number, std::string_view type = "DMA-FQ\n") {
        const std::string group = "sys/kernel/iommu_groups/" + std::to_string(number);
        link(device(address) + "/iommu_group", "../../../kernel/iommu_groups/" + std::to_string(number));
        link(group + "/devices/" + address, "../../../../devices/pci0000:00/" + address);
        put(group + "/type", type);
        put(group + "/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n");
    }
    /// Of VT-d.
    void add_unit(const std::string& name, std::string_view registers) {
        const std::string unit = "sys/devices/virtual/iommu/" + name;
        put(unit + "/intel-iommu/address", std::string{registers} + "\n");
        put(unit + "/intel-iommu/cap", "d2008c40660462\n");
        put(unit + "/intel-iommu/ecap", "f050da\n");
        link("sys/class/iommu/" + name, "../../devices/virtual/iommu/" + name);
    }
    void set_unit(const std::string& address, const std::string& unit) {
        link(device(address) + "/iommu", "../../virtual/iommu/" + unit);
        link("sys/devices/virtual/iommu/" + unit + "/devices/" + address,
             "../../../../pci0000:00/" + address);
    }

    [[nodiscard]] static std::string device(const std::string& address) {
        return "sys/devices/pci0000:00/" + address;
    }

private:
    guestmem::testing::TempFolder folder_;
};

}  // namespace guestmem::dma::testing

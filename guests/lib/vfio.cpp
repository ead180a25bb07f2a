// SPDX-License-Identifier: Apache-2.0
#include "guests/lib/vfio.hpp"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

namespace guestmem::guest {
namespace {

namespace fs = std::filesystem;

const char* const devices_folder = "/sys/bus/pci/devices";
constexpr std::chrono::seconds bind_timeout(5);

Result<Descriptor> open_file(const std::string& path, int flags) {
    Descriptor file(::open(path.c_str(), flags | O_CLOEXEC));
    if (!file.is_open()) {
        return system_failure("open", path);
    }
    return file;
}

Result<void> write_attribute(const std::string& path, const std::string& text) {
    auto file = open_file(path, O_WRONLY);
    if (!file) {
        return std::unexpected(file.error());
    }
    if (::write(file->number(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        return system_failure("write '" + text + "'", path);
    }
    return {};
}

// A sysfs attribute such as "0x1af4"; empty when it cannot be read.
std::optional<std::uint32_t> read_hex_attribute(const fs::path& path) {
    std::ifstream file(path);
    std::string text;
    if (!(file >> text) || !text.starts_with("0x")) {
        return std::nullopt;
    }
    std::uint32_t value = 0;
    const auto [rest, error] = std::from_chars(text.data() + 2, text.data() + text.size(), value, 16);
    if (error != std::errc{} || rest != text.data() + text.size()) {
        return std::nullopt;
    }
    return value;
}

Result<void> ask_vfio_to_take(const std::string& address) {
    const std::string folder = std::string(devices_folder) + "/" + address;
    if (auto done = write_attribute(folder + "/driver_override", "vfio-pci"); !done) return done;
    std::error_code ignored;
    const fs::path driver = fs::read_symlink(folder + "/driver", ignored);
    if (driver.empty()) return write_attribute("/sys/bus/pci/drivers_probe", address);
    if (driver.filename() == "vfio-pci") return {};
    if (auto done = write_attribute(folder + "/driver/unbind", address); !done) return done;
    return write_attribute("/sys/bus/pci/drivers_probe", address);
}

// Binds the function to vfio-pci and returns the path of its group. A function that was just plugged in is
// visible in sysfs before drivers may take it, and its group's node comes last: hence the patience.
Result<std::string> bind_to_vfio(const std::string& address) {
    const std::string link = std::string(devices_folder) + "/" + address + "/iommu_group";
    const auto deadline = std::chrono::steady_clock::now() + bind_timeout;
    while (true) {
        const auto asked = ask_vfio_to_take(address);
        std::error_code error;
        const fs::path group = fs::read_symlink(link, error);
        std::string path = "/dev/vfio/" + group.filename().string();
        if (asked && !error && fs::exists(path, error)) return path;
        if (std::chrono::steady_clock::now() >= deadline) {
            if (!asked) return std::unexpected(asked.error());
            if (group.empty()) {
                return failure("find the IOMMU group", link,
                               "there is none: VFIO needs an IOMMU (intel_iommu=on)");
            }
            return failure("bind to vfio-pci", address, path + " has not appeared; is vfio-pci loaded?");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

Result<void> join_group(const Descriptor& container, const Descriptor& group, const std::string& path) {
    vfio_group_status status{};
    status.argsz = sizeof status;
    if (::ioctl(group.number(), VFIO_GROUP_GET_STATUS, &status) < 0) {
        return system_failure("VFIO_GROUP_GET_STATUS", path);
    }
    if ((status.flags & VFIO_GROUP_FLAGS_VIABLE) == 0) {
        return failure("use the IOMMU group", path,
                       "another device of the group is bound to a kernel driver");
    }
    int container_number = container.number();
    if (::ioctl(group.number(), VFIO_GROUP_SET_CONTAINER, &container_number) < 0) {
        return system_failure("VFIO_GROUP_SET_CONTAINER", path);
    }
    if (::ioctl(container.number(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0) {
        return system_failure("VFIO_SET_IOMMU type1v2", path);
    }
    return {};
}

// The node of a group exists a moment before its device is known in it.
Result<Descriptor> open_device(const Descriptor& group, const std::string& address) {
    const auto deadline = std::chrono::steady_clock::now() + bind_timeout;
    while (true) {
        Descriptor device(::ioctl(group.number(), VFIO_GROUP_GET_DEVICE_FD, address.c_str()));
        if (device.is_open()) return device;
        if (errno != ENODEV || std::chrono::steady_clock::now() >= deadline) {
            return system_failure("VFIO_GROUP_GET_DEVICE_FD", address);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

}  // namespace

Result<std::vector<std::string>> find_pci_functions(PciIdentity identity) {
    std::vector<std::string> found;
    std::error_code error;
    fs::directory_iterator entries(devices_folder, error);
    if (error) {
        return failure("list PCI functions", devices_folder, error.message());
    }
    for (; entries != fs::directory_iterator(); entries.increment(error)) {
        const fs::path folder = entries->path();
        if (read_hex_attribute(folder / "vendor") == identity.vendor &&
            read_hex_attribute(folder / "device") == identity.device) {
            found.push_back(folder.filename().string());
        }
        if (error) {
            break;
        }
    }
    std::ranges::sort(found);
    return found;
}

bool has_pci_function(const std::string& address) {
    std::error_code ignored;
    return fs::exists(fs::path(devices_folder) / address, ignored);
}

RegionMapping::~RegionMapping() {
    if (base_ != nullptr) {
        ::munmap(base_, size_);
    }
}

Result<VfioFunction> VfioFunction::open(const std::string& address) {
    auto group_path = bind_to_vfio(address);
    if (!group_path) return std::unexpected(group_path.error());
    auto container = open_file("/dev/vfio/vfio", O_RDWR);
    if (!container) {
        return std::unexpected(container.error());
    }
    auto group = open_file(*group_path, O_RDWR);
    if (!group) {
        return std::unexpected(group.error());
    }
    if (auto joined = join_group(*container, *group, *group_path); !joined) {
        return std::unexpected(joined.error());
    }
    auto device = open_device(*group, address);
    if (!device) return std::unexpected(device.error());
    VfioFunction function(address, std::move(*container), std::move(*group), std::move(*device));
    if (auto enabled = function.enable_memory_and_master(); !enabled) {
        return std::unexpected(enabled.error());
    }
    return function;
}

Result<VfioFunction::Region> VfioFunction::region(std::uint32_t index) const {
    vfio_region_info info{};
    info.argsz = sizeof info;
    info.index = index;
    if (::ioctl(device_.number(), VFIO_DEVICE_GET_REGION_INFO, &info) < 0) {
        return system_failure("VFIO_DEVICE_GET_REGION_INFO of region " + std::to_string(index), address_);
    }
    return Region{info.offset, info.size, info.flags};
}

Result<void> VfioFunction::enable_memory_and_master() const {
    constexpr off_t command_register = 4;
    constexpr std::uint16_t memory_space = 2;
    constexpr std::uint16_t bus_master = 4;
    auto config = region(VFIO_PCI_CONFIG_REGION_INDEX);
    if (!config) {
        return std::unexpected(config.error());
    }
    const off_t offset = static_cast<off_t>(config->offset) + command_register;
    std::uint16_t command = 0;
    if (::pread(device_.number(), &command, sizeof command, offset) != sizeof command) {
        return system_failure("read the PCI command register", address_);
    }
    command = static_cast<std::uint16_t>(command | memory_space | bus_master);
    if (::pwrite(device_.number(), &command, sizeof command, offset) != sizeof command) {
        return system_failure("write the PCI command register", address_);
    }
    return {};
}

Result<RegionMapping> VfioFunction::map_bar(std::uint32_t index) const {
    const std::string where = address_ + " BAR" + std::to_string(index);
    auto bar = region(index);
    if (!bar) {
        return std::unexpected(bar.error());
    }
    if (bar->size == 0 || (bar->flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) {
        return failure("map", where,
                       "size " + std::to_string(bar->size) + ", flags " + std::to_string(bar->flags) +
                           ": the region is empty or cannot be mapped");
    }
    void* base = ::mmap(nullptr, bar->size, PROT_READ | PROT_WRITE, MAP_SHARED, device_.number(),
                        static_cast<off_t>(bar->offset));
    if (base == MAP_FAILED) {
        return system_failure("map " + std::to_string(bar->size) + " bytes", where);
    }
    return RegionMapping(static_cast<std::byte*>(base), bar->size);
}

Result<std::uint32_t> VfioFunction::read_register(std::uint32_t bar, std::uint64_t offset) const {
    auto registers = region(bar);
    if (!registers) {
        return std::unexpected(registers.error());
    }
    std::uint32_t value = 0;
    if (::pread(device_.number(), &value, sizeof value, static_cast<off_t>(registers->offset + offset)) !=
        sizeof value) {
        return system_failure("read register " + std::to_string(offset),
                              address_ + " BAR" + std::to_string(bar));
    }
    return value;
}

Result<void> VfioFunction::write_register(std::uint32_t bar, std::uint64_t offset,
                                          std::uint32_t value) const {
    auto registers = region(bar);
    if (!registers) {
        return std::unexpected(registers.error());
    }
    if (::pwrite(device_.number(), &value, sizeof value, static_cast<off_t>(registers->offset + offset)) !=
        sizeof value) {
        return system_failure("write register " + std::to_string(offset),
                              address_ + " BAR" + std::to_string(bar));
    }
    return {};
}

Result<void> VfioFunction::set_eventfds(std::uint32_t index, const std::vector<Descriptor>& events) const {
    // vfio_irq_set ends in an array of eventfd numbers; the buffer is made of its header and one int each.
    const std::size_t size = sizeof(vfio_irq_set) + events.size() * sizeof(int);
    std::vector<std::uint32_t> buffer((size + sizeof(std::uint32_t) - 1) / sizeof(std::uint32_t));
    vfio_irq_set header{};
    header.argsz = static_cast<std::uint32_t>(size);
    header.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    header.index = index;
    header.start = 0;
    header.count = static_cast<std::uint32_t>(events.size());
    auto* bytes = reinterpret_cast<std::byte*>(buffer.data());
    std::memcpy(bytes, &header, sizeof header);
    for (std::size_t i = 0; i < events.size(); ++i) {
        const int number = events[i].number();
        std::memcpy(bytes + sizeof header + i * sizeof number, &number, sizeof number);
    }
    if (::ioctl(device_.number(), VFIO_DEVICE_SET_IRQS, buffer.data()) < 0) {
        return system_failure("VFIO_DEVICE_SET_IRQS of index " + std::to_string(index), address_);
    }
    return {};
}

Result<std::vector<Descriptor>> VfioFunction::enable_vectors() const {
    vfio_irq_info info{};
    info.argsz = sizeof info;
    info.index = VFIO_PCI_MSIX_IRQ_INDEX;
    if (::ioctl(device_.number(), VFIO_DEVICE_GET_IRQ_INFO, &info) < 0) {
        return system_failure("VFIO_DEVICE_GET_IRQ_INFO of MSI-X", address_);
    }
    if (info.count == 0 || info.count > max_vectors) {
        return failure("enable MSI-X", address_,
                       "the function has " + std::to_string(info.count) + " vectors, expected 1 to " +
                           std::to_string(max_vectors) + " (an ivshmem-plain device has none)");
    }
    std::vector<Descriptor> events;
    for (std::uint32_t i = 0; i < info.count; ++i) {
        events.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!events.back().is_open()) {
            return system_failure("make the eventfd of vector " + std::to_string(i), address_);
        }
    }
    if (auto set = set_eventfds(VFIO_PCI_MSIX_IRQ_INDEX, events); !set) {
        return std::unexpected(set.error());
    }
    return events;
}

Result<Descriptor> VfioFunction::watch_removal() const {
    std::vector<Descriptor> events;
    events.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!events.back().is_open()) {
        return system_failure("make the eventfd of removal requests", address_);
    }
    vfio_irq_info info{};
    info.argsz = sizeof info;
    info.index = VFIO_PCI_REQ_IRQ_INDEX;
    if (::ioctl(device_.number(), VFIO_DEVICE_GET_IRQ_INFO, &info) < 0 || info.count == 0) {
        return Descriptor();
    }
    if (auto set = set_eventfds(VFIO_PCI_REQ_IRQ_INDEX, events); !set) {
        return std::unexpected(set.error());
    }
    return std::move(events.front());
}

}  // namespace guestmem::guest

// SPDX-License-Identifier: Apache-2.0
#include "guests/lib/sysfs.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "guests/lib/descriptor.hpp"

namespace guestmem::guest {
namespace {

std::string path_of(const std::string& address, const std::string& file) {
    return "/sys/bus/pci/devices/" + address + "/" + file;
}

}  // namespace

Result<SysfsFunction> SysfsFunction::open(const std::string& address) {
    const std::string path = path_of(address, "enable");
    const Descriptor file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.is_open()) {
        return system_failure("open", path);
    }
    if (::write(file.number(), "1", 1) != 1) {
        return system_failure("write '1'", path);
    }
    return SysfsFunction(address);
}

Result<RegionMapping> SysfsFunction::map_bar(std::uint32_t index) const {
    const std::string path = path_of(address_, "resource" + std::to_string(index));
    const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!file.is_open()) {
        return system_failure("open", path);
    }
    struct stat facts{};
    if (::fstat(file.number(), &facts) != 0) {
        return system_failure("ask for the size", path);
    }
    const auto size = static_cast<std::size_t>(facts.st_size);
    void* const base = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.number(), 0);
    if (base == MAP_FAILED) {
        return system_failure("map", path);
    }
    return RegionMapping(static_cast<std::byte*>(base), size);
}

}  // namespace guestmem::guest

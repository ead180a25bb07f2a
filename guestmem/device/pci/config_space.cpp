// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/config_space.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace guestmem::pci {

ConfigSpace::ConfigSpace(const Identity& identity) {
    set(vendor_register, identity.vendor);
    set(device_register, identity.device);
    set(revision_register, identity.revision);
    set(interface_register, identity.interface);
    set(class_register, identity.class_code);
    set(subsystem_vendor_register, identity.subsystem_vendor);
    set(subsystem_register, identity.subsystem);
}

Result<std::uint8_t> ConfigSpace::add_capability(const CapabilityImage& image) {
    GM_CHECK(image.bytes.size() >= 2 && image.bytes.size() == image.writable.size());
    const std::size_t offset = next_free_;
    if (image.bytes.size() > config_size_bytes - offset) {
        return Error{Errc::exhausted,
                     fmt::format("capability {:#x} of {} bytes does not fit behind the others: {} are free",
                                 image.id, image.bytes.size(), config_size_bytes - offset)};
    }
    std::ranges::copy(image.bytes, bytes_.begin() + static_cast<std::ptrdiff_t>(offset));
    std::ranges::copy(image.writable, writable_.begin() + static_cast<std::ptrdiff_t>(offset));
    set(offset, image.id);
    set(offset + 1, std::uint8_t{0});
    set(last_link_, static_cast<std::uint8_t>(offset));
    set(status_register,
        static_cast<std::uint16_t>(get<std::uint16_t>(status_register) | status_capabilities));
    last_link_ = offset + 1;
    next_free_ = std::min((offset + image.bytes.size() + 3) & ~std::size_t{3}, config_size_bytes);
    return static_cast<std::uint8_t>(offset);
}

void ConfigSpace::read(std::uint64_t offset, std::span<std::byte> data) const {
    std::ranges::fill(data, std::byte{0xff});
    if (offset >= config_size_bytes) return;
    const auto inside = data.first(std::min(data.size(), config_size_bytes - offset));
    std::ranges::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset),
                        static_cast<std::ptrdiff_t>(inside.size()), inside.begin());
}

void ConfigSpace::write(std::uint64_t offset, std::span<const std::byte> data) {
    if (offset >= config_size_bytes) return;
    const std::size_t count = std::min(data.size(), config_size_bytes - offset);
    for (std::size_t i = 0; i < count; ++i) {
        std::byte& byte = bytes_[offset + i];
        const std::byte mask = writable_[offset + i];
        byte = (byte & ~mask) | (data[i] & mask);
    }
}

}  // namespace guestmem::pci

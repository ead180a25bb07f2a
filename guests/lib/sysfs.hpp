// SPDX-License-Identifier: Apache-2.0
#pragma once

// A PCI function of this guest, used through sysfs: no driver, no IOMMU, no interrupts.
//
// Concepts: each memory BAR is a file "resourceN" that can be mapped. The kernel knows nothing of what is done there.
// Contract: open() turns the function's memory decoding on. Needs root, and a function that no driver has.
// Threads: one at a time.
// Limits: memory BARs; a kernel that is locked down refuses the mapping.
// Example: auto function = SysfsFunction::open("0000:00:02.0"); auto memory = function->map_bar(2);

#include <string>

#include "guests/lib/result.hpp"
#include "guests/lib/vfio.hpp"

namespace guestmem::guest {

class SysfsFunction {
public:
    static Result<SysfsFunction> open(const std::string& address);

    const std::string& address() const { return address_; }
    Result<RegionMapping> map_bar(std::uint32_t index) const;

private:
    explicit SysfsFunction(std::string address) : address_(std::move(address)) {}

    std::string address_;
};

}  // namespace guestmem::guest

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/region_window.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/base/sizes.hpp"

namespace guestmem::vmm {

Result<std::uint64_t> RegionWindow::take(std::uint64_t size_bytes) {
    const std::lock_guard lock{mutex_};
    std::uint64_t base = window_.base().value();
    for (const auto& [first, last] : taken_) {
        if (first > base && first - base >= size_bytes) break;
        base = last / alignment * alignment + alignment;
    }
    if (base > window_.last().value() || window_.last().value() - base < size_bytes - 1) {
        return Error{Errc::exhausted,
                     fmt::format("no room for {} bytes among the regions at {:#x} to {:#x}", size_bytes,
                                 window_.base().value(), window_.last().value())};
    }
    taken_.emplace(base, base + (size_bytes - 1));
    return base;
}

void RegionWindow::give_back(std::uint64_t base) {
    const std::lock_guard lock{mutex_};
    taken_.erase(base);
}

Result<GuestAddress> RegionWindow::show(const std::string& name, std::shared_ptr<IoDevice> registers,
                                        std::shared_ptr<const HostMemory> data) {
    const std::uint64_t base = GM_TRY(take(page_size_bytes + data->bytes().size()));
    auto added =
        bus_.add({.name = name, .first = base, .count = page_size_bytes, .device = std::move(registers)});
    if (!added) {
        give_back(base);
        return added.error();
    }
    auto region = Region::create(
        {.name = name, .base = GuestAddress{base + page_size_bytes}, .memory = std::move(data)});
    const auto shown = region ? memory_.insert(*region) : Result<void>{region.error()};
    if (!shown) {
        bus_.remove(base);
        give_back(base);
        return shown.error();
    }
    return GuestAddress{base};
}

void RegionWindow::hide(GuestAddress place) {
    bus_.remove(place.value());
    std::uint64_t last = 0;
    {
        const std::lock_guard lock{mutex_};
        const auto found = taken_.find(place.value());
        if (found == taken_.end()) return;
        last = found->second;
    }
    const auto range =
        GuestRange::from_first_last(GuestAddress{place.value() + page_size_bytes}, GuestAddress{last});
    // What the kernel does not let go of stays where it is, and its place stays taken.
    if (range && memory_.remove(*range)) give_back(place.value());
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/region_window.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"

namespace guestmem::vmm {
namespace {

/// Guests put their BARs where they like, while a place is looked for.
constexpr int max_tries = 8;

}  // namespace

Result<std::uint64_t> RegionWindow::find_room(std::uint64_t size_bytes) const {
    struct Run {
        std::uint64_t first;
        std::uint64_t last;
    };
    std::vector<Run> busy;
    const std::uint64_t window_last = window_.last().value();
    const auto add = [&](std::uint64_t first, std::uint64_t last) {
        if (last >= window_.base().value() && first <= window_last)
            busy.push_back({first, std::min(last, window_last)});
    };
    for (const auto& [first, taken] : taken_) add(first, taken.last);
    const auto windows = bus_.windows();
    for (const BusWindow& window : windows) add(window.first, window.first + (window.count - 1));
    const auto map = memory_.map();
    for (const auto& region : map->regions())
        add(region->range().base().value(), region->range().last().value());
    std::ranges::sort(busy, {}, &Run::first);
    std::uint64_t base = window_.base().value();
    for (const Run& run : busy) {
        if (run.last < base) continue;
        if (run.first > base && run.first - base >= size_bytes) break;
        base = run.last / alignment * alignment + alignment;
    }
    if (base > window_last || window_last - base < size_bytes - 1) {
        return Error{Errc::exhausted, fmt::format("no room for {} bytes among the regions at {:#x} to {:#x}",
                                                  size_bytes, window_.base().value(), window_last)};
    }
    return base;
}

Result<void> RegionWindow::put(std::uint64_t base, const std::string& name,
                               std::shared_ptr<IoDevice> registers, std::shared_ptr<const HostMemory> data) {
    const std::uint64_t data_base = base + page_size_bytes;
    GM_TRY(bus_.add({.name = name, .first = base, .count = page_size_bytes, .device = std::move(registers)}));
    auto reserved = bus_.add({.name = name + " (data)", .first = data_base, .count = data->bytes().size()});
    if (!reserved) {
        bus_.remove(base);
        return reserved;
    }
    auto region = Region::create({.name = name, .base = GuestAddress{data_base}, .memory = std::move(data)});
    auto shown = region ? memory_.insert(*region) : Result<void>{region.error()};
    if (!shown) {
        bus_.remove(data_base);
        bus_.remove(base);
    }
    return shown;
}

Result<GuestAddress> RegionWindow::show(const std::string& name, std::shared_ptr<IoDevice> registers,
                                        std::shared_ptr<const HostMemory> data) {
    const std::lock_guard lock{mutex_};
    finish_leaving();
    const std::uint64_t size_bytes = page_size_bytes + data->bytes().size();
    for (int tries = 1;; ++tries) {
        const std::uint64_t base = GM_TRY(find_room(size_bytes));
        const auto done = put(base, name, registers, data);
        if (done) {
            taken_.emplace(base, Taken{.last = base + (size_bytes - 1)});
            return GuestAddress{base};
        }
        if (done.error().code() != Errc::already_exists || tries == max_tries) return done.error();
    }
}

Result<void> RegionWindow::remove_data(std::uint64_t base, Taken& taken) {
    if (!taken.has_data) return {};
    const auto range =
        GuestRange::from_first_last(GuestAddress{base + page_size_bytes}, GuestAddress{taken.last});
    if (!range) return Error{Errc::out_of_range, fmt::format("no data behind {:#x}", base)};
    GM_TRY_CONTEXT(memory_.remove(*range), fmt::format("the region at {:#x} stays in the guest", base));
    taken.has_data = false;
    bus_.remove(base + page_size_bytes);
    return {};
}

void RegionWindow::finish_leaving() {
    for (auto one = taken_.begin(); one != taken_.end();) {
        const bool has_gone = one->second.is_leaving && remove_data(one->first, one->second).has_value();
        one = has_gone ? taken_.erase(one) : std::next(one);
    }
}

Result<void> RegionWindow::hide(GuestAddress place) {
    const std::lock_guard lock{mutex_};
    finish_leaving();
    const auto found = taken_.find(place.value());
    if (found == taken_.end() || found->second.is_leaving) return {};
    bus_.remove(place.value());
    found->second.is_leaving = true;
    GM_TRY(remove_data(place.value(), found->second));
    taken_.erase(found);
    return {};
}

Result<void> RegionWindow::withdraw(GuestAddress place) {
    const std::lock_guard lock{mutex_};
    finish_leaving();
    const auto found = taken_.find(place.value());
    return found == taken_.end() ? Result<void>{} : remove_data(place.value(), found->second);
}

}  // namespace guestmem::vmm

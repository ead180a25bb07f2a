// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/bus.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

namespace guestmem {
namespace {

std::uint64_t last_of(const BusWindow& window) { return window.first + (window.count - 1); }

std::string described(const BusWindow& window) {
    return fmt::format("{} at {:#x} to {:#x}", window.name, window.first, last_of(window));
}

}  // namespace

Result<void> Bus::check_free(const BusWindow& window, const BusWindow* but) const {
    if (window.count == 0) return Error{Errc::invalid_argument, window.name + ": a window of nothing"};
    if (window.first > last_ || window.count - 1 > last_ - window.first) {
        return Error{
            Errc::invalid_argument,
            fmt::format("{}: {:#x} and {:#x} behind it do not fit into the {} bus, which ends at {:#x}",
                        window.name, window.first, window.count - 1, name_, last_)};
    }
    for (const BusWindow& other : windows_) {
        if (&other == but || other.first > last_of(window) || last_of(other) < window.first) continue;
        return Error{Errc::already_exists,
                     fmt::format("{} on the {} bus overlaps {}", described(window), name_, described(other))};
    }
    return {};
}

Result<void> Bus::add(BusWindow window) {
    const std::unique_lock lock{mutex_};
    GM_TRY(check_free(window, nullptr));
    const auto place = std::ranges::lower_bound(windows_, window.first, {}, &BusWindow::first);
    windows_.insert(place, std::move(window));
    return {};
}

Result<void> Bus::move(std::uint64_t from, std::uint64_t to) {
    const std::unique_lock lock{mutex_};
    const auto found = std::ranges::find(windows_, from, &BusWindow::first);
    if (found == windows_.end()) {
        return Error{Errc::not_found, fmt::format("no window begins at {:#x} of the {} bus", from, name_)};
    }
    BusWindow moved = *found;
    moved.first = to;
    GM_TRY(check_free(moved, &*found));
    windows_.erase(found);
    const auto place = std::ranges::lower_bound(windows_, to, {}, &BusWindow::first);
    windows_.insert(place, std::move(moved));
    return {};
}

bool Bus::remove(std::uint64_t first) {
    const std::unique_lock lock{mutex_};
    return std::erase_if(windows_, [first](const BusWindow& window) { return window.first == first; }) != 0;
}

Bus::Found Bus::find(std::uint64_t address, std::size_t size_bytes) const {
    const std::shared_lock lock{mutex_};
    auto place = std::ranges::upper_bound(windows_, address, {}, &BusWindow::first);
    if (place == windows_.begin()) return {};
    --place;
    const std::uint64_t offset = address - place->first;
    if (offset >= place->count || size_bytes > place->count - offset) return {};
    return {.device = place->device, .offset = offset};
}

bool Bus::read(std::uint64_t address, std::span<std::byte> data) const {
    std::ranges::fill(data, std::byte{0xff});
    const Found found = find(address, data.size());
    if (found.device == nullptr) return false;
    found.device->read(found.offset, data);
    return true;
}

bool Bus::write(std::uint64_t address, std::span<const std::byte> data) const {
    const Found found = find(address, data.size());
    if (found.device == nullptr) return false;
    found.device->write(found.offset, data);
    return true;
}

std::vector<BusWindow> Bus::windows() const {
    const std::shared_lock lock{mutex_};
    return windows_;
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/bar_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>

namespace guestmem::pci {
namespace {

constexpr std::uint64_t last_below_4g = 0xffff'ffff;
constexpr std::uint64_t last_port = 0xffff;

/// Windows in ascending order; overlapping ones may be among them.
class Room {
public:
    explicit Room(std::span<const AddressWindow> taken) : taken_(taken.begin(), taken.end()) { sort(); }

    /// The first place inside the window, taken at once.
    std::optional<std::uint64_t> take(const Bar& bar, const AddressWindow& window) {
        std::uint64_t from = window.first;
        while (true) {
            const std::uint64_t room = bar.size_bytes - 1;
            if (from > std::numeric_limits<std::uint64_t>::max() - room) return std::nullopt;
            const std::uint64_t address = (from + room) & ~room;
            if (address > window.last || room > window.last - address) return std::nullopt;
            const AddressWindow* in_the_way = find(address, address + room);
            if (in_the_way == nullptr && is_decodable(bar, address)) {
                taken_.push_back({address, address + room});
                sort();
                return address;
            }
            const std::uint64_t last = in_the_way != nullptr ? in_the_way->last : address + room;
            if (last == std::numeric_limits<std::uint64_t>::max()) return std::nullopt;
            from = last + 1;
        }
    }

private:
    void sort() { std::ranges::sort(taken_, {}, &AddressWindow::first); }
    [[nodiscard]] const AddressWindow* find(std::uint64_t first, std::uint64_t last) const {
        const auto found = std::ranges::find_if(
            taken_, [&](const AddressWindow& one) { return one.first <= last && first <= one.last; });
        return found == taken_.end() ? nullptr : &*found;
    }
    std::vector<AddressWindow> taken_;
};

/// The windows that a BAR may be in, the best one first.
std::vector<AddressWindow> choices_of(const Bar& bar, const AddressWindows& windows) {
    std::vector<AddressWindow> choices;
    if (bar.kind == BarKind::memory64 && windows.memory64) choices.push_back(*windows.memory64);
    if (bar.kind != BarKind::io && windows.memory32) choices.push_back(*windows.memory32);
    if (bar.kind == BarKind::io && windows.ports) choices.push_back(*windows.ports);
    return choices;
}

Error no_place(const BarRequest& request, const std::vector<AddressWindow>& choices) {
    const char* what = request.bar.kind == BarKind::io ? "ports" : "bytes";
    std::string where;
    for (const AddressWindow& one : choices)
        where += fmt::format("{}{:#x} to {:#x}", where.empty() ? "" : " or ", one.first, one.last);
    if (where.empty()) {
        return Error{Errc::exhausted, fmt::format("{} of {} {}: the machine has no window for such a BAR",
                                                  request.name, request.bar.size_bytes, what)};
    }
    return Error{Errc::exhausted,
                 fmt::format("{} of {} {} has no aligned place left in {}: give the window more room, or the "
                             "device less",
                             request.name, request.bar.size_bytes, what, where)};
}

Result<void> check(const char* name, const std::optional<AddressWindow>& window, std::uint64_t last) {
    if (!window || (window->first <= window->last && window->last <= last)) return {};
    return Error{Errc::invalid_argument,
                 fmt::format("the window for {}, {:#x} to {:#x}, is not inside 0 to {:#x}", name,
                             window->first, window->last, last)};
}

}  // namespace

Result<std::vector<std::uint64_t>> plan_bars(std::span<const BarRequest> requests,
                                             const AddressWindows& windows,
                                             std::span<const AddressWindow> taken_memory,
                                             std::span<const AddressWindow> taken_ports) {
    GM_TRY(check("32-bit BARs", windows.memory32, last_below_4g));
    GM_TRY(check("64-bit BARs", windows.memory64, std::numeric_limits<std::uint64_t>::max()));
    GM_TRY(check("ports", windows.ports, last_port));
    Room memory{taken_memory};
    Room ports{taken_ports};
    std::vector<std::size_t> order(requests.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
        const std::uint64_t left = requests[a].bar.size_bytes;
        const std::uint64_t right = requests[b].bar.size_bytes;
        return left != right ? left > right : a < b;  // equal ones in the order of their devices
    });

    std::vector<std::uint64_t> addresses(requests.size());
    for (const std::size_t i : order) {
        const Bar& bar = requests[i].bar;
        const std::vector<AddressWindow> choices = choices_of(bar, windows);
        std::optional<std::uint64_t> address;
        for (const AddressWindow& window : choices) {
            address = (bar.kind == BarKind::io ? ports : memory).take(bar, window);
            if (address) break;
        }
        if (!address) return no_place(requests[i], choices);
        addresses[i] = *address;
    }
    return addresses;
}

std::vector<AddressWindow> taken_on(const Bus& bus) {
    std::vector<AddressWindow> taken;
    const std::vector<BusWindow> windows = bus.windows();
    for (const BusWindow& one : windows) taken.push_back({one.first, one.first + (one.count - 1)});
    return taken;
}

}  // namespace guestmem::pci

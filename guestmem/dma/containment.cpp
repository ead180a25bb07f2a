// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/containment.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace guestmem::dma {

ContainmentSet::ContainmentSet(std::size_t count_devices)
    : parents_(count_devices), sizes_(count_devices, 1) {
    std::iota(parents_.begin(), parents_.end(), 0U);
}

std::uint32_t ContainmentSet::root(std::size_t device) const {
    auto at = static_cast<std::uint32_t>(device);
    while (parents_[at] != at) {
        parents_[at] = parents_[parents_[at]];
        at = parents_[at];
    }
    return at;
}

bool ContainmentSet::is_joined(std::size_t one, std::size_t other) const { return root(one) == root(other); }

bool ContainmentSet::join(JoinReason reason, std::size_t one, std::size_t other, std::string text) {
    std::uint32_t large = root(one);
    std::uint32_t small = root(other);
    if (large == small) {
        return false;
    }
    if (sizes_[large] < sizes_[small]) {
        std::swap(large, small);
    }
    parents_[small] = large;
    sizes_[large] += sizes_[small];
    joins_.push_back({reason, one, other, std::move(text)});
    return true;
}

std::vector<Containment> ContainmentSet::take(std::vector<Device>& devices) {
    constexpr std::uint32_t unseen = 0xffffffff;
    std::vector<Containment> containments;
    std::vector<std::uint32_t> number_of_root(parents_.size(), unseen);
    for (std::size_t i = 0; i < parents_.size(); ++i) {
        std::uint32_t& number = number_of_root[root(i)];
        if (number == unseen) {
            number = static_cast<std::uint32_t>(containments.size());
            containments.emplace_back();
        }
        Containment& containment = containments[number];
        containment.devices.push_back(i);
        devices[i].containment = number;
        if (devices[i].kernel_group) {
            containment.kernel_groups.push_back(*devices[i].kernel_group);
        }
    }
    for (Containment& containment : containments) {
        std::ranges::sort(containment.kernel_groups);
        const auto again = std::ranges::unique(containment.kernel_groups);
        containment.kernel_groups.erase(again.begin(), again.end());
    }
    for (Join& join : joins_) {
        containments[devices[join.one].containment].joins.push_back(std::move(join));
    }
    joins_.clear();
    return containments;
}

}  // namespace guestmem::dma

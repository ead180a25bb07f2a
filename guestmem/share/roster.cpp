// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/roster.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "guestmem/share/ivshmem/wire.hpp"

namespace guestmem::share {

Roster::Roster(const ShareConfig& config, std::span<const std::uint32_t> owned)
    : policy_(config.ids), slots_(config.slots), owned_(owned.begin(), owned.end()) {
    for (std::uint32_t slot = 0; slot < slots_; ++slot)
        (owned_.contains(slot) ? free_owned_ : free_open_).insert(slot);
}

Result<std::uint32_t> Roster::take_classic() {
    if (held_.size() == slots_)
        return Error{Errc::exhausted, ENOSPC, fmt::format("all {} places are taken", slots_)};
    if (next_classic_ > ivshmem_max_peer_id)
        return Error{
            Errc::exhausted, EUSERS,
            fmt::format("all {} classic ids were given out once; restart the service", next_classic_)};
    held_.insert(next_classic_);
    return next_classic_++;
}

Result<std::uint32_t> Roster::take(Wish wish, std::span<const std::uint32_t> own,
                                   const std::function<bool(std::uint32_t)>& is_preferred) {
    if (policy_ == IdPolicy::classic) return take_classic();
    if (wish == Wish::own) {
        for (const std::uint32_t slot : own) {
            if (free_owned_.erase(slot) == 0 && free_open_.erase(slot) == 0) continue;
            held_.insert(slot);
            return slot;
        }
        return Error{Errc::busy, EBUSY, fmt::format("slot {} is taken", fmt::join(own, ", "))};
    }
    if (free_open_.empty())
        return Error{Errc::exhausted, ENOSPC,
                     owned_.empty()
                         ? fmt::format("all {} slots are taken", slots_)
                         : fmt::format("no slot is free: {} of {} belong to VMs", owned_.size(), slots_)};
    std::vector<std::uint32_t> good;
    if (is_preferred) std::ranges::copy_if(free_open_, std::back_inserter(good), is_preferred);
    std::uint32_t slot = wish == Wish::lowest ? *free_open_.begin() : *free_open_.rbegin();
    if (!good.empty()) slot = wish == Wish::lowest ? good.front() : good.back();
    free_open_.erase(slot);
    held_.insert(slot);
    return slot;
}

bool Roster::hold(std::uint32_t id) {
    if (policy_ == IdPolicy::classic) return id < next_classic_ && held_.insert(id).second;
    if (free_owned_.erase(id) == 0 && free_open_.erase(id) == 0) return false;
    held_.insert(id);
    return true;
}

void Roster::set_owned(std::span<const std::uint32_t> owned) {
    owned_ = {owned.begin(), owned.end()};
    if (policy_ == IdPolicy::classic) return;
    free_open_.clear();
    free_owned_.clear();
    for (std::uint32_t slot = 0; slot < slots_; ++slot)
        if (!held_.contains(slot)) (owned_.contains(slot) ? free_owned_ : free_open_).insert(slot);
}

void Roster::release(std::uint32_t id) {
    if (held_.erase(id) == 0 || policy_ == IdPolicy::classic) return;
    (owned_.contains(id) ? free_owned_ : free_open_).insert(id);
}

}  // namespace guestmem::share

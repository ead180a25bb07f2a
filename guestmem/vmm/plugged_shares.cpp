// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/plugged_shares.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/share/config.hpp"

namespace guestmem::vmm {
namespace {

std::string text_of(const GuestRange& range) {
    return fmt::format("{:#x} to {:#x}", range.base().value(), range.last().value());
}

}  // namespace

std::vector<GuestRange> PluggedShares::taken() const {
    std::vector<GuestRange> all;
    if (options_.busy) all = options_.busy();
    const auto map = memory_.map();
    for (const auto& region : map->regions()) all.push_back(region->range());
    return all;
}

Result<GuestRange> PluggedShares::choose(std::uint64_t size_bytes) const {
    const Error full{
        Errc::exhausted,
        fmt::format("no room for {} bytes among the addresses for shares; choose one", size_bytes)};
    if (!options_.window || size_bytes > options_.window->size_bytes()) return full;
    const std::uint64_t lowest = options_.window->base().value();
    const auto busy = taken();
    std::uint64_t base = (lowest + (options_.window->size_bytes() - size_bytes)) / alignment * alignment;
    while (base >= lowest) {
        const auto range = GuestRange::create(GuestAddress{base}, size_bytes);
        if (!range) return full;
        const auto other =
            std::ranges::find_if(busy, [&](const GuestRange& one) { return one.overlaps(*range); });
        if (other == busy.end()) return *range;
        const std::uint64_t room_below = other->base().value();
        if (room_below < size_bytes) return full;
        base = (room_below - size_bytes) / alignment * alignment;
    }
    return full;
}

Result<GuestRange> PluggedShares::place(std::uint64_t size_bytes, std::optional<std::uint64_t> wanted) const {
    if (!wanted) return choose(size_bytes);
    const auto range = GuestRange::create(GuestAddress{*wanted}, size_bytes);
    if (!range || *wanted % page_size_bytes != 0) {
        return Error{
            Errc::invalid_argument,
            fmt::format("address {:#x} for {} bytes: a multiple of {} is meant that leaves room below 2^64",
                        *wanted, size_bytes, page_size_bytes)};
    }
    for (const GuestRange& kept : options_.kept) {
        if (!kept.overlaps(*range)) continue;
        return Error{Errc::invalid_argument, fmt::format("{} touches {}, which the machine keeps for devices",
                                                         text_of(*range), text_of(kept))};
    }
    for (const GuestRange& busy : taken()) {
        if (!busy.overlaps(*range)) continue;
        return Error{Errc::already_exists,
                     fmt::format("{} touches {}, which is taken", text_of(*range), text_of(busy))};
    }
    return *range;
}

Result<PluggedShares::Plugged> PluggedShares::attach(const std::string& share,
                                                     std::optional<std::uint64_t> wanted) {
    if (const auto problem = share::find_name_problem(share))
        return Error{Errc::invalid_argument, fmt::format("{}; {}", problem->what, problem->advice)};
    if (std::ranges::any_of(entries_, [&](const Entry& entry) { return entry.plugged.share == share; }))
        return Error{Errc::already_exists, fmt::format("share '{}' is plugged already", share)};
    if (entries_.size() >= max_shares)
        return Error{Errc::exhausted, fmt::format("{} shares are plugged; that is the limit", max_shares)};
    if (options_.control.empty())
        return Error{
            Errc::unavailable,
            "the machine has no share service: start that of the host before the machine, or name its "
            "socket with --share-control"};
    share::SessionOptions session_options{.control = options_.control, .share = share};
    session_options.timeout_ms = attach_timeout_ms;
    session_options.may_reattach = false;
    auto session = GM_TRY(share::Session::attach(session_options));
    auto mapping = std::make_shared<Mapping>(GM_TRY(session.map()));
    const bool is_read_only = session.facts().is_read_only;
    const std::span<std::byte> bytes = mapping->bytes();
    const GuestRange range = GM_TRY_CONTEXT(place(bytes.size(), wanted), fmt::format("share '{}'", share));
    auto memory = GM_TRY(HostMemory::borrow(
        bytes, is_read_only ? MapAccess::read_only : MapAccess::read_write, std::move(mapping)));
    auto region = GM_TRY(Region::create({.name = share,
                                         .base = range.base(),
                                         .kind = is_read_only ? RegionKind::read_only : RegionKind::ram,
                                         .memory = std::move(memory)}));
    GM_TRY_CONTEXT(memory_.insert(std::move(region)), fmt::format("share '{}'", share));
    const Plugged plugged{
        .share = share, .range = range, .slot = session.facts().slot, .is_read_only = is_read_only};
    entries_.push_back({plugged, std::move(session)});
    return plugged;
}

Result<void> PluggedShares::detach(const std::string& share) {
    const auto found =
        std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.plugged.share == share; });
    if (found == entries_.end())
        return Error{Errc::not_found, "no share of that name was plugged by an operator"};
    GM_TRY_CONTEXT(memory_.remove(found->plugged.range), fmt::format("share '{}'", share));
    entries_.erase(found);
    return {};
}

std::vector<PluggedShares::Plugged> PluggedShares::list() const {
    std::vector<Plugged> all;
    for (const Entry& entry : entries_) all.push_back(entry.plugged);
    return all;
}

}  // namespace guestmem::vmm

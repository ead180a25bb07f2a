// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/region.hpp"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <utility>

namespace guestmem {

std::string_view to_string(RegionKind kind) {
    switch (kind) {
        case RegionKind::ram: return "ram";
        case RegionKind::read_only: return "read-only";
        case RegionKind::rom: return "rom";
        case RegionKind::device: return "device";
    }
    return "unknown";
}

namespace {

Error region_error(const RegionOptions& options, Errc code, std::string why) {
    return Error{
        code, fmt::format("region '{}' at guest address {:#x}: {}", options.name, options.base.value(), why)};
}

/// Fills in the size; what does not fit is an error.
Result<void> check_memory(RegionOptions& options) {
    if (options.kind == RegionKind::device) {
        if (options.memory)
            return region_error(options, Errc::invalid_argument, "a device region has no memory; give none");
        return {};
    }
    if (!options.memory)
        return region_error(options, Errc::invalid_argument,
                            fmt::format("a {} region needs memory", to_string(options.kind)));
    const std::uint64_t memory_bytes = options.memory->bytes().size();
    if (options.memory_offset_bytes >= memory_bytes)
        return region_error(options, Errc::out_of_range,
                            fmt::format("its offset {} is past the end of its memory of {} bytes",
                                        options.memory_offset_bytes, memory_bytes));
    const std::uint64_t room_bytes = memory_bytes - options.memory_offset_bytes;
    if (options.size_bytes == 0) options.size_bytes = room_bytes;
    if (options.size_bytes > room_bytes)
        return region_error(options, Errc::out_of_range,
                            fmt::format("{} bytes are asked for, and its memory has {} from offset {} on",
                                        options.size_bytes, room_bytes, options.memory_offset_bytes));
    if (options.kind == RegionKind::ram && options.memory->access() == MapAccess::read_only)
        return region_error(options, Errc::permission_denied,
                            "its memory is mapped read-only; make it a read-only or rom region");
    return {};
}

}  // namespace

Result<std::shared_ptr<const Region>> Region::create(RegionOptions options) {
    GM_TRY(check_memory(options));
    if (options.size_bytes == 0)
        return region_error(options, Errc::invalid_argument, "it is empty; a region has at least one byte");
    const auto range = GuestRange::create(options.base, options.size_bytes);
    if (!range)
        return region_error(options, Errc::out_of_range,
                            fmt::format("its {} bytes reach past 2^64", options.size_bytes));
    return std::shared_ptr<const Region>{
        std::make_shared<Region>(Token{}, std::move(options), *range, nullptr)};
}

Result<std::shared_ptr<const Region>> Region::placed_at(GuestAddress base) const {
    RegionOptions options = options_;
    options.base = base;
    const auto range = GuestRange::create(base, options.size_bytes);
    if (!range)
        return region_error(options, Errc::out_of_range,
                            fmt::format("its {} bytes reach past 2^64", options.size_bytes));
    auto origin = origin_ ? origin_ : shared_from_this();
    return std::shared_ptr<const Region>{
        std::make_shared<Region>(Token{}, std::move(options), *range, std::move(origin))};
}

Region::Region(Token /*token*/, RegionOptions&& options, GuestRange range,
               std::shared_ptr<const Region> origin)
    : options_(std::move(options)),
      range_(range),
      origin_(std::move(origin)),
      own_tracker_(range.size_bytes()),
      tracker_(origin_ ? origin_->tracker_ : &own_tracker_) {}

struct Region::Holders {
    std::mutex mutex;
    std::map<std::uint64_t, std::string> names;
    std::uint64_t next_ticket = 0;
};

Region::~Region() { delete holders_.load(std::memory_order_relaxed); }

std::vector<std::string> Region::holders() const {
    std::vector<std::string> names;
    Holders* const holders = holders_.load(std::memory_order_acquire);
    if (holders == nullptr) return names;
    const std::scoped_lock lock{holders->mutex};
    for (const auto& [ticket, name] : holders->names) names.push_back(name);
    return names;
}

std::uint64_t Region::add_holder(std::string why) const {
    Holders* holders = holders_.load(std::memory_order_acquire);
    if (holders == nullptr) {
        auto made = std::make_unique<Holders>();
        // Another thread may have been quicker; then `holders` is what it made.
        if (holders_.compare_exchange_strong(holders, made.get(), std::memory_order_acq_rel))
            holders = made.release();
    }
    const std::scoped_lock lock{holders->mutex};
    holders->names.emplace(holders->next_ticket, std::move(why));
    return holders->next_ticket++;
}

void Region::remove_holder(std::uint64_t ticket) const {
    Holders* const holders = holders_.load(std::memory_order_acquire);
    const std::scoped_lock lock{holders->mutex};
    holders->names.erase(ticket);
}

}  // namespace guestmem

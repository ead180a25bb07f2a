// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/share.hpp"

#include <fmt/format.h>

#include "guestmem/sys/memory_file.hpp"

namespace guestmem::share {
namespace {

std::string name_of(const ShareConfig& config) { return fmt::format("share '{}'", config.name); }

BackingOptions backing_options(const ShareConfig& config) {
    return {.kind = config.backing,
            .name = config.name,
            .path = config.path,
            .size_bytes = extent_of(config.size_bytes),
            .huge_page_bytes = config.huge_page_bytes};
}

bool has_senders(const ShareConfig& config) {
    return config.ids == IdPolicy::stable && config.slots <= max_senders;
}

}  // namespace

Result<std::shared_ptr<const Doorbells>> create_doorbells(std::uint32_t id, std::uint32_t vectors) {
    auto bells = std::make_shared<Doorbells>();
    bells->id = id;
    bells->vectors.reserve(vectors);
    for (std::uint32_t vector = 0; vector < vectors; ++vector)
        bells->vectors.push_back(
            GM_TRY_CONTEXT(EventFd::create(), fmt::format("doorbell of id {} vector {}", id, vector)));
    return std::shared_ptr<const Doorbells>{std::move(bells)};
}

Result<std::shared_ptr<const Doorbells>> adopt_doorbells(std::uint32_t id, std::vector<Fd> vectors) {
    auto bells = std::make_shared<Doorbells>();
    bells->id = id;
    bells->vectors.reserve(vectors.size());
    for (std::size_t vector = 0; vector < vectors.size(); ++vector) {
        if (!vectors[vector].is_open())
            return Error{Errc::corrupt, fmt::format("doorbell of id {} vector {} is missing", id, vector)};
        bells->vectors.push_back(EventFd::believe(std::move(vectors[vector])));
    }
    return std::shared_ptr<const Doorbells>{std::move(bells)};
}

Result<void> Share::make_read_only() {
    read_only_ = GM_TRY(backing_.read_only());
    read_only_presence_ = GM_TRY(presence_.read_only());
    for (SenderSlot& sender : senders_) sender.read_only = GM_TRY(reopen_read_only(sender.writable));
    return {};
}

Result<void> Share::make_parts() {
    if (config_.ids == IdPolicy::stable)
        for (std::uint32_t slot = 0; slot < config_.slots; ++slot)
            slots_.push_back(GM_TRY(create_doorbells(slot, config_.vectors)));
    for (std::uint32_t slot = 0; has_senders(config_) && slot < config_.slots; ++slot) {
        Fd page = GM_TRY(create_sender_page());
        senders_.push_back({std::move(page), Fd{}});
    }
    return make_read_only();
}

Result<Share> Share::create(const ShareConfig& config, std::uint32_t number) {
    const std::string context = name_of(config);
    // Before the memory, which may have a name.
    PresenceWriter presence = GM_TRY_CONTEXT(PresenceWriter::create(config.slots, config.vectors), context);
    Backing backing = GM_TRY_CONTEXT(Backing::create(backing_options(config)), context);
    const bool was_there = backing.has_kept_bytes();
    Share share{config, number, std::move(backing), std::move(presence)};
    auto made = share.make_parts();
    if (made) return share;
    if (!was_there) share.backing_.remove_name();
    return std::move(made).error().with_context(context);
}

Result<Share> Share::adopt(const ShareConfig& config, std::uint32_t number, Parts parts) {
    const std::string context = name_of(config);
    Backing backing =
        GM_TRY_CONTEXT(Backing::adopt(std::move(parts.memory), backing_options(config)), context);
    PresenceWriter presence = GM_TRY_CONTEXT(
        PresenceWriter::adopt(std::move(parts.presence), config.slots, config.vectors), context);
    Share share{config, number, std::move(backing), std::move(presence)};
    if (config.ids == IdPolicy::stable) {
        if (parts.doorbells.size() != share.count_doorbells())
            return Error{Errc::corrupt, fmt::format("{}: {} doorbells came back, and it has {}", context,
                                                    parts.doorbells.size(), share.count_doorbells())};
        auto next = parts.doorbells.begin();
        for (std::uint32_t slot = 0; slot < config.slots; ++slot) {
            std::vector<Fd> vectors{std::make_move_iterator(next),
                                    std::make_move_iterator(next + config.vectors)};
            next += config.vectors;
            share.slots_.push_back(GM_TRY_CONTEXT(adopt_doorbells(slot, std::move(vectors)), context));
        }
    }
    if (has_senders(config)) {
        if (parts.senders.size() != config.slots)
            return Error{Errc::corrupt, fmt::format("{}: sender pages are missing", context)};
        for (Fd& page : parts.senders) {
            if (!page.is_open())
                return Error{Errc::corrupt, fmt::format("{}: a sender page is missing", context)};
            share.senders_.push_back({std::move(page), Fd{}});
        }
    }
    GM_TRY_CONTEXT(share.make_read_only(), context);
    return share;
}

std::size_t count_kept_parts(const ShareConfig& config) {
    const std::size_t of_all = 2;  // memory, presence
    if (config.ids == IdPolicy::classic) return of_all;
    return of_all + std::size_t{config.slots} * config.vectors + (has_senders(config) ? config.slots : 0);
}

std::vector<KeepRequest> Share::kept_parts() const {
    std::vector<KeepRequest> parts;
    parts.reserve(2 + senders_.size() + count_doorbells());
    parts.push_back({{KeptKind::memory, number_, 0}, memory().view()});
    parts.push_back({{KeptKind::presence, number_, 0}, presence_.pages().view()});
    for (std::uint32_t slot = 0; slot < senders_.size(); ++slot)
        parts.push_back({{KeptKind::sender, number_, slot}, senders_[slot].writable.view()});
    for (const auto& bells : slots_)
        for (std::uint32_t vector = 0; vector < config_.vectors; ++vector)
            parts.push_back({doorbell_key(bells->id, vector), bells->vectors[vector].view()});
    return parts;
}

std::vector<KeptKey> Share::kept_keys() const {
    std::vector<KeptKey> keys;
    for (const KeepRequest& part : kept_parts()) keys.push_back(part.key);
    return keys;
}

}  // namespace guestmem::share

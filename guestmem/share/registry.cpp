// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/registry.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "guestmem/base/sizes.hpp"

namespace guestmem::share {
namespace {

void write_record(ShareRecord& record, const ShareConfig& config, const std::string& maker) {
    record.name.set(config.name);
    record.maker.set(maker);
    record.path.set(config.path);
    record.size_bytes = config.size_bytes;
    record.huge_page_bytes = config.huge_page_bytes;
    record.vectors = config.vectors;
    record.slots = config.slots;
    record.ids = config.ids == IdPolicy::classic ? 1 : 0;
    record.backing = static_cast<std::uint8_t>(config.backing);
    record.is_kept = config.is_kept ? 1 : 0;
    record.is_dynamic = config.is_dynamic ? 1 : 0;
}

/// The first limit that somebody with this usage would be beyond.
std::optional<Excess> find_excess(const Usage& with, const UsageLimits& limits) {
    if (with.shares > limits.shares) return Excess{"shares", with.shares, limits.shares};
    if (with.bytes > limits.bytes) return Excess{"bytes of shares", with.bytes, limits.bytes};
    if (with.vectors > limits.vectors) return Excess{"doorbells", with.vectors, limits.vectors};
    if (with.peers > limits.peers) return Excess{"peers", with.peers, limits.peers};
    return std::nullopt;
}

Error beyond(std::string_view whose, const Excess& excess) {
    return Error{Errc::exhausted, EDQUOT,
                 fmt::format("{}: {} {} would be beyond the limit of {}", whose, excess.would_be, excess.what,
                             excess.limit)};
}

/// Whether two shares would have the same file or shm object.
bool is_same_place(const ShareConfig& a, const ShareConfig& b) {
    return a.backing == b.backing && a.backing != BackingKind::memfd && a.path == b.path;
}

}  // namespace

ShareConfig config_of(const ShareRecord& record) {
    return {.name = record.name.get(),
            .size_bytes = record.size_bytes,
            .vectors = record.vectors,
            .slots = record.slots,
            .ids = record.ids == 1 ? IdPolicy::classic : IdPolicy::stable,
            .huge_page_bytes = record.huge_page_bytes,
            .backing = static_cast<BackingKind>(record.backing),
            .path = record.path.get(),
            .is_kept = record.is_kept != 0,
            .is_dynamic = record.is_dynamic != 0};
}

Result<Share> Registry::make_share(const ShareConfig& config, ShareRecord& record, Pages pages) {
    Share share = GM_TRY(Share::create(config, record.number));
    const bool was_there = share.backing().has_kept_bytes();
    // Bytes of earlier times that nobody wants.
    if (was_there && !config.is_kept) share.backing().begin_clear();
    while (pages == Pages::now && !share.backing().is_complete()) {
        auto done = share.backing().allocate_step();
        if (done) continue;
        if (!was_there) share.backing().remove_name();
        return std::move(done).error();
    }
    return share;
}

Result<Hall*> Registry::make(const ShareConfig& config, const std::string& maker, Pages pages,
                             std::span<const std::uint32_t> owned_slots) {
    // Before its memory is made, which may have a name.
    if (auto has_room = host_.legacy.check_room(count_kept_parts(config)); !has_room)
        return Error{has_room.error().code(), has_room.error().os_error(),
                     fmt::format("share '{}': {}", config.name, has_room.error().message())};
    ShareRecord* const record = host_.legacy.journal().add_share();
    if (record == nullptr)
        return Error{Errc::exhausted, ENOSPC,
                     fmt::format("share '{}': the service has {} shares, which is all it can have",
                                 config.name, max_journal_shares)};
    write_record(*record, config, maker);
    record->stage.store(ShareStage::making);
    auto share = make_share(config, *record, pages);
    if (!share) {
        Journal::remove(*record);
        return std::move(share).error();
    }
    host_.legacy.keep(share->kept_parts(), host_.loop.now_ms());
    record->stage.store(share->backing().is_complete() ? ShareStage::ready : ShareStage::blank);
    return &halls_.emplace_back(host_, std::move(*share), *record, owned_slots);
}

Result<Hall*> Registry::adopt(ShareRecord& record, Share::Parts parts,
                              std::span<const std::uint32_t> owned_slots) {
    Share share = GM_TRY(Share::adopt(config_of(record), record.number, std::move(parts)));
    // Nobody clears what is kept: such a one was only getting its pages.
    const bool is_blank = record.stage.load() == ShareStage::blank;
    if (is_blank && !share.config().is_kept) share.backing().begin_clear();
    Hall& hall = halls_.emplace_back(host_, std::move(share), record, owned_slots);
    hall.mark_inherited();
    return &hall;
}

Hall* Registry::find(std::string_view name) {
    sweep();
    const auto found = std::ranges::find_if(
        halls_, [&](const Hall& hall) { return !hall.is_retired() && hall.share().config().name == name; });
    return found == halls_.end() ? nullptr : &*found;
}

Hall* Registry::find_by_path(const ShareConfig& config) {
    const auto found = std::ranges::find_if(
        halls_, [&](const Hall& hall) { return is_same_place(hall.share().config(), config); });
    return found == halls_.end() ? nullptr : &*found;
}

void Registry::remove(Hall& hall) {
    const std::vector<KeptKey> keys = hall.share().kept_keys();
    Journal::remove(hall.record());
    const bool has_heir = std::ranges::any_of(halls_, [&](const Hall& other) {
        return &other != &hall && is_same_place(other.share().config(), hall.share().config());
    });
    if (!has_heir) hall.share().backing().remove_name();
    halls_.remove_if([&](const Hall& candidate) { return &candidate == &hall; });
    host_.legacy.forget(keys, host_.loop.now_ms());
}

void Registry::sweep() {
    for (;;) {
        const auto over = std::ranges::find_if(halls_, &Hall::is_over);
        if (over == halls_.end()) return;
        host_.log.write(LogLevel::info,
                        fmt::format("share '{}': gone with its last peer", over->share().config().name),
                        host_.loop.now_ms());
        remove(*over);
    }
}

bool Registry::work() {
    sweep();
    bool has_more = false;
    for (Hall& hall : halls_) has_more = hall.work() || has_more;
    return has_more;
}

Usage Registry::usage_of(std::string_view vm) const {
    Usage usage;
    for (const Hall& hall : halls_) {
        const bool is_made_by =
            vm.empty() ? hall.share().config().is_dynamic : hall.record().maker.get() == vm;
        if (is_made_by) {
            ++usage.shares;
            usage.bytes += hall.share().extent_bytes();
            usage.vectors += hall.share().count_doorbells();
            for (const Peer& peer : hall.peers())
                usage.vectors += peer.entrant.pairs.receivers().count() * hall.share().config().vectors;
        }
        for (const Peer& peer : hall.peers())
            if (!peer.is_gone && (vm.empty() || peer.entrant.vm == vm)) ++usage.peers;
        for (const Holder& holder : hall.holders())
            if (vm.empty() || holder.entrant.vm == vm) ++usage.peers;
    }
    return usage;
}

Error Registry::beyond_totals(std::string_view vm, const Excess& excess) const {
    Error error = beyond("all VMs together", excess);
    if (vm.empty()) return error;
    host_.log.write(LogLevel::warning, fmt::format("vm '{}': {}", vm, error.message()), host_.loop.now_ms());
    return Error{Errc::exhausted, EDQUOT,
                 fmt::format("all VMs together are at their limit of {}", excess.what)};
}

Result<void> Registry::check_peer(std::string_view vm, const UsageLimits* limits,
                                  const UsageLimits& totals) const {
    Usage in_all{.peers = 1};
    for (const Hall& hall : halls_) in_all.peers += hall.peers().size() + hall.holders().size();
    if (const auto excess = find_excess(in_all, totals)) return beyond_totals(vm, *excess);
    if (limits == nullptr || limits->peers >= UsageLimits{}.peers) return {};
    const Usage own{.peers = usage_of(vm).peers + 1};
    if (const auto excess = find_excess(own, *limits)) return beyond(fmt::format("vm '{}'", vm), *excess);
    return {};
}

Result<void> Registry::check_share(const ShareConfig& config, std::string_view vm, const UsageLimits* limits,
                                   const UsageLimits& totals) const {
    const auto with = [&](Usage usage) {
        ++usage.shares;
        usage.bytes += extent_of(config.size_bytes);
        usage.vectors += std::uint64_t{config.slots} * config.vectors;
        // Who makes one comes in by another question.
        usage.peers = 0;
        return usage;
    };
    if (const auto excess = find_excess(with(usage_of({})), totals)) return beyond_totals(vm, *excess);
    if (limits == nullptr) return {};
    if (const auto excess = find_excess(with(usage_of(vm)), *limits))
        return beyond(fmt::format("vm '{}'", vm), *excess);
    return {};
}

std::uint64_t Registry::spare_vectors(std::string_view maker, const UsageLimits* limits,
                                      const UsageLimits& totals) const {
    const auto left = [](std::uint64_t limit, std::uint64_t used) { return limit > used ? limit - used : 0; };
    const std::uint64_t in_all = left(totals.vectors, usage_of({}).vectors);
    if (maker.empty() || limits == nullptr) return in_all;
    return std::min(in_all, left(limits->vectors, usage_of(maker).vectors));
}

void Registry::refill() {
    const std::uint64_t now = host_.loop.now_ms();
    for (const Hall& hall : halls_) {
        host_.legacy.keep(hall.share().kept_parts(), now);
        std::vector<KeepRequest> requests;
        for (const Holder& holder : hall.holders())
            if (holder.entrant.number != 0)
                requests.push_back(
                    {{KeptKind::connection, 0, holder.entrant.number}, holder.entrant.stream.view()});
        for (const Peer& peer : hall.peers()) {
            if (peer.is_gone || peer.entrant.number == 0) continue;
            const std::uint32_t number = peer.entrant.number;
            requests.push_back({{KeptKind::connection, 0, number}, peer.entrant.stream.view()});
            if (peer.entrant.bell)
                requests.push_back({{KeptKind::bell, 0, number}, peer.entrant.bell->view()});
            const auto pairs = pair_bell_parts(hall.share(), peer.id, peer.entrant.pairs);
            requests.insert(requests.end(), pairs.begin(), pairs.end());
            if (hall.share().config().ids == IdPolicy::stable) continue;
            for (std::uint32_t vector = 0; vector < peer.bells->vectors.size(); ++vector)
                requests.push_back(
                    {hall.share().doorbell_key(peer.id, vector), peer.bells->vectors[vector].view()});
        }
        host_.legacy.keep(requests, now);
    }
}

void Registry::remove_names() {
    for (Hall& hall : halls_) hall.share().backing().remove_name();
}

}  // namespace guestmem::share

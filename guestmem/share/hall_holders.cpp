// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>

#include "guestmem/share/hall.hpp"
#include "guestmem/share/ivshmem/wire.hpp"

// Of a Hall: who keeps the share alive without a place in it.

namespace guestmem::share {

Result<void> Hall::seat_holder(Entrant& entrant, bool is_told) {
    Holder& holder = holders_.emplace_back();
    auto source = host_.loop.add_io(entrant.stream.view(), IoEvents::readable,
                                    [this, &holder](IoEvents) { serve_holder(holder); });
    if (!source) {
        holders_.pop_back();
        return std::move(source).error();
    }
    holder.source = std::move(*source);
    holder.entrant = std::move(entrant);
    holder.is_told = is_told;
    if (!is_ready()) {
        host_.on_chores_left();
    } else {
        tell_holders(0);
    }
    return {};
}

Result<void> Hall::hold(Entrant& entrant) {
    if (is_retired()) return Error{Errc::unavailable, ESHUTDOWN, "the configuration has this share no more"};
    ConnectionRecord* const record = entrant.record;
    const std::string who = entrant.to_text();
    // Before the stream is taken: the next instance must know what it was promised.
    if (record != nullptr) {
        record->share = share_.number();
        record->id = ivshmem_max_peer_id;
        record->is_tool = holding_tool;
        record->stage.store(ConnectionStage::admitted);
    }
    GM_TRY(seat_holder(entrant, false));
    log(LogLevel::info, fmt::format("{} holds it", who));
    return {};
}

Result<void> Hall::resume_hold(Entrant& entrant) {
    return seat_holder(entrant, entrant.record->is_told.load() != 0);
}

void Hall::serve_holder(Holder& holder) {
    std::array<std::byte, 1> buffer;
    const auto received = holder.entrant.stream.peek(buffer);
    if (received && !*received) return;
    const bool has_spoken = received && (*received)->count_bytes != 0;
    end_holder(holder,
               has_spoken ? "was closed: it sent bytes, and holders only listen" : "holds it no more");
}

void Hall::end_holder(Holder& holder, std::string_view why) {
    Entrant departed = std::move(holder.entrant);
    log(LogLevel::info, fmt::format("{} {}", departed.to_text(), why));
    if (departed.record != nullptr) host_.legacy.journal().remove(*departed.record);
    departed.record = nullptr;
    holders_.remove_if([&](const Holder& candidate) { return &candidate == &holder; });
    host_.on_departed(std::move(departed));
    if (is_unused()) leave_empty();
}

void Hall::tell_holders(int os_error) {
    for (auto next = holders_.begin(); next != holders_.end();) {
        Holder& holder = *next++;
        if (holder.is_told) continue;
        holder.is_told = true;
        // One message in an empty socket; who is gone is seen by its end.
        const IvshmemMessage message = encode_ivshmem(os_error == 0 ? ivshmem_protocol_version : -os_error);
        static_cast<void>(holder.entrant.stream.send(message).has_value());
        if (holder.entrant.record != nullptr) holder.entrant.record->is_told.store(1);
        if (os_error != 0) end_holder(holder, "was refused: there is no memory for the share (ENOMEM)");
    }
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/pair_bells.hpp"

#include <cstddef>
#include <iterator>
#include <utility>

namespace guestmem::share {

bool can_have_pairs(const ShareConfig& config) {
    return config.ids == IdPolicy::stable && config.slots <= max_senders &&
           config.vectors <= max_pair_vectors;
}

std::uint32_t first_pair_slot(const ShareConfig& config) {
    return can_have_pairs(config) && config.slots == max_senders ? config.slots / 2 : config.slots;
}

std::uint64_t most_pair_bells(const ShareConfig& config) {
    // So many senders as there are receivers; and slots that are set aside, for all senders.
    if (!can_have_pairs(config)) return 0;
    return std::uint64_t{config.slots} * config.slots / 2 * config.vectors;
}

Result<PairBells> PairBells::create(const ShareConfig& config, SenderSet receivers) {
    PairBells pairs;
    for (std::uint32_t slot = 0; slot < max_senders; ++slot)
        if (receivers[slot]) pairs.bells_.at(slot) = GM_TRY(create_doorbells(slot, config.vectors));
    return pairs;
}

Result<PairBells> PairBells::adopt(const ShareConfig& config, SenderSet receivers, std::vector<Fd> bells) {
    if (bells.size() != receivers.count() * config.vectors)
        return Error{Errc::corrupt, "doorbells of its own are missing"};
    PairBells pairs;
    auto next = bells.begin();
    for (std::uint32_t slot = 0; slot < max_senders; ++slot) {
        if (!receivers[slot]) continue;
        const auto end = next + static_cast<std::ptrdiff_t>(config.vectors);
        std::vector<Fd> vectors{std::make_move_iterator(next), std::make_move_iterator(end)};
        next = end;
        pairs.bells_.at(slot) = GM_TRY(adopt_doorbells(slot, std::move(vectors)));
    }
    return pairs;
}

SenderSet PairBells::receivers() const {
    SenderSet receivers;
    for (std::uint32_t slot = 0; slot < max_senders; ++slot) receivers[slot] = bells_.at(slot) != nullptr;
    return receivers;
}

std::vector<KeptKey> pair_bell_keys(const ShareConfig& config, std::uint32_t share_number,
                                    std::uint32_t sender, SenderSet receivers) {
    std::vector<KeptKey> keys;
    const std::uint32_t own = config.slots * config.vectors;
    for (std::uint32_t slot = 0; slot < max_senders; ++slot)
        for (std::uint32_t vector = 0; receivers[slot] && vector < config.vectors; ++vector)
            keys.push_back({KeptKind::doorbell, share_number,
                            own + (sender * max_senders + slot) * config.vectors + vector});
    return keys;
}

std::vector<KeepRequest> pair_bell_parts(const Share& share, std::uint32_t sender, const PairBells& bells) {
    std::vector<KeepRequest> parts;
    const SenderSet receivers = bells.receivers();
    const auto keys = pair_bell_keys(share.config(), share.number(), sender, receivers);
    auto key = keys.begin();
    for (std::uint32_t slot = 0; slot < max_senders; ++slot) {
        if (!receivers[slot]) continue;
        const auto towards = bells.find(slot);
        for (const EventFd& bell : towards->vectors) parts.push_back({*key++, bell.view()});
    }
    return parts;
}

}  // namespace guestmem::share

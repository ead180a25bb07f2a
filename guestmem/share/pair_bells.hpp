// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/keeper/keeper.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/share/share.hpp"

/// Doorbells of pairs: by each of them one sender alone rings one receiver, which so knows who rang.
///
/// Concepts: QEMU's device, and everybody who hands doorbells to the kernel, rings without counting in a sender page.
/// It is told a slot's doorbells once, for as long as it is there (told twice, QEMU writes into freed memory). A
/// receiver that is QEMU listens on one eventfd for all senders; one that hears senders apart listens on one for each.
/// So each such sender gets its own doorbells, PairBells, towards the slots in which the other kind of receiver is, or
/// is to come: those from first_pair_slot() on, as long as nobody else owns or holds them. Newcomers are seated
/// accordingly. Where the guess was wrong, the service passes the kicks on.
/// Contract: PairBells belong to the sender's connection: its slot's next holder has others, and no kick is told in the
/// name of somebody else.
/// Limits: shares with stable ids, at most max_senders slots and max_pair_vectors vectors; others have none.
/// Threads: one at a time.

namespace guestmem::share {

inline constexpr std::uint32_t max_pair_vectors = 4;

[[nodiscard]] bool can_have_pairs(const ShareConfig& config);
/// Where receivers that hear senders apart are seated first: the upper half of a share of max_senders slots. The number
/// of slots where none are set aside.
[[nodiscard]] std::uint32_t first_pair_slot(const ShareConfig& config);
/// The most that all connections of a share may have at a time.
[[nodiscard]] std::uint64_t most_pair_bells(const ShareConfig& config);

class PairBells {
public:
    PairBells() = default;
    [[nodiscard]] static Result<PairBells> create(const ShareConfig& config, SenderSet receivers);
    /// From descriptors of a keeper: for each receiver, ascending, all its vectors. An error when one is missing.
    [[nodiscard]] static Result<PairBells> adopt(const ShareConfig& config, SenderSet receivers,
                                                 std::vector<Fd> bells);

    /// nullptr: towards this slot there are none.
    [[nodiscard]] std::shared_ptr<const Doorbells> find(std::uint32_t receiver) const {
        return receiver < max_senders ? bells_.at(receiver) : nullptr;
    }
    [[nodiscard]] SenderSet receivers() const;
    [[nodiscard]] bool is_empty() const { return receivers().none(); }

private:
    std::array<std::shared_ptr<const Doorbells>, max_senders> bells_ = {};
};

/// In the keeper they are doorbells beyond those of the slots.
[[nodiscard]] std::vector<KeptKey> pair_bell_keys(const ShareConfig& config, std::uint32_t share_number,
                                                  std::uint32_t sender, SenderSet receivers);
[[nodiscard]] std::vector<KeepRequest> pair_bell_parts(const Share& share, std::uint32_t sender,
                                                       const PairBells& bells);

}  // namespace guestmem::share

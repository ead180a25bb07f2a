// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_frame.hpp"

/// What who sends pages says of them first: whose they are, a description and a state that are opaque here.
///
/// Concepts: the greeting is a hello frame, then the pieces of description and state. A state may have gigabytes, so
/// it is read when its turn comes, piece by piece.
/// Contract: what read_state says wrong is the caller's error, with its context.
/// Threads: one at a time.
/// Limits: max_description_bytes, max_carried_state_bytes; append_next() appends max_frame_bytes at most.

namespace guestmem {

struct PageOffer {
    ImageId id = {};
    std::string description = {};
    std::uint64_t state_bytes = 0;
    /// Fills the bytes with those of the state from there; has to be there when the state has bytes.
    std::function<Result<void>(std::uint64_t offset_bytes, std::span<std::byte> bytes)> read_state = {};
    /// How pages are compressed, 1 to max_zstd_level; 0: not at all.
    int zstd_level = 0;
};

[[nodiscard]] Result<void> check_offer(const PageOffer& offer, std::uint64_t image_bytes);

/// The greeting, one frame after the other. The offer outlives it.
class GreetingWriter {
public:
    /// `wanted` says what the other side takes.
    GreetingWriter(const PageOffer& offer, std::uint64_t image_bytes, const JoinFrame& wanted);

    [[nodiscard]] bool is_done() const;
    [[nodiscard]] Result<void> append_next(FrameBytes& out);
    /// The level that the other side takes.
    [[nodiscard]] int zstd_level() const { return hello_.has_zstd ? offer_->zstd_level : 0; }

private:
    const PageOffer* offer_;
    HelloFrame hello_;
    bool has_said_hello_ = false;
    std::size_t description_at_ = 0;
    std::uint64_t state_at_ = 0;
};

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

/// Where a random test takes its numbers from: a seed, or the bytes of a fuzzer.
///
/// Contract: the same seed, or the same bytes, give the same numbers. A fuzzer's bytes come to an end: is_over(), and
/// all numbers are 0 from there on. A seed never ends.
/// Threads: one at a time.
/// Example:
///     Choices choices{seed};
///     if (choices.one_in(4)) write(choices.below(4096));

namespace guestmem::testing {

class Choices {
public:
    explicit Choices(std::uint64_t seed) : random_(seed), is_seeded_(true) {}
    explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

    [[nodiscard]] bool is_over() const { return !is_seeded_ && bytes_.empty(); }

    /// 0 to bound - 1; 0 for a bound of 0 or 1. From a fuzzer as many bytes as the bound needs.
    [[nodiscard]] std::uint64_t below(std::uint64_t bound) {
        if (bound <= 1) return 0;
        if (is_seeded_) return random_() % bound;
        std::uint64_t number = 0;
        for (std::uint64_t room = bound - 1; room != 0; room >>= 8) number = number << 8 | next_byte();
        return number % bound;
    }
    [[nodiscard]] bool one_in(std::uint64_t bound) { return below(bound) == 0; }
    [[nodiscard]] std::uint64_t any() {
        if (is_seeded_) return random_();
        std::uint64_t number = 0;
        for (int i = 0; i < 8; ++i) number = number << 8 | next_byte();
        return number;
    }
    void fill(std::span<std::byte> bytes) {
        for (std::byte& byte : bytes) byte = static_cast<std::byte>(below(256));
    }

private:
    std::uint8_t next_byte() {
        if (bytes_.empty()) return 0;
        const std::uint8_t byte = bytes_.front();
        bytes_ = bytes_.subspan(1);
        return byte;
    }

    std::mt19937_64 random_;
    bool is_seeded_ = false;
    std::span<const std::uint8_t> bytes_;
};

}  // namespace guestmem::testing

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/page_sum.hpp"

#define XXH_INLINE_ALL  // NOLINT(readability-identifier-naming): what xxhash.h looks for
#include <xxhash.h>

#include <array>
#include <cstring>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"

namespace guestmem {

namespace {

XXH3_state_t* to_state(void* state) { return static_cast<XXH3_state_t*>(state); }

std::uint64_t sum_of_zeros() {
    static const std::uint64_t sum = [] {
        const std::array<std::byte, page_size_bytes> zeros{};
        return XXH3_64bits(zeros.data(), zeros.size());
    }();
    return sum;
}

}  // namespace

std::uint64_t page_sum(std::span<const std::byte> page) {
    GM_CHECK(page.size() == page_size_bytes);
    return XXH3_64bits(page.data(), page.size()) ^ sum_of_zeros();
}

bool is_zero_page(std::span<const std::byte> page) {
    // The page against itself, one word further: all words are the first one.
    constexpr std::size_t word = sizeof(std::uint64_t);
    constexpr std::array<std::byte, word> zeros{};
    return std::memcmp(page.data(), zeros.data(), word) == 0 &&
           std::memcmp(page.data(), page.data() + word, page.size() - word) == 0;
}

std::uint64_t bytes_sum(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

SumOfSums::SumOfSums() : state_(XXH3_createState()) {
    GM_CHECK(state_ != nullptr);
    XXH3_64bits_reset(to_state(state_));
}

SumOfSums::~SumOfSums() { XXH3_freeState(to_state(state_)); }

void SumOfSums::add(std::uint64_t page_number, std::uint64_t sum) {
    constexpr std::size_t enough_words = 512;
    words_.push_back(swap_unless_little(page_number));
    words_.push_back(swap_unless_little(sum));
    if (words_.size() >= enough_words) flush();
}

void SumOfSums::flush() const {
    XXH3_64bits_update(to_state(state_), words_.data(), words_.size() * sizeof(std::uint64_t));
    words_.clear();
}

std::uint64_t SumOfSums::value() const {
    flush();
    return XXH3_64bits_digest(to_state(state_));
}

}  // namespace guestmem

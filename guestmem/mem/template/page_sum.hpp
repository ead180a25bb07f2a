// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

/// Sums of guest pages: whether a page is what it was when a template was made.
///
/// Concepts: XXH3 (64 bits) over the page, xored with that of a page of zeros: so the sum of a page of zeros is 0, and
/// the sums of a sparse image are sparse, too.
/// Contract: finds what hardware and mistakes do to a page; who may write the template can write sums that fit.
/// Threads: any.
/// Cost: about 0.2 us a page.

namespace guestmem {

[[nodiscard]] std::uint64_t page_sum(std::span<const std::byte> page);
[[nodiscard]] bool is_zero_page(std::span<const std::byte> page);

/// The sum of other bytes: a state, a manifest. Not xored.
[[nodiscard]] std::uint64_t bytes_sum(std::span<const std::byte> bytes);

/// One number for all sums of an image: of the pages that are no zeros, in ascending order.
class SumOfSums {
public:
    SumOfSums();
    SumOfSums(const SumOfSums&) = delete;
    SumOfSums& operator=(const SumOfSums&) = delete;
    ~SumOfSums();

    void add(std::uint64_t page_number, std::uint64_t sum);
    /// Of what was added so far.
    [[nodiscard]] std::uint64_t value() const;

private:
    void flush() const;

    void* state_;
    mutable std::vector<std::uint64_t> words_;  ///< that are not in the state yet
};

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "guestmem/dma/facts.hpp"

/// Complaints with a limit, so that a hostile table cannot fill a report.
///
/// Contract: the first most_complaints are kept; of what comes after only the count is, and it is the last line.
/// Threads: one at a time.

namespace guestmem::dma {

class ComplaintList {
public:
    static constexpr std::size_t most_complaints = 1024;

    /// False when the list is full: the text need not be made then.
    [[nodiscard]] bool has_room() const { return complaints_.size() < most_complaints; }

    void add(Origin origin, std::string text) {
        if (has_room()) {
            complaints_.push_back({std::move(origin), std::move(text)});
        } else {
            ++count_dropped_;
        }
    }

    [[nodiscard]] std::vector<Complaint> take() {
        if (count_dropped_ > 0) {
            complaints_.push_back(
                {Origin{}, "and " + std::to_string(count_dropped_) + " complaints more of such kinds"});
        }
        return std::move(complaints_);
    }

private:
    std::vector<Complaint> complaints_;
    std::size_t count_dropped_ = 0;
};

}  // namespace guestmem::dma

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

/// Firmware tables of machines in the lab, as test data: the files in testing/tables.
///
/// Contract: empty when there is no such file.
/// Threads: any.

namespace guestmem::dma::testing {

inline std::vector<std::byte> table_file(const std::string& name) {
    std::ifstream file{GUESTMEM_SOURCE "/guestmem/dma/discover/testing/tables/" + name, std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const auto* const first = reinterpret_cast<const std::byte*>(text.data());
    return {first, first + text.size()};
}

}  // namespace guestmem::dma::testing

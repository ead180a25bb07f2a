// SPDX-License-Identifier: Apache-2.0
/// Fuzzes working_set.hpp: any bytes as the file of a working set.
///
/// Asserts: what is taken keeps its promises and is the same bytes when it is written again; what is not is an error.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/paging/working_set.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span{data, size});
    const auto set = guestmem::parse_working_set(bytes);
    if (!set) {
        GM_CHECK(set.error().code() == guestmem::Errc::corrupt && !set.error().message().empty());
        return 0;
    }
    for (const std::uint64_t page : set->pages) GM_CHECK(page < set->image_pages);
    const auto again = guestmem::to_bytes(*set);
    GM_CHECK(again.has_value() && std::ranges::equal(*again, bytes));
    return 0;
}

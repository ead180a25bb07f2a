// SPDX-License-Identifier: Apache-2.0
/// Fuzzes process_memory.hpp: any bytes as the text of /proc/PID/smaps, in which others choose the names.
///
/// Asserts: what is taken is in order, does not overlap, does not wrap and has whole KiB; what is not taken is refused
/// as broken, in words that a terminal may see.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/process_memory.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace guestmem;  // NOLINT(google-build-using-namespace): its subject
    const auto mappings = parse_smaps({reinterpret_cast<const char*>(data), size}, "smaps");
    if (!mappings) {
        GM_CHECK(mappings.error().code() == Errc::corrupt);
        GM_CHECK(
            std::ranges::all_of(mappings.error().message(), [](char c) { return c >= ' ' && c <= '~'; }));
        return 0;
    }
    const ProcessMapping* before = nullptr;
    for (const ProcessMapping& mapping : *mappings) {
        GM_CHECK(mapping.size_bytes != 0 && mapping.last() >= mapping.base);
        GM_CHECK(before == nullptr || before->last() < mapping.base);
        GM_CHECK(mapping.resident_bytes % 1024 == 0 && mapping.swapped_bytes % 1024 == 0);
        GM_CHECK(mapping.has_file() || !mapping.is_deleted);
        static_cast<void>(mapping.has_flag("ht"));
        before = &mapping;
    }
    return 0;
}

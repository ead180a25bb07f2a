// SPDX-License-Identifier: Apache-2.0
/// Fuzzes manifest.hpp: any bytes as the text of a manifest, also with their sum set right.
///
/// Asserts: what is taken checks out, and is the same after it was written and read; what is not is an error.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/page_sum.hpp"

namespace {

/// The text as it is, and with its sum set right, so that what stands behind the sum is reached.
std::string with_right_sum(std::string text) {
    constexpr std::string_view key = "\"sum\": \"";
    const std::size_t at = text.find(key);
    if (at == std::string::npos || text.size() < at + key.size() + 17) return text;
    // One field a line, as manifests are written.
    const std::size_t line = text.rfind('\n', at);
    const std::size_t before = line == std::string::npos ? 0 : line;
    std::string without = text;
    const std::size_t behind = at + key.size() + 17;
    without.erase(before, behind + (text[behind] == ',' ? 1 : 0) - before);
    while (!without.empty() && without.back() == '\n') without.pop_back();
    const std::uint64_t sum = guestmem::bytes_sum(std::as_bytes(std::span{without}));
    constexpr std::string_view digits = "0123456789abcdef";
    for (unsigned i = 0; i < 16; ++i) text[at + key.size() + i] = digits[sum >> (60 - 4 * i) & 0xf];
    return text;
}

void read(std::string_view text) {
    const auto manifest = guestmem::parse_manifest(text);
    if (!manifest) {
        GM_CHECK(!manifest.error().message().empty());
        return;
    }
    GM_CHECK(guestmem::check_manifest(*manifest).has_value());
    const auto again = guestmem::parse_manifest(guestmem::to_text(*manifest));
    GM_CHECK(again.has_value() && *again == *manifest);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    read(text);
    read(with_right_sum(std::string{text}));
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes option_text.hpp: any bytes as the text of a backend.
///
/// Asserts: what is taken is inside of its limits, and is printed as a text that gives the same options and is printed
/// the same again; what is not taken is refused with a place.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/backends/mode.hpp"
#include "guestmem/mem/backends/option_text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace guestmem;  // NOLINT(google-build-using-namespace): its subject
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    const auto options = parse_backend(text);
    if (!options) {
        GM_CHECK(options.error().code() == Errc::invalid_argument);
        GM_CHECK(options.error().message().starts_with("backend"));
        return 0;
    }
    GM_CHECK(!options->id.empty());
    for (std::size_t i = 0; i < options->host_nodes.size(); ++i) {
        GM_CHECK(options->host_nodes[i] < max_host_nodes);
        GM_CHECK(i == 0 || options->host_nodes[i - 1] < options->host_nodes[i]);
    }
    const std::string printed = to_text(*options);
    const auto again = parse_backend(printed);
    // Doubled commas may make it longer than what is read.
    GM_CHECK(again.has_value() || printed.size() > max_backend_text_bytes);
    if (again) {
        GM_CHECK(*again == *options);
        GM_CHECK(to_text(*again) == printed);
    }
    static_cast<void>(mode_of(*options));
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes calls.hpp: any bytes as the arguments and as the result of every call.
///
/// Asserts: what is parsed, written again and parsed again is the same; a refusal says why.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/share/calls.hpp"

namespace guestmem::share {
namespace {

template <typename Call>
void check_round_trip(Result<Call> (*parse)(std::string_view), std::string_view text) {
    const auto first = parse(text);
    if (!first) {
        GM_CHECK(!first.error().message().empty());
        return;
    }
    const std::string written = to_json(*first);
    const auto second = parse(written);
    GM_CHECK(second.has_value());
    GM_CHECK(to_json(*second) == written);
}

void attack(std::string_view text) {
    check_round_trip(&parse_named_call, text);
    check_round_trip(&parse_attach_call, text);
    check_round_trip(&parse_ring_call, text);
    check_round_trip(&parse_session_reply, text);
    check_round_trip(&parse_reload_reply, text);
    check_round_trip(&parse_service_summary, text);
    check_round_trip(&parse_share_status, text);
    check_round_trip(&parse_memory_reply, text);
    check_round_trip(&parse_attach_reply, text);
    check_round_trip(&parse_ring_reply, text);
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::share::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/// Fuzzes vm_calls.hpp: any bytes as the arguments and as the result of every call.
///
/// Asserts: what is parsed, written again and parsed again is the same; a refusal says why.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/vmm/vm_calls.hpp"

namespace guestmem::vmm {
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
    check_round_trip(&parse_memory_map_call, text);
    check_round_trip(&parse_attach_share_call, text);
    check_round_trip(&parse_detach_share_call, text);
    check_round_trip(&parse_dirty_log_call, text);
    check_round_trip(&parse_dirty_harvest_call, text);
    check_round_trip(&parse_state_reply, text);
    check_round_trip(&parse_plugged_share_reply, text);
    check_round_trip(&parse_vm_status, text);
    check_round_trip(&parse_memory_map_reply, text);
    check_round_trip(&parse_dirty_harvest_reply, text);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

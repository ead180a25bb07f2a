// SPDX-License-Identifier: Apache-2.0
/// Fuzzes wire.hpp: any bytes as a request and as an answer.
///
/// Asserts: what is decoded keeps the limits on size, nesting and names; encoding it gives one line, which decodes
/// to the same again. An encoded line may be longer than what came in (1e9 becomes 1000000000.0), so it may be
/// beyond the limit; then that is what decoding says.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/check.hpp"
#include "guestmem/control/wire.hpp"

namespace guestmem::control {
namespace {

/// The line without its end, which must be the only one in it.
std::string_view check_line(std::string_view line) {
    GM_CHECK(line.ends_with('\n') && std::ranges::count(line, '\n') == 1);
    line.remove_suffix(1);
    return line;
}

bool is_object(std::string_view text) { return text.starts_with('{') && text.ends_with('}'); }

void check_request(const Request& request) {
    GM_CHECK(!request.call.empty() && request.call.size() <= max_call_bytes);
    GM_CHECK(is_object(request.arguments));
    GM_CHECK(!nests_deeper_than(request.arguments, max_nesting - 1));

    const std::string line = encode_request(request);
    const auto again = decode_request(check_line(line));
    if (line.size() - 1 > max_request_bytes) {
        GM_CHECK(!again && again.error().code() == Errc::out_of_range);
        return;
    }
    GM_CHECK(again.has_value());
    GM_CHECK(again->id == request.id && again->call == request.call && again->arguments == request.arguments);
}

void check_answer(const Answer& answer) {
    GM_CHECK(answer.result.has_value() != answer.error.has_value());
    GM_CHECK(answer.count_fds <= max_answer_fds);
    if (answer.result) GM_CHECK(is_object(*answer.result));
    if (answer.error) GM_CHECK(answer.error->os_error() >= 0 && answer.error->os_error() < 4096);

    const std::string line = encode_answer(answer);
    const auto again = decode_answer(check_line(line));
    if (line.size() - 1 > max_answer_bytes) {
        GM_CHECK(!again && again.error().code() == Errc::out_of_range);
        return;
    }
    GM_CHECK(again.has_value());
    GM_CHECK(again->id == answer.id && again->result == answer.result);
    GM_CHECK(again->error.has_value() == answer.error.has_value());
    if (answer.error) {
        GM_CHECK(again->error->code() == answer.error->code());
        GM_CHECK(again->error->os_error() == answer.error->os_error());
        GM_CHECK(again->error->message() == answer.error->message());
    } else {
        GM_CHECK(again->count_fds == answer.count_fds);
    }
}

void attack(std::string_view line) {
    const auto request = decode_request(line);
    const auto answer = decode_answer(line);
    if (request || answer) GM_CHECK(!nests_deeper_than(line, max_nesting));
    if (request) {
        GM_CHECK(line.size() <= max_request_bytes);
        check_request(*request);
    }
    if (answer) {
        GM_CHECK(line.size() <= max_answer_bytes);
        check_answer(*answer);
    }
}

}  // namespace
}  // namespace guestmem::control

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::control::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/wire.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace guestmem::control {
namespace {

using nlohmann::json;

std::string to_line(const json& object) {
    // Names and messages may carry bytes that are no UTF-8; JSON has no place for them.
    return object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

Error corrupt(std::string why) { return Error{Errc::corrupt, "control message: " + std::move(why)}; }

/// The object of one line, its version checked.
Result<json> parse_envelope(std::string_view line, std::size_t limit_bytes) {
    if (line.size() > limit_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("control message of {} bytes: the limit is {}", line.size(), limit_bytes)};
    if (nests_deeper_than(line, max_nesting))
        return corrupt(fmt::format("nests deeper than {}", max_nesting));
    json object = json::parse(line, nullptr, false);
    if (!object.is_object()) return corrupt("not a JSON object");
    const auto version = object.find("v");
    if (version == object.end() || !version->is_number_unsigned()) return corrupt("no version 'v'");
    if (version->get<std::uint64_t>() != protocol_version)
        return Error{Errc::unsupported, fmt::format("control message: version {} where this side speaks {}",
                                                    version->get<std::uint64_t>(), protocol_version)};
    const auto id = object.find("id");
    if (id == object.end() || !id->is_number_unsigned()) return corrupt("no number 'id'");
    return object;
}

/// Nothing when it has no code or no message. (A Result<Error> could not tell its value from its failure.)
std::optional<Error> decode_error(const json& object) {
    const auto code = object.find("code");
    const auto message = object.find("message");
    if (code == object.end() || !code->is_string() || message == object.end() || !message->is_string())
        return std::nullopt;
    // A code of a later version is still an error.
    const Errc known = to_errc(code->get_ref<const std::string&>()).value_or(Errc::io);
    const auto number = object.find("errno");
    int os_error = 0;
    if (number != object.end() && number->is_number_integer()) {
        const auto value = number->get<std::int64_t>();
        if (value > 0 && value < 4096) os_error = static_cast<int>(value);
    }
    return Error{known, os_error, message->get<std::string>()};
}

}  // namespace

bool nests_deeper_than(std::string_view text, std::size_t limit) {
    std::size_t depth = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\') ++i;
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > limit) return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            --depth;
        }
    }
    return false;
}

Result<Request> decode_request(std::string_view line) {
    const json object = GM_TRY(parse_envelope(line, max_request_bytes));
    Request request{.id = object["id"].get<std::uint64_t>(), .call = {}, .arguments = "{}"};
    const auto call = object.find("call");
    if (call == object.end() || !call->is_string()) return corrupt("no text 'call'");
    request.call = call->get<std::string>();
    if (request.call.empty() || request.call.size() > max_call_bytes)
        return corrupt(fmt::format("a call's name has 1 to {} bytes", max_call_bytes));
    if (const auto arguments = object.find("args"); arguments != object.end()) {
        if (!arguments->is_object()) return corrupt("'args' is not an object");
        request.arguments = arguments->dump();
    }
    return request;
}

std::string encode_request(const Request& request) {
    return to_line({{"v", protocol_version},
                    {"id", request.id},
                    {"call", request.call},
                    {"args", json::parse(request.arguments)}});
}

Result<Answer> decode_answer(std::string_view line) {
    const json object = GM_TRY(parse_envelope(line, max_answer_bytes));
    Answer answer;
    answer.id = object["id"].get<std::uint64_t>();
    const auto result = object.find("result");
    const auto error = object.find("error");
    if ((result == object.end()) == (error == object.end()))
        return corrupt("neither or both of 'result' and 'error'");
    if (result != object.end()) {
        if (!result->is_object()) return corrupt("'result' is not an object");
        answer.result = result->dump();
    } else {
        if (!error->is_object()) return corrupt("'error' is not an object");
        answer.error = decode_error(*error);
        if (!answer.error) return corrupt("an error without 'code' and 'message'");
    }
    if (const auto fds = object.find("fds"); fds != object.end()) {
        if (!fds->is_number_unsigned() || fds->get<std::uint64_t>() > max_answer_fds)
            return corrupt("'fds' is not a small number");
        answer.count_fds = fds->get<std::uint32_t>();
    }
    return answer;
}

std::string encode_answer(const Answer& answer) {
    json object{{"v", protocol_version}, {"id", answer.id}};
    if (answer.error) {
        object["error"] = {{"code", std::string{to_string(answer.error->code())}},
                           {"errno", answer.error->os_error()},
                           {"message", answer.error->message()}};
    } else {
        object["result"] = json::parse(answer.result.value_or("{}"));
        if (answer.count_fds != 0) object["fds"] = answer.count_fds;
    }
    return to_line(object);
}

}  // namespace guestmem::control

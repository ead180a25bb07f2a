// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/qmp.hpp"

#include <fmt/format.h>

#include <array>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "guestmem/cli/report.hpp"

namespace guestmem::cli {
namespace {

using Clock = std::chrono::steady_clock;

/// Of what QEMU says about a command that it refuses.
constexpr std::size_t max_reason_bytes = 400;

Error refused(std::string_view command, const nlohmann::json& answer) {
    std::string reason = "it does not say why";
    if (const auto error = answer.find("error"); error != answer.end() && error->is_object())
        if (const auto text = error->find("desc"); text != error->end() && text->is_string())
            reason = to_printable(text->get<std::string>().substr(0, max_reason_bytes));
    return qmp_broken(fmt::format("it refuses '{}': {}", command, reason));
}

}  // namespace

Error qmp_broken(std::string_view what) { return Error{Errc::corrupt, fmt::format("QEMU: {}", what)}; }

Result<UnixStream> connect_soon(const std::string& path) {
    // A listener whose queue is full lets connect() sleep for as long as it likes; this program ends before.
    const auto promise = std::make_shared<std::promise<Result<UnixStream>>>();
    auto connected = promise->get_future();
    std::thread{[promise, path] { promise->set_value(UnixStream::connect(path)); }}.detach();
    if (connected.wait_for(std::chrono::milliseconds{greeting_timeout_ms}) != std::future_status::ready)
        return Error{Errc::timed_out,
                     fmt::format("connect to {}: nobody takes connections there within {} ms",
                                 to_printable(path), greeting_timeout_ms)};
    return connected.get();
}

void QmpConversation::set_time(int timeout_ms) {
    deadline_ = Clock::now() + std::chrono::milliseconds{timeout_ms};
}

bool QmpConversation::take_greeting() {
    // What goes wrong before the greeting is another protocol's affair.
    const auto is_json = begins_with_brace();
    if (!is_json || !*is_json) return false;
    const auto greeting = line();
    if (!greeting) return false;
    const auto greeted = nlohmann::json::parse(*greeting, nullptr, false);
    return greeted.is_object() && greeted.contains("QMP");
}

Result<nlohmann::json> QmpConversation::ask(std::string_view command, const nlohmann::json& arguments,
                                            std::span<const FdView> fds) {
    nlohmann::json request{{"execute", command}, {"id", ++last_id_}};
    if (!arguments.is_null()) request["arguments"] = arguments;
    const std::string text = request.dump() + "\n";
    const SendOutcome outcome = GM_TRY_CONTEXT(stream_.send(std::as_bytes(std::span{text}), fds), "QEMU");
    if (outcome.status != SendStatus::sent || outcome.count_bytes != text.size())
        return Error{Errc::unavailable, "QEMU: it does not read its QMP socket"};
    for (;;) {
        auto answer = nlohmann::json::parse(GM_TRY(line()), nullptr, false);
        if (!answer.is_object()) return qmp_broken("what came on its QMP socket is no JSON object");
        if (answer.contains("event")) continue;
        if (answer.value("id", nlohmann::json{}) != last_id_) return qmp_broken("an answer nobody asked for");
        if (!answer.contains("return")) return refused(command, answer);
        return std::move(answer["return"]);
    }
}

Result<std::string> QmpConversation::ask_human(std::string_view command) {
    auto answer = GM_TRY(ask("human-monitor-command", {{"command-line", command}}));
    if (!answer.is_string()) return qmp_broken(fmt::format("no text came of '{}'", command));
    return answer.get<std::string>();
}

Result<std::string> QmpConversation::line() {
    for (;;) {
        if (const std::size_t at = text_.find('\n', searched_); at != std::string::npos) {
            std::string taken = text_.substr(0, at);
            text_.erase(0, at + 1);
            searched_ = 0;
            return taken;
        }
        searched_ = text_.size();
        GM_TRY(receive());
    }
}

Result<bool> QmpConversation::begins_with_brace() {
    if (text_.empty()) GM_TRY(receive());
    return text_.starts_with('{');
}

Result<void> QmpConversation::receive() {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    if (left <= 0 || !GM_TRY(stream_.wait_readable(static_cast<int>(left))))
        return Error{Errc::timed_out, "QEMU: no answer on its QMP socket in time"};
    std::array<std::byte, 16 * 1024> buffer{};
    const auto received = GM_TRY_CONTEXT(stream_.receive(buffer), "QEMU");
    if (!received) return {};
    if (received->count_bytes == 0)
        return Error{Errc::unavailable, "QEMU: it closed the connection to its QMP socket"};
    count_bytes_ += received->count_bytes;
    if (count_bytes_ > max_qmp_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("QEMU: it says more than the limit of {} bytes", max_qmp_bytes)};
    text_.append(reinterpret_cast<const char*>(buffer.data()), received->count_bytes);
    return {};
}

}  // namespace guestmem::cli

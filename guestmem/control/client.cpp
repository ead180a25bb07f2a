// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/client.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <span>

#include "guestmem/sys/deadline.hpp"

namespace guestmem::control {

Result<Client> Client::connect(const std::string& path, int timeout_ms) {
    // A service that is stopped takes no connection once its backlog is full.
    auto stream = timeout_ms < 0 ? UnixStream::connect(path)
                                 : UnixStream::connect(path, Deadline{std::chrono::milliseconds{timeout_ms}});
    if (!stream) {
        Error error = std::move(stream).error();
        if (error.code() == Errc::not_found || error.code() == Errc::unavailable)
            return Error{
                Errc::unavailable, error.os_error(),
                fmt::format("no service at {} ({}); start it with 'guestmem share serve', or name its "
                            "control socket with --control",
                            path, error.message())};
        return error;
    }
    return Client{std::move(*stream), path, timeout_ms};
}

Result<void> Client::send_line(const std::string& line) {
    auto rest = std::as_bytes(std::span{line});
    while (!rest.empty()) {
        const SendOutcome outcome = GM_TRY(stream_.send(rest));
        rest = rest.subspan(outcome.count_bytes);
    }
    return {};
}

Result<std::string> Client::receive_line(std::vector<Fd>& fds) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::milliseconds{timeout_ms_};
    std::string line;
    std::array<std::byte, 16 * 1024> buffer;
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        if (!GM_TRY(stream_.wait_readable(static_cast<int>(std::max<std::int64_t>(left.count(), 0)))))
            return Error{Errc::timed_out, fmt::format("no answer from {} within {} ms", path_, timeout_ms_)};
        auto received = GM_TRY(stream_.receive(buffer));
        if (!received) continue;
        if (received->count_bytes == 0)
            return Error{Errc::unavailable, fmt::format("the service at {} closed the connection", path_)};
        if (received->has_lost_fds)
            return Error{Errc::exhausted,
                         fmt::format("descriptors from {} were lost: too few are free here", path_)};
        std::ranges::move(received->fds, std::back_inserter(fds));
        line.append(reinterpret_cast<const char*>(buffer.data()), received->count_bytes);
        if (const std::size_t newline = line.find('\n'); newline != std::string::npos) {
            line.resize(newline);
            return line;
        }
        if (line.size() > max_answer_bytes)
            return Error{Errc::corrupt,
                         fmt::format("an answer from {} is longer than {} bytes", path_, max_answer_bytes)};
    }
}

Result<ClientAnswer> Client::call(const std::string& name, const std::string& arguments) {
    const Request request{.id = next_id_++, .call = name, .arguments = arguments};
    const std::string sent = encode_request(request);
    if (sent.size() > max_request_bytes + 1)  // the newline does not count
        return Error{Errc::out_of_range, fmt::format("a request of {} bytes to {}: the limit is {}",
                                                     sent.size() - 1, path_, max_request_bytes)};
    GM_TRY_CONTEXT(send_line(sent), fmt::format("ask {}", path_));
    ClientAnswer answer;
    const std::string line = GM_TRY(receive_line(answer.fds));
    Answer decoded = GM_TRY_CONTEXT(decode_answer(line), fmt::format("answer from {}", path_));
    if (decoded.error) return std::move(*decoded.error);
    if (decoded.id != request.id || decoded.count_fds != answer.fds.size())
        return Error{Errc::corrupt,
                     fmt::format("answer from {}: id {} with {} descriptors where id {} with {} belongs",
                                 path_, decoded.id, answer.fds.size(), request.id, decoded.count_fds)};
    answer.result = std::move(*decoded.result);
    return answer;
}

}  // namespace guestmem::control

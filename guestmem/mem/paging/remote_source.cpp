// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/remote_source.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <optional>
#include <span>
#include <utility>
#include <variant>

namespace guestmem {

Result<std::unique_ptr<RemoteSource>> RemoteSource::connect(const std::string& path, RemoteOptions options) {
    const Deadline deadline{options.receive.patience};
    UnixStream stream =
        GM_TRY_CONTEXT(UnixStream::connect(path, deadline), fmt::format("page server {}", path));
    return greet(std::move(stream), fmt::format("page server {}", path), std::move(options), deadline);
}

Result<std::unique_ptr<RemoteSource>> RemoteSource::adopt(Fd fd, RemoteOptions options) {
    const Deadline deadline{options.receive.patience};
    UnixStream stream = GM_TRY_CONTEXT(UnixStream::adopt(std::move(fd)), "page server");
    return greet(std::move(stream), "page server", std::move(options), deadline);
}

Result<std::unique_ptr<RemoteSource>> RemoteSource::greet(UnixStream stream, std::string from,
                                                          RemoteOptions options, const Deadline& deadline) {
    GM_TRY_CONTEXT(stream.set_nonblocking(), from);
    const JoinFrame join{.has_zstd = options.accepts_zstd,
                         .wants_description = options.wants_description,
                         .wants_state = static_cast<bool>(options.receive.take_state)};
    PageReceiver receiver{FrameFlow::from_server, std::move(from), std::move(options.receive)};
    std::unique_ptr<RemoteSource> source{new RemoteSource{std::move(stream), std::move(receiver)}};
    FrameBytes bytes;
    append_frame(bytes, join);
    GM_TRY(source->send(bytes, deadline));
    GM_TRY(source->receiver_.read_greeting(source->stream_.view(), deadline, join));
    return source;
}

Result<void> RemoteSource::send(const FrameBytes& bytes, const Deadline& deadline) {
    for (std::size_t sent = 0; sent < bytes.size();) {
        auto outcome = stream_.send(std::span{bytes}.subspan(sent));
        if (!outcome) {
            // Who refuses says why and closes: its word is waiting.
            auto said = receiver_.wait_frame(stream_.view(), deadline);
            if (!said && said.error().code() != Errc::unavailable) return std::move(said).error();
            return receiver_.fail(std::move(outcome).error());
        }
        sent += outcome->count_bytes;
        if (sent == bytes.size()) break;
        auto is_writable = wait_writable(stream_.view(), deadline);
        if (!is_writable) return receiver_.fail(std::move(is_writable).error());
        if (!*is_writable)
            return receiver_.fail(Error{Errc::timed_out, ETIMEDOUT, "it does not read what it is asked"});
    }
    return {};
}

Result<void> RemoteSource::fetch(ImagePart wanted, PageSink& sink) {
    if (receiver_.failed()) return *receiver_.failed();
    if (wanted.size_bytes == 0) return {};
    if (!is_image_part(wanted, size_bytes()))
        return Error{Errc::invalid_argument,
                     fmt::format("fetch {} bytes at {}: no whole pages of an image of {} bytes",
                                 wanted.size_bytes, wanted.offset_bytes, size_bytes())};
    const Deadline deadline{receiver_.options().patience};
    const RequestFrame request{.number = next_number_++, .part = wanted};
    FrameBytes bytes;
    append_frame(bytes, request);
    auto done = send(bytes, deadline);
    if (done) done = receive(request, sink, deadline);
    // A server sees at once that nobody waits for it.
    if (receiver_.failed()) stream_ = UnixStream{};
    return done;
}

Result<void> RemoteSource::receive(const RequestFrame& request, PageSink& sink, Deadline deadline) {
    if (receiver_.has_unread())
        return receiver_.fail(Error{Errc::corrupt, "it has sent what was not asked for"});
    std::uint64_t due = request.part.offset_bytes;
    const std::uint64_t behind = due + request.part.size_bytes;
    std::optional<Error> refused;
    for (;;) {
        const PageFrame frame = GM_TRY(receiver_.wait_frame(stream_.view(), deadline));
        if (const auto part = part_of(frame)) {
            // In order and without gaps: so what was not asked for, or twice, shows at once.
            if (part->offset_bytes != due || part->size_bytes > behind - due)
                return receiver_.fail(
                    Error{Errc::corrupt,
                          fmt::format("it has sent {} bytes at {}; of {} bytes at {} those from {} are due",
                                      part->size_bytes, part->offset_bytes, request.part.size_bytes,
                                      request.part.offset_bytes, due)});
            const auto begin = std::chrono::steady_clock::now();
            GM_TRY(receiver_.judge(frame));
            due += part->size_bytes;
            if (!refused)
                if (auto given = give(frame, sink); !given) refused = std::move(given).error();
            // Each page comes once, so a server cannot make this time longer than the sink needs for the answer.
            deadline.extend(std::chrono::steady_clock::now() - begin);
            continue;
        }
        const auto* const done = std::get_if<DoneFrame>(&frame);
        if (done == nullptr || done->number != request.number || due != behind)
            return receiver_.fail(
                Error{Errc::corrupt,
                      fmt::format("an answer to request {} that is none, or ends at {} and not at {}",
                                  request.number, due, behind)});
        if (receiver_.has_unread())
            return receiver_.fail(Error{Errc::corrupt, "it has sent more than was asked for"});
        if (refused) return *refused;
        return {};
    }
}

}  // namespace guestmem

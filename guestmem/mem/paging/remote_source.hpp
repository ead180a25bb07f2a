// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_receiver.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// Pages from a server, over a socket: asked for when they are wanted.
///
/// Contract: as PageSource says. In a fetch the server has `patience` in all: one that is gone, stalls, sends a byte
/// now and then, sends what was not asked for or what its sums do not fit, or says that it cannot, is an error within
/// that time, and all later calls are that error; the connection is closed then. The time that judge and sink take is
/// not the server's: a fetch lasts so much longer. An error of the sink leaves the connection: what the server still
/// sends of this answer is read and passed over. connect() has the same patience, with a server that takes no
/// connections, too.
/// Threads: one at a time; nothing is read between calls.
/// Cost: one round trip for a fetch of any size; the server works while pages go to the sink.
/// Example:
///     auto source = GM_TRY(RemoteSource::connect("/run/pages", {.receive = {.judge = &sums}}));
///     GM_TRY(source->fetch({.offset_bytes = 0, .size_bytes = 65536}, sink));
/// Known holes: those of PageReceiver. A server drops a client whose socket stays full, a PageServer after its
/// stall_timeout_ms: a sink that takes longer than that for one piece of a large fetch loses the connection.

namespace guestmem {

struct RemoteOptions {
    ReceiveOptions receive = {};
    bool accepts_zstd = true;
    bool wants_description = true;
};

class RemoteSource : public PageSource {
public:
    [[nodiscard]] static Result<std::unique_ptr<RemoteSource>> connect(const std::string& path,
                                                                       RemoteOptions options = {});
    /// A connection that came from elsewhere: a stream socket, whose open file is made non-blocking.
    [[nodiscard]] static Result<std::unique_ptr<RemoteSource>> adopt(Fd fd, RemoteOptions options = {});

    [[nodiscard]] const Greeting& greeting() const { return receiver_.greeting(); }
    [[nodiscard]] std::uint64_t size_bytes() const override { return greeting().image_bytes; }
    [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override;

private:
    RemoteSource(UnixStream stream, PageReceiver receiver)
        : stream_(std::move(stream)), receiver_(std::move(receiver)) {}
    [[nodiscard]] static Result<std::unique_ptr<RemoteSource>> greet(UnixStream stream, std::string from,
                                                                     RemoteOptions options,
                                                                     const Deadline& deadline);
    [[nodiscard]] Result<void> send(const FrameBytes& bytes, const Deadline& deadline);
    [[nodiscard]] Result<void> receive(const RequestFrame& request, PageSink& sink, Deadline deadline);

    UnixStream stream_;
    PageReceiver receiver_;
    std::uint64_t next_number_ = 1;
};

}  // namespace guestmem

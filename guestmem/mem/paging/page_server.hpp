// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_offer.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/event_loop.hpp"

/// Serves the pages of one source to many clients over a Unix socket.
///
/// Contract: the requests of a client are answered in their order; among clients each has a piece in its turn, so that
/// one who asks for all does not hold up another who waits for a page. The socket is the user's own (mode 0600), or
/// that of a group (mode 0660): without a group nobody but the own user and root is served, whatever the file's mode
/// became. A client that breaks the protocol, asks for what is not in the image, or sends descriptors is told why and
/// closed. An error of the source, or of the offer's state, is told to the client whose request met it, and closes that
/// client only; source_errors counts them. A source whose errors stay, such as a RemoteSource, fails every client from
/// there on: an owner that sees source_errors grow makes a server with another source.
/// Limits: max_page_clients, of them max_clients_of_member of one user who is neither the own one nor root;
/// max_waiting_requests of one client, what else it asks stays in its socket; one piece of at most max_part_bytes that
/// waits to be sent to a client. A client that has not joined within join_timeout_ms, or whose socket stays full for
/// stall_timeout_ms, is closed; the time in which it waits for its turn does not count. A client that asks for nothing
/// stays.
/// Threads: the owner's loop. The source is asked in it, one piece at a time, and blocks it for that long.
/// Lifetime: loop and source outlive the server. Its end closes all clients, and does not wait for descriptors that
/// they sent and nobody read.
/// Example:
///     auto server = GM_TRY(PageServer::create(loop, source, {.path = "/run/pages", .offer = {.id = id}}));
/// Known holes: as many members of the group as have max_page_clients together can fill it. A client that connects and
/// sends a descriptor while the server ends, between its last look at the listener and the listener's close, can make
/// that close wait.

namespace guestmem {

inline constexpr std::size_t max_page_clients = 64;
inline constexpr std::size_t max_clients_of_member = max_page_clients / 4;
inline constexpr std::size_t max_waiting_requests = 16;

struct PageServerOptions {
    std::string path = {};
    /// Its members may connect, too.
    std::optional<std::uint32_t> group = {};
    PageOffer offer = {};
    std::uint64_t join_timeout_ms = 2'000;
    std::uint64_t stall_timeout_ms = 10'000;
};

struct PageServerCounts {
    std::uint64_t served_pages = 0;  ///< that went out, zeros counted too
    std::uint64_t refused_clients = 0;
    std::uint64_t dropped_clients = 0;  ///< for what they did, or did not do
    std::uint64_t source_errors = 0;    ///< each has closed a client that did nothing wrong
};

class PageServer {
public:
    [[nodiscard]] static Result<PageServer> create(EventLoop& loop, PageSource& source,
                                                   PageServerOptions options);
    PageServer(PageServer&&) noexcept;
    /// Ends the one that was here as its destructor does.
    PageServer& operator=(PageServer&&) noexcept;
    ~PageServer();

    [[nodiscard]] std::size_t count_clients() const;
    [[nodiscard]] PageServerCounts counts() const;

private:
    struct State;
    explicit PageServer(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace guestmem

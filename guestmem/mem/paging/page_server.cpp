// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <deque>
#include <list>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/undertaker.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t housekeeping_ms = 250;

/// The pages of one piece, whatever else a source gives and in whatever order.
class PieceSink : public PageSink {
public:
    void begin(ImagePart part) {
        part_ = part;
        bytes_.resize(static_cast<std::size_t>(part.size_bytes));
        pages_.assign(bytes_.size() / page_size_bytes, Page::missing);
    }

    [[nodiscard]] Result<void> take_pages(std::uint64_t offset_bytes,
                                          std::span<const std::byte> pages) override {
        for_each_page({.offset_bytes = offset_bytes, .size_bytes = pages.size()}, [&](std::size_t index) {
            const std::size_t at = index * page_size_bytes;
            const auto from = static_cast<std::size_t>(part_.offset_bytes + at - offset_bytes);
            std::ranges::copy(pages.subspan(from, page_size_bytes),
                              bytes_.begin() + static_cast<std::ptrdiff_t>(at));
            pages_[index] = Page::bytes;
        });
        return {};
    }
    [[nodiscard]] Result<void> take_zeros(ImagePart part) override {
        for_each_page(part, [&](std::size_t index) { pages_[index] = Page::zeros; });
        return {};
    }

    [[nodiscard]] bool has_all() const { return std::ranges::find(pages_, Page::missing) == pages_.end(); }
    [[nodiscard]] bool has_zeros_only() const {
        return std::ranges::all_of(pages_, [](Page page) { return page == Page::zeros; });
    }
    void append_to(FrameBytes& out, PageEncoder& encoder, int zstd_level) const {
        for (std::size_t at = 0; at < pages_.size();) {
            const auto begin = pages_.begin() + static_cast<std::ptrdiff_t>(at);
            const Page kind = *begin;
            const auto behind = std::find_if(begin, pages_.end(), [&](Page page) { return page != kind; });
            const auto count = static_cast<std::size_t>(behind - begin);
            const ImagePart run{.offset_bytes = part_.offset_bytes + at * page_size_bytes,
                                .size_bytes = count * page_size_bytes};
            if (kind == Page::zeros) {
                encoder.append_zeros(out, run);
            } else {
                encoder.append_pages(out, run.offset_bytes,
                                     std::span{bytes_}.subspan(at * page_size_bytes, count * page_size_bytes),
                                     zstd_level);
            }
            at += count;
        }
    }

private:
    enum class Page : std::uint8_t { missing, zeros, bytes };

    /// Calls it with the number, within the piece, of each page that both have.
    template <typename Function>
    void for_each_page(ImagePart part, Function&& function) {
        const std::uint64_t begin = std::max(part.offset_bytes, part_.offset_bytes);
        const std::uint64_t behind =
            std::min(part.offset_bytes + part.size_bytes, part_.offset_bytes + part_.size_bytes);
        for (std::uint64_t at = begin; at < behind; at += page_size_bytes)
            function(static_cast<std::size_t>((at - part_.offset_bytes) / page_size_bytes));
    }

    ImagePart part_;
    std::vector<std::byte> bytes_;
    std::vector<Page> pages_;
};

struct Client {
    UnixStream stream;
    std::uint32_t user = 0;
    EventSource source;
    FrameParser parser{FrameFlow::from_client};
    std::optional<GreetingWriter> greeting;
    std::deque<RequestFrame> requests;  ///< the first one's part is what is left of it
    std::uint64_t window_bytes = max_piece_bytes;
    FrameBytes out;
    std::size_t sent = 0;
    std::uint64_t quiet_ms = 0;  ///< in which the loop has waited for it
    bool has_ended = false;      ///< sends no more
    bool closes_when_sent = false;
    bool is_gone = false;

    [[nodiscard]] bool has_output() const { return sent < out.size(); }
    [[nodiscard]] bool has_work() const {
        return !closes_when_sent && ((greeting && !greeting->is_done()) || !requests.empty());
    }
    [[nodiscard]] bool can_take() const {
        return !closes_when_sent && !has_ended && requests.size() < max_waiting_requests;
    }
};

/// Whether the loop waits for this client, and not the client for its turn in a loop that others, or a slow source,
/// keep busy.
bool is_waited_for(const Client& client) {
    const Deadline at_once{std::chrono::milliseconds{0}};
    // What is left to make counts, too: a socket can be too full to be writable when all that was made is in it.
    if (client.has_output() || client.has_work()) {
        const auto is_writable = wait_writable(client.stream.view(), at_once);
        return is_writable && !*is_writable;
    }
    if (client.greeting) return false;
    const auto is_readable = wait_readable(client.stream.view(), at_once);
    return is_readable && !*is_readable;
}

}  // namespace

struct PageServer::State {
    EventLoop* loop = nullptr;
    PageSource* pages = nullptr;
    PageServerOptions options;
    std::optional<Undertaker> undertaker;
    UnixListener listener;
    EventSource accepting;
    EventSource housekeeping;
    PageEncoder encoder;
    PieceSink piece;
    PageServerCounts counts;
    // A list: a client's handler holds its address.
    std::list<Client> clients;

    void accept_one();
    [[nodiscard]] Result<std::uint32_t> check_client(const UnixStream& stream) const;
    void refuse(UnixStream stream, const Error& error);
    void serve(Client& client, IoEvents events);
    [[nodiscard]] bool receive(Client& client);
    void take_frames(Client& client);
    void take_frame(Client& client, const PageFrame& frame);
    void produce(Client& client);
    [[nodiscard]] Result<void> append_piece(Client& client);
    [[nodiscard]] bool flush(Client& client);
    [[nodiscard]] bool set_events(Client& client);
    void say_error(Client& client, const Error& error);
    void close_with(Client& client, const Error& error);
    void sweep();
    void close_all();
    void keep_house();
    bool start_accepting();
    bool start_housekeeping();
};

/// The client's user.
Result<std::uint32_t> PageServer::State::check_client(const UnixStream& stream) const {
    const PeerCredentials who = GM_TRY(stream.peer());
    // With a group the kernel has asked for the permission to write the socket's file, all groups considered.
    const bool is_member = who.uid != 0 && who.uid != own_user();
    if (is_member && !options.group)
        return Error{Errc::permission_denied, EACCES,
                     fmt::format("these pages are served to user {} and root; the caller is user {}",
                                 own_user(), who.uid)};
    if (clients.size() >= max_page_clients)
        return Error{
            Errc::exhausted, EUSERS,
            fmt::format("{} clients are connected, which is the limit; try again later", max_page_clients)};
    const auto is_theirs = [&](const Client& client) { return client.user == who.uid; };
    if (is_member &&
        static_cast<std::size_t>(std::ranges::count_if(clients, is_theirs)) >= max_clients_of_member)
        return Error{Errc::exhausted, EUSERS,
                     fmt::format("user {} has {} clients connected, which is the limit for one member of the "
                                 "group; close some first",
                                 who.uid, max_clients_of_member)};
    return who.uid;
}

void PageServer::State::refuse(UnixStream stream, const Error& error) {
    ++counts.refused_clients;
    FrameBytes bytes;
    append_frame(bytes, to_error_frame(error));
    // A fresh socket takes a frame; who is gone already needs none.
    static_cast<void>(stream.send(bytes).has_value());
    undertaker->bury(std::move(stream));
}

void PageServer::State::accept_one() {
    auto accepted = listener.accept();
    if (!accepted || undertaker->is_full()) {
        // Out of descriptors or of threads: look again at the next housekeeping instead of spinning on a ready
        // listener. Without housekeeping spinning is better than being deaf.
        if (start_housekeeping()) accepting = EventSource{};
        if (!accepted) return;
    }
    if (!*accepted) return;
    start_housekeeping();
    UnixStream stream = std::move(**accepted);
    const auto user = check_client(stream);
    if (!user) return refuse(std::move(stream), user.error());
    Client& client = clients.emplace_back();
    client.stream = std::move(stream);
    client.user = *user;
    auto source = loop->add_io(
        client.stream.view(), IoEvents::readable, [this, &client](IoEvents events) { serve(client, events); },
        Turn::late);
    if (!source) {
        client.is_gone = true;
        return sweep();
    }
    client.source = std::move(*source);
}

void PageServer::State::serve(Client& client, IoEvents events) {
    bool is_alive = true;
    // A hang-up arrives as readable, asked for or not: what is sent next finds out.
    if (has_any(events, IoEvents::readable) && client.can_take()) is_alive = receive(client);
    if (is_alive) take_frames(client);
    if (is_alive && !client.has_output()) produce(client);
    is_alive = is_alive && flush(client) && set_events(client);
    if (!is_alive) {
        client.is_gone = true;
        sweep();
    }
}

bool PageServer::State::set_events(Client& client) {
    const bool has_to_send = client.has_output() || client.has_work();
    if (!has_to_send && (client.has_ended || client.closes_when_sent)) return false;
    const IoEvents events =
        has_to_send ? client.can_take() ? IoEvents::both : IoEvents::writable : IoEvents::readable;
    return client.source.set_events(events).has_value();
}

bool PageServer::State::receive(Client& client) {
    const auto room = client.parser.room();
    if (room.empty()) return true;
    // Descriptors are neither taken nor freed here: freeing one may block (see Undertaker).
    const auto seen = client.stream.peek(room);
    if (!seen) return false;
    if (!*seen) return true;
    if ((*seen)->has_fds) {
        say_error(client, Error{Errc::invalid_argument, "descriptors are not taken here"});
        return true;
    }
    if ((*seen)->count_bytes > 0) {
        const auto received = client.stream.receive(room.first((*seen)->count_bytes));
        if (!received) return false;
        if (*received) client.parser.take((*received)->count_bytes);
        return true;
    }
    // What was asked before is still answered: a client may close its sending half.
    client.has_ended = true;
    return true;
}

void PageServer::State::take_frames(Client& client) {
    while (!client.closes_when_sent && client.requests.size() < max_waiting_requests) {
        const auto frame = client.parser.next();
        if (!frame) return say_error(client, frame.error());
        if (!*frame) return;
        take_frame(client, **frame);
    }
}

void PageServer::State::take_frame(Client& client, const PageFrame& frame) {
    if (const auto* const join = std::get_if<JoinFrame>(&frame)) {
        client.greeting.emplace(options.offer, pages->size_bytes(), *join);
        client.quiet_ms = 0;
        return;
    }
    const auto* const request = std::get_if<RequestFrame>(&frame);
    if (request == nullptr) return;
    if (!is_image_part(request->part, pages->size_bytes()))
        return say_error(client, Error{Errc::out_of_range,
                                       fmt::format("a request for {} bytes at {}: the image has {} bytes",
                                                   request->part.size_bytes, request->part.offset_bytes,
                                                   pages->size_bytes())});
    client.requests.push_back(*request);
}

void PageServer::State::say_error(Client& client, const Error& error) {
    ++counts.dropped_clients;
    close_with(client, error);
}

void PageServer::State::close_with(Client& client, const Error& error) {
    client.requests.clear();
    client.closes_when_sent = true;
    append_frame(client.out, to_error_frame(error));
}

void PageServer::State::produce(Client& client) {
    client.out.clear();
    client.sent = 0;
    if (!client.has_work()) return;
    auto appended =
        client.greeting->is_done() ? append_piece(client) : client.greeting->append_next(client.out);
    if (appended) return;
    client.out.clear();
    ++counts.source_errors;
    close_with(client, appended.error());
}

Result<void> PageServer::State::append_piece(Client& client) {
    RequestFrame& request = client.requests.front();
    const ImagePart part{.offset_bytes = request.part.offset_bytes,
                         .size_bytes = std::min(request.part.size_bytes, client.window_bytes)};
    piece.begin(part);
    GM_TRY(pages->fetch(part, piece));
    if (!piece.has_all())
        return Error{Errc::io, fmt::format("the source of pages has not given all of {} bytes at {}",
                                           part.size_bytes, part.offset_bytes)};
    piece.append_to(client.out, encoder, client.greeting->zstd_level());
    // Long runs of zeros cost little to send; asking for more at once makes them cost little to find.
    client.window_bytes =
        piece.has_zeros_only() ? std::min(client.window_bytes * 2, max_part_bytes) : max_piece_bytes;
    request.part.offset_bytes += part.size_bytes;
    request.part.size_bytes -= part.size_bytes;
    counts.served_pages += part.size_bytes / page_size_bytes;
    if (request.part.size_bytes > 0) return {};
    append_frame(client.out, DoneFrame{request.number});
    client.requests.pop_front();
    return {};
}

bool PageServer::State::flush(Client& client) {
    while (client.has_output()) {
        const auto outcome = client.stream.send(std::span{client.out}.subspan(client.sent));
        if (!outcome) return false;
        if (outcome->status != SendStatus::sent) return true;
        client.sent += outcome->count_bytes;
        client.quiet_ms = 0;
    }
    return !client.closes_when_sent;
}

void PageServer::State::sweep() {
    for (auto client = clients.begin(); client != clients.end();) {
        if (!client->is_gone) {
            ++client;
            continue;
        }
        UnixStream stream = std::move(client->stream);
        client = clients.erase(client);
        undertaker->bury(std::move(stream));
    }
}

/// Closes all through the undertaker: what they sent and nobody read may have descriptors whose close waits.
void PageServer::State::close_all() {
    // A listener's close frees what waits in its backlog, so that is taken first. Bounded: others may keep coming.
    constexpr int max_backlog = 256;
    for (int taken = 0; taken < max_backlog; ++taken) {
        auto accepted = listener.accept();
        if (!accepted || !*accepted) break;
        undertaker->bury(std::move(**accepted));
    }
    for (Client& client : clients) client.is_gone = true;
    sweep();
}

void PageServer::State::keep_house() {
    for (Client& client : clients) {
        client.quiet_ms = is_waited_for(client) ? client.quiet_ms + housekeeping_ms : 0;
        const std::uint64_t limit_ms = client.greeting ? options.stall_timeout_ms : options.join_timeout_ms;
        if (client.quiet_ms <= limit_ms) continue;
        // One that was told why it is closed is counted already.
        if (!client.closes_when_sent) ++counts.dropped_clients;
        client.is_gone = true;
    }
    sweep();
    if (!accepting.is_active()) start_accepting();
    // A timer that cannot be set again leaves stalled clients in until the next client comes.
    if (!housekeeping.restart(housekeeping_ms)) housekeeping = EventSource{};
}

bool PageServer::State::start_accepting() {
    auto source =
        loop->add_io(listener.view(), IoEvents::readable, [this](IoEvents) { accept_one(); }, Turn::late);
    if (source) accepting = std::move(*source);
    return accepting.is_active();
}

bool PageServer::State::start_housekeeping() {
    if (housekeeping.is_active()) return true;
    auto source = loop->add_timer(housekeeping_ms, [this] { keep_house(); });
    if (source) housekeeping = std::move(*source);
    return housekeeping.is_active();
}

PageServer::PageServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
PageServer::PageServer(PageServer&&) noexcept = default;
PageServer& PageServer::operator=(PageServer&& other) noexcept {
    if (this == &other) return *this;
    if (state_) state_->close_all();
    state_ = std::move(other.state_);
    return *this;
}
PageServer::~PageServer() {
    if (state_) state_->close_all();
}

std::size_t PageServer::count_clients() const { return state_->clients.size(); }
PageServerCounts PageServer::counts() const { return state_->counts; }

Result<PageServer> PageServer::create(EventLoop& loop, PageSource& source, PageServerOptions options) {
    GM_TRY(check_offer(options.offer, source.size_bytes()));
    auto state = std::make_unique<State>();
    State* const self = state.get();
    self->loop = &loop;
    self->pages = &source;
    self->options = std::move(options);
    self->undertaker = GM_TRY(Undertaker::create(loop));
    self->listener = GM_TRY(UnixListener::create({.path = self->options.path,
                                                  .owner = {},
                                                  .group = self->options.group,
                                                  .mode = self->options.group ? 0660U : 0600U}));
    self->accepting = GM_TRY(loop.add_io(
        self->listener.view(), IoEvents::readable, [self](IoEvents) { self->accept_one(); }, Turn::late));
    self->housekeeping = GM_TRY(loop.add_timer(housekeeping_ms, [self] { self->keep_house(); }));
    return PageServer{std::move(state)};
}

}  // namespace guestmem

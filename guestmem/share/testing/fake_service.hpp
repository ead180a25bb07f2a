// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/control/server.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/share/presence.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"

/// A share service of one share for tests of its clients: answers share.attach as docs/protocols/control.md has it, and
/// does all that a service should not.
///
/// Concepts: FakeLies is what it does wrong, from the next attach on. kill() is what a client sees of a kill -9 with a
/// keeper: nobody answers, the streams live on. end() is the end for good: the streams are closed; what comes after
/// start() has another memory.
/// Contract: with default lies it is honest.
/// Threads: the loop's.
/// Limits: handshakes are sent at once and have to fit into a socket's buffer: slots x vectors of about 100.
/// Example:
///     LoopThread loop;
///     auto service = loop.call([&](EventLoop& l) { return std::make_unique<FakeService>(l, options); });

namespace guestmem::share::testing {

struct FakeShare {
    std::string path = {};  ///< of the control socket
    std::uint32_t slots = 4;
    std::uint32_t vectors = 2;
    std::uint64_t size_bytes = 8192;
    bool is_classic = false;
    bool is_sealed = true;
    bool may_notify = true;
    bool is_read_only = false;
};

struct FakeLies {
    std::optional<Error> refusal = {};
    std::function<void(SessionReply&)> reply = {};       ///< says something else than is so
    std::function<void(std::vector<Fd>&)> fds = {};      ///< sends others
    std::optional<std::size_t> handshake_messages = {};  ///< stops after so many
    bool is_hanging_up_after = false;                    ///< ...and closes the stream then
    std::optional<std::uint32_t> announced_id = {};      ///< on the stream
    std::size_t count = static_cast<std::size_t>(-1);    ///< of attaches that are lied to
};

class FakeService {
public:
    FakeService(EventLoop& loop, FakeShare share) : loop_(loop), share_(std::move(share)) { start(); }
    FakeService(const FakeService&) = delete;
    FakeService& operator=(const FakeService&) = delete;

    void start() {
        if (!memory_.is_open()) make_share();
        server_.emplace(
            control::Server::create(
                loop_, {.socket = {.path = share_.path}},
                [this](const PeerCredentials&, const control::Request& request) { return answer(request); })
                .value());
    }
    void kill() { server_.reset(); }
    void end() {
        server_.reset();
        seats_.clear();
        memory_ = Fd{};
    }
    /// What the service does to a peer that it does not want any more.
    void cut(std::uint32_t slot) { leave(slot); }
    /// A message on the stream of who holds the slot.
    void say(std::uint32_t slot, std::int64_t value, FdView fd = {}) {
        const std::span fds{&fd, fd.is_open() ? std::size_t{1} : std::size_t{0}};
        GM_CHECK(seats_.at(slot).stream.send(encode_ivshmem(value), fds));
    }
    /// A peer that is no client of this service comes or goes.
    void show(std::uint32_t slot, bool is_present) {
        presence_->set(slot, is_present);
        ring_bells();
    }

    [[nodiscard]] const EventFd& doorbell(std::uint32_t slot, std::uint32_t vector) const {
        return doorbells_.at(slot).at(vector);
    }
    [[nodiscard]] const Fd& memory() const { return memory_; }
    [[nodiscard]] const Fd& sender_page(std::uint32_t slot) const { return senders_.at(slot); }
    [[nodiscard]] bool is_held(std::uint32_t slot) const { return seats_.contains(slot); }
    [[nodiscard]] std::size_t count_attaches() const { return count_attaches_; }
    [[nodiscard]] const AttachCall& last_call() const { return last_call_; }

    FakeLies lies;

private:
    struct Seat {
        UnixStream stream;
        EventFd bell;
        EventSource source;
    };

    void make_share() {
        const SealedMemoryOptions options{
            .name = "fake", .size_bytes = share_.size_bytes, .huge_page_bytes = 0};
        memory_ = share_.is_sealed ? create_sealed_memory(options).value()
                                   : create_sparse_memory(options, Sealing::none).value();
        presence_.emplace(PresenceWriter::create(share_.slots, share_.vectors).value());
        doorbells_.clear();
        senders_.clear();
        for (std::uint32_t slot = 0; slot < share_.slots; ++slot) {
            for (std::uint32_t vector = 0; vector < share_.vectors; ++vector)
                doorbells_[slot].push_back(EventFd::create().value());
            if (share_.slots <= max_senders) senders_.push_back(create_sender_page().value());
        }
    }

    Result<control::Outcome> answer(const control::Request& request) {
        if (request.call != "share.attach") return Error{Errc::unsupported, ENOSYS, "unknown call"};
        last_call_ = GM_TRY(parse_attach_call(request.arguments));
        ++count_attaches_;
        FakeLies told;
        if (lies.count > 0) {
            told = lies;
            --lies.count;
        }
        if (told.refusal) return *told.refusal;
        std::uint32_t slot = last_call_.slot.value_or(0);
        while (!last_call_.slot && seats_.contains(slot)) ++slot;
        if (slot >= share_.slots) return Error{Errc::exhausted, ENOSPC, "all places are taken"};
        if (seats_.contains(slot)) return Error{Errc::busy, EBUSY, fmt::format("slot {} is taken", slot)};
        return admit(slot, told);
    }

    Result<control::Outcome> admit(std::uint32_t slot, const FakeLies& told) {
        SessionReply reply{.slot = slot,
                           .size_bytes = share_.size_bytes,
                           .extent_bytes = share_.size_bytes,
                           .vectors = share_.vectors,
                           .slots = share_.slots,
                           .senders = static_cast<std::uint32_t>(senders_.size()),
                           .is_created = false,
                           .may_notify = share_.may_notify,
                           .is_read_only = share_.is_read_only || last_call_.is_read_only};
        auto [ours, theirs] = GM_TRY(UnixStream::pair());
        EventFd bell = GM_TRY(EventFd::create());
        control::Outcome outcome;
        outcome.fds.push_back(std::move(theirs).release());
        outcome.fds.push_back(GM_TRY(presence_->read_only()));
        outcome.fds.push_back(GM_TRY(bell.duplicate()));
        if (!senders_.empty()) outcome.fds.push_back(GM_TRY(senders_.at(slot).duplicate()));
        for (std::uint32_t other = 0; other < senders_.size(); ++other)
            if (other != slot) outcome.fds.push_back(GM_TRY(reopen_read_only(senders_.at(other))));
        if (told.reply) told.reply(reply);
        if (told.fds) told.fds(outcome.fds);
        outcome.result = to_json(reply);
        greet(ours, slot, told);
        if (told.is_hanging_up_after) return outcome;
        presence_->set(slot, true);
        const FdView stream = ours.view();
        Seat& seat = seats_[slot];
        seat = {.stream = std::move(ours), .bell = std::move(bell), .source = {}};
        seat.source =
            GM_TRY(loop_.add_io(stream, IoEvents::readable, [this, slot](IoEvents) { leave(slot); }));
        ring_bells();
        return outcome;
    }

    void greet(const UnixStream& stream, std::uint32_t slot, const FakeLies& told) {
        std::size_t left = told.handshake_messages.value_or(static_cast<std::size_t>(-1));
        const auto say_one = [&](std::int64_t value, FdView fd = {}) {
            const std::span fds{&fd, fd.is_open() ? std::size_t{1} : std::size_t{0}};
            // A client that has hung up is no concern of ours.
            if (left > 0) (void)stream.send(encode_ivshmem(value), fds).has_value();
            left -= left > 0 ? 1 : 0;
        };
        say_one(ivshmem_protocol_version);
        say_one(std::int64_t{told.announced_id.value_or(slot)});
        const bool is_read_only = share_.is_read_only || last_call_.is_read_only;
        const Fd for_readers = is_read_only ? reopen_read_only(memory_).value() : Fd{};
        say_one(ivshmem_memory_marker, is_read_only ? for_readers.view() : memory_.view());
        for (const auto& [other, bells] : doorbells_) {
            const bool is_told = share_.may_notify && (!share_.is_classic || seats_.contains(other));
            if (other == slot || !is_told) continue;
            for (const EventFd& one : bells) say_one(std::int64_t{other}, one.view());
        }
        for (const EventFd& one : doorbells_.at(slot)) say_one(std::int64_t{slot}, one.view());
    }

    void leave(std::uint32_t slot) {
        // The handler may be running: its source goes with the seat, which EventLoop allows.
        const Seat gone = std::move(seats_.at(slot));
        seats_.erase(slot);
        if (!share_.is_classic) presence_->set(slot, false);
        ring_bells();
    }
    void ring_bells() {
        for (const auto& [slot, seat] : seats_) GM_CHECK(seat.bell.ring());
    }

    EventLoop& loop_;
    FakeShare share_;
    Fd memory_;
    std::optional<PresenceWriter> presence_;
    std::map<std::uint32_t, std::vector<EventFd>> doorbells_;
    std::vector<Fd> senders_;
    std::map<std::uint32_t, Seat> seats_;
    std::optional<control::Server> server_;
    std::size_t count_attaches_ = 0;
    AttachCall last_call_;
};

}  // namespace guestmem::share::testing

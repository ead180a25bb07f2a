// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/undertaker.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/sys/eventfd.hpp"

namespace guestmem {

/// Shared with the threads; only `mutex`, `closed` and `bell` are theirs, too.
struct Undertaker::State {
    struct Burial {
        std::string party;
        std::function<void()> on_closed;
    };
    EventFd bell;
    EventSource source;
    std::uint64_t next_number = 0;
    std::map<std::uint64_t, Burial> waiting;
    /// For which there was no thread to be had.
    std::map<std::uint64_t, UnixStream> unburied;
    std::mutex mutex;
    std::vector<std::uint64_t> closed;

    void collect();
};

void Undertaker::State::collect() {
    // What cannot be drained is looked at again: the bell stays readable.
    static_cast<void>(bell.drain().has_value());
    std::vector<std::uint64_t> done;
    {
        const std::scoped_lock lock{mutex};
        done.swap(closed);
    }
    for (const std::uint64_t number : done) {
        auto node = waiting.extract(number);
        if (!node.empty()) node.mapped().on_closed();
    }
}

namespace {

/// False, and the stream is as it was, where there is no thread to be had.
template <typename State>
bool close_in_thread(const std::shared_ptr<State>& state, std::uint64_t number, UnixStream& stream) {
    auto grave = std::make_shared<UnixStream>(std::move(stream));
    try {
        std::thread{[state, number, grave] {
            *grave = UnixStream{};
            {
                const std::scoped_lock lock{state->mutex};
                state->closed.push_back(number);
            }
            // A full bell is a rung one; there is nobody to tell of another failure.
            static_cast<void>(state->bell.ring().has_value());
        }}.detach();
        return true;
    } catch (const std::system_error&) {
        stream = std::move(*grave);
        return false;
    }
}

/// Takes unread bytes that come without descriptors; whether there are some with.
bool has_unread_fds(const UnixStream& stream) {
    // A socket holds some hundred small messages at the most.
    constexpr int max_looks = 1000;
    std::array<std::byte, 4096> buffer;
    for (int look = 0; look < max_looks; ++look) {
        const auto seen = stream.peek(buffer);
        if (!seen || !*seen || (*seen)->count_bytes == 0) return false;
        if ((*seen)->has_fds) return true;
        if (!stream.receive(std::span{buffer}.first((*seen)->count_bytes))) return false;
    }
    return true;
}

}  // namespace

Undertaker::Undertaker(std::shared_ptr<State> state) : state_(std::move(state)) {}
Undertaker::Undertaker(Undertaker&&) noexcept = default;
Undertaker& Undertaker::operator=(Undertaker&&) noexcept = default;

Undertaker::~Undertaker() {
    // The threads may outlive this object, and what they share must not call into the loop any more.
    if (state_) state_->source = EventSource{};
}

Result<Undertaker> Undertaker::create(EventLoop& loop) {
    auto state = std::make_shared<State>();
    state->bell = GM_TRY(EventFd::create());
    state->source = GM_TRY(loop.add_io(state->bell.view(), IoEvents::readable,
                                       [self = state.get()](IoEvents) { self->collect(); }));
    return Undertaker{std::move(state)};
}

std::size_t Undertaker::count_waiting() const { return state_->waiting.size(); }

std::size_t Undertaker::count_waiting(std::string_view party) const {
    return static_cast<std::size_t>(
        std::ranges::count_if(state_->waiting, [&](const auto& one) { return one.second.party == party; }));
}

bool Undertaker::has_room(std::string_view party) const {
    const std::size_t count = count_waiting(party);
    return count == 0 || (count < max_burials_of_party && count_waiting() < max_burials);
}

/// Never closed here: that could take as long as its sender likes.
void Undertaker::bury_the_rest() {
    auto& unburied = state_->unburied;
    while (!unburied.empty() && close_in_thread(state_, unburied.begin()->first, unburied.begin()->second))
        unburied.erase(unburied.begin());
}

bool Undertaker::bury(UnixStream stream, std::string_view party, std::function<void()> on_closed) {
    // First: from here on nothing more can be sent, so what is seen is all there is.
    stream.shut_down();
    if (!has_unread_fds(stream)) {
        stream = UnixStream{};
        on_closed();
        return false;
    }
    const std::uint64_t number = state_->next_number++;
    state_->waiting.emplace(number,
                            State::Burial{.party = std::string{party}, .on_closed = std::move(on_closed)});
    state_->unburied.emplace(number, std::move(stream));
    bury_the_rest();
    return true;
}

}  // namespace guestmem

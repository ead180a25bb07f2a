// SPDX-License-Identifier: Apache-2.0
/// Fuzzes keeper_wire.hpp and keeper_session.hpp: a hostile service that sends any packets with any descriptors.
///
/// Input: a first byte that is even: the rest is one packet, decoded. Odd: the rest are messages of a session, each of
/// four bytes: verb (by its place in the list), count of keys, count of descriptors (its high bit: some were lost),
/// first index; the keys are of small numbers.
/// Asserts: what is decoded is encoded to the same bytes, within the limits. The session agrees with a naive model on
/// what is taken, answered, handed over and held. No descriptor is left.
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/share/keeper/keeper_session.hpp"
#include "guestmem/share/keeper/keeper_wire.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

constexpr std::size_t capacity = 12;
constexpr std::size_t max_messages = 200;
constexpr std::array verbs{KeeperVerb::next,    KeeperVerb::keep,    KeeperVerb::forget,
                           KeeperVerb::sync,    KeeperVerb::end,     KeeperVerb::done,
                           KeeperVerb::welcome, KeeperVerb::refused, KeeperVerb::holding};

void decode_one(std::span<const std::byte> packet) {
    const auto message = decode_keeper_message(packet);
    if (!message) {
        GM_CHECK(message.error().code() == Errc::corrupt);
        return;
    }
    GM_CHECK(message->keys.size() <= max_keys_per_message);
    const std::vector<std::byte> again = encode(*message);
    GM_CHECK(again.size() == packet.size());
    for (std::size_t i = 0; i < again.size(); ++i) GM_CHECK(again[i] == packet[i]);
}

/// The rule as a child would write it down.
struct Model {
    std::set<KeptKey> held;
    bool has_all = false;
    std::optional<KeptKey> last;
    std::uint32_t failure = 0;

    void fail(int os_error) {
        if (failure == 0) failure = static_cast<std::uint32_t>(os_error);
    }
    /// Nothing: the connection is over.
    std::optional<std::size_t> take(const KeeperMessage& message, std::size_t count_fds, bool has_lost);
    std::size_t hand_over();
};

std::size_t Model::hand_over() {
    std::size_t count = 0;
    for (const KeptKey& key : held) {
        if (last && key <= *last) continue;
        ++count;
    }
    if (count == 0) has_all = true;
    if (count > 0) last = *held.rbegin();
    return count;
}

std::optional<std::size_t> Model::take(const KeeperMessage& message, std::size_t count_fds, bool has_lost) {
    const std::size_t wanted = message.has_fds() ? message.keys.size() : 0;
    if (has_lost ? count_fds >= wanted : count_fds != wanted) return std::nullopt;
    if (message.verb == KeeperVerb::next) {
        if (has_all) return std::nullopt;
        return hand_over();
    }
    if (!has_all) return std::nullopt;
    switch (message.verb) {
        case KeeperVerb::keep:
            for (std::size_t i = 0; i < count_fds; ++i) {
                if (held.size() >= capacity && !held.contains(message.keys[i]))
                    fail(ENOSPC);
                else
                    held.insert(message.keys[i]);
            }
            if (has_lost) fail(EMFILE);
            return 0;
        case KeeperVerb::forget:
            for (const KeptKey& key : message.keys) held.erase(key);
            return 0;
        case KeeperVerb::sync: return 0;
        case KeeperVerb::end: held.clear(); return 0;
        default: return std::nullopt;
    }
}

void check_reply(const KeeperReply& reply, const KeeperMessage& message, std::size_t count_given,
                 Model& model) {
    GM_CHECK(reply.is_end == (message.verb == KeeperVerb::end));
    if (message.verb == KeeperVerb::next) {
        GM_CHECK(reply.message->verb == KeeperVerb::holding);
        GM_CHECK(reply.fds.size() == count_given && reply.message->keys.size() == count_given);
        return;
    }
    GM_CHECK(reply.message.has_value() == (message.number != 0));
    if (!reply.message) return;
    GM_CHECK(reply.message->number == message.number);
    GM_CHECK(reply.message->status == std::exchange(model.failure, 0));
}

void play(std::span<const std::uint8_t> input) {
    KeptTable table{capacity};
    KeeperSession session{table};
    Model model;
    const Fd null = open_file("/dev/null", OpenMode::read).value();
    for (std::size_t turn = 0; turn < max_messages && input.size() >= 4; ++turn) {
        KeeperMessage message{.verb = verbs.at(input[0] % verbs.size()), .number = input[0] / 128U};
        for (std::uint32_t i = 0; i < input[1] % 8U; ++i)
            message.keys.push_back(
                {.kind = static_cast<KeptKind>(input[3] % 2), .share = 0, .index = (input[3] + i) % 16});
        const bool has_lost = input[2] >= 128;
        std::vector<Fd> fds;
        for (std::uint32_t i = 0; i < input[2] % 8U; ++i) fds.push_back(null.duplicate().value());
        input = input.subspan(4);

        const auto decoded = decode_keeper_message(encode(message));
        if (!decoded) continue;
        GM_CHECK(*decoded == message);
        const auto expected = model.take(message, fds.size(), has_lost);
        const KeeperReply reply = session.take(message, std::move(fds), has_lost);
        GM_CHECK(reply.is_over == !expected.has_value());
        if (!expected) {
            // The next service meets what this one has left.
            session = KeeperSession{table};
            model.has_all = false;
            model.last.reset();
            model.failure = 0;
        } else {
            check_reply(reply, message, *expected, model);
        }
        GM_CHECK(session.is_handed_over() == model.has_all);
        GM_CHECK(table.size() == model.held.size());
        for (const KeptKey& key : model.held) GM_CHECK(table.fds().contains(key));
    }
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::uint64_t before = guestmem::count_open_descriptors().value();
    const std::span<const std::uint8_t> rest{data + 1, size - 1};
    if (data[0] % 2 == 0) {
        guestmem::share::decode_one(std::as_bytes(rest));
    } else {
        guestmem::share::play(rest);
    }
    GM_CHECK(guestmem::count_open_descriptors().value() == before);
    return 0;
}

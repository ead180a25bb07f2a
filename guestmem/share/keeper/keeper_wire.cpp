// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_wire.hpp"

#include <fmt/format.h>

#include <cerrno>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"

namespace guestmem::share {
namespace {

constexpr std::size_t verb_at = 4;
constexpr std::size_t count_at = 6;
constexpr std::size_t number_at = 8;
constexpr std::size_t status_at = 12;
constexpr std::size_t values_at = 16;
constexpr std::size_t key_share_at = 4;
constexpr std::size_t key_index_at = 8;
constexpr auto last_kind = static_cast<std::uint32_t>(KeptKind::bell);

template <typename T>
T load_at(std::span<const std::byte> bytes, std::size_t at) {
    return load_little<T>(bytes.subspan(at).first<sizeof(T)>());
}

template <typename T>
void store_at(std::span<std::byte> bytes, std::size_t at, T value) {
    store_little<T>(bytes.subspan(at).first<sizeof(T)>(), value);
}

Error corrupt(std::string text) { return Error{Errc::corrupt, EPROTO, "keeper message: " + std::move(text)}; }

bool is_known(std::uint16_t verb) {
    return (verb >= static_cast<std::uint16_t>(KeeperVerb::welcome) &&
            verb <= static_cast<std::uint16_t>(KeeperVerb::done)) ||
           (verb >= static_cast<std::uint16_t>(KeeperVerb::next) &&
            verb <= static_cast<std::uint16_t>(KeeperVerb::end));
}

/// How many keys a message of this kind may have.
struct CountRange {
    std::size_t least = 0;
    std::size_t most = 0;
};
CountRange counts_of(KeeperVerb verb) {
    switch (verb) {
        case KeeperVerb::keep:
        case KeeperVerb::forget: return {.least = 1, .most = max_keys_per_message};
        case KeeperVerb::holding: return {.least = 0, .most = max_keys_per_message};
        default: return {};
    }
}

}  // namespace

std::vector<std::byte> encode(const KeeperMessage& message) {
    GM_CHECK(message.keys.size() <= max_keys_per_message);
    std::vector<std::byte> packet(keeper_header_bytes + message.keys.size() * keeper_key_bytes);
    const std::span<std::byte> bytes{packet};
    store_at(bytes, 0, keeper_magic);
    store_at(bytes, verb_at, static_cast<std::uint16_t>(message.verb));
    store_at(bytes, count_at, static_cast<std::uint16_t>(message.keys.size()));
    store_at(bytes, number_at, message.number);
    store_at(bytes, status_at, message.status);
    for (std::size_t i = 0; i < message.values.size(); ++i)
        store_at(bytes, values_at + i * sizeof(std::uint32_t), message.values.at(i));
    std::span<std::byte> rest = bytes.subspan(keeper_header_bytes);
    for (const KeptKey& key : message.keys) {
        store_at(rest, 0, static_cast<std::uint32_t>(key.kind));
        store_at(rest, key_share_at, key.share);
        store_at(rest, key_index_at, key.index);
        rest = rest.subspan(keeper_key_bytes);
    }
    return packet;
}

Result<KeeperMessage> decode_keeper_message(std::span<const std::byte> packet) {
    if (packet.size() < keeper_header_bytes)
        return corrupt(fmt::format("{} bytes; the header has {}", packet.size(), keeper_header_bytes));
    if (load_at<std::uint32_t>(packet, 0) != keeper_magic) return corrupt("it begins with another magic");
    const auto verb = load_at<std::uint16_t>(packet, verb_at);
    if (!is_known(verb)) return corrupt(fmt::format("verb {} is unknown", verb));
    KeeperMessage message{.verb = static_cast<KeeperVerb>(verb),
                          .number = load_at<std::uint32_t>(packet, number_at),
                          .status = load_at<std::uint32_t>(packet, status_at)};
    const std::size_t count = load_at<std::uint16_t>(packet, count_at);
    const CountRange allowed = counts_of(message.verb);
    if (count < allowed.least || count > allowed.most)
        return corrupt(
            fmt::format("{} keys for verb {}; it has {} to {}", count, verb, allowed.least, allowed.most));
    if (packet.size() != keeper_header_bytes + count * keeper_key_bytes)
        return corrupt(fmt::format("{} bytes with {} keys", packet.size(), count));
    for (std::size_t i = 0; i < message.values.size(); ++i)
        message.values.at(i) = load_at<std::uint32_t>(packet, values_at + i * sizeof(std::uint32_t));
    message.keys.reserve(count);
    for (auto rest = packet.subspan(keeper_header_bytes); !rest.empty();
         rest = rest.subspan(keeper_key_bytes)) {
        // The three bytes behind the kind are zero: read as one integer they are checked too.
        const auto kind = load_at<std::uint32_t>(rest, 0);
        if (kind > last_kind) return corrupt(fmt::format("a key of kind {}", kind));
        message.keys.push_back({.kind = static_cast<KeptKind>(kind),
                                .share = load_at<std::uint32_t>(rest, key_share_at),
                                .index = load_at<std::uint32_t>(rest, key_index_at)});
    }
    return message;
}

}  // namespace guestmem::share

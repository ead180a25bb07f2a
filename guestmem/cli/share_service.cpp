// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/share_service.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <span>
#include <thread>

#include "guestmem/base/endian.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/presence.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

constexpr int join_timeout_ms = 10'000;

Result<std::optional<std::uint32_t>> parse_peer(const std::string& word) {
    if (word == "all") return std::optional<std::uint32_t>{};
    std::uint32_t number = 0;
    const auto [rest, status] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (status != std::errc{} || rest != word.data() + word.size())
        return Error{Errc::invalid_argument, fmt::format("peer '{}': write an id, as in 1, or 'all'", word)};
    return std::optional{number};
}

}  // namespace

Result<ShareService> ShareService::connect(const std::string& control) {
    return ShareService{
        GM_TRY(control::Client::connect(control.empty() ? share::default_control_path() : control))};
}

Result<std::string> ShareService::call(const std::string& name, const std::string& arguments) {
    return GM_TRY(client_.call(name, arguments)).result;
}

Result<share::ShareStatus> ShareService::stat(const std::string& name) {
    const std::string result = GM_TRY(call("share.stat", to_json(share::NamedCall{name})));
    return share::parse_share_status(result);
}

Result<std::pair<Mapping, std::uint64_t>> ShareService::map(const std::string& name, MapAccess access) {
    auto answer = GM_TRY(client_.call("share.memory", to_json(share::NamedCall{name})));
    const auto reply = GM_TRY(share::parse_memory_reply(answer.result));
    if (answer.fds.size() != 1) return Error{Errc::corrupt, "the service sent no memory"};
    // Files and shm objects have no seals; the service's user alone may cut them.
    Mapping mapping = GM_TRY(Mapping::create(answer.fds.front(), reply.extent_bytes, access));
    if (mapping.bytes().size() < reply.size_bytes)
        return Error{Errc::corrupt, fmt::format("share '{}': the service says {} bytes and sent {}", name,
                                                reply.size_bytes, mapping.bytes().size())};
    return std::pair{std::move(mapping), reply.size_bytes};
}

Result<bool> ShareService::wait_ready(const std::string& name, const std::string& peer,
                                      std::optional<std::uint64_t> ready_word, double timeout_seconds) {
    constexpr std::chrono::milliseconds pause{2};
    const auto number = GM_TRY(parse_peer(peer));
    if (!number) return Error{Errc::invalid_argument, "--wait-ready is for one peer, not for 'all'"};
    auto answer = GM_TRY(client_.call("share.memory", to_json(share::NamedCall{name, true})));
    const auto reply = GM_TRY(share::parse_memory_reply(answer.result));
    if (answer.fds.size() != 2) return Error{Errc::corrupt, "the service sent no presence pages"};
    const Mapping memory = GM_TRY(Mapping::create(answer.fds[0], reply.size_bytes, MapAccess::read_only));
    const share::PresenceReader presence = GM_TRY(share::PresenceReader::map(answer.fds[1]));
    std::array<std::byte, 4> word{};
    if (ready_word && (*ready_word % word.size() != 0 || reply.size_bytes - word.size() < *ready_word))
        return Error{Errc::out_of_range, fmt::format("--ready-word {}: a multiple of 4 below {} is meant",
                                                     *ready_word, reply.size_bytes)};
    const Deadline deadline{std::chrono::milliseconds{static_cast<std::int64_t>(timeout_seconds * 1000)}};
    for (;;) {
        if (ready_word) copy_from_shared(word, memory.bytes().subspan(*ready_word, word.size()));
        const bool is_listening = !ready_word || load_little<std::uint32_t>(word) != 0;
        if (presence.is_present(*number) && is_listening) return true;
        if (deadline.has_passed()) return false;
        std::this_thread::sleep_for(pause);
    }
}

Result<share::Client> ShareService::attach(const std::string& name) {
    // A client holds a descriptor for every vector of every slot.
    raise_descriptor_limit();
    const share::ShareStatus status = GM_TRY(stat(name));
    auto answer = GM_TRY(client_.call("share.attach", to_json(share::NamedCall{name})));
    GM_TRY(share::parse_attach_reply(answer.result));
    if (answer.fds.size() != 1) return Error{Errc::corrupt, "the service sent no connection"};
    share::Client client = GM_TRY(share::Client::adopt(std::move(answer.fds.front())));
    GM_TRY(client.join(status.summary.vectors, join_timeout_ms));
    return client;
}

Result<share::RingReply> ShareService::ring(const std::string& name, const std::string& peer,
                                            std::uint32_t vector) {
    const auto id = GM_TRY(parse_peer(peer));
    const share::RingCall ring{.share = name, .peer = id, .vector = vector};
    const std::string result = GM_TRY(call("share.ring", to_json(ring)));
    return share::parse_ring_reply(result);
}

Result<void> ShareService::check_ring(const std::string& name, const std::string& peer,
                                      std::uint32_t vector) {
    const auto id = GM_TRY(parse_peer(peer));
    const share::ShareStatus status = GM_TRY(stat(name));
    if (vector >= status.summary.vectors)
        return Error{Errc::out_of_range, fmt::format("share '{}': vector {} where the vectors are 0 to {}",
                                                     name, vector, status.summary.vectors - 1)};
    const bool has_doorbell = !id || std::ranges::count(status.pending, *id, &share::PendingKicks::slot) != 0;
    if (!has_doorbell)
        return Error{Errc::out_of_range, fmt::format("share '{}': no peer {} can be rung", name, *id)};
    return {};
}

Result<void> store(ShareService& service, const std::string& share, std::uint64_t offset,
                   std::string_view bytes) {
    const auto [mapping, size] = GM_TRY(service.map(share, MapAccess::read_write));
    if (offset > size || bytes.size() > size - offset)
        return Error{Errc::out_of_range,
                     fmt::format("share '{}': {} bytes at offset {} do not fit into its {} bytes; "
                                 "nothing was written",
                                 share, bytes.size(), offset, size)};
    copy_to_shared(mapping.bytes().subspan(offset), std::as_bytes(std::span{bytes}));
    return {};
}

}  // namespace guestmem::cli

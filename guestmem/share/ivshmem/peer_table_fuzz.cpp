// SPDX-License-Identifier: Apache-2.0
/// Fuzzes peer_table.hpp: a hostile ivshmem server that sends any values with any descriptors.
///
/// Input: messages of one byte, or nine. The two low bits are what comes along (nothing, an eventfd, a memfd,
/// /dev/null); the other six are the value: an id below 48, or one of some values at the edges, the last of which
/// stands for the eight bytes that follow. With an odd number of bytes the table expects callers.
/// Asserts: the table agrees with a naive map on what is accepted, on what it says, and on what it holds: a ring
/// of each doorbell arrives at the descriptor that was sent. A refusal changes nothing. No descriptor is left.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/share/ivshmem/peer_table.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

constexpr std::size_t max_messages = 400;
constexpr std::size_t count_small_ids = 48;
constexpr std::array<std::int64_t, 15> edges{-1,
                                             -2,
                                             -16,
                                             -28,
                                             -4095,
                                             -4096,
                                             65'535,
                                             65'536,
                                             1'000'000,
                                             std::int64_t{1} << 32,
                                             4095,
                                             255,
                                             std::int64_t{1} << 31,
                                             INT64_MAX,
                                             INT64_MIN};

enum class Kind : std::uint8_t { none, eventfd, memory, null_device };

struct Message {
    Kind kind = Kind::none;
    std::int64_t value = 0;
};

/// The next message, cut off the input; nothing at its end.
std::optional<Message> next_message(std::span<const std::uint8_t>& input) {
    if (input.empty()) return std::nullopt;
    const std::uint8_t byte = input.front();
    input = input.subspan(1);
    Message message{.kind = static_cast<Kind>(byte & 3), .value = byte >> 2};
    const auto selector = static_cast<std::size_t>(byte >> 2);
    if (selector < count_small_ids) return message;
    if (selector - count_small_ids < edges.size()) {
        message.value = edges[selector - count_small_ids];
        return message;
    }
    if (input.size() < sizeof message.value) return std::nullopt;
    std::memcpy(&message.value, input.data(), sizeof message.value);
    input = input.subspan(sizeof message.value);
    return message;
}

/// The descriptor to send, and for an eventfd a second one of the same file.
struct Cargo {
    std::optional<Fd> fd;
    std::optional<EventFd> twin;
};

Cargo make_cargo(Kind kind) {
    Cargo cargo;
    switch (kind) {
        case Kind::none: break;
        case Kind::eventfd:
            cargo.fd = Fd{::eventfd(0, EFD_CLOEXEC)};
            cargo.twin = EventFd::adopt(cargo.fd->duplicate().value()).value();
            break;
        case Kind::memory:
            cargo.fd = Fd{::memfd_create("fuzz", MFD_CLOEXEC)};
            GM_CHECK(::ftruncate(cargo.fd->view().number(), 4096) == 0);
            break;
        case Kind::null_device: cargo.fd = open_file("/dev/null", OpenMode::read_write).value(); break;
    }
    return cargo;
}

/// The protocol as a child would write it down.
struct Model {
    bool has_version = false;
    bool has_memory = false;
    std::optional<std::uint32_t> own_id;
    std::map<std::uint32_t, std::vector<EventFd>> doorbells;
    bool has_callers = false;
    std::map<std::uint32_t, std::vector<EventFd>> callers;

    std::optional<Notice> take_caller(const Message& message, std::optional<EventFd> twin);
    std::optional<Notice> take(const Message& message, std::optional<EventFd> twin);
};

std::optional<Notice> Model::take_caller(const Message& message, std::optional<EventFd> twin) {
    constexpr std::int64_t mark = 0x1'0000'0000;
    if (message.value == 2 * mark && message.kind == Kind::none) {
        callers.clear();
        return Notice{.kind = NoticeKind::caller_over, .id = 0, .vector = 0};
    }
    if (message.value > mark + 15) return std::nullopt;
    const auto id = static_cast<std::uint32_t>(message.value - mark);
    if (message.kind == Kind::none) {
        callers.erase(id);
        return Notice{.kind = NoticeKind::caller_over, .id = id, .vector = 0};
    }
    if (message.kind != Kind::eventfd) return std::nullopt;
    callers[id].push_back(std::move(*twin));
    return Notice{
        .kind = NoticeKind::caller, .id = id, .vector = static_cast<std::uint32_t>(callers[id].size() - 1)};
}

std::optional<Notice> Model::take(const Message& message, std::optional<EventFd> twin) {
    const bool is_id = message.value >= 0 && message.value <= 65'535;
    const auto id = static_cast<std::uint32_t>(is_id ? message.value : 0);
    if (!has_version) {
        if (message.value != 0 || message.kind != Kind::none) return std::nullopt;
        has_version = true;
        return Notice{.kind = NoticeKind::version, .id = 0, .vector = 0};
    }
    if (!own_id) {
        if (!is_id || message.kind != Kind::none) return std::nullopt;
        own_id = id;
        return Notice{.kind = NoticeKind::own_id, .id = id, .vector = 0};
    }
    if (!has_memory) {
        if (message.value != -1 || message.kind != Kind::memory) return std::nullopt;
        has_memory = true;
        return Notice{.kind = NoticeKind::memory, .id = *own_id, .vector = 0};
    }
    if (has_callers && message.value >= 0x1'0000'0000) return take_caller(message, std::move(twin));
    if (!is_id) return std::nullopt;
    if (message.kind == Kind::none) {
        if (id == *own_id || doorbells.erase(id) == 0) return std::nullopt;
        return Notice{.kind = NoticeKind::gone, .id = id, .vector = 0};
    }
    if (message.kind != Kind::eventfd) return std::nullopt;
    doorbells[id].push_back(std::move(*twin));
    return Notice{.kind = NoticeKind::doorbell,
                  .id = id,
                  .vector = static_cast<std::uint32_t>(doorbells[id].size() - 1)};
}

using Bells = std::map<std::uint32_t, std::vector<EventFd>>;

void check_agreement(const Bells& table, const Bells& model) {
    GM_CHECK(table.size() == model.size());
    for (const auto& [id, twins] : model) {
        const auto found = table.find(id);
        GM_CHECK(found != table.end() && found->second.size() == twins.size());
        for (std::size_t vector = 0; vector < twins.size(); ++vector) {
            GM_CHECK(found->second[vector].ring().has_value());
            GM_CHECK(twins[vector].drain().value() == 1);
        }
    }
}

void check_agreement(const PeerTable& table, const Model& model) {
    GM_CHECK(table.own_id() == model.own_id);
    GM_CHECK(table.memory().is_open() == model.has_memory);
    check_agreement(table.doorbells(), model.doorbells);
    check_agreement(table.callers(), model.callers);
}

void play(std::span<const std::uint8_t> input) {
    PeerTable table;
    Model model;
    model.has_callers = input.size() % 2 != 0;
    if (model.has_callers) table.expect_callers();
    for (std::size_t count = 0; count < max_messages; ++count) {
        const auto message = next_message(input);
        if (!message) break;
        Cargo cargo = make_cargo(message->kind);
        const auto said = table.take(message->value, std::move(cargo.fd));
        const auto expected = model.take(*message, std::move(cargo.twin));
        GM_CHECK(said.has_value() == expected.has_value());
        if (!expected) continue;
        GM_CHECK(said->kind == expected->kind && said->id == expected->id);
        GM_CHECK(said->vector == expected->vector);
    }
    check_agreement(table, model);
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::uint64_t before = guestmem::count_open_descriptors().value();
    guestmem::share::play({data, size});
    GM_CHECK(guestmem::count_open_descriptors().value() == before);
    return 0;
}

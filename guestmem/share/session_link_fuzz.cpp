// SPDX-License-Identifier: Apache-2.0
/// Fuzzes session_link.hpp: a hostile share service that answers share.attach with any text and any descriptors, and
/// speaks any ivshmem handshake on the stream among them.
///
/// Input: the number of messages that wait in the stream, and two bytes for each: what comes along (nothing or one of
/// the things below) and which value. The number of descriptors, and a byte for each: what it is. The rest is the
/// answer.
/// Asserts: an error says something; a link that is accepted has what its facts say; no descriptor is left.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/control/client.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/share/session_link.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem::share {
namespace {

constexpr std::size_t max_messages = 40;
constexpr std::size_t max_fds = 24;
constexpr std::array<std::int64_t, 10> values{0, -1, 1, 2, 3, 15, 65'535, 65'536, -13, INT64_MIN};

using Input = std::span<const std::uint8_t>;

std::uint8_t next_byte(Input& input) {
    if (input.empty()) return 0;
    const std::uint8_t byte = input.front();
    input = input.subspan(1);
    return byte;
}

Fd page_of_presence() {
    auto writer = PresenceWriter::create(2, 1);
    if (!writer) return {};
    auto reader = writer->read_only();
    return reader ? std::move(*reader) : Fd{};
}

/// The things that a descriptor may be; `stream` is given out once.
Fd make(std::uint8_t kind, Fd& stream) {
    switch (kind % 8) {
        case 0: return std::move(stream);
        case 1: return page_of_presence();
        case 2: return Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
        case 3: {
            auto memory = create_sealed_memory({.name = "m", .size_bytes = 65'536});
            return memory ? std::move(*memory) : Fd{};
        }
        case 4: {
            auto page = create_sender_page();
            return page ? std::move(*page) : Fd{};
        }
        case 5: {
            auto null = open_file("/dev/null", OpenMode::read_write);
            return null ? std::move(*null) : Fd{};
        }
        case 6: return Fd{::memfd_create("unsealed", MFD_CLOEXEC)};
        default: return {};
    }
}

void attack(Input input) {
    auto ends = UnixStream::pair();
    if (!ends) return;
    auto [ours, theirs] = std::move(*ends);
    if (!theirs.set_nonblocking()) return;
    Fd none;
    const std::size_t count_messages = next_byte(input) % (max_messages + 1);
    for (std::size_t i = 0; i < count_messages; ++i) {
        const std::uint8_t kind = next_byte(input);
        const IvshmemMessage message = encode_ivshmem(values.at(next_byte(input) % values.size()));
        const Fd fd = make(kind, none);
        const FdView view = fd.view();
        // What does not fit any more is not sent.
        static_cast<void>(theirs.send(message, {&view, fd.is_open() ? 1U : 0U}).has_value());
    }
    Fd stream = std::move(ours).release();
    control::ClientAnswer answer;
    const std::size_t count_fds = next_byte(input) % (max_fds + 1);
    for (std::size_t i = 0; i < count_fds; ++i) answer.fds.push_back(make(next_byte(input), stream));
    answer.result = std::string{reinterpret_cast<const char*>(input.data()), input.size()};
    theirs = UnixStream{};

    SessionOptions options;
    options.share = "m";
    const auto link = enter_link(std::move(answer), options, Deadline{std::chrono::milliseconds{20}});
    if (!link) {
        GM_CHECK(!link.error().message().empty());
        return;
    }
    GM_CHECK(link->own_bells().size() >= link->facts.vectors);
    GM_CHECK(link->memory.size_bytes >= link->facts.size_bytes);
    GM_CHECK(link->presence.slots() <= max_presence_slots);
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto before = guestmem::count_open_descriptors();
    guestmem::share::attack({data, size});
    const auto after = guestmem::count_open_descriptors();
    GM_CHECK(!before || !after || *before == *after);
    return 0;
}

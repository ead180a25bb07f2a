// SPDX-License-Identifier: Apache-2.0
/// Joins a share through an ivshmem socket, as a host program beside the virtual machines: says who it is, rings
/// vector 0 of a peer, and waits until somebody rings its own.
///
///     example_ring /run/guestmem/mailbox.sock 2 0
///
/// The second word is the number of vectors of the share, which the ivshmem protocol does not tell
/// (`guestmem share list` does); the third is the peer.
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>

#include "guestmem/share/ivshmem/client.hpp"

namespace {

using guestmem::Errc;
using guestmem::Error;
using guestmem::MapAccess;
using guestmem::Mapping;
using guestmem::Result;
using guestmem::share::Client;

constexpr int join_timeout_ms = 10'000;
constexpr int kick_timeout_ms = 30'000;

Result<std::uint32_t> parse_number(std::string_view word) {
    std::uint32_t number = 0;
    const auto [rest, status] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (status != std::errc{} || rest != word.data() + word.size())
        return Error{Errc::invalid_argument, "not a number: " + std::string{word}};
    return number;
}

Result<void> ring_and_wait(const char* socket, std::uint32_t vectors, std::uint32_t peer) {
    Client client = GM_TRY(Client::connect(socket));
    GM_TRY(client.join(vectors, join_timeout_ms));
    const Mapping memory = GM_TRY(client.map(MapAccess::read_write));
    std::printf("id %u, %zu bytes, %zu ids with doorbells\n", *client.table().own_id(), memory.bytes().size(),
                client.table().doorbells().size());

    GM_TRY(client.ring(peer, 0));
    std::printf("rang %u\n", peer);
    // Others may read this through a pipe while the program waits.
    std::fflush(stdout);

    const std::uint64_t kicks = GM_TRY(client.wait(0, kick_timeout_ms));
    if (kicks == 0) return Error{Errc::timed_out, "nobody rang"};
    std::printf("was rung %llu times\n", static_cast<unsigned long long>(kicks));
    return {};
}

Result<void> run(const char* socket, std::string_view vectors, std::string_view peer) {
    return ring_and_wait(socket, GM_TRY(parse_number(vectors)), GM_TRY(parse_number(peer)));
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) {
        std::fprintf(stderr, "usage: %s SOCKET VECTORS PEER\n", words[0]);
        return 2;
    }
    if (const auto done = run(words[1], words[2], words[3]); !done) {
        std::fprintf(stderr, "%s: %s\n", words[0], done.error().message().c_str());
        return 1;
    }
    return 0;
}

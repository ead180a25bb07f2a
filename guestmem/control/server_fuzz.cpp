// SPDX-License-Identifier: Apache-2.0
/// Fuzzes server.hpp: a hostile caller on a live server, through its real socket.
///
/// Input: chunks of one byte and what it announces. The low six bits are the length of the bytes that follow, sent
/// as they are; bit 6 puts a descriptor on them; bit 7 lets the server work before the next chunk.
/// A caller that sends descriptors is closed.
/// Asserts: the answers are those that a reader of whole lines would give, in order, up to the first line that
/// cannot be decoded; each decodes and brings the descriptors that it announces. When the caller is gone the
/// server holds neither a connection nor a descriptor more than before.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/control/server.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::control {
namespace {

constexpr std::size_t max_turns = 100'000;

/// Echoes the arguments; "fd" brings as many descriptors as the id says, "no" is refused.
Result<Outcome> answer(const Request& request) {
    if (request.call == "no") return Error{Errc::busy, EBUSY, "no"};
    Outcome outcome{.result = request.arguments, .fds = {}};
    if (request.call == "fd")
        for (std::uint64_t i = 0; i < request.id % 4; ++i)
            outcome.fds.push_back(GM_TRY(open_file("/dev/null", OpenMode::read)));
    return outcome;
}

struct TemporaryFolder {
    std::string path;

    TemporaryFolder() {
        std::string name = std::filesystem::temp_directory_path() / "guestmem-fuzz-XXXXXX";
        GM_CHECK(::mkdtemp(name.data()) != nullptr);
        path = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

struct World {
    TemporaryFolder folder;
    std::string path = folder.path + "/control";
    EventLoop loop = EventLoop::create().value();
    Server server =
        Server::create(loop, {.socket = {.path = path, .owner = {}, .group = {}, .mode = 0600}},
                       [](const PeerCredentials&, const Request& request) { return answer(request); })
            .value();

    void work() { GM_CHECK(loop.run_once(0).has_value()); }
};

struct Caller {
    UnixStream stream;
    std::string got;
    std::vector<Fd> fds;
    bool is_closed = false;

    void receive();
    void send(World& world, std::span<const std::uint8_t> bytes, FdView fd);
};

void Caller::receive() {
    std::array<std::byte, 16 * 1024> buffer;
    while (!is_closed) {
        auto received = stream.receive(buffer);
        // The server closed with bytes of ours unread: the kernel says so after the answers.
        if (!received || (*received && (*received)->count_bytes == 0)) {
            is_closed = true;
        } else if (!*received) {
            return;
        } else {
            got.append(reinterpret_cast<const char*>(buffer.data()), (*received)->count_bytes);
            std::move((*received)->fds.begin(), (*received)->fds.end(), std::back_inserter(fds));
        }
    }
}

void Caller::send(World& world, std::span<const std::uint8_t> bytes, FdView fd) {
    auto rest = std::as_bytes(bytes);
    std::vector<FdView> rights;
    if (fd.is_open()) rights.push_back(fd);
    for (std::size_t turn = 0; turn < max_turns && !rest.empty(); ++turn) {
        const auto outcome = stream.send(rest, rights);
        if (!outcome) return;  // closed: what the server thinks of it is in its answers
        if (outcome->status != SendStatus::sent) {
            world.work();
            receive();
            continue;
        }
        rest = rest.subspan(outcome->count_bytes);
        rights.clear();
    }
}

/// What a reader of whole lines answers to the input.
struct Expected {
    std::vector<Answer> answers;
    bool is_ended = false;
};

Expected expect(std::string_view input) {
    Expected expected;
    while (!input.empty() && !expected.is_ended) {
        const std::size_t newline = input.find('\n');
        const bool is_whole = newline != std::string_view::npos;
        const std::string_view line = input.substr(0, newline);
        input.remove_prefix(is_whole ? newline + 1 : input.size());
        if (!is_whole && line.size() <= max_request_bytes) break;
        Answer& said = expected.answers.emplace_back();
        const auto request = decode_request(line);
        if (!request) {
            said.error = request.error();
            expected.is_ended = true;
            break;
        }
        said.id = request->id;
        auto outcome = answer(*request);
        if (outcome) {
            said.result = outcome->result;
            said.count_fds = static_cast<std::uint32_t>(outcome->fds.size());
        } else {
            said.error = std::move(outcome).error();
        }
    }
    return expected;
}

/// `is_cut`: the caller sent descriptors, which ends it wherever the server sees them; what it got until then is
/// still the beginning of what a reader of lines answers.
void check_answers(std::string_view got, const Expected& expected, std::size_t count_fds, bool is_cut) {
    std::size_t announced = 0;
    for (const Answer& wanted : expected.answers) {
        const std::size_t newline = got.find('\n');
        if (is_cut && newline == std::string_view::npos) break;
        GM_CHECK(newline != std::string_view::npos);
        const auto said = decode_answer(got.substr(0, newline));
        got.remove_prefix(newline + 1);
        GM_CHECK(said.has_value());
        GM_CHECK(said->id == wanted.id && said->result == wanted.result);
        GM_CHECK(said->error.has_value() == wanted.error.has_value());
        if (wanted.error) GM_CHECK(said->error->code() == wanted.error->code());
        GM_CHECK(said->count_fds == wanted.count_fds);
        announced += said->count_fds;
    }
    GM_CHECK(got.empty() || is_cut);
    GM_CHECK(announced == count_fds);
}

void play(World& world, std::span<const std::uint8_t> input) {
    Caller caller{.stream = UnixStream::connect(world.path).value(), .got = {}, .fds = {}};
    GM_CHECK(caller.stream.set_nonblocking().has_value());
    const Fd passenger = open_file("/dev/null", OpenMode::read).value();
    std::string sent;
    bool has_sent_fds = false;
    while (!input.empty()) {
        const std::uint8_t head = input.front();
        const auto chunk = input.subspan(1, std::min<std::size_t>(head & 63, input.size() - 1));
        input = input.subspan(1 + chunk.size());
        sent.append(chunk.begin(), chunk.end());
        const bool has_fd = (head & 64) != 0 && !chunk.empty();
        has_sent_fds = has_sent_fds || has_fd;
        caller.send(world, chunk, has_fd ? passenger.view() : FdView{});
        if ((head & 128) != 0) world.work();
    }
    ::shutdown(caller.stream.view().number(), SHUT_WR);
    for (std::size_t turn = 0; turn < max_turns && !caller.is_closed; ++turn) {
        world.work();
        caller.receive();
    }
    GM_CHECK(caller.is_closed);
    check_answers(caller.got, expect(sent), caller.fds.size(), has_sent_fds);
}

}  // namespace
}  // namespace guestmem::control

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static guestmem::control::World world;
    const std::uint64_t before = guestmem::count_open_descriptors().value();
    guestmem::control::play(world, {data, size});
    for (int turn = 0; turn < 100 && world.server.count_connections() != 0; ++turn) world.work();
    GM_CHECK(world.server.count_connections() == 0);
    // What carried descriptors is closed by a thread.
    const auto has_more = [&] { return guestmem::count_open_descriptors().value() != before; };
    for (int turn = 0; turn < 2000 && has_more(); ++turn) GM_CHECK(world.loop.run_once(1).has_value());
    GM_CHECK(!has_more());
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <optional>
#include <sstream>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::cli {
namespace {

constexpr std::string_view help_text =
    "dump              the ids and vectors that are known\n"
    "int PEER VECTOR   ring one vector of a peer\n"
    "int PEER all      ring all vectors of a peer\n"
    "int all           ring all vectors of all other peers\n"
    "help, ?           this text\n";

std::optional<std::uint32_t> to_number(std::string_view word) {
    std::uint32_t number = 0;
    const auto [rest, status] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (status != std::errc{} || rest != word.data() + word.size()) return std::nullopt;
    return number;
}

class Prompt {
public:
    Prompt(share::Client client, bool is_verbose) : client_(std::move(client)), is_verbose_(is_verbose) {}

    /// Until the input or the server ends.
    Result<void> run();

private:
    [[nodiscard]] const std::vector<EventFd>* own_bells() const {
        const auto id = client_.table().own_id();
        return id ? client_.table().find(*id) : nullptr;
    }
    Result<void> greet();
    Result<bool> take_input();
    Result<void> take_message();
    Result<void> take_kicks();
    void obey(std::string_view line);
    void dump() const;
    void ring_all_of(std::uint32_t peer) const;
    void invite() const {
        if (is_stdin_terminal()) print("cmd> ");
    }

    share::Client client_;
    bool is_verbose_;
    bool has_server_ = true;
    std::string input_;
};

void Prompt::dump() const {
    const auto& table = client_.table();
    if (!table.own_id()) return print("the server has not told an id yet\n");
    const auto print_vectors = [](const std::vector<EventFd>& bells) {
        for (std::size_t vector = 0; vector < bells.size(); ++vector)
            print(fmt::format("  vector {} is enabled (fd={})\n", vector, bells[vector].view().number()));
    };
    print(fmt::format("our_id = {}\n", *table.own_id()));
    if (const auto* bells = own_bells()) print_vectors(*bells);
    for (const auto& [id, bells] : table.doorbells()) {
        if (id == *table.own_id()) continue;
        print(fmt::format("peer_id = {}\n", id));
        print_vectors(bells);
    }
}

void Prompt::ring_all_of(std::uint32_t peer) const {
    const auto* bells = client_.table().find(peer);
    if (bells == nullptr) return print(fmt::format("cannot find peer_id = {}\n", peer));
    for (const EventFd& bell : *bells)
        if (auto status = bell.ring(); !status) print(status.error().message() + "\n");
}

void Prompt::obey(std::string_view line) {
    std::istringstream words{std::string{line}};
    std::string verb;
    std::string first;
    std::string second;
    words >> verb >> first >> second;
    if (verb.empty()) return;
    if (verb == "help" || verb == "?") return print(help_text);
    if (verb == "dump") return dump();
    if (verb == "int" && first == "all" && second.empty()) {
        for (const auto& [id, bells] : client_.table().doorbells())
            if (id != client_.table().own_id()) ring_all_of(id);
        return;
    }
    const auto peer = to_number(first);
    const auto vector = to_number(second);
    if (verb != "int" || !peer || (!vector && second != "all"))
        return print(fmt::format("unknown command '{}'; 'help' lists them\n", to_printable(line)));
    if (!vector) return ring_all_of(*peer);
    if (client_.table().find(*peer) == nullptr)
        return print(fmt::format("cannot find peer_id = {}\n", *peer));
    if (auto status = client_.ring(*peer, *vector); !status) print(status.error().message() + "\n");
}

Result<bool> Prompt::take_input() {
    std::array<std::byte, 4096> buffer;
    const std::size_t count = GM_TRY(read_some(FdView{0}, buffer));
    input_.append(reinterpret_cast<const char*>(buffer.data()), count);
    if (count == 0) input_ += '\n';
    std::size_t end = 0;
    while ((end = input_.find_first_of("\n;")) != std::string::npos) {
        obey(std::string_view{input_}.substr(0, end));
        input_.erase(0, end + 1);
    }
    if (count != 0) invite();
    return count != 0;
}

Result<void> Prompt::take_message() {
    auto notice = client_.receive(0);
    if (!notice) {
        if (notice.error().code() != Errc::unavailable) return std::move(notice).error();
        // Doorbells go on working without their server, as for every ivshmem client.
        print("disconnected from server; doorbells go on\n");
        has_server_ = false;
        return {};
    }
    if (*notice && is_verbose_) {
        static constexpr std::array<const char*, 5> kinds{"version", "own id", "memory", "doorbell", "gone"};
        print(fmt::format("server: {} id={} vector={}\n", kinds.at(static_cast<std::size_t>((*notice)->kind)),
                          (*notice)->id, (*notice)->vector));
    }
    return {};
}

Result<void> Prompt::take_kicks() {
    const auto* bells = own_bells();
    for (std::size_t vector = 0; bells != nullptr && vector < bells->size(); ++vector)
        if (GM_TRY((*bells)[vector].drain()) != 0)
            print(fmt::format("receive notification from peer_id={} vector={}\n", *client_.table().own_id(),
                              vector));
    return {};
}

/// The protocol has no end of the handshake: it is over when the own doorbells are there and nothing follows for
/// a moment. A server without vectors is given up on after a second.
Result<void> Prompt::greet() {
    constexpr int moment_ms = 50;
    constexpr int patience_ms = 1000;
    for (;;) {
        const bool is_waiting = own_bells() == nullptr;
        if (!GM_TRY(poll_readable(client_.view(), is_waiting ? patience_ms : moment_ms)) || !has_server_)
            return {};
        GM_TRY(take_message());
    }
}

Result<void> Prompt::run() {
    GM_TRY(greet());
    invite();
    for (;;) {
        std::vector<FdView> watched{FdView{0}, has_server_ ? client_.view() : FdView{}};
        if (const auto* bells = own_bells())
            for (const EventFd& bell : *bells) watched.push_back(bell.view());
        const auto ready = GM_TRY(poll_readable(watched, -1));
        // Messages before input: commands see what the server told before them.
        bool has_input = false;
        for (const std::size_t index : ready) {
            if (index == 0) has_input = true;
            if (index == 1) GM_TRY(take_message());
        }
        GM_TRY(take_kicks());
        const bool has_more_messages = has_server_ && GM_TRY(poll_readable(client_.view(), 0));
        if (has_input && !has_more_messages && !GM_TRY(take_input())) return {};
    }
}

Result<void> run_client(const ClientOptions& options) {
    raise_descriptor_limit();
    share::Client client = options.socket.empty()
                               ? GM_TRY(GM_TRY(ShareService::connect(options.control)).attach(options.share))
                               : GM_TRY(share::Client::connect(options.socket));
    return Prompt{std::move(client), options.verbose}.run();
}

}  // namespace

int share_client(const ClientOptions& options) {
    if (options.share.empty() && options.socket.empty()) {
        fmt::print(stderr, "guestmem: which share? Give its NAME, or -S SOCKET\n");
        return exit_usage;
    }
    const auto status = run_client(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli

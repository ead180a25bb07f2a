// SPDX-License-Identifier: Apache-2.0
// The agent: what the demo and the end-to-end tests run inside a guest. It takes the ivshmem device by VFIO,
// maps the shared memory, enables all MSI-X vectors, says that it is ready, and then does what its mode says.
// `agent --help` lists the modes; guests/lib/mailbox.hpp has the layout of the memory.

#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "guests/lib/ivshmem.hpp"
#include "guests/lib/mailbox.hpp"
#include "guests/lib/result.hpp"

namespace guestmem::guest {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view usage =
    "usage: agent listen [--timeout SECONDS]              print one message and end\n"
    "       agent relay PEER VECTOR [--timeout SECONDS]   the same, then pass the message on\n"
    "       agent counter [--timeout SECONDS]             answer kicks with sequence numbers until told to stop\n"
    "Ends with an error when nothing arrives for SECONDS (120).\n";

enum class Mode { listen, relay, counter };

struct Options {
    Mode mode;
    Doorbell next;
    milliseconds timeout;
};

// One write per line: the console shows whole lines even when the kernel writes to it too.
void say(std::string line) {
    line.push_back('\n');
    for (std::string_view rest = line; !rest.empty();) {
        const ssize_t written = ::write(STDOUT_FILENO, rest.data(), rest.size());
        if (written <= 0) {
            return;
        }
        rest.remove_prefix(static_cast<std::size_t>(written));
    }
}

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
    Number value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || rest != text.data() + text.size()) {
        return std::nullopt;
    }
    return value;
}

std::optional<Options> parse_options(std::span<const char* const> words) {
    Options options{Mode::listen, {0, 0}, std::chrono::seconds(120)};
    if (words.size() >= 2 && std::string_view(words[words.size() - 2]) == "--timeout") {
        const auto seconds = parse_number<std::uint16_t>(words.back());
        if (!seconds) {
            return std::nullopt;
        }
        options.timeout = std::chrono::seconds(*seconds);
        words = words.first(words.size() - 2);
    }
    const std::string_view mode = words.empty() ? "" : words[0];
    if (mode == "listen" && words.size() == 1) {
        return options;
    }
    if (mode == "counter" && words.size() == 1) {
        options.mode = Mode::counter;
        return options;
    }
    if (mode == "relay" && words.size() == 3) {
        const auto peer = parse_number<std::uint16_t>(words[1]);
        const auto vector = parse_number<std::uint16_t>(words[2]);
        if (peer && vector) {
            options.mode = Mode::relay;
            options.next = {*peer, *vector};
            return options;
        }
    }
    return std::nullopt;
}

// Not zero, and another one for each start, so that a flag left by a killed guest is told from a fresh one.
std::uint64_t start_number() {
    std::uint64_t number = 0;
    while (number == 0) {
        if (::getrandom(&number, sizeof number, 0) != sizeof number) {
            number = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
        }
    }
    return number;
}

void say_ready(const Ivshmem& device, const Mailbox& mailbox) {
    for (std::uint32_t vector = 0; vector < max_record_vectors; ++vector) {
        mailbox.set_seen(vector, 0, 0);
    }
    mailbox.set_ready(start_number());
    say("ready: slot " + std::to_string(device.position()) + ", " + std::to_string(device.count_vectors()) +
        " vectors, " + std::to_string(device.memory_size()) + " bytes of shared memory");
}

std::unexpected<Failure> nothing_arrived(const Ivshmem& device, milliseconds timeout) {
    return failure("wait for interrupts", device.address(),
                   "nothing arrived within " + std::to_string(timeout.count() / 1000) + " s");
}

// Takes one message: the memory is cleared, so that a peer that prints it later has it from us.
Result<void> take_message(const Ivshmem& device, const Mailbox& mailbox, const Options& options) {
    auto event = device.wait(options.timeout);
    if (!event) {
        return std::unexpected(event.error());
    }
    if (event->is_timeout()) {
        return nothing_arrived(device, options.timeout);
    }
    if (event->kicks.empty()) {
        return failure("wait for interrupts", device.address(), "the device is being removed");
    }
    const std::string message = mailbox.message();
    if (options.mode == Mode::relay) {
        mailbox.clear_message();
    }
    say("received IRQ and full message: " + escaped(message));
    if (options.mode == Mode::relay) {
        mailbox.set_message(message);
        if (auto rung = device.ring(options.next); !rung) {
            return rung;
        }
        say("passed on to peer " + std::to_string(options.next.peer) + " vector " +
            std::to_string(options.next.vector));
    }
    return {};
}

enum class Outcome { stopped, removed };

Result<Outcome> count_kicks(const Ivshmem& device, const Mailbox& mailbox, milliseconds timeout) {
    std::array<std::uint64_t, max_record_vectors> interrupts{};
    while (mailbox.command() != Command::stop) {
        auto event = device.wait(timeout);
        if (!event) {
            return std::unexpected(event.error());
        }
        if (event->is_timeout()) {
            return nothing_arrived(device, timeout);
        }
        for (const Kick& kick : event->kicks) {
            if (kick.vector < max_record_vectors) {
                interrupts[kick.vector] += kick.interrupts;
                mailbox.set_seen(kick.vector, mailbox.sequence(kick.vector), interrupts[kick.vector]);
            }
        }
        if (event->wants_removal) {
            mailbox.set_ready(0);
            return Outcome::removed;
        }
    }
    mailbox.set_ready(0);
    return Outcome::stopped;
}

// An unplugged device is released and its return awaited: the address is gone from sysfs in between.
Result<void> wait_until_gone(const std::string& address, milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (has_pci_function(address)) {
        if (std::chrono::steady_clock::now() >= deadline) {
            return failure("release the device", address, "it is still there after the kernel asked for it");
        }
        std::this_thread::sleep_for(milliseconds(20));
    }
    return {};
}

// What is done with one device until it is not needed or not there any more.
Result<Outcome> serve(const std::string& address, const Options& options) {
    auto device = Ivshmem::open(address);
    if (!device) {
        return std::unexpected(device.error());
    }
    auto mailbox = Mailbox::create(device->memory(), device->memory_size(), device->position());
    if (!mailbox) {
        return std::unexpected(mailbox.error());
    }
    say_ready(*device, *mailbox);
    if (options.mode == Mode::counter) {
        return count_kicks(*device, *mailbox, options.timeout);
    }
    if (auto taken = take_message(*device, *mailbox, options); !taken) {
        return std::unexpected(taken.error());
    }
    mailbox->set_ready(0);
    return Outcome::stopped;
}

Result<void> run(const Options& options) {
    while (true) {
        auto address = wait_for_ivshmem(options.timeout);
        if (!address) {
            return std::unexpected(address.error());
        }
        auto outcome = serve(*address, options);
        if (!outcome) {
            return std::unexpected(outcome.error());
        }
        if (*outcome == Outcome::stopped) {
            return {};
        }
        if (auto gone = wait_until_gone(*address, options.timeout); !gone) {
            return gone;
        }
        say("removed: " + *address);
    }
}

}  // namespace
}  // namespace guestmem::guest

int main(int count, char** words) {
    namespace guest = guestmem::guest;
    const std::span<const char* const> arguments(words, static_cast<std::size_t>(count));
    if (count == 2 && std::string_view(words[1]) == "--help") {
        guest::say(std::string(guest::usage));
        return 0;
    }
    const auto options = guest::parse_options(arguments.subspan(count > 0 ? 1 : 0));
    if (!options) {
        guest::say(std::string(guest::usage));
        return 2;
    }
    if (auto done = guest::run(*options); !done) {
        guest::say("agent: error: " + done.error().text);
        return 1;
    }
    return 0;
}

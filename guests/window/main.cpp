// SPDX-License-Identifier: Apache-2.0
// The window: what a stock Linux can do with an ivshmem device and no driver for it. It maps registers and memory
// through sysfs, takes one message, answers it in the memory, and rings every other slot. `window --help` tells more.

#include <unistd.h>

#include <atomic>
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
#include "guests/lib/sysfs.hpp"

namespace guestmem::guest {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view usage =
    "usage: window VECTOR [--timeout SECONDS]\n"
    "Waits (120 s) for a message that ends with a full stop, puts 'answer to: MESSAGE' in its place, and rings VECTOR\n"
    "of all slots but its own.\n";

constexpr std::size_t position_register = 8 / sizeof(std::uint32_t);
constexpr std::size_t doorbell_register = 12 / sizeof(std::uint32_t);
constexpr milliseconds poll_interval{10};

struct Options {
    std::uint16_t vector = 0;
    milliseconds timeout = std::chrono::seconds(120);
};

void say(std::string line) {
    line.push_back('\n');
    static_cast<void>(!::write(STDOUT_FILENO, line.data(), line.size()));
}

std::optional<std::uint16_t> parse_number(std::string_view text) {
    std::uint16_t value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || rest != text.data() + text.size()) {
        return std::nullopt;
    }
    return value;
}

std::optional<Options> parse_options(std::span<const char* const> words) {
    Options options;
    if (words.size() == 3 && std::string_view(words[1]) == "--timeout") {
        const auto seconds = parse_number(words[2]);
        if (!seconds) {
            return std::nullopt;
        }
        options.timeout = std::chrono::seconds(*seconds);
        words = words.first(1);
    }
    if (words.size() != 1) {
        return std::nullopt;
    }
    const auto vector = parse_number(words[0]);
    if (!vector) {
        return std::nullopt;
    }
    options.vector = *vector;
    return options;
}

// The registers of BAR0; each access is one of 32 bits, in this order.
class Registers {
public:
    explicit Registers(const RegionMapping& bar) : words_(reinterpret_cast<std::uint32_t*>(bar.base())) {}
    std::uint32_t position() const { return std::atomic_ref(words_[position_register]).load(); }
    void ring(Doorbell doorbell) const {
        const std::uint32_t value = std::uint32_t{doorbell.peer} << 16 | doorbell.vector;
        std::atomic_ref(words_[doorbell_register]).store(value, std::memory_order_release);
    }

private:
    std::uint32_t* words_;
};

// There is no interrupt to wait for without a driver.
Result<std::string> wait_for_message(const Mailbox& mailbox, milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (true) {
        std::string message = mailbox.message();
        if (message.ends_with('.')) {
            return message;
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            return failure(
                "wait for a message", "mailbox",
                "nothing that ends with a full stop within " + std::to_string(timeout.count() / 1000) + " s");
        }
        std::this_thread::sleep_for(poll_interval);
    }
}

Result<void> run(const Options& options) {
    auto address = wait_for_ivshmem(options.timeout);
    if (!address) {
        return std::unexpected(address.error());
    }
    auto function = SysfsFunction::open(*address);
    if (!function) {
        return std::unexpected(function.error());
    }
    auto bar0 = function->map_bar(0);
    if (!bar0) {
        return std::unexpected(bar0.error());
    }
    auto memory = function->map_bar(2);
    if (!memory) {
        return std::unexpected(memory.error());
    }
    const Registers registers(*bar0);
    const std::uint32_t position = registers.position();
    auto mailbox = Mailbox::create(memory->base(), memory->size(), position);
    if (!mailbox) {
        return std::unexpected(mailbox.error());
    }
    say("window: ready: slot " + std::to_string(position) + ", " + std::to_string(memory->size()) +
        " bytes of shared memory");
    auto message = wait_for_message(*mailbox, options.timeout);
    if (!message) {
        return std::unexpected(message.error());
    }
    say("window: received: " + escaped(*message));
    mailbox->set_message("answer to: " + *message);
    for (std::uint16_t peer = 0; peer < max_record_slots; ++peer) {
        if (peer != position) {
            registers.ring({.peer = peer, .vector = options.vector});
        }
    }
    say("window: answered");
    return {};
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
        guest::say("window: error: " + done.error().text);
        return 1;
    }
    return 0;
}

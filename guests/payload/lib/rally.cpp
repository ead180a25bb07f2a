// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/rally.hpp"

#include "guests/payload/lib/console.hpp"
#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/report.hpp"
#include "guests/payload/lib/start_info.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint64_t ping_number = 0x00;
constexpr std::uint64_t pong_number = 0x40;
constexpr std::uint64_t pong_place = 0x80;
constexpr std::uint64_t ping_place = 0xc0;
constexpr std::uint64_t again_ms = 200;
constexpr unsigned polls_without_halt = 2000;

std::uint32_t read(const Court& court, std::uint64_t offset) {
    return read_device<std::uint32_t>(court.memory + offset);
}

void write(const Court& court, std::uint64_t offset, std::uint32_t value) {
    write_device<std::uint32_t>(court.memory + offset, value);
}

std::uint64_t patience_ms() { return number_option("timeout", 20000); }

// Until the word at `offset` is `wanted` and, with kicks, more than `kicks_before` have come.
bool wait_for_number(const Court& court, std::uint64_t offset, std::uint32_t wanted,
                     std::uint64_t kicks_before, std::uint64_t timeout_ms) {
    auto has_come = [&] {
        return read(court, offset) == wanted && (!court.has_kicks || court.count_kicks() > kicks_before);
    };
    if (!court.has_kicks)
        for (unsigned i = 0; i < polls_without_halt; ++i)
            if (has_come()) return true;
    return wait_until(has_come, timeout_ms);
}

void kick_ping(const Court& court) {
    const std::uint32_t place = read(court, ping_place);
    if (place) court.kick(place - 1);
}

}  // namespace

bool ping(const Court& court, std::uint32_t rounds) {
    write(court, ping_number, 0);
    write(court, ping_place, court.own_slot + 1);
    if (!check("rally: pong is there",
               wait_until([&] { return read(court, pong_place) != 0; }, patience_ms())))
        return false;
    const std::uint32_t peer = read(court, pong_place) - 1;
    std::uint64_t retries = 0;
    std::uint64_t fewest = ~std::uint64_t{0};
    const std::uint64_t first = read_time_stamp();
    for (std::uint32_t round = 1; round <= rounds; ++round) {
        const std::uint64_t kicks = court.count_kicks();
        const std::uint64_t begin = read_time_stamp();
        write(court, ping_number, round);
        court.kick(peer);
        std::uint64_t waited_ms = 0;
        while (!wait_for_number(court, pong_number, round, kicks, again_ms)) {
            waited_ms += again_ms;
            if (waited_ms > patience_ms())
                return check_equal("rally: every ping is answered", rounds, round - 1);
            ++retries;
            court.kick(peer);
        }
        const std::uint64_t taken = read_time_stamp() - begin;
        if (taken < fewest) fewest = taken;
    }
    const std::uint64_t taken = read_time_stamp() - first;
    write(court, ping_place, 0);
    const std::uint64_t stamps = time_stamps_per_ms();
    print_line(Text("rally rounds "), std::uint64_t{rounds}, Text(" retries "), retries, Text(" mean_ns "),
               taken * 1000 / rounds * 1000 / stamps, Text(" best_ns "), fewest * 1000000 / stamps);
    return check("rally: every ping is answered", true);
}

bool pong(const Court& court, std::uint32_t rounds) {
    write(court, pong_number, 0);
    write(court, pong_place, court.own_slot + 1);
    std::uint64_t kicks = 0;
    for (std::uint32_t round = 1; round <= rounds; ++round) {
        std::uint64_t waited_ms = 0;
        while (!wait_for_number(court, ping_number, round, kicks, again_ms)) {
            waited_ms += again_ms;
            if (waited_ms > patience_ms()) return check_equal("rally: every ping comes", rounds, round - 1);
            if (round > 1) kick_ping(court);  // it may be the answer that got lost
        }
        // A kick that is repeated for a round that has been answered must not count for the next one.
        kicks = court.count_kicks();
        write(court, pong_number, round);
        kick_ping(court);
    }
    write(court, pong_place, 0);
    return check("rally: every ping comes", true);
}

}  // namespace guestmem::payload

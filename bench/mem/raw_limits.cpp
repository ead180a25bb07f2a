// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <string>

#include "bench/mem/works.hpp"

namespace guestmem::bench {
namespace {

using Hosts = std::span<std::byte* const>;

[[gnu::noinline]] void read(Hosts hosts) {
    std::uint64_t sum = 0;
    for (const std::byte* host : hosts) {
        std::uint64_t value = 0;
        std::memcpy(&value, host, sizeof value);
        sum += value;
    }
    keep(sum);
}

/// The memory is zero, so that the last value moves nothing.
[[gnu::noinline]] void read_dependent(Hosts hosts) {
    std::uint64_t last = 0;
    for (const std::byte* host : hosts) std::memcpy(&last, host + last, sizeof last);
    keep(last);
}

[[gnu::noinline]] void write(Hosts hosts) {
    const std::uint64_t zero = 0;
    for (std::byte* host : hosts) std::memcpy(host, &zero, sizeof zero);
    keep(0);
}

}  // namespace

void measure_raw_objects(const Row& row, Hosts hosts, Budget budget) {
    row.print("raw_read_u64", best_of(budget, hosts.size(), [=] { read(hosts); }));
    row.print("raw_read_u64", "dependent", best_of(budget, hosts.size(), [=] { read_dependent(hosts); }));
    row.print("raw_write_u64", best_of(budget, hosts.size(), [=] { write(hosts); }));
}

void measure_raw_copies(const Row& row, std::string_view name, Hosts hosts, std::span<std::byte> buffer,
                        Budget budget) {
    row.print("raw_read_" + std::string{name}, best_of(budget, hosts.size(), [=] {
                  for (const std::byte* host : hosts) {
                      std::memcpy(buffer.data(), host, buffer.size());
                      keep(buffer.data());
                  }
              }));
    row.print("raw_write_" + std::string{name}, best_of(budget, hosts.size(), [=] {
                  for (std::byte* host : hosts) {
                      std::memcpy(host, buffer.data(), buffer.size());
                      keep(host);
                  }
              }));
}

}  // namespace guestmem::bench

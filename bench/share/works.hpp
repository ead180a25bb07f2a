// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "bench/share/table.hpp"

/// The works of the share service that have a target, each measured beside its limit.
///
/// Concepts: the service is the real program, a process of its own; clients are this process and children of it.
/// Threads: none; each work forks.

namespace guestmem::bench {

struct Scale {
    std::string program;           ///< guestmem
    std::uint32_t slots = 1000;    ///< of the crowd's share, and of the share that is taken over
    std::uint32_t rounds = 3;      ///< that count
    std::uint32_t kicks = 20'000;  ///< in all, there and back
    std::uint32_t rules = 10'000;
};

/// A crowd joins: everybody at once, beside a bare loop; somebody of another share; the service's memory.
void measure_join(const Scale& scale, Table& table);
/// Two processes ring each other in turn, beside two that do so over bare eventfds.
void measure_kick(const Scale& scale, Table& table);
/// The service is killed; the next instance takes over.
void measure_take_over(const Scale& scale, Table& table);
/// May this VM attach to that share?
void measure_rights(const Scale& scale, Table& table);

}  // namespace guestmem::bench

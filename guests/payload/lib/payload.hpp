// SPDX-License-Identifier: Apache-2.0
#pragma once

// The door of a payload: run() is what it does; what comes before and after is the library's.
//
// Contract: each payload defines run(). It is called in long mode, ring 0, on a stack of 16 KiB, with interrupts
//   off, the first 4 GiB mapped to themselves and the console open (option `out=serial` or `out=debug`). When it
//   returns, finish() says how many checks there were.
// Limits: no heap, no static constructors, no floating point, one processor.

#include "guests/payload/lib/console.hpp"
#include "guests/payload/lib/report.hpp"
#include "guests/payload/lib/start_info.hpp"

namespace guestmem::payload {

void run();

// The time stamp when C++ began to run.
std::uint64_t time_stamp_at_start();

}  // namespace guestmem::payload

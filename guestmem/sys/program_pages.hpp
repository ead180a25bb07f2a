// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The memory that a process' own program and libraries take: code and constants, as pages of their files.
///
/// Concepts: most of a program is there for its start: words are parsed, a plan is made and carried out, and what is
/// left is a few loops. Its pages stay with the process for as long as it lives, unless it gives them back.
/// Contract: give_back_program_pages() leaves no page of code and constants mapped; whatever is used again is found in
/// the page cache, or read from its file. Nothing that was written is lost: variables and relocated constants stay.
/// Threads: any; the others meet a few page faults.
/// Cost: some 0.1 ms, and a microsecond for each piece of 64 KiB that is used again.
/// Known holes: breakpoints that a debugger has written into code are gone.

namespace guestmem {

void give_back_program_pages();

}  // namespace guestmem

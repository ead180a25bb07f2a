// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"

/// The handler of SIGBUS and SIGSEGV that turns a fault of a guarded access (guarded.hpp) into a false.
///
/// Concepts: each executable and shared library has a fault table of its own, made by the compiler out of the
/// guarded accesses in it. The handler searches the tables that were registered for the instruction that faulted.
/// Contract: the program installs the guard, once and explicitly, late: after the libraries that install handlers
/// of their own. A fault that is in no table goes on to the handler that was there before, as if the guard were
/// not; where there was none the process dies of its true signal, at the true place.
/// Threads: all functions any. The handler is async-signal-safe.
/// Limits: max_fault_tables objects; registering one more is an error.
/// Lifetime: a library that is unloaded takes its table back first (unregister_fault_table()). The guard stays.
/// Cost: a caught fault 2 to 4 us, nearly all of it the kernel's.
/// Example:
///     GM_TRY(install_fault_guard());          // in main()
///     GM_TRY(prepare_thread_for_guest_memory());  // in each thread that reaches guest memory
/// Known holes:
/// - A thread that blocks the signal is killed by the fault: programs that block all signals before they make
///   threads (signalfd, sigwait) do that. prepare_thread_for_guest_memory() unblocks both.
/// - A handler that is installed later and does not chain wins; is_fault_guard_installed() notices.
/// - A handler that fills memory by signal (it maps or unprotects a page on its first touch) is not asked about
///   guarded accesses, whenever it was installed before: the access is a fault, and the page stays empty. Fill the
///   memory before, or by userfaultfd(2), which is the kernel's and raises no signal.
/// - A thread with an alternate signal stack runs the handler on it: give it SIGSTKSZ or more.
/// - Two copies of this library in one process are two guards that chain to each other; only the later one
///   says that it is installed.

namespace guestmem {

/// One line of a fault table: distances from the line's own fields, in bytes.
struct FaultEntry {
    std::int32_t to_access;
    std::int32_t to_recovery;
};

/// An executable and that many shared libraries less one.
inline constexpr std::size_t max_fault_tables = 32;

namespace detail {
// The linker defines these two in each object that has a section of that name; hidden: each object sees its own.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming): the linker's names
extern "C" [[gnu::weak, gnu::visibility("hidden")]] const FaultEntry __start_gm_ex[];
extern "C" [[gnu::weak, gnu::visibility("hidden")]] const FaultEntry __stop_gm_ex[];
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

[[nodiscard]] Result<void> add_fault_table(std::span<const FaultEntry> table);
void remove_fault_table(std::span<const FaultEntry> table);
[[nodiscard]] Result<void> install_fault_handler();

/// The table of the object that this function is compiled into: hidden, so that no other object's copy is called.
[[gnu::visibility("hidden")]] inline std::span<const FaultEntry> own_fault_table() {
    return {static_cast<const FaultEntry*>(__start_gm_ex), static_cast<const FaultEntry*>(__stop_gm_ex)};
}
}  // namespace detail

/// Makes the guarded accesses of the calling executable or shared library known; once more changes nothing.
[[nodiscard, gnu::visibility("hidden")]] inline Result<void> register_fault_table() {
    return detail::add_fault_table(detail::own_fault_table());
}

/// Forgets them, before the library is unloaded. None of its threads may be in a guarded access.
[[gnu::visibility("hidden")]] inline void unregister_fault_table() {
    detail::remove_fault_table(detail::own_fault_table());
}

/// Registers the caller's table and installs the handler. Once more changes nothing, unless another handler has
/// taken its place: then the guard goes in front of that one.
[[nodiscard, gnu::visibility("hidden")]] inline Result<void> install_fault_guard() {
    GM_TRY(register_fault_table());
    return detail::install_fault_handler();
}

/// Asks the kernel whether the guard is the handler of both signals.
[[nodiscard]] bool is_fault_guard_installed();

/// Unblocks SIGBUS and SIGSEGV in the calling thread.
[[nodiscard]] Result<void> prepare_thread_for_guest_memory();

/// Faults of guarded accesses since the process began.
[[nodiscard]] std::uint64_t count_caught_faults();

}  // namespace guestmem

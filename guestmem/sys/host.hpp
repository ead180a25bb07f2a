// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"

/// What the machine and this process are allowed: memory, descriptors, users.
///
/// Contract: asked of the kernel at each call, never cached.
/// Threads: any; the user and group look-ups use the reentrant calls.

namespace guestmem {

/// MemAvailable of /proc/meminfo.
[[nodiscard]] Result<std::uint64_t> available_memory_bytes();

/// The soft limit on descriptors of this process (RLIMIT_NOFILE).
[[nodiscard]] std::uint64_t descriptor_limit();
/// Lifts the soft limit to the hard one; the limit in force after.
std::uint64_t raise_descriptor_limit();
/// Descriptors that this process has open.
[[nodiscard]] Result<std::uint64_t> count_open_descriptors();

/// Whether the kernel exempts this process from the per-user bound on descriptors in flight
/// (CAP_SYS_RESOURCE or CAP_SYS_ADMIN).
[[nodiscard]] bool is_exempt_from_inflight_limit();

/// The page size of the huge page file system at `folder`; 0 when it is an ordinary one.
[[nodiscard]] Result<std::uint64_t> huge_page_size_at(const std::string& folder);

[[nodiscard]] std::uint32_t own_user();
[[nodiscard]] std::int32_t own_process();
/// The folder for a service's run-time files: /run/guestmem for root, $XDG_RUNTIME_DIR/guestmem else.
[[nodiscard]] std::string runtime_folder();
/// An environment variable; nothing when unset or empty.
[[nodiscard]] std::optional<std::string> environment(const char* name);
[[nodiscard]] bool is_folder(const std::string& path);
/// "/run/x" of "/run/x/y", "." of "y".
[[nodiscard]] std::string parent_folder(const std::string& path);
/// Makes one folder, mode 0755; no error when it is there.
[[nodiscard]] Result<void> make_folder(const std::string& path);

/// The id of a user or group given by name or by number.
[[nodiscard]] Result<std::uint32_t> user_id(const std::string& name_or_number);
[[nodiscard]] Result<std::uint32_t> group_id(const std::string& name_or_number);

/// Whether standard error is the journal's stream: $JOURNAL_STREAM is inherited by programs whose error goes elsewhere.
[[nodiscard]] bool is_stderr_journal();

/// Opens /dev/null on those of the three standard streams that are closed: else the first socket of a service
/// becomes its standard error. For programs, before anything else; false when not even that is possible.
[[nodiscard]] bool open_standard_streams();

/// Whether standard input, output, or error is a terminal.
[[nodiscard]] bool is_stdin_terminal();
[[nodiscard]] bool is_stdout_terminal();
[[nodiscard]] bool is_stderr_terminal();
/// How wide the terminal on standard error is, at least 2; 80 where it does not say.
[[nodiscard]] std::size_t stderr_columns();

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/mode.hpp"
#include "guestmem/mem/backends/options.hpp"
#include "guestmem/mem/backends/problem.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/huge_pages.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "guestmem/sys/numa.hpp"

/// What a backend will do, said before it is done: what is opened and mapped and how, what it costs, what becomes of
/// the file, and every problem that can be known now.
///
/// Concepts: facts are asked of the machine, once, and of the file; a plan follows from options and facts alone.
/// Contract: nothing is created or changed. A backend is made by its plan (backend.hpp): what a plan refuses is not
/// begun. What changes between the plan and the making is an error of the making.
/// Threads: any; plain values.
/// Cost: facts of the machine about 0.3 ms; a plan with its file's facts about 10 us.
/// Example:
///     const MachineFacts machine = GM_TRY(ask_machine());
///     const BackendPlan plan = plan_backend(options, machine, GM_TRY(ask_file(options)));
///     for (const Problem& problem : plan.problems.all()) ...
/// Known holes: what others take between the plan and the making is not known.

namespace guestmem {

struct MachineFacts {
    MemoryLimits limits;
    std::vector<HugePagePool> huge_pages;
    std::uint64_t default_huge_page_bytes = 0;  ///< 0: none
    NumaNodes nodes;
    std::map<std::uint16_t, std::uint64_t> node_available_bytes;  ///< of those that say it
};
[[nodiscard]] Result<MachineFacts> ask_machine();

/// Of mem-path, or of where shm objects are; all empty for a backend without either.
struct FileFactsBefore {
    PathFacts path;
    PathFacts folder;                            ///< in which it is
    std::optional<FileSystemFacts> file_system;  ///< of it, or of its folder; for shm that of /dev/shm
    std::uint64_t outside_data_bytes = 0;        ///< before and behind what offset and size name
    bool is_broken_link = false;                 ///< the name is a link that leads nowhere
};
[[nodiscard]] Result<FileFactsBefore> ask_file(const BackendOptions& options);

/// What happens to the file when the backend is made.
enum class FileEffect : std::uint8_t { none, created, grown, temporary };

struct BackendPlan {
    BackendOptions options = {};
    BackendMode mode = {};
    FileEffect effect = FileEffect::none;
    bool is_huge = false;
    std::uint64_t page_bytes = page_size_bytes;  ///< of the mapping
    std::uint64_t mapped_bytes = 0;              ///< whole pages
    std::uint64_t memory_now_bytes = 0;          ///< taken when it is made
    std::uint64_t memory_worst_bytes = 0;        ///< when every page was written
    FileFactsBefore file = {};
    Problems problems = {};
};
[[nodiscard]] BackendPlan plan_backend(const BackendOptions& options, const MachineFacts& machine,
                                       const FileFactsBefore& file);

/// What several backends of one machine are to each other: same names, same bytes of a file, more memory or huge pages
/// together than there are.
[[nodiscard]] Problems check_together(std::span<const BackendPlan> plans, const MachineFacts& machine);

/// Whether all of it may be locked in memory, as it is for a device that is passed through (VFIO) or by mlock.
[[nodiscard]] Problems check_locked(std::span<const BackendPlan> plans, const MachineFacts& machine);

/// In sentences: what is opened, how it is mapped, what becomes of the file at the end.
[[nodiscard]] std::string opening_of(const BackendPlan& plan);
[[nodiscard]] std::string mapping_of(const BackendPlan& plan);
[[nodiscard]] std::string ending_of(const BackendPlan& plan);

}  // namespace guestmem

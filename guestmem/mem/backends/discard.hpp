// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/options.hpp"
#include "guestmem/mem/backends/problem.hpp"

/// How pages go back to the host: for a balloon, for free page reporting, for memory that is unplugged.
///
/// Concepts: what a discard does depends on what the bytes stand in, and is known before a backend is made: a row of
/// discard_rules. Who discards asks check_discard() once, when a device is planned; Backend::discard() then does it.
/// Contract: the pages of a private mapping are dropped, and the file under it is never punched: others read it. Pages
/// of a memory object or of a file that is mapped shared are punched: all who map it read zeros. ROM and physical
/// memory are left alone.
/// Threads: any; plain values.
/// Example:
///     if (check_discard(plan, DiscardUse::balloon).has_refusal()) ...  // offer no balloon
///     GM_TRY(backend->discard(page_number * page_size_bytes, page_size_bytes));
/// Known holes: a discard changes what a guest reads, and no dirty log hears of it: who keeps one marks the range.
/// Pages that somebody has pinned (VFIO) leave our mapping and stay with the device: who pins says so itself.

namespace guestmem {

struct BackendPlan;

/// What a backend's bytes stand in.
enum class Backing : std::uint8_t { anonymous, object, private_object, file, private_file, rom, physical };

enum class DiscardMeans : std::uint8_t {
    refused,
    dropped,  ///< our pages go (MADV_DONTNEED); what is behind them stays
    punched,  ///< a hole in the object or file (fallocate)
    dropped_and_punched,
};

enum class DiscardUse : std::uint8_t { balloon, free_page_reporting, unplug };
inline constexpr DiscardUse discard_uses[] = {DiscardUse::balloon, DiscardUse::free_page_reporting,
                                              DiscardUse::unplug};

struct DiscardRule {
    Backing backing = Backing::anonymous;
    std::string_view name;
    DiscardMeans means = DiscardMeans::refused;
    bool reads_zeros = false;     ///< afterwards; else what the file has there
    bool reaches_others = false;  ///< all who map the same bytes read zeros, too
    std::string_view sentence;    ///< what it does, or why it is refused
};

inline constexpr DiscardRule discard_rules[] = {
    {Backing::anonymous, "anonymous", DiscardMeans::dropped, true, false,
     "pages are dropped and read as zeros"},
    {Backing::object, "object", DiscardMeans::punched, true, true,
     "pages are punched out of the object: all who map it read zeros"},
    {Backing::private_object, "private-object", DiscardMeans::dropped_and_punched, true, true,
     "pages are dropped, and punched out of the object, which gets each page before it is copied"},
    {Backing::file, "file", DiscardMeans::punched, true, true,
     "blocks are punched out of the file: all who map it read zeros"},
    {Backing::private_file, "private-file", DiscardMeans::dropped, false, false,
     "this VM's copies are dropped, and the file's bytes are read again; the file stays as it is"},
    {Backing::rom, "rom", DiscardMeans::refused, false, false, "ROM is what the guest shall find there"},
    {Backing::physical, "physical", DiscardMeans::refused, false, false,
     "physical memory is not the host's to take back"},
};
[[nodiscard]] constexpr const DiscardRule& row_of(Backing backing) {
    return discard_rules[static_cast<std::size_t>(backing)];
}

[[nodiscard]] Backing backing_of(const BackendPlan& plan);

/// In the words of the command line: "balloon", "free-page-reporting", "unplug".
[[nodiscard]] std::string_view to_word(DiscardUse use);

/// What is wrong with discarding pages of such a backend for that use, before it is made.
[[nodiscard]] Problems check_discard(const BackendPlan& plan, DiscardUse use);

}  // namespace guestmem

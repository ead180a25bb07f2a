// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/error.hpp"

/// Where a VM's configuration was written: several files and a command line, places in them, and what is wrong there.
///
/// Concepts: a Source is one text: a file as it was read, or the words of a command line, one to a line. A Place is
/// a character of a source; `order` counts the tokens of all sources in the order in which they were read, so that
/// "before" has a meaning across files. Findings gathers every mistake, so that a user sees all of them at once.
/// Contract: a place of line 0 is nowhere: a value that nobody wrote. Places are no part of what a configuration says:
/// any two are equal. Findings of a file read `board.qvmconf:4:8: error: ...`, the line, a caret and an advice, as in
/// guestmem/base/diagnostic.hpp, and name who included the file; those of a command line read
/// `command line, word 3: error: ...`. Control characters never reach the terminal.
/// Lifetime: Findings refers to its Sources.
/// Limits: at most max_diagnostics findings are kept; the rest is counted and said.
/// Threads: one at a time; const members from any.
/// Known holes: a caret inside of a quoted string that has escapes points a little to the left.

namespace guestmem::vmm {

struct Place {
    std::uint32_t source = 0;
    std::uint32_t line = 0;    ///< from 1; 0: nowhere
    std::uint32_t column = 0;  ///< from 1, in characters of UTF-8
    std::uint32_t order = 0;   ///< how many tokens were read before this one

    [[nodiscard]] bool is_somewhere() const { return line != 0; }
    /// The same, `count` characters to the right.
    [[nodiscard]] Place moved_right(std::size_t count) const;

    friend bool operator==(const Place& /*a*/, const Place& /*b*/) { return true; }
};

/// A value and where it was written.
template <typename T>
struct Placed {
    T value{};
    Place place;

    friend bool operator==(const Placed&, const Placed&) = default;
};

struct Source {
    std::string name;
    std::string text;
    Place included_at;  ///< nowhere for the first file
    bool is_command_line = false;
};

class Sources {
public:
    [[nodiscard]] std::uint32_t add(Source source);
    [[nodiscard]] std::span<const Source> all() const { return sources_; }

    /// "board.qvmconf:3:5", "command line, word 4", or "nowhere".
    [[nodiscard]] std::string describe(const Place& place) const;
    /// The same as seen from another place: "line 3" in the same file.
    [[nodiscard]] std::string describe(const Place& place, const Place& from) const;

private:
    std::vector<Source> sources_;
};

struct Finding {
    Place place;
    std::string message;
    std::string advice;  ///< what to write instead; may be empty
};

class Findings {
public:
    explicit Findings(const Sources& sources) : sources_(&sources) {}

    void add(const Place& place, std::string message, std::string advice = {});
    [[nodiscard]] bool is_empty() const { return found_.empty(); }
    [[nodiscard]] std::span<const Finding> found() const { return found_; }
    [[nodiscard]] const Sources& sources() const { return *sources_; }

    /// All of them, source by source, each in the order of its places.
    [[nodiscard]] std::string to_text() const;
    /// An error (invalid_argument) whose message is to_text().
    [[nodiscard]] Error to_error() const;

private:
    const Sources* sources_;
    std::vector<Finding> found_;
    std::size_t count_dropped_ = 0;
};

}  // namespace guestmem::vmm

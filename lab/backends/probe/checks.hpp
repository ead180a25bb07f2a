// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/guest_memory.hpp"

/// What the parts of the probe say, and what they ask of the kernel behind the library's back.
///
/// Concepts: the probe runs as root in a guest that it may change. Each check is one line for the test bed outside:
/// "PASS part: name", "FAIL part: name -- detail", "NOT RUN part: name -- why". The last line says how many there were,
/// so that a probe that ends early is noticed.
/// Contract: a check's name is a sentence that can be false. What is asked of the kernel here is not asked by the
/// library's own code, so that a mistake there does not hide itself.
/// Threads: one at a time.

namespace lab {

class Checks {
public:
    explicit Checks(std::string part) : part_(std::move(part)) {}

    /// Returns what it was given.
    bool expect(bool is_good, std::string_view name, std::string_view detail = "");
    /// The error has to have the words.
    template <typename T>
    bool expect_error(const guestmem::Result<T>& result, std::string_view words, std::string_view name) {
        if (result) return expect(false, name, "it was made");
        const std::string& message = result.error().message();
        return expect(message.find(words) != std::string::npos, name, message);
    }
    template <typename T>
    bool expect_value(const guestmem::Result<T>& result, std::string_view name) {
        return expect(result.has_value(), name, result ? "" : result.error().message());
    }
    void not_run(std::string_view name, std::string_view why);
    void end() const;

private:
    void say(std::string_view word, std::string_view name, std::string_view detail);

    std::string part_;
    int count_ = 0;
};

using BackendResult = guestmem::Result<std::shared_ptr<const guestmem::Backend>>;

/// From the words of the option language.
[[nodiscard]] BackendResult make_backend(const std::string& text);
[[nodiscard]] guestmem::Result<guestmem::BackendPlan> make_plan(const std::string& text);
/// A map with the backend alone in it.
[[nodiscard]] guestmem::Result<std::shared_ptr<const guestmem::MemoryMap>> map_of(
    const guestmem::Backend& backend, std::uint64_t base);

/// A file of /proc or /sys; empty when it cannot be read.
[[nodiscard]] std::string read_text(const std::string& path);
/// Of a file that has one number; 0 when it has none.
[[nodiscard]] std::uint64_t read_number(const std::string& path);
[[nodiscard]] bool write_text(const std::string& path, const std::string& text);
/// The value behind "key " or "key:" at the beginning of a line, in its own unit; 0 when it is not there.
[[nodiscard]] std::uint64_t number_in(const std::string& text, std::string_view key);
/// The lines of /proc/self/smaps about the mapping that begins there; empty when there is none.
[[nodiscard]] std::string smaps_of(std::span<const std::byte> bytes);
/// What a command writes.
[[nodiscard]] std::string output_of(const std::string& command);

/// How a child that runs it ends: empty when it returns, else the sentence about its end.
[[nodiscard]] std::string end_of_child(const std::function<void()>& work);

void check_numa(Checks& checks);
void check_physical(Checks& checks);
void check_huge(Checks& checks);
void check_memory(Checks& checks);
void check_cgroup(Checks& checks, int version);

}  // namespace lab

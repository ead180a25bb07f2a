// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "guestmem/base/sizes.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/vmm/config/numbers.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::string_view letters_and_digits =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

Piece part_of(const Piece& piece, std::size_t from, std::size_t count) {
    return {.text = piece.text.substr(from, count), .place = piece.place.moved_right(from)};
}

std::optional<std::pair<Piece, Piece>> split_at(const Piece& piece, std::size_t at) {
    if (at == std::string_view::npos) return std::nullopt;
    return std::pair{part_of(piece, 0, at), part_of(piece, at + 1, std::string_view::npos)};
}

/// The number itself, or what is wrong with its text.
std::optional<std::uint64_t> read_any_number(const Piece& piece, std::string_view what, Findings& findings) {
    const auto number = read_number(piece.text);
    if (number) return *number;
    findings.add(piece.place, fmt::format("{}: {}", what, number.error().what), number.error().advice);
    return std::nullopt;
}

bool is_visible(char c) { return c > ' ' && c <= '~'; }

}  // namespace

Piece whole(const Token& token) {
    // The text of a quoted token begins behind the quote.
    return {.text = token.text, .place = token.is_quoted ? token.place.moved_right(1) : token.place};
}

std::vector<Piece> split_at_commas(const Piece& piece) {
    std::vector<Piece> pieces;
    std::size_t begin = 0;
    while (true) {
        const std::size_t comma = piece.text.find(',', begin);
        if (comma == std::string_view::npos) break;
        pieces.push_back(part_of(piece, begin, comma - begin));
        begin = comma + 1;
    }
    pieces.push_back(part_of(piece, begin, std::string_view::npos));
    return pieces;
}

std::optional<std::pair<Piece, Piece>> split_at_first(const Piece& piece, char separator) {
    return split_at(piece, piece.text.find(separator));
}

std::optional<std::pair<Piece, Piece>> split_at_last(const Piece& piece, char separator) {
    return split_at(piece, piece.text.rfind(separator));
}

std::optional<Placed<std::uint64_t>> read_number_within(const Piece& piece, std::string_view what,
                                                        std::uint64_t least, std::uint64_t most,
                                                        Findings& findings) {
    const auto number = read_any_number(piece, what, findings);
    if (!number) return std::nullopt;
    if (*number < least || *number > most) {
        findings.add(piece.place, fmt::format("{} {} is not within {} to {}", what, *number, least, most));
        return std::nullopt;
    }
    return Placed<std::uint64_t>{*number, piece.place};
}

std::optional<Placed<std::uint64_t>> read_address(const Piece& piece, std::string_view what,
                                                  Findings& findings) {
    const auto number = read_any_number(piece, what, findings);
    if (!number) return std::nullopt;
    if (*number >= guest_address_limit) {
        findings.add(piece.place, fmt::format("{} {} is beyond the last address of x86-64, {}", what,
                                              piece.text, write_address(guest_address_limit - 1)));
        return std::nullopt;
    }
    if (*number % page_size_bytes != 0) {
        findings.add(
            piece.place,
            fmt::format("{} {} is not a multiple of the page size {}", what, piece.text, page_size_bytes),
            fmt::format("the page begins at {}", write_address(*number - *number % page_size_bytes)));
        return std::nullopt;
    }
    return Placed<std::uint64_t>{*number, piece.place};
}

std::optional<Placed<std::uint64_t>> read_length(const Piece& piece, Findings& findings) {
    const auto number = read_any_number(piece, "length", findings);
    if (!number) return std::nullopt;
    if (*number == 0) {
        findings.add(piece.place, "a length of 0", "write how many bytes there are, such as 192M");
        return std::nullopt;
    }
    if (*number > guest_address_limit) {
        findings.add(piece.place, fmt::format("length {} is more than x86-64 has addresses, {}", piece.text,
                                              write_length(guest_address_limit)));
        return std::nullopt;
    }
    if (*number % page_size_bytes != 0) {
        const std::uint64_t next = *number - *number % page_size_bytes + page_size_bytes;
        findings.add(piece.place,
                     fmt::format("length {} is not whole pages of {} bytes", piece.text, page_size_bytes),
                     fmt::format("the next length is {}", write_length(next)));
        return std::nullopt;
    }
    return Placed<std::uint64_t>{*number, piece.place};
}

std::optional<Placed<Sched>> read_sched(const Piece& piece, Findings& findings) {
    static constexpr std::string_view policies = "rfo";
    Sched sched;
    Piece number = piece;
    if (!piece.text.empty()) {
        const std::size_t policy = policies.find(piece.text.back());
        if (policy != std::string_view::npos) {
            sched.policy = static_cast<SchedPolicy>(policy);
            number.text.remove_suffix(1);
        }
    }
    const auto priority = read_number_within(number, "priority", 1, 99, findings);
    if (!priority) return std::nullopt;
    sched.priority = static_cast<std::uint32_t>(priority->value);
    return Placed<Sched>{sched, piece.place};
}

std::optional<Placed<Interrupt>> read_interrupt(const Piece& piece, Findings& findings) {
    if (piece.text == "apic") return Placed<Interrupt>{{.controller = "apic", .pin = {}}, piece.place};
    const auto halves = split_at_first(piece, ':');
    if (!halves || halves->first.text.empty()) {
        findings.add(
            piece.place, fmt::format("'{}' is no interrupt", piece.text),
            "write the name of an ioapic and a pin, such as myioapic:10; for the ioapic itself apic");
        return std::nullopt;
    }
    if (halves->first.text == "cpu") {
        findings.add(piece.place,
                     "documented by QNX, not supported here: an interrupt that a CPU takes directly",
                     "name a `vdev ioapic`, whose own interrupt is apic");
        return std::nullopt;
    }
    if (!is_vdev_name(halves->first, findings)) return std::nullopt;
    const auto pin = read_any_number(halves->second, "pin", findings);
    if (!pin) return std::nullopt;
    if (*pin >= ioapic_pins) {
        findings.add(halves->second.place,
                     fmt::format("pin {}: an ioapic has the pins 0 to {}", *pin, ioapic_pins - 1));
        return std::nullopt;
    }
    return Placed<Interrupt>{
        {.controller = std::string{halves->first.text}, .pin = static_cast<std::uint32_t>(*pin)},
        piece.place};
}

std::optional<bool> read_boolean(std::string_view text) {
    static constexpr std::array<std::string_view, 4> yes{"yes", "on", "true", "1"};
    static constexpr std::array<std::string_view, 4> no{"no", "off", "false", "0"};
    if (std::ranges::find(yes, text) != yes.end()) return true;
    if (std::ranges::find(no, text) != no.end()) return false;
    return std::nullopt;
}

bool is_system_name(const Piece& piece, Findings& findings) {
    const std::string_view text = piece.text;
    const auto is_good = [](char c) {
        return c == '-' || c == '_' || c == '.' || letters_and_digits.find(c) != std::string_view::npos;
    };
    if (!text.empty() && text.size() <= max_name_bytes && std::ranges::all_of(text, is_good) &&
        letters_and_digits.find(text.front()) != std::string_view::npos)
        return true;
    findings.add(piece.place, fmt::format("'{}' is no name for a VM", text),
                 fmt::format("write 1 to {} letters, digits, '-', '_' and '.', a letter or digit first",
                             max_name_bytes));
    return false;
}

bool is_vdev_name(const Piece& piece, Findings& findings) {
    const std::string_view text = piece.text;
    const bool is_good = std::ranges::all_of(text, is_visible) && text.find('/') == std::string_view::npos;
    if (is_good && !text.empty() && text.size() <= max_name_bytes) return true;
    findings.add(piece.place, fmt::format("'{}' is no name for a vdev", text),
                 fmt::format("write 1 to {} visible ASCII characters without '/'", max_name_bytes));
    return false;
}

bool is_share_name(const Piece& piece, Findings& findings) {
    const auto problem = share::find_name_problem(piece.text);
    if (problem) findings.add(piece.place, problem->what, problem->advice);
    return !problem;
}

bool is_share_size(const Piece& piece, std::uint64_t size_bytes, Findings& findings) {
    const auto problem = share::find_size_problem(size_bytes);
    if (problem) findings.add(piece.place, problem->what, problem->advice);
    return !problem;
}

bool is_pattern(const Piece& piece, Findings& findings) {
    const auto problem = share::find_pattern_problem(piece.text);
    if (problem)
        findings.add(piece.place, fmt::format("pattern '{}': {}", piece.text, *problem),
                     "write a name with shell wildcards, such as camera-*");
    return !problem;
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/sources.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <tuple>

#include "guestmem/base/diagnostic.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::string_view command_line = "command line";

std::string to_text_of_one(const Source& source, const Finding& finding) {
    Diagnostics diagnostics{source.name, source.text};
    diagnostics.add({finding.place.line, finding.place.column}, finding.message, finding.advice);
    return diagnostics.to_text();
}

/// "command line:3:1: error" says the line of a text that nobody wrote: word 3 is what a person counts.
std::string to_text_of_word(const Source& source, const Finding& finding) {
    std::string text = to_text_of_one(source, finding);
    const std::string place = fmt::format("{}:{}:{}:", source.name, finding.place.line, finding.place.column);
    if (!text.starts_with(place)) return text;
    return fmt::format("{}, word {}:{}", command_line, finding.place.line, text.substr(place.size()));
}

}  // namespace

Place Place::moved_right(std::size_t count) const {
    Place moved = *this;
    moved.column += static_cast<std::uint32_t>(count);
    return moved;
}

std::uint32_t Sources::add(Source source) {
    if (source.is_command_line) source.name = command_line;
    sources_.push_back(std::move(source));
    return static_cast<std::uint32_t>(sources_.size() - 1);
}

std::string Sources::describe(const Place& place) const {
    if (!place.is_somewhere() || place.source >= sources_.size()) return "nowhere";
    const Source& source = sources_[place.source];
    if (source.is_command_line) return fmt::format("{}, word {}", command_line, place.line);
    return fmt::format("{}:{}:{}", source.name, place.line, place.column);
}

std::string Sources::describe(const Place& place, const Place& from) const {
    if (!place.is_somewhere() || place.source >= sources_.size()) return "nowhere";
    if (sources_[place.source].is_command_line) return fmt::format("word {} of the command line", place.line);
    if (place.source == from.source) return fmt::format("line {}", place.line);
    return describe(place);
}

void Findings::add(const Place& place, std::string message, std::string advice) {
    if (found_.size() == max_diagnostics) {
        ++count_dropped_;
        return;
    }
    found_.push_back({place, std::move(message), std::move(advice)});
}

std::string Findings::to_text() const {
    // Findings of one place in the order in which they came: addresses of one vector.
    std::vector<const Finding*> sorted;
    for (const Finding& finding : found_) sorted.push_back(&finding);
    std::ranges::sort(sorted, {}, [](const Finding* finding) {
        return std::tuple{finding->place.source, finding->place.line, finding->place.column, finding};
    });
    const std::span all = sources_->all();
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < sorted.size(); ++at) {
        const Finding& finding = *sorted[at];
        const std::uint32_t index = finding.place.source;
        if (index >= all.size()) {
            pieces.push_back(
                to_text_of_one({.name = "configuration", .text = {}, .included_at = {}}, finding));
            continue;
        }
        const Source& source = all[index];
        pieces.push_back(source.is_command_line && finding.place.is_somewhere()
                             ? to_text_of_word(source, finding)
                             : to_text_of_one(source, finding));
        const bool is_last = at + 1 == sorted.size() || sorted[at + 1]->place.source != index;
        if (is_last && source.included_at.is_somewhere())
            pieces.push_back(
                fmt::format("{}: included at {}", source.name, sources_->describe(source.included_at)));
    }
    if (count_dropped_ != 0) pieces.push_back(fmt::format("and {} more", count_dropped_));
    return fmt::format("{}", fmt::join(pieces, "\n"));
}

Error Findings::to_error() const { return Error{Errc::invalid_argument, to_text()}; }

}  // namespace guestmem::vmm

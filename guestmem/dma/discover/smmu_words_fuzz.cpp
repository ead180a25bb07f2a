// SPDX-License-Identifier: Apache-2.0
/// Fuzzes smmu_words.hpp and assemble.hpp: any bytes as `.smmu` files and as words of a command line.
///
/// The input is split at NUL bytes: the first piece is the file, the others are the files "1", "2" and so on, which
/// `@1` includes. The same pieces are words of a command line then.
/// Asserts: words keep their limits, each fact has a place, each device has one unit, each set has ranges; written
/// again they are read as equal words, and written once more they are the same text. Assembled without firmware every
/// cover overrides and none is lost. An error begins with a source, and brings no control character to the terminal.
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/assemble.hpp"
#include "guestmem/dma/discover/smmu_words.hpp"

namespace guestmem::dma {
namespace {

constexpr std::string_view file_name = "fuzz.smmu";

std::vector<std::string> pieces_of(std::string_view text) {
    std::vector<std::string> pieces;
    while (true) {
        const std::size_t nul = text.find('\0');
        pieces.emplace_back(text.substr(0, nul));
        if (nul == std::string_view::npos) return pieces;
        text.remove_prefix(nul + 1);
    }
}

SmmuLoader loader_of(const std::vector<std::string>& files) {
    return [&files](const std::string& path, std::size_t limit_bytes) -> Result<std::string> {
        std::size_t number = 0;
        const auto parsed = std::from_chars(path.data(), path.data() + path.size(), number);
        const bool is_number = parsed.ec == std::errc{} && parsed.ptr == path.data() + path.size();
        if (!is_number || number >= files.size() || files[number].size() > limit_bytes)
            return Error{Errc::not_found, "no such file"};
        return files[number];
    };
}

void check_facts(const SourceFacts& facts) {
    GM_CHECK(facts.units.size() + facts.covers.size() + facts.reserved.size() <= max_facts);
    for (const UnitFact& unit : facts.units) {
        GM_CHECK(unit.registers.has_value() != unit.function.has_value());
        GM_CHECK(unit.origin.source == Source::user && !unit.origin.place.empty());
    }
    std::map<std::string, std::string> unit_of;
    for (const CoverFact& cover : facts.covers) {
        GM_CHECK(!cover.unit.empty() && !cover.origin.place.empty());
        GM_CHECK(unit_of.emplace(to_string(cover.which), cover.unit).first->second == cover.unit);
    }
    for (const ReservedFact& fact : facts.reserved)
        GM_CHECK(fact.who.size() == 1 && fact.first <= fact.last && (fact.can_read || fact.can_write));
    for (const Complaint& complaint : facts.complaints) GM_CHECK(!complaint.text.empty());
}

void check_assembled(const UserWords& words) {
    const auto facts = assemble({}, words);
    if (!facts) {
        GM_CHECK(facts.error().code() == Errc::not_found || facts.error().code() == Errc::invalid_argument);
        return;
    }
    GM_CHECK(facts->units.size() == words.facts.units.size());
    GM_CHECK(facts->covers.size() == words.facts.covers.size());
    GM_CHECK(facts->reserved.size() == words.facts.reserved.size());
    for (const CoverFact& cover : facts->covers) GM_CHECK(cover.origin.overrides.empty());
}

void check_words(const UserWords& words) {
    check_facts(words.facts);
    check_assembled(words);
    GM_CHECK(words.details.size() == words.facts.units.size());
    for (const AllowSet& set : words.allowed) {
        GM_CHECK(!set.ranges.empty());
        for (const AllowedRange& range : set.ranges)
            GM_CHECK(range.first <= range.last && !range.place.empty());
    }
    const std::string text = to_smmu_text(words);
    const auto again = read_smmu_text(text, std::string{file_name}, {});
    // Scopes are written out with all their words, so that a text near the limits may grow beyond them.
    if (!again) {
        GM_CHECK(text.size() > max_smmu_file_bytes ||
                 words.facts.covers.size() + words.devices.size() > 4096);
        return;
    }
    GM_CHECK(to_smmu_text(*again) == text);
    GM_CHECK(again->facts.covers.size() == words.facts.covers.size());
    GM_CHECK(again->allowed.size() == words.allowed.size());
}

void check_error(const Error& error) {
    GM_CHECK(error.code() == Errc::invalid_argument);
    const std::string_view text = error.message();
    GM_CHECK(text.starts_with(file_name) || text.starts_with("command line") ||
             std::isdigit(static_cast<unsigned char>(text.front())) != 0);
    GM_CHECK(text.find("error: ") != std::string_view::npos);
    for (const char c : text) GM_CHECK(c == '\n' || std::iscntrl(static_cast<unsigned char>(c)) == 0);
}

void attack(std::string_view input) {
    const std::vector<std::string> pieces = pieces_of(input);
    for (const auto& read : {read_smmu_text(pieces.front(), std::string{file_name}, loader_of(pieces)),
                             read_smmu_words(pieces, loader_of(pieces))}) {
        if (read) {
            check_words(*read);
        } else {
            check_error(read.error());
        }
    }
}

}  // namespace
}  // namespace guestmem::dma

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::dma::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_parser.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <utility>

#include "guestmem/dma/discover/smmu_arguments.hpp"
#include "guestmem/dma/discover/smmu_schema.hpp"
#include "guestmem/dma/discover/smmu_units.hpp"

namespace guestmem::dma {
namespace {

constexpr std::uint64_t max_id = std::numeric_limits<std::uint32_t>::max();
constexpr std::string_view unit_scope = "unit:";

bool begins_with_digit(std::string_view text) { return !text.empty() && text[0] >= '0' && text[0] <= '9'; }

class Parser {
public:
    Parser(std::span<const SmmuToken> tokens, SmmuSources& sources) : tokens_(tokens), sources_(sources) {}

    UserWords parse() {
        while (at_ < tokens_.size()) read_option();
        check_uses();
        check_sets();
        check_units();
        check_scopes();
        return std::move(words_);
    }

private:
    /// A `use` that was read: what it means is checked when all units are known.
    struct Use {
        std::size_t cover = 0;  ///< index in facts.covers
        SmmuPlace place = {};
    };
    struct DeviceState {
        std::optional<std::string> unit = {};
        SmmuPlace place = {};
        std::set<std::optional<std::uint32_t>> ids = {};
        std::set<std::string> sets = {};
    };

    // --- finding the way ---

    [[nodiscard]] bool is_at_word() const {
        return at_ < tokens_.size() && find_smmu_word(tokens_[at_].text) != nullptr;
    }
    [[nodiscard]] bool is_at_argument() const { return at_ < tokens_.size() && !is_at_word(); }
    /// The rest of an option that was not understood.
    void skip_to_next_option() {
        while (at_ < tokens_.size() && !tokens_[at_].begins_line &&
               (!is_at_word() || tokens_[at_].text == "use"))
            ++at_;
        while (at_ < tokens_.size() && tokens_[at_].text == "use") skip_use();
    }
    void skip_use() {
        do ++at_;
        while (is_at_argument() && !tokens_[at_].begins_line);
    }
    [[nodiscard]] Origin origin_of(const SmmuPlace& place) const {
        return {.source = Source::user, .place = sources_.describe(place)};
    }
    void note(const SmmuPlace& place, std::string text) {
        words_.facts.complaints.push_back({.origin = origin_of(place), .text = std::move(text)});
    }
    [[nodiscard]] std::string suggest(std::string_view word, std::span<const std::string_view> known,
                                      std::string otherwise = {}) const {
        // Nobody sees it beyond the limit, and a file of nothing but unknown words would take long.
        if (sources_.is_full()) return {};
        const std::string_view closest = closest_word(word, known);
        return closest.empty() ? otherwise : fmt::format("did you mean '{}'?", closest);
    }
    /// The token behind a word, or null and told.
    const SmmuToken* argument(const SmmuToken& word, const SmmuWordRow& row) {
        if (is_at_argument()) return &tokens_[at_++];
        sources_.complain(word.place, fmt::format("'{}' without its arguments", row.text),
                          fmt::format("write {} {}", row.text, row.argument));
        return nullptr;
    }

    // --- options ---

    void read_option() {
        const SmmuToken& token = tokens_[at_++];
        const SmmuWordRow* const row = find_smmu_word(token.text);
        if (row == nullptr) return complain_of_word(token);
        bool is_good = true;
        switch (row->word) {
            case SmmuWord::smmu: is_good = read_smmu(token, *row); break;
            case SmmuWord::unit: is_good = read_unit(token, *row); break;
            case SmmuWord::device: is_good = read_device_option(token, *row); break;
            case SmmuWord::use:
                sources_.complain(token.place, "'use' without its device",
                                  "write device DEVICE use UNIT [PARAM]");
                is_good = false;
                break;
            case SmmuWord::allow: is_good = read_allow(token, *row); break;
            case SmmuWord::reserved: is_good = read_reserved(token, *row); break;
            case SmmuWord::merges: is_good = read_mode(token, LayMode::merges); break;
            case SmmuWord::overrides: is_good = read_mode(token, LayMode::overrides); break;
            case SmmuWord::debug: is_good = read_debug(token, *row); break;
            case SmmuWord::foreground: words_.foreground = said(true, token.place); break;
            case SmmuWord::safety: is_good = read_safety(token, *row); break;
            case SmmuWord::user: is_good = read_user(token, *row); break;
        }
        if (!is_good) skip_to_next_option();
    }

    template <typename T>
    [[nodiscard]] Said<T> said(T value, const SmmuPlace& place) const {
        return {.value = std::move(value), .place = sources_.describe(place)};
    }

    void complain_of_word(const SmmuToken& token) {
        std::vector<std::string_view> known;
        for (const SmmuWordRow& row : smmu_word_rows()) known.push_back(row.text);
        const std::string shown = token.text.substr(0, 80);
        if (find_smmu_type(token.text) != nullptr)
            sources_.complain(token.place, fmt::format("'{}' without 'smmu'", shown),
                              fmt::format("write smmu {}", shown));
        else
            sources_.complain(token.place, fmt::format("unknown word '{}'", shown),
                              suggest(token.text, known));
        skip_to_next_option();
    }

    bool read_smmu(const SmmuToken& word, const SmmuWordRow& row) {
        type_ = std::nullopt;
        is_type_told_ = true;
        const SmmuToken* const name = argument(word, row);
        if (name == nullptr) return false;
        const SmmuTypeRow* const type = find_smmu_type(name->text);
        if (type == nullptr) {
            std::vector<std::string_view> known;
            for (const SmmuTypeRow& one : smmu_type_rows()) known.push_back(one.text);
            sources_.complain(
                name->place, fmt::format("'{}' is no type of IOMMU", name->text.substr(0, 80)),
                suggest(name->text, known, fmt::format("there are {}", fmt::join(known, ", "))));
            return false;
        }
        type_ = type->type;
        FirmwareUse use = FirmwareUse::use;
        if (is_at_argument() && type->type == SmmuType::rcar3) {
            if (!read_rcar_main(whole(tokens_[at_++]))) return false;
        } else if (is_at_argument()) {
            const SmmuToken& parameter = tokens_[at_++];
            static constexpr std::array<std::string_view, 2> known{"require", "ignore"};
            const auto found = std::ranges::find(known, parameter.text);
            if (found == known.end()) {
                sources_.complain(
                    parameter.place,
                    fmt::format("'{}' behind smmu {}", parameter.text.substr(0, 80), type->text),
                    suggest(parameter.text, known,
                            "write require, ignore, or neither to use firmware's tables when "
                            "they are there"));
                return false;
            }
            use = found == known.begin() ? FirmwareUse::require : FirmwareUse::ignore;
        }
        words_.types[type->type] = said(use, word.place);
        return true;
    }

    bool read_rcar_main(const SmmuPiece& piece) {
        if (!check_rcar_parameter(piece, sources_)) return false;
        note(piece.place, "the kernel's driver owns the IPMMU's fault interrupt: it is not read here");
        return true;
    }

    bool read_unit(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const name = argument(word, row);
        const SmmuToken* const parameter = name == nullptr ? nullptr : argument(word, row);
        if (parameter == nullptr || !is_smmu_name(whole(*name), "a unit", sources_)) return false;
        if (!type_) {
            if (!is_type_told_)
                sources_.complain(word.place, "'unit' before 'smmu': what kind of unit is it?",
                                  "write smmu TYPE before it, such as smmu vtd");
            is_type_told_ = true;
            return false;
        }
        auto unit = read_smmu_unit(*type_, whole(*parameter), sources_);
        if (!unit) return false;
        unit->fact.name = unit->details.name = name->text;
        unit->fact.origin = origin_of(word.place);
        for (std::string& text : unit->notes) note(word.place, fmt::format("unit {}: {}", name->text, text));
        const auto [found, is_first] = units_.emplace(name->text, words_.facts.units.size());
        if (is_first) {
            words_.facts.units.push_back(std::move(unit->fact));
            words_.details.push_back(std::move(unit->details));
            unit_places_.push_back(word.place);
        } else {
            words_.facts.units[found->second] = std::move(unit->fact);
            words_.details[found->second] = std::move(unit->details);
            unit_places_[found->second] = word.place;
        }
        return true;
    }

    bool read_device_option(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const text = argument(word, row);
        const auto device = text == nullptr ? std::nullopt : read_device(whole(*text), sources_);
        if (!device) return false;
        const auto [state, is_first] = devices_.try_emplace(to_string(*device));
        if (is_first) words_.devices.push_back(said(*device, word.place));
        bool has_set = false;
        while (at_ < tokens_.size()) {
            if (tokens_[at_].text == "use") {
                if (!read_use(*device, state->second)) return false;
            } else if (is_at_argument() && !has_set) {
                const SmmuToken& name = tokens_[at_++];
                if (!is_smmu_name(whole(name), "an allow set", sources_)) return false;
                if (state->second.sets.insert(name.text).second)
                    set_of(name).devices.push_back(said(*device, word.place));
                has_set = true;
            } else {
                break;
            }
        }
        return true;
    }

    bool read_use(const Selector& device, DeviceState& state) {
        const SmmuToken& word = tokens_[at_++];
        const SmmuToken* const unit = argument(word, *find_smmu_word("use"));
        if (unit == nullptr || !is_smmu_name(whole(*unit), "a unit", sources_)) return false;
        std::optional<std::uint32_t> id;
        if (is_at_argument() && begins_with_digit(tokens_[at_].text)) {
            const auto number = read_smmu_number(whole(tokens_[at_++]), NumberStyle::plain,
                                                 "the device's identity", max_id, sources_);
            if (!number) return false;
            id = static_cast<std::uint32_t>(*number);
        }
        if (state.unit && *state.unit != unit->text) {
            sources_.complain(word.place,
                              fmt::format("the device is behind {} already ({})", *state.unit,
                                          sources_.describe(state.place)),
                              "a device has one unit: remove one of the two");
            return false;
        }
        state.unit = unit->text;
        state.place = word.place;
        if (!state.ids.insert(id).second) return true;
        uses_.push_back({.cover = words_.facts.covers.size(), .place = word.place});
        words_.facts.covers.push_back({.unit = unit->text,
                                       .which = device,
                                       .identity = {.first_id = id},
                                       .origin = origin_of(word.place)});
        return true;
    }

    AllowSet& set_of(const SmmuToken& name) {
        const auto [found, is_first] = sets_.emplace(name.text, words_.allowed.size());
        if (is_first) {
            words_.allowed.push_back({.name = name.text});
            set_places_.push_back(name.place);
        }
        return words_.allowed[found->second];
    }

    bool read_allow(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const name = argument(word, row);
        const SmmuToken* const text = name == nullptr ? nullptr : argument(word, row);
        if (text == nullptr) return false;
        const bool has_name = is_smmu_name(whole(*name), "an allow set", sources_);
        const auto range = read_range(whole(*text), sources_);
        // The set is there, if not all of its ranges: one mistake is not told twice.
        if (has_name) set_of(*name);
        if (!range) broken_sets_.insert(name->text);
        if (!has_name || !range) return false;
        set_of(*name).ranges.push_back(*range);
        return true;
    }

    bool read_reserved(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const who = argument(word, row);
        const SmmuToken* const text = who == nullptr ? nullptr : argument(word, row);
        if (text == nullptr) return false;
        const auto device = read_device(whole(*who), sources_);
        const auto range = read_range(whole(*text), sources_);
        if (!device || !range) return false;
        scoped_.insert(to_string(*device));
        words_.facts.reserved.push_back({.who = {*device},
                                         .first = range->first,
                                         .last = range->last,
                                         .kind = ReservedKind::direct,
                                         .can_read = range->can_read,
                                         .can_write = range->can_write,
                                         .origin = origin_of(word.place)});
        return true;
    }

    bool read_mode(const SmmuToken& word, LayMode mode) {
        // Only what can be a scope is one: a word's argument is never guessed.
        if (!is_at_argument()) {
            words_.mode = said(mode, word.place);
            return true;
        }
        const SmmuPiece scope = whole(tokens_[at_++]);
        if (scope.text.starts_with(unit_scope)) {
            const SmmuPiece name = without_prefix(scope, unit_scope.size());
            if (!is_smmu_name(name, "a unit", sources_)) return false;
            words_.unit_modes[std::string{name.text}] = said(mode, word.place);
            return true;
        }
        const auto device = read_device(scope, sources_);
        if (!device) return false;
        words_.device_modes[to_string(*device)] = said(mode, word.place);
        mode_places_[to_string(*device)] = scope.place;
        return true;
    }

    bool read_debug(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const level = argument(word, row);
        if (level == nullptr) return false;
        if (level->text == "1" || level->text == "2") {
            words_.debug = said(level->text == "1" ? 1 : 2, word.place);
            return true;
        }
        sources_.complain(level->place, fmt::format("debug level '{}'", level->text.substr(0, 80)),
                          "write debug 1 or debug 2");
        return false;
    }

    bool read_safety(const SmmuToken& word, const SmmuWordRow& row) {
        const SmmuToken* const mode = argument(word, row);
        if (mode == nullptr) return false;
        static constexpr std::array<std::string_view, 3> known{"none", "warn", "required"};
        const auto found = std::ranges::find(known, mode->text);
        if (found == known.end()) {
            sources_.complain(mode->place, fmt::format("safety '{}'", mode->text.substr(0, 80)),
                              suggest(mode->text, known, "write none, warn or required"));
        } else if (*found == "required") {
            sources_.complain(mode->place, "documented by QNX, not supported here: safety required",
                              "nothing here is certified: write safety none, or leave it out");
        } else {
            words_.safety = said(*found == "none" ? SafetyMode::none : SafetyMode::warn, word.place);
            return true;
        }
        return false;
    }

    bool read_user(const SmmuToken& word, const SmmuWordRow& row) {
        // A user may well be called smmu.
        const bool has_user = at_ < tokens_.size() && (!is_at_word() || !tokens_[at_].begins_line);
        const SmmuToken* const user = has_user ? &tokens_[at_++] : argument(word, row);
        if (user == nullptr) return false;
        const auto is_good = [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                   c == '-' || c == '.';
        };
        for (const SmmuPiece& piece : split_at(whole(*user), ':')) {
            if (!piece.text.empty() && piece.text.front() != '-' &&
                std::ranges::all_of(piece.text, is_good) && std::ranges::count(user->text, ':') <= 1)
                continue;
            sources_.complain(piece.place, fmt::format("'{}' is no user", user->text.substr(0, 80)),
                              "write NAME or NAME:GROUP; both may be numbers");
            return false;
        }
        words_.user = said(user->text, word.place);
        return true;
    }

    // --- the whole ---

    /// A unit's type, where words or its name say it; a name of the firmware's own may be anything else.
    [[nodiscard]] std::optional<SmmuType> type_of_unit(const std::string& name) const {
        const auto found = units_.find(name);
        if (found != units_.end()) return words_.details[found->second].type;
        return type_of_firmware_name(name);
    }

    void check_uses() {
        for (const Use& use : uses_) {
            const CoverFact& cover = words_.facts.covers[use.cover];
            const auto type = type_of_unit(cover.unit);
            if (!type) continue;
            const SmmuTypeRow& row = row_of(*type);
            const auto id = cover.identity.first_id;
            if (id && row.use_parameter.empty())
                sources_.complain(
                    use.place,
                    fmt::format("unit {} is of type {}, whose 'use' has no parameter", cover.unit, row.text),
                    fmt::format("write use {}", cover.unit));
            else if (!id && row.needs_use_parameter)
                sources_.complain(use.place,
                                  fmt::format("unit {} tells devices apart by an identity", cover.unit),
                                  fmt::format("write use {} {}", cover.unit, row.use_parameter));
            else if (type == SmmuType::amdvi && id.value_or(0) > 0xffff)
                sources_.complain(use.place, fmt::format("{} is no requester id: at most 65535", *id));
            else if (!row.needs_use_parameter && !id && std::holds_alternative<MmioDevice>(cover.which))
                note(use.place,
                     fmt::format("{} cannot be told from other devices by unit {}: such units know "
                                 "requester ids of PCI",
                                 to_string(cover.which), cover.unit));
        }
    }

    void check_sets() {
        std::vector<std::string_view> known;
        for (const AllowSet& set : words_.allowed)
            if (!set.ranges.empty()) known.push_back(set.name);
        for (std::size_t at = 0; at < words_.allowed.size(); ++at) {
            const AllowSet& set = words_.allowed[at];
            if (set.devices.empty() && !set.ranges.empty())
                note(set_places_[at], fmt::format("allow set {} is of no device", set.name));
            if (!set.ranges.empty() || broken_sets_.contains(set.name)) continue;
            sources_.complain(set_places_[at], fmt::format("no 'allow' says what '{}' is", set.name),
                              suggest(set.name, known, fmt::format("write allow {} START,LENGTH", set.name)));
        }
    }

    void check_units() {
        std::map<std::string, std::size_t> seen;
        for (std::size_t at = 0; at < words_.facts.units.size(); ++at) {
            const UnitFact& unit = words_.facts.units[at];
            const std::string where =
                unit.registers ? fmt::format("registers at {:#x}", *unit.registers)
                               : fmt::format("function {}", to_string(unit.function.value_or(PciAddress{})));
            const auto [earlier, is_first] = seen.emplace(where, at);
            if (is_first) continue;
            sources_.complain(unit_places_[at],
                              fmt::format("unit {} has the {} of unit {} ({})", unit.name, where,
                                          words_.facts.units[earlier->second].name,
                                          sources_.describe(unit_places_[earlier->second])),
                              "they are one unit: give it one name");
        }
    }

    /// A scope that names a device of no other option is a typing error: it would have no effect.
    void check_scopes() {
        for (const auto& [device, place] : mode_places_) {
            if (devices_.contains(device) || scoped_.contains(device)) continue;
            sources_.complain(place, fmt::format("no 'device' and no 'reserved' is about {}", device),
                              "the word would have no effect: is it another device?");
        }
    }

    std::span<const SmmuToken> tokens_;
    SmmuSources& sources_;
    std::size_t at_ = 0;
    UserWords words_;
    std::optional<SmmuType> type_;
    bool is_type_told_ = false;  ///< that there is no type, or a wrong one
    std::map<std::string, std::size_t> units_;
    std::vector<SmmuPlace> unit_places_;
    std::map<std::string, std::size_t> sets_;
    std::vector<SmmuPlace> set_places_;
    std::set<std::string> broken_sets_;
    std::map<std::string, DeviceState> devices_;
    std::set<std::string> scoped_;  ///< devices of `reserved`
    std::map<std::string, SmmuPlace> mode_places_;
    std::vector<Use> uses_;
};

}  // namespace

UserWords parse_smmu_tokens(std::span<const SmmuToken> tokens, SmmuSources& sources) {
    return Parser{tokens, sources}.parse();
}

}  // namespace guestmem::dma

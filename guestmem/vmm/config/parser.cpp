// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/parser.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/vmm/config/arguments.hpp"
#include "guestmem/vmm/config/vdev_words.hpp"

namespace guestmem::vmm {
namespace {

std::string_view title_of(Context context) {
    static constexpr std::array<std::string_view, 5> titles{"the machine", "cpu", "vdev", "pass", "reserve"};
    return titles[static_cast<std::size_t>(context)];
}

class Parser {
public:
    Parser(std::span<const Token> tokens, Findings& findings) : tokens_(tokens), findings_(findings) {}

    Parsed parse() {
        while (at_ < tokens_.size()) {
            if (is_swallowing_ && !ends_swallowing()) {
                ++at_;
            } else {
                read_word();
            }
        }
        finish_reserve();
        return std::move(parsed_);
    }

private:
    [[nodiscard]] VmConfig& config() { return parsed_.config; }
    [[nodiscard]] Vdev& vdev() { return parsed_.config.vdevs.back(); }
    [[nodiscard]] Cpu& cpu() { return parsed_.config.cpus.back(); }

    // --- finding the way ---

    /// A load type with its `load`: "initrd load".
    [[nodiscard]] bool is_at_typed_load() const {
        const Token& token = tokens_[at_];
        const LoadRow* row = token.is_quoted || token.text.empty() ? nullptr : find_load(token.text);
        return row != nullptr && at_ + 1 < tokens_.size() && !tokens_[at_ + 1].is_quoted &&
               tokens_[at_ + 1].text == "load";
    }
    /// In a context that is not done here every word may be its own, but for those that leave it.
    [[nodiscard]] bool ends_swallowing() const {
        const Token& token = tokens_[at_];
        if (is_at_typed_load()) return true;
        return !token.is_quoted && token.text != "set" && is_machine_word(token.text);
    }
    void skip_to_next_word() {
        while (at_ < tokens_.size() && !tokens_[at_].begins_line && !is_at_typed_load() &&
               (tokens_[at_].is_quoted || !is_any_word(tokens_[at_].text)))
            ++at_;
    }
    void swallow_context() {
        is_swallowing_ = true;
        context_ = Context::pass;
    }

    /// The token behind a word, or null and told when the next one is a word that begins a line.
    const Token* argument(const Token& word, const WordRow& row) {
        const bool is_missing =
            at_ == tokens_.size() ||
            (tokens_[at_].begins_line && !tokens_[at_].is_quoted && is_any_word(tokens_[at_].text));
        if (!is_missing) return &tokens_[at_++];
        findings_.add(word.place, fmt::format("'{}' without its argument", row.text),
                      fmt::format("write {} {}", row.text, row.argument));
        parsed_.broken.insert(row.word);
        return nullptr;
    }

    // --- words ---

    void read_word() {
        if (is_at_typed_load()) {
            const LoadRow& type = *find_load(tokens_[at_].text);
            const Place place = tokens_[at_].place;
            ++at_;
            return read_load(tokens_[at_++], type, place);
        }
        const Token& token = tokens_[at_++];
        const WordRow* row = token.is_quoted ? nullptr : find_row(token.text);
        if (row == nullptr) return complain_of_word(token);
        if (row->context == Context::vdev && (row->vdevs & only(vdev().kind)) == 0)
            return complain_of_device(token, *row);
        if (!row->can_repeat && is_duplicate(token, *row)) return;
        if (row->support == Support::not_here) return read_what_is_not_here(token, *row);
        if (row->context == Context::machine) return read_machine_word(token, *row);
        const Token* const found = argument(token, *row);
        if (found == nullptr) return;
        const Piece piece = whole(*found);
        const bool is_good = row->context == Context::cpu ? read_cpu_word(*row, piece)
                             : row->context == Context::vdev
                                 ? read_vdev_word(row->word, piece, vdev(), findings_)
                                 : read_reserve_loc(piece);
        if (!is_good) parsed_.broken.insert(row->word);
    }

    [[nodiscard]] const WordRow* find_row(std::string_view text) const {
        const WordRow* row = context_ == Context::machine ? nullptr : find_word(text, context_);
        return row != nullptr ? row : find_word(text, Context::machine);
    }

    bool is_duplicate(const Token& token, const WordRow& row) {
        if (row.word == Word::backend) return false;
        auto& seen = row.context == Context::machine ? seen_in_machine_ : seen_in_context_;
        const auto [earlier, is_first] = seen.emplace(row.word, token.place);
        if (is_first) return false;
        findings_.add(token.place,
                      fmt::format("'{}' stands already on {}", row.text,
                                  findings_.sources().describe(earlier->second, token.place)),
                      "remove one of them");
        parsed_.broken.insert(row.word);
        if (!row.argument.empty()) static_cast<void>(argument(token, row));
        return true;
    }

    void complain_of_word(const Token& token) {
        parsed_.broken.insert(Word::not_here);
        if (token.is_quoted) {
            findings_.add(token.place, "a quoted text where a word belongs",
                          "is the word before it missing?");
        } else if (find_load(token.text) != nullptr && !token.text.empty()) {
            findings_.add(token.place, fmt::format("'{}' without 'load'", token.text),
                          fmt::format("write {} load FILE", token.text));
        } else if (is_any_word(token.text)) {
            complain_of_context(token);
        } else {
            std::vector<std::string_view> known;
            for (const WordRow& row : word_rows())
                if (row.context == Context::machine || row.context == context_) known.push_back(row.text);
            for (const LoadRow& row : load_rows())
                if (!row.text.empty()) known.push_back(row.text);
            findings_.add(token.place, fmt::format("unknown word '{}' in {}", token.text, here()),
                          suggest(token.text, known));
        }
        skip_to_next_word();
    }

    [[nodiscard]] std::string suggest(std::string_view word, std::span<const std::string_view> known) const {
        // Nobody sees it beyond the limit, and a file of nothing but long unknown words would take seconds.
        if (findings_.found().size() == max_diagnostics) return {};
        const std::string_view closest = closest_word(word, known);
        return closest.empty() ? std::string{} : fmt::format("did you mean '{}'?", closest);
    }

    /// A word of the language, but of another context.
    void complain_of_context(const Token& token) {
        std::string homes;
        for (const WordRow& row : word_rows())
            if (row.text == token.text)
                homes += fmt::format("{}{}", homes.empty() ? "" : " and ", title_of(row.context));
        findings_.add(token.place, fmt::format("'{}' is a word of {}, not of {}", token.text, homes, here()),
                      fmt::format("write it behind the {} that it belongs to", homes));
    }

    void complain_of_device(const Token& token, const WordRow& row) {
        std::string homes;
        for (const VdevRow& device : vdev_rows())
            if (device.support == Support::works && (row.vdevs & only(device.kind)) != 0)
                homes += fmt::format("{}vdev {}", homes.empty() ? "" : ", ", device.text);
        findings_.add(token.place, fmt::format("{} has no '{}'", here(), row.text),
                      fmt::format("it is a word of {}", homes));
        parsed_.broken.insert(row.word);
        skip_to_next_word();
    }

    /// "the machine", "cpu on line 3", "vdev shmem on line 9".
    [[nodiscard]] std::string here() const {
        if (context_ == Context::machine) return "the machine";
        const VmConfig& config = parsed_.config;
        const std::string title = context_ == Context::vdev
                                      ? fmt::format("vdev {}", row_of(config.vdevs.back().kind).text)
                                      : std::string{title_of(context_)};
        const std::string place = findings_.sources().describe(context_place_, context_place_);
        return fmt::format("{} ({})", title, place);
    }

    void read_what_is_not_here(const Token& token, const WordRow& row) {
        findings_.add(token.place, fmt::format("documented by QNX, not supported here: {}", row.text),
                      std::string{row.help});
        parsed_.broken.insert(row.word);
        if (row.word == Word::pass) {
            finish_reserve();
            swallow_context();
        } else {
            skip_to_next_word();
        }
    }

    void open(Context context, const Token& word) {
        finish_reserve();
        is_swallowing_ = false;
        context_ = context;
        context_place_ = word.place;
        seen_in_context_.clear();
    }

    void read_machine_word(const Token& token, const WordRow& row) {
        switch (row.word) {
            case Word::cpu: return read_cpu(token);
            case Word::reserve: return read_reserve(token);
            case Word::dryrun: config().dryrun = Placed<bool>{true, token.place}; return;
            case Word::load: return read_load(token, row_of(LoadKind::kernel), token.place);
            case Word::set: return read_set(token, row);
            case Word::backend:
                findings_.add(token.place, "'backend' stands directly behind the argument of 'ram'",
                              "write ram LENGTH backend TYPE,OPTION=VALUE");
                parsed_.broken.insert(Word::backend);
                return skip_to_next_word();
            default: break;
        }
        const Token* const found = argument(token, row);
        if (found == nullptr) return;
        const Piece piece = whole(*found);
        bool is_good = true;
        switch (row.word) {
            case Word::system:
                is_good = is_system_name(piece, findings_);
                if (is_good) config().system = {found->text, piece.place};
                break;
            case Word::ram: is_good = read_ram(token.place, piece); break;
            case Word::rom: is_good = read_memory(MemoryKind::rom, token.place, piece); break;
            case Word::cmdline: is_good = read_cmdline(piece); break;
            case Word::safety: is_good = read_safety(piece); break;
            case Word::vdev: is_good = read_vdev(token, piece); break;
            default: break;
        }
        if (!is_good) parsed_.broken.insert(row.word);
    }

    // --- memory ---

    bool read_ram(const Place& place, const Piece& piece) {
        bool is_good = read_memory(MemoryKind::ram, place, piece);
        const bool has_backend =
            at_ < tokens_.size() && !tokens_[at_].is_quoted && tokens_[at_].text == "backend";
        if (!has_backend) return is_good;
        const Token& word = tokens_[at_++];
        const Token* const text = argument(word, *find_word("backend", Context::machine));
        if (text == nullptr) return is_good;
        if (!text->text.starts_with("memory-backend-")) {
            findings_.add(
                text->place, fmt::format("'{}' is no memory backend", text->text),
                "write memory-backend-ram, memory-backend-memfd or memory-backend-file, and options "
                "behind a comma");
            return false;
        }
        if (is_good) config().memory.back().backend = Placed<std::string>{text->text, whole(*text).place};
        return is_good;
    }

    /// [start,]length; all but RAM have to have a start.
    bool read_memory(MemoryKind kind, const Place& place, const Piece& piece) {
        const std::vector<Piece> pieces = split_at_commas(piece);
        if (pieces.size() > 2 || (pieces.size() == 1 && kind != MemoryKind::ram)) {
            findings_.add(piece.place,
                          fmt::format("'{}' is not {}", piece.text,
                                      kind == MemoryKind::ram ? "[START,]LENGTH" : "START,LENGTH"),
                          kind == MemoryKind::ram ? "write a length such as 192M, or 1M,191M"
                                                  : "write a start and a length, such as 0xfffc0000,256K");
            return false;
        }
        MemoryLine line;
        line.kind = kind;
        line.place = place;
        bool is_good = true;
        if (pieces.size() == 2) {
            const auto start = read_address(pieces.front(), "start", findings_);
            is_good = start.has_value();
            if (start) line.start = Placed<GuestAddress>{GuestAddress{start->value}, start->place};
        }
        const auto length = read_length(pieces.back(), findings_);
        if (!length || !is_good) return false;
        line.size_bytes = *length;
        if (config().memory.size() == max_memory_lines)
            return complain_of_many(place, max_memory_lines, "ranges of memory");
        config().memory.push_back(std::move(line));
        return true;
    }

    bool complain_of_many(const Place& place, std::size_t most, std::string_view what) {
        // The last one tells all that follow.
        if (told_.emplace(what).second) findings_.add(place, fmt::format("more than {} {}", most, what));
        return false;
    }

    void read_reserve(const Token& token) {
        open(Context::reserve, token);
        is_reserve_empty_ = true;
    }

    bool read_reserve_loc(const Piece& piece) {
        is_reserve_empty_ = false;
        return read_memory(MemoryKind::reserve, context_place_, piece);
    }

    void finish_reserve() {
        if (context_ == Context::reserve && is_reserve_empty_)
            findings_.add(context_place_, "'reserve' without a range", "write reserve loc START,LENGTH");
        is_reserve_empty_ = false;
    }

    // --- what is loaded, what is said ---

    void read_load(const Token& word, const LoadRow& type, const Place& place) {
        const Token* const found = argument(word, *find_word("load", Context::machine));
        if (found == nullptr) return;
        if (type.support == Support::not_here) {
            findings_.add(place, fmt::format("documented by QNX, not supported here: {} load", type.text),
                          std::string{type.help});
        } else {
            Load load;
            load.kind = type.kind;
            load.place = place;
            if (read_load_argument(whole(*found), load)) {
                if (config().loads.size() < max_loads) return config().loads.push_back(std::move(load));
                static_cast<void>(complain_of_many(place, max_loads, "files to load"));
            }
        }
        parsed_.broken.insert(Word::load);
    }

    bool read_load_argument(const Piece& piece, Load& load) {
        Piece file = piece;
        // A number before a comma is an address; a file that is called so is written ./3,5.
        const bool has_digit = !piece.text.empty() && piece.text.front() >= '0' && piece.text.front() <= '9';
        if (const auto halves = has_digit ? split_at_first(piece, ',') : std::nullopt) {
            const auto address =
                read_number_within(halves->first, "address", 0, guest_address_limit - 1, findings_);
            if (!address) return false;
            load.address = Placed<GuestAddress>{GuestAddress{address->value}, address->place};
            file = halves->second;
        }
        load.file = {std::string{file.text}, file.place};
        if (!file.text.empty()) return true;
        findings_.add(file.place, "an empty file name", "write the path of the file");
        return false;
    }

    bool read_cmdline(const Piece& piece) {
        if (piece.text.size() > max_cmdline_bytes) {
            findings_.add(piece.place, fmt::format("a command line of {} bytes: a kernel takes {}",
                                                   piece.text.size(), max_cmdline_bytes));
            return false;
        }
        config().cmdline = Placed<std::string>{std::string{piece.text}, piece.place};
        return true;
    }

    bool read_safety(const Piece& piece) {
        if (piece.text == "none" || piece.text == "warn") {
            config().safety = Placed<Safety>{piece.text == "warn" ? Safety::warn : Safety::none, piece.place};
            return true;
        }
        if (piece.text == "required") {
            findings_.add(piece.place, "documented by QNX, not supported here: safety required",
                          "nothing of this program is certified: write safety none, or leave it out");
        } else {
            findings_.add(piece.place, fmt::format("'{}' is not one of none, warn, required", piece.text));
        }
        return false;
    }

    void read_set(const Token& word, const WordRow& row) {
        const Token* const name = argument(word, row);
        if (name == nullptr) return;
        const VariableRow* const variable = name->is_quoted ? nullptr : find_variable(name->text);
        const Token* const found = argument(word, row);
        if (found == nullptr) return;
        if (variable == nullptr) {
            std::vector<std::string_view> known;
            for (const VariableRow& other : variable_rows()) known.push_back(other.text);
            return findings_.add(name->place, fmt::format("unknown variable '{}'", name->text),
                                 suggest(name->text, known));
        }
        if (variable->support == Support::not_here)
            return findings_.add(name->place,
                                 fmt::format("documented by QNX, not supported here: set {}", variable->text),
                                 std::string{variable->help});
        const auto [earlier, is_first] = variables_.emplace(variable->variable, name->place);
        if (!is_first)
            return findings_.add(name->place,
                                 fmt::format("variable '{}' is set already on {}", variable->text,
                                             findings_.sources().describe(earlier->second, name->place)),
                                 "remove one of them");
        read_value(*variable, whole(*found));
    }

    void read_value(const VariableRow& row, const Piece& piece) {
        Setting setting{.variable = row.variable, .value = {.value = false, .place = piece.place}};
        if (row.type == VariableType::boolean) {
            const auto value = read_boolean(piece.text);
            if (!value)
                return findings_.add(piece.place, fmt::format("'{}' is neither yes nor no", piece.text),
                                     fmt::format("write set {} yes", row.text));
            setting.value.value = *value;
        } else if (row.type == VariableType::number) {
            const auto value = read_number_within(piece, row.text, 0, ~std::uint64_t{0}, findings_);
            if (!value) return;
            setting.value.value = value->value;
        } else {
            setting.value.value = std::string{piece.text};
        }
        config().settings.push_back(std::move(setting));
    }

    // --- cpu ---

    void read_cpu(const Token& token) {
        open(Context::cpu, token);
        if (config().cpus.size() == max_vcpus) {
            static_cast<void>(complain_of_many(token.place, max_vcpus, "virtual CPUs"));
            return swallow_context();
        }
        config().cpus.push_back({.place = token.place, .partition = {}, .runmask = {}, .sched = {}});
    }

    bool read_cpu_word(const WordRow& row, const Piece& piece) {
        if (row.word == Word::sched) {
            cpu().sched = read_sched(piece, findings_);
            return cpu().sched.has_value();
        }
        if (row.word == Word::runmask) return read_runmask(piece);
        const auto partition = read_number_within(piece, "partition", 0, 31, findings_);
        if (partition)
            cpu().partition =
                Placed<std::uint32_t>{static_cast<std::uint32_t>(partition->value), partition->place};
        return partition.has_value();
    }

    bool read_runmask(const Piece& piece) {
        const std::vector<Piece> pieces = split_at_commas(piece);
        std::set<std::uint64_t> seen;
        for (const Piece& one : pieces) {
            const auto number = read_number_within(one, "CPU", 0, max_runmask_cpus - 1, findings_);
            if (!number) return false;
            if (!seen.insert(number->value).second) {
                findings_.add(one.place, fmt::format("CPU {} twice", number->value), "remove one of them");
                return false;
            }
            cpu().runmask.push_back({static_cast<std::uint32_t>(number->value), one.place});
        }
        return true;
    }

    // --- vdev ---

    bool read_vdev(const Token& token, const Piece& piece) {
        open(Context::vdev, token);
        const VdevRow* const row = find_vdev(piece.text);
        if (row == nullptr) {
            std::vector<std::string_view> known;
            for (const VdevRow& other : vdev_rows()) known.push_back(other.text);
            findings_.add(piece.place, fmt::format("unknown device '{}'", piece.text),
                          suggest(piece.text, known));
            swallow_context();
            return false;
        }
        if (row->support == Support::not_here) {
            findings_.add(piece.place,
                          fmt::format("documented by QNX, not supported here: vdev {}", row->text),
                          std::string{row->help});
            swallow_context();
            return false;
        }
        if (config().vdevs.size() == max_vdevs) {
            swallow_context();
            return complain_of_many(token.place, max_vdevs, "vdevs");
        }
        config().vdevs.emplace_back();
        vdev().kind = row->kind;
        vdev().place = token.place;
        return true;
    }

    std::span<const Token> tokens_;
    Findings& findings_;
    Parsed parsed_;
    std::size_t at_ = 0;
    Context context_ = Context::machine;
    Place context_place_;
    bool is_swallowing_ = false;
    bool is_reserve_empty_ = false;
    std::map<Word, Place> seen_in_machine_;
    std::map<Word, Place> seen_in_context_;
    std::map<Variable, Place> variables_;
    std::set<std::string, std::less<>> told_;
};

}  // namespace

Parsed parse_tokens(std::span<const Token> tokens, Findings& findings) {
    return Parser{tokens, findings}.parse();
}

}  // namespace guestmem::vmm

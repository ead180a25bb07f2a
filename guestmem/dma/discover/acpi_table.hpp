// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/base/endian.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// What the readers of ACPI tables share: the header, fields that cannot be read past their end, and a bounded
/// collection of facts and complaints.
///
/// Concepts: TableBytes is a piece of a table that knows where in the table it lies, so that each fact and complaint
/// gets its offset. TableFacts gathers what a reader finds and knows how much memory that may take.
/// Contract: a read outside of a piece is 0 and touches nothing; a reader asks has() where 0 would mean something. A
/// wrong checksum, and a length that is not the file's, are complaints; too few bytes for the fixed part and another
/// signature are errors. An add() that says false is a table with too much in it: the reader stops, and finish() is
/// the error.
/// Limits: reading a table of N bytes takes at most 8 N + 1 MiB of memory at any moment, growth of vectors included:
/// facts get all of that but N bytes, which a reader may have for notes of its own, and are at most max_facts; what
/// goes beyond is refused. max_table_complaints are listed with their text, those behind them are counted in a last
/// one.
/// Threads: any; one at a time for each TableFacts.
/// Cost: a complaint that is not listed costs no text.
/// Example:
///     TableFacts facts{Source::viot, bytes.size()};
///     const TableBytes table = GM_TRY(open_acpi_table(bytes, "VIOT", 48, facts));
///     const auto count = table.get<std::uint16_t>(36);
///     ...
///     return std::move(facts).finish();

namespace guestmem::dma {

/// ACPI specification, "System Description Table Header".
inline constexpr std::size_t acpi_header_bytes = 36;
inline constexpr std::size_t max_table_complaints = 256;
/// The facts of a table of 1 MiB that take so much are made in 10 ns for each of its bytes; twice as many are not.
inline constexpr std::size_t memory_per_table_byte = 8;
/// Enough for the facts of 4,096 PCI functions, however short their entries are.
inline constexpr std::size_t memory_beside_table_bytes = std::size_t{1} << 20;
/// A path in the ACPI namespace, without the NUL.
inline constexpr std::size_t max_acpi_path_bytes = 255;

class TableBytes {
public:
    TableBytes() = default;
    explicit TableBytes(std::span<const std::byte> bytes, std::size_t offset = 0)
        : bytes_(bytes), offset_(offset) {}

    [[nodiscard]] std::size_t size_bytes() const { return bytes_.size(); }
    /// Where this piece begins in the table.
    [[nodiscard]] std::size_t offset() const { return offset_; }
    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

    [[nodiscard]] bool has(std::size_t at, std::size_t count_bytes) const {
        return at <= bytes_.size() && count_bytes <= bytes_.size() - at;
    }
    /// The little-endian field at `at`, aligned or not; 0 when it is not all inside.
    template <std::unsigned_integral T>
    [[nodiscard]] T get(std::size_t at) const {
        return has(at, sizeof(T)) ? load_little<T>(bytes_.subspan(at).template first<sizeof(T)>()) : T{0};
    }
    /// A piece of this piece, as much of it as is inside.
    [[nodiscard]] TableBytes part(std::size_t at,
                                  std::size_t count_bytes = std::numeric_limits<std::size_t>::max()) const {
        at = at < bytes_.size() ? at : bytes_.size();
        const std::size_t room = bytes_.size() - at;
        return TableBytes{bytes_.subspan(at, count_bytes < room ? count_bytes : room), offset_ + at};
    }

private:
    std::span<const std::byte> bytes_;
    std::size_t offset_ = 0;
};

class TableFacts {
public:
    TableFacts(Source source, std::size_t table_bytes);

    /// "offset 0x48".
    [[nodiscard]] Origin origin(std::size_t offset) const;

    /// False when there is no room for it; nothing was added then.
    [[nodiscard]] bool add(UnitFact fact);
    [[nodiscard]] bool add(const CoverFact& fact);
    [[nodiscard]] bool add(CoverFact&& fact);
    [[nodiscard]] bool add(ReservedFact fact);
    /// The same as add() of such a cover; it is made where it stays.
    template <typename S>
    [[nodiscard]] bool add_cover(const std::string& unit, S which, const IdentityRule& identity,
                                 std::size_t offset) {
        if (!take_cover_room(unit, heap_bytes_of(which), offset)) {
            return false;
        }
        found_.covers.emplace_back(
            InPlace{[&] { return CoverFact{unit, std::move(which), identity, origin(offset), false}; }});
        return true;
    }
    /// Makes room for so many more covers at once, so that they do not have to move. Without room for them the table
    /// is full before the first is made.
    void expect_covers(std::size_t count);

    /// `make_text` gives the sentence, without the table's name and the offset; called when there is room for it.
    template <std::invocable F>
    void complain(std::size_t offset, F&& make_text) {
        if (found_.complaints.size() < max_table_complaints) {
            found_.complaints.push_back({origin(offset), std::forward<F>(make_text)()});
        } else {
            ++unlisted_complaints_;
        }
    }
    void complain(std::size_t offset, std::string_view text) {
        complain(offset, [&] { return std::string{text}; });
    }

    [[nodiscard]] bool is_full() const { return is_full_; }
    [[nodiscard]] const SourceFacts& so_far() const { return found_; }
    [[nodiscard]] PlatformFacts& platform() { return found_.platform; }

    [[nodiscard]] Result<SourceFacts> finish() &&;

private:
    /// Becomes what the call returns, with no copy of it.
    template <typename F>
    struct InPlace {
        F make;
        operator CoverFact() const { return make(); }  // NOLINT: the conversion is its purpose
    };

    [[nodiscard]] bool take_cover_room(const std::string& unit, std::size_t which_bytes, std::size_t offset);
    [[nodiscard]] static std::size_t heap_bytes_of(const Selector& which);
    [[nodiscard]] static std::size_t heap_bytes_of(const PciPath& which);
    [[nodiscard]] static std::size_t heap_bytes_of(const NamedDevice& which);
    template <typename S>
        requires std::is_trivially_destructible_v<S>
    [[nodiscard]] static std::size_t heap_bytes_of(const S& /*unused*/) {
        return 0;
    }
    template <typename T>
    bool take_room(std::vector<T>& facts, std::size_t count, std::size_t heap_bytes);
    template <typename T>
    bool make_room(std::vector<T>& facts, std::size_t wanted);

    Source source_;
    std::size_t table_bytes_;
    std::size_t limit_bytes_;
    std::size_t used_bytes_ = 0;
    std::size_t count_ = 0;
    std::size_t unlisted_complaints_ = 0;
    bool is_full_ = false;
    SourceFacts found_;
};

/// The table in `bytes`, as long as its header says and as the bytes go. `fixed_bytes` is what it needs at least.
[[nodiscard]] Result<TableBytes> open_acpi_table(std::span<const std::byte> bytes, std::string_view signature,
                                                 std::size_t fixed_bytes, TableFacts& facts);

/// The NUL-terminated path at the beginning of `bytes` in the form that the kernel shows, each name with its four
/// characters ("\_SB.GPIO" becomes "\_SB_.GPIO"). Nothing when there is no NUL, it is too long, or it is no path.
[[nodiscard]] std::optional<std::string> acpi_path(TableBytes bytes);

/// What of a firmware string may go to a terminal: its bytes up to a NUL, with '?' for all that does not print.
[[nodiscard]] std::string printable(std::span<const std::byte> bytes);

}  // namespace guestmem::dma

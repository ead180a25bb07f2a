// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/dmar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"

namespace guestmem::dma {
namespace {

// VT-d specification, chapter 8. Offsets are from the beginning of the table, structure or scope.
constexpr std::size_t width_at = 36;
constexpr std::size_t flags_at = 37;
constexpr std::size_t fixed_bytes = 48;
constexpr unsigned flag_interrupt_remapping = 1 << 0;
constexpr unsigned flag_protection_opt_in = 1 << 2;

constexpr std::size_t structure_header_bytes = 4;
constexpr std::size_t segment_at = 6;
constexpr std::size_t address_at = 8;
constexpr std::size_t scope_header_bytes = 6;
constexpr unsigned flag_include_all = 1 << 0;
constexpr std::uint64_t page_bytes = 4096;

enum StructureType : std::uint16_t { drhd, rmrr, atsr, rhsa, andd, satc, sidp };

struct StructureKind {
    const char* name;
    std::size_t least_bytes;  ///< what is in front of its scopes, or of its name
};
constexpr std::array<StructureKind, 7> kinds{
    {{"DRHD", 16}, {"RMRR", 24}, {"ATSR", 8}, {"RHSA", 20}, {"ANDD", 8}, {"SATC", 8}, {"SIDP", 8}}};

enum ScopeType : std::uint8_t { endpoint = 1, bridge = 2, io_apic = 3, hpet = 4, named = 5 };

/// Gives the structures one after the other. What ends the walk before the table does is said by `problem`.
class StructureWalk {
public:
    explicit StructureWalk(TableBytes table) : table_(table) {}

    std::optional<TableBytes> next() {
        const std::size_t left = table_.size_bytes() - at_;
        if (left == 0) {
            return std::nullopt;
        }
        const std::size_t length = table_.get<std::uint16_t>(at_ + 2);
        if (left < structure_header_bytes || length < structure_header_bytes || length > left) {
            is_broken_ = true;
            return std::nullopt;
        }
        at_ += length;
        return table_.part(at_ - length, length);
    }
    [[nodiscard]] bool is_broken() const { return is_broken_; }
    /// What was not read.
    [[nodiscard]] TableBytes rest() const { return table_.part(at_); }

private:
    TableBytes table_;
    std::size_t at_ = fixed_bytes;  // open_acpi_table() has seen that these are there
    bool is_broken_ = false;
};

struct Scope {
    TableBytes bytes;
    unsigned type = 0;
    std::uint8_t id = 0;
    std::uint8_t start_bus = 0;

    [[nodiscard]] std::size_t hops() const { return (bytes.size_bytes() - scope_header_bytes) / 2; }
    [[nodiscard]] PciHop hop(std::size_t number) const {
        return {bytes.get<std::uint8_t>(scope_header_bytes + number * 2),
                bytes.get<std::uint8_t>(scope_header_bytes + number * 2 + 1)};
    }
    /// Its function's requester id, as far as the table knows it: of a path without bridges.
    [[nodiscard]] PciAddress address(std::uint16_t segment) const {
        return pci_address(segment, start_bus, hop(0).device, hop(0).function);
    }
};

class DmarReader {
public:
    DmarReader(TableBytes table, TableFacts facts) : table_(table), facts_(std::move(facts)) {}

    Result<SourceFacts> read() && {
        if (!look_ahead()) {
            return Error{Errc::out_of_range,
                         fmt::format("DMAR table: more than {} units (DRHD structures): no machine has them",
                                     max_dmar_units)};
        }
        read_fixed_part();
        StructureWalk walk{table_};
        while (!facts_.is_full()) {
            const auto structure = walk.next();
            if (!structure) {
                break;
            }
            read_structure(*structure);
        }
        if (walk.is_broken()) {
            complain_of_end(walk.rest());
        }
        check_overlaps();
        return std::move(facts_).finish();
    }

private:
    /// What has to be known before the structures that refer to it: names, bases, and how much there will be.
    bool look_ahead() {
        StructureWalk walk{table_};
        std::size_t scopes = 0;
        std::size_t units = 0;
        std::size_t ranges = 0;
        while (const auto structure = walk.next()) {
            const auto type = structure->get<std::uint16_t>(0);
            if (type == rmrr) {
                ++ranges;
            } else if (type == andd && structure->size_bytes() > kinds[andd].least_bytes) {
                const auto id = structure->get<std::uint8_t>(7);
                names_[id] = names_[id].size_bytes() == 0 ? *structure : names_[id];
            } else if (type == drhd && structure->size_bytes() >= kinds[drhd].least_bytes) {
                if (++units > max_dmar_units) {
                    return false;
                }
                bases_.push_back(structure->get<std::uint64_t>(address_at));
                scopes += 1 + count_scopes(structure->part(kinds[drhd].least_bytes));
            }
        }
        std::ranges::sort(bases_);
        extents_.reserve(ranges);
        facts_.expect_covers(scopes);
        return true;
    }

    static std::size_t count_scopes(TableBytes rest) {
        std::size_t count = 0;
        while (rest.size_bytes() >= scope_header_bytes) {
            const std::size_t length = rest.get<std::uint8_t>(1);
            if (length < scope_header_bytes || length > rest.size_bytes()) {
                break;
            }
            ++count;
            rest = rest.part(length);
        }
        return count;
    }

    void read_fixed_part() {
        const auto flags = table_.get<std::uint8_t>(flags_at);
        facts_.platform().has_interrupt_remapping = (flags & flag_interrupt_remapping) != 0;
        facts_.platform().is_protected_from_start = (flags & flag_protection_opt_in) != 0;
        const unsigned bits = table_.get<std::uint8_t>(width_at) + 1u;
        if (bits < 12 || bits > 64) {
            facts_.complain(width_at, [&] { return fmt::format("a host address width of {} bits", bits); });
        } else {
            facts_.platform().address_bits = static_cast<std::uint8_t>(bits);
        }
    }

    void complain_of_end(TableBytes rest) {
        facts_.complain(rest.offset(), [&] {
            if (rest.size_bytes() < structure_header_bytes) {
                return fmt::format("{} bytes at the end are too few for a structure", rest.size_bytes());
            }
            const auto length = rest.get<std::uint16_t>(2);
            const auto why = length < structure_header_bytes ? "shorter than its own header"
                                                             : "longer than what is left of the table";
            return fmt::format("a structure of type {} with a length of {} bytes, {}: {} bytes are not read",
                               rest.get<std::uint16_t>(0), length, why, rest.size_bytes());
        });
    }

    void read_structure(TableBytes structure) {
        const auto type = structure.get<std::uint16_t>(0);
        if (type >= kinds.size()) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("a structure of unknown type {} ({} bytes): not read", type,
                                   structure.size_bytes());
            });
            return;
        }
        const StructureKind& kind = kinds[type];
        if (structure.size_bytes() < kind.least_bytes) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("{} structure of {} bytes, it has at least {}: not read", kind.name,
                                   structure.size_bytes(), kind.least_bytes);
            });
            return;
        }
        switch (type) {
            case drhd: read_unit(structure); break;
            case rmrr: read_reserved(structure); break;
            case rhsa: read_affinity(structure); break;
            case andd: read_name(structure); break;
            default: for_each_scope(structure, kind, [](const Scope&) {}); break;
        }
    }

    /// Calls on_scope for each scope that can be used.
    template <typename F>
    void for_each_scope(TableBytes structure, const StructureKind& kind, F&& on_scope) {
        TableBytes rest = structure.part(kind.least_bytes);
        while (rest.size_bytes() > 0 && !facts_.is_full()) {
            const std::size_t length = rest.get<std::uint8_t>(1);
            if (length < scope_header_bytes || length > rest.size_bytes()) {
                facts_.complain(rest.offset(), [&] {
                    return fmt::format("device scope of {} bytes with {} left in its {}: those are not read",
                                       length, rest.size_bytes(), kind.name);
                });
                return;
            }
            const Scope scope{rest.part(0, length), rest.get<std::uint8_t>(0), rest.get<std::uint8_t>(4),
                              rest.get<std::uint8_t>(5)};
            rest = rest.part(length);
            if (is_usable(scope, length)) {
                on_scope(scope);
            }
        }
    }

    bool is_usable(const Scope& scope, std::size_t length) {
        const std::size_t offset = scope.bytes.offset();
        if (scope.type < endpoint || scope.type > named) {
            facts_.complain(
                offset, [&] { return fmt::format("device scope of unknown type {}: not read", scope.type); });
            return false;
        }
        if (scope.hops() == 0) {
            facts_.complain(offset, "device scope without a path: it says no device");
            return false;
        }
        if (length % 2 != 0) {
            facts_.complain(offset, "device scope with half a step at the end of its path: that is not read");
        }
        for (std::size_t number = 0; number < scope.hops(); ++number) {
            const PciHop hop = scope.hop(number);
            if (hop.device > 31 || hop.function > 7) {
                facts_.complain(offset, [&] {
                    return fmt::format("device scope with a path through device {}, function {}: not read",
                                       hop.device, hop.function);
                });
                return false;
            }
        }
        return true;
    }

    static Selector path_of(const Scope& scope, std::uint16_t segment) {
        PciPath path{segment, scope.start_bus, {}, scope.type == bridge};
        path.hops.reserve(scope.hops());
        for (std::size_t number = 0; number < scope.hops(); ++number) {
            path.hops.push_back(scope.hop(number));
        }
        return path;
    }

    /// The device of a scope of type 5, by its enumeration id.
    std::optional<Selector> name_of(const Scope& scope) {
        const TableBytes structure = names_[scope.id];
        const auto path = acpi_path(structure.part(kinds[andd].least_bytes));
        if (!path) {
            facts_.complain(scope.bytes.offset(), [&] {
                return fmt::format("device scope of namespace device {}, whose name no ANDD structure tells",
                                   scope.id);
            });
            return std::nullopt;
        }
        return NamedDevice{*path};
    }

    void read_unit(TableBytes structure) {
        const auto base = structure.get<std::uint64_t>(address_at);
        const auto segment = structure.get<std::uint16_t>(segment_at);
        std::string name;
        if (base == 0) {
            facts_.complain(
                structure.offset(),
                "DRHD with its registers at address 0: no unit is there, its devices are behind none");
        } else {
            name = unit_name(UnitKind::vt_d, base);
            add_unit(structure, name);
        }
        for_each_scope(structure, kinds[drhd], [&](const Scope& scope) { add_cover(scope, segment, name); });
        if ((structure.get<std::uint8_t>(4) & flag_include_all) == 0 || base == 0) {
            return;
        }
        if (has_rest_[segment]) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("a second INCLUDE_PCI_ALL in segment {:04x}: the first one has the rest",
                                   segment);
            });
            return;
        }
        has_rest_.set(segment);
        (void)facts_.add_cover(name, PciRest{segment}, {}, structure.offset());
    }

    void add_unit(TableBytes structure, const std::string& name) {
        const auto base = structure.get<std::uint64_t>(address_at);
        if (base % page_bytes != 0) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("DRHD with its registers at {:#x}, which is not the start of a page",
                                   base);
            });
        }
        const auto number = static_cast<std::size_t>(std::ranges::lower_bound(bases_, base) - bases_.begin());
        if (has_unit_[number]) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("a second DRHD with its registers at {:#x}: taken as the same unit", base);
            });
            return;
        }
        has_unit_.set(number);
        UnitFact unit;
        unit.name = name;
        unit.kind = UnitKind::vt_d;
        unit.registers = base;
        unit.registers_bytes = page_bytes << (structure.get<std::uint8_t>(5) & 0xf);
        unit.segment = structure.get<std::uint16_t>(segment_at);
        unit.origin = facts_.origin(structure.offset());
        (void)facts_.add(std::move(unit));
    }

    void add_cover(const Scope& scope, std::uint16_t segment, const std::string& unit) {
        Selector which;
        IdentityRule identity;
        if (scope.type == endpoint || scope.type == bridge) {
            which = path_of(scope, segment);
        } else if (scope.hops() > 1) {
            facts_.complain(scope.bytes.offset(), [&] {
                return fmt::format("device scope of type {} behind a bridge: its requester id is not known",
                                   scope.type);
            });
            return;
        } else if (scope.type == named) {
            auto name = name_of(scope);
            if (!name) {
                return;
            }
            which = *std::move(name);
            identity.first_id = scope.address(segment).rid;
            identity.is_shared = true;
        } else {
            which = InterruptSender{
                scope.type == hpet ? InterruptSender::Kind::hpet : InterruptSender::Kind::io_apic, scope.id,
                scope.address(segment)};
        }
        (void)facts_.add_cover(unit, std::move(which), identity, scope.bytes.offset());
    }

    void read_reserved(TableBytes structure) {
        ReservedFact range;
        range.first = structure.get<std::uint64_t>(address_at);
        range.last = structure.get<std::uint64_t>(16);
        const auto text = [&] { return fmt::format("RMRR {:#x} to {:#x}", range.first, range.last); };
        if (range.last < range.first) {
            facts_.complain(structure.offset(),
                            [&] { return text() + ": its limit is below its base: not a range"; });
            return;
        }
        if (range.first % page_bytes != 0 || range.last % page_bytes != page_bytes - 1) {
            facts_.complain(structure.offset(), [&] { return text() + ": is not whole pages"; });
        }
        range.who.reserve(count_scopes(structure.part(kinds[rmrr].least_bytes)));
        for_each_scope(structure, kinds[rmrr], [&](const Scope& scope) {
            if (scope.type == endpoint || scope.type == bridge) {
                range.who.push_back(path_of(scope, structure.get<std::uint16_t>(segment_at)));
            } else {
                facts_.complain(scope.bytes.offset(), [&] {
                    return fmt::format("RMRR for a device of scope type {}: only PCI functions have ranges",
                                       scope.type);
                });
            }
        });
        if (range.who.empty()) {
            // An empty list would mean all devices.
            facts_.complain(structure.offset(), [&] { return text() + ": is for no device"; });
            return;
        }
        range.origin = facts_.origin(structure.offset());
        extents_.push_back({range.first, range.last, structure.offset()});
        (void)facts_.add(std::move(range));
    }

    void read_affinity(TableBytes structure) {
        const auto base = structure.get<std::uint64_t>(address_at);
        if (!std::ranges::binary_search(bases_, base)) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("RHSA for registers at {:#x}, where no DRHD has a unit", base);
            });
        }
    }

    void read_name(TableBytes structure) {
        const auto id = structure.get<std::uint8_t>(7);
        if (names_[id].offset() != structure.offset()) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("a second ANDD for namespace device {}: the first one names it", id);
            });
        } else if (!acpi_path(structure.part(kinds[andd].least_bytes))) {
            facts_.complain(structure.offset(), [&] {
                return fmt::format("ANDD of namespace device {} with a name that is no path", id);
            });
        }
    }

    struct Extent {
        std::uint64_t first;
        std::uint64_t last;
        std::size_t offset;
    };

    void check_overlaps() {
        std::ranges::sort(extents_, {},
                          [](const Extent& extent) { return std::pair{extent.first, extent.offset}; });
        const Extent* highest = nullptr;
        for (const Extent& extent : extents_) {
            if (highest != nullptr && extent.first <= highest->last) {
                facts_.complain(extent.offset, [&] {
                    return fmt::format("RMRR {:#x} to {:#x} overlaps the one at offset {:#x}, {:#x} to {:#x}",
                                       extent.first, extent.last, highest->offset, highest->first,
                                       highest->last);
                });
            }
            if (highest == nullptr || extent.last > highest->last) {
                highest = &extent;
            }
        }
    }

    TableBytes table_;
    TableFacts facts_;
    std::array<TableBytes, 256> names_ = {};  ///< the ANDD structure of each enumeration id
    std::vector<std::uint64_t> bases_;        ///< of all DRHD structures, sorted
    std::bitset<max_dmar_units> has_unit_;    ///< by the place of its base in bases_
    std::bitset<65536> has_rest_;             ///< by segment
    std::vector<Extent> extents_;
};

}  // namespace

Result<SourceFacts> read_dmar(std::span<const std::byte> table) {
    TableFacts facts{Source::dmar, table.size()};
    const TableBytes bytes = GM_TRY(open_acpi_table(table, "DMAR", fixed_bytes, facts));
    return DmarReader{bytes, std::move(facts)}.read();
}

}  // namespace guestmem::dma

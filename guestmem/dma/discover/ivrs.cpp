// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/ivrs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"

namespace guestmem::dma {
namespace {

// AMD I/O virtualization specification, chapter 5. Offsets are from the beginning of the table, block or entry.
constexpr std::size_t info_at = 36;
constexpr std::size_t fixed_bytes = 48;
constexpr std::uint32_t info_remapped_from_start = 1 << 1;
constexpr unsigned info_width_shift = 8;
constexpr std::uint32_t info_width_mask = 0x7f;

constexpr std::size_t block_header_bytes = 4;
constexpr std::size_t device_at = 4;

enum BlockType : std::uint8_t {
    ivhd_10 = 0x10,
    ivhd_11 = 0x11,
    ivmd_all = 0x20,
    ivmd_one = 0x21,
    ivmd_range = 0x22,
    ivhd_40 = 0x40,
};
constexpr std::size_t ivmd_bytes = 32;

enum EntryType : std::uint8_t {
    padding_4 = 0x00,
    all = 0x01,
    select = 0x02,
    range_start = 0x03,
    range_end = 0x04,
    padding_8 = 0x40,
    alias_select = 0x42,
    alias_range_start = 0x43,
    extended_select = 0x46,
    extended_range_start = 0x47,
    special = 0x48,
    acpi_device = 0xf0,
};
constexpr std::size_t acpi_device_bytes = 22;  ///< without its UID

constexpr unsigned ivmd_unity = 1 << 0;
constexpr unsigned ivmd_read = 1 << 1;
constexpr unsigned ivmd_write = 1 << 2;
constexpr unsigned ivmd_exclusion = 1 << 3;

constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t unit_alignment_bytes = 16 * 1024;

bool is_ivhd(unsigned type) { return type == ivhd_10 || type == ivhd_11 || type == ivhd_40; }
/// Where its entries begin.
std::size_t ivhd_bytes(unsigned type) { return type == ivhd_10 ? 24 : 40; }

/// Of the entry at the front of `rest`; 0 when nobody knows it.
std::size_t entry_bytes(TableBytes rest) {
    const auto type = rest.get<std::uint8_t>(0);
    if (type < 0x80) {
        return std::size_t{4} << (type >> 6);
    }
    return type == acpi_device && rest.has(0, acpi_device_bytes)
               ? acpi_device_bytes + rest.get<std::uint8_t>(acpi_device_bytes - 1)
               : 0;
}

/// Gives the blocks one after the other. What ends the walk before the table does is_broken().
class BlockWalk {
public:
    explicit BlockWalk(TableBytes table) : table_(table) {}

    std::optional<TableBytes> next() {
        const std::size_t left = table_.size_bytes() - at_;
        if (left == 0) {
            return std::nullopt;
        }
        const std::size_t length = table_.get<std::uint16_t>(at_ + 2);
        if (left < block_header_bytes || length < block_header_bytes || length > left) {
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

/// The devices of entries between a range's start and its end.
struct OpenRange {
    std::size_t offset = 0;
    std::uint16_t first = 0;
    std::optional<std::uint16_t> source = {};  ///< of an alias
};

class IvrsReader {
public:
    IvrsReader(TableBytes table, TableFacts facts) : table_(table), facts_(std::move(facts)) {}

    Result<SourceFacts> read() && {
        read_info();
        if (!look_ahead()) {
            return Error{Errc::out_of_range,
                         fmt::format("IVRS table: more than {} units (IVHD blocks): no machine has them",
                                     max_ivrs_units)};
        }
        BlockWalk walk{table_};
        while (!facts_.is_full()) {
            const auto block = walk.next();
            if (!block) {
                break;
            }
            read_block(*block);
        }
        if (walk.is_broken()) {
            complain_of_end(walk.rest());
        }
        for (const SkippedUnit& unit : skipped_) {
            complain_if_missing(unit);
        }
        return std::move(facts_).finish();
    }

private:
    struct SkippedUnit {
        PciAddress function;
        std::size_t offset;
        unsigned type;
    };

    static PciAddress function_of(TableBytes block) {
        return {block.get<std::uint16_t>(16), block.get<std::uint16_t>(device_at)};
    }

    void read_info() {
        const auto info = table_.get<std::uint32_t>(info_at);
        facts_.platform().is_protected_from_start = (info & info_remapped_from_start) != 0;
        const std::uint32_t bits = info >> info_width_shift & info_width_mask;
        if (bits > 64) {
            facts_.complain(info_at,
                            [&] { return fmt::format("a physical address width of {} bits", bits); });
        } else if (bits != 0) {
            facts_.platform().address_bits = static_cast<std::uint8_t>(bits);
        }
    }

    /// Finds the flavor, and how many covers its blocks have at most. False: too many units.
    bool look_ahead() {
        std::optional<std::uint16_t> first_device;
        std::size_t blocks = 0;
        std::array<std::size_t, ivhd_40 + 1> covers{};  // by type
        for (BlockWalk walk{table_}; const auto block = walk.next();) {
            const auto type = block->get<std::uint8_t>(0);
            if (!is_ivhd(type) || block->size_bytes() < ivhd_bytes(type)) {
                continue;
            }
            if (++blocks > max_ivrs_units) {
                return false;
            }
            const auto device = block->get<std::uint16_t>(device_at);
            first_device = first_device.value_or(device);
            flavor_ = device == *first_device ? type : flavor_;
            covers[type] += count_covers(block->part(ivhd_bytes(type)));
        }
        facts_.expect_covers(covers[flavor_]);
        return true;
    }

    static std::size_t count_covers(TableBytes rest) {
        std::size_t count = 0;
        bool has_source = false;
        while (rest.size_bytes() > 0) {
            const std::size_t length = entry_bytes(rest);
            if (length == 0 || length > rest.size_bytes()) {
                break;
            }
            switch (rest.get<std::uint8_t>(0)) {
                case all:
                case select:
                case extended_select: count += 1; break;
                case range_start:
                case extended_range_start: has_source = false; break;
                case alias_range_start: has_source = true; break;
                case range_end: count += has_source ? 2 : 1; break;
                case alias_select:
                case special:
                case acpi_device: count += 2; break;
                default: break;
            }
            rest = rest.part(length);
        }
        return count;
    }

    void complain_of_end(TableBytes rest) {
        facts_.complain(rest.offset(), [&] {
            if (rest.size_bytes() < block_header_bytes) {
                return fmt::format("{} bytes at the end are too few for a block", rest.size_bytes());
            }
            const auto length = rest.get<std::uint16_t>(2);
            const auto why = length < block_header_bytes ? "shorter than its own header"
                                                         : "longer than what is left of the table";
            return fmt::format("a block of type {:#04x} with a length of {} bytes, {}: {} bytes are not read",
                               rest.get<std::uint8_t>(0), length, why, rest.size_bytes());
        });
    }

    void read_block(TableBytes block) {
        const unsigned type = block.get<std::uint8_t>(0);
        const bool is_memory = type == ivmd_all || type == ivmd_one || type == ivmd_range;
        if (!is_memory && !is_ivhd(type)) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("a block of unknown type {:#04x} ({} bytes): not read", type,
                                   block.size_bytes());
            });
            return;
        }
        const std::size_t least_bytes = is_memory ? ivmd_bytes : ivhd_bytes(type);
        if (block.size_bytes() < least_bytes) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("{} block of type {:#04x} with {} bytes, it has at least {}: not read",
                                   is_memory ? "IVMD" : "IVHD", type, block.size_bytes(), least_bytes);
            });
            return;
        }
        if (is_memory) {
            read_memory(block, type);
        } else if (type == flavor_) {
            read_unit(block);
        } else {
            skipped_.push_back({function_of(block), block.offset(), type});
        }
    }

    void complain_if_missing(const SkippedUnit& unit) {
        if (!has_unit(unit.function)) {
            facts_.complain(unit.offset, [&] {
                return fmt::format(
                    "the unit at {} has a block of type {:#04x} and none of type {:#04x}, which the "
                    "first unit has: the kernel does not use it",
                    to_string(unit.function), unit.type, flavor_);
            });
        }
    }

    [[nodiscard]] bool has_unit(PciAddress function) const {
        return std::ranges::find(units_, function) != units_.end();
    }

    void read_unit(TableBytes block) {
        const PciAddress function = function_of(block);
        unit_ = unit_name(UnitKind::amd_vi, function);
        segment_ = function.segment;
        if (has_unit(function)) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("a second block of type {:#04x} for the unit at {}: taken as one unit",
                                   flavor_, to_string(function));
            });
        } else {
            add_unit(block, function);
        }
        read_entries(block.part(ivhd_bytes(flavor_)));
    }

    void add_unit(TableBytes block, PciAddress function) {
        const auto base = block.get<std::uint64_t>(8);
        units_.push_back(function);
        UnitFact unit;
        unit.name = unit_;
        unit.kind = UnitKind::amd_vi;
        unit.function = function;
        unit.segment = function.segment;
        unit.origin = facts_.origin(block.offset());
        if (base == 0) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("the unit at {} has its registers at address 0", to_string(function));
            });
        } else {
            unit.registers = base;
        }
        if (base % unit_alignment_bytes != 0) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("the unit at {} has its registers at {:#x}, not at a multiple of 16 KiB",
                                   to_string(function), base);
            });
        }
        (void)facts_.add(std::move(unit));
    }

    void read_entries(TableBytes rest) {
        open_.reset();
        while (rest.size_bytes() > 0 && !facts_.is_full()) {
            const std::size_t length = entry_bytes(rest);
            if (length == 0 || length > rest.size_bytes()) {
                facts_.complain(rest.offset(), [&] {
                    return fmt::format(
                        "entry of type {:#04x} {} with {} bytes left in its block: those are not "
                        "read",
                        rest.get<std::uint8_t>(0),
                        length == 0 ? std::string{"and unknown length"} : fmt::format("and {} bytes", length),
                        rest.size_bytes());
                });
                break;
            }
            read_entry(rest.part(0, length));
            rest = rest.part(length);
        }
        complain_if_open();
    }

    void read_entry(TableBytes entry) {
        const auto device = entry.get<std::uint16_t>(1);
        const auto source = entry.get<std::uint16_t>(5);
        switch (entry.get<std::uint8_t>(0)) {
            case padding_4:
            case padding_8: break;
            case all: cover(entry.offset(), 0, std::numeric_limits<std::uint16_t>::max(), {}); break;
            case select:
            case extended_select: cover(entry.offset(), device, device, {}); break;
            case alias_select: cover(entry.offset(), device, device, source); break;
            case range_start:
            case extended_range_start: open_range({entry.offset(), device, {}}); break;
            case alias_range_start: open_range({entry.offset(), device, source}); break;
            case range_end: close_range(entry, device); break;
            case special: read_special(entry, source); break;
            case acpi_device: read_acpi_device(entry, device); break;
            default:
                facts_.complain(entry.offset(), [&] {
                    return fmt::format("entry of unknown type {:#04x}: not read", entry.get<std::uint8_t>(0));
                });
                break;
        }
    }

    void cover(std::size_t offset, std::uint16_t first, std::uint16_t last,
               std::optional<std::uint16_t> source) {
        IdentityRule identity;
        if (source) {
            identity.first_id = *source;
            identity.is_shared = true;
        }
        (void)facts_.add_cover(unit_, PciRange{segment_, first, last}, identity, offset);
        if (source) {
            cover(offset, *source, *source, {});
        }
    }

    void complain_if_open() {
        if (open_) {
            facts_.complain(open_->offset, [&] {
                return fmt::format("a range that begins with device id {:#06x} and is not closed: not read",
                                   open_->first);
            });
        }
    }

    void open_range(OpenRange range) {
        complain_if_open();
        open_ = range;
    }

    void close_range(TableBytes entry, std::uint16_t last) {
        if (!open_) {
            facts_.complain(entry.offset(), [&] {
                return fmt::format("a range that ends with device id {:#06x} and was not begun: not read",
                                   last);
            });
            return;
        }
        const OpenRange range = *std::exchange(open_, std::nullopt);
        if (last < range.first) {
            facts_.complain(range.offset, [&] {
                return fmt::format("a range from device id {:#06x} down to {:#06x}: not read", range.first,
                                   last);
            });
            return;
        }
        cover(range.offset, range.first, last, range.source);
    }

    void read_special(TableBytes entry, std::uint16_t source) {
        const auto variety = entry.get<std::uint8_t>(7);
        if (variety != 1 && variety != 2) {
            facts_.complain(entry.offset(), [&] {
                return fmt::format("special entry of unknown variety {}: 1 is an I/O APIC, 2 an HPET",
                                   variety);
            });
            return;
        }
        const InterruptSender sender{
            variety == 1 ? InterruptSender::Kind::io_apic : InterruptSender::Kind::hpet,
            entry.get<std::uint8_t>(4), PciAddress{segment_, source}};
        (void)facts_.add_cover(unit_, sender, {}, entry.offset());
        cover(entry.offset(), source, source, {});
    }

    void read_acpi_device(TableBytes entry, std::uint16_t device) {
        if (flavor_ != ivhd_40) {
            facts_.complain(entry.offset(), [&] {
                return fmt::format("entry of type 0xf0 in a block of type {:#04x}: only 0x40 has them",
                                   flavor_);
            });
            return;
        }
        std::string name = printable(entry.part(4, 8).bytes());
        if (name.empty()) {
            facts_.complain(entry.offset(), "entry of type 0xf0 without a hardware id: it says no device");
            return;
        }
        const auto format = entry.get<std::uint8_t>(20);
        const std::size_t length = entry.get<std::uint8_t>(21);
        const TableBytes uid = entry.part(acpi_device_bytes);
        if (format == 1 && length > 0 && length <= 8) {
            std::uint64_t number = 0;
            for (std::size_t at = length; at-- > 0;) {
                number = number << 8 | uid.get<std::uint8_t>(at);
            }
            name += fmt::format(":{}", number);
        } else if (format == 2 && length > 0) {
            name.reserve(name.size() + 1 + length);
            name += ':';
            name += printable(uid.bytes());
        } else if (format != 0 || length != 0) {
            facts_.complain(entry.offset(), [&] {
                return fmt::format(
                    "entry of type 0xf0 for '{}' with a unique id of format {} and {} bytes: taken as "
                    "having none",
                    name, format, length);
            });
        }
        IdentityRule identity;
        identity.first_id = device;
        identity.is_shared = true;
        (void)facts_.add_cover(unit_, NamedDevice{std::move(name)}, identity, entry.offset());
        cover(entry.offset(), device, device, {});
    }

    void read_memory(TableBytes block, unsigned type) {
        const unsigned flags = block.get<std::uint8_t>(1);
        const auto first_id = block.get<std::uint16_t>(device_at);
        const auto last_id = type == ivmd_range ? block.get<std::uint16_t>(6) : first_id;
        const auto start = block.get<std::uint64_t>(16);
        const auto bytes = block.get<std::uint64_t>(24);
        const auto complain = [&](const char* why) {
            facts_.complain(block.offset(), [&] {
                return fmt::format("IVMD of {:#x} bytes at {:#x} for device ids {:#06x} to {:#06x}: {}",
                                   bytes, start, first_id, last_id, why);
            });
        };
        if (bytes == 0) {
            complain("it has no memory, not read");
        } else if (bytes - 1 > std::numeric_limits<std::uint64_t>::max() - start) {
            complain("it ends behind the last address, not read");
        } else if (last_id < first_id) {
            complain("its ids are reversed, not read");
        } else if ((flags & (ivmd_unity | ivmd_exclusion)) == 0) {
            complain("neither unity nor exclusion: nobody has to keep it");
        } else {
            if (start % page_bytes != 0 || bytes % page_bytes != 0) {
                complain("it is not whole pages");
            }
            ReservedFact range;
            if (type != ivmd_all) {
                range.who.emplace_back(PciRange{block.get<std::uint16_t>(8), first_id, last_id});
            }
            range.first = start;
            range.last = start + (bytes - 1);
            const bool is_exclusion = (flags & ivmd_exclusion) != 0;
            range.can_read = is_exclusion || (flags & ivmd_read) != 0;
            range.can_write = is_exclusion || (flags & ivmd_write) != 0;
            range.origin = facts_.origin(block.offset());
            (void)facts_.add(std::move(range));
        }
    }

    TableBytes table_;
    TableFacts facts_;
    std::uint8_t flavor_ = 0;        ///< the type of the IVHD blocks that are read; 0: there are none
    std::vector<PciAddress> units_;  ///< at most max_ivrs_units
    std::vector<SkippedUnit> skipped_;
    std::string unit_;  ///< of the block that is read
    std::uint16_t segment_ = 0;
    std::optional<OpenRange> open_;
};

}  // namespace

Result<SourceFacts> read_ivrs(std::span<const std::byte> table) {
    TableFacts facts{Source::ivrs, table.size()};
    const TableBytes bytes = GM_TRY(open_acpi_table(table, "IVRS", fixed_bytes, facts));
    return IvrsReader{bytes, std::move(facts)}.read();
}

}  // namespace guestmem::dma

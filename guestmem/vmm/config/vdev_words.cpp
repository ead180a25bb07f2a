// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/vdev_words.hpp"

#include <fmt/format.h>

#include "guestmem/share/config.hpp"

namespace guestmem::vmm {
namespace {

bool read_loc(const Piece& piece, Vdev& vdev, Findings& findings) {
    // A serial port has eight ports, the last of which has to be one.
    vdev.loc = vdev.kind == VdevKind::ser8250 ? read_number_within(piece, "port", 0, 0xffff - 7, findings)
                                              : read_address(piece, "loc", findings);
    return vdev.loc.has_value();
}

bool read_intr(const Piece& piece, Vdev& vdev, Findings& findings) {
    auto interrupt = read_interrupt(piece, findings);
    if (!interrupt) return false;
    const bool is_ioapic = vdev.kind == VdevKind::ioapic;
    if (is_ioapic && interrupt->value.pin) {
        findings.add(piece.place, fmt::format("an ioapic at '{}': only 'apic' is above it", piece.text),
                     "write intr apic");
        return false;
    }
    if (!is_ioapic && !interrupt->value.pin) {
        findings.add(piece.place, "only an ioapic has the interrupt 'apic'",
                     "write the name of an ioapic and a pin, such as myioapic:10");
        return false;
    }
    vdev.intr = std::move(interrupt);
    return true;
}

bool read_name(const Piece& piece, Vdev& vdev, Findings& findings) {
    if (!is_vdev_name(piece, findings)) return false;
    const bool is_beyond_reach =
        piece.text.find(':') != std::string_view::npos || piece.text == "apic" || piece.text == "cpu";
    if (vdev.kind == VdevKind::ioapic && is_beyond_reach) {
        findings.add(piece.place, fmt::format("'{}' as the name of an ioapic", piece.text),
                     "leave out ':', and call it neither apic nor cpu: intr could not name it");
        return false;
    }
    vdev.name = Placed<std::string>{std::string{piece.text}, piece.place};
    return true;
}

bool read_hostdev(const Piece& piece, Vdev& vdev, Findings& findings) {
    if (piece.text.empty() || piece.text == ">") {
        findings.add(piece.place, "an empty path", "write the path of a device, or >- for standard output");
        return false;
    }
    vdev.hostdev = Placed<std::string>{std::string{piece.text}, piece.place};
    return true;
}

bool read_share_size(const Piece& piece, std::optional<Placed<std::uint64_t>>& size, Findings& findings) {
    const auto number = read_number_within(piece, "size", 0, ~std::uint64_t{0}, findings);
    if (!number || !is_share_size(piece, number->value, findings)) return false;
    size = number;
    return true;
}

bool read_create(const Piece& piece, Vdev& vdev, Findings& findings) {
    // At the last comma: a name may have one.
    const auto halves = split_at_last(piece, ',');
    if (!halves) {
        findings.add(piece.place, fmt::format("'{}' is not NAME,SIZE", piece.text),
                     "write a name and a size in bytes, such as camera,0xf0000");
        return false;
    }
    std::optional<Placed<std::uint64_t>> size;
    const bool is_named = is_share_name(halves->first, findings);
    if (!read_share_size(halves->second, size, findings) || !is_named) return false;
    CreateLine line{.name = {std::string{halves->first.text}, halves->first.place}, .size_bytes = *size};
    vdev.shmem.creates.push_back(std::move(line));
    return true;
}

bool read_rule(const Piece& piece, bool is_allowed, Vdev& vdev, Findings& findings) {
    if (!is_pattern(piece, findings)) return false;
    vdev.shmem.rules.push_back({is_allowed, {std::string{piece.text}, piece.place}});
    return true;
}

bool read_share(const Piece& piece, Vdev& vdev, Findings& findings) {
    if (!is_share_name(piece, findings)) return false;
    vdev.ivshmem.share = {std::string{piece.text}, piece.place};
    return true;
}

bool read_vectors(const Piece& piece, Vdev& vdev, Findings& findings) {
    const auto number = read_number_within(piece, "vectors", 1, share::max_vectors, findings);
    if (!number) return false;
    vdev.ivshmem.vectors = {static_cast<std::uint32_t>(number->value), number->place};
    return true;
}

bool read_mode(const Piece& piece, Vdev& vdev, Findings& findings) {
    const bool is_plain = piece.text == "plain";
    vdev.ivshmem.mode = {is_plain ? IvshmemMode::plain : IvshmemMode::doorbell, piece.place};
    if (is_plain || piece.text == "doorbell") return true;
    findings.add(piece.place, fmt::format("'{}' is neither doorbell nor plain", piece.text));
    return false;
}

}  // namespace

bool read_vdev_word(Word word, const Piece& piece, Vdev& vdev, Findings& findings) {
    switch (word) {
        case Word::loc: return read_loc(piece, vdev, findings);
        case Word::intr: return read_intr(piece, vdev, findings);
        case Word::name: return read_name(piece, vdev, findings);
        case Word::hostdev: return read_hostdev(piece, vdev, findings);
        case Word::sched: vdev.sched = read_sched(piece, findings); return vdev.sched.has_value();
        case Word::create: return read_create(piece, vdev, findings);
        case Word::allow: return read_rule(piece, true, vdev, findings);
        case Word::deny: return read_rule(piece, false, vdev, findings);
        case Word::share: return read_share(piece, vdev, findings);
        case Word::size: return read_share_size(piece, vdev.ivshmem.size_bytes, findings);
        case Word::vectors: return read_vectors(piece, vdev, findings);
        case Word::mode: return read_mode(piece, vdev, findings);
        default: return true;
    }
}

}  // namespace guestmem::vmm

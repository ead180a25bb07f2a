// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/host_view.hpp"

/// The texts of sysfs: numbers, links, reserved regions; and complaints of one line for each kind.
///
/// Contract: what is no number is nothing. Texts for people have no control characters and at most 255 bytes.
/// Threads: any.

namespace guestmem::dma {

/// "fed90000", "0xfed90000", with blanks and a line end around it.
[[nodiscard]] std::optional<std::uint64_t> parse_hexadecimal(std::string_view text);
/// The first line, for people.
[[nodiscard]] std::string plain_line(std::string_view text);
/// "e1000e" of "../../../bus/pci/drivers/e1000e".
[[nodiscard]] std::string last_part(std::string_view target);
/// "/soc/dma@9000000" of "../../../firmware/devicetree/base/soc/dma@9000000"; empty when it leads elsewhere.
[[nodiscard]] std::string device_tree_path(std::string_view target);
/// "0xfee00000 0xfeefffff msi" on each line; nothing when a line says something else.
[[nodiscard]] std::optional<std::vector<KernelReserved>> parse_reserved_regions(std::string_view text);
/// The first memory region of a PCI function's `resource`.
[[nodiscard]] std::optional<std::uint64_t> first_memory_region(std::string_view text);

/// Complaints of the same kind as one, with their number and the first of them.
class ComplaintBook {
public:
    void note(std::string_view kind, std::string_view text, std::string_view place);
    [[nodiscard]] std::vector<Complaint> complaints() const;

private:
    struct Kind {
        std::string text;
        std::string place;
        std::size_t count = 0;
    };
    std::map<std::string, Kind, std::less<>> kinds_;
};

}  // namespace guestmem::dma

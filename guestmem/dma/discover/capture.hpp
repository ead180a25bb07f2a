// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/host_tree.hpp"

/// Captures a machine: an archive of what discovery reads and nothing else, to be sent and discovered elsewhere.
///
/// Concepts: capture_patterns() is the whole list of what is taken, each with its reason. The archive is a tree in
/// which a HostTree reads what it reads on the machine: devices are folders, not links into sys/devices.
/// Contract: no serial number, MAC address, UUID or user name is taken: of the command line only words about IOMMU, PCI
/// and VFIO (capture_rules.hpp), of meminfo the total; serial numbers in configuration space and in the device tree are
/// zeros. Of a link the target without its leading "../", so that none leads out of a folder where the archive is
/// unpacked. What is not there is left out; what cannot be read is left out and named. The same machine gives the
/// same bytes. A captured machine can be captured again, with the same result.
/// Threads: any.
/// Limits: max_captured_names matches of a pattern, archives of max_host_archive_bytes.
/// Cost: about 12 files and links for each PCI function.
/// Known holes: what vendors put into vendor-specific capabilities of configuration space is taken as it is.

namespace guestmem::dma {

inline constexpr std::size_t max_captured_names = 65536;

enum class CaptureKind : std::uint8_t {
    file,           ///< as it is
    link,           ///< the target
    configuration,  ///< PCI configuration space, serial numbers blanked
    device_tree,    ///< private properties blanked
    command_line,   ///< kept words
    memory_total,   ///< the line MemTotal
};

/// `*` stands for the rest of one name.
struct CapturePattern {
    std::string_view path;
    CaptureKind kind = CaptureKind::file;
    std::string_view why;
};

[[nodiscard]] std::span<const CapturePattern> capture_patterns();

struct Capture {
    std::string archive;
    std::size_t count_entries = 0;
    std::vector<std::string> unreadable = {};  ///< paths; run as root to have them, too
};

[[nodiscard]] Result<Capture> capture(HostTree& tree);

}  // namespace guestmem::dma

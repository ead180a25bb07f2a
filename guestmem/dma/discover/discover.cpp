// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/discover.hpp"

#include <span>
#include <utility>

#include "guestmem/dma/assemble.hpp"
#include "guestmem/dma/discover/device_tree.hpp"
#include "guestmem/dma/discover/dmar.hpp"
#include "guestmem/dma/discover/firmware_tables.hpp"
#include "guestmem/dma/discover/iort.hpp"
#include "guestmem/dma/discover/ivrs.hpp"
#include "guestmem/dma/discover/sysfs.hpp"
#include "guestmem/dma/discover/viot.hpp"
#include "guestmem/dma/resolve.hpp"

namespace guestmem::dma {
namespace {

Result<SourceFacts> read_table(const FirmwareTable& table) {
    const auto bytes = std::as_bytes(std::span{table.bytes});
    switch (table.source) {
        case Source::dmar: return read_dmar(bytes);
        case Source::ivrs: return read_ivrs(bytes);
        case Source::iort: return read_iort(bytes);
        case Source::viot: return read_viot(bytes);
        case Source::device_tree: return read_device_tree(bytes);
        case Source::kernel:
        case Source::user: break;
    }
    return Error{Errc::unsupported, "a kind of table that nobody reads"};
}

}  // namespace

Result<Inventory> discover(HostTree& tree, const UserWords& words) {
    HostView view = GM_TRY(read_host_view(tree));
    FirmwareTables found = GM_TRY(firmware_tables(tree));
    for (Complaint& complaint : found.complaints) view.complaints.push_back(std::move(complaint));
    std::vector<FirmwareFacts> firmware;
    for (const FirmwareTable& table : found.tables) {
        auto facts = read_table(table);
        if (facts)
            firmware.push_back({table.source, *std::move(facts)});
        else
            view.complaints.push_back({{table.source, table.name, {}}, "it is left out: " + facts.error().message()});
    }
    return resolve(GM_TRY(assemble(firmware, words)), view);
}

}  // namespace guestmem::dma

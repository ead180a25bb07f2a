// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/fork_bill.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem {

namespace {

struct Image {
    FileFacts facts;
    std::string path;
};

Result<std::vector<Image>> images_of(const Template& of) {
    std::vector<Image> images;
    for (const Template* const layer : of.layers()) {
        const FileFacts facts = GM_TRY(file_facts(layer->image()));
        images.push_back({facts, fmt::format("{}/{}", layer->folder(), template_image_file)});
    }
    return images;
}

/// A line for the process with the lease, and one for each process that it noted.
void add_lines(const Tenant& tenant, std::vector<ForkBill>& bills) {
    ForkBill own{.pid = tenant.pid};
    for (const ForkNote& note : tenant.forks) {
        ForkBill& line = note.pid == tenant.pid ? own : bills.emplace_back();
        line.pid = note.pid;
        line.generation = note.generation;
        line.first_instruction_ns = note.first_instruction_ns;
    }
    bills.push_back(own);
}

void count(ForkBill& bill, const std::vector<Image>& images, std::uint64_t first_region_offset) {
    const auto mappings = process_mappings(bill.pid);
    const auto faults = process_faults(bill.pid);
    // It ended meanwhile, or is somebody else's.
    if (!mappings || !faults) return;
    bill.faults = *faults;
    MemoryUsage all;
    for (const ProcessMapping& mapping : *mappings) {
        const auto is_of = [&](const Image& image) { return shows_file(mapping, image.facts, image.path); };
        if (mapping.sharing != MapSharing::private_copy || std::ranges::none_of(images, is_of)) continue;
        all.add(usage_of(mapping));
        // Pages have the same place in all layers.
        if (mapping.offset_bytes == first_region_offset) ++bill.count_forks;
    }
    bill.usage = all;
}

}  // namespace

Result<std::vector<ForkBill>> fork_bills(const Template& of) {
    const std::vector<Image> images = GM_TRY(images_of(of));
    const std::vector<Tenant> tenants = GM_TRY(tenants_of(of.folder()));
    std::vector<ForkBill> bills;
    for (const Tenant& tenant : tenants) add_lines(tenant, bills);
    const std::uint64_t first_offset = of.manifest().regions.front().image_offset_bytes;
    for (ForkBill& bill : bills) count(bill, images, first_offset);
    // A child that is gone.
    std::erase_if(bills, [](const ForkBill& bill) {
        const auto alive = process_faults(bill.pid);
        return !alive && alive.error().code() == Errc::not_found;
    });
    return bills;
}

}  // namespace guestmem

// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "guestmem/cli/dma_options.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/dma/plan.hpp"
#include "guestmem/dma/report/plan_text.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/vmm/config/qvmconf.hpp"

namespace guestmem::cli {
namespace {

constexpr std::size_t max_grants_bytes = std::size_t{64} << 20;

/// RAM and ROM of a machine's configuration, as `guestmem run` would lay them.
Result<std::vector<dma::VmMemory>> memory_of_config(const std::string& path) {
    const std::string text = GM_TRY(read_text_file(path, vmm::max_source_bytes));
    const auto read = GM_TRY(vmm::read_text(text, path, &read_text_file));
    std::vector<dma::VmMemory> memory;
    std::size_t count = 0;
    for (const vmm::MemoryLine& line : read.config.memory) {
        if (line.kind == vmm::MemoryKind::reserve) continue;
        const bool is_ram = line.kind == vmm::MemoryKind::ram;
        for (const GuestRange& range : line.ranges)
            memory.push_back({.name = fmt::format("{}{}", is_ram ? "ram" : "rom", count++),
                              .at = range.base().value(),
                              .size_bytes = range.size_bytes(),
                              .is_writable = is_ram});
    }
    return memory;
}

/// With its last '/', or empty: names in a file begin where the file is.
std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

Result<int> plan(const DmaPlanOptions& options) {
    const std::string text = GM_TRY(read_text_file(options.config, max_grants_bytes));
    const std::string folder = folder_of(options.config);
    const dma::Grants grants = GM_TRY(dma::read_grants(options.config, text, [&](const std::string& path) {
        return memory_of_config(path.starts_with('/') ? path : folder + path);
    }));
    if (!options.vm.empty() &&
        std::ranges::find(grants.vms, options.vm, &dma::GrantedVm::name) == grants.vms.end())
        return Error{Errc::not_found,
                     fmt::format("{}: there is no VM '{}' in it", options.config, options.vm)};
    const dma::Inventory inventory = GM_TRY(discover_machine(options));
    const dma::Plan plan = make_plan(inventory, grants, options.vm);
    print(options.json      ? to_json(plan, options.config)
          : options.has_all ? to_text(plan, options.config, SIZE_MAX)
                            : to_text(plan, options.config));
    return plan.would_work() ? exit_ok : exit_failed;
}

}  // namespace

int dma_plan(const DmaPlanOptions& options) {
    const auto code = plan(options);
    return code ? *code : report_dma(code.error());
}

}  // namespace guestmem::cli

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "guestmem/cli/dma_options.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/dma/check.hpp"
#include "guestmem/dma/report/check_text.hpp"

namespace guestmem::cli {

int dma_check(const DmaOptions& options) {
    const auto inventory = discover_machine(options);
    if (!inventory) return report_dma(inventory.error());
    const auto findings = dma::check(*inventory);
    print(options.json ? to_json(findings) : to_text(findings, *inventory));
    return std::ranges::count(findings, dma::Weight::risk, &dma::Finding::weight) == 0 ? exit_ok
                                                                                       : exit_failed;
}

}  // namespace guestmem::cli

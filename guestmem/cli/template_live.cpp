// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/template_live.hpp"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/template/fork_bill.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

/// Cursor to the upper left corner, and all behind it cleared: what was there does not flicker.
constexpr const char* redraw = "\x1b[H\x1b[J";

std::string size_or_dash(const ForkBill& bill, std::uint64_t MemoryUsage::* field) {
    return bill.usage ? format_qemu_size((*bill.usage).*field) : "-";
}

std::string table_of(const std::string& folder, const std::vector<ForkBill>& bills) {
    std::string text = fmt::format("{}\n{:>8} {:>5} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9} {:>9}  {}\n",
                                   to_printable(folder), "PID", "FORKS", "MAPPED", "SHARED", "PRIVATE",
                                   "UNTOUCHED", "PSS", "FAULTS", "START", "GENERATION");
    MemoryUsage all;
    std::uint64_t count = 0;
    for (const ForkBill& bill : bills) {
        const std::string start =
            bill.first_instruction_ns == 0
                ? "-"
                : fmt::format("{:.1f} ms", static_cast<double>(bill.first_instruction_ns) / 1e6);
        text += fmt::format(
            "{:>8} {:>5} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9} {:>9}  {}\n", bill.pid, bill.count_forks,
            size_or_dash(bill, &MemoryUsage::mapped_bytes), size_or_dash(bill, &MemoryUsage::shared_bytes),
            size_or_dash(bill, &MemoryUsage::private_bytes),
            bill.usage ? format_qemu_size(bill.usage->untouched_bytes()) : "-",
            size_or_dash(bill, &MemoryUsage::proportional_bytes), bill.faults.minor + bill.faults.major,
            start, bill.generation.empty() ? "-" : bill.generation);
        count += bill.count_forks;
        if (bill.usage) all.add(*bill.usage);
    }
    text += fmt::format("{:>8} {:>5} {:>8} {:>8} {:>8} {:>9} {:>8}\n", "all", count,
                        format_qemu_size(all.mapped_bytes), format_qemu_size(all.shared_bytes),
                        format_qemu_size(all.private_bytes), format_qemu_size(all.untouched_bytes()),
                        format_qemu_size(all.proportional_bytes));
    return text;
}

std::string line_of(const std::vector<ForkBill>& bills) {
    nlohmann::json all = nlohmann::json::array();
    for (const ForkBill& bill : bills) {
        nlohmann::json one{{"pid", bill.pid},
                           {"forks", bill.count_forks},
                           {"minor_faults", bill.faults.minor},
                           {"major_faults", bill.faults.major}};
        if (!bill.generation.empty()) one["generation"] = bill.generation;
        if (bill.first_instruction_ns != 0) one["first_instruction_ns"] = bill.first_instruction_ns;
        if (bill.usage)
            one.update({{"mapped_bytes", bill.usage->mapped_bytes},
                        {"shared_bytes", bill.usage->shared_bytes},
                        {"private_bytes", bill.usage->private_bytes},
                        {"untouched_bytes", bill.usage->untouched_bytes()},
                        {"proportional_bytes", bill.usage->proportional_bytes}});
        all.push_back(std::move(one));
    }
    return all.dump() + "\n";
}

}  // namespace

int show_live(const std::string& folder, bool json, const LiveOptions& options) {
    const auto opened = Template::open(folder);
    if (!opened) return report(opened.error());
    const bool is_redrawn = !json && is_stdout_terminal();
    for (std::uint64_t drawn = 0; options.count == 0 || drawn < options.count; ++drawn) {
        if (drawn > 0) std::this_thread::sleep_for(std::chrono::duration<double>{options.interval_s});
        const auto bills = fork_bills(**opened);
        if (!bills) return report(bills.error());
        if (json)
            print(line_of(*bills));
        else
            print((is_redrawn ? redraw : "") + table_of(folder, *bills));
    }
    return exit_ok;
}

}  // namespace guestmem::cli

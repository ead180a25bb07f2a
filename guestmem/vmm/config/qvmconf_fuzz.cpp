// SPDX-License-Identifier: Apache-2.0
/// Fuzzes qvmconf.hpp: any bytes as configuration files and as words of a command line.
///
/// The input is split at NUL bytes: the first piece is the file, the others are the files "1", "2" and so on, which
/// `@1` includes. The same pieces are words of a command line then.
/// Asserts: a plan keeps every limit of vm_config.hpp; it has a name, RAM, a CPU and a kernel; nothing that it places
/// overlaps; its names and sizes are ones that shares have; its interrupts lead to ioapics; explained, it is read as
/// an equal plan, and explained again it is the same text. An error begins with a source, and brings no control
/// character to the terminal.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/vmm/config/explain.hpp"
#include "guestmem/vmm/config/qvmconf.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::string_view file_name = "fuzz.qvmconf";

std::vector<std::string> pieces_of(std::string_view text) {
    std::vector<std::string> pieces;
    while (true) {
        const std::size_t nul = text.find('\0');
        pieces.emplace_back(text.substr(0, nul));
        if (nul == std::string_view::npos) return pieces;
        text.remove_prefix(nul + 1);
    }
}

SourceLoader loader_of(const std::vector<std::string>& files) {
    return [&files](const std::string& path, std::size_t limit_bytes) -> Result<std::string> {
        std::size_t number = 0;
        const auto parsed = std::from_chars(path.data(), path.data() + path.size(), number);
        const bool is_number = parsed.ec == std::errc{} && parsed.ptr == path.data() + path.size();
        if (!is_number || number >= files.size() || files[number].size() > limit_bytes)
            return Error{Errc::not_found, "no such file"};
        return files[number];
    };
}

void check_memory(const VmConfig& config) {
    std::vector<GuestRange> ranges;
    bool has_ram = false;
    for (const MemoryLine& line : config.memory) {
        has_ram = has_ram || line.kind == MemoryKind::ram;
        std::uint64_t size_bytes = 0;
        GM_CHECK(line.kind == MemoryKind::ram ? line.ranges.size() <= 2 : line.ranges.size() == 1);
        GM_CHECK(!line.backend || line.kind == MemoryKind::ram);
        for (const GuestRange& range : line.ranges) {
            size_bytes += range.size_bytes();
            ranges.push_back(range);
            if (line.kind == MemoryKind::ram)
                GM_CHECK(range.last().value() < device_hole_base ||
                         range.base().value() >= device_hole_after);
        }
        GM_CHECK(size_bytes == line.size_bytes.value);
    }
    GM_CHECK(has_ram && config.memory.size() <= max_memory_lines);
    for (const Vdev& vdev : config.vdevs)
        if (vdev.loc && vdev.kind != VdevKind::ser8250)
            ranges.push_back(*GuestRange::create(GuestAddress{vdev.loc->value}, vdev.kind == VdevKind::pci
                                                                                    ? pci_window_bytes
                                                                                    : register_page_bytes));
    std::ranges::sort(ranges);
    for (std::size_t at = 0; at < ranges.size(); ++at) {
        GM_CHECK(ranges[at].last().value() < guest_address_limit && ranges[at].base().is_aligned(4096));
        GM_CHECK(at == 0 || ranges[at - 1].last() < ranges[at].base());
    }
}

void check_vdev(const VmConfig& config, const Vdev& vdev) {
    GM_CHECK(!vdev.loc || vdev.kind != VdevKind::ser8250 || vdev.loc->value <= 0xfff8);
    GM_CHECK(vdev.kind != VdevKind::shmem || vdev.loc.has_value() == vdev.intr.has_value());
    GM_CHECK(vdev.shmem.rules.size() <= max_name_rules && vdev.shmem.creates.size() <= max_creates);
    GM_CHECK(vdev.kind == VdevKind::shmem || (vdev.shmem.rules.empty() && vdev.shmem.creates.empty()));
    for (const CreateLine& line : vdev.shmem.creates) {
        GM_CHECK(!share::find_name_problem(line.name.value));
        GM_CHECK(!share::find_size_problem(line.size_bytes.value));
    }
    for (const NameRule& rule : vdev.shmem.rules) GM_CHECK(!share::find_pattern_problem(rule.pattern.value));
    if (vdev.kind == VdevKind::ivshmem) GM_CHECK(!share::find_name_problem(vdev.ivshmem.share.value));
    if (!vdev.intr) return;
    const Interrupt& interrupt = vdev.intr->value;
    if (!interrupt.pin) {
        GM_CHECK(vdev.kind == VdevKind::ioapic && interrupt.controller == "apic");
        return;
    }
    GM_CHECK(*interrupt.pin < ioapic_pins);
    const auto is_meant = [&](const Vdev& other) {
        return other.kind == VdevKind::ioapic && other.name && other.name->value == interrupt.controller;
    };
    GM_CHECK(std::ranges::any_of(config.vdevs, is_meant));
}

void check_plan(const ConfigRead& read) {
    const VmConfig& config = read.config;
    GM_CHECK(!config.system.value.empty() && config.system.value.size() <= max_name_bytes);
    GM_CHECK(!config.cpus.empty() && config.cpus.size() <= max_vcpus);
    GM_CHECK(config.vdevs.size() <= max_vdevs && config.loads.size() <= max_loads);
    GM_CHECK(std::ranges::count(config.loads, LoadKind::kernel, &Load::kind) == 1);
    check_memory(config);
    for (const Vdev& vdev : config.vdevs) check_vdev(config, vdev);
    const std::string text = explain_text(config);
    const auto again = read_text(text, std::string{file_name}, {});
    GM_CHECK(again && again->config == config);
    GM_CHECK(explain_text(again->config) == text);
    GM_CHECK(!explain_json(config, read.sources).empty());
}

void check_error(const Error& error) {
    const std::string_view text = error.message();
    GM_CHECK(text.starts_with(file_name) || text.starts_with("command line") ||
             std::isdigit(static_cast<unsigned char>(text.front())) != 0);
    GM_CHECK(text.find("error: ") != std::string_view::npos);
    for (const char c : text) GM_CHECK(c == '\n' || std::iscntrl(static_cast<unsigned char>(c)) == 0);
}

void attack(std::string_view input) {
    const std::vector<std::string> pieces = pieces_of(input);
    for (const auto& read : {read_text(pieces.front(), std::string{file_name}, loader_of(pieces)),
                             read_words(pieces, loader_of(pieces))}) {
        if (read) {
            check_plan(*read);
        } else {
            check_error(read.error());
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}

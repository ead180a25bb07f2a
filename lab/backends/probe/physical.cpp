// SPDX-License-Identifier: Apache-2.0
// Ranges of /dev/mem and the memory of a PCI device. The kernel of the guest keeps away from 64 MiB at 256 MiB
// (memmap=), and an ivshmem device has 1 MiB whose content the test bed outside knows.
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <vector>

#include "guestmem/mem/region.hpp"
#include "lab/backends/probe/checks.hpp"

namespace lab {
namespace {

using namespace guestmem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t base = 256 * mib;
constexpr std::uint64_t size_bytes = 64 * mib;
constexpr std::uint64_t device_bytes = 1 * mib;
const std::string reserved = "memory-backend-physical,id=m,mem-path=/dev/mem,offset=0x10000000,size=64M";

/// What another program reads at a physical address, of `count` bytes. It reads: a second mapping would have to have
/// the same kind of caching.
std::uint64_t word_at(std::uint64_t address, int count) {
    const std::string text =
        output_of(fmt::format("dd if=/dev/mem bs={} skip={} count=1 2>/dev/null | od -A n -t x{}", count,
                              address / static_cast<unsigned>(count), count));
    return std::strtoull(text.c_str(), nullptr, 16);
}

void check_writes(Checks& checks, GuestMemory& memory) {
    for (const std::uint64_t at : {base, base + 31 * mib + 8, base + size_bytes - 8}) {
        const std::uint64_t word = 0x1122'3344'5566'7788 ^ (at << 3);
        const auto written = memory.write_le<std::uint64_t>(GuestAddress{at}, word);
        checks.expect(
            written && word_at(at, 8) == word,
            fmt::format("another program reads at physical {:#x} what was written at guest {:#x}", at, at),
            fmt::format("{:#x}, expected {:#x}", word_at(at, 8), word));
    }
    static_cast<void>(output_of(fmt::format(
        "printf '\\x34\\x12\\xfe\\xca' | dd of=/dev/mem bs=4 seek={} conv=notrunc", (base + 4096) / 4)));
    const auto word = memory.read_le<std::uint32_t>(GuestAddress{base + 4096});
    checks.expect(word && *word == 0xcafe1234, "what another program writes is read through the view");
    checks.expect(!memory.read_le<std::uint32_t>(GuestAddress{base + size_bytes}),
                  "the byte behind the range is no memory");
}

void check_reserved(Checks& checks) {
    checks.expect(read_text("/proc/iomem").find("10000000-13ffffff : Reserved") != std::string::npos,
                  "the kernel keeps away from the range");
    const auto plan = make_plan(reserved);
    checks.expect(plan && !plan->problems.has_refusal() && plan->memory_worst_bytes == 0,
                  "the plan takes no memory of the machine");
    const auto backend = make_backend(reserved);
    if (!checks.expect_value(backend, "a range of /dev/mem is mapped")) return;
    const auto map = map_of(**backend, base);
    GuestMemory memory{*map};
    check_writes(checks, memory);
    const std::string smaps = smaps_of((*backend)->memory()->bytes());
    checks.expect(
        smaps.find(" rw-s 10000000 ") != std::string::npos && smaps.find("/dev/mem") != std::string::npos,
        "the kernel says: shared, writable, at physical 0x10000000", smaps.substr(0, smaps.find('\n')));
    const auto second = make_backend(reserved + ",readonly=on");
    if (!checks.expect_value(second, "the same range is mapped once more, read-only")) return;
    const auto second_map = map_of(**second, base);
    GuestMemory rom{*second_map};
    const auto word = rom.read_le<std::uint32_t>(GuestAddress{base + 4096});
    checks.expect(word && *word == 0xcafe1234, "the second mapping reads what is there");
    checks.expect(
        !rom.write_le<std::uint32_t>(GuestAddress{base + 4096}, 1) && word_at(base + 4096, 4) == 0xcafe1234,
        "the second mapping is ROM: a write is refused, and nothing is changed");
    const std::string rom_smaps = smaps_of((*second)->memory()->bytes());
    checks.expect(rom_smaps.find(" r--s ") != std::string::npos, "the kernel says: read-only", rom_smaps);
    const auto health = (*backend)->health();
    checks.expect(health && *health == BackendHealth::good, "its health is good");
}

void check_refusals(Checks& checks) {
    const std::string device = "memory-backend-physical,id=m,mem-path=/dev/mem";
    checks.expect_error(make_backend(device + ",offset=0x1000000,size=1M"), "backend 'm'",
                        "memory of the kernel itself is an error of the mapping (STRICT_DEVMEM)");
    checks.expect_error(make_backend(device + ",offset=0x13ff0000,size=128K"), "backend 'm'",
                        "a range that reaches into the kernel's memory is an error of the mapping");
    checks.expect_error(make_backend(device + ",offset=0x10000000000000,size=1M"), "backend 'm'",
                        "a range behind what the processor addresses is an error of the mapping");
    checks.expect_error(make_backend(device + ",offset=0x10000800,size=1M"), "whole pages",
                        "an offset inside of a page is refused");
    checks.expect_error(make_backend(reserved + ",share=off"), "share=off", "share=off is refused");
    checks.expect_error(make_backend(reserved + ",prealloc=on"), "prealloc", "prealloc is no property of it");
    checks.expect_error(make_backend("memory-backend-physical,id=m,mem-path=/dev/none,size=1M"), "/dev/none",
                        "a device that is not there is refused by its name");
}

/// The folder of the ivshmem device in sysfs; empty when there is none.
std::string find_device() {
    for (const auto& entry : std::filesystem::directory_iterator("/sys/bus/pci/devices")) {
        const std::string folder = entry.path();
        if (read_text(folder + "/vendor") == "0x1af4\n" && read_text(folder + "/device") == "0x1110\n")
            return folder;
    }
    return "";
}

/// Where the memory of the device stands: line 2 of its resources.
std::uint64_t address_of(const std::string& folder) {
    std::istringstream lines(read_text(folder + "/resource"));
    std::string line;
    for (int i = 0; i < 3; ++i) std::getline(lines, line);
    return std::strtoull(line.c_str(), nullptr, 16);
}

std::string text_at(GuestMemory& memory, std::uint64_t address) {
    std::vector<std::byte> bytes(12);
    if (!memory.read_bytes(GuestAddress{address}, bytes)) return "not read";
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void check_device(Checks& checks) {
    const std::string folder = find_device();
    if (!checks.expect(!folder.empty(), "the guest has an ivshmem device")) return;
    checks.expect(write_text(folder + "/enable", "1"), "the device is enabled");
    const std::string text = fmt::format("memory-backend-physical,id=bar,mem-path={}/resource2", folder);
    const std::uint64_t at = address_of(folder);
    const auto backend = make_backend(text + ",size=1M");
    if (!checks.expect_value(backend, "the memory of a PCI device is mapped by its file in sysfs")) return;
    const auto map = map_of(**backend, at);
    GuestMemory memory{*map};
    checks.expect(text_at(memory, at + 4096) == "from outside", "it shows what the other side has written",
                  text_at(memory, at + 4096));
    const std::string said = "from inside!";
    checks.expect(memory.write_bytes(GuestAddress{at + 8192}, std::as_bytes(std::span{said})).has_value(),
                  "it is written through a view");
    checks.expect(memory.write_le<std::uint64_t>(GuestAddress{at + device_bytes - 8}, 0x6867'6665'6463'6261)
                      .has_value(),
                  "its last bytes are written through a view");
    checks.expect_error(make_backend(text + ",size=2M"), "1048576 bytes",
                        "more than the device has is refused with the size that it has");
    const auto health = (*backend)->health();
    checks.expect(health && *health == BackendHealth::good, "the health of a device's memory is good");

    const auto same =
        make_backend(fmt::format("memory-backend-physical,id=m,mem-path=/dev/mem,offset={},size=1M", at));
    if (!checks.expect_value(same, "the memory of the device is mapped by its physical address, too")) return;
    const auto same_map = map_of(**same, at);
    GuestMemory through{*same_map};
    checks.expect(text_at(through, at + 8192) == said, "both mappings show the same bytes",
                  text_at(through, at + 8192));
}

}  // namespace

void check_physical(Checks& checks) {
    check_reserved(checks);
    checks.expect(word_at(base + 4096, 4) == 0xcafe1234, "the bytes stay when the backends are gone");
    check_refusals(checks);
    check_device(checks);
}

}  // namespace lab

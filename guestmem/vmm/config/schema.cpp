// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <ranges>

#include "guestmem/base/check.hpp"

namespace guestmem::vmm {
namespace {

constexpr VdevKinds serial = only(VdevKind::ser8250);
constexpr VdevKinds shared = only(VdevKind::shmem);
constexpr VdevKinds ivshmem = only(VdevKind::ivshmem);
constexpr VdevKinds with_loc =
    only(VdevKind::ioapic) | only(VdevKind::ser8250) | only(VdevKind::pci) | only(VdevKind::shmem);
constexpr VdevKinds with_intr = only(VdevKind::ioapic) | only(VdevKind::ser8250) | only(VdevKind::timer8254) |
                                only(VdevKind::mc146818) | only(VdevKind::pckeyboard) | only(VdevKind::shmem);
constexpr VdevKinds all_vdevs = with_loc | with_intr | only(VdevKind::pci) | ivshmem;

constexpr std::array words{
    WordRow{"system", Word::system, Context::machine, "NAME", false, 0, Language::qnx, Support::works,
            "the VM's name: letters, digits, '-', '_' and '.', at most 64; it names its control socket"},
    WordRow{
        "ram", Word::ram, Context::machine, "[START,]LENGTH", true, 0, Language::qnx, Support::works,
        "memory; without START directly after the highest RAM or ROM. What would reach into the device hole "
        "0xc0000000-0xffffffff goes on at 4G"},
    WordRow{"backend", Word::backend, Context::machine, "TYPE[,OPTION=VALUE...]", false, 0, Language::ours,
            Support::works,
            "directly behind the argument of `ram`: where its bytes live, in QEMU's words, such as "
            "memory-backend-file,mem-path=/dev/shm/ram"},
    WordRow{"rom", Word::rom, Context::machine, "START,LENGTH", true, 0, Language::qnx, Support::works,
            "memory that the guest can only read and is not told of"},
    WordRow{"reserve", Word::reserve, Context::machine, "", true, 0, Language::qnx, Support::works,
            "opens a context: guest addresses that stay empty"},
    WordRow{"cpu", Word::cpu, Context::machine, "", true, 0, Language::qnx, Support::works,
            "opens a context: a virtual CPU; without any there is one"},
    WordRow{"load", Word::load, Context::machine, "[ADDRESS,]FILE", true, 0, Language::qnx, Support::works,
            "a file that is in memory when the guest starts; a word before it says what it is"},
    WordRow{"cmdline", Word::cmdline, Context::machine, "\"TEXT\"", false, 0, Language::qnx, Support::works,
            "what the kernel is told; a backslash at the end of a line continues it"},
    WordRow{"vdev", Word::vdev, Context::machine, "TYPE", true, 0, Language::qnx, Support::works,
            "opens a context: a virtual device; `vdev-TYPE.so` means the same"},
    WordRow{"pass", Word::pass, Context::machine, "", true, 0, Language::qnx, Support::not_here,
            "take the `pass` and its options out; a device of the host can be given to a QEMU guest by VFIO"},
    WordRow{"set", Word::set, Context::machine, "VARIABLE VALUE", true, 0, Language::qnx, Support::works,
            "sets a variable; stands in every context"},
    WordRow{"safety", Word::safety, Context::machine, "none|warn|required", false, 0, Language::qnx,
            Support::works,
            "none and warn are the same here; required is refused: nothing here is certified"},
    WordRow{"dryrun", Word::dryrun, Context::machine, "", false, 0, Language::qnx, Support::works,
            "says what would be made, and ends"},
    WordRow{"debug", Word::not_here, Context::machine, "", true, 0, Language::qnx, Support::not_here,
            "leave it out; `guestmem vm stat NAME` looks into a running VM"},
    WordRow{"logger", Word::not_here, Context::machine, "LEVELS DESTINATION", true, 0, Language::qnx,
            Support::not_here, "leave it out; the log goes to standard error, or to the journal"},
    WordRow{"dump", Word::not_here, Context::machine, "FILE", true, 0, Language::qnx, Support::not_here,
            "leave it out; guest memory is not in core dumps"},
    WordRow{"generate", Word::not_here, Context::machine, "FILE", true, 0, Language::qnx, Support::not_here,
            "leave it out; `guestmem run --explain` prints what would be made"},
    WordRow{"unsupported", Word::not_here, Context::machine, "WHAT REACTION", true, 0, Language::qnx,
            Support::not_here, "leave it out; a guest that uses what is not there reads all ones"},
    WordRow{"user", Word::not_here, Context::machine, "USER", true, 0, Language::qnx, Support::not_here,
            "leave it out, and start the program as that user"},

    WordRow{"partition", Word::partition, Context::cpu, "NUMBER", false, 0, Language::qnx,
            Support::without_effect, "the scheduler partition; Linux has cgroups for it"},
    WordRow{"runmask", Word::runmask, Context::cpu, "CPU[,CPU...]", false, 0, Language::qnx, Support::works,
            "the CPUs of the host that it may run on"},
    WordRow{"sched", Word::sched, Context::cpu, "PRIORITY[r|f|o]", false, 0, Language::qnx, Support::works,
            "the priority of its thread, 1 to 99, and the policy: round robin, FIFO, other"},

    WordRow{"loc", Word::loc, Context::vdev, "ADDRESS", false, with_loc, Language::qnx, Support::works,
            "where its registers are; for ser8250 an I/O port"},
    WordRow{"intr", Word::intr, Context::vdev, "CONTROLLER:PIN", false, with_intr, Language::qnx,
            Support::works,
            "its interrupt: a pin of an ioapic that stands before it; `apic` for the ioapic itself"},
    WordRow{"name", Word::name, Context::vdev, "NAME", false, all_vdevs, Language::qnx, Support::works,
            "what other lines and the control socket call it; without ':' for an ioapic"},
    WordRow{"sched", Word::sched, Context::vdev, "PRIORITY[r|f|o]", false, shared, Language::qnx,
            Support::without_effect, "the priority of its notifications; here they are in the vCPU's thread"},
    WordRow{"hostdev", Word::hostdev, Context::vdev, "PATH", false, serial, Language::qnx, Support::works,
            "the device of the host behind it; `>-` is standard output; without it the terminal"},
    WordRow{"create", Word::create, Context::vdev, "NAME,SIZE", true, shared, Language::qnx, Support::works,
            "a region that is there when the VM starts; SIZE in bytes, whole pages of 4096"},
    WordRow{
        "allow", Word::allow, Context::vdev, "PATTERN", true, shared, Language::qnx, Support::works,
        "names that the guest may create and attach; the first allow or deny that fits decides, and with any "
        "allow the rest is denied"},
    WordRow{"deny", Word::deny, Context::vdev, "PATTERN", true, shared, Language::qnx, Support::works,
            "names that it may not"},
    WordRow{"share", Word::share, Context::vdev, "NAME", false, ivshmem, Language::ours, Support::works,
            "the share that it shows; an ivshmem cannot do without"},
    WordRow{"size", Word::size, Context::vdev, "LENGTH", false, ivshmem, Language::ours, Support::works,
            "how large the share is when it has to be made; needed where no service has it"},
    WordRow{"vectors", Word::vectors, Context::vdev, "NUMBER", false, ivshmem, Language::ours, Support::works,
            "MSI-X vectors of a doorbell device, 1 to 2048; 1 when not given"},
    WordRow{"mode", Word::mode, Context::vdev, "doorbell|plain", false, ivshmem, Language::ours,
            Support::works, "with interrupts, or memory alone; doorbell when not given"},

    WordRow{"loc", Word::loc, Context::reserve, "START,LENGTH", false, 0, Language::qnx, Support::works,
            "the range that stays empty"},
};

constexpr std::array vdevs{
    VdevRow{"ioapic", VdevKind::ioapic, Trigger::none, Language::qnx, Support::works,
            "the interrupt controller, 24 pins; at 0xfec00000 without `loc`"},
    VdevRow{"ser8250", VdevKind::ser8250, Trigger::edge, Language::qnx, Support::works,
            "a serial port; without `loc` the first free of 0x3f8, 0x2f8, 0x3e8, 0x2e8"},
    VdevRow{"timer8254", VdevKind::timer8254, Trigger::edge, Language::qnx, Support::works,
            "the timer at ports 0x40 to 0x43"},
    VdevRow{"mc146818", VdevKind::mc146818, Trigger::edge, Language::qnx, Support::works,
            "the clock at ports 0x70 and 0x71"},
    VdevRow{"pckeyboard", VdevKind::pckeyboard, Trigger::edge, Language::qnx, Support::works,
            "the keyboard controller at ports 0x60 and 0x64, by which guests reset the machine"},
    VdevRow{
        "pci", VdevKind::pci, Trigger::none, Language::ours, Support::works,
        "the PCI host bridge; it is there without this line when a PCI device is. `loc` places its memory-mapped "
        "configuration space, 1 MiB"},
    VdevRow{"shmem", VdevKind::shmem, Trigger::level, Language::qnx, Support::works,
            "regions of shared memory by name: a PCI device, or at `loc` with `intr`"},
    VdevRow{"ivshmem", VdevKind::ivshmem, Trigger::none, Language::ours, Support::works,
            "one share as QEMU's ivshmem shows it: a PCI device"},
    VdevRow{"gic", {}, {}, Language::qnx, Support::not_here, "it is ARM's; x86 has `vdev ioapic`"},
    VdevRow{"hpet",
            {},
            {},
            Language::qnx,
            Support::not_here,
            "use `vdev timer8254`; guests have the local APIC's timer"},
    VdevRow{"pl011", {}, {}, Language::qnx, Support::not_here, "it is ARM's; x86 has `vdev ser8250`"},
    VdevRow{"progress", {}, {}, Language::qnx, Support::not_here, "leave it out"},
    VdevRow{
        "smmu", {}, {}, Language::qnx, Support::not_here, "leave it out, with the `pass` devices behind it"},
    VdevRow{"virtio-blk",
            {},
            {},
            Language::qnx,
            Support::not_here,
            "give the guest an initrd: `initrd load FILE`"},
    VdevRow{"virtio-console", {}, {}, Language::qnx, Support::not_here, "use `vdev ser8250`"},
    VdevRow{"virtio-entropy",
            {},
            {},
            Language::qnx,
            Support::not_here,
            "leave it out; guests have the CPU's RDRAND"},
    VdevRow{"virtio-input", {}, {}, Language::qnx, Support::not_here, "leave it out"},
    VdevRow{"virtio-net",
            {},
            {},
            Language::qnx,
            Support::not_here,
            "use `vdev shmem` or `vdev ivshmem` between VMs"},
    VdevRow{
        "wdt-ib700", {}, {}, Language::qnx, Support::not_here, "leave it out; watch the VM from the host"},
    VdevRow{"wdt-sp805", {}, {}, Language::qnx, Support::not_here, "it is ARM's; watch the VM from the host"},
};

constexpr std::array variables{
    VariableRow{"exit-on-halt", Variable::exit_on_halt, VariableType::boolean, Support::without_effect,
                "guests end the VM by ACPI, or by the exit port"},
    VariableRow{"debug", Variable::debug, VariableType::text, Support::without_effect, "of qvm's own"},
    VariableRow{"grow-heap", Variable::grow_heap, VariableType::number, Support::without_effect,
                "of QNX's memory manager"},
    VariableRow{"message-block-timeout", Variable::message_block_timeout, VariableType::number,
                Support::without_effect, "of QNX messages, in ms"},
    VariableRow{"slog-buffer", Variable::slog_buffer, VariableType::number, Support::without_effect,
                "of QNX's logger"},
    VariableRow{"vdev-message-block-timeout", Variable::vdev_message_block_timeout, VariableType::number,
                Support::without_effect, "of QNX messages, in ms"},
    VariableRow{"counter-offset", {}, VariableType::number, Support::not_here, "it is ARM's: leave it out"},
    VariableRow{"fdt-dump-file",
                {},
                VariableType::text,
                Support::not_here,
                "there is no device tree on x86; `guestmem run --explain` prints what would be made"},
    VariableRow{"gic-hwassist", {}, VariableType::boolean, Support::not_here, "it is ARM's: leave it out"},
    VariableRow{"host-paddr-gicd", {}, VariableType::number, Support::not_here, "it is ARM's: leave it out"},
    VariableRow{"host-paddr-gich", {}, VariableType::number, Support::not_here, "it is ARM's: leave it out"},
};

constexpr std::array loads{
    LoadRow{"", LoadKind::kernel, Support::works,
            "what runs: a Linux bzImage, an ELF file (PVH), or with ADDRESS a flat one; exactly one"},
    LoadRow{"initrd", LoadKind::initrd, Support::works, "the kernel's first file system; at most one"},
    LoadRow{"data", LoadKind::data, Support::works, "bytes at ADDRESS, which it needs"},
    LoadRow{"acpi", LoadKind::acpi, Support::works, "an ACPI table that the guest finds beside the VM's own"},
    LoadRow{"fdt", {}, Support::not_here, "x86 guests find their devices by ACPI: leave it out"},
};

std::string_view plain_name(std::string_view text) {
    if (text.starts_with("vdev-") && text.ends_with(".so") && text.size() > 8)
        return text.substr(5, text.size() - 8);
    return text;
}

template <typename Rows>
auto find_row(const Rows& rows, std::string_view text) -> decltype(rows.data()) {
    const auto found = std::ranges::find(rows, text, &std::remove_cvref_t<decltype(rows[0])>::text);
    return found == rows.end() ? nullptr : &*found;
}

std::string_view remark(Support support, Language language) {
    if (support == Support::not_here) return "documented by QNX, not supported here: ";
    if (support == Support::without_effect) return "without effect: ";
    return language == Language::ours ? "our extension: " : "";
}

std::string devices_of(VdevKinds kinds) {
    std::string text;
    for (const VdevRow& row : vdevs)
        if (row.support == Support::works && (kinds & only(row.kind)) != 0)
            text += fmt::format("{}{}", text.empty() ? "" : ", ", row.text);
    return kinds == all_vdevs ? "all" : text;
}

void append_words(std::string& out, Context context, std::string_view title) {
    auto to = std::back_inserter(out);
    const bool is_vdev = context == Context::vdev;
    fmt::format_to(to, "## {}\n\n| word | argument |{} meaning |\n| --- | --- |{} --- |\n", title,
                   is_vdev ? " devices |" : "", is_vdev ? " --- |" : "");
    for (const WordRow& row : words) {
        if (row.context != context) continue;
        std::string argument{row.argument};
        for (std::size_t at = 0; (at = argument.find('|', at)) != std::string::npos; at += 2)
            argument.insert(at, 1, '\\');
        fmt::format_to(to, "| `{}` | {} |", row.text, argument.empty() ? "" : fmt::format("`{}`", argument));
        if (is_vdev) fmt::format_to(to, " {} |", devices_of(row.vdevs));
        fmt::format_to(to, " {}{}{} |\n", remark(row.support, row.language), row.help,
                       row.can_repeat || !is_vdev ? "" : "; once");
    }
    out += '\n';
}

}  // namespace

std::span<const WordRow> word_rows() { return words; }
std::span<const VdevRow> vdev_rows() { return vdevs; }
std::span<const VariableRow> variable_rows() { return variables; }
std::span<const LoadRow> load_rows() { return loads; }

const WordRow* find_word(std::string_view text, Context context) {
    for (const WordRow& row : words)
        if (row.context == context && row.text == text) return &row;
    return nullptr;
}

const VdevRow* find_vdev(std::string_view text) { return find_row(vdevs, plain_name(text)); }
const VariableRow* find_variable(std::string_view text) { return find_row(variables, text); }
const LoadRow* find_load(std::string_view text) { return find_row(loads, text); }

const VdevRow& row_of(VdevKind kind) {
    // The rows of what works stand first, in the order of the kinds; schema_test.cpp looks.
    const auto at = static_cast<std::size_t>(kind);
    GM_CHECK(at < vdevs.size());
    return vdevs[at];
}

const VariableRow& row_of(Variable variable) {
    const auto at = static_cast<std::size_t>(variable);
    GM_CHECK(at < variables.size());
    return variables[at];
}

const LoadRow& row_of(LoadKind kind) {
    const auto at = static_cast<std::size_t>(kind);
    GM_CHECK(at < loads.size());
    return loads[at];
}

bool is_machine_word(std::string_view text) { return find_word(text, Context::machine) != nullptr; }

bool is_any_word(std::string_view text) {
    return std::ranges::any_of(words, [&](const WordRow& row) { return row.text == text; });
}

std::string language_reference() {
    std::string out;
    auto to = std::back_inserter(out);
    append_words(out, Context::machine, "The machine");
    append_words(out, Context::cpu, "In `cpu`");
    append_words(out, Context::reserve, "In `reserve`");
    append_words(out, Context::vdev, "In `vdev`");
    out += "## Devices\n\n| type | meaning |\n| --- | --- |\n";
    for (const VdevRow& row : vdevs)
        fmt::format_to(to, "| `{}` | {}{} |\n", row.text, remark(row.support, row.language), row.help);
    out += "\n## What is loaded\n\n| words | meaning |\n| --- | --- |\n";
    for (const LoadRow& row : loads)
        fmt::format_to(to, "| `{}{}load` | {}{} |\n", row.text, row.text.empty() ? "" : " ",
                       remark(row.support, Language::qnx), row.help);
    out += "\n## Variables of `set`\n\n| variable | value | meaning |\n| --- | --- | --- |\n";
    for (const VariableRow& row : variables) {
        static constexpr std::array<std::string_view, 3> types{"yes or no", "a number", "a text"};
        fmt::format_to(to, "| `{}` | {} | {}{} |\n", row.text, types[static_cast<std::size_t>(row.type)],
                       remark(row.support, Language::qnx), row.help);
    }
    return out;
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "guestmem/mem/range.hpp"
#include "guestmem/vmm/config/sources.hpp"

/// What a `.qvmconf` file says, as plain values: the plan that a machine is put together by.
///
/// Concepts: each fact has the place where it was written, so that whoever finds later that it cannot be (no memory, no
/// such file) names the line: Findings of sources.hpp with the Sources that came with the plan. Two plans are
/// equal when they say the same, wherever it is written.
/// Contract: a VmConfig that read_text() or read_words() of qvmconf.hpp returned is checked as a whole: one name, RAM,
/// at least one CPU, one kernel; nothing overlaps; interrupts lead to controllers that are there. Lists keep the order
/// of the files. What was not written is absent; what follows from the rest (where RAM lies, a serial port's address)
/// is filled in and said to be.
/// Not checked: that files exist, that host CPUs exist, what a backend's text means, how large a loaded file is.
/// Limits: the max_ constants below.
/// Threads: any; plain values.

namespace guestmem::vmm {

/// Local APIC ids are a byte, and 255 means everybody.
inline constexpr std::size_t max_vcpus = 254;
inline constexpr std::size_t max_memory_lines = 64;
inline constexpr std::size_t max_vdevs = 64;
/// A function of a bus each; the host bridge has the first of 32.
inline constexpr std::size_t max_pci_vdevs = 31;
inline constexpr std::size_t max_loads = 32;
inline constexpr std::size_t max_creates = 64;  ///< of all `vdev shmem` together
inline constexpr std::size_t max_name_rules = 256;
inline constexpr std::size_t max_runmask_cpus = 1024;
inline constexpr std::size_t max_name_bytes = 64;
/// Linux on x86 keeps 2048 with the NUL (COMMAND_LINE_SIZE).
inline constexpr std::size_t max_cmdline_bytes = 2047;

/// The device hole of x86: RAM that would reach into it goes on at 4 GiB.
inline constexpr std::uint64_t device_hole_base = 0xc000'0000;
inline constexpr std::uint64_t device_hole_after = 0x1'0000'0000;
/// The widest physical address that x86-64 has.
inline constexpr std::uint64_t guest_address_limit = std::uint64_t{1} << 52;
inline constexpr std::uint64_t local_apic_base = 0xfee0'0000;
inline constexpr std::uint64_t default_ioapic_base = 0xfec0'0000;
/// What a `loc` takes: one page of registers; a bus of 32 devices with 8 functions of 4 KiB for `vdev pci`.
inline constexpr std::uint64_t register_page_bytes = 4096;
inline constexpr std::uint64_t pci_window_bytes = 1024 * 1024;
inline constexpr std::uint32_t ioapic_pins = 24;
/// What the machine itself has on its I/O APIC, as levels: power events, and INTA to INTD of PCI devices.
inline constexpr std::uint32_t power_pin = 9;
inline constexpr std::array<std::uint32_t, 4> pci_pins{16, 17, 18, 19};

enum class MemoryKind : std::uint8_t { ram, rom, reserve };

/// `ram [start,]length [backend TEXT]`, `rom start,length`, `reserve loc start,length`.
struct MemoryLine {
    MemoryKind kind = MemoryKind::ram;
    Place place;
    std::optional<Placed<GuestAddress>> start;  ///< as written
    Placed<std::uint64_t> size_bytes;
    /// QEMU's options, unread: parse_backend_options() of guestmem/mem/backends has that to do.
    std::optional<Placed<std::string>> backend;
    /// Filled in: where it lies. Two for RAM that is split around the device hole: the first bytes of the backend
    /// are in the lower one.
    std::vector<GuestRange> ranges;

    friend bool operator==(const MemoryLine&, const MemoryLine&) = default;
};

enum class SchedPolicy : std::uint8_t { round_robin, fifo, other };

/// `sched PRIORITY[r|f|o]`.
struct Sched {
    std::uint32_t priority = 0;         ///< 1 to 99
    std::optional<SchedPolicy> policy;  ///< absent: whoever starts the thread decides

    friend bool operator==(const Sched&, const Sched&) = default;
};

enum class Variable : std::uint8_t {
    exit_on_halt,
    debug,
    grow_heap,
    message_block_timeout,
    slog_buffer,
    vdev_message_block_timeout,
};

/// `set VARIABLE VALUE`.
struct Setting {
    Variable variable = Variable::debug;
    Placed<std::variant<bool, std::uint64_t, std::string>> value;

    friend bool operator==(const Setting&, const Setting&) = default;
};

struct Cpu {
    Place place;  ///< nowhere for the one CPU of a configuration that names none
    std::optional<Placed<std::uint32_t>> partition;
    std::vector<Placed<std::uint32_t>> runmask;  ///< CPUs of the host; empty: all
    std::optional<Placed<Sched>> sched;

    friend bool operator==(const Cpu&, const Cpu&) = default;
};

enum class LoadKind : std::uint8_t { kernel, initrd, data, acpi };

/// `[initrd|data|acpi] load [address,]file`.
struct Load {
    LoadKind kind = LoadKind::kernel;
    Place place;
    std::optional<Placed<GuestAddress>> address;
    Placed<std::string> file;  ///< as written; a relative one begins where the program runs

    friend bool operator==(const Load&, const Load&) = default;
};

enum class VdevKind : std::uint8_t {
    ioapic,
    ser8250,
    timer8254,
    mc146818,
    pckeyboard,
    pci,
    shmem,
    ivshmem,
};

/// `intr CONTROLLER:PIN`; `intr apic` for an I/O APIC, which has no pin.
struct Interrupt {
    std::string controller;
    std::optional<std::uint32_t> pin;

    friend bool operator==(const Interrupt&, const Interrupt&) = default;
};

/// `create NAME,SIZE`.
struct CreateLine {
    Placed<std::string> name;
    Placed<std::uint64_t> size_bytes;

    friend bool operator==(const CreateLine&, const CreateLine&) = default;
};

/// `allow PATTERN`, `deny PATTERN`: the first that fits decides; with any allow the list ends in `deny *`, with only
/// denies in `allow *`, and without an entry everything is allowed.
struct NameRule {
    bool is_allowed = false;
    Placed<std::string> pattern;

    friend bool operator==(const NameRule&, const NameRule&) = default;
};

struct ShmemOptions {
    std::vector<CreateLine> creates;
    std::vector<NameRule> rules;

    friend bool operator==(const ShmemOptions&, const ShmemOptions&) = default;
};

enum class IvshmemMode : std::uint8_t { doorbell, plain };

struct IvshmemOptions {
    Placed<std::string> share;
    std::optional<Placed<std::uint64_t>> size_bytes;
    Placed<std::uint32_t> vectors{.value = 1, .place = {}};  ///< without a meaning for a plain one
    Placed<IvshmemMode> mode;

    friend bool operator==(const IvshmemOptions&, const IvshmemOptions&) = default;
};

struct Vdev {
    VdevKind kind = VdevKind::ioapic;
    Place place;
    std::optional<Placed<std::string>> name;
    /// A guest address; for ser8250 an I/O port. Filled in (place nowhere) for a ser8250 and an ioapic without.
    /// A shmem with a loc has the MMIO form, one without is a PCI device.
    std::optional<Placed<std::uint64_t>> loc;
    std::optional<Placed<Interrupt>> intr;
    std::optional<Placed<Sched>> sched;
    std::optional<Placed<std::string>> hostdev;  ///< of ser8250; ">-" is the program's standard output
    ShmemOptions shmem;                          ///< of shmem
    IvshmemOptions ivshmem;                      ///< of ivshmem

    friend bool operator==(const Vdev&, const Vdev&) = default;
};

enum class Safety : std::uint8_t { none, warn };

struct VmConfig {
    Placed<std::string> system;
    std::vector<MemoryLine> memory;
    std::vector<Cpu> cpus;
    std::vector<Load> loads;
    std::optional<Placed<std::string>> cmdline;
    std::vector<Vdev> vdevs;
    std::vector<Setting> settings;
    std::optional<Placed<Safety>> safety;
    std::optional<Placed<bool>> dryrun;  ///< true when there

    friend bool operator==(const VmConfig&, const VmConfig&) = default;
};

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/kvm.hpp"

#include <fmt/format.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// A signal that does nothing but end KVM_RUN with EINTR.
int kick_signal() { return SIGRTMIN + 1; }
void take_kick(int /*signal*/) {}

Result<void> install_kick() {
    struct sigaction action = {};
    action.sa_handler = take_kick;
    if (checked_call(SysCall::sigaction, [&] { return ::sigaction(kick_signal(), &action, nullptr); }) != 0) {
        return Error::from_errno(errno, "sigaction for the kick of a virtual processor");
    }
    return {};
}

int ask(FdView fd, unsigned long request, const void* argument) {
    return checked_call(SysCall::ioctl, [&] { return ::ioctl(fd.number(), request, argument); });
}
int ask(FdView fd, unsigned long request, unsigned long argument) {
    return checked_call(SysCall::ioctl, [&] { return ::ioctl(fd.number(), request, argument); });
}

template <typename Argument>
Result<void> tell(FdView fd, unsigned long request, Argument argument, const char* what) {
    if (ask(fd, request, argument) < 0) return Error::from_errno(errno, what);
    return {};
}

/// Structures that end in a list of unknown length, as C sees them.
template <typename Entry>
struct KvmList {
    std::uint32_t count = 0;
    std::uint32_t padding = 0;
};

/// The head of such a list and its entries in one block.
template <typename Entry>
std::vector<std::byte> make_list(std::span<const Entry> entries) {
    std::vector<std::byte> bytes(sizeof(KvmList<Entry>) + entries.size_bytes());
    const KvmList<Entry> head{.count = static_cast<std::uint32_t>(entries.size())};
    std::memcpy(bytes.data(), &head, sizeof head);
    if (!entries.empty()) std::memcpy(bytes.data() + sizeof head, entries.data(), entries.size_bytes());
    return bytes;
}

constexpr std::size_t list_head_bytes = 8;
constexpr unsigned long get_supported_cpuid = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, list_head_bytes);
constexpr unsigned long set_cpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, list_head_bytes);
constexpr unsigned long set_msrs_request = _IOC(_IOC_WRITE, KVMIO, 0x89, list_head_bytes);
constexpr unsigned long set_gsi_routing = _IOC(_IOC_WRITE, KVMIO, 0x6a, list_head_bytes);

/// struct kvm_irq_routing_entry of an MSI.
struct RoutingEntry {
    std::uint32_t gsi = 0;
    std::uint32_t type = KVM_IRQ_ROUTING_MSI;
    std::uint32_t flags = 0;
    std::uint32_t padding = 0;
    std::uint32_t address_low = 0;
    std::uint32_t address_high = 0;
    std::uint32_t data = 0;
    std::array<std::uint32_t, 5> rest = {};
};
static_assert(sizeof(RoutingEntry) == 48);
static_assert(sizeof(KvmMsr) == 16);

constexpr std::uint32_t max_cpuid_entries = 256;
constexpr unsigned long real_mode_pages = 0xfffbd000;

#if defined(__x86_64__)
static_assert(sizeof(KvmRegisters) == sizeof(kvm_regs));
static_assert(offsetof(KvmRegisters, rip) == offsetof(kvm_regs, rip));
static_assert(sizeof(KvmSegment) == sizeof(kvm_segment));
static_assert(sizeof(KvmTable) == sizeof(kvm_dtable));
static_assert(sizeof(KvmSystemRegisters) == sizeof(kvm_sregs));
static_assert(offsetof(KvmSystemRegisters, cr0) == offsetof(kvm_sregs, cr0));
static_assert(sizeof(KvmCpuidEntry) == sizeof(kvm_cpuid_entry2));

void show_io(kvm_run& run, std::size_t run_bytes, KvmExit& exit) {
    exit.kind = KvmExit::Kind::io;
    exit.is_write = run.io.direction == KVM_EXIT_IO_OUT;
    exit.address = run.io.port;
    exit.count = run.io.count;
    const std::size_t size = std::size_t{run.io.size} * run.io.count;
    const std::size_t offset = run.io.data_offset;
    if (offset > run_bytes || size > run_bytes - offset) return;
    exit.data = {reinterpret_cast<std::byte*>(&run) + offset, size};
}

void show_mmio(kvm_run& run, KvmExit& exit) {
    exit.kind = KvmExit::Kind::mmio;
    exit.is_write = run.mmio.is_write != 0;
    exit.address = run.mmio.phys_addr;
    exit.data = {reinterpret_cast<std::byte*>(&run.mmio.data[0]), std::min<std::size_t>(run.mmio.len, 8)};
}

void show_system_event(const kvm_run& run, KvmExit& exit) {
    const bool is_off = run.system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN;
    exit.kind = is_off ? KvmExit::Kind::system_power_off : KvmExit::Kind::system_reset;
}

KvmExit exit_of(kvm_run& run, std::size_t run_bytes) {
    KvmExit exit;
    exit.reason = run.exit_reason;
    switch (run.exit_reason) {
        case KVM_EXIT_IO: show_io(run, run_bytes, exit); break;
        case KVM_EXIT_MMIO: show_mmio(run, exit); break;
        case KVM_EXIT_HLT: exit.kind = KvmExit::Kind::halt; break;
        case KVM_EXIT_IOAPIC_EOI:
            exit.kind = KvmExit::Kind::end_of_interrupt;
            exit.address = run.eoi.vector;
            break;
        case KVM_EXIT_IRQ_WINDOW_OPEN: exit.kind = KvmExit::Kind::window_open; break;
        case KVM_EXIT_SHUTDOWN: exit.kind = KvmExit::Kind::shutdown; break;
        case KVM_EXIT_INTR: exit.kind = KvmExit::Kind::interrupted; break;
        case KVM_EXIT_SYSTEM_EVENT: show_system_event(run, exit); break;
        case KVM_EXIT_FAIL_ENTRY:
            exit.kind = KvmExit::Kind::failed;
            exit.detail = run.fail_entry.hardware_entry_failure_reason;
            break;
        default:
            exit.kind = KvmExit::Kind::failed;
            exit.detail = run.exit_reason == KVM_EXIT_INTERNAL_ERROR ? run.internal.suberror : 0;
            break;
    }
    return exit;
}
#endif

}  // namespace

struct KvmVcpu::Run {
    Fd fd;
    Mapping shared;
    std::atomic<bool> is_running{false};
    std::atomic<bool> is_interrupted{false};
    std::atomic<pthread_t> thread{};

    [[nodiscard]] kvm_run& run() const { return *reinterpret_cast<kvm_run*>(shared.bytes().data()); }
    void set_immediate_exit(bool is_wanted) const {
        std::atomic_ref{run().immediate_exit}.store(is_wanted ? 1 : 0, std::memory_order_seq_cst);
    }
};

KvmVcpu::KvmVcpu(std::unique_ptr<Run> run) : run_(std::move(run)) {}
KvmVcpu::KvmVcpu(KvmVcpu&&) noexcept = default;
KvmVcpu& KvmVcpu::operator=(KvmVcpu&&) noexcept = default;
KvmVcpu::~KvmVcpu() = default;

#if defined(__x86_64__)
Result<KvmExit> KvmVcpu::run() {
    run_->thread.store(::pthread_self(), std::memory_order_relaxed);
    run_->is_running.store(true, std::memory_order_seq_cst);
    // A kick between here and the call is no loss: immediate_exit stays set until it is forgotten.
    const int status = checked_call(SysCall::ioctl, [&] {
        const int done = ::ioctl(run_->fd.view().number(), KVM_RUN, 0);
        return done == -1 && (errno == EINTR || errno == EAGAIN) ? 1 : done;
    });
    run_->is_running.store(false, std::memory_order_seq_cst);
    if (status == 1) return KvmExit{};
    if (status < 0) return Error::from_errno(errno, "KVM_RUN");
    return exit_of(run_->run(), run_->shared.bytes().size());
}

Result<KvmRegisters> KvmVcpu::registers() const {
    KvmRegisters registers;
    GM_TRY(tell(run_->fd, KVM_GET_REGS, static_cast<const void*>(&registers), "KVM_GET_REGS"));
    return registers;
}

Result<void> KvmVcpu::set_registers(const KvmRegisters& registers) const {
    return tell(run_->fd, KVM_SET_REGS, static_cast<const void*>(&registers), "KVM_SET_REGS");
}

Result<KvmSystemRegisters> KvmVcpu::system_registers() const {
    KvmSystemRegisters registers;
    GM_TRY(tell(run_->fd, KVM_GET_SREGS, static_cast<const void*>(&registers), "KVM_GET_SREGS"));
    return registers;
}

Result<void> KvmVcpu::set_system_registers(const KvmSystemRegisters& registers) const {
    return tell(run_->fd, KVM_SET_SREGS, static_cast<const void*>(&registers), "KVM_SET_SREGS");
}
#else
Result<KvmExit> KvmVcpu::run() { return Error{Errc::unsupported, "virtual processors need x86-64"}; }
Result<KvmRegisters> KvmVcpu::registers() const { return Error{Errc::unsupported, "x86-64 only"}; }
Result<void> KvmVcpu::set_registers(const KvmRegisters&) const {
    return Error{Errc::unsupported, "x86-64 only"};
}
Result<KvmSystemRegisters> KvmVcpu::system_registers() const {
    return Error{Errc::unsupported, "x86-64 only"};
}
Result<void> KvmVcpu::set_system_registers(const KvmSystemRegisters&) const {
    return Error{Errc::unsupported, "x86-64 only"};
}
#endif

void KvmVcpu::interrupt() {
    run_->set_immediate_exit(true);
    if (!run_->is_running.load(std::memory_order_seq_cst)) return;
    // The thread of a running processor lives: whoever interrupts joins it later.
    static_cast<void>(::pthread_kill(run_->thread.load(std::memory_order_relaxed), kick_signal()));
}

void KvmVcpu::forget_interrupt() { run_->set_immediate_exit(false); }

Result<void> KvmVcpu::set_cpuid(std::span<const KvmCpuidEntry> entries) const {
    const std::vector<std::byte> list = make_list(entries);
    return tell(run_->fd, set_cpuid2, static_cast<const void*>(list.data()), "KVM_SET_CPUID2");
}

Result<void> KvmVcpu::set_msrs(std::span<const KvmMsr> msrs) const {
    const std::vector<std::byte> list = make_list(msrs);
    const int count = ask(run_->fd, set_msrs_request, static_cast<const void*>(list.data()));
    if (count < 0) return Error::from_errno(errno, "KVM_SET_MSRS");
    if (static_cast<std::size_t>(count) == msrs.size()) return {};
    return Error{Errc::unsupported, fmt::format("KVM_SET_MSRS: the kernel refuses to set MSR {:#x} to {:#x}",
                                                msrs[static_cast<std::size_t>(count)].index,
                                                msrs[static_cast<std::size_t>(count)].value)};
}

bool KvmVcpu::is_ready_for_interrupt() const { return run_->run().ready_for_interrupt_injection != 0; }
void KvmVcpu::request_interrupt_window(bool is_wanted) {
    run_->run().request_interrupt_window = is_wanted ? 1 : 0;
}

Result<void> KvmVcpu::give_interrupt(std::uint8_t vector) const {
    const kvm_interrupt interrupt{.irq = vector};
    return tell(run_->fd, KVM_INTERRUPT, static_cast<const void*>(&interrupt), "KVM_INTERRUPT");
}

Result<void> KvmMachine::set_slot(const KvmMemorySlot& slot) const {
    const kvm_userspace_memory_region region{.slot = slot.slot,
                                             .flags = slot.flags,
                                             .guest_phys_addr = slot.guest_address,
                                             .memory_size = slot.size_bytes,
                                             .userspace_addr = slot.host_address};
    if (ask(fd_, KVM_SET_USER_MEMORY_REGION, static_cast<const void*>(&region)) >= 0) return {};
    return Error::from_errno(errno, fmt::format("memory slot {}: {} bytes at guest address {:#x}", slot.slot,
                                                slot.size_bytes, slot.guest_address));
}

Result<void> KvmMachine::enable_split_irqchip(std::uint32_t pins) const {
    kvm_enable_cap wanted = {};
    wanted.cap = KVM_CAP_SPLIT_IRQCHIP;
    wanted.args[0] = pins;
    return tell(fd_, KVM_ENABLE_CAP, static_cast<const void*>(&wanted), "KVM_CAP_SPLIT_IRQCHIP");
}

Result<void> KvmMachine::set_routes(std::span<const KvmRoute> routes) const {
    std::vector<RoutingEntry> entries;
    entries.reserve(routes.size());
    for (const KvmRoute& route : routes) {
        RoutingEntry entry;
        entry.gsi = route.gsi;
        entry.address_low = static_cast<std::uint32_t>(route.address);
        entry.address_high = static_cast<std::uint32_t>(route.address >> 32);
        entry.data = route.data;
        entries.push_back(entry);
    }
    const std::vector<std::byte> list = make_list(std::span<const RoutingEntry>{entries});
    return tell(fd_, set_gsi_routing, static_cast<const void*>(list.data()), "KVM_SET_GSI_ROUTING");
}

namespace {
Result<void> tell_irqfd(FdView machine, FdView eventfd, std::uint32_t gsi, std::uint32_t flags) {
    kvm_irqfd request = {};
    request.fd = static_cast<std::uint32_t>(eventfd.number());
    request.gsi = gsi;
    request.flags = flags;
    return tell(machine, KVM_IRQFD, static_cast<const void*>(&request), "KVM_IRQFD");
}

Result<void> tell_ioeventfd(FdView machine, const KvmMachine::Doorbell& doorbell, FdView eventfd,
                            bool is_off) {
    kvm_ioeventfd request = {};
    request.addr = doorbell.address;
    request.len = doorbell.size_bytes;
    request.fd = eventfd.number();
    request.datamatch = doorbell.value.value_or(0);
    request.flags = (doorbell.value ? 1U << kvm_ioeventfd_flag_nr_datamatch : 0U) |
                    (doorbell.is_port ? 1U << kvm_ioeventfd_flag_nr_pio : 0U) |
                    (is_off ? 1U << kvm_ioeventfd_flag_nr_deassign : 0U);
    if (ask(machine, KVM_IOEVENTFD, static_cast<const void*>(&request)) >= 0) return {};
    return Error::from_errno(errno, fmt::format("KVM_IOEVENTFD at {:#x}", doorbell.address));
}
}  // namespace

Result<void> KvmMachine::connect_irqfd(FdView eventfd, std::uint32_t gsi) const {
    GM_TRY(tell_irqfd(fd_, eventfd, gsi, 0));
    // The kernel has delivered what waited, and left it in the counter: the next connection would deliver it again.
    // A kick from here on is taken inside of the write that makes it.
    std::uint64_t count = 0;
    const iovec place{.iov_base = &count, .iov_len = sizeof count};
    const ssize_t size =
        checked_call(SysCall::readv, [&] { return ::preadv2(eventfd.number(), &place, 1, -1, RWF_NOWAIT); });
    if (size >= 0 || errno == EAGAIN) return {};
    const Error error = Error::from_errno(errno, "take the kicks that waited for an interrupt");
    static_cast<void>(tell_irqfd(fd_, eventfd, gsi, KVM_IRQFD_FLAG_DEASSIGN));
    return error;
}
Result<void> KvmMachine::disconnect_irqfd(FdView eventfd, std::uint32_t gsi) const {
    return tell_irqfd(fd_, eventfd, gsi, KVM_IRQFD_FLAG_DEASSIGN);
}
Result<void> KvmMachine::connect_doorbell(const Doorbell& doorbell, FdView eventfd) const {
    return tell_ioeventfd(fd_, doorbell, eventfd, false);
}
Result<void> KvmMachine::disconnect_doorbell(const Doorbell& doorbell, FdView eventfd) const {
    return tell_ioeventfd(fd_, doorbell, eventfd, true);
}

Result<void> KvmMachine::send_message(std::uint64_t address, std::uint32_t data) const {
    kvm_msi message = {};
    message.address_lo = static_cast<std::uint32_t>(address);
    message.address_hi = static_cast<std::uint32_t>(address >> 32);
    message.data = data;
    return tell(fd_, KVM_SIGNAL_MSI, static_cast<const void*>(&message), "KVM_SIGNAL_MSI");
}

Result<KvmVcpu> KvmMachine::create_vcpu(std::uint32_t id) const {
    auto run = std::make_unique<KvmVcpu::Run>();
    run->fd = Fd{ask(fd_, KVM_CREATE_VCPU, static_cast<unsigned long>(id))};
    if (!run->fd.is_open()) return Error::from_errno(errno, fmt::format("KVM_CREATE_VCPU {}", id));
    run->shared =
        GM_TRY(Mapping::create(run->fd, MappingOptions{.size_bytes = run_bytes_, .may_exceed_file = true}));
    return KvmVcpu{std::move(run)};
}

Result<void> KvmMachine::get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> words) const {
    kvm_dirty_log log = {};
    log.slot = slot;
    log.dirty_bitmap = words.data();
    return tell(fd_, KVM_GET_DIRTY_LOG, static_cast<const void*>(&log), "KVM_GET_DIRTY_LOG");
}

Result<KvmSystem> KvmSystem::open(const char* path) {
#if !defined(__x86_64__)
    return Error{Errc::unsupported,
                 std::string{path} + ": this program runs x86-64 guests on x86-64 hosts only"};
#endif
    Fd fd = GM_TRY(open_file(path, OpenMode::read_write));
    const int version = ask(fd, KVM_GET_API_VERSION, 0UL);
    if (version < 0) return Error::from_errno(errno, std::string{path} + ": KVM_GET_API_VERSION");
    if (version != KVM_API_VERSION) {
        return Error{Errc::unsupported,
                     fmt::format("{}: the kernel speaks version {} of KVM, this program {}", path, version,
                                 KVM_API_VERSION)};
    }
    GM_TRY(install_kick());
    return KvmSystem{std::move(fd)};
}

std::uint32_t KvmSystem::capability(std::uint32_t number) const {
    return static_cast<std::uint32_t>(
        std::max(ask(fd_, KVM_CHECK_EXTENSION, static_cast<unsigned long>(number)), 0));
}
std::uint32_t KvmSystem::max_slots() const { return std::max(capability(KVM_CAP_NR_MEMSLOTS), 32U); }
std::uint32_t KvmSystem::max_vcpus() const {
    return std::max({capability(KVM_CAP_MAX_VCPUS), capability(KVM_CAP_NR_VCPUS), 1U});
}

Result<std::vector<KvmCpuidEntry>> KvmSystem::supported_cpuid() const {
    std::vector<KvmCpuidEntry> entries(max_cpuid_entries);
    std::vector<std::byte> list = make_list(std::span<const KvmCpuidEntry>{entries});
    GM_TRY(tell(fd_, get_supported_cpuid, static_cast<const void*>(list.data()), "KVM_GET_SUPPORTED_CPUID"));
    KvmList<KvmCpuidEntry> head;
    std::memcpy(&head, list.data(), sizeof head);
    entries.resize(std::min<std::size_t>(head.count, entries.size()));
    std::memcpy(entries.data(), list.data() + sizeof head, entries.size() * sizeof(KvmCpuidEntry));
    return entries;
}

Result<KvmMachine> KvmSystem::create_machine() const {
    const int run_bytes = ask(fd_, KVM_GET_VCPU_MMAP_SIZE, 0UL);
    if (run_bytes < 0) return Error::from_errno(errno, "KVM_GET_VCPU_MMAP_SIZE");
    Fd fd{ask(fd_, KVM_CREATE_VM, 0UL)};
    if (!fd.is_open()) return Error::from_errno(errno, "KVM_CREATE_VM");
    // Three pages that Intel processors without "unrestricted guest" keep their real mode in: where no slot is.
    GM_TRY(tell(fd, KVM_SET_TSS_ADDR, real_mode_pages, "KVM_SET_TSS_ADDR"));
    return KvmMachine{std::move(fd), static_cast<std::uint64_t>(run_bytes)};
}

}  // namespace guestmem

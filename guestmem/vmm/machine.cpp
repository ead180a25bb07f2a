// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/machine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include "guestmem/device/bus.hpp"
#include "guestmem/device/pci/function.hpp"
#include "guestmem/device/pci/host_bridge.hpp"
#include "guestmem/device/pci/intx_pin.hpp"
#include "guestmem/device/pci/msi.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/share/hold.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/kvm.hpp"
#include "guestmem/sys/membarrier.hpp"
#include "guestmem/sys/thread_placement.hpp"
#include "guestmem/vmm/clock_thread.hpp"
#include "guestmem/vmm/devices/acpi_power.hpp"
#include "guestmem/vmm/devices/created_region.hpp"
#include "guestmem/vmm/devices/debug_port.hpp"
#include "guestmem/vmm/devices/exit_port.hpp"
#include "guestmem/vmm/devices/ivshmem.hpp"
#include "guestmem/vmm/devices/keyboard_controller.hpp"
#include "guestmem/vmm/devices/pit.hpp"
#include "guestmem/vmm/devices/rtc.hpp"
#include "guestmem/vmm/devices/serial8250.hpp"
#include "guestmem/vmm/devices/shmem.hpp"
#include "guestmem/vmm/guest_start.hpp"
#include "guestmem/vmm/kvm_interrupts.hpp"
#include "guestmem/vmm/own_service.hpp"
#include "guestmem/vmm/region_window.hpp"
#include "guestmem/vmm/share_watch.hpp"
#include "guestmem/vmm/vcpu_setup.hpp"
#include "guestmem/vmm/vm_memory.hpp"
#include "guestmem/vmm/warnings.hpp"
#include "guestmem/vmm/wiring.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint32_t capability_tsc_deadline = 72;  // KVM_CAP_TSC_DEADLINE_TIMER

std::int64_t wall_clock_ns() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

Result<std::shared_ptr<const MemoryMap>> make_map(const BoardPlan& plan) {
    Layout layout;
    for (const PlannedMemory& memory : plan.memory) {
        const auto backend = GM_TRY_CONTEXT(Backend::create(memory.backend), memory.name);
        std::uint64_t offset_bytes = 0;
        for (const GuestRange& range : memory.ranges) {
            layout.add(GM_TRY(Region::create({.name = memory.name,
                                              .base = range.base(),
                                              .size_bytes = range.size_bytes(),
                                              .kind = memory.is_rom ? RegionKind::rom : RegionKind::ram,
                                              .memory = backend->memory(),
                                              .memory_offset_bytes = offset_bytes})));
            offset_bytes += range.size_bytes();
        }
    }
    return std::move(layout).freeze();
}

/// How much memory guests may make through a service of the machine's own, beside its `create` lines.
std::uint64_t share_budget(const BoardPlan& plan) {
    constexpr std::uint64_t least_bytes = 64UL << 20;
    std::uint64_t ram_bytes = 0;
    for (const PlannedMemory& memory : plan.memory) {
        for (const GuestRange& range : memory.ranges) ram_bytes += memory.is_rom ? 0 : range.size_bytes();
    }
    std::uint64_t budget = std::max(least_bytes, ram_bytes / 4);
    for (const Vdev& vdev : plan.config().vdevs) {
        for (const CreateLine& line : vdev.shmem.creates) budget += line.size_bytes.value + page_size_bytes;
        if (vdev.kind == VdevKind::ivshmem && vdev.ivshmem.size_bytes)
            budget += vdev.ivshmem.size_bytes->value;
    }
    return budget;
}

share::Rights rights_of(const Vdev& vdev) {
    std::vector<share::Rule> rules;
    for (const NameRule& rule : vdev.shmem.rules) {
        rules.push_back({.verdict = rule.is_allowed ? share::Verdict::allow : share::Verdict::deny,
                         .pattern = rule.pattern.value,
                         .line = rule.pattern.place.line});
    }
    return share::Rights{std::move(rules)};
}

/// What a `cpu` line says of its thread.
Result<void> place_thread(const Cpu& cpu) {
    if (!cpu.runmask.empty()) {
        std::vector<std::uint32_t> cpus;
        for (const auto& one : cpu.runmask) cpus.push_back(one.value);
        GM_TRY_CONTEXT(run_thread_on(cpus), "runmask");
    }
    if (!cpu.sched) return {};
    const Sched& sched = cpu.sched->value;
    const SchedPolicy policy = sched.policy.value_or(SchedPolicy::round_robin);
    if (policy == SchedPolicy::other) return set_thread_policy(ThreadPolicy::usual, 0);
    const bool is_fifo = policy == SchedPolicy::fifo;
    return set_thread_policy(is_fifo ? ThreadPolicy::fifo : ThreadPolicy::round_robin, sched.priority);
}

bool has_shares(const Vdev& vdev) { return vdev.kind == VdevKind::shmem || vdev.kind == VdevKind::ivshmem; }

}  // namespace

/// In the order in which they lean on each other: the last one goes first.
struct Machine::Parts {
    explicit Parts(MachineWorld given) : world(std::move(given)) {
        world.warn = limited(std::move(world.warn));
    }

    Result<void> make_frame(const BoardPlan& plan);
    Result<void> make_devices(const BoardPlan& plan);
    Result<void> add_fixed_devices();
    Result<void> add_vdev(const Vdev& vdev, const BoardPlan& plan);
    Result<void> add_serial(const Vdev& vdev);
    Result<void> make_pci(const BoardPlan& plan);
    Result<void> make_shares(const BoardPlan& plan);
    Result<void> add_shmem(const Vdev& vdev, const BoardPlan& plan);
    Result<void> add_ivshmem(const Vdev& vdev);
    Result<void> plug_shmem(const std::shared_ptr<ShmemDevice>& device,
                            const std::shared_ptr<pci::IntxPin>& pin, const std::shared_ptr<pci::Msi>& msi);
    Result<void> start_vcpus(const BoardPlan& plan);
    Result<void> begin_threads();
    using Entered = std::promise<Result<void>>;
    [[nodiscard]] std::function<void()> entering(const std::shared_ptr<Entered>& entered,
                                                 ThreadKind kind) const;
    [[nodiscard]] std::vector<KvmVcpu> take_vcpus() { return std::move(vcpus); }
    std::shared_ptr<InterruptLine> wire_of(const Vdev& vdev, std::uint32_t usual);
    template <typename Chip>
    Result<void> add_ports(const std::shared_ptr<Chip>& chip, IoDevice& window, const char* name,
                           std::uint64_t first, std::uint64_t count) {
        return port_bus.add(
            {.name = name, .first = first, .count = count, .device = window_of(chip, window)});
    }
    /// For devices, which the interrupts outlive.
    [[nodiscard]] std::shared_ptr<MsiConnector> connector() {
        return {std::shared_ptr<void>{}, interrupts.get()};
    }
    [[nodiscard]] std::vector<DeviceWindow> windows() const;
    [[nodiscard]] std::vector<ShareConnection> connections() const;
    /// One process is one machine: what cannot be ended goes with it.
    void give_up(std::uint32_t processor) const {
        const std::string text = fmt::format(
            "processor {} does not come back from a device: the machine is ended with its process",
            processor);
        if (world.stuck) world.stuck(text);
        fmt::print(stderr, "guestmem: {}\n", text);
        std::_Exit(stuck_exit_code);
    }
    void end(MachineEnd how) {
        if (!has_ended.exchange(true)) world.ended(std::move(how));
    }

    MachineWorld world;
    std::atomic<bool> has_ended{false};
    std::unique_ptr<VmMemory> memory;
    std::optional<KvmSystem> system;
    std::shared_ptr<const KvmMachine> machine;
    std::unique_ptr<KvmInterrupts> interrupts;
    ClockThread clock;
    std::atomic<Processors*> to_notice{nullptr};
    std::unique_ptr<Wiring> wiring;
    std::vector<std::shared_ptr<InterruptLine>> wires;
    Bus port_bus{"port", 0xffff};
    Bus memory_bus{"memory", ~std::uint64_t{0}};
    WarningLog log{[this](const std::string& text) { world.warn(text); }};
    std::unique_ptr<OwnService> own_service;
    std::string share_control;
    std::unique_ptr<RegionWindow> region_window;
    std::unique_ptr<ShareWatch> watch;
    std::vector<std::shared_ptr<ShmemDevice>> shmem;
    std::vector<std::shared_ptr<IvshmemDevice>> ivshmem;
    std::vector<std::shared_ptr<CreatedRegion>> created;
    Place at_fault;  ///< of the line being made, where it is not the whole device
    std::shared_ptr<AcpiPower> power;
    std::shared_ptr<KeyboardController> keyboard;
    std::vector<std::shared_ptr<Serial8250>> serial;
    std::unique_ptr<pci::HostBridge> bridge;
    std::vector<KvmVcpu> vcpus;
    std::unique_ptr<Processors> processors;
};

Result<void> Machine::Parts::make_frame(const BoardPlan& plan) {
    system.emplace(GM_TRY(KvmSystem::open()));
    machine = std::make_shared<const KvmMachine>(GM_TRY(system->create_machine()));
    memory = GM_TRY(VmMemory::create(*system, machine, GM_TRY(make_map(plan)), world.dump));
    GM_TRY(machine->enable_split_irqchip(IoApic::pin_count));
    const auto supported = GM_TRY(system->supported_cpuid());
    const bool has_deadline = system->capability(capability_tsc_deadline) != 0;
    const auto count = static_cast<std::uint32_t>(plan.config().cpus.size());
    if (count > system->max_vcpus()) {
        return Error{Errc::out_of_range, fmt::format("{} processors: this host's KVM has at most {}", count,
                                                     system->max_vcpus())};
    }
    for (std::uint32_t number = 0; number < count; ++number) {
        vcpus.push_back(GM_TRY(machine->create_vcpu(number)));
        GM_TRY(vcpus.back().set_cpuid(make_cpuid(supported, number, count, has_deadline)));
        GM_TRY(vcpus.back().set_msrs(make_msrs()));
    }
    interrupts = GM_TRY(KvmInterrupts::create(*machine, IoApic::pin_count,
                                              [this](const Error& error) { world.warn(error.message()); }));
    wiring = std::make_unique<Wiring>(*interrupts, [this] {
        if (Processors* const running = to_notice.load()) running->notice_interrupt();
    });
    return {};
}

std::shared_ptr<InterruptLine> Machine::Parts::wire_of(const Vdev& vdev, std::uint32_t usual) {
    const std::uint32_t pin = vdev.intr ? vdev.intr->value.pin.value_or(usual) : usual;
    wires.push_back(wiring->wire(pin));
    return wires.back();
}

Result<void> Machine::Parts::add_fixed_devices() {
    const auto& pic = wiring->pic();
    GM_TRY(add_ports(pic, pic->master_ports(), "PIC", 0x20, 2));
    GM_TRY(add_ports(pic, pic->slave_ports(), "PIC", 0xa0, 2));
    GM_TRY(add_ports(pic, pic->elcr_ports(), "ELCR", 0x4d0, 2));
    // As firmware leaves it: the interrupt of the power events is a level, for guests that use the PIC, too.
    const std::array levels{static_cast<std::byte>(1U << (sci_gsi - 8))};
    pic->elcr_ports().write(1, levels);
    const auto debug = std::make_shared<DebugPort>([this](std::byte byte) { world.debug(byte); });
    GM_TRY(add_ports(debug, debug->port(), "debug port", ports::debug, 1));
    const auto leave = std::make_shared<ExitPort>([this](std::uint32_t code) {
        end({.kind = MachineEnd::Kind::exit_port, .code = static_cast<std::uint8_t>(code)});
    });
    GM_TRY(port_bus.add(
        {.name = "exit port", .first = ports::exit, .count = ExitPort::port_count, .device = leave}));
    wires.push_back(wiring->wire(sci_gsi));
    power = std::make_shared<AcpiPower>(clock, *wires.back(),
                                        [this] { end({.kind = MachineEnd::Kind::power_off}); });
    GM_TRY(add_ports(power, power->event_ports(), "power events", ports::power, AcpiPower::event_port_count));
    GM_TRY(add_ports(power, power->control_ports(), "power control", ports::power + 4,
                     AcpiPower::control_port_count));
    return add_ports(power, power->timer_ports(), "power timer", ports::power + 8,
                     AcpiPower::timer_port_count);
}

Result<void> Machine::Parts::add_serial(const Vdev& vdev) {
    const std::size_t number = serial.size();
    const auto chip = std::make_shared<Serial8250>(
        *wire_of(vdev, 4),
        Serial8250::Options{.send = [this, number](std::byte byte) { world.send(number, byte); },
                            .has_room = [this, number] { world.has_room(number); }});
    serial.push_back(chip);
    return add_ports(chip, chip->ports(), "ser8250", vdev.loc ? vdev.loc->value : 0x3f8,
                     Serial8250::port_count);
}

Result<void> Machine::Parts::add_vdev(const Vdev& vdev, const BoardPlan& plan) {
    switch (vdev.kind) {
        case VdevKind::ioapic:
            return memory_bus.add({.name = "ioapic",
                                   .first = vdev.loc ? vdev.loc->value : default_ioapic_base,
                                   .count = IoApic::window_bytes,
                                   .device = wiring->io_apic_device()});
        case VdevKind::ser8250: return add_serial(vdev);
        case VdevKind::timer8254: {
            const auto chip = std::make_shared<Pit>(clock, *wire_of(vdev, 0));
            GM_TRY(add_ports(chip, chip->counter_ports(), "timer8254", 0x40, 4));
            return add_ports(chip, chip->control_port(), "timer8254", 0x61, 1);
        }
        case VdevKind::mc146818: {
            const auto chip = std::make_shared<Rtc>(clock, wall_clock_ns, *wire_of(vdev, 8));
            return add_ports(chip, chip->ports(), "mc146818", 0x70, 2);
        }
        case VdevKind::pckeyboard: {
            keyboard = std::make_shared<KeyboardController>(
                *wire_of(vdev, 1), [this] { end({.kind = MachineEnd::Kind::reset}); });
            GM_TRY(add_ports(keyboard, keyboard->data_port(), "pckeyboard", 0x60, 1));
            GM_TRY(add_ports(keyboard, keyboard->command_port(), "pckeyboard", 0x64, 1));
            return add_ports(keyboard, keyboard->system_port(), "pckeyboard", 0x92, 1);
        }
        case VdevKind::shmem: return add_shmem(vdev, plan);
        case VdevKind::ivshmem: return add_ivshmem(vdev);
        case VdevKind::pci: return {};
    }
    return {};
}

Result<void> Machine::Parts::make_pci(const BoardPlan& plan) {
    pci::HostBridge::Options options{.memory = &memory_bus, .ports = &port_bus, .ecam_base = plan.ecam_base};
    for (std::size_t line = 0; line < pci_gsis.size(); ++line) {
        options.lines[line] = wiring->wire(pci_gsis[line]);
        options.line_numbers[line] = static_cast<std::uint8_t>(pci_gsis[line]);
    }
    if (keyboard != nullptr) options.reset_control = window_of(keyboard, keyboard->reset_port());
    bridge = GM_TRY(pci::HostBridge::create(std::move(options)));
    return {};
}

Result<void> Machine::Parts::make_shares(const BoardPlan& plan) {
    share_control = world.share_control;
    if (share_control.empty()) {
        const std::string path = fmt::format("{}/vm-{}.share", runtime_folder(), plan.config().system.value);
        GM_TRY(make_folder(runtime_folder()));
        std::function<Result<void>()> begin;
        if (world.sandbox) {
            begin = [sandbox = world.sandbox] { return sandbox->enter(ThreadKind::service); };
        }
        own_service = GM_TRY_CONTEXT(OwnService::create(path, log, share_budget(plan), std::move(begin)),
                                     "the machine's own share service");
        share_control = own_service->control();
    }
    region_window = std::make_unique<RegionWindow>(plan.share_window, *memory, memory_bus);
    watch = GM_TRY(ShareWatch::create());
    return {};
}

Result<void> Machine::Parts::plug_shmem(const std::shared_ptr<ShmemDevice>& device,
                                        const std::shared_ptr<pci::IntxPin>& pin,
                                        const std::shared_ptr<pci::Msi>& msi) {
    pci::Bar registers{.index = 0, .size_bytes = register_page_bytes, .device = device};
    auto function = GM_TRY(
        pci::Function::create({.name = "shmem",
                               .identity = {.vendor = 0x1c05, .device = 0x0001, .class_code = 0x0500},
                               .intx = pin,
                               .bars = {registers},
                               .capabilities = {msi},
                               .report = [this](const Error& error) { world.warn(error.message()); }}));
    const unsigned number = GM_TRY(bridge->add(std::move(function)));
    device->set_vector(pci_gsis[pci::HostBridge::line_of(number, 1)]);
    return {};
}

Result<void> Machine::Parts::add_shmem(const Vdev& vdev, const BoardPlan& plan) {
    for (const CreateLine& line : vdev.shmem.creates) {
        at_fault = line.name.place;
        const std::uint64_t pages = (line.size_bytes.value + page_size_bytes - 1) / page_size_bytes;
        share::HoldOptions wanted{.control = share_control, .share = line.name.value};
        wanted.size_bytes = pages * page_size_bytes;
        auto region = GM_TRY_CONTEXT(share::Hold::take(wanted), "create " + line.name.value);
        if (region.slots() > share::max_senders)
            return Error{
                Errc::unsupported,
                fmt::format("create {}: that share is there and has {} slots; a region of `vdev shmem` "
                            "has at most {}",
                            line.name.value, region.slots(), share::max_senders)};
        created.push_back(std::make_shared<CreatedRegion>(
            std::move(region), [this](const std::string& text) { world.warn(text); }));
    }
    at_fault = {};
    const std::uint32_t place = vdev.place.source;
    ShmemDevice::Options options{.name = vdev.name ? vdev.name->value : std::string{"vdev shmem"},
                                 .control = share_control,
                                 .rights = rights_of(vdev),
                                 .rights_file = plan.read.sources.all()[place].name,
                                 .warn = [this](const std::string& text) { world.warn(text); },
                                 .watch = [this] { watch->wake(); }};
    if (vdev.loc) {
        if (vdev.intr) options.line = wire_of(vdev, 0);
        shmem.push_back(std::make_shared<ShmemDevice>(std::move(options), *region_window));
        if (vdev.intr) shmem.back()->set_vector(vdev.intr->value.pin.value_or(0));
        return memory_bus.add({.name = "shmem",
                               .first = vdev.loc->value,
                               .count = register_page_bytes,
                               .device = shmem.back()});
    }
    const auto pin = std::make_shared<pci::IntxPin>();
    const auto msi = GM_TRY(pci::Msi::create({.count_vectors = 1, .connector = connector()}));
    auto bell = std::make_shared<EventFd>(GM_TRY(EventFd::create()));
    GM_TRY(msi->give(0, bell->view()));
    options.line = pin;
    // A kick before the guest switches messages on waits in the bell until then, unless what it was for is served.
    options.message = [bell](bool is_due) {
        static_cast<void>(is_due ? bell->kick() : Result<void>{});
        if (!is_due) static_cast<void>(bell->drain());
    };
    options.connect_bell = [msi](FdView kicks) { return msi->add(0, kicks); };
    options.disconnect_bell = [msi](FdView kicks) { msi->remove(0, kicks); };
    shmem.push_back(std::make_shared<ShmemDevice>(std::move(options), *region_window));
    return plug_shmem(shmem.back(), pin, msi);
}

Result<void> Machine::Parts::add_ivshmem(const Vdev& vdev) {
    const IvshmemOptions& wanted = vdev.ivshmem;
    share::SessionOptions session;
    session.control = share_control;
    session.share = wanted.share.value;
    session.may_create = wanted.size_bytes.has_value();
    session.size_bytes = wanted.size_bytes ? wanted.size_bytes->value : 0;
    session.vectors = wanted.vectors.value;
    session.may_reattach = false;
    auto device =
        GM_TRY(IvshmemDevice::create({.session = std::move(session),
                                      .has_doorbell = wanted.mode.value == IvshmemMode::doorbell,
                                      .connector = connector(),
                                      .machine = machine,
                                      .memory = memory.get(),
                                      .warn = [this](const std::string& text) { world.warn(text); }}));
    GM_TRY(bridge->add(GM_TRY(IvshmemDevice::make_function(device))));
    ivshmem.push_back(std::move(device));
    return {};
}

Result<void> Machine::Parts::make_devices(const BoardPlan& plan) {
    GM_TRY(add_fixed_devices());
    const auto& vdevs = plan.config().vdevs;
    for (const Vdev& vdev : vdevs) {
        if (vdev.kind == VdevKind::pckeyboard) GM_TRY(add_vdev(vdev, plan));
    }
    if (plan.has_pci) GM_TRY(make_pci(plan));
    if (std::ranges::any_of(vdevs, has_shares)) GM_TRY(make_shares(plan));
    for (const Vdev& vdev : vdevs) {
        if (vdev.kind == VdevKind::pckeyboard) continue;
        if (const auto added = add_vdev(vdev, plan); !added) {
            Findings findings{plan.read.sources};
            findings.add(at_fault.is_somewhere() ? at_fault : vdev.place, added.error().message());
            return findings.to_error();
        }
    }
    for (const auto& device : shmem) watch->add([device] { return device->clients(); });
    for (const auto& device : ivshmem) watch->add([device] { return std::array{device}; });
    if (!created.empty()) watch->add([this] { return created; });
    if (bridge != nullptr) return bridge->assign(plan.pci_windows);
    return {};
}

Result<void> Machine::Parts::start_vcpus(const BoardPlan& plan) {
    MapReader reader = GM_TRY(memory->make_reader("loader"));
    const LoadedGuest guest = GM_TRY(load_files(plan, reader.memory()));
    KvmVcpu& first = vcpus.front();
    GM_TRY(first.set_registers(make_registers(guest.entry)));
    GM_TRY(first.set_system_registers(make_system_registers(guest.entry, GM_TRY(first.system_registers()))));
    ProcessorHooks hooks{
        .ports = port_bus,
        .memory = memory_bus,
        .end_of_interrupt = [this](std::uint8_t vector) { wiring->io_apic().end_of_interrupt(vector); },
        .has_interrupt = [this] { return wiring->has_interrupt(); },
        .take_interrupt = [this]() -> std::optional<std::uint8_t> { return wiring->pic()->acknowledge(); },
        .stop = [this](MachineEnd how) { end(std::move(how)); },
        .begin_thread = [cpus = plan.config().cpus,
                         sandbox = world.sandbox](std::uint32_t number) -> Result<void> {
            // Before the sandbox: a place on the host takes rights.
            GM_TRY(place_thread(cpus[number]));
            return sandbox ? sandbox->enter(ThreadKind::processor) : Result<void>{};
        },
        .stuck = [this](std::uint32_t number) { give_up(number); }};
    processors = std::make_unique<Processors>(take_vcpus(), std::move(hooks));
    to_notice = processors.get();
    return {};
}

/// What a thread does first; how it went is told.
std::function<void()> Machine::Parts::entering(const std::shared_ptr<Entered>& entered,
                                               ThreadKind kind) const {
    return [entered, kind, sandbox = world.sandbox] { entered->set_value(sandbox->enter(kind)); };
}

/// With a sandbox no processor runs before all threads are in it, the caller's too.
Result<void> Machine::Parts::begin_threads() {
    if (world.sandbox == nullptr) {
        clock.resume();
        if (watch) watch->start();
        processors->start();
        return {};
    }
    processors->pause();
    processors->start();
    // All beside each other: what each gives up takes it as long as the start of a processor.
    const auto clock_entered = std::make_shared<Entered>();
    const auto watch_entered = std::make_shared<Entered>();
    // The clock's own thread has handlers of alarms only: at the first moment of its time.
    const auto alarm = clock.make_alarm(entering(clock_entered, ThreadKind::clock));
    alarm->set(0);
    clock.resume();
    if (watch) watch->start(entering(watch_entered, ThreadKind::watch));
    const auto main_entered = world.sandbox->enter(ThreadKind::main);
    GM_TRY(clock_entered->get_future().get());
    if (watch) GM_TRY(watch_entered->get_future().get());
    if (!main_entered) return main_entered;
    // Each stands here once it has entered.
    processors->pause();
    processors->resume();
    processors->resume();
    return {};
}

std::vector<DeviceWindow> Machine::Parts::windows() const {
    std::vector<DeviceWindow> all;
    for (const Bus* bus : {&port_bus, &memory_bus}) {
        for (const BusWindow& window : bus->windows()) {
            all.push_back({.name = window.name,
                           .is_port = bus == &port_bus,
                           .first = window.first,
                           .count = window.count});
        }
    }
    return all;
}

std::vector<ShareConnection> Machine::Parts::connections() const {
    std::vector<ShareConnection> all;
    for (const auto& device : shmem) {
        for (const auto& client : device->clients()) {
            all.push_back({.device = "shmem",
                           .share = client->name(),
                           .size_bytes = client->size_pages() * page_size_bytes});
        }
    }
    for (const auto& device : ivshmem) {
        const share::Session& session = device->session();
        all.push_back({.device = "ivshmem",
                       .share = session.options().share,
                       .size_bytes = session.facts().size_bytes,
                       .slot = session.id()});
    }
    for (const auto& region : created) {
        const share::Hold& hold = region->hold();
        all.push_back({.device = "create", .share = hold.share(), .size_bytes = hold.size_bytes()});
    }
    return all;
}

Machine::Machine(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Machine::~Machine() {
    // Handlers of alarms may notice processors.
    parts_->clock.pause();
    parts_->processors->pause();
    if (parts_->watch) parts_->watch->stop();
    parts_->to_notice = nullptr;
    parts_->processors.reset();
    for (const auto& device : parts_->shmem) device->detach_all();
    for (const auto& device : parts_->ivshmem) device->leave();
}

Result<std::unique_ptr<Machine>> Machine::create(const BoardPlan& plan, MachineWorld world) {
    // Memory maps want it. With a second thread in the process the kernel waits a grace period first, 10 ms or more.
    static_cast<void>(prepare_membarrier());
    auto parts = std::make_unique<Parts>(std::move(world));
    GM_TRY(parts->make_frame(plan));
    GM_TRY(parts->make_devices(plan));
    GM_TRY(parts->start_vcpus(plan));
    return std::unique_ptr<Machine>{new Machine{std::move(parts)}};
}

void Machine::start() {
    if (auto begun = parts_->begin_threads(); !begun)
        parts_->end({.kind = MachineEnd::Kind::failed, .message = begun.error().message()});
}

void Machine::pause() {
    parts_->processors->pause();
    parts_->clock.pause();
}

void Machine::resume() {
    parts_->clock.resume();
    parts_->processors->resume();
}

bool Machine::is_paused() const { return parts_->processors->is_paused(); }
void Machine::press_power_button() { parts_->power->press_power_button(); }

std::size_t Machine::receive(std::size_t port, std::span<const std::byte> bytes) {
    return port < parts_->serial.size() ? parts_->serial[port]->receive(bytes) : bytes.size();
}
std::size_t Machine::count_serial_ports() const { return parts_->serial.size(); }
std::size_t Machine::count_processors() const { return parts_->processors->count(); }
std::size_t Machine::count_slots() const { return parts_->memory->count_slots(); }
VmMemory& Machine::memory() { return *parts_->memory; }
const std::string& Machine::share_control() const {
    return parts_->share_control.empty() ? parts_->world.share_control : parts_->share_control;
}

MachineFacts Machine::facts() const {
    return {.exits = parts_->processors->exits(),
            .devices = parts_->windows(),
            .connections = parts_->connections(),
            .count_serial_ports = parts_->serial.size()};
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/host_bridge.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <utility>

#include "guestmem/base/endian.hpp"

namespace guestmem::pci {
namespace {

// CONFIG_ADDRESS (3.2.2.3.2): enable, bus, device, function, register; the rest reads as zero.
constexpr std::uint32_t address_enable = std::uint32_t{1} << 31;
constexpr std::uint32_t address_bits = 0x80ff'fffc;
constexpr std::uint64_t count_config_ports = 8;
constexpr std::uint64_t data_offset = 4;

// An ECAM offset: device 19 to 15, function 14 to 12, register 11 to 0.
constexpr unsigned ecam_device_shift = 15;
constexpr unsigned ecam_function_shift = 12;
constexpr std::uint64_t ecam_register_bits = 0xfff;

/// Which register of which device; device count_devices stands for an absent one.
struct Target {
    unsigned device = HostBridge::count_devices;
    std::uint64_t offset = 0;
};

std::string address_text(unsigned device) { return fmt::format("PCI device 00:{:02x}.0", device); }

}  // namespace

/// What accesses need: they may end after the bridge has gone.
struct HostBridge::State {
    std::shared_ptr<Function> find(unsigned device) const {
        const std::shared_lock lock{mutex};
        return device < count_devices ? devices[device] : nullptr;
    }
    void read(const Target& target, std::span<std::byte> data) const {
        std::ranges::fill(data, std::byte{0xff});
        if (const auto function = find(target.device)) function->read_config(target.offset, data);
    }
    void write(const Target& target, std::span<const std::byte> data) {
        // One at a time, so that whoever is refused a place is tried again after each window that leaves.
        const std::scoped_lock lock{writes};
        const auto function = find(target.device);
        if (function && function->write_config(target.offset, data)) settle();
    }
    void settle() const {
        for (unsigned device = 0; device < count_devices; ++device)
            if (const auto function = find(device)) function->settle();
    }

    mutable std::shared_mutex mutex;
    std::array<std::shared_ptr<Function>, count_devices> devices;
    std::mutex writes;  ///< taken before mutex
};

class HostBridge::ConfigPorts final : public IoDevice {
public:
    ConfigPorts(std::shared_ptr<State> state, std::shared_ptr<IoDevice> reset_control)
        : state_(std::move(state)), reset_control_(std::move(reset_control)) {}

    void read(std::uint64_t offset, std::span<std::byte> data) override {
        if (offset == 0 && data.size() == 4) return store_little<std::uint32_t>(data.first<4>(), address_);
        if (is_reset(offset, data.size())) return reset_control_->read(0, data);
        if (is_data(offset, data.size())) state_->read(target(offset), data);
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        if (offset == 0 && data.size() == 4) {
            address_ = load_little<std::uint32_t>(data.first<4>()) & address_bits;
            return;
        }
        if (is_reset(offset, data.size())) return reset_control_->write(0, data);
        if (is_data(offset, data.size())) state_->write(target(offset), data);
    }

private:
    [[nodiscard]] bool is_reset(std::uint64_t offset, std::size_t size_bytes) const {
        return offset == reset_port - config_port && size_bytes == 1 && reset_control_ != nullptr;
    }
    [[nodiscard]] static bool is_data(std::uint64_t offset, std::size_t size_bytes) {
        return offset >= data_offset && offset < count_config_ports &&
               size_bytes <= count_config_ports - offset;
    }
    [[nodiscard]] Target target(std::uint64_t offset) const {
        const std::uint32_t address = address_;
        const bool is_absent =
            (address & address_enable) == 0 || (address >> 16 & 0xff) != 0 || (address >> 8 & 7) != 0;
        if (is_absent) return {};
        return {.device = address >> 11 & 0x1f, .offset = (address & 0xfc) + (offset - data_offset)};
    }

    std::shared_ptr<State> state_;
    std::shared_ptr<IoDevice> reset_control_;
    std::atomic<std::uint32_t> address_{0};
};

class HostBridge::Ecam final : public IoDevice {
public:
    explicit Ecam(std::shared_ptr<State> state) : state_(std::move(state)) {}

    void read(std::uint64_t offset, std::span<std::byte> data) override {
        state_->read(target(offset, data.size()), data);
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        state_->write(target(offset, data.size()), data);
    }

private:
    [[nodiscard]] static Target target(std::uint64_t offset, std::size_t size_bytes) {
        const std::uint64_t in_function = offset & ecam_register_bits;
        const bool is_absent = offset >= ecam_size_bytes || (offset >> ecam_function_shift & 7) != 0 ||
                               size_bytes > ecam_register_bits + 1 - in_function;
        if (is_absent) return {};
        return {.device = static_cast<unsigned>(offset >> ecam_device_shift), .offset = in_function};
    }

    std::shared_ptr<State> state_;
};

HostBridge::HostBridge(Options options) : options_(std::move(options)), state_(std::make_shared<State>()) {
    for (const auto& line : options_.lines)
        if (line) pins_.emplace_back(line);
}

Result<std::unique_ptr<HostBridge>> HostBridge::create(Options options) {
    if (options.memory == nullptr)
        return Error{Errc::invalid_argument, "a PCI host bridge without a memory bus"};
    const auto count_given =
        std::ranges::count_if(options.lines, [](const auto& line) { return line != nullptr; });
    if (count_given != 0 && count_given != count_lines) {
        return Error{Errc::invalid_argument,
                     fmt::format("a PCI host bridge with {} interrupt lines: it has none or {}", count_given,
                                 count_lines)};
    }
    if (options.ecam_base && *options.ecam_base % ecam_size_bytes != 0) {
        return Error{Errc::invalid_argument,
                     fmt::format("PCI configuration window at {:#x}: not a multiple of {:#x}",
                                 *options.ecam_base, ecam_size_bytes)};
    }
    std::unique_ptr<HostBridge> bridge{new HostBridge{std::move(options)}};
    GM_TRY(bridge->put_on_buses());
    auto own = GM_TRY(Function::create({.name = "host bridge", .identity = bridge->options_.identity}));
    GM_TRY(bridge->add(std::move(own), 0));
    return bridge;
}

Result<void> HostBridge::put_on_buses() {
    if (options_.ports != nullptr) {
        GM_TRY(
            options_.ports->add({.name = "PCI configuration",
                                 .first = config_port,
                                 .count = count_config_ports,
                                 .device = std::make_shared<ConfigPorts>(state_, options_.reset_control)}));
        has_ports_ = true;
    }
    if (options_.ecam_base) {
        GM_TRY(options_.memory->add({.name = "PCI configuration",
                                     .first = *options_.ecam_base,
                                     .count = ecam_size_bytes,
                                     .device = std::make_shared<Ecam>(state_)}));
        has_ecam_ = true;
    }
    return {};
}

HostBridge::~HostBridge() {
    if (has_ports_) options_.ports->remove(config_port);
    if (has_ecam_) options_.memory->remove(*options_.ecam_base);
    const std::scoped_lock writes{state_->writes};
    const std::unique_lock lock{state_->mutex};
    for (auto& function : state_->devices) {
        if (function) function->unplug();
        function.reset();
    }
}

Result<unsigned> HostBridge::add(std::shared_ptr<Function> function, std::optional<unsigned> device) {
    if (device && *device >= count_devices) {
        return Error{Errc::out_of_range, fmt::format("{}: PCI device number {}: they are 0 to {}",
                                                     function->name(), *device, count_devices - 1)};
    }
    const std::scoped_lock writes{state_->writes};
    unsigned number = device.value_or(1);
    if (!device) {
        while (number < count_devices && state_->find(number)) ++number;
        if (number == count_devices) {
            return Error{Errc::exhausted,
                         fmt::format("{}: PCI bus 0 is full: it has {} devices besides the host bridge",
                                     function->name(), count_devices - 1)};
        }
    }
    const auto found = functions();
    for (const Entry& entry : found) {
        if (entry.device != number && entry.function != function) continue;
        return Error{Errc::already_exists, fmt::format("{}: {} is {}", function->name(),
                                                       address_text(entry.device), entry.function->name())};
    }
    Function::Slot slot{.memory = *options_.memory,
                        .ports = options_.ports != nullptr ? *options_.ports : no_ports_};
    if (!pins_.empty() && function->has_intx()) {
        const std::size_t line = line_of(number, 1);
        slot.line = pins_[line].make_input();
        slot.line_number = options_.line_numbers[line];
    }
    function->plug(slot);
    const std::unique_lock lock{state_->mutex};
    state_->devices[number] = std::move(function);
    return number;
}

Result<void> HostBridge::remove(unsigned device) {
    const std::scoped_lock writes{state_->writes};
    std::shared_ptr<Function> function = state_->find(device);
    if (!function || device == 0) {
        return Error{Errc::not_found, fmt::format("{}: there is no device to remove", address_text(device))};
    }
    {
        const std::unique_lock lock{state_->mutex};
        state_->devices[device].reset();
    }
    function->unplug();
    state_->settle();
    return {};
}

std::vector<BarRequest> HostBridge::requests_without_address(std::vector<AddressWindow>& memory,
                                                             std::vector<AddressWindow>& ports) const {
    std::vector<BarRequest> requests;
    const auto found = functions();
    for (const auto& [device, function] : found) {
        const std::vector<Bar> bars = function->bars();
        for (const Bar& bar : bars) {
            const std::uint64_t address = function->programmed_address(bar.index);
            if (address == 0) {
                requests.push_back(
                    {.name = fmt::format("{} {} BAR{}", address_text(device), function->name(), bar.index),
                     .bar = bar});
            } else {
                (bar.kind == BarKind::io ? ports : memory)
                    .push_back({.first = address, .last = address + (bar.size_bytes - 1)});
            }
        }
    }
    return requests;
}

Result<void> HostBridge::assign(const AddressWindows& windows) {
    const std::scoped_lock writes{state_->writes};
    std::vector<AddressWindow> memory = taken_on(*options_.memory);
    std::vector<AddressWindow> ports;
    if (options_.ports != nullptr) ports = taken_on(*options_.ports);
    const std::vector<BarRequest> requests = requests_without_address(memory, ports);
    const std::vector<std::uint64_t> addresses = GM_TRY(plan_bars(requests, windows, memory, ports));

    // In the order in which the requests were made.
    std::size_t next = 0;
    const auto found = functions();
    for (const auto& [device, function] : found) {
        const std::vector<Bar> bars = function->bars();
        for (const Bar& bar : bars)
            if (function->programmed_address(bar.index) == 0)
                function->program_address(bar.index, addresses[next++]);
    }
    return {};
}

std::vector<HostBridge::Entry> HostBridge::functions() const {
    const std::shared_lock lock{state_->mutex};
    std::vector<Entry> found;
    for (unsigned device = 0; device < count_devices; ++device)
        if (state_->devices[device]) found.push_back({.device = device, .function = state_->devices[device]});
    return found;
}

}  // namespace guestmem::pci

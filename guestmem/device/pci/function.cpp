// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/function.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace guestmem::pci {
namespace {

constexpr std::uint8_t pin_a = 1;  // 6.2.4: a single-function device uses INTA#

}  // namespace

Function::Function(Options options, Bars bars)
    : name_(std::move(options.name)),
      identity_(options.identity),
      intx_(std::move(options.intx)),
      space_(identity_),
      bars_(std::move(bars)) {
    bars_.install(space_);
    space_.allow_write(command_register, command_bus_master);
    if (!intx_) return;
    space_.allow_write(command_register, command_interrupt_disable);
    space_.set(interrupt_pin_register, pin_a);
    space_.set(interrupt_line_register, std::uint8_t{0xff});
    space_.allow_write(interrupt_line_register, std::uint8_t{0xff});
}

Function::~Function() { unplug(); }

Result<std::shared_ptr<Function>> Function::create(Options options) {
    Bars bars = GM_TRY(Bars::create(options.name, std::move(options.bars), options.report));
    const auto capabilities = std::move(options.capabilities);
    const std::shared_ptr<Function> function{new Function{std::move(options), std::move(bars)}};
    GM_TRY_CONTEXT(function->add_capabilities(capabilities), function->name_);
    return function;
}

Result<void> Function::add_capabilities(const std::vector<std::shared_ptr<Capability>>& all) {
    for (const auto& one : all) {
        const CapabilityImage image = one->image();
        const std::size_t offset = GM_TRY(space_.add_capability(image));
        capabilities_.push_back({.capability = one, .offset = offset, .size_bytes = image.bytes.size()});
    }
    return {};
}

void Function::plug(const Slot& slot) {
    const std::scoped_lock lock{mutex_};
    bars_.plug(slot.memory, slot.ports);
    if (intx_) {
        space_.set(interrupt_line_register, slot.line_number);
        intx_->connect(slot.line);
    }
    (void)apply();
}

void Function::unplug() {
    const std::scoped_lock lock{mutex_};
    bars_.unplug();
    has_refused_ = false;
    if (intx_) intx_->connect(nullptr);
}

void Function::read_config(std::uint64_t offset, std::span<std::byte> data) {
    const std::scoped_lock lock{mutex_};
    const bool is_up = intx_ && intx_->is_up();
    const auto status = space_.get<std::uint16_t>(status_register);
    space_.set(status_register,
               static_cast<std::uint16_t>(is_up ? status | status_interrupt : status & ~status_interrupt));
    for (const Placed& placed : capabilities_) {
        if (offset >= placed.offset + placed.size_bytes || placed.offset >= offset + data.size()) continue;
        placed.capability->refresh(space_.bytes(placed.offset, placed.size_bytes));
    }
    space_.read(offset, data);
}

bool Function::write_config(std::uint64_t offset, std::span<const std::byte> data) {
    const std::scoped_lock lock{mutex_};
    space_.write(offset, data);
    return apply();
}

bool Function::apply() {
    for (const Placed& placed : capabilities_)
        placed.capability->programmed(space_.bytes(placed.offset, placed.size_bytes));
    drive_pin();
    const bool has_left = bars_.update(space_);
    has_refused_ = bars_.has_refused();
    return has_left;
}

void Function::drive_pin() {
    if (!intx_) return;
    const bool is_disabled = (space_.get<std::uint16_t>(command_register) & command_interrupt_disable) != 0;
    const bool is_replaced = std::ranges::any_of(
        capabilities_, [](const Placed& placed) { return placed.capability->replaces_intx(); });
    intx_->set_gate(!is_disabled && !is_replaced);
}

void Function::settle() {
    if (!has_refused_) return;
    const std::scoped_lock lock{mutex_};
    bars_.update(space_);
    has_refused_ = bars_.has_refused();
}

std::vector<Bar> Function::bars() const {
    const std::scoped_lock lock{mutex_};
    return bars_.list();
}

std::uint64_t Function::programmed_address(unsigned bar_index) const {
    const std::scoped_lock lock{mutex_};
    return bars_.programmed(space_, bar_index);
}

void Function::program_address(unsigned bar_index, std::uint64_t address) {
    const std::scoped_lock lock{mutex_};
    bars_.program(space_, bar_index, address);
    (void)apply();
}

std::optional<std::uint64_t> Function::visible_address(unsigned bar_index) const {
    const std::scoped_lock lock{mutex_};
    return bars_.address(bar_index);
}

}  // namespace guestmem::pci

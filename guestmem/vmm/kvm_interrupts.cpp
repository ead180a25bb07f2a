// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/kvm_interrupts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace guestmem::vmm {

class KvmInterrupts::Message final : public MsiInterrupt {
public:
    Message(KvmInterrupts& owner, FdView eventfd, std::uint32_t gsi)
        : owner_(owner), eventfd_(eventfd), gsi_(gsi) {}
    ~Message() override {
        if (const auto masked = mask(); !masked) owner_.complain_(masked.error());
        owner_.free_gsi(gsi_);
    }

    [[nodiscard]] Result<void> unmask(MsiMessage message) override {
        const std::lock_guard lock{mutex_};
        GM_TRY(owner_.set_route(gsi_, message));
        if (is_connected_) return {};
        // The route stands: a kick that waits in the eventfd is delivered by this call.
        GM_TRY(owner_.machine_.connect_irqfd(eventfd_, gsi_));
        is_connected_ = true;
        return {};
    }

    [[nodiscard]] Result<void> mask() override {
        const std::lock_guard lock{mutex_};
        if (!is_connected_) return {};
        GM_TRY(owner_.machine_.disconnect_irqfd(eventfd_, gsi_));
        is_connected_ = false;
        return owner_.set_route(gsi_, std::nullopt);
    }

private:
    KvmInterrupts& owner_;
    FdView eventfd_;
    std::uint32_t gsi_;
    std::mutex mutex_;
    bool is_connected_ = false;
};

Result<std::unique_ptr<KvmInterrupts>> KvmInterrupts::create(const KvmMachine& machine, std::uint32_t pins,
                                                             Complain complain) {
    std::unique_ptr<KvmInterrupts> interrupts{new KvmInterrupts{machine, std::move(complain)}};
    for (std::uint32_t pin = 0; pin < pins; ++pin) {
        interrupts->pins_.push_back(GM_TRY(EventFd::create()));
        GM_TRY_CONTEXT(machine.connect_irqfd(interrupts->pins_.back().view(), pin),
                       fmt::format("pin {} of the I/O APIC", pin));
    }
    return interrupts;
}

Result<std::unique_ptr<MsiInterrupt>> KvmInterrupts::connect(FdView eventfd) {
    const std::uint32_t gsi = GM_TRY(take_gsi());
    return std::unique_ptr<MsiInterrupt>{std::make_unique<Message>(*this, eventfd, gsi)};
}

Result<std::uint32_t> KvmInterrupts::take_gsi() {
    const std::lock_guard lock{mutex_};
    const auto free = std::ranges::find(is_taken_, false);
    const auto index = static_cast<std::size_t>(free - is_taken_.begin());
    if (pins_.size() + index >= max_gsis) {
        return Error{Errc::exhausted,
                     fmt::format("all {} interrupt numbers of the machine are taken: give its "
                                 "devices fewer vectors",
                                 max_gsis)};
    }
    if (free == is_taken_.end()) {
        is_taken_.push_back(true);
    } else {
        *free = true;
    }
    return static_cast<std::uint32_t>(pins_.size() + index);
}

void KvmInterrupts::free_gsi(std::uint32_t gsi) {
    const std::lock_guard lock{mutex_};
    is_taken_[gsi - pins_.size()] = false;
}

Result<void> KvmInterrupts::set_route(std::uint32_t gsi, std::optional<MsiMessage> message) {
    const std::lock_guard lock{mutex_};
    const auto old = routes_.find(gsi);
    if (message ? old != routes_.end() && old->second == *message : old == routes_.end()) return {};
    auto wanted = routes_;
    if (message) {
        wanted[gsi] = *message;
    } else {
        wanted.erase(gsi);
    }
    std::vector<KvmRoute> table;
    table.reserve(wanted.size());
    for (const auto& [number, route] : wanted) {
        table.push_back({.gsi = number, .address = route.address, .data = route.data});
    }
    GM_TRY(machine_.set_routes(table));
    routes_ = std::move(wanted);
    return {};
}

void KvmInterrupts::route_pin(std::uint32_t pin, std::optional<MsiMessage> message) {
    const auto done = set_route(pin, message);
    if (!done) complain_(Error{done.error()}.with_context(fmt::format("pin {} of the I/O APIC", pin)));
}

void KvmInterrupts::fire_pin(std::uint32_t pin) {
    if (pin >= pins_.size()) return;
    if (const auto done = pins_[pin].kick(); !done) complain_(done.error());
}

}  // namespace guestmem::vmm

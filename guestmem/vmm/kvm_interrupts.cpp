// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/kvm_interrupts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>
#include <utility>

namespace guestmem::vmm {

class KvmInterrupts::Message final : public MsiInterrupt {
public:
    Message(KvmInterrupts& owner, FdView eventfd, std::uint32_t gsi)
        : owner_(owner), bells_{{.eventfd = eventfd}}, gsi_(gsi) {}
    ~Message() override {
        auto masked = mask();
        if (!masked) masked = mask();
        if (masked) {
            owner_.free_gsi(gsi_);
            return;
        }
        // The eventfd still is this number's interrupt: nobody else gets it. Where KVM allows that, it leads nowhere.
        owner_.complain_(Error{masked.error()}.with_context("an interrupt that stays connected"));
        static_cast<void>(owner_.set_route(gsi_, std::nullopt).has_value());
    }

    void expect(MsiMessage message) override { owner_.expect(gsi_, message); }

    [[nodiscard]] Result<void> unmask(MsiMessage message) override {
        const std::lock_guard lock{mutex_};
        GM_TRY(owner_.set_route(gsi_, message));
        // The route stands: a kick that waits in an eventfd is delivered by this call.
        // Those that were added are connected only while the own one is: nothing is left to undo.
        GM_TRY(connect(bells_.front()));
        is_unmasked_ = true;
        for (Bell& bell : bells_) {
            const auto connected = connect(bell);
            if (connected || std::exchange(bell.is_refusal_told, true)) continue;
            owner_.complain_(Error{connected.error()}.with_context(
                "one of several eventfds of a message: its kicks come later, by a thread of ours"));
        }
        return {};
    }

    [[nodiscard]] Result<void> mask() override {
        const std::lock_guard lock{mutex_};
        // The own one last: as long as it is connected, so may the others be.
        for (Bell& bell : std::views::reverse(bells_)) GM_TRY(disconnect(bell));
        is_unmasked_ = false;
        return {};
    }

    [[nodiscard]] Result<void> add(FdView eventfd) override {
        const std::lock_guard lock{mutex_};
        Bell bell{.eventfd = eventfd};
        if (is_unmasked_) GM_TRY(connect(bell));
        bells_.push_back(bell);
        return {};
    }

    void remove(FdView eventfd) override {
        const std::lock_guard lock{mutex_};
        const auto found = std::ranges::find(bells_, eventfd.number(),
                                             [](const Bell& bell) { return bell.eventfd.number(); });
        if (found == bells_.end() || found == bells_.begin()) return;
        auto done = disconnect(*found);
        if (!done) done = disconnect(*found);
        // Closing it here is not enough: others have it open, and KVM keeps it as long as anybody has.
        if (!done)
            owner_.complain_(Error{done.error()}.with_context(
                "an eventfd that stays this message until all who have it have closed it"));
        bells_.erase(found);
    }

private:
    struct Bell {
        FdView eventfd;
        bool is_connected = false;
        bool is_refusal_told = false;
    };
    Result<void> connect(Bell& bell) {
        if (bell.is_connected) return {};
        GM_TRY(owner_.machine_.connect_irqfd(bell.eventfd, gsi_));
        bell.is_connected = true;
        return {};
    }
    Result<void> disconnect(Bell& bell) {
        if (!bell.is_connected) return {};
        GM_TRY(owner_.machine_.disconnect_irqfd(bell.eventfd, gsi_));
        bell.is_connected = false;
        return {};
    }

    KvmInterrupts& owner_;
    std::vector<Bell> bells_;  ///< the own one first
    std::uint32_t gsi_;
    std::mutex mutex_;
    bool is_unmasked_ = false;
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
    expected_.erase(gsi);
    if (routes_.contains(gsi)) unused_.insert(gsi);
}

void KvmInterrupts::expect(std::uint32_t gsi, MsiMessage message) {
    const std::lock_guard lock{mutex_};
    expected_[gsi] = message;
}

Result<void> KvmInterrupts::set_table(const std::map<std::uint32_t, MsiMessage>& routes) const {
    std::vector<KvmRoute> table;
    table.reserve(routes.size());
    for (const auto& [number, route] : routes) {
        table.push_back({.gsi = number, .address = route.address, .data = route.data});
    }
    return machine_.set_routes(table);
}

Result<void> KvmInterrupts::set_route(std::uint32_t gsi, std::optional<MsiMessage> message) {
    const std::lock_guard lock{mutex_};
    expected_.erase(gsi);
    const auto old = routes_.find(gsi);
    if (message ? old != routes_.end() && old->second == *message : old == routes_.end()) {
        unused_.erase(gsi);
        return {};
    }
    auto wanted = routes_;
    for (const std::uint32_t number : unused_) wanted.erase(number);
    if (message) {
        wanted[gsi] = *message;
    } else {
        wanted.erase(gsi);
    }
    auto together = wanted;
    for (const auto& [number, route] : std::exchange(expected_, {})) together[number] = route;
    if (auto done = set_table(together); done) {
        wanted = std::move(together);
    } else {
        // Another one may be what KVM does not take.
        if (together == wanted) return done;
        GM_TRY(set_table(wanted));
    }
    routes_ = std::move(wanted);
    unused_.clear();
    return {};
}

bool KvmInterrupts::route_pin(std::uint32_t pin, std::optional<MsiMessage> message) {
    const auto done = set_route(pin, message);
    if (!done) complain_(Error{done.error()}.with_context(fmt::format("pin {} of the I/O APIC", pin)));
    return done.has_value();
}

void KvmInterrupts::fire_pin(std::uint32_t pin) {
    if (pin >= pins_.size()) return;
    if (const auto done = pins_[pin].kick(); !done) complain_(done.error());
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/sys/poll.hpp"

/// A machine's side of message interrupts without a machine, for tests of devices.
///
/// Concepts: what a kernel would do on its own at a kick happens in deliver(): each unmasked eventfd that was kicked is
/// drained and gives one message.
/// Contract: refuse(n) makes the next n calls of connect(), unmask() and mask() fail.
/// Threads: any.
/// Lifetime: interrupts may outlive the connector.
/// Example:
///     FakeMsiConnector machine;
///     ...the guest unmasks vector 0, a peer rings its eventfd...
///     EXPECT_THAT(machine.deliver(), ElementsAre(MsiMessage{.address = 0xfee00000, .data = 0x41}));

namespace guestmem::testing {

class FakeMsiConnector final : public MsiConnector {
public:
    [[nodiscard]] Result<std::unique_ptr<MsiInterrupt>> connect(FdView eventfd) override {
        const std::scoped_lock lock{state_->mutex};
        GM_TRY(state_->check_allowed());
        auto entry = std::make_shared<Entry>();
        entry->eventfd = eventfd;
        state_->entries.push_back(entry);
        return std::unique_ptr<MsiInterrupt>{std::make_unique<Interrupt>(state_, std::move(entry))};
    }

    /// The messages that a guest gets, in the order in which their eventfds were connected.
    std::vector<MsiMessage> deliver() {
        const std::scoped_lock lock{state_->mutex};
        std::vector<MsiMessage> delivered;
        for (const auto& entry : state_->entries) {
            if (!entry->message || !poll_readable(entry->eventfd, 0).value()) continue;
            std::uint64_t kicks = 0;
            if (::read(entry->eventfd.number(), &kicks, sizeof kicks) == sizeof kicks)
                delivered.push_back(*entry->message);
        }
        return delivered;
    }
    /// What each connected eventfd becomes; nothing for a masked one.
    [[nodiscard]] std::vector<std::optional<MsiMessage>> connected() const {
        const std::scoped_lock lock{state_->mutex};
        std::vector<std::optional<MsiMessage>> all;
        for (const auto& entry : state_->entries) all.push_back(entry->message);
        return all;
    }
    /// What this eventfd becomes; nothing when it is masked or not connected.
    [[nodiscard]] std::optional<MsiMessage> message_of(FdView eventfd) const {
        const std::scoped_lock lock{state_->mutex};
        for (const auto& entry : state_->entries)
            if (entry->eventfd.number() == eventfd.number() && entry->message) return entry->message;
        return std::nullopt;
    }
    [[nodiscard]] std::size_t count_unmask_calls() const {
        const std::scoped_lock lock{state_->mutex};
        return state_->count_unmask_calls;
    }
    void refuse(int count) {
        const std::scoped_lock lock{state_->mutex};
        state_->count_refusals = count;
    }

private:
    struct Entry {
        FdView eventfd;
        std::optional<MsiMessage> message;
    };
    struct State {
        Result<void> check_allowed() {
            if (count_refusals == 0) return {};
            --count_refusals;
            return Error{Errc::exhausted, "the fake machine refuses, as it was told"};
        }
        std::mutex mutex;
        std::vector<std::shared_ptr<Entry>> entries;
        int count_refusals = 0;
        std::size_t count_unmask_calls = 0;
    };
    class Interrupt final : public MsiInterrupt {
    public:
        Interrupt(std::shared_ptr<State> state, std::shared_ptr<Entry> entry)
            : state_(std::move(state)), entry_(std::move(entry)) {}
        Interrupt(const Interrupt&) = delete;
        Interrupt& operator=(const Interrupt&) = delete;
        ~Interrupt() override {
            const std::scoped_lock lock{state_->mutex};
            std::erase(state_->entries, entry_);
        }
        [[nodiscard]] Result<void> unmask(MsiMessage message) override {
            const std::scoped_lock lock{state_->mutex};
            ++state_->count_unmask_calls;
            GM_TRY(state_->check_allowed());
            entry_->message = message;
            return {};
        }
        [[nodiscard]] Result<void> mask() override {
            const std::scoped_lock lock{state_->mutex};
            GM_TRY(state_->check_allowed());
            entry_->message.reset();
            return {};
        }

    private:
        std::shared_ptr<State> state_;
        std::shared_ptr<Entry> entry_;
    };

    std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace guestmem::testing

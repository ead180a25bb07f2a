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
            : state_(std::move(state)), entries_{std::move(entry)} {}
        Interrupt(const Interrupt&) = delete;
        Interrupt& operator=(const Interrupt&) = delete;
        ~Interrupt() override {
            const std::scoped_lock lock{state_->mutex};
            for (const auto& entry : entries_) std::erase(state_->entries, entry);
        }
        [[nodiscard]] Result<void> unmask(MsiMessage message) override {
            const std::scoped_lock lock{state_->mutex};
            ++state_->count_unmask_calls;
            GM_TRY(state_->check_allowed());
            for (const auto& entry : entries_) entry->message = message;
            return {};
        }
        [[nodiscard]] Result<void> mask() override {
            const std::scoped_lock lock{state_->mutex};
            GM_TRY(state_->check_allowed());
            for (const auto& entry : entries_) entry->message.reset();
            return {};
        }
        [[nodiscard]] Result<void> add(FdView eventfd) override {
            const std::scoped_lock lock{state_->mutex};
            GM_TRY(state_->check_allowed());
            auto entry = std::make_shared<Entry>();
            entry->eventfd = eventfd;
            entry->message = entries_.front()->message;
            state_->entries.push_back(entry);
            entries_.push_back(std::move(entry));
            return {};
        }
        void remove(FdView eventfd) override {
            const std::scoped_lock lock{state_->mutex};
            const auto is_meant = [&](const auto& entry) {
                return entry != entries_.front() && entry->eventfd.number() == eventfd.number();
            };
            std::erase_if(state_->entries, is_meant);
            std::erase_if(entries_, is_meant);
        }

    private:
        std::shared_ptr<State> state_;
        std::vector<std::shared_ptr<Entry>> entries_;  ///< the first one is that of connect()
    };

    std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace guestmem::testing

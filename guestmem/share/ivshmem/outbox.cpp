// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/outbox.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/share/ivshmem/wire.hpp"

namespace guestmem::share {
namespace {

/// A session that hears of many who come and go gets more than can be counted: that its handshake has ended stays.
std::uint32_t noted(std::size_t count) {
    return static_cast<std::uint32_t>(
        std::min<std::size_t>(count, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

const Doorbells* Outbox::Step::current() const {
    return next_slot < slots.size() ? slots[next_slot].get() : bells.get();
}

std::size_t Outbox::Step::count_messages() const {
    if (slots.empty()) return bells ? bells->vectors.size() : 1;
    std::size_t count = 0;
    for (const auto& slot : slots)
        if (slot->id != except) count += slot->vectors.size();
    return count;
}

void Outbox::Step::pass_over_except() {
    if (next_slot < slots.size() && slots[next_slot]->id == except) ++next_slot;
}

/// And no id of doorbells, and not the memory.
bool Outbox::Step::says_value() const { return slots.empty() && (bells ? is_labelled : !memory.is_open()); }

bool Outbox::Step::advance() {
    const Doorbells* const told = current();
    if (told == nullptr) return false;
    if (++next_vector < told->vectors.size()) return true;
    if (slots.empty()) return false;
    next_vector = 0;
    ++next_slot;
    pass_over_except();
    return next_slot < slots.size();
}

void Outbox::add(Step step) {
    const std::size_t count = step.count_messages();
    count_queued_ += count;
    if (count != 0) steps_.push_back(std::move(step));
}

void Outbox::add_value(std::int64_t value) {
    Step step;
    step.value = value;
    add(std::move(step));
}

void Outbox::add_memory(FdView memory) {
    Step step;
    step.value = ivshmem_memory_marker;
    step.memory = memory;
    add(std::move(step));
}

void Outbox::add_doorbells(std::shared_ptr<const Doorbells> bells) {
    Step step;
    step.bells = std::move(bells);
    add(std::move(step));
}

void Outbox::add_doorbells(std::shared_ptr<const Doorbells> bells, std::int64_t label) {
    Step step;
    step.value = label;
    step.is_labelled = true;
    step.bells = std::move(bells);
    add(std::move(step));
}

void Outbox::add_slots(std::span<const std::shared_ptr<const Doorbells>> slots, std::uint32_t except) {
    if (slots.empty()) return;
    Step step;
    step.slots = slots;
    step.except = except;
    step.pass_over_except();
    add(std::move(step));
}

void Outbox::note_begun(std::size_t count) {
    if (progress_ != nullptr) progress_->begun.store(noted(count));
}

void Outbox::note_done(std::size_t count) {
    if (progress_ != nullptr) progress_->done.store(noted(count));
}

Result<SendStatus> Outbox::send_batch(const UnixStream& stream) {
    std::vector<std::byte> bytes;
    std::vector<FdView> fds;
    std::deque<Step> rest = steps_;
    std::size_t count = 0;
    while (count < count_batched_ && !rest.empty()) {
        Step& step = rest.front();
        const Doorbells* const bells = step.current();
        const FdView fd = bells != nullptr ? bells->vectors[step.next_vector].view() : step.memory;
        if (fd.is_open() && fds.size() == max_fds_per_message) break;
        if (fd.is_open()) fds.push_back(fd);
        const IvshmemMessage message =
            encode_ivshmem(bells != nullptr && !step.is_labelled ? std::int64_t{bells->id} : step.value);
        bytes.insert(bytes.end(), message.begin(), message.end());
        ++count;
        if (!step.advance()) rest.pop_front();
    }
    note_begun(count);
    const SendOutcome outcome = GM_TRY(stream.send(bytes, fds));
    if (outcome.status != SendStatus::sent) {
        note_begun(0);
        return outcome.status;
    }
    if (outcome.count_bytes != bytes.size())
        return Error{Errc::corrupt, "the kernel split the first ivshmem messages"};
    steps_ = std::move(rest);
    count_queued_ -= count;
    count_sent_ = count;
    note_done(count);
    return SendStatus::sent;
}

Result<SendStatus> Outbox::flush(const UnixStream& stream) {
    if (count_sent_ == 0 && count_batched_ != 0)
        if (const SendStatus status = GM_TRY(send_batch(stream)); status != SendStatus::sent) return status;
    while (!steps_.empty()) {
        Step& step = steps_.front();
        const Doorbells* const bells = step.current();
        const bool says_id = bells != nullptr && !step.is_labelled;
        const IvshmemMessage message = encode_ivshmem(says_id ? std::int64_t{bells->id} : step.value);
        const FdView fd = bells != nullptr ? bells->vectors[step.next_vector].view() : step.memory;
        const std::span<const FdView> fds{&fd, fd.is_open() ? 1U : 0U};
        note_begun(count_sent_ + 1);
        const SendOutcome outcome = GM_TRY(stream.send(message, fds));
        if (outcome.status != SendStatus::sent) {
            note_begun(count_sent_);
            return outcome.status;
        }
        // A stream socket takes 8 bytes whole or not at all; a kernel that does otherwise cannot be served.
        if (outcome.count_bytes != message.size())
            return Error{Errc::corrupt, "the kernel split an 8-byte ivshmem message"};
        advance();
        note_done(count_sent_);
    }
    return SendStatus::sent;
}

void Outbox::advance() {
    --count_queued_;
    ++count_sent_;
    if (!steps_.front().advance()) steps_.pop_front();
}

void Outbox::skip(std::size_t count) {
    while (count_sent_ < count && !steps_.empty()) advance();
    count_sent_ = count;
}

bool Outbox::drop(std::int64_t first, std::int64_t last) {
    bool has_dropped_doorbells = false;
    std::erase_if(steps_, [&](const Step& step) {
        const bool is_meant = step.says_value() && step.value >= first && step.value <= last;
        if (!is_meant || step.next_vector != 0) return false;
        count_queued_ -= step.count_messages();
        has_dropped_doorbells = has_dropped_doorbells || step.bells;
        return true;
    });
    return has_dropped_doorbells;
}

}  // namespace guestmem::share

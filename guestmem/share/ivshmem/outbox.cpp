// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/ivshmem/outbox.hpp"

#include <span>
#include <utility>
#include <vector>

#include "guestmem/share/ivshmem/wire.hpp"

namespace guestmem::share {

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
            encode_ivshmem(bells != nullptr ? std::int64_t{bells->id} : step.value);
        bytes.insert(bytes.end(), message.begin(), message.end());
        ++count;
        if (!step.advance()) rest.pop_front();
    }
    if (progress_ != nullptr) progress_->begun.store(static_cast<std::uint32_t>(count));
    const SendOutcome outcome = GM_TRY(stream.send(bytes, fds));
    if (outcome.status != SendStatus::sent) {
        if (progress_ != nullptr) progress_->begun.store(0);
        return outcome.status;
    }
    if (outcome.count_bytes != bytes.size())
        return Error{Errc::corrupt, "the kernel split the first ivshmem messages"};
    steps_ = std::move(rest);
    count_queued_ -= count;
    count_sent_ = count;
    if (progress_ != nullptr) progress_->done.store(static_cast<std::uint32_t>(count));
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
        if (progress_ != nullptr) progress_->begun.store(static_cast<std::uint32_t>(count_sent_ + 1));
        const SendOutcome outcome = GM_TRY(stream.send(message, fds));
        if (outcome.status != SendStatus::sent) {
            if (progress_ != nullptr) progress_->begun.store(static_cast<std::uint32_t>(count_sent_));
            return outcome.status;
        }
        // A stream socket takes 8 bytes whole or not at all; a kernel that does otherwise cannot be served.
        if (outcome.count_bytes != message.size())
            return Error{Errc::corrupt, "the kernel split an 8-byte ivshmem message"};
        advance();
        if (progress_ != nullptr) progress_->done.store(static_cast<std::uint32_t>(count_sent_));
    }
    return SendStatus::sent;
}

void Outbox::advance() {
    --count_queued_;
    ++count_sent_;
    if (!steps_.front().advance()) steps_.pop_front();
}

void Outbox::skip(std::size_t count) {
    while (count-- > 0 && !steps_.empty()) advance();
}

}  // namespace guestmem::share

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/shmem_client.hpp"

#include <cstring>
#include <utility>

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t status_at = 0x00;
constexpr std::uint64_t index_at = 0x04;
constexpr std::uint64_t notify_at = 0x08;
constexpr std::uint64_t detach_at = 0x0c;
constexpr std::size_t register_bytes = 4;
constexpr std::uint32_t low_half = 0xffff;

}  // namespace

ShmemClient::ShmemClient(std::shared_ptr<share::HostShm> shm, Events events)
    : name_(shm->name()),
      size_pages_(shm->size_pages()),
      index_(shm->index().value_or(0)),
      events_(std::move(events)),
      shm_(std::move(shm)) {
    // The guest reads who is there as its first act: no interrupt is due for that.
    take_status();
    is_due_ = false;
}

Result<std::shared_ptr<const HostMemory>> ShmemClient::memory() const {
    const std::lock_guard lock{mutex_};
    if (shm_ == nullptr) return Error{Errc::not_found, name_ + ": detached"};
    return HostMemory::borrow(shm_->bytes(), MapAccess::read_write, shm_);
}

bool ShmemClient::is_interrupt_due() const {
    const std::lock_guard lock{mutex_};
    return is_due_;
}

FdView ShmemClient::view() const {
    const std::lock_guard lock{mutex_};
    return shm_ == nullptr ? FdView{} : shm_->view();
}

bool ShmemClient::take_status() {
    if (shm_ == nullptr) return false;
    const auto status = shm_->status();
    if (!status) {
        complain(status.error());
        return false;
    }
    const std::uint32_t notified = notified_ | (*status & low_half);
    const std::uint32_t active = *status & ~low_half;
    const bool has_changed = notified != notified_ || active != active_;
    notified_ = notified;
    active_ = active;
    is_due_ = is_due_ || has_changed;
    return has_changed;
}

bool ShmemClient::look() {
    bool has_changed = false;
    {
        const std::lock_guard lock{mutex_};
        has_changed = take_status();
    }
    if (has_changed) events_.changed();
    return has_changed;
}

void ShmemClient::detach() {
    const std::lock_guard lock{mutex_};
    shm_.reset();
    is_due_ = false;
}

std::uint32_t ShmemClient::read_status() {
    std::uint32_t status = 0;
    bool was_due = false;
    {
        const std::lock_guard lock{mutex_};
        take_status();
        status = active_ | notified_;
        notified_ = 0;
        was_due = std::exchange(is_due_, false);
    }
    if (was_due) events_.changed();
    return status;
}

void ShmemClient::notify(std::uint32_t bits) {
    const std::lock_guard lock{mutex_};
    if (shm_ == nullptr) return;
    if (const auto poked = shm_->poke(bits); !poked) complain(poked.error());
}

void ShmemClient::complain(const Error& error) {
    // A guest can repeat whatever it does: once in a client's life.
    if (!std::exchange(has_complained_, true)) events_.warn("share '" + name_ + "': " + error.message());
}

void ShmemClient::read(std::uint64_t offset, std::span<std::byte> data) {
    if (data.size() < register_bytes) return;
    std::uint32_t value = 0;
    if (offset == status_at) {
        value = read_status();
    } else if (offset == index_at) {
        value = index_;
    } else {
        return;
    }
    std::memcpy(data.data(), &value, register_bytes);
    // A wide read of status has the index behind it.
    if (offset == status_at && data.size() == 2 * register_bytes)
        std::memcpy(data.data() + register_bytes, &index_, register_bytes);
}

void ShmemClient::write(std::uint64_t offset, std::span<const std::byte> data) {
    if (data.size() < register_bytes) return;
    std::uint32_t value = 0;
    std::memcpy(&value, data.data(), register_bytes);
    if (offset == notify_at) notify(value);
    if (offset == detach_at) events_.leave();
}

}  // namespace guestmem::vmm

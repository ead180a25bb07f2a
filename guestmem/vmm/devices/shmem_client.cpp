// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/shmem_client.hpp"

#include <fmt/format.h>

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
      shm_(std::move(shm)),
      generation_(shm_->generation()) {
    // The guest reads who is there as its first act: no interrupt is due for that.
    static_cast<void>(take_status());
    is_due_ = false;
}

Result<std::shared_ptr<const HostMemory>> ShmemClient::memory() const {
    const std::lock_guard lock{mutex_};
    if (shm_ == nullptr) return Error{Errc::not_found, name_ + ": detached"};
    return HostMemory::borrow(shm_->bytes(), MapAccess::read_write, shm_);
}

FdView ShmemClient::view() const { return FdView{view_}; }

Result<Fd> ShmemClient::bell() const {
    const std::lock_guard lock{mutex_};
    if (shm_ == nullptr) return Error{Errc::not_found, name_ + ": detached"};
    return shm_->duplicate_bell();
}

ShmemClient::Look ShmemClient::take_status() {
    if (shm_ == nullptr) return Look::nothing;
    const auto status = shm_->status();
    view_ = shm_->view().number();
    if (shm_->generation() != generation_) {
        has_moved_ = true;
        has_ever_moved_ = true;
    }
    generation_ = shm_->generation();
    // What the answer says may be of another region already.
    if (shm_->has_other_memory() || shm_->index() != index_) {
        view_ = -1;
        shm_.reset();
        notified_ = 0;
        active_ = 0;
        is_due_ = true;
        has_ended_ = true;
        return Look::ended;
    }
    if (!status) {
        complain(status.error());
        return Look::nothing;
    }
    const std::uint32_t notified = notified_ | (*status & low_half);
    const std::uint32_t active = *status & ~low_half;
    const bool has_changed = notified != notified_ || active != active_;
    notified_ = notified;
    active_ = active;
    if (has_changed) is_due_ = true;
    return has_changed ? Look::changed : Look::nothing;
}

void ShmemClient::tell(Look found) {
    bool has_moved = false;
    {
        const std::lock_guard lock{mutex_};
        has_moved = std::exchange(has_moved_, false);
    }
    if (has_moved && events_.moved) events_.moved();
    if (found != Look::ended) return;
    events_.warn(fmt::format(
        "share '{}': the service came back without this region: the guest's connection has ended, "
        "and the guest has to detach and attach again",
        name_));
    events_.ended();
}

bool ShmemClient::look() {
    Look found = Look::nothing;
    {
        const std::unique_lock lock{mutex_, std::try_to_lock};
        // What there is stays there: view() is readable until somebody has taken it.
        if (!lock) return false;
        found = take_status();
    }
    tell(found);
    if (found != Look::nothing) events_.changed();
    return found != Look::nothing;
}

void ShmemClient::detach() {
    bool is_held = false;
    {
        const std::lock_guard lock{mutex_};
        is_held = shm_.use_count() > 1;
        view_ = -1;
        shm_.reset();
        is_due_ = false;
    }
    if (is_held)
        events_.warn(fmt::format(
            "share '{}': detached, and its bytes are still in use: the others see this client until "
            "that ends",
            name_));
}

std::uint32_t ShmemClient::read_status() {
    std::uint32_t status = 0;
    bool was_due = false;
    Look found = Look::nothing;
    {
        const std::lock_guard lock{mutex_};
        // What is seen here for the first time nobody was told of: it is served by this read.
        was_due = is_due_;
        found = take_status();
        was_due = was_due || found == Look::ended;
        status = active_ | notified_;
        notified_ = 0;
        is_due_ = false;
    }
    tell(found);
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

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/ivshmem.hpp"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "guestmem/mem/region.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t position_at = 0x08;
constexpr std::uint64_t doorbell_at = 0x0c;
constexpr std::size_t word_bytes = 4;
constexpr pci::Identity identity{.vendor = 0x1af4, .device = 0x1110, .revision = 1, .class_code = 0x0500};

KvmMachine::Doorbell doorbell_of(std::uint64_t registers, std::uint32_t value) {
    return {.address = registers + doorbell_at, .size_bytes = word_bytes, .value = value};
}

}  // namespace

Result<std::shared_ptr<IvshmemDevice>> IvshmemDevice::create(Options options) {
    share::SessionOptions wanted = options.session;
    // The kernel rings for the guest, and counts nothing: receivers tell it apart by doorbells of its own.
    wanted.counts_rings = false;
    // Rings are made with the mutex held, and receivers are strangers. What that takes of the kernel is taken here,
    // where a file can be opened.
    if (options.has_doorbell) wanted.ring = share::RingStyle::never_waits;
    share::Session session = GM_TRY(share::Session::attach(wanted));
    auto mapping = std::make_shared<Mapping>(GM_TRY(session.map()));
    const share::SessionFacts facts = session.facts();
    const MapAccess access = facts.is_read_only ? MapAccess::read_only : MapAccess::read_write;
    auto data = GM_TRY(HostMemory::borrow(mapping->bytes(), access, mapping));
    const std::shared_ptr<IvshmemDevice> device{
        new IvshmemDevice{std::move(options), std::move(session), std::move(data)}};
    if (!device->options_.has_doorbell) return device;
    device->msix_ = GM_TRY(pci::Msix::create({.count_vectors = facts.vectors,
                                              .bar_index = 1,
                                              .connector = device->options_.connector,
                                              .report = [warn = device->options_.warn](const Error& error) {
                                                  warn("ivshmem: " + error.message());
                                              }}));
    for (std::uint32_t vector = 0; vector < facts.vectors; ++vector) {
        GM_TRY(device->msix_->give(vector, device->session_.vector_view(vector)));
    }
    return device;
}

Result<std::shared_ptr<pci::Function>> IvshmemDevice::make_function(
    const std::shared_ptr<IvshmemDevice>& device) {
    pci::Function::Options options{.name = "ivshmem " + device->options_.session.share, .identity = identity};
    pci::Bar registers{.index = 0, .size_bytes = register_bytes, .device = device};
    registers.moved = [device](std::optional<std::uint64_t> address) {
        return device->move_registers(address);
    };
    options.bars.push_back(std::move(registers));
    if (device->msix_ != nullptr) {
        options.bars.push_back({.index = device->msix_->bar_index(),
                                .size_bytes = device->msix_->bar_size_bytes(),
                                .device = device->msix_});
        options.capabilities.push_back(device->msix_);
    }
    pci::Bar memory{.index = 2,
                    .kind = pci::BarKind::memory64,
                    .is_prefetchable = true,
                    .size_bytes = device->data_->bytes().size()};
    memory.moved = [device](std::optional<std::uint64_t> address) { return device->move_memory(address); };
    options.bars.push_back(std::move(memory));
    options.report = [warn = device->options_.warn](const Error& error) { warn(error.message()); };
    return pci::Function::create(std::move(options));
}

Result<void> IvshmemDevice::move_registers(std::optional<std::uint64_t> address) {
    const std::lock_guard lock{mutex_};
    disconnect_doorbells();
    registers_at_ = address;
    has_room_ = true;
    return {};
}

void IvshmemDevice::connect_doorbell(std::uint32_t value) {
    if (!registers_at_ || !has_room_ || connected_.contains(value)) return;
    if (connected_.size() == max_kernel_doorbells) return;
    const FdView bell = session_.doorbell_view(value >> 16, value & 0xffff);
    if (!bell.is_open()) return;
    // What there is no room for goes through the processor's exit.
    const auto done = options_.machine->connect_doorbell(doorbell_of(*registers_at_, value), bell);
    has_room_ = done.has_value();
    if (has_room_) connected_.emplace(value, bell);
}

void IvshmemDevice::disconnect_doorbells() {
    for (const auto& [value, bell] : std::exchange(connected_, {})) {
        const auto gone = options_.machine->disconnect_doorbell(doorbell_of(*registers_at_, value), bell);
        if (!gone) complain(gone.error());
    }
}

std::size_t IvshmemDevice::count_kernel_doorbells() const {
    const std::lock_guard lock{mutex_};
    return connected_.size();
}

FdView IvshmemDevice::view() const { return session_.changes_view(); }

bool IvshmemDevice::look() {
    const std::lock_guard lock{mutex_};
    if (is_over_) return false;
    const auto is_due = poll_readable(session_.changes_view(), 0);
    if (!is_due || !*is_due) return false;
    // The session closes the bells of who leaves, and the kernel wants them named by then. They come again by use.
    disconnect_doorbells();
    const auto changes = session_.refresh();
    if (!changes) {
        complain(changes.error());
        return false;
    }
    bool has_dropped = false;
    static_cast<void>(session_.take_notices(has_dropped));
    if (changes->is_lost) {
        is_over_ = true;
        options_.warn(fmt::format(
            "ivshmem, share '{}': the share service is gone: the guest keeps the memory and the peers it "
            "has, and meets nobody who comes later; start the machine again to join again",
            options_.session.share));
    }
    return changes->has_any();
}

Result<void> IvshmemDevice::move_memory(std::optional<std::uint64_t> address) {
    const std::lock_guard lock{mutex_};
    if (memory_at_) {
        GM_TRY_CONTEXT(options_.memory->remove(*memory_at_), "the memory stays where it is");
        memory_at_.reset();
    }
    if (!address) return {};
    const bool is_read_only = data_->access() == MapAccess::read_only;
    const auto region = GM_TRY(Region::create({.name = "ivshmem " + options_.session.share,
                                               .base = GuestAddress{*address},
                                               .kind = is_read_only ? RegionKind::read_only : RegionKind::ram,
                                               .memory = data_}));
    GM_TRY(options_.memory->insert(region));
    memory_at_ = region->range();
    return {};
}

void IvshmemDevice::leave() {
    if (const auto gone = move_registers(std::nullopt); !gone) complain(gone.error());
    if (const auto gone = move_memory(std::nullopt); !gone) complain(gone.error());
    if (msix_ == nullptr) return;
    for (std::uint32_t vector = 0; vector < msix_->count_vectors(); ++vector) msix_->take_back(vector);
}

void IvshmemDevice::complain(const Error& error) {
    // A guest can repeat whatever it does: once in a device's life.
    if (!std::exchange(has_complained_, true)) {
        options_.warn(fmt::format("ivshmem, share '{}': {}", options_.session.share, error.message()));
    }
}

void IvshmemDevice::ring(std::uint32_t value) {
    if (!options_.has_doorbell) return;
    const std::lock_guard lock{mutex_};
    // What nobody has is ignored, as the register's description says.
    if (session_.ring(value >> 16, value & 0xffff)) connect_doorbell(value);
}

void IvshmemDevice::read(std::uint64_t offset, std::span<std::byte> data) {
    if (data.size() != word_bytes || offset % word_bytes != 0) return;
    std::uint32_t value = 0;
    if (offset < position_at) {
        const std::lock_guard lock{mutex_};
        value = masks_[offset / word_bytes];
    } else if (offset == position_at && options_.has_doorbell) {
        value = session_.id();
    }
    std::memcpy(data.data(), &value, word_bytes);
}

void IvshmemDevice::write(std::uint64_t offset, std::span<const std::byte> data) {
    if (data.size() != word_bytes || offset % word_bytes != 0) return;
    std::uint32_t value = 0;
    std::memcpy(&value, data.data(), word_bytes);
    if (offset < position_at) {
        const std::lock_guard lock{mutex_};
        masks_[offset / word_bytes] = value;
    } else if (offset == doorbell_at) {
        ring(value);
    }
}

}  // namespace guestmem::vmm

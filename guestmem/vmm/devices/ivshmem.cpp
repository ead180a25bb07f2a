// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/ivshmem.hpp"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "guestmem/mem/region.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t position_at = 0x08;
constexpr std::uint64_t doorbell_at = 0x0c;
constexpr std::size_t word_bytes = 4;
constexpr pci::Identity identity{.vendor = 0x1af4, .device = 0x1110, .revision = 1, .class_code = 0x0500};

std::uint32_t value_of(std::uint32_t peer, std::uint32_t vector) { return (peer << 16) | vector; }

}  // namespace

Result<std::shared_ptr<IvshmemDevice>> IvshmemDevice::create(Options options) {
    share::Session session = GM_TRY(share::Session::attach(options.session));
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
    device->collect_doorbells();
    return device;
}

void IvshmemDevice::collect_doorbells() {
    const std::uint32_t vectors = session_.facts().vectors;
    for (const std::uint32_t peer : session_.doorbell_peers()) {
        for (std::uint32_t vector = 0; vector < vectors; ++vector) {
            if (doorbells_.size() == max_kernel_doorbells) return;
            const FdView eventfd = session_.doorbell_view(peer, vector);
            if (eventfd.is_open())
                doorbells_.push_back({.value = value_of(peer, vector), .eventfd = eventfd});
        }
    }
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
    const KvmMachine& machine = *options_.machine;
    const auto doorbell_of = [this](std::size_t index) {
        return KvmMachine::Doorbell{.address = *registers_at_ + doorbell_at,
                                    .size_bytes = word_bytes,
                                    .value = doorbells_[index].value};
    };
    for (; count_connected_ != 0; --count_connected_) {
        const std::size_t index = count_connected_ - 1;
        const auto gone = machine.disconnect_doorbell(doorbell_of(index), doorbells_[index].eventfd);
        if (!gone) complain(gone.error());
    }
    registers_at_ = address;
    if (!address) return {};
    for (; count_connected_ < doorbells_.size(); ++count_connected_) {
        const auto connected =
            machine.connect_doorbell(doorbell_of(count_connected_), doorbells_[count_connected_].eventfd);
        // What the kernel has no room for goes through the processor's exit.
        if (!connected) break;
    }
    return {};
}

Result<void> IvshmemDevice::move_memory(std::optional<std::uint64_t> address) {
    const std::lock_guard lock{mutex_};
    if (memory_at_) {
        if (const auto removed = options_.memory->remove(*memory_at_); !removed) complain(removed.error());
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
    // What nobody has is ignored, as the register's description says.
    static_cast<void>(session_.ring(value >> 16, value & 0xffff));
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

// SPDX-License-Identifier: Apache-2.0
#include "guests/lib/ivshmem.hpp"

#include <poll.h>

#include <atomic>
#include <thread>

namespace guestmem::guest {
namespace {

constexpr std::uint32_t register_bar = 0;
constexpr std::uint32_t memory_bar = 2;
constexpr std::uint64_t position_register = 0x08;
constexpr std::uint64_t doorbell_register = 0x0c;

// The count of an eventfd, set to zero by reading it; 0 when nothing was pending.
std::uint64_t drain(const Descriptor& event) {
    std::uint64_t count = 0;
    if (::read(event.number(), &count, sizeof count) != sizeof count) {
        return 0;
    }
    return count;
}

}  // namespace

Result<Ivshmem> Ivshmem::open(const std::string& address) {
    auto function = VfioFunction::open(address);
    if (!function) {
        return std::unexpected(function.error());
    }
    auto memory = function->map_bar(memory_bar);
    if (!memory) {
        return std::unexpected(memory.error());
    }
    auto position = function->read_register(register_bar, position_register);
    if (!position) {
        return std::unexpected(position.error());
    }
    auto removal = function->watch_removal();
    if (!removal) {
        return std::unexpected(removal.error());
    }
    auto vectors = function->enable_vectors();
    if (!vectors) {
        return std::unexpected(vectors.error());
    }
    return Ivshmem(std::move(*function), std::move(*memory), std::move(*vectors), std::move(*removal),
                   *position);
}

Result<void> Ivshmem::ring(Doorbell doorbell) const {
    // What was written to the memory is visible before the doorbell.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint32_t value = static_cast<std::uint32_t>(doorbell.peer) << 16 | doorbell.vector;
    return function_.write_register(register_bar, doorbell_register, value);
}

Result<Event> Ivshmem::wait(std::chrono::milliseconds timeout) const {
    std::vector<pollfd> watched;
    watched.reserve(vectors_.size() + 1);
    for (const Descriptor& vector : vectors_) {
        watched.push_back({vector.number(), POLLIN, 0});
    }
    watched.push_back({removal_.number(), POLLIN, 0});  // a negative number is skipped by poll
    const int ready = ::poll(watched.data(), watched.size(), static_cast<int>(timeout.count()));
    if (ready < 0 && errno != EINTR) {
        return system_failure("wait for interrupts", address());
    }
    Event event;
    if (ready <= 0) {
        return event;
    }
    for (std::size_t i = 0; i < vectors_.size(); ++i) {
        if (watched[i].revents != 0) {
            if (const std::uint64_t count = drain(vectors_[i]); count > 0) {
                event.kicks.push_back({static_cast<std::uint32_t>(i), count});
            }
        }
    }
    event.wants_removal = removal_.is_open() && watched.back().revents != 0 && drain(removal_) > 0;
    return event;
}

Result<std::string> wait_for_ivshmem(std::chrono::milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (true) {
        auto found = find_pci_functions(ivshmem_identity);
        if (!found) {
            return std::unexpected(found.error());
        }
        if (!found->empty()) {
            return found->front();
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            return failure("find an ivshmem device", "PCI functions 1af4:1110",
                           "none appeared within " + std::to_string(timeout.count()) + " ms");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

}  // namespace guestmem::guest

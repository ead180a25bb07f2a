// SPDX-License-Identifier: Apache-2.0
#pragma once

// The guest's side of an ivshmem-doorbell device, revision 1 (1af4:1110).
//
// Concepts: BAR0 holds registers, BAR2 is the shared memory; the *position* is this guest's id; a *kick* is
//   a doorbell that another peer rang for one of our vectors.
// Contract: kicks of one vector coalesce: a wait returns each vector at most once and how many MSI-X
//   interrupts were counted since the last one. The device neither lists peers nor says who kicked; a
//   doorbell to an absent peer is silently ignored.
// Threads: one at a time.
// Example: auto device = Ivshmem::open("0000:00:02.0"); auto event = device->wait(1000);

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guests/lib/descriptor.hpp"
#include "guests/lib/result.hpp"
#include "guests/lib/vfio.hpp"

namespace guestmem::guest {

inline constexpr PciIdentity ivshmem_identity{0x1af4, 0x1110};

// What a doorbell write can name: both halves of the register are 16 bits wide.
struct Doorbell {
    std::uint16_t peer;
    std::uint16_t vector;
};

struct Kick {
    std::uint32_t vector;
    std::uint64_t interrupts;  // since the last wait that returned this vector; at least 1
};

struct Event {
    std::vector<Kick> kicks;
    bool wants_removal = false;
    bool is_timeout() const { return kicks.empty() && !wants_removal; }
};

class Ivshmem {
public:
    static Result<Ivshmem> open(const std::string& address);

    const std::string& address() const { return function_.address(); }
    std::uint32_t position() const { return position_; }
    std::size_t count_vectors() const { return vectors_.size(); }
    std::byte* memory() const { return memory_.base(); }
    std::size_t memory_size() const { return memory_.size(); }

    Result<void> ring(Doorbell doorbell) const;
    Result<Event> wait(std::chrono::milliseconds timeout) const;

private:
    Ivshmem(VfioFunction function, RegionMapping memory, std::vector<Descriptor> vectors, Descriptor removal,
            std::uint32_t position)
        : function_(std::move(function)),
          memory_(std::move(memory)),
          vectors_(std::move(vectors)),
          removal_(std::move(removal)),
          position_(position) {}

    // The mapping goes before the function that it belongs to.
    VfioFunction function_;
    RegionMapping memory_;
    std::vector<Descriptor> vectors_;
    Descriptor removal_;
    std::uint32_t position_;
};

// Waits until a device appears, at most this long.
Result<std::string> wait_for_ivshmem(std::chrono::milliseconds timeout);

}  // namespace guestmem::guest

// SPDX-License-Identifier: Apache-2.0
// A map for others: memory slots for KVM, a table for a vhost-user back end, and what changes when memory is plugged.
#include <cstdio>
#include <memory>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/kvm_slots.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/map_diff.hpp"
#include "guestmem/mem/vhost_table.hpp"
#include "guestmem/sys/memfd.hpp"

namespace {

using namespace guestmem;

Result<std::shared_ptr<const Region>> make_region(const char* name, GuestAddress base, RegionKind kind) {
    constexpr std::uint64_t size_bytes = 1 << 20;
    Fd file = GM_TRY(create_sealed_memory({.name = name, .size_bytes = size_bytes}));
    const auto memory = GM_TRY(HostMemory::create_from_file(std::move(file), {.size_bytes = size_bytes}));
    return Region::create({.name = name, .base = base, .kind = kind, .memory = memory});
}

void print(const KvmSlotPlan& plan) {
    for (const KvmSlotEntry& step : plan.steps())
        std::printf("  slot %u: %#llx, %llu bytes, flags %#x\n", step.slot.slot,
                    static_cast<unsigned long long>(step.slot.guest_phys_addr),
                    static_cast<unsigned long long>(step.slot.memory_size), step.slot.flags);
}

Result<void> run() {
    Layout layout;
    layout.add(GM_TRY(make_region("ram", GuestAddress{0}, RegionKind::ram)));
    layout.add(GM_TRY(make_region("firmware", GuestAddress{0xfff00000}, RegionKind::rom)));
    const std::shared_ptr<const MemoryMap> map = GM_TRY(std::move(layout).freeze());

    // Each step is one KVM_SET_USER_MEMORY_REGION; commit() hears how many of them went well.
    KvmSlots slots = GM_TRY(KvmSlots::create({.max_slots = 509}));
    const KvmSlotPlan first = GM_TRY(slots.plan(*map));
    std::printf("at start\n");
    print(first);
    GM_TRY(slots.commit(first, first.steps().size()));

    const auto dimm = GM_TRY(make_region("dimm", GuestAddress{1ULL << 32}, RegionKind::ram));
    const std::shared_ptr<const MemoryMap> grown = GM_TRY(map->with(dimm));
    GM_CHECK(diff_maps(*map, *grown).added.size() == 1);
    const KvmSlotPlan plug = GM_TRY(slots.plan(*grown));
    std::printf("with a dimm\n");
    print(plug);
    GM_TRY(slots.commit(plug, plug.steps().size()));

    const VhostTable table = GM_TRY(VhostTable::create(*grown, {}));
    std::printf("vhost-user: %zu entries in %zu bytes with %zu descriptors\n", table.entries().size(),
                table.encode().size(), table.fds().size());
    for (const VhostOmission& omission : table.left_out())
        std::printf("  without '%s': it %s\n", omission.region->name().c_str(),
                    to_string(omission.reason).data());
    return {};
}

}  // namespace

int main() {
    const Result<void> done = run();
    if (!done) std::fprintf(stderr, "exporters: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
}

// SPDX-License-Identifier: Apache-2.0
// Guest memory from regions to bytes: what a loader, a device and a debugger do with it.
#include "guestmem/mem/guest_memory.hpp"

#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/access_error.hpp"
#include "guestmem/mem/address.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/lookup_index.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/object.hpp"
#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/mem/scatter_list.hpp"
#include "guestmem/mem/transfer.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/memfd.hpp"

namespace {

using namespace guestmem;

/// A virtio descriptor (virtio 1.2, 2.7.5).
struct Descriptor {
    Le64 address;
    Le32 size_bytes;
    Le16 flags;
    Le16 next;
};
static_assert(GuestObject<Descriptor> && sizeof(Descriptor) == 16);

/// RAM below a hole, ROM at its end, a device's registers in the hole, RAM above.
Result<std::shared_ptr<const MemoryMap>> make_map() {
    const auto low = GM_TRY(HostMemory::create_anonymous({.size_bytes = 1 << 20}));
    const auto high = GM_TRY(HostMemory::create_anonymous({.size_bytes = 1 << 20}));
    const auto firmware = GM_TRY(HostMemory::create_anonymous({.size_bytes = 64 << 10}));
    Layout layout;
    layout.add(GM_TRY(Region::create({.name = "high", .base = GuestAddress{1ULL << 32}, .memory = high})));
    layout.add(GM_TRY(Region::create({.name = "low", .base = GuestAddress{0}, .memory = low})));
    layout.add(GM_TRY(Region::create({.name = "serial",
                                      .base = GuestAddress{0xf0000000},
                                      .size_bytes = 4096,
                                      .kind = RegionKind::device})));
    layout.add(GM_TRY(Region::create({.name = "firmware",
                                      .base = GuestAddress{0xffff0000},
                                      .kind = RegionKind::rom,
                                      .memory = firmware})));
    return std::move(layout).freeze();
}

/// Addresses are checked, and each failure says why.
Result<void> show_addresses(GuestMemory& memory) {
    const GuestAddress ring{0x1000};
    GM_CHECK(ring.checked_add(0x800) == GuestAddress{0x1800});
    GM_CHECK(!GuestAddress::max().checked_add(1));
    GM_CHECK(GuestRange::create(ring, 0x2000)->last() == GuestAddress{0x2fff});
    std::printf("4 regions, found by a %s index\n", memory.map().index().kind().data());

    for (const std::uint64_t address : {0x200000ULL, 0xf0000000ULL, 0xffff0000ULL, 1ULL << 40}) {
        const AccessResult<void> written = memory.write_le<std::uint32_t>(GuestAddress{address}, 1);
        GM_CHECK(!written);
        std::printf("%s\n", written.error().to_error("example").message().c_str());
    }
    return {};
}

/// A device reads a descriptor, writes the buffer it names, and sets a flag that the guest waits for.
Result<void> serve_request(GuestMemory& memory, GuestAddress table, GuestAddress flag) {
    const auto descriptor = memory.read<Descriptor>(table);
    if (!descriptor) return descriptor.error().to_error("descriptor 0");
    // The descriptor was copied: the guest cannot change it between the check and the use.
    const GuestAddress buffer{descriptor->address.value()};
    if (const auto done = memory.fill(buffer, std::byte{'x'}, descriptor->size_bytes.value()); !done)
        return done.error().to_error("buffer of descriptor 0");
    if (const auto done = memory.store<std::uint16_t>(flag, 1, std::memory_order_release); !done)
        return done.error().to_error("flag");
    return {};
}

Result<void> show_device(GuestMemory& memory) {
    const GuestAddress table{0x2000};
    const GuestAddress flag{0x3000};
    const Descriptor descriptor{Le64{0x4ff0}, Le32{32}, Le16{2}, Le16{0}};
    GM_CHECK(memory.write(table, descriptor).has_value());
    GM_TRY(serve_request(memory, table, flag));
    GM_CHECK(memory.load<std::uint16_t>(flag, std::memory_order_acquire).value() == 1);
    GM_CHECK(memory.write<std::uint8_t>(GuestAddress{0x5010}, 0).has_value());
    std::printf("buffer: %s\n", memory.read_string(GuestAddress{0x4ff0}, 64).value().c_str());
    return {};
}

/// A file into guest memory; raw pointers and scatter lists, each with a name.
Result<void> show_bulk(GuestMemory& memory) {
    const Fd kernel = GM_TRY(create_sealed_memory({.name = "kernel", .size_bytes = 8192}));
    const Transfer loaded = read_from(memory, GuestAddress{0x10000}, 8192, FdStream{kernel, 0});
    if (!loaded.status) return loaded.status;
    std::printf("loaded %llu bytes\n", static_cast<unsigned long long>(loaded.count_done));

    const auto image = ReadPointer::create(memory, GuestAddress{0x10000}, 8192, "kernel header");
    if (!image) return image.error().to_error("kernel header");
    std::printf("'%s' points into region '%s'\n", image->region().holders().at(0).c_str(),
                image->region().name().c_str());

    ScatterList list{Access::write, "disk read"};
    for (const std::uint64_t address : {0x20000ULL, 1ULL << 32})
        if (const auto added = list.add(memory, GuestAddress{address}, 4096); !added)
            return added.error().to_error("disk read");
    list.mark_written(list.size_bytes());
    std::printf("%zu pieces, %llu bytes for one preadv\n", list.slices().size(),
                static_cast<unsigned long long>(list.size_bytes()));
    return {};
}

/// Memory whose file is cut short is an error value, not a dead process.
Result<void> show_faults() {
    GM_TRY(install_fault_guard());
    GM_TRY(prepare_thread_for_guest_memory());

    const std::string path = std::filesystem::temp_directory_path() / "guestmem-example-ram";
    std::filesystem::remove(path);
    Fd file = GM_TRY(open_file(path, OpenMode::create_exclusive));
    std::filesystem::resize_file(path, 8192);
    const auto ram = GM_TRY(HostMemory::create_from_file(std::move(file), {.size_bytes = 8192}));
    Layout layout;
    layout.add(GM_TRY(Region::create({.name = "file", .base = GuestAddress{0}, .memory = ram})));
    GuestMemory memory{GM_TRY(std::move(layout).freeze())};

    std::filesystem::resize_file(path, 4096);
    const auto lost = memory.read<std::uint64_t>(GuestAddress{0x1000});
    GM_CHECK(!lost && lost.error().reason() == AccessReason::fault);
    std::printf("%s\n", lost.error().to_error("example").message().c_str());
    std::printf("%s\n", ram->check_whole().error().message().c_str());
    std::filesystem::remove(path);
    return {};
}

Result<void> run() {
    const std::shared_ptr<const MemoryMap> map = GM_TRY(make_map());
    GuestMemory memory{map};
    GM_TRY(show_addresses(memory));
    GM_TRY(show_device(memory));
    GM_TRY(show_bulk(memory));
    return show_faults();
}

}  // namespace

int main() {
    const Result<void> done = run();
    if (!done) std::fprintf(stderr, "guest_memory: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
}

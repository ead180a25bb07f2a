// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/presence.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cstddef>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"

namespace guestmem::share {
namespace {

constexpr std::uint32_t presence_magic = 0x52504d47;  // "GMPR"
constexpr std::uint32_t presence_version = 1;
/// What QEMU's device accepts; a header that says more is no header of ours.
constexpr std::uint32_t max_presence_vectors = 2048;

constexpr std::size_t magic_at = 0x00;
constexpr std::size_t version_at = 0x04;
constexpr std::size_t slots_at = 0x08;
constexpr std::size_t vectors_at = 0x0c;
constexpr std::size_t changes_at = 0x10;
constexpr std::size_t reserved_at = 0x18;
constexpr std::size_t tenancies_at = 0x40;
static_assert(tenancies_at + max_presence_slots * sizeof(std::uint32_t) <= presence_bytes);

template <typename T>
T load(const Mapping& mapping, std::size_t at) {
    // atomic_ref of a const type is C++26; the load writes nothing, and the page may be read-only.
    static_assert(std::atomic_ref<T>::is_always_lock_free);
    auto& word = *reinterpret_cast<T*>(mapping.bytes().data() + at);
    return swap_unless_little(std::atomic_ref{word}.load(std::memory_order_acquire));
}

template <typename T>
void store(const Mapping& mapping, std::size_t at, T value) {
    auto& word = *reinterpret_cast<T*>(mapping.bytes().data() + at);
    std::atomic_ref{word}.store(swap_unless_little(value), std::memory_order_release);
}

std::size_t tenancy_at(std::uint32_t slot) {
    return tenancies_at + std::size_t{slot} * sizeof(std::uint32_t);
}

struct Header {
    std::uint32_t slots = 0;
    std::uint32_t vectors = 0;
};

Result<Mapping> map_pages(FdView pages, MapAccess access) {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(pages), "presence pages");
    if (!facts.is_regular || facts.size_bytes != presence_bytes)
        return Error{Errc::corrupt, fmt::format("presence pages: {} bytes are there, not {}",
                                                facts.size_bytes, presence_bytes)};
    if (!GM_TRY_CONTEXT(is_size_sealed(pages), "presence pages"))
        return Error{Errc::corrupt, "presence pages: their size is not sealed, they could be cut short"};
    Mapping mapping = GM_TRY_CONTEXT(Mapping::create(pages, presence_bytes, access), "presence pages");
    return mapping;
}

/// What the header says, each word read once.
Result<Header> read_header(const Mapping& mapping) {
    const auto magic = load<std::uint32_t>(mapping, magic_at);
    const auto version = load<std::uint32_t>(mapping, version_at);
    const Header header{.slots = load<std::uint32_t>(mapping, slots_at),
                        .vectors = load<std::uint32_t>(mapping, vectors_at)};
    if (magic != presence_magic)
        return Error{Errc::corrupt, fmt::format("presence pages: they begin with {:#010x}, not {:#010x}",
                                                magic, presence_magic)};
    if (version != presence_version)
        return Error{Errc::unsupported, fmt::format("presence pages: version {}, this program knows {}",
                                                    version, presence_version)};
    if (header.slots == 0 || header.slots > max_presence_slots || header.vectors > max_presence_vectors ||
        load<std::uint64_t>(mapping, reserved_at) != 0)
        return Error{Errc::corrupt,
                     fmt::format("presence pages: {} slots and {} vectors; at most {} and {} can be",
                                 header.slots, header.vectors, max_presence_slots, max_presence_vectors)};
    return header;
}

}  // namespace

Result<PresenceWriter> PresenceWriter::create(std::uint32_t slots, std::uint32_t vectors) {
    if (slots == 0 || slots > max_presence_slots || vectors > max_presence_vectors)
        return Error{Errc::out_of_range,
                     fmt::format("presence of {} slots with {} vectors: 1 to {}, at most {}", slots, vectors,
                                 max_presence_slots, max_presence_vectors)};
    Fd pages = GM_TRY(create_sealed_memory({.name = "presence", .size_bytes = presence_bytes}));
    Mapping mapping = GM_TRY(map_pages(pages, MapAccess::read_write));
    store(mapping, version_at, presence_version);
    store(mapping, slots_at, slots);
    store(mapping, vectors_at, vectors);
    store(mapping, magic_at, presence_magic);
    return PresenceWriter{std::move(pages), std::move(mapping), slots};
}

Result<PresenceWriter> PresenceWriter::adopt(Fd pages, std::uint32_t slots, std::uint32_t vectors) {
    Mapping mapping = GM_TRY(map_pages(pages, MapAccess::read_write));
    const Header header = GM_TRY(read_header(mapping));
    if (header.slots != slots || header.vectors != vectors)
        return Error{Errc::corrupt,
                     fmt::format("presence pages: they are of {} slots with {} vectors, not of {} with {}",
                                 header.slots, header.vectors, slots, vectors)};
    PresenceWriter writer{std::move(pages), std::move(mapping), slots};
    writer.count_change();
    return writer;
}

void PresenceWriter::count_change() {
    store(mapping_, changes_at, load<std::uint64_t>(mapping_, changes_at) + 1);
}

void PresenceWriter::set(std::uint32_t slot, bool is_present_then) {
    GM_CHECK(slot < slots_);
    if (is_present(slot) == is_present_then) return;
    store(mapping_, tenancy_at(slot), load<std::uint32_t>(mapping_, tenancy_at(slot)) + 1);
    count_change();
}

bool PresenceWriter::is_present(std::uint32_t slot) const {
    return slot < slots_ && load<std::uint32_t>(mapping_, tenancy_at(slot)) % 2 != 0;
}

Result<Fd> PresenceWriter::read_only() const {
    Fd reader = GM_TRY_CONTEXT(reopen_read_only(pages_), "presence pages");
    return reader;
}

Result<PresenceReader> PresenceReader::map(FdView pages) {
    Mapping mapping = GM_TRY(map_pages(pages, MapAccess::read_only));
    const Header header = GM_TRY(read_header(mapping));
    return PresenceReader{std::move(mapping), header.slots, header.vectors};
}

bool PresenceReader::is_present(std::uint32_t slot) const { return tenancy(slot) % 2 != 0; }

std::uint32_t PresenceReader::tenancy(std::uint32_t slot) const {
    return slot < slots_ ? load<std::uint32_t>(mapping_, tenancy_at(slot)) : 0;
}

std::uint64_t PresenceReader::changes() const { return load<std::uint64_t>(mapping_, changes_at); }

}  // namespace guestmem::share

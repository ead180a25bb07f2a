// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/usage.hpp"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <vector>

namespace guestmem {
namespace {

constexpr std::uint64_t no_more = std::numeric_limits<std::uint64_t>::max();

std::uint64_t sum_of(std::initializer_list<std::uint64_t> parts) {
    std::uint64_t sum = 0;
    for (const std::uint64_t part : parts) sum = part > no_more - sum ? no_more : sum + part;
    return sum;
}

/// The figures of a mapping of which only a part is asked for.
MemoryUsage cut_to(MemoryUsage usage, std::uint64_t size_bytes) {
    for (const auto figure :
         {&MemoryUsage::mapped_bytes, &MemoryUsage::resident_bytes, &MemoryUsage::shared_bytes,
          &MemoryUsage::private_bytes, &MemoryUsage::proportional_bytes, &MemoryUsage::swapped_bytes,
          &MemoryUsage::huge_bytes, &MemoryUsage::file_bytes, &MemoryUsage::anonymous_bytes})
        usage.*figure = std::min(usage.*figure, size_bytes);
    usage.is_exact = false;
    return usage;
}

/// A range by its first and last byte: what reaches to the last address has no first byte behind it.
struct Span {
    std::uint64_t first;
    std::uint64_t last;
};

/// In order, and none touches another.
std::vector<Span> united(std::span<const HostRange> ranges) {
    std::vector<Span> spans;
    for (const HostRange& range : ranges)
        if (range.size_bytes != 0)
            spans.push_back({range.base, range.base + std::min(range.size_bytes - 1, no_more - range.base)});
    std::ranges::sort(spans, {}, &Span::first);
    std::vector<Span> all;
    for (const Span& span : spans) {
        if (all.empty() || (all.back().last != no_more && span.first > all.back().last + 1)) {
            all.push_back(span);
        } else {
            all.back().last = std::max(all.back().last, span.last);
        }
    }
    return all;
}

/// In whole pages: the bytes between the last one that was asked for and the end of its page belong to nobody else.
Span in_pages(Span span, std::uint64_t page_bytes) {
    if (page_bytes == 0 || (page_bytes & (page_bytes - 1)) != 0) return span;
    return {span.first & ~(page_bytes - 1), span.last | (page_bytes - 1)};
}

HostRange range_of(const HostMemory& memory) {
    return {reinterpret_cast<std::uintptr_t>(memory.bytes().data()), memory.bytes().size()};
}

}  // namespace

std::uint64_t MemoryUsage::untouched_bytes() const {
    return mapped_bytes - std::min(mapped_bytes, sum_of({resident_bytes, swapped_bytes}));
}

void MemoryUsage::add(const MemoryUsage& other) {
    mapped_bytes = sum_of({mapped_bytes, other.mapped_bytes});
    resident_bytes = sum_of({resident_bytes, other.resident_bytes});
    shared_bytes = sum_of({shared_bytes, other.shared_bytes});
    private_bytes = sum_of({private_bytes, other.private_bytes});
    proportional_bytes = sum_of({proportional_bytes, other.proportional_bytes});
    swapped_bytes = sum_of({swapped_bytes, other.swapped_bytes});
    huge_bytes = sum_of({huge_bytes, other.huge_bytes});
    file_bytes = sum_of({file_bytes, other.file_bytes});
    anonymous_bytes = sum_of({anonymous_bytes, other.anonymous_bytes});
    is_exact = is_exact && other.is_exact;
}

MemoryUsage usage_of(const ProcessMapping& mapping) {
    const std::uint64_t hugetlb = sum_of({mapping.shared_hugetlb_bytes, mapping.private_hugetlb_bytes});
    const bool is_shared = mapping.sharing == MapSharing::shared;
    const std::uint64_t anonymous = std::min(mapping.anonymous_bytes, mapping.resident_bytes);
    MemoryUsage usage;
    usage.mapped_bytes = mapping.size_bytes;
    usage.resident_bytes = sum_of({mapping.resident_bytes, hugetlb});
    usage.shared_bytes =
        sum_of({mapping.shared_clean_bytes, mapping.shared_dirty_bytes, mapping.shared_hugetlb_bytes});
    usage.private_bytes =
        sum_of({mapping.private_clean_bytes, mapping.private_dirty_bytes, mapping.private_hugetlb_bytes});
    usage.proportional_bytes = sum_of({mapping.proportional_bytes, hugetlb});
    usage.swapped_bytes = mapping.swapped_bytes;
    usage.huge_bytes =
        sum_of({mapping.anonymous_huge_bytes, mapping.shmem_huge_bytes, mapping.file_huge_bytes, hugetlb});
    usage.file_bytes = sum_of({mapping.resident_bytes - anonymous, is_shared ? hugetlb : 0});
    usage.anonymous_bytes = sum_of({anonymous, is_shared ? 0 : hugetlb});
    return usage;
}

MemoryUsage usage_of(std::span<const HostRange> ranges, std::span<const ProcessMapping> mappings) {
    const std::vector<Span> spans = united(ranges);
    MemoryUsage all;
    auto span = spans.begin();
    for (const ProcessMapping& mapping : mappings) {
        while (span != spans.end() && in_pages(*span, mapping.page_bytes).last < mapping.base) ++span;
        std::uint64_t inside = 0;
        std::uint64_t next = mapping.base;
        for (auto part = span; part != spans.end() && part->first <= mapping.last(); ++part) {
            const Span wanted = in_pages(*part, mapping.page_bytes);
            const std::uint64_t first = std::max(wanted.first, next);
            const std::uint64_t last = std::min(wanted.last, mapping.last());
            if (first > last) continue;  // in a page that the span before has
            inside += last - first + 1;
            if (last == mapping.last()) break;
            next = last + 1;
        }
        if (inside == 0) continue;
        const MemoryUsage whole = usage_of(mapping);
        all.add(inside == mapping.size_bytes ? whole : cut_to(whole, inside));
    }
    return all;
}

Result<MemoryUsage> usage_of(const HostMemory& memory) {
    const HostRange range = range_of(memory);
    return usage_of(std::span{&range, 1}, GM_TRY(own_mappings()));
}

Result<MemoryUsage> usage_of(const Backend& backend) { return usage_of(*backend.memory()); }

Result<MemoryUsage> usage_of(const MemoryMap& map) {
    std::vector<HostRange> ranges;
    for (const auto& region : map.regions())
        if (region->is_memory()) ranges.push_back(range_of(*region->memory()));
    return usage_of(ranges, GM_TRY(own_mappings()));
}

}  // namespace guestmem

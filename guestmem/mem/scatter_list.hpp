// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "guestmem/mem/access.hpp"
#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/sys/scatter_io.hpp"

/// Guest ranges as a list of host pieces, so that one preadv or pwritev moves them all.
///
/// Concepts: a block request is a handful of guest ranges; each range is one piece or, where it crosses regions, a few.
/// Pieces that continue each other in host memory become one.
/// Contract: all or nothing per add(): when a part of the range refuses, the list is what it was. The regions stay
/// mapped while the list lives, under its name. A list for writing marks dirty what mark_written() says, or all of
/// it when it is cleared or goes without having been told.
/// Threads: one at a time.
/// Limits: max_io_slices pieces, what one system call takes.
/// Example (examples/guest_memory.cpp):
///     ScatterList list{Access::write, "disk read"};
///     GM_TRY(list.add(memory, GuestAddress{0x1000}, 4096));
///     const ssize_t count = ::preadv(disk, list.iovecs(), int(list.slices().size()), offset);
///     list.mark_written(count > 0 ? count : list.size_bytes());   // a file, not opened with O_DIRECT

struct iovec;  // NOLINT(readability-identifier-naming): the kernel's

namespace guestmem {

class ScatterList {
public:
    ScatterList(Access access, std::string why) : access_(access), why_(std::move(why)) {}
    ScatterList(ScatterList&&) = default;
    ScatterList& operator=(ScatterList&&) = delete;
    ScatterList(const ScatterList&) = delete;
    ScatterList& operator=(const ScatterList&) = delete;
    ~ScatterList() { clear(); }

    template <typename Space>
    [[nodiscard]] AccessResult<void> add(ByteAccess<Space>& view, Address<Space> address,
                                         std::uint64_t size_bytes);

    [[nodiscard]] std::span<const IoSlice> slices() const { return slices_; }
    /// The same for system calls: slices().size() of them.
    [[nodiscard]] const ::iovec* iovecs() const;
    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }

    /// The first `count` bytes of the list have been written, after the system call that wrote them. Only a file that
    /// is not opened with O_DIRECT counts all that it wrote when it is short; after any other short or failed call it
    /// is size_bytes().
    void mark_written(std::uint64_t count);

    /// Empty again; what was held is let go.
    void clear();

private:
    Access access_;
    std::string why_;
    std::vector<IoSlice> slices_;
    std::vector<Piece> pieces_;
    std::vector<PieceHold> holds_;
    std::uint64_t size_bytes_ = 0;
    bool is_marked_ = false;
};

extern template AccessResult<void> ScatterList::add(ByteAccess<GuestPhysicalSpace>&, GuestAddress,
                                                    std::uint64_t);
extern template AccessResult<void> ScatterList::add(ByteAccess<IoVirtualSpace>&, IoAddress, std::uint64_t);

}  // namespace guestmem

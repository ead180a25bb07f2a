// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/program_pages.hpp"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <vector>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

std::uintptr_t page_bytes() { return static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE)); }

/// Calls it with first byte and size of each piece that nobody writes, whole pages.
template <typename Function>
void for_each_piece(Function function) {
    const auto visit = [](dl_phdr_info* file, std::size_t, void* data) {
        const std::uintptr_t page = page_bytes();
        for (std::size_t i = 0; i < file->dlpi_phnum; ++i) {
            const ElfW(Phdr)& segment = file->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) continue;
            const std::uintptr_t first = (file->dlpi_addr + segment.p_vaddr) / page * page;
            const std::uintptr_t end = file->dlpi_addr + segment.p_vaddr + segment.p_memsz;
            (*static_cast<Function*>(data))(reinterpret_cast<std::byte*>(first),
                                            (end - first + page - 1) / page * page);
        }
        return 0;
    };
    ::dl_iterate_phdr(visit, &function);
}

}  // namespace

void give_back_program_pages() {
    for_each_piece([](std::byte* first, std::size_t size_bytes) {
        // The kernel's own piece of the program (vdso) is none of a file, and stays: that is no failure.
        static_cast<void>(
            checked_call(SysCall::madvise, [&] { return ::madvise(first, size_bytes, MADV_DONTNEED); }));
    });
}

}  // namespace guestmem

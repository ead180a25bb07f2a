// SPDX-License-Identifier: Apache-2.0
// Huge pages. The guest has 32 pages of 2 MiB, which is its default size, and one of 1 GiB.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "lab/backends/probe/checks.hpp"

namespace lab {
namespace {

using namespace guestmem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t small_kib = 2048;
constexpr std::uint64_t large_kib = 1024 * 1024;

struct Pool {
    std::uint64_t total;
    std::uint64_t free;
    std::uint64_t reserved;
    std::uint64_t surplus;

    friend bool operator==(const Pool&, const Pool&) = default;
};

Pool pool_of(std::uint64_t kib) {
    const std::string folder = fmt::format("/sys/kernel/mm/hugepages/hugepages-{}kB/", kib);
    return {read_number(folder + "nr_hugepages"), read_number(folder + "free_hugepages"),
            read_number(folder + "resv_hugepages"), read_number(folder + "surplus_hugepages")};
}

bool expect_pool(Checks& checks, std::uint64_t kib, const Pool& wanted, std::string_view name) {
    const Pool is = pool_of(kib);
    return checks.expect(
        is == wanted, name,
        fmt::format("total {} free {} reserved {} surplus {}, expected {} {} {} {}", is.total, is.free,
                    is.reserved, is.surplus, wanted.total, wanted.free, wanted.reserved, wanted.surplus));
}

constexpr Pool full{32, 32, 0, 0};

void expect_page_size(Checks& checks, const Backend& backend, std::uint64_t kib, std::string_view name) {
    const std::string smaps = smaps_of(backend.memory()->bytes());
    checks.expect(number_in(smaps, "KernelPageSize") == kib && backend.page_bytes() == kib * 1024, name,
                  smaps);
}

bool write_word(const Backend& backend, std::uint64_t at) {
    const auto map = map_of(backend, 0);
    GuestMemory memory{*map};
    return memory.write_le<std::uint64_t>(GuestAddress{at}, at + 1).has_value();
}

void check_file(Checks& checks) {
    {
        const auto backend = make_backend("memory-backend-file,id=m,size=16M,mem-path=/huge/a,share=on");
        if (!checks.expect_value(backend, "a file on hugetlbfs is made and mapped")) return;
        expect_page_size(checks, **backend, small_kib, "the kernel says that its pages have 2 MiB");
        expect_pool(checks, small_kib, {32, 32, 8, 0}, "8 pages are reserved and none is taken");
        checks.expect(write_word(**backend, 2 * mib), "it is written through a view");
        expect_pool(checks, small_kib, {32, 31, 7, 0},
                    "the page that was written is taken, from those reserved");
    }
    expect_pool(checks, small_kib, {32, 31, 7, 0}, "the page and what is reserved stay with the file");
    const auto plan = make_plan("memory-backend-file,id=m,size=64M,mem-path=/huge/a,share=on");
    checks.expect(plan && plan->problems.has_refusal(), "a file that has content is not grown");
    {
        const auto backend =
            make_backend("memory-backend-file,id=m,size=14M,offset=2M,mem-path=/huge/a,readonly=on");
        if (checks.expect_value(backend, "a part of the file is mapped read-only")) {
            const auto map = map_of(**backend, 0);
            GuestMemory memory{*map};
            const auto word = memory.read_le<std::uint64_t>(GuestAddress{0});
            checks.expect(word && *word == 2 * mib + 1, "it has what was written before");
        }
    }
    checks.expect_error(make_backend("memory-backend-file,id=m,size=2M,offset=1M,mem-path=/huge/a,share=on"),
                        "whole pages", "an offset inside of a huge page is refused");
    checks.expect_error(make_backend("memory-backend-file,id=m,size=3M,mem-path=/huge/b,share=on"),
                        "whole pages", "a size of no whole huge pages is refused");
    checks.expect(!std::filesystem::exists("/huge/b"), "what is refused makes no file");
    std::filesystem::remove("/huge/a");
    expect_pool(checks, small_kib, full, "the pages are back when the file is gone");
}

void check_private_file(Checks& checks) {
    {
        const auto backend =
            make_backend("memory-backend-file,id=m,size=8M,mem-path=/huge/c,share=off,prealloc=on");
        if (checks.expect_value(backend, "a private file of huge pages is made, and all its pages are taken"))
            expect_pool(checks, small_kib, {32, 28, 0, 0}, "4 pages are taken");
    }
    std::filesystem::remove("/huge/c");
    expect_pool(checks, small_kib, full, "they are back when the backend and the file are gone");
    {
        const auto backend =
            make_backend("memory-backend-file,id=m,size=8M,mem-path=/huge,share=on,prealloc=on");
        if (checks.expect_value(backend, "a file without a name is made in a folder of hugetlbfs"))
            expect_pool(checks, small_kib, {32, 28, 0, 0}, "its 4 pages are taken");
    }
    expect_pool(checks, small_kib, full, "a file without a name goes with its backend");
}

void check_memfd(Checks& checks) {
    for (const std::string size : {"", ",hugetlbsize=2M"}) {
        const std::string text = "memory-backend-memfd,id=m,hugetlb=on" + size;
        {
            const auto backend = make_backend(text + ",size=16M,prealloc=on");
            if (!checks.expect_value(backend, text + ": is made, and all its pages are taken")) continue;
            expect_page_size(checks, **backend, small_kib,
                             text + ": the kernel says that its pages have 2 MiB");
            expect_pool(checks, small_kib, {32, 24, 0, 0}, text + ": 8 pages are taken");
        }
        expect_pool(checks, small_kib, full, text + ": they are back when the backend is gone");
        checks.expect_error(make_backend(text + ",size=66M"),
                            "33 huge pages of 2M are needed, and 32 are free",
                            text + ": one page more than there are is refused with both numbers");
    }
    {
        const auto backend = make_backend("memory-backend-memfd,id=m,hugetlb=on,size=66M,reserve=off");
        checks.expect_value(backend, "with reserve=off more pages than there are can be mapped");
        expect_pool(checks, small_kib, full, "with reserve=off none is reserved");
    }
    checks.expect_error(make_backend("memory-backend-memfd,id=m,hugetlb=on,hugetlbsize=4M,size=8M"), "4M",
                        "a size of huge pages that the kernel has not is refused by its name");
}

bool kernel_maps(const char* path, std::uint64_t size_bytes) {
    const int file = ::open(path, O_RDWR | O_CLOEXEC);
    void* at = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) ::munmap(at, size_bytes);
    ::close(file);
    return at != MAP_FAILED;
}

/// A file that was never written has all of its pages reserved, and may be mapped again.
void check_reserved_file(Checks& checks) {
    const std::string text = "memory-backend-file,id=m,size=64M,mem-path=/huge/all,share=on";
    checks.expect_value(make_backend(text), "a file takes the promise of all pages");
    expect_pool(checks, small_kib, {32, 32, 32, 0}, "all pages are reserved by the file");
    checks.expect(kernel_maps("/huge/all", 64 * mib), "the kernel itself maps such a file again");
    checks.expect_value(make_backend(text), "a file that has its pages reserved can be mapped again");
    std::filesystem::remove("/huge/all");
    expect_pool(checks, small_kib, full, "what was reserved is back when the file is gone");
}

/// Somebody takes the pages between the plan and the making.
void check_late(Checks& checks, const std::string& text) {
    const auto plan = make_plan(text);
    if (!checks.expect(plan && !plan->problems.has_refusal(), text + ": the plan finds enough pages")) return;
    const auto other = make_backend("memory-backend-memfd,id=other,hugetlb=on,size=40M,prealloc=on");
    if (!checks.expect_value(other, text + ": somebody else takes pages")) return;
    const Pool before = pool_of(small_kib);
    const std::string end = end_of_child([&] {
        const auto backend = Backend::create(*plan);
        if (!backend) static_cast<void>(write_text("/tmp/answer", backend.error().message()));
    });
    const std::string answer = read_text("/tmp/answer");
    std::filesystem::remove("/tmp/answer");
    checks.expect(end.empty() && answer.starts_with("backend 'm'"), text + ": the making is an error then",
                  end.empty() ? answer : end);
    expect_pool(checks, small_kib, before, text + ": nothing of it stays");
    checks.expect(!std::filesystem::exists("/huge/late"), text + ": no file stays");
    std::filesystem::remove("/huge/late");
}

void check_large(Checks& checks) {
    if (pool_of(large_kib).total != 1) {
        checks.not_run("pages of 1 GiB",
                       "this kernel has none: the processor has no pdpe1gb, or memory is in pieces");
        return;
    }
    {
        const auto backend = make_backend("memory-backend-memfd,id=m,hugetlb=on,hugetlbsize=1G,size=1G");
        if (checks.expect_value(backend, "a page of 1 GiB is mapped")) {
            checks.expect(write_word(**backend, 1024 * mib - 8), "its last word is written through a view");
            expect_page_size(checks, **backend, large_kib, "the kernel says that the page has 1 GiB");
            expect_pool(checks, large_kib, {1, 0, 0, 0}, "the page of 1 GiB is taken");
        }
        checks.expect_error(make_backend("memory-backend-file,id=m,size=1G,mem-path=/giant/a,share=on"),
                            "0 are free", "a second one is refused while the first is there");
    }
    expect_pool(checks, large_kib, {1, 1, 0, 0}, "the page of 1 GiB is back when the backend is gone");
    {
        const auto backend = make_backend("memory-backend-file,id=m,size=1G,mem-path=/giant/a,share=on");
        if (checks.expect_value(backend, "a file on a hugetlbfs of 1 GiB pages is made"))
            expect_page_size(checks, **backend, large_kib,
                             "the kernel says that the page of the file has 1 GiB");
    }
    std::filesystem::remove("/giant/a");
    checks.expect_error(make_backend("memory-backend-file,id=m,size=512M,mem-path=/giant/a,share=on"),
                        "whole pages", "half a page of 1 GiB is refused");
    expect_pool(checks, large_kib, {1, 1, 0, 0}, "the page of 1 GiB is free at the end");
}

}  // namespace

void check_huge(Checks& checks) {
    static_cast<void>(
        output_of("mkdir -p /huge /giant; mount -t hugetlbfs -o pagesize=2M huge /huge; "
                  "mount -t hugetlbfs -o pagesize=1G giant /giant"));
    if (!expect_pool(checks, small_kib, full, "the guest has 32 pages of 2 MiB, and all are free")) return;
    check_file(checks);
    check_private_file(checks);
    check_reserved_file(checks);
    check_memfd(checks);
    check_late(checks, "memory-backend-memfd,id=m,hugetlb=on,size=40M");
    check_late(checks, "memory-backend-file,id=m,size=40M,mem-path=/huge/late,share=on");
    expect_pool(checks, small_kib, full, "all pages of 2 MiB are free at the end");
    check_large(checks);
}

}  // namespace lab

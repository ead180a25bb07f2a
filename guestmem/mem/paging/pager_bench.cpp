// SPDX-License-Identifier: Apache-2.0
// Lazy memory against a bare loop over userfaultfd that answers one page at a time, and a working set that is fetched
// ahead against the same pages fetched when they are touched. Stands for a machine that runs from a template whose
// image is in memory.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/sys/mapping.hpp"

namespace guestmem {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t touched_bytes = 64 * mib;
constexpr std::uint64_t large_bytes = 1024 * mib;
constexpr std::uint64_t count_scattered = 2000;

/// An image that is a mapping: its pages are there.
class LocalSource final : public PageSource {
public:
    explicit LocalSource(std::uint64_t size_bytes)
        : mapping_(Mapping::create_anonymous({.size_bytes = size_bytes}).value()) {
        std::memset(mapping_.bytes().data(), 0x5a, mapping_.bytes().size());
    }
    [[nodiscard]] std::uint64_t size_bytes() const override { return mapping_.bytes().size(); }
    [[nodiscard]] const std::byte* data() const { return mapping_.bytes().data(); }
    Result<void> fetch(ImagePart wanted, PageSink& sink) override {
        return sink.take_pages(wanted.offset_bytes,
                               mapping_.bytes().subspan(wanted.offset_bytes, wanted.size_bytes));
    }

private:
    Mapping mapping_;
};

std::shared_ptr<LocalSource> image_of(std::uint64_t size_bytes) {
    static std::shared_ptr<LocalSource> kept;
    if (!kept || kept->size_bytes() != size_bytes) {
        kept.reset();
        kept = std::make_shared<LocalSource>(size_bytes);
    }
    return kept;
}

void touch(const std::byte* at) { benchmark::DoNotOptimize(*const_cast<const volatile std::byte*>(at)); }
void touch_all(std::span<const std::byte> bytes) {
    for (std::uint64_t at = 0; at < bytes.size(); at += page_size_bytes) touch(bytes.data() + at);
}

double seconds_since(Clock::time_point before) {
    return std::chrono::duration<double>(Clock::now() - before).count();
}

/// Reads one fault, gives one page, until `is_over`.
void answer_faults(int fault, const std::byte* image, const std::byte* memory,
                   const std::atomic<bool>& is_over) {
    while (!is_over) {
        pollfd entry{.fd = fault, .events = POLLIN, .revents = 0};
        if (::poll(&entry, 1, 10) <= 0) continue;
        uffd_msg message{};
        if (::read(fault, &message, sizeof message) != sizeof message) continue;
        uffdio_copy copy{};
        copy.dst = message.arg.pagefault.address & ~(page_size_bytes - 1);
        copy.src =
            reinterpret_cast<std::uintptr_t>(image) + (copy.dst - reinterpret_cast<std::uintptr_t>(memory));
        copy.len = page_size_bytes;
        GM_CHECK(::ioctl(fault, UFFDIO_COPY, &copy) == 0);
    }
}

void bare_touch_every_page(benchmark::State& state) {
    const auto image = image_of(touched_bytes);
    for (auto _ : state) {
        const Mapping memory = Mapping::create_anonymous({.size_bytes = touched_bytes}).value();
        const int fault =
            static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
        uffdio_api api{};
        api.api = UFFD_API;
        uffdio_register range{};
        range.range = {.start = reinterpret_cast<std::uintptr_t>(memory.bytes().data()),
                       .len = touched_bytes};
        range.mode = UFFDIO_REGISTER_MODE_MISSING;
        GM_CHECK(::ioctl(fault, UFFDIO_API, &api) == 0 && ::ioctl(fault, UFFDIO_REGISTER, &range) == 0);
        std::atomic<bool> is_over{false};
        std::thread answerer{[&] { answer_faults(fault, image->data(), memory.bytes().data(), is_over); }};
        const auto before = Clock::now();
        touch_all(memory.bytes());
        state.SetIterationTime(seconds_since(before));
        is_over = true;
        answerer.join();
        ::close(fault);
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(touched_bytes / page_size_bytes));
}
BENCHMARK(bare_touch_every_page)->UseManualTime()->Unit(benchmark::kMillisecond);

PagerOptions options_of(std::shared_ptr<LocalSource> image) {
    PagerOptions options;
    options.regions = {{.offset_bytes = 0, .size_bytes = image->size_bytes()}};
    options.source = std::move(image);
    options.user_faults_only = true;
    return options;
}

void lazy_touch_every_page(benchmark::State& state) {
    const auto image = image_of(touched_bytes);
    for (auto _ : state) {
        PagerOptions options = options_of(image);
        options.fetch_bytes = static_cast<std::uint64_t>(state.range(0));
        const auto pager = Pager::start(std::move(options)).value();
        const auto memory = pager->memory(0).value();
        const auto before = Clock::now();
        touch_all(memory->bytes());
        state.SetIterationTime(seconds_since(before));
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(touched_bytes / page_size_bytes));
}
BENCHMARK(lazy_touch_every_page)->Arg(4096)->Arg(65536)->UseManualTime()->Unit(benchmark::kMillisecond);

/// Single pages of 1 GiB, no two in one fetch around a fault.
std::vector<std::uint64_t> scattered_pages() {
    std::vector<std::uint64_t> pages;
    const std::uint64_t stride = large_bytes / page_size_bytes / count_scattered;
    std::mt19937 random{7};
    for (std::uint64_t i = 0; i < count_scattered; ++i) pages.push_back(i * stride + random() % 16);
    std::ranges::shuffle(pages, random);
    return pages;
}

/// From the start of the fetch to the last touch.
void scattered_working_set(benchmark::State& state) {
    const bool is_ahead = state.range(0) != 0;
    const auto image = image_of(large_bytes);
    const std::vector<std::uint64_t> pages = scattered_pages();
    for (auto _ : state) {
        PagerOptions options = options_of(image);
        if (is_ahead) options.ahead = pages;
        const auto before = Clock::now();
        const auto pager = Pager::start(std::move(options)).value();
        const auto memory = pager->memory(0).value();
        for (const std::uint64_t number : pages) touch(memory->bytes().data() + number * page_size_bytes);
        state.SetIterationTime(seconds_since(before));
    }
    state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count_scattered));
}
BENCHMARK(scattered_working_set)
    ->ArgName("ahead")
    ->Arg(0)
    ->Arg(1)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem

BENCHMARK_MAIN();

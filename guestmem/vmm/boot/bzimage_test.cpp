// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/bzimage.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"
#include "guestmem/vmm/boot/testing/images.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::TestMap;
using ::testing::HasSubstr;
using testing::ImageBytes;
using testing::KernelOptions;
using testing::make_kernel;

constexpr std::uint64_t ram_bytes = 0x400000;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

/// Memory of 4 MiB, and what the steps of a start do to it.
class Machine {
public:
    Machine() { map_.ram(0, ram_bytes); }
    Result<GuestAddress> load(const ImageBytes& kernel) {
        const BootFile file{"vmlinuz", kernel.bytes()};
        auto image = read_bzimage(file);
        if (!image) return image.error();
        image_ = std::move(image).value();
        MapView view = memory();
        return load_bzimage(image_, file, space_, view);
    }
    [[nodiscard]] MapView memory() { return MapView{*map_.map()}; }
    [[nodiscard]] BootSpace& space() { return space_; }
    [[nodiscard]] const BzImage& image() const { return image_; }
    template <std::unsigned_integral T>
    [[nodiscard]] T zero_page(std::uint64_t offset) {
        return memory().read_le<T>(GuestAddress{low_memory::zero_page.base + offset}).value();
    }

private:
    TestMap map_;
    BootSpace space_{std::vector{range(0, ram_bytes)}};
    BzImage image_;
};

std::string message_of(const ImageBytes& kernel) {
    const auto result = Machine{}.load(kernel);
    return result ? "" : result.error().message();
}

TEST(BzImage, TheKernelGoesToItsPreferredAddressAndStartsBehind512Bytes) {
    Machine machine;
    const GuestAddress kernel = machine.load(make_kernel({})).value();
    EXPECT_EQ(kernel, GuestAddress{0x200000});
    EXPECT_EQ(machine.memory().read_le<std::uint8_t>(GuestAddress{0x200000}).value(), 1);
    EXPECT_EQ(machine.memory().read_le<std::uint8_t>(GuestAddress{0x200fff}).value(), 0);
    EXPECT_EQ(machine.memory().read_le<std::uint8_t>(GuestAddress{0x200ffe}).value(), 0xff);
    EXPECT_FALSE(machine.space().claim("other", range(0x207fff, 1))) << "init_size is the kernel's";
    const EntryState state = make_linux_entry(machine.image(), kernel);
    EXPECT_EQ(state.mode, EntryMode::long_64);
    EXPECT_EQ(state.rip, 0x200200U);
    EXPECT_EQ(state.rsi, low_memory::zero_page.base);
}

TEST(BzImage, WithoutA64BitEntryItStartsInProtectedMode) {
    Machine machine;
    const GuestAddress kernel = machine.load(make_kernel({.extended_load_flags = 0})).value();
    const EntryState state = make_linux_entry(machine.image(), kernel);
    EXPECT_EQ(state.mode, EntryMode::protected_32);
    EXPECT_EQ(state.rip, 0x200000U);
    EXPECT_EQ(state.rbx | state.rdi, 0U);
}

TEST(BzImage, AnOldProtocolIsLoadedAt1MiBOrRefused) {
    EXPECT_EQ(Machine{}.load(make_kernel({.version = 0x0206})).value(), GuestAddress{0x100000});
    EXPECT_THAT(message_of(make_kernel({.version = 0x0205})), HasSubstr("boot protocol 2.05; 2.06"));
}

TEST(BzImage, ARelocatableKernelGivesWay) {
    Machine machine;
    ASSERT_TRUE(machine.space().claim("data", range(0x207000, 1)));
    EXPECT_EQ(machine.load(make_kernel({})).value(), GuestAddress{0x300000});
    Machine fixed;
    ASSERT_TRUE(fixed.space().claim("data", range(0x207000, 1)));
    const auto refused = fixed.load(make_kernel({.is_relocatable = 0}));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("overlaps data"));
}

TEST(BzImage, EachHostileFieldIsNamed) {
    struct Hostile {
        const char* what;
        std::function<void(ImageBytes&)> spoil;
        const char* message;
    };
    const std::vector<Hostile> table{
        {"flag", [](ImageBytes& k) { k.put<std::uint16_t>(0x1fe, 0); }, "no Linux kernel"},
        {"magic", [](ImageBytes& k) { k.put<std::uint8_t>(0x205, 0); }, "no Linux kernel"},
        {"header end low", [](ImageBytes& k) { k.put<std::uint8_t>(0x201, 0); }, "header ends at 0x202"},
        {"header end high", [](ImageBytes& k) { k.put<std::uint8_t>(0x201, 0xff); }, "header ends at 0x301"},
        {"loaded low", [](ImageBytes& k) { k.put<std::uint8_t>(0x211, 0); }, "zImage"},
        {"no code", [](ImageBytes& k) { k.put<std::uint32_t>(0x1f4, 0); }, "syssize 0"},
        {"much code", [](ImageBytes& k) { k.put<std::uint32_t>(0x1f4, ~0u); }, "cut short"},
        {"one paragraph more", [](ImageBytes& k) { k.put<std::uint32_t>(0x1f4, 0x101); }, "cut short"},
        {"setup sectors", [](ImageBytes& k) { k.put<std::uint8_t>(0x1f1, 0xff); }, "cut short"},
        {"alignment", [](ImageBytes& k) { k.put<std::uint32_t>(0x230, 3); }, "no power of two"},
        {"no alignment", [](ImageBytes& k) { k.put<std::uint32_t>(0x230, 0); }, "no power of two"},
        {"prefers 0", [](ImageBytes& k) { k.put<std::uint64_t>(0x258, 0); }, "prefers address 0x0"},
        {"prefers the end", [](ImageBytes& k) { k.put<std::uint64_t>(0x258, ~0ull); }, "prefers address"},
        {"room", [](ImageBytes& k) { k.put<std::uint32_t>(0x260, ~0u); }, "no room for 4294967295 bytes"},
        {"header cut", [](ImageBytes& k) { k.resize(0x23c); }, "inside of the setup header"},
        {"cut", [](ImageBytes& k) { k.resize(k.size() - 16); }, "cut short"},
    };
    for (const Hostile& hostile : table) {
        ImageBytes kernel = make_kernel({});
        hostile.spoil(kernel);
        EXPECT_THAT(message_of(kernel), HasSubstr(hostile.message)) << hostile.what;
    }
}

TEST(BzImage, AnyPrefixIsAnError) {
    const ImageBytes whole = make_kernel({.setup_sectors = 1, .code_bytes = 0x400});
    for (std::size_t size = 0; size + 16 <= whole.size(); ++size)
        EXPECT_FALSE(read_bzimage(BootFile{"vmlinuz", whole.bytes().first(size)})) << size;
}

TEST(BzImage, TheZeroPageHasTheHeaderAndWhatTheLoaderAdds) {
    Machine machine;
    const GuestAddress kernel = machine.load(make_kernel({})).value();
    const std::vector<MemoryMapEntry> map{{range(0, 0xa0000), MapEntryKind::ram},
                                          {range(0x100000, 0x300000), MapEntryKind::ram}};
    MapView view = machine.memory();
    ASSERT_TRUE(write_zero_page(
        machine.image(),
        {.kernel = kernel, .map = map, .initrd = range(0x380000, 0x1234), .rsdp = GuestAddress{0xe0000}},
        view));
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x202), 0x53726448U);
    EXPECT_EQ(machine.zero_page<std::uint8_t>(0x1ef), 0) << "sentinel";
    EXPECT_EQ(machine.zero_page<std::uint8_t>(0x210), 0xff);
    EXPECT_EQ(machine.zero_page<std::uint8_t>(0x211), 1) << "loaded high, without a heap";
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x214), 0x200000U);
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x218), 0x380000U);
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x21c), 0x1234U);
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x228), low_memory::command_line.base);
    EXPECT_EQ(machine.zero_page<std::uint64_t>(0x070), 0xe0000U);
    EXPECT_EQ(machine.zero_page<std::uint64_t>(0x250), 0U);
    EXPECT_EQ(machine.zero_page<std::uint8_t>(0x1e8), 2);
    EXPECT_EQ(machine.zero_page<std::uint64_t>(0x2d0 + 20), 0x100000U);
    EXPECT_EQ(machine.zero_page<std::uint64_t>(0x2d0 + 28), 0x300000U);
    EXPECT_EQ(machine.zero_page<std::uint32_t>(0x2d0 + 36), 1U);
    EXPECT_EQ(machine.zero_page<std::uint64_t>(0x2d0 + 40), 0U);
}

TEST(BzImage, TheZeroPageTakes128EntriesAndNoInitrdAbove4GiB) {
    Machine machine;
    const GuestAddress kernel = machine.load(make_kernel({})).value();
    std::vector<MemoryMapEntry> map(max_memory_map_entries, {range(0, 1), MapEntryKind::ram});
    MapView view = machine.memory();
    EXPECT_TRUE(write_zero_page(machine.image(), {.kernel = kernel, .map = map}, view));
    EXPECT_FALSE(write_zero_page(machine.image(),
                                 {.kernel = kernel, .map = map, .initrd = range(0xffffffff, 2)}, view));
    map.push_back({range(0, 1), MapEntryKind::ram});
    EXPECT_FALSE(write_zero_page(machine.image(), {.kernel = kernel, .map = map}, view));
}

}  // namespace
}  // namespace guestmem::vmm

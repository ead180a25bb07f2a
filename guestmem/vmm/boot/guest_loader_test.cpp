// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/guest_loader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/command_line.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"
#include "guestmem/vmm/boot/pvh.hpp"
#include "guestmem/vmm/boot/testing/images.hpp"

namespace guestmem::vmm {
namespace {

using ::guestmem::testing::counted_bytes;
using ::guestmem::testing::TestMap;
using ::testing::HasSubstr;
using testing::ImageBytes;
using testing::make_elf;
using testing::make_kernel;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

class Machine {
public:
    explicit Machine(std::uint64_t ram_bytes = 0x800000) : ram_bytes_(ram_bytes) { map_.ram(0, ram_bytes); }

    Result<LoadedGuest> load(const BootFile& image, GuestBootPlan plan = {}) {
        plan.image = &image;
        plan.memory = {.ram = {range(0, ram_bytes_)}, .reserved = legacy_reservations()};
        MapView view{*map_.map()};
        return load_guest(plan, view);
    }
    Result<LoadedGuest> load(std::span<const std::byte> image, GuestBootPlan plan = {}) {
        return load(BootFile{"image", image}, std::move(plan));
    }
    template <typename T>
    [[nodiscard]] T object(std::uint64_t address) {
        return MapView{*map_.map()}.read<T>(GuestAddress{address}).value();
    }
    [[nodiscard]] std::vector<std::byte> bytes(std::uint64_t address, std::size_t count) {
        std::vector<std::byte> found(count);
        EXPECT_TRUE(MapView{*map_.map()}.read_bytes(GuestAddress{address}, found));
        return found;
    }
    [[nodiscard]] std::string text(std::uint64_t address) {
        return MapView{*map_.map()}.read_string(GuestAddress{address}, 4096).value();
    }

private:
    std::uint64_t ram_bytes_;
    TestMap map_;
};

std::string message_of(const Result<LoadedGuest>& result) { return result ? "" : result.error().message(); }

TEST(GuestLoader, AFlatFileStartsIn64BitModeWithTheStartInformation) {
    Machine machine;
    const auto code = counted_bytes(100);
    const auto initrd_bytes = counted_bytes(5000);
    const BootFile initrd{"initrd", initrd_bytes};
    const auto guest =
        machine.load(code, {.initrd = &initrd, .command_line = "say hello", .rsdp = GuestAddress{0xe0000}});
    ASSERT_EQ(message_of(guest), "");
    EXPECT_EQ(guest->kind, ImageKind::flat);
    EXPECT_EQ(guest->entry.mode, EntryMode::long_64);
    EXPECT_EQ(guest->entry.rip, default_flat_address);
    EXPECT_EQ(guest->entry.rsp, 0x20000U);
    EXPECT_EQ(guest->entry.rdi, low_memory::start_info.base);
    EXPECT_EQ(machine.bytes(default_flat_address, 100), code);
    const auto info = machine.object<StartInfo>(guest->entry.rdi);
    EXPECT_EQ(info.magic.value(), start_info_magic);
    EXPECT_EQ(info.version.value(), 1U);
    EXPECT_EQ(info.rsdp_address.value(), 0xe0000U);
    EXPECT_EQ(machine.text(info.command_line_address.value()), "say hello");
    ASSERT_EQ(info.count_modules.value(), 1U);
    const auto module = machine.object<StartModule>(info.modules_address.value());
    EXPECT_EQ(module.address.value(), 0x7fe000U) << "the last page where it fits";
    EXPECT_EQ(machine.bytes(module.address.value(), module.size_bytes.value()), initrd_bytes);
    ASSERT_EQ(info.count_memory_map_entries.value(), guest->map.size());
    const auto first = machine.object<PvhMemoryEntry>(info.memory_map_address.value());
    EXPECT_EQ(first.size_bytes.value(), 0xa0000U);
    EXPECT_EQ(first.kind.value(), 1U);
}

TEST(GuestLoader, AFlatFileGoesWhereItIsTold) {
    Machine machine;
    const auto code = counted_bytes(100);
    const auto guest = machine.load(code, {.address = GuestAddress{0x200000}});
    ASSERT_EQ(message_of(guest), "");
    EXPECT_EQ(guest->entry.rip, 0x200000U);
    EXPECT_THAT(message_of(Machine{}.load(code, {.address = GuestAddress{0x2000}})),
                HasSubstr("overlaps start information"));
    EXPECT_THAT(message_of(Machine{}.load(code, {.address = GuestAddress{0x100000000}})),
                HasSubstr("above 4 GiB"));
    const ImageBytes elf = make_elf({});
    EXPECT_THAT(message_of(Machine{}.load(elf.bytes(), {.address = GuestAddress{0x200000}})),
                HasSubstr("an address, 0x200000, is for flat files"));
}

TEST(GuestLoader, AnElfWithTheNoteStartsAsPvh) {
    Machine machine;
    const ImageBytes elf = make_elf({.is_64_bit = false});
    const auto guest = machine.load(elf.bytes());
    ASSERT_EQ(message_of(guest), "");
    EXPECT_EQ(guest->entry.mode, EntryMode::protected_32);
    EXPECT_EQ(guest->entry.rip, 0x100020U);
    EXPECT_EQ(guest->entry.rbx, low_memory::start_info.base);
    const auto info = machine.object<StartInfo>(guest->entry.rbx);
    EXPECT_EQ(info.count_modules.value(), 0U);
    EXPECT_EQ(info.modules_address.value(), 0U);
    EXPECT_EQ(info.rsdp_address.value(), 0U);
}

TEST(GuestLoader, AnElfWithoutTheNoteStartsInTheModeOfItsWidth) {
    const ImageBytes narrow = make_elf({.is_64_bit = false, .has_pvh_note = false});
    const ImageBytes wide = make_elf({.is_64_bit = true, .has_pvh_note = false});
    EXPECT_EQ(Machine{}.load(narrow.bytes()).value().entry.mode, EntryMode::protected_32);
    const LoadedGuest guest = Machine{}.load(wide.bytes()).value();
    EXPECT_EQ(guest.entry.mode, EntryMode::long_64);
    EXPECT_EQ(guest.entry.rip, 0x100010U);
    EXPECT_EQ(guest.entry.rdi, low_memory::start_info.base);
}

TEST(GuestLoader, AKernelGetsZeroPageCommandLineAndInitrdBelowItsLimit) {
    Machine machine;
    const ImageBytes kernel = make_kernel({.last_initrd_address = 0x5fffff, .command_line_bytes = 4});
    const auto initrd_bytes = counted_bytes(4097);
    const BootFile initrd{"initrd", initrd_bytes};
    const auto guest = machine.load(kernel.bytes(), {.initrd = &initrd, .command_line = "ro 1"});
    ASSERT_EQ(message_of(guest), "");
    EXPECT_EQ(guest->kind, ImageKind::linux_kernel);
    EXPECT_EQ(guest->entry.rip, 0x200200U);
    const auto address = machine.object<Le32>(low_memory::zero_page.base + 0x218).value();
    EXPECT_EQ(address, 0x5fe000U);
    EXPECT_EQ(machine.bytes(address, 4097), initrd_bytes);
    EXPECT_EQ(machine.text(low_memory::command_line.base), "ro 1");
    EXPECT_THAT(message_of(Machine{}.load(kernel.bytes(), {.command_line = "ro 12"})),
                HasSubstr("5 bytes; this guest takes 4"));
}

TEST(GuestLoader, ACommandLineStandsAtTheLimitAndNotBeyond) {
    const auto code = counted_bytes(100);
    EXPECT_EQ(message_of(Machine{}.load(code, {.command_line = std::string(max_command_line_bytes, 'x')})),
              "");
    EXPECT_NE(
        message_of(Machine{}.load(code, {.command_line = std::string(max_command_line_bytes + 1, 'x')})), "");
    EXPECT_THAT(message_of(Machine{}.load(code, {.command_line = std::string{"a\0b", 3}})),
                HasSubstr("NUL byte at offset 1"));
}

TEST(GuestLoader, DataAndWhatIsTakenKeepTheirPlaces) {
    Machine machine;
    const auto code = counted_bytes(100);
    const auto blob = counted_bytes(64, 7);
    const BootFile data{"blob", blob};
    const auto guest = machine.load(code, {.data = {{&data, GuestAddress{0x7fff000}}}});
    EXPECT_THAT(message_of(guest), HasSubstr("blob: 0x7fff000 to 0x7fff03f is not in RAM"));
    ASSERT_EQ(message_of(machine.load(code, {.data = {{&data, GuestAddress{0x300000}}}})), "");
    EXPECT_EQ(machine.bytes(0x300000, 64), blob);
    EXPECT_THAT(message_of(Machine{}.load(code, {.data = {{&data, GuestAddress{0x100063}}}})),
                HasSubstr("image: 0x100000 to 0x100063 overlaps blob"));
    EXPECT_THAT(message_of(Machine{}.load(code, {.taken = {{"share", range(0x100000, 1)}}})),
                HasSubstr("overlaps share"));
    EXPECT_THAT(message_of(Machine{}.load(code, {.data = {{&data, GuestAddress{0xe0000}}}})),
                HasSubstr("overlaps ACPI tables"));
}

TEST(GuestLoader, AQnxImageIsRefusedWithWhatIsKnown) {
    ImageBytes ifs{8192};
    ifs.put<std::uint32_t>(0x108, 0x00ff7eeb).put<std::uint16_t>(0x10c, 1).put<std::uint16_t>(0x112, 62);
    const auto guest = Machine{}.load(ifs.bytes());
    EXPECT_THAT(message_of(guest),
                HasSubstr("QNX image file system (startup header 0x00ff7eeb at offset 0x108, "
                          "version 1, x86-64)"));
    EXPECT_THAT(message_of(guest), HasSubstr("mkifs wrote as an ELF file"));
    EXPECT_EQ(guest.error().code(), Errc::unsupported);
}

TEST(GuestLoader, NothingToStartIsAnError) {
    EXPECT_THAT(message_of(Machine{}.load(std::span<const std::byte>{})), HasSubstr("empty file"));
    TestMap map;
    map.ram(0, 0x1000);
    MapView view{*map.map()};
    EXPECT_FALSE(load_guest({}, view));
    EXPECT_THAT(message_of(Machine{0x1000}.load(counted_bytes(16))), HasSubstr("not in RAM"));
}

/// A kernel that this machine has, if it has one.
std::filesystem::path find_kernel() {
    std::error_code ignored;
    const std::filesystem::path cache = std::filesystem::path{GUESTMEM_SOURCE} / "build" / "guest-cache";
    for (const auto& entry : std::filesystem::directory_iterator{cache, ignored})
        if (exists(entry.path() / "vmlinuz", ignored)) return entry.path() / "vmlinuz";
    for (const auto& entry : std::filesystem::directory_iterator{"/boot", ignored})
        if (entry.path().filename().string().starts_with("vmlinuz")) return entry.path();
    return {};
}

TEST(GuestLoader, ADistributionsKernelIsLoadedWithRoomForItself) {
    const std::filesystem::path path = find_kernel();
    if (path.empty()) GTEST_SKIP() << "no kernel in build/guest-cache or /boot; the e2e tests fetch one";
    std::ifstream stream{path, std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{stream}, {}};
    const BootFile kernel{path, text.size(), [&](std::uint64_t offset, std::span<std::byte> to) {
                              std::memcpy(to.data(), text.data() + offset, to.size());
                              return Result<void>{};
                          }};
    Machine machine{0x8000000};
    const auto initrd_bytes = counted_bytes(1000000);
    const BootFile initrd{"initrd", initrd_bytes};
    const auto guest = machine.load(kernel, {.initrd = &initrd, .command_line = "console=ttyS0"});
    ASSERT_EQ(message_of(guest), "");
    EXPECT_EQ(guest->kind, ImageKind::linux_kernel);
    EXPECT_EQ(guest->entry.mode, EntryMode::long_64);
    const auto claim = std::ranges::find(guest->claims, path.string() + ": kernel", &Claim::name);
    ASSERT_NE(claim, guest->claims.end());
    EXPECT_EQ(guest->entry.rip, claim->range.base().value() + 0x200);
    EXPECT_GT(claim->range.size_bytes(), text.size()) << "room to decompress";
    const std::size_t code = (static_cast<unsigned char>(text[0x1f1]) + std::size_t{1}) * 512;
    const auto loaded = machine.bytes(claim->range.base().value(), 1 << 20);
    EXPECT_EQ(std::memcmp(loaded.data(), text.data() + code, loaded.size()), 0);
    // 128 MiB of RAM less than the initrd's size, rounded to pages.
    EXPECT_EQ(machine.object<Le32>(low_memory::zero_page.base + 0x218).value(), 0x8000000U - 245 * 4096);
}

}  // namespace
}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/ivshmem.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/device/pci/function.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/vmm/kvm_interrupts.hpp"
#include "guestmem/vmm/share_watch.hpp"
#include "guestmem/vmm/testing/share_world.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;

constexpr std::uint64_t share_bytes = 64UL * 1024;
constexpr std::uint64_t registers_base = 0xe000'0000;
constexpr std::uint64_t memory_base = 0x5'0000'0000;

class IvshmemTest : public ::testing::Test {
protected:
    /// The service's threads ask it, too: its place is there until they have ended.
    std::optional<FaultInjector> injector_;

    void SetUp() override {
        if (!world_.start()) GTEST_SKIP() << "SKIPPED: " << world_.machine.why;
        ASSERT_TRUE(world_.machine.machine->enable_split_irqchip(24));
        interrupts_ = std::shared_ptr<KvmInterrupts>(
            KvmInterrupts::create(*world_.machine.machine, 24, [](const Error&) {}).value());
    }
    void TearDown() override {
        for (const auto& device : devices_) device->leave();
    }

    std::shared_ptr<IvshmemDevice> make(bool has_doorbell = true, const std::string& control = {}) {
        share::SessionOptions session;
        session.control = control.empty() ? world_.control() : control;
        session.may_reattach = false;
        session.share = "mailbox";
        session.may_create = true;
        session.size_bytes = share_bytes;
        session.vectors = 2;
        session.slots = 8;
        auto made = IvshmemDevice::create(
            {.session = session,
             .has_doorbell = has_doorbell,
             .connector = interrupts_,
             .machine = world_.machine.machine,
             .memory = world_.memory.get(),
             .warn = [this](const std::string& text) { world_.log.write(LogLevel::warning, text); }});
        EXPECT_TRUE(made) << made.error().message();
        devices_.push_back(*made);
        return *made;
    }
    static std::uint32_t read_word(IoDevice& device, std::uint64_t offset) {
        std::array<std::byte, 4> bytes{};
        device.read(offset, bytes);
        std::uint32_t value = 0;
        std::memcpy(&value, bytes.data(), 4);
        return value;
    }
    static void write_word(IoDevice& device, std::uint64_t offset, std::uint32_t value) {
        std::array<std::byte, 4> bytes{};
        std::memcpy(bytes.data(), &value, 4);
        device.write(offset, bytes);
    }
    /// Puts the function where a guest would, decoding on.
    void show(pci::Function& function) {
        function.plug({.memory = world_.bus, .ports = ports_});
        function.program_address(0, registers_base);
        function.program_address(2, memory_base);
        const std::array<std::byte, 2> command{std::byte{2}, std::byte{0}};
        function.write_config(4, command);
    }

    testing::ShareWorld world_;
    std::shared_ptr<KvmInterrupts> interrupts_;
    Bus ports_{"port", 0xffff};
    std::vector<std::shared_ptr<IvshmemDevice>> devices_;
};

TEST_F(IvshmemTest, TheRegistersAreThoseOfRevisionOne) {
    const auto device = make();
    EXPECT_EQ(read_word(*device, 0x08), device->session().id());
    write_word(*device, 0x00, 5);
    write_word(*device, 0x04, 6);
    write_word(*device, 0x08, 7);
    EXPECT_EQ(read_word(*device, 0x00), 5U);
    EXPECT_EQ(read_word(*device, 0x04), 6U);
    EXPECT_EQ(read_word(*device, 0x08), device->session().id());
    EXPECT_EQ(read_word(*device, 0x0c), 0U);
}

TEST_F(IvshmemTest, ADoorbellThatReachesUsRingsThePeer) {
    const auto sender = make();
    const auto receiver = make();
    const std::uint32_t peer = receiver->session().id();
    write_word(*sender, 0x0c, (peer << 16) | 1);
    const FdView bell = receiver->session().vector_view(1);
    const auto ready = poll_readable(bell, 0);
    ASSERT_TRUE(ready);
    EXPECT_TRUE(*ready);
    write_word(*sender, 0x0c, (peer << 16) | 2);
    write_word(*sender, 0x0c, (999U << 16) | 0);
    EXPECT_FALSE(*poll_readable(receiver->session().vector_view(0), 0));
    EXPECT_EQ(world_.log.text().find("warning"), std::string::npos);
}

TEST_F(IvshmemTest, ADoorbellThatReachesUsIsRungWithoutAWriteThatItsReceiverCouldHold) {
    const auto sender = make();
    const auto receiver = make();
    if (const auto ringer = Ringer::create(); !ringer || !ringer->is_certain())
        GTEST_SKIP() << "SKIPPED: this kernel has no io_submit";
    injector_.emplace(0, FaultInjector::Options{.only = SysCall::write});
    write_word(*sender, 0x0c, (receiver->session().id() << 16) | 1);
    EXPECT_FALSE(injector_->has_fired());
    injector_.reset();
    EXPECT_TRUE(*poll_readable(receiver->session().vector_view(1), 0));
}

TEST_F(IvshmemTest, ItsMemoryIsTheGuestsWhileDecodingIsOn) {
    const auto device = make();
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function) << function.error().message();
    show(**function);
    auto reader = world_.memory->make_reader("test");
    ASSERT_TRUE(reader);
    ASSERT_TRUE(reader->memory().store<std::uint32_t>(GuestAddress{memory_base}, 42));
    EXPECT_FALSE(reader->memory().load<std::uint32_t>(GuestAddress{memory_base + share_bytes}));
    EXPECT_EQ(world_.memory->count_slots(), 2U);
    const std::array<std::byte, 2> off{};
    (*function)->write_config(4, off);
    EXPECT_EQ(world_.memory->count_slots(), 1U);
    EXPECT_FALSE(reader->memory().load<std::uint32_t>(GuestAddress{memory_base}));
    (*function)->unplug();
}

TEST_F(IvshmemTest, AGuestsDoorbellIsNoExit) {
    const auto device = make();
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function);
    // Where real mode reaches: 0x20000 is no memory of this machine.
    (*function)->plug({.memory = world_.bus, .ports = ports_});
    (*function)->program_address(0, 0x20000);
    const std::array<std::byte, 2> command{std::byte{2}, std::byte{0}};
    (*function)->write_config(4, command);
    // mov ax,0x2000; mov ds,ax; mov eax,(id << 16) | 1; mov [0x0c],eax twice; out 0x10,al; hlt
    const std::uint32_t id = device->session().id();
    world_.machine.load({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0x66, 0xb8, 0x01, 0x00, id & 0xff, id >> 8,
                         0x66, 0xa3, 0x0c, 0x00, 0x66, 0xa3, 0x0c, 0x00, 0xe6, 0x10,      0xf4});
    KvmVcpu vcpu = world_.machine.make_vcpu(0);
    const auto first = vcpu.run();
    ASSERT_TRUE(first) << first.error().message();
    ASSERT_EQ(first->kind, KvmExit::Kind::mmio) << "a doorbell gets to the kernel by its use";
    world_.bus.write(first->address, first->data);
    EXPECT_EQ(device->count_kernel_doorbells(), 1U);
    const FdView bell = device->session().vector_view(1);
    EXPECT_TRUE(*poll_readable(bell, 0));
    const auto exit = vcpu.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(exit->kind, KvmExit::Kind::io) << "the next exit is the one after the doorbell";
    (*function)->unplug();
    EXPECT_EQ(device->count_kernel_doorbells(), 0U);
}

TEST_F(IvshmemTest, MovingTheRegistersCostsWhatIsInUse) {
    const auto device = make();
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function);
    show(**function);
    write_word(*device, 0x0c, (device->session().id() << 16) | 1);
    EXPECT_EQ(device->count_kernel_doorbells(), 1U);
    // The one in use leaves the kernel: no call more.
    injector_.emplace(1, FaultInjector::Options{.only = SysCall::ioctl});
    (*function)->program_address(0, registers_base + 0x1000);
    EXPECT_FALSE(injector_->has_fired());
    injector_.reset();
    EXPECT_EQ(device->count_kernel_doorbells(), 0U);
    (*function)->unplug();
}

TEST_F(IvshmemTest, WhoComesLaterIsRungAndWhoHasLeftIsNot) {
    // Ids of the old kind: doorbells come with their peers.
    guestmem::testing::LoopThread loop;
    std::optional<share::Service> service;
    share::ServiceConfig config;
    config.control.socket.path = world_.folder.path_of("classic");
    config.shares.push_back({.name = "mailbox",
                             .size_bytes = share_bytes,
                             .vectors = 2,
                             .slots = 8,
                             .ids = share::IdPolicy::classic});
    const std::string control = config.control.socket.path;
    loop.call([&](EventLoop& on) { service = share::Service::create(on, world_.log, config).value(); });
    {
        const auto device = make(true, control);
        const auto function = IvshmemDevice::make_function(device);
        ASSERT_TRUE(function);
        show(**function);
        const auto watch = ShareWatch::create().value();
        watch->add([&device] { return std::array{device}; });
        watch->start();
        std::optional<share::Session> late =
            share::Session::attach({.control = control, .share = "mailbox"}).value();
        const std::uint32_t value = late->id() << 16;
        EXPECT_TRUE(eventually([&] {
            write_word(*device, 0x0c, value);
            return *poll_readable(late->vector_view(0), 0);
        })) << "it came while the guest ran";
        EXPECT_TRUE(eventually([&] {
            write_word(*device, 0x0c, value);
            return device->count_kernel_doorbells() == 1;
        }));
        late.reset();
        EXPECT_TRUE(eventually([&] { return device->count_kernel_doorbells() == 0; })) << "and left";
        watch->stop();
        write_word(*device, 0x0c, value);
        EXPECT_EQ(device->count_kernel_doorbells(), 0U) << "nobody has that doorbell";
        (*function)->unplug();
        EXPECT_EQ(world_.log.text().find("ivshmem,"), std::string::npos) << world_.log.text();
    }
    for (const auto& device : devices_) device->leave();
    devices_.clear();
    loop.call([&](EventLoop&) { service.reset(); });
}

TEST_F(IvshmemTest, AServiceThatIsGoneTakesNothingAndNothingTakesItsPlace) {
    const auto device = make();
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function);
    show(**function);
    auto reader = world_.memory->make_reader("test");
    ASSERT_TRUE(reader);
    ASSERT_TRUE(reader->memory().store<std::uint32_t>(GuestAddress{memory_base}, 42));
    const std::uint32_t id = read_word(*device, 0x08);
    world_.restart_service();
    ASSERT_TRUE(eventually([&] {
        device->look();
        return world_.log.text().find("share 'mailbox': the share service is gone") != std::string::npos;
    }));
    device->look();
    EXPECT_EQ(*reader->memory().load<std::uint32_t>(GuestAddress{memory_base}), 42U);
    EXPECT_EQ(read_word(*device, 0x08), id);
    const auto other = make();
    EXPECT_EQ(other->session().peers().size(), 0U) << "it is not in the share of the next service";
    (*function)->unplug();
}

TEST_F(IvshmemTest, MemoryThatTheKernelKeepsIsNotForgotten) {
    const auto device = make(false);
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function);
    show(**function);
    ASSERT_EQ(world_.memory->count_slots(), 2U);
    const std::array<std::byte, 2> off{};
    injector_.emplace(0, FaultInjector::Options{.only = SysCall::ioctl});
    (*function)->write_config(4, off);
    ASSERT_TRUE(injector_->has_fired());
    injector_.reset();
    EXPECT_EQ(world_.memory->count_slots(), 2U);
    EXPECT_EQ((*function)->visible_address(2), memory_base);
    EXPECT_NE(world_.log.text().find("the memory stays where it is"), std::string::npos) << world_.log.text();
    (*function)->write_config(4, off);
    EXPECT_EQ(world_.memory->count_slots(), 1U) << "the next change has tried again";
    EXPECT_FALSE((*function)->visible_address(2));
    (*function)->unplug();
}

TEST_F(IvshmemTest, APlainOneHasNoDoorbellAndNoTable) {
    const auto device = make(false);
    EXPECT_EQ(read_word(*device, 0x08), 0U);
    const auto function = IvshmemDevice::make_function(device);
    ASSERT_TRUE(function);
    EXPECT_EQ((*function)->bars().size(), 2U);
    write_word(*device, 0x0c, device->session().id() << 16);
    EXPECT_FALSE(*poll_readable(device->session().vector_view(0), 0));
}

TEST_F(IvshmemTest, EveryOffsetAndWidthIsAnswered) {
    const auto device = make();
    for (const std::size_t width : {1U, 2U, 4U, 8U}) {
        std::vector<std::byte> data(width);
        for (std::uint64_t offset = 0; offset + width <= IvshmemDevice::register_bytes; ++offset) {
            device->read(offset, data);
            device->write(offset, data);
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm

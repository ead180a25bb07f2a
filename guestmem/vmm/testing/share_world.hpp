// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "guestmem/base/log.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/vmm/own_service.hpp"
#include "guestmem/vmm/region_window.hpp"
#include "guestmem/vmm/testing/real_mode_machine.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// What a shared memory device leans on, for tests: a machine of KVM with its memory, a bus, and a real share service.
///
/// Contract: start() is false where /dev/kvm does not open, and `machine.why` says why.
/// Threads: one at a time; the log any.

namespace guestmem::vmm::testing {

class TextLog final : public Log {
public:
    void write(LogLevel /*level*/, std::string_view text) override {
        const std::lock_guard lock{mutex_};
        text_ += std::string{text} + "\n";
    }
    [[nodiscard]] std::string text() const {
        const std::lock_guard lock{mutex_};
        return text_;
    }

private:
    mutable std::mutex mutex_;
    std::string text_;
};

struct ShareWorld {
    [[nodiscard]] bool start() {
        if (!machine.start()) return false;
        memory = VmMemory::create(*machine.system, machine.machine, machine.map).value();
        window = std::make_unique<RegionWindow>(
            *GuestRange::create(GuestAddress{std::uint64_t{4} << 30}, std::uint64_t{1} << 30), *memory, bus);
        service = OwnService::create(control(), log).value();
        return true;
    }
    /// Another one in its place, which knows nothing of the first one's shares.
    void restart_service() {
        service.reset();
        service = OwnService::create(control(), log).value();
    }
    [[nodiscard]] std::string control() const { return folder.path_of("control"); }

    guestmem::testing::TempFolder folder;
    TextLog log;
    RealModeMachine machine;
    Bus bus{"memory", ~std::uint64_t{0}};
    std::unique_ptr<VmMemory> memory;
    std::unique_ptr<RegionWindow> window;
    std::unique_ptr<OwnService> service;
};

}  // namespace guestmem::vmm::testing

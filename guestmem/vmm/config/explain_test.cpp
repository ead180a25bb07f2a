// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/explain.hpp"

#include <gmock/gmock.h>

#include <array>
#include <random>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using ::testing::HasSubstr;
using testing::in_a_vm;
using ::testing::Not;
using testing::plan_of;
using testing::read;

constexpr std::string_view everything = R"(set exit-on-halt true set debug "a b" set slog-buffer 8192
system "big" safety warn dryrun
ram 4G backend memory-backend-file,mem-path="/dev/shm/a b"
rom 0xfffc0000,256K reserve loc 0xd0000000,64K
cpu partition 2 runmask 0,3 sched 10f
cpu
load /boot/vmlinuz initrd load "/boot/my initrd" data load 0x1000,a,b acpi load t.aml
cmdline "console=ttyS0 say=\"x\" \
quiet"
vdev ioapic loc 0xf8000000 intr apic name pic
vdev vdev-ser8250.so intr pic:4 hostdev >-
vdev timer8254 intr pic:0
vdev mc146818 vdev pckeyboard vdev pci loc 0xe0000000
vdev shmem create TEST1,0xf0000 create "a b",4096 deny "x y" allow #
"*" loc 0xd8000000 intr pic:10 sched 20r
vdev ivshmem share mail size 1M vectors 3
vdev ivshmem share "@post" mode plain name p:1
)";

TEST(Explain, WritesEachFactInOneForm) {
    EXPECT_EQ(explain_text(plan_of(everything)),
              R"(system big
dryrun
safety warn
set exit-on-halt yes  # without effect
set debug "a b"  # without effect
set slog-buffer 8K  # without effect
ram 4G backend "memory-backend-file,mem-path=/dev/shm/a b"  # 0x0-0xbfffffff, 0x100000000-0x13fffffff
rom 0xfffc0000,256K  # 0xfffc0000-0xffffffff
reserve loc 0xd0000000,64K  # 0xd0000000-0xd000ffff
cpu
    partition 2  # without effect
    runmask 0,3
    sched 10f
cpu
load /boot/vmlinuz
initrd load "/boot/my initrd"
data load 0x1000,a,b
acpi load t.aml
cmdline "console=ttyS0 say=\"x\" quiet"
vdev ioapic
    loc 0xf8000000
    intr apic
    name pic
vdev ser8250
    # loc 0x3f8
    intr pic:4
    hostdev >-
vdev timer8254
    intr pic:0
vdev mc146818
vdev pckeyboard
vdev pci
    loc 0xe0000000
vdev shmem
    loc 0xd8000000
    intr pic:10
    sched 20r  # without effect
    create TEST1,960K
    create "a b,4K"
    deny "x y"
    allow *
vdev ivshmem
    share mail
    size 1M
    mode doorbell
    vectors 3
vdev ivshmem
    name p:1
    share "@post"
    mode plain
)");
}

TEST(Explain, IsReadAsAnEqualPlan) {
    for (const std::string& text : {std::string{everything}, in_a_vm("")}) {
        const VmConfig config = plan_of(text);
        const std::string explained = explain_text(config);
        EXPECT_EQ(plan_of(explained), config);
        EXPECT_EQ(explain_text(plan_of(explained)), explained);
    }
}

TEST(Explain, PlansThatDifferAreNotEqual) {
    const VmConfig one = plan_of(in_a_vm("vdev shmem create a,4K"));
    EXPECT_EQ(one, plan_of(in_a_vm("\n\n vdev vdev-shmem.so create \"a,0x1000\" # equal\n")));
    for (const char* other : {"vdev shmem create a,8K", "vdev shmem create b,4K", "vdev shmem",
                              "vdev shmem create a,4K dryrun", "vdev shmem create a,4K cpu cpu",
                              "vdev shmem create a,4K vdev shmem", "vdev shmem create a,4K safety none"})
        EXPECT_NE(one, plan_of(in_a_vm(other))) << other;
}

TEST(Explain, JsonHasEachFactWithItsPlace) {
    const auto plan = read(everything);
    ASSERT_TRUE(plan) << plan.error().message();
    const std::string json = explain_json(plan->config, plan->sources);
    for (const char* part : {R"("system": "big")",
                             R"("dryrun": true)",
                             R"("has_effect": false)",
                             R"("value": 8192)",
                             R"("kind": "ram")",
                             R"("last": 5368709119)",
                             R"("backend": "memory-backend-file,mem-path=/dev/shm/a b")",
                             R"("policy": "fifo")",
                             R"("kind": "initrd")",
                             R"("address": 4096)",
                             R"("cmdline": "console=ttyS0 say=\"x\" quiet")",
                             R"("port": 1016)",
                             R"("controller": "apic")",
                             R"("pin": 10)",
                             R"("form": "mmio")",
                             R"("deny": "x y")",
                             R"("vectors": 3)",
                             R"("mode": "plain")",
                             R"("hostdev": ">-")",
                             R"("place": "vm.qvmconf:5:1")",
                             R"("safety": "warn")",
                             R"("partition": 2)"})
        EXPECT_THAT(json, HasSubstr(part));
}

TEST(Explain, JsonSaysNoPlaceForWhatNobodyWrote) {
    const auto plan = read(in_a_vm(""));
    ASSERT_TRUE(plan);
    EXPECT_THAT(explain_json(plan->config, plan->sources), HasSubstr("\"cpus\": [\n    {}\n  ]"));
}

/// Random lines, most of which go together.
class Writer {
public:
    explicit Writer(std::uint32_t seed) : random_(seed) {}

    std::string configuration() {
        std::string text = fmt::format("system vm{}\n{}", below(1000), ram());
        text += fmt::format("vdev ioapic intr apic name pic{}\n", chance(2) ? " loc 0xf8000000" : "");
        text += "load kernel\n";
        const std::size_t count = below(12);
        for (std::size_t i = 0; i < count; ++i) text += line();
        return text;
    }

private:
    std::size_t below(std::size_t limit) { return random_() % limit; }
    bool chance(std::size_t one_in) { return below(one_in) == 0; }

    std::string ram() {
        const std::string start = chance(3) ? fmt::format("{}M,", below(100)) : "";
        const std::string backend = chance(3) ? " backend memory-backend-memfd,\"x=# y\"" : "";
        return fmt::format("ram {}{}{}{}\n", start, 1 + below(5000), chance(2) ? "M" : "m", backend);
    }
    std::string line() {
        const std::size_t n = below(1000);
        switch (below(12)) {
            case 0: return ram();
            case 1: return fmt::format("rom {:#x},4K\n", 0xff000000 + n * 4096);
            case 2: return fmt::format("reserve loc {:#x},8K\n", 0xd0000000 + n * 4096);
            case 3:
                return fmt::format("cpu {} {}\n", chance(2) ? fmt::format("sched {}o", 1 + n % 99) : "",
                                   chance(2) ? fmt::format("runmask {},{}", n, n + 1) : "");
            case 4: return fmt::format("{} load \"{} \\\" \\\\ {}\"\n", chance(2) ? "acpi" : "data", "a", n);
            case 5: return fmt::format("data load {:#x},f{}\n", n, n);
            case 6:
                return fmt::format("vdev ser8250 {} intr pic:{}\n", chance(2) ? "hostdev >-" : "",
                                   1 + n % 15);
            case 7:
                return fmt::format("vdev shmem create \"n {},x,{}K\" deny a allow \"b #*\"\n", n,
                                   4 * (n + 1));
            case 8:
                return fmt::format("vdev shmem loc {:#x} intr pic:{} name s{}\n", 0xe0000000 + n * 4096,
                                   16 + n % 8, n);
            case 9:
                return fmt::format("vdev ivshmem share m{} {} {}\n", n, chance(2) ? "size 4K" : "",
                                   chance(2) ? "mode plain" : "vectors 7");
            case 10: return fmt::format("cmdline \"a \\\n  b={}\"\n", n);
            default: return fmt::format("set {} {}\n", chance(2) ? "debug" : "grow-heap", n);
        }
    }

    std::mt19937 random_;
};

TEST(Explain, AnyPlanIsReadAgainAsAnEqualPlan) {
    std::size_t count_plans = 0;
    for (std::uint32_t seed = 0; seed < 2000; ++seed) {
        const std::string text = Writer{seed}.configuration();
        const auto plan = read(text);
        if (!plan) continue;
        ++count_plans;
        const std::string explained = explain_text(plan->config);
        const auto again = read(explained);
        ASSERT_TRUE(again) << "seed " << seed << "\n" << explained << again.error().message();
        ASSERT_EQ(again->config, plan->config) << "seed " << seed << "\n" << text << explained;
        ASSERT_EQ(explain_text(again->config), explained) << "seed " << seed;
        ASSERT_FALSE(explain_json(plan->config, plan->sources).empty());
    }
    // A writer that is mostly wrong would prove nothing.
    EXPECT_GT(count_plans, 300U);
}

}  // namespace
}  // namespace guestmem::vmm

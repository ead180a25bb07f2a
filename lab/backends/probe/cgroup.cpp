// SPDX-License-Identifier: Apache-2.0
// A control group that may have 64 MiB, in both versions of control groups.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "lab/backends/probe/checks.hpp"

namespace lab {
namespace {

using namespace guestmem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
const std::string root = "/sys/fs/cgroup";
const std::string group = root + "/lab";

struct Version {
    std::string mount;
    std::string limit;
    std::string usage;
    std::string events;  ///< the file with a line "oom_kill N"
};
const Version first{"mount -t cgroup -o memory cgroup " + root, "/memory.limit_in_bytes",
                    "/memory.usage_in_bytes", "/memory.oom_control"};
const Version second{"mount -t cgroup2 cgroup " + root, "/memory.max", "/memory.current", "/memory.events"};

const std::vector<std::string> types = {
    "memory-backend-ram",
    "memory-backend-memfd",
    "memory-backend-shm",
    "memory-backend-file,mem-path=/tmp/file,share=on",
    "memory-backend-file,mem-path=/tmp,share=off",
};

class Group {
public:
    explicit Group(const Version& version) : version_(version) {}

    [[nodiscard]] bool make() const {
        static_cast<void>(output_of(version_.mount));
        if (&version_ == &second) static_cast<void>(write_text(root + "/cgroup.subtree_control", "+memory"));
        std::filesystem::create_directory(group);
        return set_limit(64 * mib) && limit() == 64 * mib;
    }
    [[nodiscard]] bool set_limit(std::uint64_t bytes) const {
        return write_text(group + version_.limit, fmt::format("{}", bytes));
    }
    [[nodiscard]] std::uint64_t limit() const { return read_number(group + version_.limit); }
    [[nodiscard]] std::uint64_t usage() const { return read_number(group + version_.usage); }
    [[nodiscard]] std::uint64_t kills() const {
        return number_in(read_text(group + version_.events), "oom_kill");
    }

private:
    const Version& version_;
};

/// Runs it in a child that is in the group; what it writes down, or how the child ended.
std::string answer_of(const std::function<std::string()>& work) {
    const std::string end = end_of_child([&] {
        if (!write_text(group + "/cgroup.procs", "0")) std::_Exit(9);
        static_cast<void>(write_text("/run/answer", work()));
    });
    const std::string answer = end.empty() ? read_text("/run/answer") : end;
    std::filesystem::remove("/run/answer");
    return answer;
}

std::string made_or_why(const BackendResult& backend) { return backend ? "made" : backend.error().message(); }

/// What a backend of the type with a name leaves behind.
void remove_file() { std::filesystem::remove("/tmp/file"); }

void check_fitting(Checks& checks, const Group& limits, const std::string& type) {
    const std::string text = type + ",id=m,size=24M,prealloc=on";
    const std::uint64_t kills = limits.kills();
    const std::uint64_t before = limits.usage();
    const auto plan = make_plan(text);
    const std::string answer = answer_of([&]() -> std::string {
        const auto backend = make_backend(text);
        if (!backend) return backend.error().message();
        return fmt::format("used {}", limits.usage());
    });
    // What the child itself takes, and its page tables, are less than that.
    constexpr std::uint64_t around = 8 * mib;
    const std::uint64_t used = number_in(answer, "used");
    const std::uint64_t planned = plan ? plan->memory_now_bytes : 0;
    checks.expect(used >= before + planned && used < before + planned + around && planned >= 24 * mib,
                  type + ": the kernel counts as many pages in the group as the plan has said",
                  fmt::format("{} before, {}, planned {}", before, answer, planned));
    remove_file();
    const auto beyond =
        answer_of([&] { return made_or_why(make_backend(type + ",id=m,size=96M,prealloc=on")); });
    checks.expect(beyond.find("control group " + group + " has left") != std::string::npos,
                  type + ": what is beyond the limit is refused, and the group is named", beyond);
    const auto lazy = answer_of([&] { return made_or_why(make_backend(type + ",id=m,size=96M")); });
    checks.expect(lazy == "made", type + ": without prealloc it is made, as nothing is taken", lazy);
    remove_file();
    checks.expect(limits.kills() == kills, type + ": until here the kernel has ended no process");
}

/// The limit goes down between the plan and the making.
void check_lowered(Checks& checks, const Group& limits, const std::string& type) {
    const std::uint64_t before = limits.usage();
    const std::uint64_t kills = limits.kills();
    const std::string answer = answer_of([&]() -> std::string {
        if (!limits.set_limit(192 * mib)) return "the limit cannot be raised";
        const auto plan = make_plan(type + ",id=m,size=72M,prealloc=on");
        if (!plan) return plan.error().message();
        if (plan->problems.has_refusal()) return refusal_of(*plan).message();
        if (!limits.set_limit(64 * mib)) return "the limit cannot be lowered";
        return made_or_why(Backend::create(*plan));
    });
    checks.expect(answer.starts_with("backend 'm': prealloc: "),
                  type + ": prealloc beyond a limit that went down is an error", answer);
    checks.expect(limits.kills() == kills, type + ": then the kernel ends no process");
    checks.expect(limits.usage() < before + 4 * mib, type + ": then nothing of it stays",
                  fmt::format("{} bytes used before, {} after", before, limits.usage()));
    checks.expect(limits.limit() == 64 * mib, type + ": the limit is as it was");
}

/// As much as is left, to the last page: the kernel counts page tables, too. Whether one try goes over the limit hangs
/// on a few pages, so that there are several.
void check_brim(Checks& checks) {
    constexpr int count_tries = 5;
    std::string ends;
    for (const std::string& type : types) {
        int count_ended = 0;
        for (int i = 0; i < count_tries; ++i) {
            const std::string answer = answer_of([&]() -> std::string {
                const auto left = memory_limits();
                if (!left || !left->cgroup_headroom_bytes) return "no limit is seen";
                const std::uint64_t size = *left->cgroup_headroom_bytes / page_size_bytes * page_size_bytes;
                return made_or_why(make_backend(fmt::format("{},id=m,size={},prealloc=on", type, size)));
            });
            remove_file();
            if (answer.starts_with("signal")) ++count_ended;
        }
        if (count_ended != 0)
            ends += fmt::format("{}{} of {} of {}", ends.empty() ? "" : ", ", count_ended, count_tries, type);
    }
    checks.expect(ends.empty(), "prealloc of all that is left, to the last page, ends no process",
                  "ended by a signal: " + ends);
}

void check_second_backend(Checks& checks) {
    const std::string answer = answer_of([]() -> std::string {
        const auto one = make_backend("memory-backend-ram,id=one,size=32M,prealloc=on");
        if (!one) return one.error().message();
        const auto two = make_backend("memory-backend-ram,id=two,size=40M,prealloc=on");
        const auto map = map_of(**one, 0);
        GuestMemory memory{*map};
        const bool is_whole = memory.fill(GuestAddress{0}, std::byte{1}, 32 * mib).has_value();
        return two ? "both were made" : fmt::format("{} {}", is_whole, two.error().message());
    });
    checks.expect(answer.starts_with("true backend 'two'"),
                  "a second backend is refused where the first has taken much", answer);
}

/// The group itself has no limit, the one above it has.
void check_above(Checks& checks) {
    std::filesystem::create_directory(group + "/inner");
    const std::string answer = answer_of([] {
        if (!write_text(group + "/inner/cgroup.procs", "0"))
            return std::string{"the inner group cannot be entered"};
        return made_or_why(make_backend("memory-backend-ram,id=m,size=96M,prealloc=on"));
    });
    checks.expect(answer.find("control group " + group + " has left") != std::string::npos,
                  "the limit of the group above counts, and that group is named", answer);
}

}  // namespace

void check_cgroup(Checks& checks, int version) {
    const Group limits{version == 1 ? first : second};
    std::filesystem::create_directory("/run");
    if (!limits.make()) {
        checks.not_run("control groups", "this kernel gives no memory controller of this version");
        return;
    }
    const std::uint64_t before = limits.usage();
    for (const std::string& type : types) {
        check_fitting(checks, limits, type);
        check_lowered(checks, limits, type);
        checks.expect(!std::filesystem::exists("/tmp/file"),
                      type + ": no file stays of what could not be made");
        remove_file();
    }
    check_second_backend(checks);
    check_above(checks);
    checks.expect(limits.kills() == 0, "the kernel has ended no process of the group",
                  fmt::format("{} processes", limits.kills()));
    checks.expect(limits.usage() < before + 4 * mib,
                  "the group uses at the end what it used at the beginning",
                  fmt::format("{} bytes before, {} after", before, limits.usage()));
    check_brim(checks);
}

}  // namespace lab

// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/explain.hpp"

#include <fmt/format.h>

#include <array>
#include <iterator>
#include <string_view>
#include <variant>

#include "guestmem/vmm/config/lexer.hpp"
#include "guestmem/vmm/config/numbers.hpp"
#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/config/vdev_words.hpp"

namespace guestmem::vmm {
namespace {

class Writer {
public:
    template <typename... Arguments>
    void line(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
        fmt::format_to(std::back_inserter(text_), format, std::forward<Arguments>(arguments)...);
        text_ += '\n';
    }

    void memory(const MemoryLine& line_of_memory) {
        const std::string start =
            line_of_memory.start ? write_address(line_of_memory.start->value.value()) + "," : std::string{};
        const std::string backend =
            line_of_memory.backend ? " backend " + quote_token(line_of_memory.backend->value) : std::string{};
        std::string where;
        for (const GuestRange& range : line_of_memory.ranges)
            where += fmt::format("{}{}-{}", where.empty() ? "" : ", ", write_address(range.base().value()),
                                 write_address(range.last().value()));
        static constexpr std::array<std::string_view, 3> words{"ram", "rom", "reserve loc"};
        line("{} {}{}{}  # {}", words[static_cast<std::size_t>(line_of_memory.kind)], start,
             write_length(line_of_memory.size_bytes.value), backend, where);
    }

    void setting(const Setting& setting) {
        const auto& value = setting.value.value;
        std::string text;
        if (const bool* flag = std::get_if<bool>(&value)) {
            text = *flag ? "yes" : "no";
        } else if (const std::uint64_t* number = std::get_if<std::uint64_t>(&value)) {
            text = write_length(*number);
        } else {
            text = quote_token(std::get<std::string>(value));
        }
        const VariableRow& row = row_of(setting.variable);
        line("set {} {}{}", row.text, text, remark(row.support));
    }

    void cpu(const Cpu& cpu) {
        line("cpu");
        if (cpu.partition)
            line("    partition {}{}", cpu.partition->value,
                 remark(find_word("partition", Context::cpu)->support));
        std::string mask;
        for (const Placed<std::uint32_t>& host : cpu.runmask)
            mask += fmt::format("{}{}", mask.empty() ? "" : ",", host.value);
        if (!mask.empty()) line("    runmask {}", mask);
        if (cpu.sched) line("    sched {}", to_text(cpu.sched->value));
    }

    void load(const Load& load) {
        const std::string_view type = row_of(load.kind).text;
        const std::string address =
            load.address ? write_address(load.address->value.value()) + "," : std::string{};
        line("{}{}load {}", type, type.empty() ? "" : " ", quote_token(address + load.file.value));
    }

    void vdev(const Vdev& vdev) {
        line("vdev {}", row_of(vdev.kind).text);
        if (vdev.loc) {
            const bool is_written = vdev.loc->place.is_somewhere();
            line("    {}loc {}", is_written ? "" : "# ", write_address(vdev.loc->value));
        }
        if (vdev.intr) line("    intr {}", quote_token(to_text(vdev.intr->value)));
        if (vdev.name) line("    name {}", quote_token(vdev.name->value));
        if (vdev.sched)
            line("    sched {}{}", to_text(vdev.sched->value),
                 remark(find_word("sched", Context::vdev)->support));
        if (vdev.hostdev) line("    hostdev {}", quote_token(vdev.hostdev->value));
        for (const CreateLine& create : vdev.shmem.creates)
            line("    create {}",
                 quote_token(fmt::format("{},{}", create.name.value, write_length(create.size_bytes.value))));
        for (const NameRule& rule : vdev.shmem.rules)
            line("    {} {}", rule.is_allowed ? "allow" : "deny", quote_token(rule.pattern.value));
        if (vdev.kind == VdevKind::ivshmem) ivshmem(vdev.ivshmem);
    }

    std::string take() { return std::move(text_); }

private:
    static std::string to_text(const Sched& sched) {
        static constexpr std::string_view policies = "rfo";
        std::string text = std::to_string(sched.priority);
        if (sched.policy) text += policies[static_cast<std::size_t>(*sched.policy)];
        return text;
    }
    static std::string to_text(const Interrupt& interrupt) {
        return interrupt.pin ? fmt::format("{}:{}", interrupt.controller, *interrupt.pin)
                             : interrupt.controller;
    }
    static std::string_view remark(Support support) {
        return support == Support::without_effect ? "  # without effect" : "";
    }

    void ivshmem(const IvshmemOptions& options) {
        line("    share {}", quote_token(options.share.value));
        if (options.size_bytes) line("    size {}", write_length(options.size_bytes->value));
        const bool is_plain = options.mode.value == IvshmemMode::plain;
        line("    mode {}", is_plain ? "plain" : "doorbell");
        if (!is_plain) line("    vectors {}", options.vectors.value);
    }

    std::string text_;
};

}  // namespace

std::string explain_text(const VmConfig& config) {
    Writer writer;
    writer.line("system {}", quote_token(config.system.value));
    if (config.dryrun) writer.line("dryrun");
    if (config.safety) writer.line("safety {}", config.safety->value == Safety::warn ? "warn" : "none");
    for (const Setting& setting : config.settings) writer.setting(setting);
    for (const MemoryLine& line : config.memory) writer.memory(line);
    for (const Cpu& cpu : config.cpus) writer.cpu(cpu);
    for (const Load& load : config.loads) writer.load(load);
    if (config.cmdline) writer.line("cmdline {}", quote_token(config.cmdline->value));
    for (const Vdev& vdev : config.vdevs) writer.vdev(vdev);
    return writer.take();
}

}  // namespace guestmem::vmm

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/vmm/config/vm_config.hpp"

/// The language of `.qvmconf` as tables: the one source for the parser, for what errors say, and for the reference.
///
/// Concepts: a word stands for the machine as a whole or in a context that `cpu`, `vdev`, `pass` or `reserve` opens and
/// the next of these ends; in `vdev` each kind of device has words of its own. Support tells apart what works, what
/// is read and has no effect here, and what QNX documents and this program does not do. Language says whose a word is.
/// Contract: a text occurs once per context. Rows are in the order in which the reference shows them.
/// Threads: any; constant tables.

namespace guestmem::vmm {

enum class Context : std::uint8_t { machine, cpu, vdev, pass, reserve };
enum class Support : std::uint8_t { works, without_effect, not_here };
enum class Language : std::uint8_t { qnx, ours };

enum class Word : std::uint8_t {
    system,
    ram,
    backend,
    rom,
    reserve,
    cpu,
    load,
    cmdline,
    vdev,
    pass,
    set,
    safety,
    dryrun,
    not_here,  ///< all that is documented and not done
    partition,
    runmask,
    sched,
    loc,
    intr,
    name,
    hostdev,
    create,
    allow,
    deny,
    share,
    size,
    vectors,
    mode,
};

/// Kinds of device as a set: a bit for each.
using VdevKinds = std::uint32_t;
[[nodiscard]] constexpr VdevKinds only(VdevKind kind) { return VdevKinds{1} << static_cast<unsigned>(kind); }

struct WordRow {
    std::string_view text;
    Word word;
    Context context;
    std::string_view argument;  ///< as the reference shows it; empty: it has none
    bool can_repeat = false;
    VdevKinds vdevs = 0;  ///< in context vdev: which devices have it
    Language language = Language::qnx;
    Support support = Support::works;
    std::string_view help;  ///< for a word that is not done here: what to do instead
};

enum class Trigger : std::uint8_t { none, edge, level };

struct VdevRow {
    std::string_view text;
    VdevKind kind = VdevKind::ioapic;  ///< without a meaning for one that is not here
    Trigger trigger = Trigger::none;
    Language language = Language::qnx;
    Support support = Support::works;
    std::string_view help;
};

enum class VariableType : std::uint8_t { boolean, number, text };

struct VariableRow {
    std::string_view text;
    Variable variable = Variable::debug;  ///< without a meaning for one that is not here
    VariableType type = VariableType::boolean;
    Support support = Support::works;
    std::string_view help;
};

struct LoadRow {
    std::string_view text;  ///< empty: `load` alone
    LoadKind kind = LoadKind::kernel;
    Support support = Support::works;
    std::string_view help;
};

[[nodiscard]] std::span<const WordRow> word_rows();
[[nodiscard]] std::span<const VdevRow> vdev_rows();
[[nodiscard]] std::span<const VariableRow> variable_rows();
[[nodiscard]] std::span<const LoadRow> load_rows();

/// The row of that text, or null.
[[nodiscard]] const WordRow* find_word(std::string_view text, Context context);
/// `shmem`, and as older files write it, `vdev-shmem.so`.
[[nodiscard]] const VdevRow* find_vdev(std::string_view text);
[[nodiscard]] const VariableRow* find_variable(std::string_view text);
[[nodiscard]] const LoadRow* find_load(std::string_view text);
[[nodiscard]] const VdevRow& row_of(VdevKind kind);
[[nodiscard]] const VariableRow& row_of(Variable variable);
[[nodiscard]] const LoadRow& row_of(LoadKind kind);

/// Whether the word opens a context, or stands for the machine: where the parser finds its way again after a mistake.
[[nodiscard]] bool is_machine_word(std::string_view text);
/// Whether any context has it.
[[nodiscard]] bool is_any_word(std::string_view text);

/// The whole language as Markdown tables.
[[nodiscard]] std::string language_reference();

}  // namespace guestmem::vmm

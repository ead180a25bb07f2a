// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "guestmem/base/check.hpp"

namespace guestmem::dma {
namespace {

constexpr auto qnx = SmmuLanguage::qnx;
constexpr auto ours = SmmuLanguage::ours;
constexpr auto works = SmmuSupport::works;
constexpr auto service_only = SmmuSupport::service_only;

constexpr std::array words{
    SmmuWordRow{"smmu", SmmuWord::smmu, "TYPE [PARAM]", qnx, works,
                "which kind of IOMMU the units behind it are; PARAM is a matter of the type. Again with the "
                "same type: the last one holds"},
    SmmuWordRow{
        "unit", SmmuWord::unit, "NAME PARAM", qnx, works,
        "an IOMMU by a name of your own, or by the one that `guestmem dma discover` shows; PARAM is a "
        "matter of the type. Again with the same name: the last one holds"},
    SmmuWordRow{
        "device", SmmuWord::device, "DEVICE [use UNIT [PARAM]] [NAME]", qnx, works,
        "a device, the unit that it is behind, and the `allow` set that it may reach. Lines about one "
        "device add up: identities at its one unit, sets"},
    SmmuWordRow{"use", SmmuWord::use, "UNIT [PARAM]", qnx, works,
                "part of `device`: the unit, and the identity that the device's requests carry there"},
    SmmuWordRow{
        "allow", SmmuWord::allow, "NAME START,LENGTH[,PERMISSIONS]", qnx, works,
        "adds a range to a set of memory that devices may reach. The letters of PERMISSIONS are ours: "
        "r, w and x; rw without them"},
    SmmuWordRow{"reserved", SmmuWord::reserved, "DEVICE START,LENGTH[,PERMISSIONS]", qnx, works,
                "memory that the device reaches one to one, whoever owns it (as RMRR). QNX has the word, its "
                "form is ours"},
    SmmuWordRow{"merge", SmmuWord::merges, "[unit:NAME | DEVICE]", ours, works,
                "keeps what firmware says beside your words: of that unit or device, without one of all"},
    SmmuWordRow{"override", SmmuWord::overrides, "[unit:NAME | DEVICE]", ours, works,
                "your words stand in place of the firmware's: what holds without either word. The narrowest "
                "scope decides: device, unit, all"},
    SmmuWordRow{"debug", SmmuWord::debug, "1 | 2", qnx, service_only, "how much is said"},
    SmmuWordRow{"foreground", SmmuWord::foreground, "", qnx, service_only, "do not go into the background"},
    SmmuWordRow{"safety", SmmuWord::safety, "none | warn | required", qnx, service_only,
                "none and warn are the same here; required is refused: nothing here is certified"},
    SmmuWordRow{"user", SmmuWord::user, "NAME[:GROUP]", qnx, service_only,
                "who the service is when it has started; QNX has the word, its form is ours"},
};

constexpr std::string_view firmware_words = "require | ignore";
constexpr std::string_view smmu_v2_unit = "PADDR,CONTEXT_IRQ,GLOBAL_IRQ,BYPASS[,IDS[,DLL]]";

constexpr std::array types{
    SmmuTypeRow{"vtd", SmmuType::vtd, UnitKind::vt_d, firmware_words, "PADDR", "", false, qnx,
                "Intel VT-d. `require`: a DMAR table has to be there; `ignore`: it is wrong and left out; "
                "without a word it is read when it is there"},
    SmmuTypeRow{
        "armsmmu", SmmuType::armsmmu, UnitKind::smmu_v2, firmware_words, smmu_v2_unit, "STREAM", true, qnx,
        "Arm SMMUv1 and v2. BYPASS 1 lets unknown streams pass; IDS are stream ids not to be given out, with "
        "':' between. The kernel's driver owns interrupts and BYPASS, and no board DLL is loaded: these are "
        "told. PARAM of `smmu` is ours: IORT or device tree"},
    SmmuTypeRow{"armsmmuv3", SmmuType::armsmmuv3, UnitKind::smmu_v3, firmware_words, "PADDR", "STREAM", true,
                qnx, "Arm SMMUv3. QNX has the type, the parameters are ours: IORT or device tree"},
    SmmuTypeRow{
        "rcar3", SmmuType::rcar3, UnitKind::other, "PADDR,FAULT_IRQ,FAULT_BIT[,SOC.REV...]",
        "PADDR,STATUS_BIT", "MICRO_TLB", true, qnx,
        "Renesas IPMMU. The kernel's driver owns its interrupts: PARAM of `smmu` is checked and has no "
        "effect"},
    SmmuTypeRow{
        "amdvi", SmmuType::amdvi, UnitKind::amd_vi, firmware_words, "pci:FUNCTION", "ALIAS", false, ours,
        "AMD-Vi, a unit by its PCI function. ALIAS is the requester id that the device's requests carry when "
        "it is not its own; `require` and `ignore` are about IVRS"},
    SmmuTypeRow{"virtio-iommu", SmmuType::virtio_iommu, UnitKind::virtio_iommu, firmware_words,
                "pci:FUNCTION | mem:PADDR", "ENDPOINT", true, ours,
                "virtio-iommu; `require` and `ignore` are about VIOT or device tree"},
};

std::string cell(std::string_view text) {
    std::string escaped;
    for (const char c : text) escaped += c == '|' ? std::string{"\\|"} : std::string{c};
    return escaped;
}
std::string code_cell(std::string_view text) {
    return text.empty() ? std::string{} : fmt::format("`{}`", cell(text));
}
std::string_view owner(SmmuLanguage language) { return language == qnx ? "QNX" : "ours"; }

}  // namespace

std::span<const SmmuWordRow> smmu_word_rows() { return words; }
std::span<const SmmuTypeRow> smmu_type_rows() { return types; }

const SmmuWordRow* find_smmu_word(std::string_view text) {
    const auto row = std::ranges::find(words, text, &SmmuWordRow::text);
    return row == words.end() ? nullptr : &*row;
}

const SmmuTypeRow* find_smmu_type(std::string_view text) {
    const auto row = std::ranges::find(types, text, &SmmuTypeRow::text);
    return row == types.end() ? nullptr : &*row;
}

const SmmuTypeRow& row_of(SmmuType type) {
    const auto row = std::ranges::find(types, type, &SmmuTypeRow::type);
    GM_CHECK(row != types.end());
    return *row;
}

std::string smmu_language_reference() {
    std::string text = "| word | arguments | whose | meaning |\n| --- | --- | --- | --- |\n";
    auto to = std::back_inserter(text);
    for (const SmmuWordRow& row : words)
        fmt::format_to(to, "| `{}` | {} | {} | {}{} |\n", row.text, code_cell(row.argument),
                       owner(row.language), row.support == service_only ? "read, for a service: " : "",
                       cell(row.help));
    text += "\n| type | `smmu` PARAM | `unit` PARAM | `use` PARAM | whose | meaning |\n";
    text += "| --- | --- | --- | --- | --- | --- |\n";
    for (const SmmuTypeRow& row : types)
        fmt::format_to(to, "| `{}` | {} | {} | {} | {} | {} |\n", row.text, code_cell(row.parameter),
                       code_cell(row.unit_parameter),
                       row.use_parameter.empty() ? std::string{"none allowed"}
                                                 : fmt::format("{}{}", code_cell(row.use_parameter),
                                                               row.needs_use_parameter ? "" : ", or none"),
                       owner(row.language), cell(row.help));
    return text;
}

}  // namespace guestmem::dma

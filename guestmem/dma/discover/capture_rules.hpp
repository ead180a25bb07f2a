// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <string_view>

/// What the capture in C++ and the capture in shell have in common: rules for single contents.
///
/// Concepts: a kernel's command line can hold anything, passwords too; only words that begin as kept_beginnings say
/// are kept. Links of sysfs lead up and down again: what is behind the way up names what they lead to.
/// Contract: words are parted by blanks, also inside quotation marks; those behind "--" are init's and not kept. A
/// word is kept as it is, also with a quotation mark in front, which the kernel passes over.
/// Threads: any.

namespace guestmem::dma {

/// Where an archive has the page size of its machine; no kernel shows it in a file.
inline constexpr std::string_view page_bytes_path = "capture/page_bytes";

/// What kept words of the command line begin with.
inline constexpr std::array<std::string_view, 23> kept_beginnings{
    "intel_iommu=", "amd_iommu=", "amd_iommu_intr=", "amd_iommu_dump", "iommu=",       "iommu.",
    "iommufd.",     "arm-smmu",   "arm_smmu",        "virtio_iommu",   "intremap=",    "swiotlb=",
    "vfio",         "pci=",       "pcie_",           "pci_",           "thunderbolt.", "efi=disable_early",
    "lockdown=",    "nointremap", "noiommu",         "nox2apic",       "acpi="};

/// Whether a word of the kernel's command line is about IOMMU, PCI or VFIO.
[[nodiscard]] bool is_kept_word(std::string_view word);
/// The kept words with one blank between.
[[nodiscard]] std::string kept_words(std::string_view command_line);

/// The target without its leading "/" and "../".
[[nodiscard]] std::string inner_target(std::string_view target);
/// The line "MemTotal: ..." with its end; empty when there is none.
[[nodiscard]] std::string memory_total_line(std::string_view meminfo);

}  // namespace guestmem::dma

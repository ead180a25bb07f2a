# SPDX-License-Identifier: Apache-2.0
"""The machines of the bed: QEMU by emulation, a stock Debian kernel, and PCI trees that a group can come from.

A Machine is one QEMU command line. `tree` has one of each: a function on the root bus, root ports with and without
ACS, a switch, a conventional bridge with two functions behind it, one device with two functions.
"""

from dataclasses import dataclass

EDU = "edu,dma_mask=0xffffffff"

# x86: no device but what is named; pcie.0 is the root bus.
TREE = (
    "-device", f"{EDU},id=flat,addr=0x3",
    "-device", "pcie-root-port,id=root0,chassis=1,addr=0x4",
    "-device", "nvme,id=behind,serial=a,bus=root0",
    "-device", "pcie-root-port,id=root1,chassis=2,addr=0x5,disable-acs=on",
    "-device", "nvme,id=behind-plain,serial=b,bus=root1",
    "-device", "pcie-root-port,id=switch-port,chassis=3,addr=0x6",
    "-device", "x3130-upstream,id=up,bus=switch-port",
    "-device", "xio3130-downstream,id=down0,bus=up,chassis=4,slot=0,addr=0x0",
    "-device", "xio3130-downstream,id=down1,bus=up,chassis=5,slot=1,addr=0x1",
    "-device", "nvme,id=left,serial=c,bus=down0",
    "-device", "nvme,id=right,serial=d,bus=down1",
    "-device", "pcie-root-port,id=old-port,chassis=6,addr=0x7",
    "-device", "pcie-pci-bridge,id=old,bus=old-port",
    "-device", f"{EDU},id=old0,bus=old,addr=0x1",
    "-device", f"{EDU},id=old1,bus=old,addr=0x2",
    "-device", f"{EDU},id=pair0,addr=0x8.0,multifunction=on",
    "-device", f"{EDU},id=pair1,addr=0x8.1",
)
# A second host bridge, which the firmware's table describes apart from the first.
SECOND_ROOT = (
    "-device", "pxb-pcie,id=second,bus_nr=64,bus=pcie.0,addr=0x9",
    "-device", "pcie-root-port,id=second-port,bus=second,chassis=7",
    "-device", "nvme,id=far,serial=e,bus=second-port",
)
X86 = ("-machine", "q35,kernel-irqchip=split", "-cpu", "max")
ARM = ("-machine", "virt,iommu=smmuv3,gic-version=3", "-cpu", "max")


@dataclass(frozen=True)
class Machine:
    name: str
    shows: str
    kernel: str = "kernel"  # a group of packages.txt
    options: tuple = ()
    parameters: str = ""
    modules: tuple = ("vfio_iommu_type1", "vfio_pci")
    units: tuple = ()  # the kinds that `discover` must name
    is_arm: bool = False
    has_firmware: bool = False  # arm: ACPI tables instead of a device tree

    @property
    def console(self):
        return "ttyAMA0" if self.is_arm else "ttyS0"


MACHINES = (
    # no_timer_check: the timer test of Linux fails by emulation when interrupts are remapped and the machine is busy.
    Machine("vtd", "Intel VT-d", options=(*X86, "-device", "intel-iommu,intremap=on,device-iotlb=on",
                                          *TREE, *SECOND_ROOT),
            parameters="intel_iommu=on no_timer_check", units=("VT-d",)),
    Machine("vtd-off", "Intel VT-d that the kernel does not use", options=(*X86, "-device", "intel-iommu", *TREE),
            parameters="intel_iommu=off no_timer_check", units=("VT-d",)),
    Machine("amdvi", "AMD-Vi", options=(*X86, "-device", "amd-iommu,intremap=on", *TREE),
            parameters="no_timer_check", units=("AMD-Vi",)),
    Machine("virtio-iommu", "virtio-iommu", kernel="kernel-later",
            options=(*X86, "-device", "virtio-iommu-pci,addr=0x2", *TREE),
            modules=("virtio_iommu", "virtio_pci", "vfio_iommu_type1", "vfio_pci"), units=("virtio-iommu",)),
    Machine("none", "no IOMMU", options=("-machine", "q35", "-cpu", "max", *TREE)),
    Machine("smmuv3-tree", "SMMUv3 in a device tree", kernel="arm64", options=(*ARM, *TREE), is_arm=True,
            units=("SMMUv3",)),
    Machine("smmuv3-acpi", "SMMUv3 in ACPI's IORT", kernel="arm64", options=(*ARM, *TREE, *SECOND_ROOT), is_arm=True,
            has_firmware=True, units=("SMMUv3",)),
)

// SPDX-License-Identifier: Apache-2.0
// From the PVH entry (32 bit, no paging) to payload_main() in long mode, and the entries of all interrupts.
//
// All tables are data of the image: ring 0 instructions may cost a microsecond each (a KVM that emulates ring
// 0), and a loop that fills tables would cost more than everything else that happens before the first output.

// The note that a PVH loader looks for: the physical address of the 32-bit entry, 8 bytes wide in a 64-bit ELF.
asm(R"(
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad payload_entry
    .previous
)");

// payload_entry is weak: a payload that has something to do before long mode has an entry of its own and jumps
// to payload_start. EBX holds the address of the start info.
asm(R"(
    .text
    .code32
    .weak payload_entry
    .set payload_entry, payload_start
    .globl payload_start
payload_start:
    cld
    movl %ebx, payload_start_info
    lgdt payload_gdt_pointer
    movl $payload_pml4, %eax
    movl %eax, %cr3
    movl $0x20, %eax            # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # long mode enable
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       # paging, protection
    andl $0x9fffffff, %eax      # caches on
    movl %eax, %cr0
    ljmp $8, $payload_start64
    .code64
payload_start64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $payload_stack_top, %esp
    lidt payload_idt_pointer
    xorl %ebp, %ebp
    call payload_main
1:  cli
    hlt
    jmp 1b
)");

// 4 GiB as they are, in pages of 2 MiB; the rest of the first 512 GiB is filled in by reach(). Write-back
// everywhere: what a virtual machine traps it traps in any case, and memory stays memory.
asm(R"(
    .section .tables, "aw"
    .balign 4096
    .globl payload_pml4, payload_pdpt
payload_pml4:
    .quad payload_pdpt + 0x7
    .fill 511, 8, 0
payload_pdpt:
    .quad payload_pd + 0x0007, payload_pd + 0x1007, payload_pd + 0x2007, payload_pd + 0x3007
    .fill 508, 8, 0
payload_pd:
    .set address, 0
    .rept 2048
    .quad address + 0x87        # large page, user, writable, present
    .set address, address + 0x200000
    .endr
payload_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 8: code, 64 bit
    .quad 0x00cf93000000ffff    # 16: data
payload_gdt_pointer:
    .word 23
    .quad payload_gdt
    .balign 16
payload_idt:
    .set stub, 0x100000
    .rept 256
    .word stub & 0xffff, 8, 0x8e00, stub >> 16
    .quad 0
    .set stub, stub + 16
    .endr
payload_idt_pointer:
    .word 4095
    .quad payload_idt
    .previous
    .bss
    .balign 16
    .skip 16384
payload_stack_top:
    .previous
)");

// The stubs: 16 bytes each, exceptions first. An exception leaves vector and error code on the stack, an
// interrupt its vector.
asm(R"(
    .section .stubs, "ax"
    .globl payload_stubs
payload_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp payload_exception
    .set vector, vector + 1
    .endr
    .rept 224
    .balign 16
    pushq $vector
    jmp payload_interrupt
    .set vector, vector + 1
    .endr
    .previous
)");

// An interrupt is counted and, after its handler if there is one, acknowledged at the local APIC. The short way
// has ten instructions.
asm(R"(
    .text
payload_interrupt:
    pushq %rax
    movq 8(%rsp), %rax
    incq payload_interrupt_counts(,%rax,8)
    cmpq $0, payload_interrupt_handlers(,%rax,8)
    jne 2f
1:  movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    addq $8, %rsp
    iretq
2:  pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    subq $8, %rsp
    cld
    call *payload_interrupt_handlers(,%rax,8)
    addq $8, %rsp
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    jmp 1b

payload_exception:
    cmpq $2, (%rsp)
    jne 3f
    incq payload_interrupt_counts + 16
    addq $16, %rsp
    iretq
3:  movq %rsp, %rdi
    andq $-16, %rsp
    cld
    call payload_fault
)");

"""Whether KVM really runs a guest: one tiny 64-bit machine, made with nothing but ioctl.

That /dev/kvm opens proves nothing: under some clouds' hypervisors guests hang or fault as soon as
they do what kernels do. The guest here does some of that in ring 0 with paging on: reload CR3,
write and read an MSR, take an exception through its own IDT, CPUID, write to a port; then it halts.
Run as a child process under a time limit (python -m alcove.cli.checks.kvm_probe); prints "ok" or
why not. A pass is necessary, not sufficient: the microvm driver boots its own kernel to be sure.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_CPUID2 = 0x4008AE90
_API_VERSION = 12
_CPUID_ENTRIES, _CPUID_ENTRY_BYTES = 256, 40

_EXIT_IO, _EXIT_HLT = 2, 5
_EXIT_NAMES = {
    1: "an unhandled exception",
    6: "MMIO",
    8: "a triple fault",
    9: "a refused entry",
    17: "an internal error",
}
_EXITS_MAX = 100

_MEMORY_BYTES = 2 << 20
_CODE, _HANDLER, _PML4, _PDPT, _PD = 0x1000, 0x1800, 0x2000, 0x3000, 0x4000
_GDT, _IDT, _STACK = 0x5000, 0x6000, 0x9000
_SELECTOR_CODE, _SELECTOR_DATA = 8, 16
_PRESENT_WRITABLE, _HUGE = 3, 0x80
_BREAKPOINT = 3

_PROGRAM = bytes.fromhex(
    "0f20d8"  # mov rax, cr3
    "0f22d8"  # mov cr3, rax
    "b9820000c0"  # mov ecx, LSTAR
    "b800100000"  # mov eax, 0x1000
    "31d2"  # xor edx, edx
    "0f30"  # wrmsr
    "31c0"  # xor eax, eax
    "0f32"  # rdmsr
    "3d00100000"  # cmp eax, 0x1000
    "7514"  # jne end
    "cc"  # int3
    "4183f85a"  # cmp r8d, 0x5a
    "750d"  # jne end
    "31c0"  # xor eax, eax
    "0fa2"  # cpuid
    "b06b"  # mov al, 'k'
    "66baf803"  # mov dx, 0x3f8
    "ee"  # out dx, al
    "9090"  # nop, nop
    "f4"  # end: hlt
)
_HANDLER_PROGRAM = bytes.fromhex(
    "41b85a000000"  # mov r8d, 0x5a
    "48cf"  # iretq
)
_SIGN_OF_LIFE = b"k"


class ProbeError(Exception):
    """The probe guest did not get to its end."""


def run_probe() -> None:
    """Make and run the guest. Raises ProbeError or OSError; may hang, so run it in a child."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, _GET_API_VERSION) != _API_VERSION:
        raise ProbeError("an unknown version of the KVM API")
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    _fill(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    _offer_cpuid(kvm, vcpu)
    _enter_long_mode(vcpu)
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE))
    written = _run(vcpu, shared)
    if written != _SIGN_OF_LIFE:
        raise ProbeError("the guest lost its way: an exception or an MSR did not work")


def _run(vcpu: int, shared: mmap.mmap) -> bytes:
    """What the guest writes to its port until it halts."""
    written = b""
    for _ in range(_EXITS_MAX):
        fcntl.ioctl(vcpu, _RUN, 0)
        (reason,) = struct.unpack_from("=I", shared, 8)
        if reason == _EXIT_HLT:
            return written
        if reason != _EXIT_IO:
            raise ProbeError(f"the guest ended in {_EXIT_NAMES.get(reason, f'exit {reason}')}")
        (offset,) = struct.unpack_from("=Q", shared, 40)
        written += shared[offset : offset + 1]
    raise ProbeError("the guest does not come to its end")


def _fill(memory: mmap.mmap) -> None:
    """Identity-mapped page tables, segments, one exception handler and the program."""
    struct.pack_into("=Q", memory, _PML4, _PDPT | _PRESENT_WRITABLE)
    struct.pack_into("=Q", memory, _PDPT, _PD | _PRESENT_WRITABLE)
    struct.pack_into("=Q", memory, _PD, _HUGE | _PRESENT_WRITABLE)
    struct.pack_into("=QQQ", memory, _GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    gate = struct.pack("=HHBBHII", _HANDLER, _SELECTOR_CODE, 0, 0x8E, 0, 0, 0)
    offset = _IDT + _BREAKPOINT * len(gate)
    memory[offset : offset + len(gate)] = gate
    memory[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
    memory[_HANDLER : _HANDLER + len(_HANDLER_PROGRAM)] = _HANDLER_PROGRAM


def _offer_cpuid(kvm: int, vcpu: int) -> None:
    """Give the guest the processor KVM supports; without it 64-bit mode is refused."""
    table = bytearray(8 + _CPUID_ENTRIES * _CPUID_ENTRY_BYTES)
    struct.pack_into("=I", table, 0, _CPUID_ENTRIES)
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, table)
    fcntl.ioctl(vcpu, _SET_CPUID2, table)


def _enter_long_mode(vcpu: int) -> None:
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, _GET_SREGS, sregs)
    code = struct.pack(
        "=QIHBBBBBBBBBB", 0, 0xFFFFFFFF, _SELECTOR_CODE, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0
    )
    data = struct.pack(
        "=QIHBBBBBBBBBB", 0, 0xFFFFFFFF, _SELECTOR_DATA, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0
    )
    sregs[: 6 * 24] = code + 5 * data
    struct.pack_into("=QH6xQH6x", sregs, 8 * 24, _GDT, 23, _IDT, 16 * (_BREAKPOINT + 1) - 1)
    protected_paging, physical_extension, long_mode_active = 0x80050033, 0x20, 0x500
    control = 8 * 24 + 2 * 16
    struct.pack_into("=QQQQ", sregs, control, protected_paging, 0, _PML4, physical_extension)
    struct.pack_into("=Q", sregs, control + 40, long_mode_active)
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(sregs))
    registers = [0] * 18
    registers[6], registers[16], registers[17] = _STACK, _CODE, 2  # rsp, rip, rflags
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("=18Q", *registers))


if __name__ == "__main__":
    try:
        run_probe()
    except (ProbeError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(1)
    sys.stdout.write("ok\n")

//! The few instructions of eBPF that the agent's programs are made of, and the two
//! system calls that put them to work (linux/bpf.h).

use std::{
    ffi::c_uint,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// A register; R1 holds the context at the start, R0 the verdict at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    /// Kept across calls, unlike those before.
    R6,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: u32,
}

// Class, size or source, and operation of an instruction.
const LDX_MEM_W: u8 = 0x61;
const STX_MEM_W: u8 = 0x63;
const LD_IMM_DW: u8 = 0x18;
const ALU64_MOV_X: u8 = 0xbf;
const JMP_JNE_X: u8 = 0x5d;
const CALL: u8 = 0x85;
const ALU_MOV_X: u8 = 0xbc;
const ALU_MOV_K: u8 = 0xb4;
const ALU_AND_K: u8 = 0x54;
const ALU_RSH_K: u8 = 0x74;
const JMP32_JNE_K: u8 = 0x56;
const JMP32_JSET_K: u8 = 0x46;
const JMP_A: u8 = 0x05;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, to: Register, from: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: to as u8 | (from << 4),
        offset,
        immediate,
    }
}

/// `to = *(u32 *)(from + offset)`
pub const fn load_word(to: Register, from: Register, offset: i16) -> Instruction {
    instruction(LDX_MEM_W, to, from as u8, offset, 0)
}

/// `to = from`, 32 bits.
pub const fn move_register(to: Register, from: Register) -> Instruction {
    instruction(ALU_MOV_X, to, from as u8, 0, 0)
}

/// `to = value`
pub const fn set(to: Register, value: u32) -> Instruction {
    instruction(ALU_MOV_K, to, 0, 0, value)
}

/// `to &= mask`, 32 bits.
pub const fn and(to: Register, mask: u32) -> Instruction {
    instruction(ALU_AND_K, to, 0, 0, mask)
}

/// `to >>= bits`, 32 bits.
pub const fn shift_right(to: Register, bits: u32) -> Instruction {
    instruction(ALU_RSH_K, to, 0, 0, bits)
}

/// Skips `count` instructions unless `register == value`.
pub fn jump_unless_equal(register: Register, value: u32, count: usize) -> Instruction {
    instruction(JMP32_JNE_K, register, 0, distance(count), value)
}

/// Skips `count` instructions unless `register & mask` is not 0. The machine has
/// only the opposite test, which here skips the jump that follows it.
pub fn jump_unless_any_bit(register: Register, mask: u32, count: usize) -> [Instruction; 2] {
    [instruction(JMP32_JSET_K, register, 0, 1, mask), jump(count)]
}

/// `*(u32 *)(to + offset) = from`
pub const fn store_word(to: Register, offset: i16, from: Register) -> Instruction {
    instruction(STX_MEM_W, to, from as u8, offset, 0)
}

/// `to = from`, 64 bits.
pub const fn copy(to: Register, from: Register) -> Instruction {
    instruction(ALU64_MOV_X, to, from as u8, 0, 0)
}

/// `to = value`, 64 bits. One instruction in two places.
pub const fn set_long(to: Register, value: u64) -> [Instruction; 2] {
    // Its halves.
    #[allow(clippy::cast_possible_truncation)]
    let (low, high) = (value as u32, (value >> 32) as u32);
    [
        instruction(LD_IMM_DW, to, 0, 0, low),
        instruction(0, Register::R0, 0, 0, high),
    ]
}

/// `R0 = helper(R1, …)`; R1 to R5 are lost.
pub const fn call(helper: u32) -> Instruction {
    instruction(CALL, Register::R0, 0, 0, helper)
}

/// Skips `count` instructions unless the registers are equal in all 64 bits.
pub fn jump_unless_same(register: Register, other: Register, count: usize) -> Instruction {
    instruction(JMP_JNE_X, register, other as u8, distance(count), 0)
}

/// Skips `count` instructions.
pub fn jump(count: usize) -> Instruction {
    instruction(JMP_A, Register::R0, 0, distance(count), 0)
}

/// Ends the program; R0 is the verdict.
pub const fn exit() -> Instruction {
    instruction(EXIT, Register::R0, 0, 0, 0)
}

/// Jumps are as long as a rule, a handful of instructions.
fn distance(count: usize) -> i16 {
    i16::try_from(count).unwrap_or(i16::MAX)
}

const BPF_PROG_LOAD: c_uint = 5;
const BPF_PROG_ATTACH: c_uint = 8;
/// Groups that the container makes below may have further programs.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// What a program is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `BPF_PROG_TYPE_*`
    pub program: u32,
    /// `BPF_CGROUP_*`
    pub attach: u32,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; what follows may be left out.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

/// For `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program and attaches it to a control group, whose it is from then on.
/// Of its name the first 15 bytes count.
pub fn attach(
    kind: Kind,
    name: &str,
    program: &[Instruction],
    group: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut padded = [0; 16];
    padded
        .iter_mut()
        .zip(name.bytes().take(15))
        .for_each(|(to, from)| *to = from);
    let license = c"Apache-2.0";
    let load = Load {
        kind: kind.program,
        instruction_count: u32::try_from(program.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: padded,
        interface: 0,
        attach_kind: kind.attach,
    };
    // SAFETY: the structure has the layout of its command and points to instructions and
    // a string that outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &load) }?;
    // SAFETY: the kernel just made this descriptor for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target: group.as_raw_fd().unsigned_abs(),
        program: loaded.as_raw_fd().unsigned_abs(),
        kind: kind.attach,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure has the layout of its command and holds no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }.map(drop)
}

/// # Safety
/// `attributes` must be the structure of `command`, its pointers valid.
unsafe fn bpf<T>(command: c_uint, attributes: &T) -> io::Result<i32> {
    // SAFETY: the size is the structure's; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a program as the kernel does, on the words of its context; its calls return `answer`.
#[cfg(test)]
pub fn interpret(program: &[Instruction], context: &mut [u32], answer: u64) -> u32 {
    let mut registers = [0_u64; 7];
    let mut at = 0_usize;
    let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
    loop {
        let instruction = program[at];
        let to = usize::from(instruction.registers & 0xf);
        let from = usize::from(instruction.registers >> 4);
        let skip = usize::try_from(instruction.offset).unwrap();
        let immediate = instruction.immediate;
        let value = low(registers[to]);
        at += 1;
        match instruction.code {
            LDX_MEM_W => registers[to] = context[skip / 4].into(),
            STX_MEM_W => context[skip / 4] = low(registers[from]),
            LD_IMM_DW => {
                registers[to] = u64::from(immediate) | u64::from(program[at].immediate) << 32;
                at += 1;
            }
            ALU64_MOV_X => registers[to] = registers[from],
            ALU_MOV_X => registers[to] = low(registers[from]).into(),
            ALU_MOV_K => registers[to] = immediate.into(),
            ALU_AND_K => registers[to] = (value & immediate).into(),
            ALU_RSH_K => registers[to] = (value >> immediate).into(),
            CALL => registers[0] = answer,
            JMP_JNE_X if registers[to] != registers[from] => at += skip,
            JMP32_JNE_K if value != immediate => at += skip,
            JMP32_JSET_K if value & immediate != 0 => at += skip,
            JMP_A => at += skip,
            JMP_JNE_X | JMP32_JNE_K | JMP32_JSET_K => {}
            EXIT => return low(registers[0]),
            code => panic!("no such instruction: {code:#x}"),
        }
    }
}

//! The few instructions of classic BPF that a seccomp filter is made of
//! (linux/filter.h, linux/bpf_common.h).

pub use libc::sock_filter as Instruction;

const LOAD_WORD: u16 = 0x20;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// A condition on the accumulator.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// It is the value.
    Equal(u32),
    /// It is more, unsigned.
    Greater(u32),
    /// It is not less, unsigned.
    GreaterOrEqual(u32),
}

/// Loads the 32-bit word at `offset` of `struct seccomp_data`.
pub const fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD_WORD,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

/// Takes the bits of `mask`.
pub const fn and(mask: u32) -> Instruction {
    Instruction {
        code: AND,
        jt: 0,
        jf: 0,
        k: mask,
    }
}

/// Skips `count` instructions.
pub const fn skip(count: u32) -> Instruction {
    Instruction {
        code: JUMP_ALWAYS,
        jt: 0,
        jf: 0,
        k: count,
    }
}

/// Skips `then` instructions if the test holds, `otherwise` if it does not.
pub const fn test(test: Test, then: u8, otherwise: u8) -> Instruction {
    let (code, k) = match test {
        Test::Equal(value) => (JUMP_EQUAL, value),
        Test::Greater(value) => (JUMP_GREATER, value),
        Test::GreaterOrEqual(value) => (JUMP_GREATER_EQUAL, value),
    };
    Instruction {
        code,
        jt: then,
        jf: otherwise,
        k,
    }
}

/// Ends the filter with its verdict.
pub const fn verdict(value: u32) -> Instruction {
    Instruction {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: value,
    }
}

/// Runs a filter as the kernel does, on the words of a `struct seccomp_data`.
#[cfg(test)]
pub fn interpret(program: &[Instruction], data: &[u32; 16]) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let holds = match code {
            LOAD_WORD => {
                accumulator = data[usize::try_from(k / 4).unwrap()];
                continue;
            }
            AND => {
                accumulator &= k;
                continue;
            }
            JUMP_ALWAYS => {
                at += usize::try_from(k).unwrap();
                continue;
            }
            RETURN => return k,
            JUMP_EQUAL => accumulator == k,
            JUMP_GREATER => accumulator > k,
            JUMP_GREATER_EQUAL => accumulator >= k,
            0x45 => accumulator & k != 0,
            code => panic!("no such instruction: {code:#x}"),
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

//! What a firmware takes, and what compiled it, read from its ELF file.

/// Bytes of a firmware by its sections. The stack is in no section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// What is loaded: code, constants, and what variables begin with.
    pub flash_bytes: usize,
    /// Variables.
    pub ram_bytes: usize,
    /// RAM that nobody initializes (`.uninit`): buffers.
    pub uninit_bytes: usize,
}

impl Sizes {
    /// Of a 32-bit little-endian ELF file; `None` for anything else.
    pub fn of(elf: &[u8]) -> Option<Self> {
        const NOBITS: usize = 8;
        const WRITE: usize = 1;
        const ALLOC: usize = 2;
        let u16_at = |at: usize| {
            Some(usize::from(u16::from_le_bytes(
                elf.get(at..at.checked_add(2)?)?.try_into().ok()?,
            )))
        };
        let u32_at = |at: usize| usize::try_from(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?)).ok();
        if elf.get(..6)? != b"\x7fELF\x01\x01" {
            return None;
        }
        let (table, entry_bytes, count, names) = (u32_at(32)?, u16_at(46)?, u16_at(48)?, u16_at(50)?);
        let section = |i: usize| table.checked_add(i * entry_bytes);
        let names = u32_at(section(names)?.checked_add(16)?)?;
        let mut sizes = Sizes {
            flash_bytes: 0,
            ram_bytes: 0,
            uninit_bytes: 0,
        };
        for i in 0..count {
            let at = section(i)?;
            let name = elf.get(names.checked_add(u32_at(at)?)?..)?;
            let (kind, flags, size) = (u32_at(at + 4)?, u32_at(at + 8)?, u32_at(at + 20)?);
            if flags & ALLOC == 0 {
                continue;
            }
            if name.starts_with(b".uninit\0") {
                sizes.uninit_bytes += size;
                continue;
            }
            sizes.flash_bytes += if kind == NOBITS { 0 } else { size };
            sizes.ram_bytes += if flags & WRITE == 0 { 0 } else { size };
        }
        Some(sizes)
    }
}

/// The compiler's name and version, which it leaves in what it compiles (`.comment`, `.debug_str`); empty where it did not.
pub fn compiler(elf: &[u8]) -> String {
    const MARK: &[u8] = b"rustc version ";
    let Some(at) = elf.windows(MARK.len()).position(|window| window == MARK) else {
        return String::new();
    };
    let version = &elf[at + MARK.len()..];
    let end = version
        .iter()
        .position(|&byte| byte == b')' || !(b' '..=b'~').contains(&byte));
    let version = &version[..end.map_or(version.len(), |end| end + usize::from(version[end] == b')'))];
    format!("rustc {}", String::from_utf8_lossy(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_damaged_files_are_none_and_no_panic() {
        assert_eq!(Sizes::of(b""), None);
        assert_eq!(Sizes::of(b"\x7fELF\x02\x01"), None);
        let mut elf = b"\x7fELF\x01\x01".to_vec();
        elf.resize(64, 0xff);
        for length in 0..elf.len() {
            assert_eq!(Sizes::of(&elf[..length]), None);
        }
        assert_eq!(Sizes::of(&elf), None);
    }

    #[test]
    fn the_compiler_is_found_in_what_it_compiled() {
        for (bytes, said) in [
            (
                &b"..clang LLVM (rustc version 1.95.0 (59807616e 2026-04-14))\0.."[..],
                "rustc 1.95.0 (59807616e 2026-04-14)",
            ),
            (b"rustc version 1.95.0-dev\0rustc version 2", "rustc 1.95.0-dev"),
            (b"rustc version 1.95.0", "rustc 1.95.0"),
            (b"GCC: 14.2", ""),
        ] {
            assert_eq!(compiler(bytes), said);
        }
    }
}

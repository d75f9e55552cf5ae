//! What a firmware takes, read from its ELF file.

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
}

//! Convolutions and fully connected layers: every width, any window.
//!
//! The multiplier is `VMLADAVA.S8`: sixteen products and their sum onto a core register, which must be an even one. There are
//! eight of these, so that a tile is two rows of weights by four pixels, with all sums in registers. The pixels' windows
//! are laid out as four columns of bytes, `k` padded with zeros to a multiple of 32 (a 1x1 window may be a column as it
//! lies), and meet all rows before the next four pixels do.
//!
//! Weights narrower than a byte are masked out of the packed words, never shifted where a mask will do: a code that stands
//! `n` bits up in its byte is one multiplied by `2^n`, and the whole sum is divided by that, once. W8 and W4 take their two
//! rows apart by loading every other word or byte; W2 and W1 take rows 0 and 2 of a block in one pass and rows 1 and 3 in
//! another, and rotate the words of the second by one or two bytes. Codes stored with an offset (W4 by 8, W2 and W1 by 1) are
//! corrected by the sum of the column.
//!
//! # Bounds
//! Sums are of values from 0 to 15 (W4), -64 to 64 (W2) or 0 to 64 (W1) with int8: for `k < 2^17` all fit 32 bits. The sums of
//! W8 and W4 begin at the bias; these may wrap on the way, and are exact in the end.

use core::arch::asm;
use core::ops::Range;
use core::ptr;

use adcorda_formats::Width;

use super::fill;
use crate::isa::inside;
use crate::isa::path::{self, Isa, Path};
use crate::kernels::{Convolution, Epilogue, Span};

/// Pixels in a tile.
const PIXELS: usize = 4;

/// What a kernel is given; the assembly below copies it to the stack and knows each place.
#[repr(C)]
struct Tiles {
    /// The pixels' columns. Word-aligned.
    columns: [*const u8; PIXELS],
    /// The layer's packed weights. Word-aligned.
    weights: *const u8,
    /// Iterations of the inner loop for a row, in the form that the kernel wants.
    steps: usize,
    /// `[rows]`. Word-aligned.
    bias: *const [u8; 4],
    /// `[rows]`. Word-aligned.
    multiplier: *const [u8; 4],
    /// Channel 0 of pixel 0. Word-aligned.
    out: *mut u8,
    /// Zero point that the multiplied sums get.
    zero_point: i32,
    /// `out` plus the number of rows.
    out_end: *mut u8,
    /// The rest.
    pixels: *const Pixels,
}

/// What is the same for all rows.
#[repr(C)]
struct Pixels {
    /// From `Tiles::out` to the pixels.
    offsets: [u32; PIXELS],
    /// What the sums get, that of the columns among it.
    corrections: [i32; PIXELS],
    /// Bytes by which the inner loop goes too far.
    overshoot: usize,
    /// Null where there is none.
    residual: *const Residual,
}

/// `(v * mul_v + r * mul_r + constant) >> shift`, which includes all zero points and the rounding.
#[repr(C)]
struct Residual {
    mul_v: i32,
    mul_r: i32,
    constant: i32,
    minus_shift: i32,
}

#[inline(never)]
pub(in crate::isa) fn conv2d(layer: &Convolution<'_>, x: &[u8], y: &mut [u8], scratch: &mut [u8]) -> bool {
    let packing = &layer.weights.packing;
    let (rows, k) = (packing.rows, packing.k);
    let bias = layer.weights.bias.words();
    let Epilogue::Codes { rules, residual } = &layer.epilogue else {
        return false;
    };
    let multiplier = rules.multiplier.words();
    let pointers = [
        x.as_ptr().addr(),
        y.as_ptr().addr(),
        scratch.as_ptr().addr(),
        layer.weights.packed.as_ptr().addr(),
        bias.as_ptr().addr(),
        multiplier.as_ptr().addr(),
    ];
    let pixels = layer.y.height * layer.y.width;
    if path::blocked(Isa::Mve, layer, scratch.len()) != Path::Blocked
        || pointers.iter().any(|address| !address.is_multiple_of(4))
        || bias.len() != rows
        || multiplier.len() != rows
        || y.len() != pixels * rows
        || x.len() != layer.x.height * layer.x.width * layer.x.channels
    {
        return false;
    }

    let residual = residual.map(|add| {
        let (mul_v, mul_r) = (i32::from(add.mul_a), i32::from(add.mul_b));
        let zero_points = i32::from(add.zero_point_a) * mul_v + i32::from(add.zero_point_b) * mul_r;
        Residual {
            mul_v,
            mul_r,
            constant: (1 << (add.shift - 1)) + (i32::from(add.zero_point) << add.shift) - zero_points,
            minus_shift: -i32::from(add.shift),
        }
    });
    let (kernel, codes, correction): (Kernel, usize, i32) = match packing.width {
        Width::W8 => (tiles_w8, 16, 0),
        Width::W4 if cfg!(feature = "w4") => (tiles_w4, 32, -8),
        Width::W2 if cfg!(feature = "w2") => (tiles_w2, 16, -1),
        Width::W1 if cfg!(feature = "w1") => (tiles_w1, 32, -1),
        Width::W4 | Width::W2 | Width::W1 => return false,
    };
    let column_bytes = path::mve_column_bytes(layer);
    let steps = k.div_ceil(codes);
    let in_place = layer.window.positions() == 1 && k.is_multiple_of(32);
    if !in_place {
        for column in scratch.chunks_exact_mut(column_bytes).take(PIXELS) {
            column[k..].fill(0);
        }
    }
    let mut windows = Windows::new(layer);
    let mut group = Pixels {
        offsets: [0, rows as u32, 2 * rows as u32, 3 * rows as u32],
        corrections: [0; PIXELS],
        overshoot: (steps * codes - packing.padded_k()) * packing.block_rows() * packing.width.bits() as usize / 8,
        residual: residual.as_ref().map_or(ptr::null(), ptr::from_ref),
    };
    let mut columns: [*const u8; PIXELS] = core::array::from_fn(|pixel| scratch.as_ptr().wrapping_add(pixel * column_bytes));
    let mut tiles = Tiles {
        columns,
        weights: layer.weights.packed.as_ptr(),
        steps: steps + 1,
        bias: bias.as_ptr(),
        multiplier: multiplier.as_ptr(),
        out: ptr::null_mut(),
        zero_point: rules.zero_point.into(),
        out_end: ptr::null_mut(),
        pixels: ptr::null(),
    };
    for out in y.chunks_mut(PIXELS * rows) {
        let pixels = out.len() / rows;
        let mut pixel = 0;
        while pixel < pixels {
            let sums = &mut group.corrections[pixel..pixels];
            let count = if in_place {
                windows.point(x).map(|point| {
                    columns[pixel] = point.as_ptr();
                    sums[0] = if correction == 0 { 0 } else { sum(point) };
                    windows.skip(1);
                    1
                })
            } else {
                scratch
                    .get_mut(pixel * column_bytes..)
                    .and_then(|columns| windows.fill(x, columns, column_bytes, sums))
            };
            pixel += count.unwrap_or(1);
        }
        for sum in &mut group.corrections {
            *sum *= correction;
        }
        // After the last pixel the same once more: equal bytes in the same place.
        for pixel in pixels..PIXELS {
            columns[pixel] = columns[pixel - 1];
            group.offsets[pixel] = group.offsets[pixel - 1];
            group.corrections[pixel] = group.corrections[pixel - 1];
        }
        tiles.columns = columns;
        tiles.out = out.as_mut_ptr();
        tiles.out_end = tiles.out.wrapping_add(rows);
        tiles.pixels = &group;
        // SAFETY: the instructions exist on this target, which build.rs has seen. All pointers are word-aligned, checked above,
        // as are the columns, whose length is a multiple of 32 and of the input's channels where they lie in the input. Each
        // column has `steps * codes` bytes. Of the weights, `rows / block_rows` blocks and `overshoot` bytes are read, which are
        // there: `path` looks. `rows` is a multiple of the kernel's rows, so that the ends of the biases, the multipliers and of
        // each pixel's output are reached exactly.
        unsafe { kernel(&tiles) };
    }
    true
}

/// The windows of a layer, one pixel of the output after the other. Distances are in bytes.
struct Windows<'l, 'm> {
    layer: &'l Convolution<'m>,
    /// From an input row to the next.
    x_row: usize,
    /// From a row of a column to the next.
    column_row: usize,
    /// From a window to its neighbour.
    step: usize,
    /// Pixels whose windows reach over neither side.
    inside: Range<usize>,
    ox: usize,
    oy: usize,
    /// The input rows under this window.
    rows: Span,
    /// Its first tap in the input, as long as it is `inside`.
    start: usize,
}

impl<'l, 'm> Windows<'l, 'm> {
    fn new(layer: &'l Convolution<'m>) -> Self {
        let (window, channels) = (&layer.window, layer.x.channels);
        let mut windows = Windows {
            layer,
            x_row: layer.x.width * channels,
            column_row: usize::from(window.kernel_width) * channels,
            step: usize::from(window.stride_width) * channels,
            inside: inside(layer),
            ox: 0,
            oy: 0,
            rows: Span::new(0, 1, 0, 0, 0),
            start: 0,
        };
        windows.begin_row();
        windows
    }

    fn begin_row(&mut self) {
        let (layer, window) = (self.layer, &self.layer.window);
        self.ox = 0;
        self.rows = Span::new(
            self.oy,
            window.stride_height,
            window.pad_top,
            window.kernel_height,
            layer.x.height,
        );
        let before = usize::from(window.pad_left) * layer.x.channels;
        self.start = (self.rows.start * self.x_row).wrapping_sub(before);
    }

    /// Goes on by so many pixels, at most to the next row.
    fn skip(&mut self, count: usize) {
        self.ox += count;
        self.start = self.start.wrapping_add(count * self.step);
        if self.ox == self.layer.y.width {
            self.oy += 1;
            self.begin_row();
        }
    }

    /// Copies this window and as many of the next as lie in a row inside of the input, at most one for each of `columns`; one that
    /// reaches over the border is copied alone, with the input's zero point around it. Writes the sums of the codes; returns
    /// how many windows they are. `None` never happens.
    #[inline(never)]
    fn fill(&mut self, x: &[u8], columns: &mut [u8], column_bytes: usize, sums: &mut [i32]) -> Option<usize> {
        let k = self.layer.weights.packing.k;
        let Span { tap, len: rows, .. } = self.rows;
        let (mut start, mut to, mut inside) = (self.start, tap * self.column_row, self.column_row);
        let mut count = sums.len().min(self.inside.end.saturating_sub(self.ox));
        if self.ox < self.inside.start || count == 0 || inside * rows < k {
            count = 1;
            if !self.inside.contains(&self.ox) {
                let (shape, window) = (self.layer.x, &self.layer.window);
                let columns = Span::new(
                    self.ox,
                    window.stride_width,
                    window.pad_left,
                    window.kernel_width,
                    shape.width,
                );
                start = (self.rows.start * shape.width + columns.start) * shape.channels;
                to += columns.tap * shape.channels;
                inside = columns.len * shape.channels;
            }
            fill(columns.get_mut(..k)?, self.layer.x_zero_point);
        }
        if inside * rows > 0 {
            let from = x.get(start..start + (count - 1) * self.step + (rows - 1) * self.x_row + inside)?;
            let to = columns.get_mut(to..to + (count - 1) * column_bytes + (rows - 1) * self.column_row + inside)?;
            let strides = [self.step, self.x_row, column_bytes, self.column_row];
            copy(from, to, strides, [rows, inside], sums.get_mut(..count)?);
        } else {
            *sums.first_mut()? = 0;
        }
        let outside = k - inside * rows;
        if outside > 0 {
            *sums.first_mut()? += i32::from(self.layer.x_zero_point) * outside as i32;
        }
        self.skip(count);
        Some(count)
    }

    /// The window, where it is one row without padding.
    fn point<'x>(&self, x: &'x [u8]) -> Option<&'x [u8]> {
        x.get(self.start..self.start + self.column_row)
    }
}

/// Copies windows of `rows` rows of `n` bytes, neither of them 0, as many as there are `sums`: there go the sums of their codes.
/// The strides are bytes from a window and from a row to the next in `from`, and the same in `to`.
#[inline]
fn copy(from: &[u8], to: &mut [u8], strides: [usize; 4], [rows, n]: [usize; 2], sums: &mut [i32]) {
    let [from_window, from_row, to_window, to_row] = strides;
    debug_assert!(n > 0 && rows > 0 && !sums.is_empty());
    debug_assert!(from.len() == (sums.len() - 1) * from_window + (rows - 1) * from_row + n);
    debug_assert!(to.len() == (sums.len() - 1) * to_window + (rows - 1) * to_row + n);
    let read = n.next_multiple_of(16);
    let windows = [
        rows,
        from_window.wrapping_sub(rows * from_row),
        to_window.wrapping_sub(rows * to_row),
    ];
    // SAFETY: both slices hold the windows and their rows, that and nothing more. Of each row, exactly `n` bytes are read and
    // written: the last vector is cut off by predication. A sum is written for each window.
    unsafe {
        asm!(
            "2:",
            "ldr {rows}, [{windows}]",
            "movs r0, #0",
            "3:",
            "wlstp.8 lr, {n}, 5f",
            "4:",
            "vldrb.u8 q0, [{from}], #16",
            "vaddva.s8 r0, q0",
            "vstrb.8 q0, [{to}], #16",
            "letp lr, 4b",
            "5:",
            "add {from}, {from}, {from_gap}",
            "add {to}, {to}, {to_gap}",
            "subs {rows}, {rows}, #1",
            "bne 3b",
            "str r0, [{sums}], #4",
            "ldrd {rows}, r0, [{windows}, #4]",
            "add {from}, {from}, {rows}",
            "add {to}, {to}, r0",
            "subs {count}, {count}, #1",
            "bne 2b",
            n = in(reg) n,
            windows = in(reg) windows.as_ptr(),
            rows = out(reg) _,
            from = inout(reg) from.as_ptr() => _,
            from_gap = in(reg) from_row.wrapping_sub(read),
            to = inout(reg) to.as_mut_ptr() => _,
            to_gap = in(reg) to_row.wrapping_sub(read),
            count = inout(reg) sums.len() => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            out("r0") _, out("lr") _, out("d0") _, out("d1") _,
            options(nostack),
        );
    }
}

/// The sum of codes, at least one.
#[inline]
fn sum(codes: &[u8]) -> i32 {
    debug_assert!(!codes.is_empty());
    let mut sum = 0;
    // SAFETY: the loop reads exactly as many bytes as the slice has; the last vector is cut off by predication.
    unsafe {
        asm!(
            "wlstp.8 lr, {n}, 3f",
            "2:",
            "vldrb.u8 q0, [{codes}], #16",
            "vaddva.s8 r0, q0",
            "letp lr, 2b",
            "3:",
            n = in(reg) codes.len(),
            codes = inout(reg) codes.as_ptr() => _,
            inout("r0") sum,
            out("lr") _, out("d0") _, out("d1") _,
            options(nostack, readonly),
        );
    }
    sum
}

/// Computes four pixels of all rows.
///
/// Sums of the first row are in r0, r2, r4, r6 for one pixel each, those of the second in r8, r10, r12, r14. In the inner loop
/// r1, r3, r5, r7 point into the columns, r9 into the weights, r11 counts. The arguments are at the stack pointer.
///
/// # Safety
/// See [`Tiles`]; columns and weights are read as far as `steps` goes.
type Kernel = unsafe fn(&Tiles);

/// A kernel: saves what the compiler does not save (r6 and r7 are its own) and copies the arguments; then comes the loop over the
/// tiles.
macro_rules! kernel {
    ($tiles:ident, $($part:expr),+ $(,)?) => {
        // SAFETY: by the contract of [`Kernel`]. The stack pointer is as before in the end.
        unsafe {
            asm!(
                "
                push    {{r6, r7}}
                ldm     r0, {{r1-r12}}
                push    {{r1-r12}}
                ",
                $($part,)+
                "
                add     sp, sp, #48
                pop     {{r6, r7}}
                ",
                inout("r0") ptr::from_ref($tiles) => _,
                out("r1") _, out("r2") _, out("r3") _, out("r4") _, out("r5") _, out("r8") _, out("r9") _, out("r10") _,
                out("r11") _, out("r12") _, out("lr") _,
                out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
                out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _, out("d15") _,
            )
        }
    };
}

/// Sums begin at 0.
macro_rules! zero {
    () => {
        "
        movs    r0, #0
        movs    r2, #0
        movs    r4, #0
        movs    r6, #0
        mov     r8, r0
        mov     r10, r0
        mov     r12, r0
        mov     lr, r0
        "
    };
}

/// Sums begin at the biases of the next two rows.
macro_rules! two_biases {
    () => {
        "
        ldr     r2, [sp, #24]
        ldrd    r0, r8, [r2], #8
        str     r2, [sp, #24]
        mov     r2, r0
        mov     r4, r0
        mov     r6, r0
        mov     r10, r8
        mov     r12, r8
        mov     lr, r8
        "
    };
}

/// The inner loop: `steps` times the step. `Tiles::steps` is one more than that: halved, an odd number begins in the middle.
macro_rules! steps {
    ($($step:expr),+) => {
        concat!(
            "
            ldm     sp, {{r1, r3, r5, r7, r9, r11}}
            lsrs    r11, r11, #1
            bcc     3f
            2:
            ",
            $($step,)+
            "3:\n",
            $($step,)+
            "
            subs    r11, r11, #1
            bne     2b
            "
        )
    };
}

/// One pixel's part of a step: sixteen codes times those of two rows.
macro_rules! sixteen {
    ($column:literal, $sum0:literal, $sum1:literal, $row0:literal, $row1:literal, $x:literal) => {
        concat!(
            "vldrw.u32   ",
            $x,
            ", [",
            $column,
            "], #16\n",
            "vmladava.s8 ",
            $sum0,
            ", ",
            $row0,
            ", ",
            $x,
            "\n",
            "vmladava.s8 ",
            $sum1,
            ", ",
            $row1,
            ", ",
            $x,
            "\n",
        )
    };
}

/// The same for thirty-two: every other element, of so many bits, into q4, the rest into q5.
macro_rules! thirty_two {
    ($column:literal, $sum0:literal, $sum1:literal, $bits:literal, $row0:literal, $row1:literal) => {
        concat!(
            "vld20.",
            $bits,
            "    {{q4, q5}}, [",
            $column,
            "]\n",
            "vld21.",
            $bits,
            "    {{q4, q5}}, [",
            $column,
            "]!\n",
            "vmladava.s8 ",
            $sum0,
            ", ",
            $row0,
            ", q4\n",
            "vmladava.s8 ",
            $sum1,
            ", ",
            $row1,
            ", q4\n",
        )
    };
}

/// The second half of [`thirty_two`].
macro_rules! and_thirty_two {
    ($sum0:literal, $sum1:literal, $row0:literal, $row1:literal) => {
        concat!(
            "vmladava.s8 ",
            $sum0,
            ", ",
            $row0,
            ", q5\n",
            "vmladava.s8 ",
            $sum1,
            ", ",
            $row1,
            ", q5\n",
        )
    };
}

/// Four pixels, sixteen codes.
macro_rules! sixteen_by_four {
    ($row0:literal, $row1:literal, $x:literal) => {
        concat!(
            sixteen!("r1", "r0", "r8", $row0, $row1, $x),
            sixteen!("r3", "r2", "r10", $row0, $row1, "q4"),
            sixteen!("r5", "r4", "r12", $row0, $row1, $x),
            sixteen!("r7", "r6", "lr", $row0, $row1, "q4"),
        )
    };
}

/// Four pixels, thirty-two codes: rows in two registers each.
macro_rules! thirty_two_by_four {
    ($bits:literal, $row0:literal, $row1:literal, $rest0:literal, $rest1:literal) => {
        concat!(
            thirty_two!("r1", "r0", "r8", $bits, $row0, $row1),
            and_thirty_two!("r0", "r8", $rest0, $rest1),
            thirty_two!("r3", "r2", "r10", $bits, $row0, $row1),
            and_thirty_two!("r2", "r10", $rest0, $rest1),
            thirty_two!("r5", "r4", "r12", $bits, $row0, $row1),
            and_thirty_two!("r4", "r12", $rest0, $rest1),
            thirty_two!("r7", "r6", "lr", $bits, $row0, $row1),
            and_thirty_two!("r6", "lr", $rest0, $rest1),
        )
    };
}

/// The sums of one row to q0, those of the other to q1; r11 to [`Pixels`].
macro_rules! sums_to_vectors {
    () => {
        "
        vmov    q0[2], q0[0], r0, r4
        vmov    q0[3], q0[1], r2, r6
        vmov    q1[2], q1[0], r8, r12
        vmov    q1[3], q1[1], r10, lr
        ldr     r11, [sp, #44]
        "
    };
}

/// Adds to both rows what the sums of the columns ask for.
macro_rules! correct {
    () => {
        "
        vldrw.u32 q2, [r11, #16]
        vadd.i32 q0, q0, q2
        vadd.i32 q1, q1, q2
        "
    };
}

/// Adds the biases of two rows of four, the second two after the first.
macro_rules! biases_of_four {
    ($first:literal) => {
        concat!(
            "
            ldr     r1, [sp, #24]
            ldr     r3, [r1, #",
            $first,
            "]
            ldr     r5, [r1, #",
            $first,
            " + 8]
            vadd.i32 q0, q0, r3
            vadd.i32 q1, q1, r5
            "
        )
    };
}

/// The multipliers of the next two rows into r3 and r5.
macro_rules! two_multipliers {
    () => {
        "
        ldr     r1, [sp, #28]
        ldrd    r3, r5, [r1], #8
        str     r1, [sp, #28]
        "
    };
}

/// The multipliers of two rows of four, the second two after the first, into r3 and r5.
macro_rules! multipliers_of_four {
    ($first:literal) => {
        concat!(
            "
            ldr     r1, [sp, #28]
            ldr     r3, [r1, #",
            $first,
            "]
            ldr     r5, [r1, #",
            $first,
            " + 8]
            "
        )
    };
}

/// Both rows times r3 and r5, plus the zero point; r9 to the output.
macro_rules! multiply {
    () => {
        "
        vdup.32 q2, r3
        vdup.32 q3, r5
        vrmulh.s32 q0, q0, q2
        vrmulh.s32 q1, q1, q3
        ldrd    r9, r7, [sp, #32]
        vadd.i32 q0, q0, r7
        vadd.i32 q1, q1, r7
        "
    };
}

/// The residuals, if there are any: `row0` and `row1` are the places of the rows behind r9. Leaves q6 and q7 alone.
macro_rules! add_residual {
    ($row0:literal, $row1:literal) => {
        concat!(
            "
            ldr     r0, [r11, #36]
            cbz     r0, 4f
            ldm     r0, {{r1, r3, r5, r7}}
            vmov.i32 q2, #127
            vmvn.i32 q3, #127
            vmin.s32 q0, q0, q2
            vmin.s32 q1, q1, q2
            vmax.s32 q0, q0, q3
            vmax.s32 q1, q1, q3
            vldrw.u32 q2, [r11]
            add     r2, r9, #",
            $row0,
            "
            add     r4, r9, #",
            $row1,
            "
            vldrb.s32 q3, [r2, q2]
            vldrb.s32 q4, [r4, q2]
            vmul.i32 q0, q0, r1
            vmul.i32 q1, q1, r1
            vmla.s32 q0, q3, r3
            vmla.s32 q1, q4, r3
            vadd.i32 q0, q0, r5
            vadd.i32 q1, q1, r5
            vshl.s32 q0, r7
            vshl.s32 q1, r7
            4:
            "
        )
    };
}

/// Stores two neighbouring rows where q7 says, and goes on with the next tile if there is one.
macro_rules! store_two_rows {
    () => {
        "
        vqmovnb.s32 q0, q0
        vqmovnb.s32 q1, q1
        vqmovnb.s16 q0, q0
        vqmovnt.s16 q0, q1
        vstrh.32 q0, [r9, q7]
        add     r9, r9, #2
        str     r9, [sp, #32]
        ldr     r1, [sp, #40]
        cmp     r9, r1
        bne     1b
        "
    };
}

/// Takes back what the inner loop went too far, and keeps where the next weights are.
macro_rules! keep_weights {
    () => {
        "
        ldr     r1, [r11, #32]
        sub     r9, r9, r1
        str     r9, [sp, #16]
        "
    };
}

/// Two rows of W8: of 32 bytes, every other word is of the one and of the other.
unsafe fn tiles_w8(tiles: &Tiles) {
    kernel!(
        tiles,
        "vldrw.u32 q7, [r12]",
        "1:",
        two_biases!(),
        steps!(
            "vld20.32    {{q0, q1}}, [r9]\n",
            "vld21.32    {{q0, q1}}, [r9]!\n",
            sixteen_by_four!("q0", "q1", "q2")
        ),
        sums_to_vectors!(),
        "str r9, [sp, #16]",
        two_multipliers!(),
        multiply!(),
        add_residual!("0", "1"),
        store_two_rows!(),
    )
}

/// Two rows of W4: of 32 bytes, every other one is of the one and of the other, with an even code below and an odd one above.
unsafe fn tiles_w4(tiles: &Tiles) {
    kernel!(
        tiles,
        "vldrw.u32 q7, [r12]",
        "vmov.i8 q6, #0x0f",
        "1:",
        two_biases!(),
        steps!(
            "vld20.8     {{q0, q1}}, [r9]\n",
            "vld21.8     {{q0, q1}}, [r9]!\n",
            "vand        q2, q0, q6\n",
            "vand        q3, q1, q6\n",
            "vshr.u8     q0, q0, #4\n",
            "vshr.u8     q1, q1, #4\n",
            thirty_two_by_four!("8", "q2", "q3", "q0", "q1")
        ),
        sums_to_vectors!(),
        keep_weights!(),
        correct!(),
        two_multipliers!(),
        multiply!(),
        add_residual!("0", "1"),
        store_two_rows!(),
    )
}

/// Ends the first pass over four rows: keeps the codes of rows 0 and 2 in the even bytes of q7.
macro_rules! keep_rows {
    () => {
        "
        vqmovnb.s32 q0, q0
        vqmovnt.s32 q0, q1
        vqmovnb.s16 q7, q0
        "
    };
}

/// Ends the second pass over four rows: stores them, and goes on with the next tile if there is one.
macro_rules! store_four_rows {
    () => {
        "
        vqmovnb.s32 q0, q0
        vqmovnt.s32 q0, q1
        vqmovnt.s16 q7, q0
        vldrw.u32 q2, [r11]
        vstrw.32 q7, [r9, q2]
        ldrd    r1, r3, [sp, #24]
        add     r1, r1, #16
        add     r3, r3, #16
        strd    r1, r3, [sp, #24]
        add     r9, r9, #4
        str     r9, [sp, #32]
        ldr     r1, [sp, #40]
        cmp     r9, r1
        bne     1b
        "
    };
}

/// Four rows of W2. A byte holds, from below: a code of row 0, of row 3, of row 2, of row 1; those of row 1 belong one place
/// earlier in their word, those of row 3 two.
unsafe fn tiles_w2(tiles: &Tiles) {
    kernel!(
        tiles,
        "1:",
        zero!(),
        "vmov.i8 q6, #0x03",
        "vmov.i8 q7, #0x30",
        steps!(
            "vldrw.u32   q0, [r9], #16\n",
            "vand        q1, q0, q6\n",
            "vand        q0, q0, q7\n",
            sixteen_by_four!("q1", "q0", "q2")
        ),
        sums_to_vectors!(),
        "vshr.s32    q1, q1, #4",
        correct!(),
        biases_of_four!("0"),
        multipliers_of_four!("0"),
        multiply!(),
        add_residual!("0", "2"),
        keep_rows!(),
        zero!(),
        "vmov.i8     q6, #0xc0",
        steps!(
            "vldrw.u32   q0, [r9], #16\n",
            "vrev32.16   q1, q0\n",
            "vshr.u32    q2, q0, #8\n",
            "vsli.32     q2, q0, #24\n",
            "vshl.i8     q1, q1, #4\n",
            "vand        q0, q2, q6\n",
            "vand        q1, q1, q6\n",
            sixteen_by_four!("q0", "q1", "q2")
        ),
        sums_to_vectors!(),
        "str         r9, [sp, #16]",
        "vshr.s32    q0, q0, #6",
        "vshr.s32    q1, q1, #6",
        biases_of_four!("4"),
        multipliers_of_four!("4"),
        multiply!(),
        add_residual!("1", "3"),
        store_four_rows!(),
    )
}

/// Four rows of W1. A byte holds eight bits, from below: rows 0 and 2 with the first four codes of a word, rows 1 and 3 with the
/// last four, rows 0 and 2 with the last four, rows 1 and 3 with the first four. The first four of rows 1 and 3 belong one place
/// earlier in their word, the last four two.
unsafe fn tiles_w1(tiles: &Tiles) {
    kernel!(
        tiles,
        "1:",
        zero!(),
        "vmov.i8 q6, #0x01",
        "vmov.i8 q7, #0x02",
        steps!(
            "vldrw.u32   q0, [r9], #16\n",
            "vshr.u8     q1, q0, #4\n",
            "vand        q2, q0, q6\n",
            "vand        q3, q1, q6\n",
            "vand        q0, q0, q7\n",
            "vand        q1, q1, q7\n",
            thirty_two_by_four!("32", "q2", "q0", "q3", "q1")
        ),
        sums_to_vectors!(),
        "vshl.i32    q0, q0, #1",
        correct!(),
        biases_of_four!("0"),
        multipliers_of_four!("0"),
        multiply!(),
        add_residual!("0", "2"),
        keep_rows!(),
        zero!(),
        "vmov.i8     q6, #0x40",
        steps!(
            "vldrw.u32   q0, [r9], #16\n",
            "vrev32.16   q1, q0\n",
            "vshr.u32    q2, q0, #8\n",
            "vsli.32     q2, q0, #24\n",
            "vshl.i8     q1, q1, #4\n",
            "vshr.u8     q3, q2, #7\n",
            "vshr.u8     q0, q1, #7\n",
            "vand        q2, q2, q6\n",
            "vand        q1, q1, q6\n",
            thirty_two_by_four!("32", "q2", "q3", "q1", "q0")
        ),
        sums_to_vectors!(),
        keep_weights!(),
        "vshr.s32    q0, q0, #5",
        "vshl.i32    q1, q1, #1",
        correct!(),
        biases_of_four!("4"),
        multipliers_of_four!("4"),
        multiply!(),
        add_residual!("1", "3"),
        store_four_rows!(),
    )
}

//! What each layer of a run costs, by a counter that the caller has.

use core::fmt::{self, Write as _};

use adcorda_formats::{Layer, Model};

use crate::session::Observer;

/// Counts what each layer of a run takes: cycles, instructions, microseconds, whatever the counter counts. `Display` prints the
/// last run as a table.
///
/// There is room for `N` layers, 4 bytes each. Layers beyond them are in the [total](Profile::total), and
/// [`dropped`](Profile::dropped) and the table say how many they are;
/// [`MAX_LAYERS`](adcorda_formats::MAX_LAYERS) has room for any model.
///
/// ```
/// # use adcorda_runtime::{Image, Profile, Session, formats::Model};
/// # fn cycle_count() -> u32 { 0 }
/// # fn show(model: &Model, session: &mut Session, image: Image) {
/// // On a Cortex-M3 or larger: `cortex_m::peripheral::DWT::cycle_count`.
/// let mut profile = Profile::<16>::new(model, cycle_count);
/// session.run(image, &mut profile);
/// println!("{profile}");
/// # }
/// ```
///
/// The output, with fewer layers than the model has:
///
/// ```text
///   # layer      count    share
///   0 conv1     120530   61.7 %
///   1 conv2      60211   30.8 %
///     2 more     14502    7.4 %
///     total     195243  100.0 %
/// ```
///
/// A count holds what else lies between the two looks at the counter, too: a few calls and returns.
#[derive(Clone, Debug)]
pub struct Profile<'m, const N: usize> {
    model: &'m Model<'m>,
    counter: fn() -> u32,
    /// The counter when the layer that is running began.
    begin: u32,
    counts: heapless::Vec<u32, N>,
    dropped: usize,
    total: u64,
}

impl<'m, const N: usize> Profile<'m, N> {
    /// Of runs of `model`, of which it takes the layers' names.
    ///
    /// `counter` counts up and wraps from `u32::MAX` to 0; so no layer may take 2^32 counts. One of fewer bits, or one that
    /// counts down, must be made such a one: `|| !(SYST::get_current() << 8)` has 256 counts a tick of a SysTick that reloads
    /// with `0xFF_FFFF`.
    pub const fn new(model: &'m Model<'m>, counter: fn() -> u32) -> Self {
        Profile {
            model,
            counter,
            begin: 0,
            counts: heapless::Vec::new(),
            dropped: 0,
            total: 0,
        }
    }

    /// Counts of the first `N` layers of the last run, in the order in which they ran; of fewer where the model has fewer.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Layers of the last run for which there was no room.
    pub const fn dropped(&self) -> usize {
        self.dropped
    }

    /// Counts of all layers of the last run, with those for which there was no room.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

impl<const N: usize> Observer for Profile<'_, N> {
    /// A run begins: forgets the one before.
    fn input(&mut self, _: &[u8]) {
        self.counts.clear();
        self.dropped = 0;
        self.total = 0;
    }

    fn layer_begin(&mut self, _: usize, _: &Layer<'_>) {
        self.begin = (self.counter)();
    }

    fn layer_end(&mut self, _: usize, _: &Layer<'_>, _: &[u8]) {
        let count = (self.counter)().wrapping_sub(self.begin);
        self.total += u64::from(count);
        if self.counts.push(count).is_err() {
            self.dropped += 1;
        }
    }
}

impl<const N: usize> fmt::Display for Profile<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = || self.model.layers().zip(&self.counts);
        let mut more = heapless::String::<MORE_BYTES>::new();
        write!(more, "{} more", self.dropped)?;
        let name_width = layers().fold(MORE_BYTES, |width, (layer, _)| width.max(layer.name.chars().count()));
        let digits = self.total.checked_ilog10().map_or(1, |digits| digits as usize + 1);
        let count_width = digits.max("count".len());
        let row = |f: &mut fmt::Formatter<'_>, name: &str, count: u64| {
            // In tenths of a per cent, rounded half up.
            let share = (2000 * count + self.total).checked_div(2 * self.total).unwrap_or(0);
            let (whole, tenth) = (share / 10, share % 10);
            writeln!(f, "{name:<name_width$}  {count:>count_width$}  {whole:>3}.{tenth} %")
        };

        writeln!(f, "  # {:<name_width$}  {:>count_width$}    share", "layer", "count")?;
        let mut rest = self.total;
        for (index, (layer, &count)) in layers().enumerate() {
            write!(f, "{index:>3} ")?;
            row(f, layer.name, count.into())?;
            rest = rest.saturating_sub(count.into());
        }
        if self.dropped > 0 {
            write!(f, "    ")?;
            row(f, &more, rest)?;
        }
        write!(f, "    ")?;
        row(f, "total", self.total)
    }
}

/// Bytes of `127 more`: no model has more layers.
const MORE_BYTES: usize = 8;

//! Where each tensor and each layer's scratch lies in the runtime's one buffer.
//!
//! A tensor is in use from the layer that writes it to the last layer that reads it, scratch during its layer. What is never in
//! use at the same time may share bytes; a sum may overwrite an addend that nothing reads afterwards. Finding the smallest buffer
//! is NP-hard. Of several orders of layers, choices of what is overwritten, and greedy orders of placement, the best is taken;
//! for the networks of the zoo that is the most that is in use at one time, so nothing can be better.
//!
//! # Source
//! Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", section 5 (greedy by size).

use std::cmp::Reverse;

use adcorda_formats::{Layer, Op, Scratch, Tensor};

use super::schedule::{Step, arrange};
use crate::{Error, ErrorKind, Result};

/// What every offset is a multiple of: kernels read words, and pairs of words.
const ALIGNMENT: u64 = 8;

/// How often a placement is mended. Few are mended more than twice.
const REPAIRS: usize = 16;

/// A network in the order in which it runs, with a place for everything.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    /// The input, then the output of each layer.
    pub(crate) tensors: Vec<Tensor>,
    /// In the order in which they run.
    pub(crate) layers: Vec<Layer<'a>>,
    pub(crate) arena_bytes: u32,
}

/// The smallest arena that any of `schedules` gives; of equal ones that with the fewest layers, and the first of those.
/// Deterministic.
///
/// `tensors` is the input followed by each layer's output; every layer must read earlier tensors only.
///
/// # Errors
/// [`ErrorKind::Model`] where the arena would pass 4 GiB.
pub(crate) fn plan<'a>(tensors: &[Tensor], layers: &[Layer<'a>], schedules: &[Vec<Step>]) -> Result<Plan<'a>> {
    let candidates = schedules.iter().map(|steps| Candidate::new(arrange(steps, tensors, layers)));
    let best = candidates.min_by_key(|candidate| (candidate.placement.bytes, candidate.layers.len()));
    best.map_or_else(
        || Err(Error::new(ErrorKind::Model, "the network has no order to run in")),
        Candidate::finish,
    )
}

/// The most bytes that any layer needs in use, with the scratch that `layers` have: no plan for this order can do with less.
fn peak(tensors: &[Tensor], layers: &[Layer]) -> u64 {
    let lifetimes = lifetimes(tensors, layers);
    let at = |(i, layer): (usize, &Layer)| {
        let time = i + 1;
        let kept = lifetimes.iter().filter(|l| l.is_used_at(time)).map(|l| l.bytes);
        let overwritten = dying_inputs(&lifetimes, time, layer).next();
        kept.sum::<u64>() - overwritten.map_or(0, |t| lifetimes[t].bytes) + scratch_bytes(layer)
    };
    layers.iter().enumerate().map(at).max().unwrap_or(0)
}

/// Bytes of a tensor up to the next place where something may begin.
pub(crate) fn aligned_bytes(tensor: &Tensor) -> u64 {
    let elements = u64::from(tensor.height) * u64::from(tensor.width) * u64::from(tensor.channels);
    (elements * tensor.element.bytes() as u64).next_multiple_of(ALIGNMENT)
}

/// The scratch bytes of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    /// These it gets.
    pub(crate) least: u64,
    /// These it gets where the arena need not grow for them.
    pub(crate) wanted: u64,
}

/// The scratch of layer `i`: what `FORMAT.md` recommends for fast kernels. Fully connected layers take no time, so they do with the
/// one unpacked row without which no kernel runs.
pub(crate) fn demand(layer: &Layer, i: usize, tensors: &[Tensor]) -> Demand {
    let (input, output) = (layer.op.inputs().next().map_or(0, usize::from), &tensors[i + 1]);
    let input = &tensors[input];
    let Some((_, k)) = layer.op.rows_and_k(input, output) else {
        return Demand::default();
    };
    let k = k as u64;
    let columns = 8 * k.next_multiple_of(32);
    let (least, wanted) = match layer.op {
        Op::Conv2d { .. } => (columns, columns),
        Op::DepthwiseConv2d { window, .. } => {
            let (width, step) = (u64::from(output.width), u64::from(window.stride_width));
            let row = width.saturating_sub(1) * step + u64::from(window.kernel_width);
            let pairs = u64::from(window.kernel_height).div_ceil(2);
            let rows = 16 * (pairs * row + width + 2 * k) + 64;
            (rows, rows)
        }
        Op::Linear { .. } | Op::Logits { .. } => (k.next_multiple_of(ALIGNMENT), columns),
        Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => (0, 0),
    };
    Demand { least, wanted }
}

/// An order of layers, placed as well as is known here.
struct Candidate<'a> {
    tensors: Vec<Tensor>,
    layers: Vec<Layer<'a>>,
    placement: Placement,
}

impl<'a> Candidate<'a> {
    fn new((tensors, mut layers): (Vec<Tensor>, Vec<Layer<'a>>)) -> Self {
        for (i, layer) in layers.iter_mut().enumerate() {
            layer.scratch.bytes = saturate(demand(layer, i, &tensors).least);
        }
        let placement = best_placement(&tensors, &layers);
        Candidate {
            tensors,
            layers,
            placement,
        }
    }

    fn finish(self) -> Result<Plan<'a>> {
        let Candidate {
            mut tensors,
            mut layers,
            placement,
        } = self;
        let arena_bytes = u32::try_from(placement.bytes).map_err(|_| {
            let what = format!("the network needs an arena of {} bytes", placement.bytes);
            Error::new(ErrorKind::Model, what)
        })?;
        // What is in the arena has an offset below 4 GiB.
        for (tensor, offset) in tensors.iter_mut().zip(&placement.offsets) {
            tensor.offset = *offset as u32;
        }
        let lifetimes = lifetimes(&tensors, &layers);
        for (i, layer) in layers.iter_mut().enumerate() {
            if layer.scratch.bytes > 0 {
                layer.scratch.offset = placement.offsets[tensors.len() + i] as u32;
            }
            let wanted = demand(layer, i, &tensors).wanted;
            let free = largest_gap(&tensors, &lifetimes, i + 1, arena_bytes);
            if wanted > layer.scratch.bytes.into() && free.bytes > layer.scratch.bytes {
                layer.scratch = Scratch {
                    offset: free.offset,
                    bytes: free.bytes.min(saturate(wanted)),
                };
            }
        }
        Ok(Plan {
            tensors,
            layers,
            arena_bytes,
        })
    }
}

/// The largest range that no tensor uses at `time`.
fn largest_gap(tensors: &[Tensor], lifetimes: &[Lifetime], time: usize, arena_bytes: u32) -> Scratch {
    let mut used: Vec<(u64, u64)> = tensors
        .iter()
        .zip(lifetimes)
        .filter(|(_, lifetime)| lifetime.is_used_at(time))
        .map(|(tensor, lifetime)| (u64::from(tensor.offset), u64::from(tensor.offset) + lifetime.bytes))
        .collect();
    used.push((arena_bytes.into(), arena_bytes.into()));
    used.sort_unstable();
    let (mut end, mut largest) = (0, Scratch::default());
    for (start, next) in used {
        let bytes = saturate(start.saturating_sub(end));
        if bytes > largest.bytes {
            largest = Scratch {
                offset: saturate(end),
                bytes,
            };
        }
        end = end.max(next);
    }
    largest
}

/// When a tensor is in use, in steps: 0 is before the first layer, `i + 1` is while layer `i` runs. Both ends count.
#[derive(Clone, Copy, Debug)]
struct Lifetime {
    first: usize,
    last: usize,
    bytes: u64,
}

impl Lifetime {
    fn is_used_at(&self, time: usize) -> bool {
        self.first <= time && time <= self.last
    }

    fn overlaps(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

fn lifetimes(tensors: &[Tensor], layers: &[Layer]) -> Vec<Lifetime> {
    let mut lifetimes: Vec<Lifetime> = tensors
        .iter()
        .enumerate()
        .map(|(i, tensor)| Lifetime {
            first: i,
            last: i,
            bytes: aligned_bytes(tensor),
        })
        .collect();
    for (i, layer) in layers.iter().enumerate() {
        for input in layer.op.inputs() {
            lifetimes[usize::from(input)].last = i + 1;
        }
    }
    lifetimes
}

/// The inputs of a layer whose bytes its output may take, since nothing reads them afterwards.
fn dying_inputs<'a>(lifetimes: &'a [Lifetime], time: usize, layer: &Layer) -> impl Iterator<Item = usize> + use<'a> {
    let op = layer.op;
    let inputs = op.inputs().filter(move |&input| op.may_overwrite(input)).map(usize::from);
    inputs.filter(move |&input| lifetimes[input].last == time)
}

/// Which addend a sum overwrites where it could be either.
#[derive(Clone, Copy, Debug)]
enum InPlace {
    First,
    Last,
    Never,
}

impl InPlace {
    const ALL: [InPlace; 3] = [InPlace::First, InPlace::Last, InPlace::Never];
}

/// Tensors that share one range, one overwriting the other; or a layer's scratch.
#[derive(Clone, Debug)]
struct Buffer {
    /// Tensors by their numbers; the scratch of layer `i` behind them, as if it were tensor `tensors.len() + i`.
    owners: Vec<usize>,
    lifetime: Lifetime,
}

fn buffers(lifetimes: &[Lifetime], layers: &[Layer], in_place: InPlace) -> Vec<Buffer> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut buffer_of = Vec::new();
    for (tensor, &lifetime) in lifetimes.iter().enumerate() {
        let writer = tensor.checked_sub(1).map(|layer| &layers[layer]);
        let mut overwritable = writer.into_iter().flat_map(|layer| dying_inputs(lifetimes, tensor, layer));
        let overwritten = match in_place {
            InPlace::First => overwritable.next(),
            InPlace::Last => overwritable.last(),
            InPlace::Never => None,
        };
        if let Some(input) = overwritten {
            let buffer: usize = buffer_of[input];
            buffers[buffer].owners.push(tensor);
            buffers[buffer].lifetime.last = lifetime.last;
            buffer_of.push(buffer);
        } else {
            buffer_of.push(buffers.len());
            buffers.push(Buffer {
                owners: vec![tensor],
                lifetime,
            });
        }
    }
    for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.scratch.bytes > 0) {
        buffers.push(Buffer {
            owners: vec![lifetimes.len() + i],
            lifetime: Lifetime {
                first: i + 1,
                last: i + 1,
                bytes: scratch_bytes(layer),
            },
        });
    }
    buffers
}

fn scratch_bytes(layer: &Layer) -> u64 {
    u64::from(layer.scratch.bytes).next_multiple_of(ALIGNMENT)
}

/// In which order buffers are placed, each at the lowest offset that is free for as long as it lives.
#[derive(Clone, Copy, Debug)]
enum Order {
    Size,
    Lifetime,
    Area,
    Execution,
    Reverse,
}

impl Order {
    const ALL: [Order; 5] = [Order::Size, Order::Lifetime, Order::Area, Order::Execution, Order::Reverse];

    fn sort(self, buffers: &mut [Buffer]) {
        let length = |b: &Buffer| (b.lifetime.last - b.lifetime.first + 1) as u64;
        match self {
            Order::Size => buffers.sort_by_key(|b| (Reverse(b.lifetime.bytes), Reverse(length(b)))),
            Order::Lifetime => buffers.sort_by_key(|b| (Reverse(length(b)), Reverse(b.lifetime.bytes))),
            Order::Area => buffers.sort_by_key(|b| Reverse(u128::from(length(b)) * u128::from(b.lifetime.bytes))),
            Order::Execution => buffers.sort_by_key(|b| b.lifetime.first),
            Order::Reverse => buffers.sort_by_key(|b| Reverse(b.lifetime.last)),
        }
    }
}

/// An offset for each tensor, and then for the scratch of each layer.
#[derive(Clone, Debug, Default)]
struct Placement {
    offsets: Vec<u64>,
    bytes: u64,
    /// Of the queue, the first that ends where the arena does.
    highest: usize,
}

fn best_placement(tensors: &[Tensor], layers: &[Layer]) -> Placement {
    let (lifetimes, least) = (lifetimes(tensors, layers), peak(tensors, layers));
    let mut best: Option<Placement> = None;
    for in_place in InPlace::ALL {
        let buffers = buffers(&lifetimes, layers, in_place);
        for order in Order::ALL {
            let mut queue = buffers.clone();
            order.sort(&mut queue);
            for _ in 0..REPAIRS {
                let placement = place(&queue);
                // What sticks out is placed first.
                queue[..=placement.highest].rotate_right(1);
                if best.as_ref().is_none_or(|best| placement.bytes < best.bytes) {
                    best = Some(placement);
                }
                if best.as_ref().is_some_and(|best| best.bytes <= least) {
                    return best.unwrap_or_default();
                }
            }
        }
    }
    best.unwrap_or_default()
}

fn place(queue: &[Buffer]) -> Placement {
    let owners = queue.iter().flat_map(|b| &b.owners);
    let mut placement = Placement {
        offsets: vec![0; owners.max().map_or(0, |&last| last + 1)],
        ..Placement::default()
    };
    let mut placed: Vec<(u64, Lifetime)> = Vec::new();
    for (i, Buffer { owners, lifetime }) in queue.iter().enumerate() {
        // Lowest first, so that one pass finds the first gap.
        let mut offset = 0;
        for (start, other) in placed.iter().filter(|(_, other)| other.overlaps(lifetime)) {
            if offset + lifetime.bytes <= *start {
                break;
            }
            offset = offset.max(start + other.bytes);
        }
        for &owner in owners {
            placement.offsets[owner] = offset;
        }
        if offset + lifetime.bytes > placement.bytes {
            placement.bytes = offset + lifetime.bytes;
            placement.highest = i;
        }
        let at = placed.partition_point(|(start, _)| *start <= offset);
        placed.insert(at, (offset, *lifetime));
    }
    placement
}

fn saturate(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use adcorda_formats::{
        Element, Graph, Model, ParseError, Provenance, Requantize, Scale, Section, TensorError, Weights, Width, Window,
    };
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};
    use crate::export::schedule::{schedules, unchanged};

    /// A graph in which everything is read, with its weights.
    pub(in crate::export) struct RandomGraph {
        pub(in crate::export) tensors: Vec<Tensor>,
        pub(in crate::export) layers: Vec<Layer<'static>>,
        section: Section,
    }

    impl RandomGraph {
        /// Pointwise convolutions, sums, copies and channel paddings of 8x8 pixels with a few channels, at least `layers` of
        /// them, and a classifier.
        pub(in crate::export) fn new(seed: u64, layers: usize) -> Self {
            let mut rng = rng(seed, Purpose::Synthetic, 1);
            let mut graph = RandomGraph {
                tensors: vec![tensor(rng.random_range(1..9))],
                layers: Vec::new(),
                section: Section::new(),
            };
            graph
                .section
                .push_table(&vec![[0; 256]; usize::from(graph.tensors[0].channels)]);
            // The unread tensors must all be read: a sum takes two of a size, whatever else takes one.
            let mut unread: Vec<usize> = vec![0];
            while graph.layers.len() < layers || unread.len() > 1 {
                // Grow to the size of the largest, then add up, once there are enough layers.
                let finishing = graph.layers.len() >= layers;
                let largest = unread.iter().map(|&t| graph.tensors[t].channels).max().unwrap_or(1);
                let pair = (0..unread.len())
                    .flat_map(|a| (0..a).map(move |b| (a, b)))
                    .find(|&(a, b)| graph.tensors[unread[a]].channels == graph.tensors[unread[b]].channels);
                if let Some((a, b)) = pair.filter(|_| finishing || rng.random_bool(0.5)) {
                    let (a, b) = (unread.remove(a), unread.remove(b));
                    graph.add(if rng.random_bool(0.5) { (a, b) } else { (b, a) });
                } else {
                    let input = match rng.random_bool(0.7) || finishing {
                        true => unread.remove(rng.random_range(0..unread.len())),
                        // A second reader: the graph forks.
                        false => rng.random_range(0..graph.tensors.len()),
                    };
                    let channels = graph.tensors[input].channels;
                    let more = match finishing {
                        true => largest - channels,
                        false => rng.random_range(0..4) * u16::from(rng.random_bool(0.5)),
                    };
                    if rng.random_bool(0.6) {
                        graph.conv2d(input, channels + more);
                    } else {
                        graph.pad(input, more);
                    }
                }
                unread.push(graph.layers.len());
            }
            graph.logits(unread[0]);
            graph
        }

        fn push(&mut self, op: Op, output: Tensor) {
            self.tensors.push(output);
            let scratch = Scratch::default();
            self.layers.push(Layer { name: "", op, scratch });
        }

        fn weights(&mut self, rows: u16, k: usize) -> Weights {
            let codes = vec![1; usize::from(rows) * k];
            let order = adcorda_formats::Order::Blocks;
            Weights {
                width: Width::W1,
                offset: self.section.push_rows(order, Width::W1, &codes, k).unwrap(),
                bias: self.section.push_i32s(&vec![0; rows.into()]),
            }
        }

        pub(in crate::export) fn conv2d(&mut self, input: usize, channels: u16) {
            let weights = self.weights(channels, self.tensors[input].channels.into());
            let requantize = Requantize {
                multiplier: self.section.push_i32s(&vec![1 << 20; channels.into()]),
                shift: 32,
                min: -128,
                max: 127,
            };
            let op = Op::Conv2d {
                input: input as u8,
                window: Window::POINT,
                weights,
                requantize,
                residual: None,
            };
            self.push(op, tensor(channels));
        }

        pub(in crate::export) fn add(&mut self, (a, b): (usize, usize)) {
            let op = Op::Add {
                a: a as u8,
                b: b as u8,
                mul_a: 1,
                mul_b: 2,
                shift: 1,
                min: -128,
                max: 127,
            };
            self.push(op, tensor(self.tensors[a].channels));
        }

        pub(in crate::export) fn pad(&mut self, input: usize, channels: u16) {
            let op = Op::Subsample {
                input: input as u8,
                stride: 1,
                channels_before: 0,
                channels_after: channels,
            };
            self.push(op, tensor(self.tensors[input].channels + channels));
        }

        pub(in crate::export) fn logits(&mut self, input: usize) {
            let weights = self.weights(3, self.tensors[input].elements());
            let op = Op::Logits {
                input: input as u8,
                weights,
            };
            let output = Tensor {
                height: 1,
                width: 1,
                element: Element::I32,
                ..tensor(3)
            };
            self.push(op, output);
        }

        /// An input and nothing behind it yet.
        pub(in crate::export) fn of(channels: u16) -> Self {
            let mut graph = RandomGraph {
                tensors: vec![tensor(channels)],
                layers: Vec::new(),
                section: Section::new(),
            };
            graph.section.push_table(&vec![[0; 256]; channels.into()]);
            graph
        }

        fn plan(&self) -> Plan<'static> {
            plan(&self.tensors, &self.layers, &schedules(&self.tensors, &self.layers)).unwrap()
        }

        /// What the format says of a plan for it.
        fn parse(&self, plan: Plan) -> Result<(), ParseError> {
            let graph = Graph {
                name: "",
                provenance: Provenance::default(),
                arena_bytes: plan.arena_bytes,
                input_table: 0,
                labels: vec![""; 3],
                tensors: plan.tensors,
                layers: plan.layers,
            };
            Model::parse(&graph.to_bytes(self.section.as_bytes())).map(|_| ())
        }
    }

    fn tensor(channels: u16) -> Tensor {
        Tensor {
            height: 8,
            width: 8,
            channels,
            element: Element::I8,
            zero_point: 0,
            scale: Scale::from_f32(1.0),
            offset: 0,
        }
    }

    /// The least bytes, if less than `best`, of any order of layers, any choice of sums in convolutions, any choice of
    /// overwriting and any order of placement. What a first fit of all orders cannot reach, nothing can: the buffers of the best
    /// plan, lowest first, are such an order.
    fn exhaustive(graph: &RandomGraph, mut best: u64) -> u64 {
        let mut orders = 0;
        every_order(graph, &mut Vec::new(), &mut |steps| {
            let (tensors, mut layers) = arrange(steps, &graph.tensors, &graph.layers);
            for (i, layer) in layers.iter_mut().enumerate() {
                layer.scratch.bytes = demand(layer, i, &tensors).least as u32;
            }
            let least = peak(&tensors, &layers);
            every_overwriting(&tensors, &layers, &mut |buffers| {
                every_placement(buffers, &mut Vec::new(), least, &mut best);
            });
            orders += 1;
        });
        assert!(orders > 0);
        best
    }

    fn every_order(graph: &RandomGraph, steps: &mut Vec<Step>, visit: &mut impl FnMut(&[Step])) {
        let has_run = |layer: usize| steps.iter().any(|step| step.layer == layer || step.sum == Some(layer));
        let is_there = |tensor: usize| tensor == 0 || has_run(tensor - 1);
        let reads = |layer: usize| graph.layers[layer].op.inputs().map(usize::from);
        let mut next = Vec::new();
        for layer in (0..graph.layers.len()).filter(|&layer| !has_run(layer) && reads(layer).all(is_there)) {
            next.push(Step { layer, sum: None });
            let readers: Vec<usize> = (0..graph.layers.len())
                .flat_map(|reader| reads(reader).filter(|&t| t == layer + 1).map(move |_| reader))
                .collect();
            let &[sum] = &readers[..] else { continue };
            let is_sum = matches!(graph.layers[sum].op, Op::Add { .. });
            let others_are_there = reads(sum).all(|t| t == layer + 1 || is_there(t));
            if is_sum && others_are_there && matches!(graph.layers[layer].op, Op::Conv2d { .. }) {
                next.push(Step { layer, sum: Some(sum) });
            }
        }
        if next.is_empty() {
            visit(steps);
        }
        for step in next {
            steps.push(step);
            every_order(graph, steps, visit);
            steps.pop();
        }
    }

    fn every_overwriting(tensors: &[Tensor], layers: &[Layer], visit: &mut impl FnMut(&[Buffer])) {
        let lifetimes = lifetimes(tensors, layers);
        let choices: Vec<Vec<Option<usize>>> = (0..tensors.len())
            .map(|tensor| {
                let writer = tensor.checked_sub(1).map(|layer| &layers[layer]);
                let dying = writer.into_iter().flat_map(|layer| dying_inputs(&lifetimes, tensor, layer));
                std::iter::once(None).chain(dying.map(Some)).collect()
            })
            .collect();
        for choice in 0..choices.iter().map(Vec::len).product() {
            let mut rest: usize = choice;
            // None of the overwriting of `buffers`, then ours.
            let mut merged = buffers(&lifetimes, layers, InPlace::Never);
            for (tensor, choices) in choices.iter().enumerate() {
                let overwritten = choices[rest % choices.len()];
                rest /= choices.len();
                if let Some(input) = overwritten {
                    let at = |owner: usize, buffers: &[Buffer]| buffers.iter().position(|b| b.owners.contains(&owner)).unwrap();
                    let taken = merged.remove(at(tensor, &merged));
                    let kept = at(input, &merged);
                    merged[kept].owners.extend(taken.owners);
                    merged[kept].lifetime.last = taken.lifetime.last;
                }
            }
            visit(&merged);
        }
    }

    fn every_placement(buffers: &[Buffer], queue: &mut Vec<Buffer>, least: u64, best: &mut u64) {
        if *best <= least {
            return;
        }
        if !queue.is_empty() {
            let bytes = place(queue).bytes;
            if bytes >= *best {
                return;
            }
            if queue.len() == buffers.len() {
                *best = bytes;
                return;
            }
        }
        for buffer in buffers {
            if !queue.iter().any(|b| b.owners == buffer.owners) {
                queue.push(buffer.clone());
                every_placement(buffers, queue, least, best);
                queue.pop();
            }
        }
    }

    #[test]
    fn plans_of_random_graphs_are_valid_and_no_worse_than_the_network_as_it_is() {
        let (mut planned, mut own, mut least) = (0, 0, 0);
        for seed in 0..300 {
            let graph = RandomGraph::new(seed, 2 + seed as usize % 30);
            let plan = graph.plan();
            let unchanged = [unchanged(graph.layers.len())];
            let before = super::plan(&graph.tensors, &graph.layers, &unchanged).unwrap();
            assert!(plan.arena_bytes <= before.arena_bytes, "seed {seed}");
            let peak = peak(&plan.tensors, &plan.layers);
            assert!(u64::from(plan.arena_bytes) >= peak, "seed {seed}");
            let offsets = plan.tensors.iter().map(|t| t.offset);
            for offset in offsets.chain(plan.layers.iter().map(|layer| layer.scratch.offset)) {
                assert!(offset.is_multiple_of(8), "seed {seed}: {offset}");
            }
            planned += plan.arena_bytes;
            own += before.arena_bytes;
            least += peak as u32;
            graph.parse(plan).unwrap_or_else(|cause| panic!("seed {seed}: {cause}"));
        }
        println!("{planned} bytes in all, {own} for the networks as they are, {least} in use at one time");
        assert!(planned * 10 < own * 9);
    }

    #[test]
    fn plans_of_small_graphs_are_the_best_there_are() {
        let (mut found, mut least, mut optimal, mut graphs) = (0, 0, 0, 0);
        for seed in 0..400 {
            let graph = RandomGraph::new(seed, 3 + seed as usize % 3);
            if graph.layers.len() > 7 {
                continue;
            }
            let bytes: u64 = graph.plan().arena_bytes.into();
            // In the smallest ones, the search must find the plan itself, too; beyond, only what is better, which is quick.
            let best = exhaustive(&graph, bytes + u64::from(graph.layers.len() <= 4));
            assert!(best <= bytes, "seed {seed}: {bytes} bytes, {best} by search");
            found += bytes;
            least += best;
            optimal += u32::from(bytes == best);
            graphs += 1;
        }
        println!("{optimal} of {graphs} are optimal, {found} bytes for {least}");
        assert!(graphs > 100);
        assert!(found * 1000 <= least * 1001, "{found} bytes for {least}");
    }

    #[test]
    fn a_sum_overwrites_an_input_that_dies() {
        // input -> padded by nothing -> that + input -> logits
        let mut graph = RandomGraph::of(4);
        graph.pad(0, 0);
        graph.add((0, 1));
        graph.logits(2);
        let plan = graph.plan();
        let offset = |t: usize| plan.tensors[t].offset;
        assert!(offset(2) == offset(0) || offset(2) == offset(1));
        assert!(offset(0) != offset(1));
        graph.parse(plan.clone()).unwrap();

        // The same plan is refused where the sum is no sum: overwriting is what the test above relies on.
        let mut broken = plan.clone();
        broken.tensors[1].offset = offset(0);
        let cause = graph.parse(broken).unwrap_err();
        assert!(matches!(
            cause,
            ParseError::Tensor {
                tensor: 1,
                cause: TensorError::Overlap { other: 0 }
            }
        ));
    }

    #[test]
    fn a_residual_is_summed_where_it_lies() {
        // A block with a convolution on each branch: 8 channels and one of them with 16 in between.
        let mut graph = RandomGraph::of(8);
        graph.conv2d(0, 16);
        graph.conv2d(1, 8);
        graph.add((2, 0));
        graph.logits(3);
        let plan = graph.plan();
        assert_eq!(plan.layers.len(), 3);
        assert!(matches!(plan.layers[1].op, Op::Conv2d { residual: Some(r), .. } if r.input == 0 && r.mul_residual == 2));
        assert_eq!(plan.tensors[2].offset, plan.tensors[0].offset);
        // 24 channels of 64 pixels and the scratch of a short row.
        assert_eq!(plan.arena_bytes, 24 * 64 + 256);
        graph.parse(plan).unwrap();
    }

    #[test]
    fn scratch_that_is_only_wanted_does_not_grow_the_arena() {
        let mut graph = RandomGraph::of(64);
        graph.logits(0);
        let plan = graph.plan();
        // 4096 codes, as many bytes to unpack a row, three logits.
        assert_eq!(plan.arena_bytes, 4096 + 4096 + 16);
        assert_eq!(plan.layers[0].scratch.bytes, 4096);
        graph.parse(plan).unwrap();

        // Where an earlier layer has needed more, it is there.
        let mut graph = RandomGraph::of(32);
        graph.conv2d(0, 32);
        graph.conv2d(1, 1);
        graph.logits(2);
        let plan = graph.plan();
        assert_eq!(plan.arena_bytes, 2 * 32 * 64 + 256);
        assert_eq!(plan.layers[2].scratch.bytes, 8 * 64);
        graph.parse(plan).unwrap();
    }

    #[test]
    fn a_network_of_many_branches_is_planned_in_time() {
        // 2^40 sets of branches may have run: not all can be looked at.
        let mut graph = RandomGraph::of(2);
        for _ in 0..40 {
            graph.conv2d(0, 2);
        }
        for branch in 1..=40 {
            let sum = graph.layers.len();
            graph.add((if branch == 1 { 0 } else { sum }, branch));
        }
        graph.logits(80);
        let plan = graph.plan();
        // Each convolution adds the sum so far, in place but for the first, whose residual is its own input.
        assert_eq!(plan.layers.len(), 41);
        assert_eq!(plan.arena_bytes, 2 * 2 * 64 + 256);
        graph.parse(plan).unwrap();
    }

    #[test]
    fn an_arena_past_4_gib_is_refused() {
        let mut graph = RandomGraph::new(0, 0);
        (graph.tensors[0].height, graph.tensors[0].width) = (u16::MAX, u16::MAX);
        let unchanged = [unchanged(graph.layers.len())];
        let error = plan(&graph.tensors, &graph.layers, &unchanged).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}

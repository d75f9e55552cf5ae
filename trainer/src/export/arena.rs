//! Where each tensor lies in the runtime's one buffer.
//!
//! A tensor is in use from the layer that writes it to the last layer that reads it. Tensors that are never in use at the same
//! time may share bytes; a sum may overwrite an input that nothing reads afterwards. The scratch range lies behind them all.
//! Finding the smallest buffer is NP-hard; a handful of greedy orders, the best of which is taken, reaches the lower bound
//! (the largest sum of tensors in use at one time) for the networks of the zoo.
//!
//! # Source
//! Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", section 5 (greedy by size).

use std::cmp::Reverse;

use adcorda_formats::{Layer, Op, Scratch, Tensor};

use crate::{Error, ErrorKind, Result};

/// What every offset is a multiple of: kernels read words, and pairs of words.
const ALIGNMENT: u64 = 8;

/// Sets every tensor's offset and every layer's scratch range, and gives the bytes of the arena. Deterministic.
///
/// `tensors` is the input followed by each layer's output; every layer must read earlier tensors only.
///
/// # Errors
/// [`ErrorKind::Model`] where the arena would pass 4 GiB.
pub fn plan(tensors: &mut [Tensor], layers: &mut [Layer]) -> Result<u32> {
    let demands = demands(tensors, layers);
    let lifetimes = lifetimes(tensors, layers);
    let mut best: Option<Placement> = None;
    for in_place in InPlace::ALL {
        let buffers = buffers(&lifetimes, &demands, layers, in_place);
        for order in Order::ALL {
            let placement = place(&buffers, order);
            if best.as_ref().is_none_or(|best| placement.bytes < best.bytes) {
                best = Some(placement);
            }
        }
    }
    let best = best.unwrap_or_default();
    let arena_bytes = u32::try_from(best.bytes).map_err(|_| {
        Error::new(
            ErrorKind::Model,
            format!("the network needs an arena of {} bytes", best.bytes),
        )
    })?;
    for (tensor, offset) in tensors.iter_mut().zip(&best.offsets) {
        tensor.offset = *offset as u32;
    }
    for (i, (layer, demand)) in layers.iter_mut().zip(&demands).enumerate() {
        if demand.least > 0 {
            layer.scratch = Scratch {
                offset: best.offsets[tensors.len() + i] as u32,
                bytes: demand.least as u32,
            };
        }
    }
    // What else is free while a layer runs costs nothing.
    for (i, demand) in demands.iter().enumerate() {
        let scratch = layers[i].scratch;
        if u64::from(scratch.bytes) < demand.wanted {
            let free = largest_gap(&lifetimes, tensors, i + 1, best.bytes);
            layers[i].scratch = Scratch {
                offset: free.offset,
                bytes: u64::from(free.bytes).min(demand.wanted).max(demand.least) as u32,
            };
        }
    }
    Ok(arena_bytes)
}

/// The scratch bytes of a layer.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// Without these, the layer does not run, or not on a fast path.
    least: u64,
    /// With these, it runs faster: where the arena need not grow for them.
    wanted: u64,
}

/// Scratch bytes are meant for kernels that gather a few columns of the input, or widened rows of four channels.
fn demands(tensors: &[Tensor], layers: &[Layer]) -> Vec<Demand> {
    let demand = |(layer, output): (&Layer, &Tensor)| {
        let input = layer.op.inputs().next().map_or(output, |id| &tensors[usize::from(id)]);
        let Some((_, k)) = layer.op.rows_and_k(input, output) else {
            return Demand::default();
        };
        let k = k as u64;
        let columns = 8 * k.next_multiple_of(32);
        match layer.op {
            Op::Conv2d { .. } => Demand {
                least: columns,
                wanted: columns,
            },
            Op::Linear { .. } | Op::Logits { .. } => Demand {
                least: k,
                wanted: columns,
            },
            Op::DepthwiseConv2d { window, .. } => {
                let columns = u64::from(input.width) + u64::from(window.kernel_width);
                let rows = 8 * u64::from(window.kernel_height) * columns;
                Demand {
                    least: k,
                    wanted: (rows + 16 * k + 64).next_multiple_of(ALIGNMENT),
                }
            }
            Op::Add { .. } | Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Subsample { .. } => Demand::default(),
        }
    };
    layers.iter().zip(&tensors[1..]).map(demand).collect()
}

/// The largest range that no tensor uses at `time`.
fn largest_gap(lifetimes: &[Lifetime], tensors: &[Tensor], time: usize, arena_bytes: u64) -> Scratch {
    let mut in_use: Vec<(u64, u64)> = lifetimes
        .iter()
        .zip(tensors)
        .filter(|(l, _)| l.first <= time && time <= l.last)
        .map(|(l, tensor)| (u64::from(tensor.offset), u64::from(tensor.offset) + l.bytes))
        .chain([(arena_bytes, arena_bytes)])
        .collect();
    in_use.sort_unstable();
    let (mut end, mut largest) = (0, Scratch::default());
    for (start, next) in in_use {
        let bytes = start.saturating_sub(end);
        if bytes > largest.bytes.into() {
            largest = Scratch {
                offset: end as u32,
                bytes: bytes as u32,
            };
        }
        end = end.max(next);
    }
    largest
}

/// Bytes without which no plan can do, scratch left out: the most that is in use at one time.
pub fn lower_bound(tensors: &[Tensor], layers: &[Layer]) -> usize {
    let lifetimes = lifetimes(tensors, layers);
    let in_use = |time: usize| -> u64 {
        let tensors = lifetimes.iter().filter(|l| l.first <= time && time <= l.last);
        let overwritten = layers
            .get(time.wrapping_sub(1))
            .and_then(|layer| dying_input(&lifetimes, time, layer));
        tensors.map(|l| l.bytes).sum::<u64>() - overwritten.map_or(0, |t| lifetimes[t].bytes)
    };
    (0..=layers.len()).map(in_use).max().unwrap_or(0) as usize
}

/// When a tensor is in use, in steps: 0 is before the first layer, `i + 1` is while layer `i` runs. Both ends count.
#[derive(Clone, Copy, Debug)]
struct Lifetime {
    first: usize,
    last: usize,
    bytes: u64,
}

fn lifetimes(tensors: &[Tensor], layers: &[Layer]) -> Vec<Lifetime> {
    let elements = |t: &Tensor| u64::from(t.height) * u64::from(t.width) * u64::from(t.channels);
    let mut lifetimes: Vec<Lifetime> = tensors
        .iter()
        .enumerate()
        .map(|(i, tensor)| Lifetime {
            first: i,
            last: i,
            bytes: (elements(tensor) * tensor.element.bytes() as u64).next_multiple_of(ALIGNMENT),
        })
        .collect();
    for (i, layer) in layers.iter().enumerate() {
        for input in layer.op.inputs() {
            lifetimes[usize::from(input)].last = i + 1;
        }
    }
    lifetimes
}

/// The first input of an [`Op::Add`] at `time` that nothing reads afterwards.
fn dying_input(lifetimes: &[Lifetime], time: usize, layer: &Layer) -> Option<usize> {
    dying_inputs(lifetimes, time, layer).next()
}

fn dying_inputs<'a>(lifetimes: &'a [Lifetime], time: usize, layer: &Layer) -> impl DoubleEndedIterator<Item = usize> + 'a {
    let inputs = match layer.op {
        Op::Add { a, b, .. } => vec![usize::from(a), usize::from(b)],
        Op::Conv2d { .. }
        | Op::DepthwiseConv2d { .. }
        | Op::Linear { .. }
        | Op::Logits { .. }
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::Subsample { .. } => Vec::new(),
    };
    inputs.into_iter().filter(move |&input| lifetimes[input].last == time)
}

/// Which input a sum overwrites where both could be.
#[derive(Clone, Copy, Debug)]
enum InPlace {
    First,
    Second,
    Never,
}

impl InPlace {
    const ALL: [InPlace; 3] = [InPlace::First, InPlace::Second, InPlace::Never];
}

/// Tensors that share one range, one overwriting the other.
#[derive(Clone, Debug)]
struct Buffer {
    tensors: Vec<usize>,
    lifetime: Lifetime,
}

/// Of every tensor, and behind them of every layer's scratch.
fn buffers(lifetimes: &[Lifetime], demands: &[Demand], layers: &[Layer], in_place: InPlace) -> Vec<Buffer> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut buffer_of = Vec::new();
    for (tensor, &lifetime) in lifetimes.iter().enumerate() {
        let mut overwritable = tensor
            .checked_sub(1)
            .into_iter()
            .flat_map(|layer| dying_inputs(lifetimes, tensor, &layers[layer]));
        let overwritten = match in_place {
            InPlace::First => overwritable.next(),
            InPlace::Second => overwritable.next_back(),
            InPlace::Never => None,
        };
        if let Some(input) = overwritten {
            let buffer: usize = buffer_of[input];
            buffers[buffer].tensors.push(tensor);
            buffers[buffer].lifetime.last = lifetime.last;
            buffer_of.push(buffer);
        } else {
            buffer_of.push(buffers.len());
            buffers.push(Buffer {
                tensors: vec![tensor],
                lifetime,
            });
        }
    }
    let needed = demands.iter().enumerate().filter(|(_, demand)| demand.least > 0);
    buffers.extend(needed.map(|(i, demand)| Buffer {
        tensors: vec![lifetimes.len() + i],
        lifetime: Lifetime {
            first: i + 1,
            last: i + 1,
            bytes: demand.least.next_multiple_of(ALIGNMENT),
        },
    }));
    buffers
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

    fn sort(self, buffers: &mut [&Buffer]) {
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

/// An offset for every tensor.
#[derive(Clone, Debug, Default)]
struct Placement {
    offsets: Vec<u64>,
    bytes: u64,
}

fn place(buffers: &[Buffer], order: Order) -> Placement {
    let mut queue: Vec<&Buffer> = buffers.iter().collect();
    order.sort(&mut queue);
    let ids = buffers.iter().flat_map(|b| &b.tensors);
    let mut placement = Placement {
        offsets: vec![0; ids.max().map_or(0, |&last| last + 1)],
        bytes: 0,
    };
    let mut placed: Vec<(u64, &Buffer)> = Vec::new();
    for buffer in queue {
        // Lowest first, so that one pass finds the first gap.
        let in_the_way = placed
            .iter()
            .filter(|(_, other)| other.lifetime.first <= buffer.lifetime.last && buffer.lifetime.first <= other.lifetime.last);
        let mut offset = 0;
        for (start, other) in in_the_way {
            if offset + buffer.lifetime.bytes <= *start {
                break;
            }
            offset = offset.max(start + other.lifetime.bytes);
        }
        for &tensor in &buffer.tensors {
            placement.offsets[tensor] = offset;
        }
        placement.bytes = placement.bytes.max(offset + buffer.lifetime.bytes);
        let at = placed.partition_point(|(start, _)| *start <= offset);
        placed.insert(at, (offset, buffer));
    }
    placement
}

#[cfg(test)]
mod tests {
    use adcorda_formats::{Element, Graph, Model, Provenance, Scale, Section, TensorError, Weights, Width};
    use rand::Rng;

    use super::*;
    use crate::data::batch::{Purpose, rng};

    /// A random graph of sums, copies and channel paddings in which everything is read, with its section. Tensors have a
    /// pixel and a few channels.
    fn random_graph(seed: u64, layers: usize) -> (Vec<Tensor>, Vec<Layer<'static>>, Section) {
        let mut rng = rng(seed, Purpose::Synthetic, 1);
        let tensor = |channels: u16| Tensor {
            height: 1,
            width: 1,
            channels,
            element: Element::I8,
            zero_point: 0,
            scale: Scale::from_f32(1.0),
            offset: 0,
        };
        let mut tensors = vec![tensor(rng.random_range(1..9))];
        let mut ops = Vec::new();
        // The unread tensors must all be read: a sum takes two of a size, whatever else takes one.
        let mut unread: Vec<usize> = vec![0];
        while ops.len() < layers || unread.len() > 1 {
            // Grow to the size of the largest, then add up, once there are enough layers.
            let finishing = ops.len() >= layers;
            let largest = unread.iter().map(|&t| tensors[t].channels).max().unwrap_or(1);
            let pair = (0..unread.len())
                .flat_map(|a| (0..a).map(move |b| (a, b)))
                .find(|&(a, b)| tensors[unread[a]].channels == tensors[unread[b]].channels);
            if let Some((a, b)) = pair.filter(|_| finishing || rng.random_bool(0.5)) {
                let (a, b) = (unread.remove(a), unread.remove(b));
                let (a, b) = if rng.random_bool(0.5) { (a, b) } else { (b, a) };
                tensors.push(tensor(tensors[a].channels));
                ops.push(add(a, b));
            } else {
                let input = match rng.random_bool(0.7) || finishing {
                    true => unread.remove(rng.random_range(0..unread.len())),
                    // A second reader: the graph forks.
                    false => rng.random_range(0..tensors.len()),
                };
                let more = match finishing {
                    true => largest - tensors[input].channels,
                    false => rng.random_range(0..4) * u16::from(rng.random_bool(0.5)),
                };
                tensors.push(tensor(tensors[input].channels + more));
                ops.push(Op::Subsample {
                    input: input as u8,
                    stride: 1,
                    channels_before: 0,
                    channels_after: more,
                });
            }
            unread.push(ops.len());
        }
        let mut section = Section::new();
        section.push_table(&vec![[0; 256]; usize::from(tensors[0].channels)]);
        let k = usize::from(tensors[unread[0]].channels);
        let weights = Weights {
            width: Width::W1,
            offset: section
                .push_rows(adcorda_formats::Order::Blocks, Width::W1, &vec![1; 3 * k], k)
                .unwrap(),
            bias: section.push_i32s(&[0; 3]),
        };
        tensors.push(Tensor {
            element: Element::I32,
            ..tensor(3)
        });
        ops.push(Op::Logits {
            input: unread[0] as u8,
            weights,
        });
        let layers = ops.into_iter().map(layer).collect();
        (tensors, layers, section)
    }

    fn layer(op: Op) -> Layer<'static> {
        Layer {
            name: "",
            op,
            scratch: Scratch::default(),
        }
    }

    fn add(a: usize, b: usize) -> Op {
        Op::Add {
            a: a as u8,
            b: b as u8,
            mul_a: 1,
            mul_b: 1,
            shift: 1,
            min: -128,
            max: 127,
        }
    }

    fn parses(
        tensors: Vec<Tensor>,
        layers: Vec<Layer>,
        section: Section,
        arena_bytes: u32,
    ) -> Result<(), adcorda_formats::ParseError> {
        let graph = Graph {
            name: "",
            provenance: Provenance::default(),
            arena_bytes,
            input_table: 0,
            labels: vec![""; 3],
            tensors,
            layers,
        };
        Model::parse(&graph.to_bytes(&section.into_bytes())).map(|_| ())
    }

    /// The least bytes of any order of placement and any choice of overwriting.
    fn exhaustive(tensors: &[Tensor], layers: &[Layer]) -> u64 {
        fn search(buffers: &[Buffer], placed: &mut Vec<(u64, usize)>, best: &mut u64) {
            if placed.len() == buffers.len() {
                let end = placed.iter().map(|&(start, b)| start + buffers[b].lifetime.bytes).max();
                *best = (*best).min(end.unwrap_or(0));
                return;
            }
            for next in 0..buffers.len() {
                if placed.iter().any(|&(_, b)| b == next) {
                    continue;
                }
                let (a, mut offset) = (buffers[next].lifetime, 0);
                let mut others: Vec<(u64, u64)> = placed
                    .iter()
                    .filter(|&&(_, b)| buffers[b].lifetime.first <= a.last && a.first <= buffers[b].lifetime.last)
                    .map(|&(start, b)| (start, start + buffers[b].lifetime.bytes))
                    .collect();
                others.sort_unstable();
                for (start, end) in others {
                    if offset + a.bytes > start {
                        offset = offset.max(end);
                    }
                }
                placed.push((offset, next));
                search(buffers, placed, best);
                placed.pop();
            }
        }
        let (lifetimes, demands) = (lifetimes(tensors, layers), demands(tensors, layers));
        InPlace::ALL
            .iter()
            .map(|&in_place| {
                let mut best = u64::MAX;
                search(&buffers(&lifetimes, &demands, layers, in_place), &mut Vec::new(), &mut best);
                best
            })
            .min()
            .unwrap()
    }

    #[test]
    fn plans_of_random_graphs_are_valid() {
        for seed in 0..2000 {
            let (mut tensors, mut layers, section) = random_graph(seed, 2 + seed as usize % 30);
            let bytes = plan(&mut tensors, &mut layers).unwrap();
            assert!(bytes as usize >= lower_bound(&tensors, &layers), "seed {seed}");
            parses(tensors, layers, section, bytes).unwrap_or_else(|cause| panic!("seed {seed}: {cause}"));
        }
    }

    #[test]
    fn plans_of_small_graphs_are_nearly_the_best_there_are() {
        let (mut found, mut least, mut optimal, mut graphs) = (0, 0, 0, 0);
        for seed in 0..200 {
            let (mut tensors, mut layers, _) = random_graph(seed, 3);
            if layers.len() > 6 {
                continue;
            }
            let bytes: u64 = plan(&mut tensors, &mut layers).unwrap().into();
            let best = exhaustive(&tensors, &layers);
            assert!(bytes >= best, "seed {seed}: {bytes} bytes, {best} by search");
            found += bytes;
            least += best;
            optimal += u32::from(bytes == best);
            graphs += 1;
        }
        println!("{optimal} of {graphs} are optimal, {found} bytes for {least}");
        assert!(graphs > 50);
        assert!(found * 100 <= least * 101, "{found} bytes for {least}");
    }

    #[test]
    fn a_sum_overwrites_an_input_that_dies() {
        let (mut tensors, mut layers, section) = random_graph(0, 0);
        // input -> copy -> copy + input -> logits
        let copy = Op::Subsample {
            input: 0,
            stride: 1,
            channels_before: 0,
            channels_after: 0,
        };
        let Op::Logits { weights, .. } = layers[0].op else {
            unreachable!()
        };
        layers = [copy, add(0, 1), Op::Logits { input: 2, weights }].map(layer).into();
        tensors = vec![tensors[0], tensors[0], tensors[0], tensors[1]];
        let plan = plan(&mut tensors, &mut layers).unwrap();
        assert!(tensors[2].offset == tensors[0].offset || tensors[2].offset == tensors[1].offset);
        assert!(tensors[0].offset != tensors[1].offset);
        parses(tensors.clone(), layers.clone(), section.clone(), plan).unwrap();

        // The same plan is refused where the sum is no sum: overwriting is what the test above relies on.
        tensors[1].offset = tensors[0].offset;
        let cause = parses(tensors, layers, section, plan).unwrap_err();
        assert!(matches!(
            cause,
            adcorda_formats::ParseError::Tensor {
                tensor: 1,
                cause: TensorError::Overlap { other: 0 }
            }
        ));
    }

    #[test]
    fn an_arena_past_4_gib_is_refused() {
        let (mut tensors, mut layers, _) = random_graph(0, 0);
        (tensors[0].height, tensors[0].width) = (u16::MAX, u16::MAX);
        let error = plan(&mut tensors, &mut layers).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}

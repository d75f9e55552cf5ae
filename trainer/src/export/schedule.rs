//! In which order layers run, and which convolution adds a residual itself.
//!
//! A network says what each layer reads; any order in which layers come after what they read gives the same result. A sum whose
//! one addend is a convolution that nothing else reads can be the last step of that convolution, over the bytes of the other
//! addend where those are not needed any more: a pass over the image less, and a tensor less. Both choices decide how many bytes
//! are in use at one time, so they are made together, by a search over the sets of layers that have run: which bytes are in use
//! after a set does not depend on its order.
//!
//! # Source
//! Liberis and Lane 2019, "Neural networks on microcontrollers: saving memory at inference via operator reordering" (the search
//! over sets of layers, here with sums that move).

use std::collections::BTreeMap;

use adcorda_formats::{Layer, Op, Residual, Tensor, TensorId};

use super::arena::{aligned_bytes, demand};

/// Sets of layers that are followed from each size to the next. The networks of the zoo have three; where a network has more,
/// the best so many are.
const MOST_SETS: usize = 500;

/// One layer of the result, by numbers of the network's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The layer that runs.
    pub(crate) layer: usize,
    /// The sum that it computes, too, where it is a convolution.
    pub(crate) sum: Option<usize>,
}

/// Orders worth a try, all different; the last one is the network's own, with every sum a layer.
pub(crate) fn schedules(tensors: &[Tensor], layers: &[Layer]) -> Vec<Vec<Step>> {
    let graph = Graph::new(tensors, layers);
    let mut schedules = Vec::new();
    let mut add = |steps: Vec<Step>| {
        if !schedules.contains(&steps) {
            schedules.push(steps);
        }
    };
    for may_fuse in [true, false] {
        let Some(found) = graph.search(may_fuse, u64::MAX, Aim::Peak) else {
            continue;
        };
        let peak = graph.peak(&found);
        for (limit, aim) in [(peak, Aim::Fusion), (peak, Aim::Area), (u64::MAX, Aim::Fusion)] {
            if let Some(steps) = graph.search(may_fuse, limit, aim) {
                add(steps);
            }
        }
        add(found);
    }
    let own = unchanged(layers.len());
    schedules.retain(|steps| *steps != own);
    schedules.push(own);
    schedules
}

/// The network's own order, with every sum a layer.
pub(crate) fn unchanged(layers: usize) -> Vec<Step> {
    (0..layers).map(|layer| Step { layer, sum: None }).collect()
}

/// The layers of `steps` and their tensors, numbered anew.
pub(crate) fn arrange<'a>(steps: &[Step], tensors: &[Tensor], layers: &[Layer<'a>]) -> (Vec<Tensor>, Vec<Layer<'a>>) {
    let mut numbers = vec![0; tensors.len()];
    let (mut arranged, mut run) = (vec![tensors[0]], Vec::with_capacity(steps.len()));
    for &Step { layer, sum } in steps {
        let mut op = layers[layer].op;
        if let Some(sum) = sum {
            add_residual(&mut op, layer + 1, tensors, &layers[sum].op);
        }
        run.push(Layer {
            op: renumber(op, |id| numbers[usize::from(id)]),
            ..layers[layer]
        });
        let output = sum.unwrap_or(layer) + 1;
        numbers[output] = arranged.len() as TensorId;
        arranged.push(tensors[output]);
    }
    (arranged, run)
}

/// Makes `sum` a part of the convolution `op`, whose own output would be tensor `codes`.
fn add_residual(op: &mut Op, codes: usize, tensors: &[Tensor], sum: &Op) {
    if let (
        Op::Conv2d { residual, .. },
        &Op::Add {
            a,
            b,
            mul_a,
            mul_b,
            shift,
            min,
            max,
        },
    ) = (op, sum)
    {
        let is_first = usize::from(a) == codes;
        let (mul_conv, mul_residual) = if is_first { (mul_a, mul_b) } else { (mul_b, mul_a) };
        *residual = Some(Residual {
            input: if is_first { b } else { a },
            zero_point: tensors[codes].zero_point,
            mul_conv,
            mul_residual,
            shift,
            min,
            max,
        });
    }
}

fn renumber(mut op: Op, number: impl Fn(TensorId) -> TensorId) -> Op {
    match &mut op {
        Op::Conv2d { input, residual, .. } => {
            *input = number(*input);
            if let Some(residual) = residual {
                residual.input = number(residual.input);
            }
        }
        Op::DepthwiseConv2d { input, .. }
        | Op::Linear { input, .. }
        | Op::Logits { input, .. }
        | Op::MaxPool { input, .. }
        | Op::AvgPool { input, .. }
        | Op::Subsample { input, .. } => *input = number(*input),
        Op::Add { a, b, .. } => (*a, *b) = (number(*a), number(*b)),
    }
    op
}

/// A set of layers, a bit each: a model has at most [`adcorda_formats::MAX_LAYERS`].
type Layers = u128;

/// What an order is to be good at, given that it stays within a limit of bytes at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Few bytes at the step that needs most.
    Peak,
    /// Few sums that are layers; of those, little area.
    Fusion,
    /// Few bytes, summed over the steps: what is short-lived is easy to place.
    Area,
}

/// What counts of layers and tensors here.
#[derive(Debug)]
struct Graph {
    /// By tensor.
    bytes: Vec<u64>,
    /// By tensor: the layers that read it.
    readers: Vec<Layers>,
    /// By layer: the tensors that it reads, each once.
    inputs: Vec<Vec<usize>>,
    /// By layer.
    is_sum: Vec<bool>,
    /// By layer.
    scratch: Vec<u64>,
    /// By layer: the sum that it could compute, too, and the tensor that is added there.
    sums: Vec<Option<(usize, usize)>>,
}

/// The best way found to a set of layers.
#[derive(Clone, Copy, Debug)]
struct Way {
    cost: (u64, u64),
    /// Bytes in use behind it.
    kept: u64,
    before: Layers,
    last: Step,
}

impl Graph {
    fn new(tensors: &[Tensor], layers: &[Layer]) -> Graph {
        let mut graph = Graph {
            bytes: tensors.iter().map(aligned_bytes).collect(),
            readers: vec![0; tensors.len()],
            inputs: Vec::new(),
            is_sum: Vec::new(),
            scratch: Vec::new(),
            sums: vec![None; layers.len()],
        };
        for (i, layer) in layers.iter().enumerate() {
            let mut inputs: Vec<usize> = layer.op.inputs().map(usize::from).collect();
            inputs.dedup();
            for &input in &inputs {
                graph.readers[input] |= 1 << i;
            }
            graph.inputs.push(inputs);
            graph.is_sum.push(matches!(layer.op, Op::Add { .. }));
            graph.scratch.push(demand(layer, i, tensors).least);
        }
        for (sum, inputs) in graph.inputs.iter().enumerate() {
            let &[a, b] = &inputs[..] else { continue };
            for (codes, other) in [(a, b), (b, a)] {
                let Some(layer) = codes.checked_sub(1) else { continue };
                let is_plain = matches!(layers[layer].op, Op::Conv2d { residual: None, .. });
                if graph.is_sum[sum] && is_plain && graph.readers[codes] == 1 << sum {
                    graph.sums[layer] = Some((sum, other));
                }
            }
        }
        graph
    }

    /// The order of all layers that serves `aim` best without a step of more than `limit` bytes.
    fn search(&self, may_fuse: bool, limit: u64, aim: Aim) -> Option<Vec<Step>> {
        let layers = self.inputs.len();
        let mut ways: Vec<BTreeMap<Layers, Way>> = vec![BTreeMap::new(); layers + 1];
        let start = Way {
            cost: (0, 0),
            kept: self.bytes[0],
            before: 0,
            last: Step { layer: 0, sum: None },
        };
        ways[0].insert(0, start);
        for count in 0..layers {
            let mut sets: Vec<(Layers, Way)> = ways[count].iter().map(|(&done, &way)| (done, way)).collect();
            sets.sort_by_key(|&(done, way)| (way.cost, done));
            for &(done, way) in sets.iter().take(MOST_SETS) {
                for step in self.steps(done, may_fuse) {
                    let (needed, kept) = self.memory(done, way.kept, step);
                    if needed > limit {
                        continue;
                    }
                    let cost = match aim {
                        Aim::Peak => (way.cost.0.max(needed), way.cost.1 + needed),
                        Aim::Fusion => (way.cost.0 + u64::from(self.is_sum[step.layer]), way.cost.1 + needed),
                        Aim::Area => (way.cost.0 + needed, 0),
                    };
                    let after = done | bits(step);
                    let found = Way {
                        cost,
                        kept,
                        before: done,
                        last: step,
                    };
                    let best = ways[after.count_ones() as usize].entry(after).or_insert(found);
                    // Of equal ways, the one that is more like the network's own.
                    if (cost, best.last.layer) < (best.cost, step.layer) {
                        *best = found;
                    }
                }
            }
        }
        let (mut done, mut steps) = (*ways[layers].keys().next()?, Vec::new());
        while done != 0 {
            let way = ways[done.count_ones() as usize].get(&done)?;
            steps.push(way.last);
            done = way.before;
        }
        steps.reverse();
        Some(steps)
    }

    /// What can run when `done` has.
    fn steps(&self, done: Layers, may_fuse: bool) -> impl Iterator<Item = Step> {
        let is_there = move |tensor: usize| tensor.checked_sub(1).is_none_or(|layer| done >> layer & 1 != 0);
        let ready = (0..self.inputs.len())
            .filter(move |&layer| done >> layer & 1 == 0 && self.inputs[layer].iter().all(|&input| is_there(input)));
        ready.flat_map(move |layer| {
            let fused = self.sums[layer].filter(|&(_, other)| may_fuse && is_there(other));
            let fused = fused.map(|(sum, _)| Step { layer, sum: Some(sum) });
            fused.into_iter().chain([Step { layer, sum: None }])
        })
    }

    /// Bytes that `step` needs when `done` has run and `kept` bytes are in use, and the bytes in use after it.
    fn memory(&self, done: Layers, kept: u64, step: Step) -> (u64, u64) {
        let after = done | bits(step);
        let other = step.sum.and_then(|_| self.sums[step.layer]).map(|(_, other)| other);
        let inputs = &self.inputs[step.layer];
        let read = || inputs.iter().copied().chain(other.filter(|other| !inputs.contains(other)));
        let dies = |tensor: usize| self.readers[tensor] & !after == 0;
        let overwrites = match other {
            Some(other) => dies(other) && !inputs.contains(&other),
            None => self.is_sum[step.layer] && read().any(dies),
        };
        let output = step.sum.unwrap_or(step.layer) + 1;
        let written = if overwrites { 0 } else { self.bytes[output] };
        let dead: u64 = read().filter(|&tensor| dies(tensor)).map(|tensor| self.bytes[tensor]).sum();
        (kept + written + self.scratch[step.layer], kept + self.bytes[output] - dead)
    }

    /// Bytes at the step that needs most.
    fn peak(&self, steps: &[Step]) -> u64 {
        let (mut done, mut kept, mut peak) = (0, self.bytes[0], 0);
        for &step in steps {
            let (needed, after) = self.memory(done, kept, step);
            (peak, kept) = (peak.max(needed), after);
            done |= bits(step);
        }
        peak
    }
}

fn bits(step: Step) -> Layers {
    1 << step.layer | step.sum.map_or(0, |sum| 1 << sum)
}

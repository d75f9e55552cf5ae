//! The session around the kernels: arena, image, logits, observer.

use crate::net::{FILL, Net, Random, Room, Rows, run, run_pixels};
use adcorda_runtime::formats::{Model, Op, Order, Width, Window};
use adcorda_runtime::{ArenaTooSmall, ClassScore, Image, ImageSize, Logits, Session};

/// `2 x 3 x 2` pixels to as many classes as there are biases, with weights of zero.
fn biases(bias: &[i32]) -> Vec<u8> {
    let mut net = Net::new(2, 3, 2, 0);
    let weights = net.weights(
        Order::Blocks,
        &Rows {
            width: Width::W2,
            codes: vec![vec![0; 12]; bias.len()],
            bias: bias.to_vec(),
        },
    );
    net.logits(Op::Logits { input: 0, weights }, bias.len());
    net.file(Room::Least)
}

#[test]
fn an_arena_one_byte_too_small_is_refused() {
    let file = biases(&[1, 2]);
    let model = Model::parse(&file).unwrap();
    let need = model.arena_bytes();
    for have in [0, need - 1] {
        let error = Session::new(&model, &mut vec![FILL; have]).unwrap_err();
        assert_eq!(error, ArenaTooSmall { need, have });
        assert_eq!(
            error.to_string(),
            format!("the arena has {have} bytes, the model needs {need}")
        );
    }
}

#[test]
fn a_longer_arena_is_left_alone_behind_the_plan() {
    let file = biases(&[1, 2]);
    let model = Model::parse(&file).unwrap();
    let need = model.arena_bytes();
    let mut arena = vec![FILL; need + 100];
    let mut session = Session::new(&model, &mut arena).unwrap();
    assert_eq!(session.run(Image::new(&model, &[7; 12]).unwrap(), &mut ()).top1(), 1);
    assert!(arena[need..].iter().all(|&byte| byte == FILL));
}

#[test]
fn an_image_of_another_size_is_refused() {
    let file = biases(&[1, 2]);
    let model = Model::parse(&file).unwrap();
    for have in [0, 11, 13, 24] {
        let error = Image::new(&model, &vec![0; have]).unwrap_err();
        assert_eq!(error, ImageSize { need: 12, have });
        assert_eq!(error.to_string(), format!("the image has {have} bytes, the model takes 12"));
    }
    assert!(Image::new(&model, &[0; 12]).is_ok());
}

#[test]
fn logits_are_the_accumulators_and_the_first_of_equal_ones_wins() {
    for (bias, top1) in [
        (&[3][..], 0),
        (&[1, 5, 5, 2], 1),
        (&[-7, -7, -7], 0),
        (&[-9, -8, -7], 2),
        (&[i32::MAX - 1536, -1, 0], 0),
        (&[-(i32::MAX - 1536), -(i32::MAX - 1536)], 0),
    ] {
        let file = biases(bias);
        let model = Model::parse(&file).unwrap();
        let mut arena = vec![FILL; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).unwrap();
        let logits = session.run(Image::new(&model, &[255; 12]).unwrap(), &mut ());
        assert_eq!(logits.iter().collect::<Vec<_>>(), bias);
        assert_eq!(logits.len(), bias.len());
        assert!(!logits.is_empty());
        for (class, &logit) in bias.iter().enumerate() {
            assert_eq!(logits.get(class), Some(logit));
        }
        assert_eq!(logits.get(bias.len()), None);
        assert_eq!(logits.top1(), top1, "{bias:?}");
        assert_eq!(format!("{logits:?}"), format!("{bias:?}"));
    }
}

/// The definition: sort all of them, keep the first `K`.
fn assert_top_k<const K: usize>(logits: Logits<'_>) {
    let mut sorted: Vec<ClassScore> = (0..logits.len())
        .map(|class| ClassScore {
            class,
            score: logits.get(class).unwrap(),
        })
        .collect();
    sorted.sort_by_key(|kept| (std::cmp::Reverse(kept.score), kept.class));
    sorted.truncate(K);
    assert_eq!(logits.top_k::<K>()[..], sorted);
}

#[test]
fn top_k_is_sorted_and_the_first_of_equal_ones_leads() {
    let mut random = Random::new(0x109);
    for classes in 1..40 {
        // Few values, so that there are ties, and the ends of the range.
        let bias: Vec<i32> = (0..classes).map(|_| i32::from(random.code()) / 60 * 1_000_000_000).collect();
        let file = biases(&bias);
        let model = Model::parse(&file).unwrap();
        let mut arena = vec![FILL; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).unwrap();
        let logits = session.run(Image::new(&model, &[0; 12]).unwrap(), &mut ());
        assert_top_k::<0>(logits);
        assert_top_k::<1>(logits);
        assert_top_k::<5>(logits);
        assert_top_k::<39>(logits);
        assert_top_k::<64>(logits);
        let [first] = logits.top_k::<1>().into_array().unwrap();
        assert_eq!(first.class, logits.top1());
        assert_eq!(model.label(first.class), Some(format!("class{}", first.class).as_str()));
        assert_eq!(model.label(classes), None);
    }
}

#[test]
fn pixels_go_through_the_table_of_their_channel() {
    let mut random = Random::new(0x1A);
    for channels in 1..=4 {
        let table: Vec<[i8; 256]> = (0..channels).map(|_| std::array::from_fn(|_| random.code())).collect();
        let net = {
            let mut net = Net::with_table(16, 16, 3, &table);
            let k = net.tensor(0).elements();
            let weights = net.weights(
                Order::Blocks,
                &Rows {
                    width: Width::W1,
                    codes: vec![vec![1; k]],
                    bias: vec![0],
                },
            );
            net.logits(Op::Logits { input: 0, weights }, 1);
            net
        };
        // Every value in every channel.
        let pixels: Vec<u8> = (0..256 * channels)
            .map(|i| (i / channels + 31 * (i % channels)) as u8)
            .collect();
        let codes: Vec<u8> = pixels
            .iter()
            .enumerate()
            .map(|(i, &pixel)| table[i % channels][usize::from(pixel)] as u8)
            .collect();
        let ran = run_pixels(&net, &pixels);
        assert_eq!(ran.input, codes);
        assert_eq!(ran.logits, [codes.iter().map(|&code| i32::from(code as i8)).sum()]);
    }
}

#[test]
fn one_session_classifies_many_images() {
    let mut net = Net::new(1, 1, 2, 0);
    let weights = net.weights(
        Order::Blocks,
        &Rows {
            width: Width::W4,
            codes: vec![vec![1, 0], vec![0, 1]],
            bias: vec![0, 0],
        },
    );
    net.logits(Op::Logits { input: 0, weights }, 2);
    let file = net.file(Room::Least);
    let model = Model::parse(&file).unwrap();
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut session = Session::new(&model, &mut arena).unwrap();
    for (pixels, logits) in [([0, 255], [-128, 127]), ([255, 0], [127, -128]), ([128, 128], [0, 0])] {
        let image = Image::new(session.model(), &pixels).unwrap();
        assert_eq!(session.run(image, &mut ()).iter().collect::<Vec<_>>(), logits);
    }
}

/// Layers may work where tensors lay that are not in use any more, each somewhere else.
#[test]
fn scratch_may_lie_over_tensors_of_the_past() {
    let mut random = Random::new(0x5C);
    let window = Window {
        kernel_height: 3,
        kernel_width: 3,
        stride_height: 1,
        stride_width: 1,
        pad_top: 1,
        pad_bottom: 1,
        pad_left: 1,
        pad_right: 1,
    };
    for widths in [Width::ALL, [Width::W8, Width::W4, Width::W2, Width::W1]] {
        let mut net = Net::new(6, 6, 3, -7);
        for (input, width) in widths.into_iter().enumerate() {
            let rows = Rows {
                width,
                codes: (0..3)
                    .map(|_| (0..27).map(|_| [-1, 1][random.within(0, 1)]).collect())
                    .collect(),
                bias: vec![50, -20, 0],
            };
            let (weights, requantize) = (
                net.weights(Order::Blocks, &rows),
                net.requantization(vec![1 << 29, -(1 << 29), 1 << 30], 32, -128, 127),
            );
            let input = input as u8;
            let op = Op::Conv2d {
                input,
                window,
                weights,
                requantize,
                residual: None,
            };
            net.layer(op, 6, 6, 3, 4);
        }
        let x: Vec<u8> = (0..108).map(|_| random.code() as u8).collect();
        let apart = run(&net, &x);
        for layer in 1..4 {
            net.scratch(layer, net.tensor(layer - 1).offset + 5 * layer as u32);
        }
        assert_eq!(run(&net, &x), apart, "{widths:?}");
    }
}

#[test]
fn an_image_of_another_model_does_no_harm() {
    let file = biases(&[1, 2]);
    let model = Model::parse(&file).unwrap();
    for (h, w) in [(1, 1), (9, 9)] {
        let mut net = Net::new(h, w, 1, 0);
        let weights = net.weights(
            Order::Blocks,
            &Rows {
                width: Width::W8,
                codes: vec![vec![1; h * w]],
                bias: vec![0],
            },
        );
        net.logits(Op::Logits { input: 0, weights }, 1);
        let file = net.file(Room::Least);
        let other = Model::parse(&file).unwrap();
        let pixels = vec![128; h * w];
        let mut arena = vec![FILL; model.arena_bytes()];
        let mut session = Session::new(&model, &mut arena).unwrap();
        assert_eq!(session.run(Image::new(&other, &pixels).unwrap(), &mut ()).top1(), 1);
    }
}

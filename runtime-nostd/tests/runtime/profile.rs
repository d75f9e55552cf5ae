//! Profiles, under a counter that takes a known step at each look.

use std::cell::Cell;

use crate::net::{FILL, Net, Room};
use adcorda_runtime::formats::{MAX_LAYERS, Model, Op, Window};
use adcorda_runtime::{Image, Profile, Session};

thread_local! {
    /// The counter, and its next step.
    static COUNTER: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Goes on by 0, 100, 200 and so on.
fn counter() -> u32 {
    COUNTER.with(|counter| {
        let (count, step) = counter.get();
        let count = count.wrapping_add(step);
        counter.set((count, step + 100));
        count
    })
}

/// Three poolings and the logits.
fn file() -> Vec<u8> {
    let mut net = Net::new(2, 2, 1, 0);
    for input in 0..3 {
        let window = Window::POINT;
        net.layer(Op::MaxPool { input, window }, 2, 2, 1, 0);
    }
    net.file(Room::Least)
}

/// The profile of a run whose counter starts at `start`; the layers take 100, 300, 500 and 700.
fn profile<const N: usize>(model: &Model<'_>, start: u32, profile: &mut Profile<'_, N>) {
    COUNTER.set((start, 0));
    let mut arena = vec![FILL; model.arena_bytes()];
    let mut session = Session::new(model, &mut arena).unwrap();
    session.run(Image::new(model, &[1; 4]).unwrap(), profile);
}

#[test]
fn each_layer_has_its_count_and_the_last_run_is_kept() {
    let file = file();
    let model = Model::parse(&file).unwrap();
    let mut kept = Profile::<MAX_LAYERS>::new(&model, counter);
    assert_eq!((kept.counts(), kept.dropped(), kept.total()), (&[][..], 0, 0));
    // Also where the counter wraps within a layer.
    for start in [0, 12345, u32::MAX - 250, u32::MAX] {
        profile(&model, start, &mut kept);
        assert_eq!(
            (kept.counts(), kept.dropped(), kept.total()),
            (&[100, 300, 500, 700][..], 0, 1600)
        );
    }
}

#[test]
fn layers_without_room_are_counted() {
    let file = file();
    let model = Model::parse(&file).unwrap();
    let mut kept = Profile::<3>::new(&model, counter);
    profile(&model, 7, &mut kept);
    assert_eq!((kept.counts(), kept.dropped(), kept.total()), (&[100, 300, 500][..], 1, 1600));
    let mut kept = Profile::<0>::new(&model, counter);
    profile(&model, 7, &mut kept);
    assert_eq!((kept.counts(), kept.dropped(), kept.total()), (&[][..], 4, 1600));
}

#[test]
fn a_profile_prints_as_a_table() {
    let file = file();
    let model = Model::parse(&file).unwrap();
    let mut kept = Profile::<4>::new(&model, counter);
    let empty = "  # layer     count    share\n    total         0    0.0 %\n";
    assert_eq!(kept.to_string(), empty);
    profile(&model, 0, &mut kept);
    let all = "  # layer     count    share\n  \
                 0 max_pool    100    6.3 %\n  \
                 1 max_pool    300   18.8 %\n  \
                 2 max_pool    500   31.3 %\n  \
                 3 logits      700   43.8 %\n    \
                   total      1600  100.0 %\n";
    assert_eq!(kept.to_string(), all);
    let mut kept = Profile::<2>::new(&model, counter);
    profile(&model, 0, &mut kept);
    let some = "  # layer     count    share\n  \
                  0 max_pool    100    6.3 %\n  \
                  1 max_pool    300   18.8 %\n    \
                    2 more     1200   75.0 %\n    \
                    total      1600  100.0 %\n";
    assert_eq!(kept.to_string(), some);
}

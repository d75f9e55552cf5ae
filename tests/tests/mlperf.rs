//! `examples/mlperf-tiny`: its protocol on the host, byte by byte, and the whole of it in QEMU, against a host that does what MLPerf
//! Tiny's does and against one that means no good.

mod firmware;
#[path = "../../examples/mlperf-tiny/src/protocol.rs"]
mod protocol;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use adcorda_formats::Model;
use adcorda_runtime::{Image, Session};
use protocol::{COMMAND_BYTES, Device, Identity, MAX_INFERENCES, Monitor};

const IDENTITY: Identity = Identity {
    vendor: "someone",
    model: "ic01",
};

/// A device whose logits are the sum of the image's bytes, that negated, and the number of inferences.
#[derive(Default)]
struct Fake {
    now_us: u64,
    logits: Vec<i32>,
    inferences: i32,
    is_broken: bool,
}

impl Device for Fake {
    type Error = &'static str;

    fn now_us(&mut self) -> u64 {
        self.now_us += 1000;
        self.now_us
    }

    fn infer(&mut self, image: &[u8]) -> Result<(), &'static str> {
        assert_eq!(image.len(), 6, "half an image is run");
        if self.is_broken {
            return Err("it is broken");
        }
        self.inferences += 1;
        self.now_us += 10;
        let sum = image.iter().map(|&byte| i32::from(byte)).sum();
        self.logits = vec![sum, -sum, self.inferences];
        Ok(())
    }

    fn logits(&self) -> &[i32] {
        &self.logits
    }
}

/// A device of six bytes an image, and what it says.
struct Pure {
    monitor: Monitor<6>,
    device: Fake,
}

impl Pure {
    fn new() -> Self {
        Pure {
            monitor: Monitor::new(IDENTITY),
            device: Fake::default(),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> String {
        let mut out = String::new();
        for &byte in bytes {
            self.monitor.receive(byte, &mut self.device, &mut out);
        }
        out
    }

    /// The lines before `m-ready`, one after the other.
    fn command(&mut self, command: &str) -> String {
        let said = self.send(format!("{command}%").as_bytes());
        let lines = said.strip_suffix("m-ready\r\n").expect("a command is answered");
        lines.replace("\r\n", "\n")
    }
}

#[test]
fn a_device_says_that_it_is_there() {
    let mut out = String::new();
    Monitor::<6>::new(IDENTITY).start(&mut Fake::default(), &mut out);
    assert_eq!(
        out,
        "m-timestamp-mode-performance\r\nm-lap-us-1000\r\nm-init-done\r\nm-ready\r\n"
    );
}

#[test]
fn every_command_is_answered_as_the_host_reads_it() {
    let mut pure = Pure::new();
    for (command, answer) in [
        ("", ""),
        ("name", "m-name-dut-[someone]\n"),
        ("\r\n name\t", "m-name-dut-[someone]\n"),
        ("profile", "m-profile-[ULPMark for tinyML Firmware V0.0.1]\nm-model-[ic01]\n"),
        ("timestamp", "m-lap-us-1000\n"),
        ("db print", ""),
        ("db load 6", "m-[Expecting 6 bytes]\n"),
        ("db 0001", ""),
        ("db fFa0", ""),
        ("db print", "m-buffer-00-01-ff-a0\n"),
        ("db 0203", "m-load-done\n"),
        (
            "infer 3 2",
            "m-warmup-start-2\nm-warmup-done\nm-infer-start-3\nm-lap-us-2020\nm-lap-us-3050\nm-infer-done\n\
             m-results-[843.000,1.000,427.000]\n",
        ),
        ("results", "m-results-[843.000,1.000,427.000]\n"),
        // Ten warm-up inferences unless it says otherwise.
        (
            "infer",
            "m-warmup-start-10\nm-warmup-done\nm-infer-start-1\nm-lap-us-4150\nm-lap-us-5160\nm-infer-done\n\
             m-results-[843.000,1.000,438.000]\n",
        ),
        ("db load 6", "m-[Expecting 6 bytes]\n"),
        ("results", "m-results-[843.000,1.000,438.000]\n"),
    ] {
        assert_eq!(pure.command(command), answer, "{command}");
    }
    assert_eq!(pure.command("help").lines().count(), 10);
}

/// The ends of the range, and a tie: still positive, still in order.
#[test]
fn results_are_positive_whatever_the_logits_are() {
    let mut pure = Pure::new();
    pure.command("db load 6");
    pure.command("db 000000000000");
    pure.command("infer 1 0");
    for (logits, results) in [
        (vec![i32::MIN, i32::MAX, 0], "[1.000,4294967296.000,2147483649.000]"),
        (vec![-5, -5], "[1.000,1.000]"),
        (vec![-7], "[1.000]"),
    ] {
        pure.device.logits = logits;
        assert_eq!(pure.command("results"), format!("m-results-{results}\n"));
    }
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    let mut pure = Pure::new();
    let refused = |pure: &mut Pure, command: &str, said: &str| {
        let answer = pure.command(command);
        let right = answer.starts_with("e-[") && answer.ends_with("]\n") && answer.lines().count() == 1;
        assert!(right && answer.contains(said), "{command:?}: {answer}");
    };
    refused(&mut pure, "results", "send infer first");
    refused(&mut pure, "infer 1 0", "0 of 6 bytes");
    refused(&mut pure, "db 00", "send db load 6 first");
    for size in ["0", "5", "7", "-6", "6.0", "99999999999999999999", "six"] {
        refused(&mut pure, &format!("db load {size}"), "the model takes 6 bytes");
    }
    pure.command("db load 6");
    pure.command("db 0102");
    for (command, said) in [
        ("db 123", "3 digits"),
        ("db 0g", "\"0g\" are not all hexadecimal"),
        ("db 03040x", "hexadecimal"),
        ("db 0304050607", "5 bytes came, 4 are left"),
        ("db load", "hexadecimal"),
        ("db", "unknown command \"db\""),
        ("db load 6 6", "unknown command"),
        ("db 03 04", "unknown command"),
        ("infer 1 0", "2 of 6 bytes"),
        ("infer 0 0", "1 to 100000, not \"0\""),
        ("infer -1 0", "not \"-1\""),
        ("infer 1 -1", "0 to 100000, not \"-1\""),
        ("infer 100001", "not \"100001\""),
        ("infer 4294967297", "not \"4294967297\""),
        ("infer 1 0 0", "unknown command"),
        ("NAME", "unknown command \"NAME\""),
        ("name name", "unknown command"),
        ("\u{1b}[2J", "unknown command \"\\u{1b}[2J\""),
        ("n\u{e4}me", "not ASCII"),
        (&"db ".repeat(27), "longer than 80"),
    ] {
        refused(&mut pure, command, said);
        assert_eq!(pure.command("db print"), "m-buffer-01-02\n", "after {command}");
    }
    assert_eq!(pure.device.inferences, 0);
    // The longest command there may be, and one after one that was too long.
    assert_eq!(pure.command(&format!("{:COMMAND_BYTES$}", "name")), "m-name-dut-[someone]\n");
    assert_eq!(pure.command("db 03040506"), "m-load-done\n");
    refused(&mut pure, "db 07", "1 bytes came, 0 are left");
    pure.device.is_broken = true;
    assert!(pure.command("infer 2 1").ends_with("m-infer-done\ne-[it is broken]\n"));
    refused(&mut pure, "results", "send infer first");
    pure.device.is_broken = false;
    assert!(pure.command("infer 2 1").ends_with("m-results-[43.000,1.000,25.000]\n"));
    let most = format!("infer {MAX_INFERENCES} 0");
    assert!(pure.command(&most).contains("m-infer-start-100000\n"));
}

/// Whatever comes in, as many answers as ends of commands, in characters that the host can read.
#[test]
fn noise_is_answered_command_by_command() {
    let mut pure = Pure::new();
    // The words and digits of commands, so that noise gets past the first letter.
    let words = [
        "db load 6%",
        "db ",
        "load ",
        "010203%",
        "ff",
        "infer 1 0%",
        "infer ",
        "1 ",
        "0",
        "name",
        "results",
        "%",
        "%",
        "-",
        "\r\n",
        "m-ready",
    ];
    let mut state = 1_u32;
    let mut noise = Vec::new();
    for _ in 0..20_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 28 {
            0 => noise.push((state >> 16) as u8),
            _ => noise.extend(words[(state >> 20) as usize % words.len()].bytes()),
        }
    }
    let said = pure.send(&noise);
    let ends = noise.iter().filter(|&&byte| byte == b'%').count();
    assert_eq!(said.split("\r\n").filter(|&line| line == "m-ready").count(), ends);
    assert!(ends > 1000 && said.ends_with("\r\n") && said.bytes().all(|byte| matches!(byte, b'\r' | b'\n' | b' '..=b'~')));
    for seen in [
        "m-name-dut",
        "m-[Expecting",
        "m-results",
        "longer than",
        "not ASCII",
        "hexadecimal",
        "m-load-done",
    ] {
        assert!(said.contains(seen), "the noise is not noisy enough: no {seen}");
    }
    pure.command("");
    assert_eq!(pure.command("name"), "m-name-dut-[someone]\n");
}

/// `docs/MEASURING.md` shows the code that is compiled.
#[test]
fn the_page_shows_the_profile_that_is_compiled() {
    let page = include_str!("../../docs/MEASURING.md");
    let shown = page.split_once("```rust\n").unwrap().1.split_once("```").unwrap().0;
    let compiled = include_str!("../../examples/mlperf-tiny/src/cycles.rs");
    let (_head, compiled) = compiled.split_once("\n\n").unwrap();
    assert_eq!(shown, compiled);
}

/// The firmware in QEMU, and the host's end of its serial port.
struct Host {
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<Vec<u8>>,
}

impl Host {
    /// Longest that the device may take for a line; far more than it takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn start() -> Self {
        firmware::build("mlperf-tiny");
        let mut qemu = firmware::cargo("mlperf-tiny", "run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo runs");
        let (input, output) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0)
                && sender.send(std::mem::take(&mut line)).is_ok()
            {}
        });
        Host { qemu, input, lines }
    }

    /// The lines up to `m-ready`, which is left out.
    fn answer(&self) -> Vec<String> {
        let mut answer = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Self::PATIENCE);
            let line = line.unwrap_or_else(|cause| panic!("the device is silent ({cause}) after {answer:?}"));
            let line = String::from_utf8(line).expect("lines are text");
            match line.strip_suffix("\r\n").expect("lines end in CR LF") {
                "m-ready" => return answer,
                line => answer.push(line.to_owned()),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.input
            .write_all(bytes)
            .and_then(|()| self.input.flush())
            .expect("QEMU runs");
    }

    fn command(&mut self, command: &str) -> Vec<String> {
        self.send(format!("{command}%").as_bytes());
        self.answer()
    }

    /// One line and no more, without its prefix.
    fn line(&mut self, command: &str, prefix: &str) -> String {
        let answer = self.command(command);
        match answer.as_slice() {
            [line] if line.starts_with(prefix) => line[prefix.len()..].to_owned(),
            _ => panic!("{command} is answered by {answer:?}"),
        }
    }

    /// Loads an image as MLPerf Tiny's host does: so many bytes a command.
    fn load(&mut self, image: &[u8], bytes: usize) {
        assert_eq!(
            self.command(&format!("db load {}", image.len())),
            [format!("m-[Expecting {} bytes]", image.len())]
        );
        for (i, chunk) in image.chunks(bytes).enumerate() {
            let digits: String = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let answer = self.command(&format!("db {digits}"));
            let is_last = (i + 1) * bytes >= image.len();
            assert_eq!(answer, if is_last { vec!["m-load-done"] } else { vec![] });
        }
    }

    /// Its two timestamps and its results.
    fn infer(&mut self, inferences: u32, warmups: u32) -> ([u64; 2], String) {
        let answer = self.command(&format!("infer {inferences} {warmups}"));
        let [a, b, c, begin, end, d, results] = answer.as_slice() else {
            panic!("an inference is answered by {answer:?}")
        };
        let begun = [
            format!("m-warmup-start-{warmups}"),
            "m-warmup-done".into(),
            format!("m-infer-start-{inferences}"),
        ];
        assert_eq!(([a, b, c], d.as_str()), (begun.each_ref(), "m-infer-done"));
        let lap = |line: &str| {
            line.strip_prefix("m-lap-us-")
                .and_then(|us| us.parse().ok())
                .expect("a timestamp")
        };
        ([lap(begin), lap(end)], results.clone())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It ends no other way. Where it has ended already, there is nothing to do.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// What the device must answer, by the runtime on this machine.
fn results(model: &Model<'_>, image: &[u8]) -> String {
    let mut arena = vec![0; model.arena_bytes()];
    let mut session = Session::new(model, &mut arena).unwrap();
    let logits: Vec<i32> = session.run(Image::new(model, image).unwrap(), &mut ()).iter().collect();
    let least = *logits.iter().min().unwrap();
    let scores: Vec<String> = logits
        .iter()
        .map(|logit| format!("{}.000", i64::from(*logit) - i64::from(least) + 1))
        .collect();
    format!("m-results-[{}]", scores.join(","))
}

/// Images that leave nothing out: every value of a byte, in different orders.
fn images(bytes: usize) -> [Vec<u8>; 3] {
    [
        vec![255; bytes],
        (0..bytes).map(|i| (i * 7 % 256) as u8).collect(),
        (0..bytes).map(|i| (i * i / 3 % 251) as u8).collect(),
    ]
}

#[test]
fn a_host_gets_names_times_and_the_logits_of_the_host() {
    if !firmware::has_qemu() {
        return;
    }
    let model = fs::read(firmware::example("mlperf-tiny").join("src/model.adq")).unwrap();
    let model = Model::parse(&model).unwrap();
    let images = images(model.input().elements());
    let mut host = Host::start();
    let banner = host.answer();
    assert!(
        matches!(banner.as_slice(), [mode, lap, done]
            if mode == "m-timestamp-mode-performance" && lap.starts_with("m-lap-us-") && done == "m-init-done"),
        "{banner:?}"
    );
    assert_eq!(host.command("name"), ["m-name-dut-[adcorda]"]);
    assert_eq!(
        host.command("profile"),
        ["m-profile-[ULPMark for tinyML Firmware V0.0.1]", "m-model-[ic01]"]
    );
    let mut now: u64 = host.line("timestamp", "m-lap-us-").parse().unwrap();

    // 31 bytes a command on a direct line, 26 behind the benchmark's interface board.
    for (image, bytes) in images.iter().zip([31, 26, 31]) {
        host.load(image, bytes);
        let (ten, found) = host.infer(5, 1);
        assert_eq!(found, results(&model, image));
        assert_eq!(host.command("results"), [found]);
        let (two, _) = host.infer(1, 0);
        for time in [ten, two].concat() {
            assert!(now <= time, "time falls from {now} to {time}");
            now = time;
        }
        // Five inferences take as many instructions as five times one, to a few microseconds.
        let [five, one] = [ten, two].map(|[begin, end]| end - begin);
        assert!(
            one > 0 && five.abs_diff(5 * one) <= 50,
            "five inferences take {five} us, one takes {one}"
        );
    }
    assert_ne!(
        results(&model, &images[1]),
        results(&model, &images[2]),
        "images that make no difference prove nothing"
    );

    let printed = host.command("db print");
    let bytes: Vec<u8> = printed
        .iter()
        .flat_map(|line| {
            line.strip_prefix("m-buffer-")
                .unwrap()
                .split('-')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        })
        .collect();
    assert!(bytes == images[2]);
}

#[test]
fn a_hostile_host_gets_errors_and_a_device_that_still_works() {
    if !firmware::has_qemu() {
        return;
    }
    let model = fs::read(firmware::example("mlperf-tiny").join("src/model.adq")).unwrap();
    let model = Model::parse(&model).unwrap();
    let [.., image] = images(model.input().elements());
    let mut host = Host::start();
    host.answer();
    let too_many = format!("db {}", "00".repeat(31));
    let refused = |host: &mut Host, command: &str, said: &str| {
        let answer = host.command(command);
        let is_error =
            matches!(answer.as_slice(), [line] if line.starts_with("e-[") && line.ends_with(']') && line.contains(said));
        assert!(is_error, "{command:?} is answered by {answer:?}");
    };
    for (command, said) in [
        ("results", "no results"),
        ("infer 1 0", "0 of 3072 bytes"),
        ("db 00", "send db load 3072 first"),
        ("db load 3071", "takes 3072 bytes"),
        ("db load 27648", "takes 3072 bytes"),
        ("db load 0", "takes 3072 bytes"),
        ("db load -1", "takes 3072 bytes"),
    ] {
        refused(&mut host, command, said);
    }
    assert_eq!(host.command(""), [""; 0]);

    host.load(&image, 31);
    for (command, said) in [
        ("reboot", "unknown command \"reboot\""),
        (&"0".repeat(81), "longer than 80"),
        (&"x".repeat(1000), "longer than 80"),
        ("db 0", "1 digits"),
        ("db zz", "hexadecimal"),
        (&too_many, "31 bytes came, 0 are left"),
        ("infer 0", "not \"0\""),
        ("infer -5 1", "not \"-5\""),
        ("infer 99999999999 0", "not \"99999999999\""),
        ("infer 1 100001", "not \"100001\""),
    ] {
        refused(&mut host, command, said);
        assert_eq!(host.command("name"), ["m-name-dut-[adcorda]"], "after {command}");
    }
    // Every byte but the end of a command, and then what a line without ground brings.
    let mut noise: Vec<u8> = (0..=255).filter(|&byte| byte != b'%').cycle().take(500).collect();
    noise.extend(b"%\xff\xfe\x00\x80%");
    host.send(&noise);
    for _ in 0..2 {
        let answer = host.answer();
        assert!(matches!(answer.as_slice(), [line] if line.starts_with("e-[")), "{answer:?}");
    }
    // The image that was loaded before all this is still there.
    assert_eq!(host.infer(1, 0).1, results(&model, &image));
}

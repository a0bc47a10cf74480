//! The fuzzers' functions on their seeds and on mutants of these, with the toolchain that kiln is built with. `make fuzz` runs them
//! under libFuzzer for as long as one likes.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

/// Each target takes this long at most; `KILN_FUZZ_SECONDS` says otherwise, and `KILN_FUZZ_TARGET` takes one.
const SECONDS: u64 = 2;

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(data.len() + 1);
            let to = (at + 1 + self.below(8)).min(data.len());
            match self.below(6) {
                0 if at < data.len() => data[at] = self.below(256) as u8,
                1 if at < data.len() => data[at] ^= 1 << self.below(8),
                2 => drop(data.drain(at.min(to)..to)),
                3 => data.truncate(at),
                4 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let end = (from + self.below(64)).min(other.len());
                    data.splice(at..at, other[from..end].iter().copied());
                }
                _ => data.insert(at, [0, 1, 0x7f, 0x80, 0xff][self.below(5)]),
            }
        }
        data
    }
}

/// Runs a target; a panic names the input, so that it can go into `fuzz/corpus`.
fn run(name: &str, target: fn(&[u8]), data: &[u8]) {
    let done = std::panic::catch_unwind(|| target(data));
    if let Err(panic) = done {
        let path = std::env::temp_dir().join(format!("kiln-fuzz-{name}"));
        std::fs::write(&path, data).unwrap();
        eprintln!("{name} failed on what is in {}", path.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn no_seed_and_no_mutant_breaks_a_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seconds = std::env::var("KILN_FUZZ_SECONDS").map_or(SECONDS, |v| v.parse().unwrap());
    let only = std::env::var("KILN_FUZZ_TARGET").unwrap_or_default();
    for &(name, target) in targets::TARGETS {
        if !only.is_empty() && only != name {
            continue;
        }
        let seeds = targets::seeds(root, name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let start = Instant::now();
        let within = || start.elapsed() < Duration::from_secs(seconds);
        let mut ran = 0;
        // Those of the corpus stand first, and are few.
        let half = || start.elapsed() < Duration::from_secs(seconds) / 2;
        for seed in seeds.iter().take_while(|_| half()) {
            run(name, target, seed);
            ran += 1;
        }
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut mutants = 0;
        while within() {
            run(name, target, &random.mutated(&seeds));
            mutants += 1;
        }
        println!(
            "{name}: {ran} of {} seeds and {mutants} mutants",
            seeds.len()
        );
    }
}

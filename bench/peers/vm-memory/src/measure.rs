// SPDX-License-Identifier: Apache-2.0
//! Time, and the lines that compare.py reads.

use std::arch::asm;
use std::time::{Duration, Instant};

use crate::workload::{Layout, Pattern};

const MIN_PASSES: usize = 5;

/// Makes the compiler take the value as used, and all memory as read and written.
#[inline(always)]
pub fn keep(value: u64) {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) };
}

/// The time in ns of each pass, until the budget is used; what a pass returns is dropped off the clock.
fn times<T>(budget: Duration, mut prepare: impl FnMut(), mut pass: impl FnMut() -> T) -> Vec<f64> {
    let mut times = Vec::new();
    prepare();
    drop(pass());
    let begin = Instant::now();
    while times.len() < MIN_PASSES || begin.elapsed() < budget {
        prepare();
        let start = Instant::now();
        let made = pass();
        keep(0);
        times.push(start.elapsed().as_nanos() as f64);
        drop(made);
    }
    times.sort_by(f64::total_cmp);
    times
}

/// The best pass, in ns per access.
pub fn best(budget: Duration, count: usize, pass: impl FnMut()) -> f64 {
    times(budget, || (), pass)[0] / count as f64
}

/// The best pass, in ns; `prepare` and the dropping of what was made are not counted.
pub fn best_single<T>(budget: Duration, prepare: impl FnMut(), pass: impl FnMut() -> T) -> f64 {
    times(budget, prepare, pass)[0]
}

/// The median pass, in ns per access: with a second thread at work the best pass is one without it.
pub fn median(budget: Duration, count: usize, pass: impl FnMut()) -> f64 {
    let times = times(budget, || (), pass);
    times[times.len() / 2] / count as f64
}

/// What a figure is about.
#[derive(Clone, Copy)]
pub struct Row {
    pub layout: Layout,
    pub pattern: Pattern,
    pub regions: u64,
}

impl Row {
    pub fn new(layout: Layout, pattern: Pattern, regions: u64) -> Self {
        Row { layout, pattern, regions }
    }

    /// Prints the best pass of accesses that do not depend on each other.
    pub fn measure(&self, work: &str, budget: Duration, count: usize, pass: impl FnMut()) {
        self.print(work, "independent", best(budget, count, pass));
    }

    pub fn print(&self, work: &str, chain: &str, ns: f64) {
        println!(
            "{{\"work\": \"{}\", \"layout\": \"{}\", \"pattern\": \"{}\", \"chain\": \"{}\", \"regions\": {}, \
             \"ns\": {:.4}}}",
            work,
            self.layout.name(),
            self.pattern.name(),
            chain,
            self.regions,
            ns
        );
    }

    pub fn print_digest(&self, check: &str, digest: u64) {
        println!(
            "{{\"check\": \"{}\", \"layout\": \"{}\", \"pattern\": \"{}\", \"regions\": {}, \"digest\": \"{:016x}\"}}",
            check,
            self.layout.name(),
            self.pattern.name(),
            self.regions,
            digest
        );
    }
}

/// A figure without addresses.
pub fn print_plain(work: &str, regions: u64, ns: f64) {
    println!(
        "{{\"work\": \"{}\", \"layout\": \"none\", \"pattern\": \"none\", \"chain\": \"none\", \"regions\": {}, \
         \"ns\": {:.4}}}",
        work, regions, ns
    );
}

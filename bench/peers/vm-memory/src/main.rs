// SPDX-License-Identifier: Apache-2.0
//! The works of bench/mem with the vm-memory crate; prints one JSON object per line for compare.py.

mod measure;
mod raw;
mod workload;
mod works;

use std::time::Duration;

use workload::Layout;

const USAGE: &str = "\
usage: vm-memory-peer [--budget-ms N]

Does the works that bench/mem/README.md defines with the vm-memory crate and prints a JSON object per figure.
Each figure takes N ms (default: 12), and at least five passes.

example: vm-memory-peer --budget-ms 2
";

/// The budget; none when the command line says something else.
fn budget() -> Option<Duration> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Some(Duration::from_millis(12)),
        ["--budget-ms", number] => number.parse().ok().map(Duration::from_millis),
        _ => None,
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", USAGE);
        return;
    }
    let budget = budget().unwrap_or_else(|| {
        eprint!("{}", USAGE);
        std::process::exit(2);
    });
    println!("{{\"program\": \"vm-memory\", \"compiler\": \"{}\"}}", env!("PEER_RUSTC"));
    for layout in Layout::ALL {
        for regions in [1, 4, 64, 1024] {
            works::objects(layout, regions, budget);
        }
        works::build_map(layout, budget);
    }
    for regions in [1, 64, 1024] {
        works::two_threads(regions, budget);
    }
    for regions in [4, 64, 1024] {
        works::straddling(regions, budget);
    }
    works::copies(budget);
    works::dirty_log(budget);
    works::snapshot(budget);
}
